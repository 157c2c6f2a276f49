"""Exports caption as their originals do: any decoder, any number of pictures and beams, without this project."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from src import caption, portable, quantize
from src import export as command
from src.bundle import Bundle, bundle_config, save_bundle
from src.captioner import Captioner
from src.confidence import Calibration
from src.data.vocabulary import EOS, Vocabulary
from src.export import differences, made_up, score
from src.generation import BeamSearch, GreedySearch, Search
from src.model import build, instantiate
from src.portable import PortableCaptioner, PortableError
from tests.conftest import tiny_choice, tiny_config
from tests.test_configs import composed

NEW_TORCH = torch.__version__ >= command.LEAST_TORCH
needs_new_torch = pytest.mark.skipif(not NEW_TORCH, reason="torch is too old to export")
FAST = [("lstm_attn", "additive", "onnx"), ("gru", None, "onnx"), ("latent", None, "onnx")]
"""Decoder, attention, format; `latent` is a transformer with one."""
SLOW = [("lstm", None, "onnx"), ("transformer", None, "onnx"), ("latent", None, "torch"), ("gru_attn", "dot", "onnx")]
SLOW += [("updown", kind, "onnx") for kind in ("multihead", "adaptive", "hard")]
SLOW += [(name, "additive", "torch") for name in ("lstm", "gru", "lstm_attn", "gru_attn", "updown", "transformer")]


def bundle_of(vocabulary: Vocabulary, config: dict, seed: int = 0) -> Bundle:
    torch.manual_seed(seed)
    config = bundle_config(config, {"encoder_weights": "random"})
    model = build(config, vocabulary).eval()
    for tensor in model.decoder.parameters():  # captions that differ from picture to picture
        tensor.data *= 2
    if isinstance(getattr(model.encoder, "project", None), torch.nn.Linear):
        model.encoder.project.weight.data *= 20
    model.decoder.classifier.bias.data[EOS] += 2  # and that end
    return Bundle(model, vocabulary, config, Calibration(4.0, 3.0, 0.5, 100))


def captioner_of(vocabulary: Vocabulary, config: dict, search: Search) -> Captioner:
    bundle = bundle_of(vocabulary, config, seed=1)
    parts = (instantiate(config[part]) for part in ("tokenizer", "transform"))
    captioner = Captioner(bundle.model, vocabulary, *parts, search, "cpu", "32-true")
    captioner.calibration = bundle.calibration
    return captioner


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    """That can be asked for Chinese, and for six words."""
    every = ["a", "red", "green", "blue", "square", "circle", "on", "grey"]
    known = Vocabulary.build([[word] * (len(every) - i) for i, word in enumerate(every)], min_count=1)
    return known.extended([], controls={"<en>": 5, "<zh>": 5, "<length=12>": 5})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, words) -> Path:
    config = tiny_config() | {"control": {"_target_": "src.data.control.Control", "tags": True, "default": "en"}}
    folder = tmp_path_factory.mktemp("captioner") / "bundle"
    save_bundle(folder, bundle_of(words, config))
    return folder


@pytest.fixture(scope="module")
def exported(bundle) -> Path:
    if not NEW_TORCH:
        pytest.skip("torch is too old to export")
    folder = bundle.parent / "exported"
    assert command.main([str(bundle), "-o", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def photo(bundle) -> Path:
    path = bundle.parent / "photo.png"
    made_up(1, seed=3)[0].save(path)
    return path


def original(bundle: Path) -> Captioner:
    return Captioner.load(bundle, device_name="cpu", precision_name="32-true")


def alike(ours, theirs):
    """A caption by NumPy and one by torch."""
    assert (ours.text, ours.words) == (theirs.text, theirs.words)
    np.testing.assert_allclose(ours.log_probs, theirs.log_probs, atol=1e-4)
    assert ours.score == pytest.approx(theirs.score, abs=1e-4)
    assert (ours.attention is None) == (theirs.attention is None)
    if ours.attention is not None:
        np.testing.assert_allclose(ours.attention, theirs.attention, atol=1e-4)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-6)
    assert ours.confidence == (theirs.confidence and pytest.approx(theirs.confidence, abs=1e-4))
    assert [each.text for each in ours.alternatives] == [each.text for each in theirs.alternatives]


@needs_new_torch
@pytest.mark.parametrize(
    ("name", "attention", "kind"), [*FAST, *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW)]
)
def test_captions_of_an_export_are_the_originals(name, attention, kind, vocabulary, tmp_path):
    """Any number of pictures and beams, and words as far as they come."""
    config = tiny_config("transformer" if name == "latent" else name, attention or "additive")
    if name in ("transformer", "lstm", "gru_attn"):
        config["decoder"]["layers"] = 2
    if name == "latent":
        config["latent"] = tiny_choice("latent", "gaussian")
    limits = {"max_length": 9, "min_length": 4, "no_repeat_ngram": 2}
    captioner = captioner_of(vocabulary, config, BeamSearch(beam_size=3, **limits))
    command.export(captioner, tmp_path / "out", tmp_path, kind)
    portable = PortableCaptioner.load(tmp_path / "out", threads=1)
    pictures, seen = made_up(7), set()
    for beam in (None, 1, 5, "greedy"):
        portable.search_by(None if beam == "greedy" else beam, beam == "greedy")
        if beam == "greedy":
            captioner.generation = GreedySearch(**limits)
        elif beam:
            captioner.generation = BeamSearch(beam_size=beam, **limits)
        for size in (1, 3, 7):
            mine = list(portable.stream(pictures, size, attention=True, alternatives=2))
            for ours, theirs in zip(mine, captioner.stream(pictures, 4, attention=True, alternatives=2), strict=True):
                alike(ours, theirs)
                seen.add((ours.text, round(ours.score, 3)))
    assert len(seen) > 10  # more than there are searches: the pictures matter


@needs_new_torch
@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "size"),
    [
        ("efficientnet_lite0", 64),
        ("mobilenet_v2", 64),
        ("resnet18", 64),
        ("vgg16", 64),
        ("vit", 64),
        ("efficientnet_lite0_multiscale", 96),
        ("resnet50_multiscale", 96),
        ("timm", 64),
    ],
)
def test_any_encoder_of_pictures_is_exported(encoder, size, vocabulary, tmp_path):
    chosen = [f"encoder={encoder}", "encoder.backbone.weights=random", f"transform.size={size}"]
    config = tiny_config("transformer", transform__size=size)
    config["encoder"] = composed(chosen)["encoder"]
    captioner = captioner_of(vocabulary, config, BeamSearch(beam_size=3, max_length=6))
    command.export(captioner, tmp_path / "out", tmp_path)
    pictures = made_up(3)
    ours, theirs = (
        PortableCaptioner.load(tmp_path / "out")(pictures, attention=True),
        captioner(pictures, attention=True),
    )
    for mine, other in zip(ours, theirs, strict=True):
        alike(mine, other)


def test_an_export_is_whole_and_small(exported, bundle):
    assert {path.name for path in exported.iterdir()} == {
        *("README.md", "LICENSE", "caption.py", "config.json", "vocabulary.json", "encoder.onnx", "step.onnx", "src")
    }
    assert not list(exported.parent.glob("*.partial"))
    read_me = (exported / "README.md").read_text()
    assert "pip install onnxruntime numpy pillow" in read_me and "# Image captioner\n\nTrained with" in read_me
    config = json.loads((exported / "config.json").read_text())
    assert config["generation"]["beam_size"] == 3 and config["default"] == "en" and config["calibration"]["slope"] == 4


WITHOUT = """
import runpy, sys
absent = ["torchvision", "pytorch_lightning", "omegaconf", "hydra", "timm", "safetensors"]
absent += ["torch", "yaml", "filelock", "tqdm"]
sys.modules.update(dict.fromkeys(absent))  # importing one of them raises
folder, *sys.argv = sys.argv[1], *sys.argv[1:]
sys.argv[0] = f"{folder}/caption.py"
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    assert sys.modules["src.portable"].__file__ == f"{folder}/src/portable.py"
"""


def run(code: str, *arguments: object) -> str:
    """What a fresh Python prints, away from this project."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment)
    assert not done.returncode, done.stderr
    return done.stdout


def test_it_captions_without_torch(exported, bundle, photo):
    """Beams and greedily: two calls in one process, since each starts another."""
    twice = WITHOUT.replace('runpy.run_path(sys.argv[0], run_name="__main__")', "from_file()").replace(
        "try:",
        """
def from_file():
    main = runpy.run_path(sys.argv[0])["main"]
    from pathlib import Path
    assert main(Path(folder), sys.argv[1:]) == 0
    assert main(Path(folder), [sys.argv[1], "--greedy", "--language", "zh"]) == 0

try:""",
    )
    captioner = original(bundle)
    (beam,) = captioner([photo])
    captioner.generation = GreedySearch(max_length=8)
    captioner.ask(language="zh")
    (greedy,) = captioner([photo])
    assert run(twice, exported, photo).splitlines() == [f"{photo}\t{beam.text}", f"{photo}\t{greedy.text}"]


@needs_new_torch
def test_torch_programs_run_without_the_models_code(words, photo, tmp_path, capsys):
    """A transformer, whose search no export has: beams take its place."""
    config = tiny_config("transformer", decoder__layers=2)
    config["generation"] = {"_target_": "src.generation.SampleSearch", "captions": 2, "max_length": 7, "min_length": 2}
    save_bundle(tmp_path / "bundle", bundle_of(words, config))
    out = tmp_path / "out"
    assert command.main([str(tmp_path / "bundle"), "-o", str(out), "--format", "torch"]) == 0
    printed = capsys.readouterr()
    assert "its own search, SampleSearch, is in no export" in printed.err
    assert printed.out.endswith("8 of 8 captions are those of the original in float32\n")
    code = WITHOUT.replace('absent += ["torch", "yaml", "filelock", "tqdm"]\n', "")
    assert code != WITHOUT
    code = code.replace("finally:", "finally:\n    assert 'src.model' not in sys.modules")
    captioner = original(tmp_path / "bundle")
    captioner.generation = BeamSearch(max_length=7, min_length=2)
    (beam,) = captioner([photo])
    assert run(code, out, photo) == f"{photo}\t{beam.text}\n"


@pytest.mark.slow
def test_it_captions_in_an_environment_of_three_packages(exported, bundle, photo, tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    packages = ["onnxruntime", "numpy", "pillow"]
    installed = subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"pip has no index here: {installed.stderr[-200:]}")
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "torch" not in listed and "onnxruntime" in listed
    captioner = original(bundle)
    for flags, search in (((), captioner.generation), (("--greedy",), GreedySearch(max_length=8))):
        captioner.generation = search
        (best,) = captioner([photo])
        done = subprocess.run(
            [python, exported / "caption.py", photo, *flags], capture_output=True, text=True, cwd=tmp_path
        )
        assert (done.stdout, done.returncode) == (f"{photo}\t{best.text}\n", 0), done.stderr


def test_the_exports_command(exported, bundle, photo, tmp_path, capsys):
    """Its flags say what the captioner's own command says by the same ones."""
    (tmp_path / "pictures").mkdir()
    for number, picture in enumerate(made_up(3)):
        picture.save(tmp_path / "pictures" / f"{number}.png")
    for flags in (
        [],
        ["--beam", "4", "--n-best", "2"],
        ["--language", "zh", "--confidence"],
        ["--tags", "zh", "--batch-size", "2"],
        ["--length", "12", "--threads", "1"],
    ):
        assert portable.main(exported, [str(tmp_path / "pictures"), str(photo), *flags]) == 0
        ours = capsys.readouterr().out
        captioner = original(bundle)
        if "--beam" in flags:
            captioner.search_by({**captioner.config["generation"], "beam_size": 4})
        asked = {flag[2:]: value for flag, value in zip(flags, flags[1:], strict=False)}
        captioner.ask(asked.get("length"), asked.get("tags"), asked.get("language"))
        pictures = [*sorted((tmp_path / "pictures").iterdir()), photo]
        expected = []
        for path, best in zip(pictures, captioner(pictures, alternatives="--n-best" in flags), strict=True):
            for each in (best, *best.alternatives):
                columns = [str(path), each.text]
                columns += [f"{each.score:.4f}"] if "--n-best" in flags else []
                expected.append("\t".join(columns + ([f"{each.confidence:.3f}"] if "--confidence" in flags else [])))
        assert ours.splitlines() == expected


def test_it_is_called_as_a_captioner_is(exported, bundle, photo):
    """One picture or several, and what is asked for in a call is asked for there alone."""
    ours, theirs = PortableCaptioner.load(exported), original(bundle)
    picture = made_up(1)[0]
    for given in (photo, str(photo), picture, [photo, picture]):
        for asks in ({}, {"language": "zh"}, {"tags": "zh", "length": 12}):
            mine, other = ours(given, **asks), theirs(given, **asks)
            assert [(each.text, each.picture) for each in mine] == [(each.text, each.picture) for each in other]
            assert (ours.control, ours.generation.max_length) == (theirs.control, theirs.generation.max_length)
    ours.ask(language="zh")
    ours(photo, language="en")
    assert ours.control == ["<zh>"], "as was asked before"


def test_names_that_are_no_text_and_interruptions(exported, photo, tmp_path, capsys, monkeypatch):
    odd = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    shutil.copy(photo, odd)
    assert portable.main(exported, [os.fsdecode(odd)]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/caf\\udce9.png\t")
    shutil.copy(photo, tmp_path / "a\nb.png")
    assert portable.main(exported, [str(tmp_path / "a\nb.png")]) == 2
    assert "a tab or line break in its name" in capsys.readouterr().err
    call = [sys.executable, exported / "caption.py", *[photo] * 5, "--batch-size", "1"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as printing:
        printing.stdout.readline()
        printing.stdout.close()  # as `… | head -1` does
        assert (printing.wait(60), printing.stderr.read()) == (0, b"")

    def stops(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(portable, "prepared", stops)
    assert portable.main(exported, [str(photo)]) == 130 and capsys.readouterr().err == "interrupted\n"
    monkeypatch.setattr(command, "check_new", lambda *_, **__: stops())
    assert command.main(["-o", str(tmp_path / "out")]) == 130 and capsys.readouterr().err == "interrupted\n"


def test_an_unreadable_picture_is_named(exported, photo, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_text("no picture")
    assert portable.main(exported, [str(tmp_path / "bad.jpg"), str(photo)]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{photo}\t") and "bad.jpg: no picture in a format" in err and "1 of 2 pictures" in err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["nowhere.jpg"], "nowhere.jpg: no such file or folder"),
        (["EMPTY"], "no pictures in this folder"),
        (["PHOTO", "--beam", "0"], "--beam 0: at least 1 is wanted"),
        (["PHOTO", "--n-best", "9"], "--n-best 9: the search gives 3 at most; add --beam 9"),
        (["PHOTO", "--greedy", "--n-best", "2"], "the search gives 1 at most"),
        (["PHOTO", "--batch-size", "0"], "--batch-size 0: at least 1 is wanted"),
        (["PHOTO", "--language", "fr"], "fr: this captioner knows the tags en, zh"),
        (["PHOTO", "--length", "3"], "length 3: this captioner knows the lengths 12"),
    ],
)
def test_what_an_export_refuses(flags, sentence, exported, photo, tmp_path, capsys):
    named = {"EMPTY": str(tmp_path), "PHOTO": str(photo)}
    assert portable.main(exported, [named.get(flag, flag) for flag in flags]) == 2
    assert sentence in capsys.readouterr().err


def test_a_folder_that_is_no_export(bundle, exported, tmp_path):
    with pytest.raises(PortableError, match=r"config.json is missing"):
        PortableCaptioner.load(bundle)
    damaged = shutil.copytree(exported, tmp_path / "damaged")
    (damaged / "step.onnx").write_bytes(b"nothing")
    with pytest.raises(PortableError, match="damaged .*; export it again"):
        PortableCaptioner.load(damaged)
    (damaged / "config.json").write_text("{}")
    with pytest.raises(PortableError, match="damaged"):
        PortableCaptioner.load(damaged)


def test_int8(exported, bundle, tmp_path):
    """Smaller, and nearly the same probabilities."""
    pixels = [np.random.default_rng(i).integers(0, 256, (1, 3, 32, 32), dtype=np.uint8) for i in range(8)]
    plain = PortableCaptioner.load(exported)
    state, memory, _ = plain.networks.encode(np.concatenate(pixels))
    first = np.exp(plain.networks(np.ones((8, 1), np.int64), state, memory).log_probs)
    for what, smaller in (("decoder", ["step"]), ("all", ["encoder", "step"])):
        folder = shutil.copytree(exported, tmp_path / what)
        command.quantize(folder, what, iter(pixels))
        int8 = PortableCaptioner.load(folder)
        state, memory, _ = int8.networks.encode(np.concatenate(pixels))
        found = np.exp(int8.networks(np.ones((8, 1), np.int64), state, memory).log_probs)
        assert 0 < np.abs(found - first).max() < 0.1
        assert {path.name for path in folder.iterdir()} == {path.name for path in exported.iterdir()}
        for name in ("encoder", "step"):
            weights = onnx.load(folder / f"{name}.onnx").graph.initializer
            kinds = {x.data_type for x in weights if len(x.dims) > 1 and min(x.dims) > 1}
            assert (onnx.TensorProto.INT8 in kinds) == (name in smaller)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["-o", "EXPORTED"], "is there already: add --overwrite"),
        (["-o", "BUNDLE", "--overwrite"], "is there and is no export: name another folder"),
        (["-o", "SRC", "--overwrite"], "is there and is no export: name another folder"),
        (["-o", "new", "--int8", "all"], "--int8 all and --calibrate FOLDER go together"),
        (["-o", "new", "--int8", "decoder", "--format", "torch"], "--int8 decoder: of --format onnx"),
        (["-o", "new", "--check", "nowhere"], "nowhere: no such file or folder"),
        (["-o", "new", "EXPORTED"], "an export, which captions by itself"),
    ],
)
def test_what_the_command_refuses(flags, sentence, exported, bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    named = {"EXPORTED": str(exported), "BUNDLE": str(bundle), "SRC": str(command.ROOT / "src")}
    assert (command.ROOT / "src" / "caption.py").exists()
    monkeypatch.setattr(command, "export", None)  # which would replace the folder
    flags = [named.get(flag, flag) for flag in flags]
    assert command.main(flags if str(exported) in flags[2:] else [str(bundle), *flags]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_regions_computed_beforehand_are_not_exported(vocabulary, tmp_path, capsys):
    config = tiny_config()
    config["encoder"] = {"_target_": "src.encoders.RegionEncoder", "path": "regions", "dimension": 8, "width": 16}
    config["encoder"]["max_regions"] = 4
    save_bundle(tmp_path / "bundle", bundle_of(vocabulary, config))
    assert command.main([str(tmp_path / "bundle"), "-o", str(tmp_path / "out")]) == 2
    assert "reads regions computed beforehand, not pictures: it cannot be exported" in capsys.readouterr().err


@pytest.mark.skipif(NEW_TORCH, reason="torch is new enough")
def test_an_old_torch_is_told(bundle, tmp_path, capsys):
    assert command.main([str(bundle), "-o", str(tmp_path / "out")]) == 2
    assert "export needs torch 2.9 or newer, and this is 2." in capsys.readouterr().err


def test_other_commands_say_what_an_export_is(exported, photo, tmp_path, capsys):
    assert caption.main(["--model", str(exported), str(photo)]) == 2
    assert f"an export, which captions by itself: `python {exported}/caption.py photo.jpg`" in capsys.readouterr().err
    assert quantize.main([str(exported), "-o", str(exported), "--overwrite"]) == 2
    assert "is there and is no bundle" in capsys.readouterr().err


def test_a_score_is_the_searchs(bundle):
    """By teacher forcing, what beams and greedy search add up step by step."""
    captioner = original(bundle)
    for search in (BeamSearch(beam_size=4, length_penalty=0.6, max_length=20), GreedySearch(max_length=20)):
        captioner.generation, ended = search, 0
        for picture, best in zip(made_up(), captioner(made_up()), strict=True):
            if len(best.log_probs) > len(best.words):
                assert score(captioner, picture, best.words) == pytest.approx(best.score, abs=1e-4)
                ended += 1
        assert ended


def test_an_export_of_another_captioner_is_told_apart(bundle, exported, words, tmp_path, monkeypatch, capsys):
    other = bundle_of(words, tiny_config(), seed=5)
    save_bundle(tmp_path / "other", other)
    captioner = original(tmp_path / "other")
    found = differences(captioner, PortableCaptioner.load(exported), made_up())
    assert found and not any(each.tie for each in found)
    theirs = dict(enumerate(captioner(made_up())))
    for each in found:
        number = int(each.picture.rsplit(" ", 1)[1])
        assert each.original == theirs[number].text != each.exported
        assert each.gap == pytest.approx(
            theirs[number].score - score(captioner, made_up()[number], each.exported.split()), abs=1e-3
        )


@needs_new_torch
@pytest.mark.flickr8k
@pytest.mark.skipif(not Path(os.environ.get("FLICKR8K", "none"), "val.tsv").exists(), reason="FLICKR8K is not set")
def test_captions_of_two_hundred_photographs(tmp_path, capsys):
    """The captioner that comes with the code: at least 99 % are the same, and the others tie."""
    root = Path(os.environ["FLICKR8K"])
    images = dict.fromkeys(line.split("\t")[0] for line in (root / "val.tsv").read_text(encoding="utf-8").splitlines())
    pictures = [str(root / image) for image in list(images)[::5]]
    assert len(pictures) == 200
    captioner = original(command.SHIPPED)
    command.export(captioner, tmp_path / "out", command.SHIPPED)
    exported = PortableCaptioner.load(tmp_path / "out")
    for language in ("en", "zh"):
        captioner.ask(language=language)
        exported.ask(language=language)
        found = differences(captioner, exported, pictures)
        with capsys.disabled():
            print(f"\n{language}: {200 - len(found)} of 200 the same", *(each.verdict for each in found), sep="\n")
        assert len(found) <= 2 and all(each.tie for each in found)
