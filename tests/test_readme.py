"""The commands in the README and docs/ run: trainings as one step on tiny data, the rest as they stand."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from src import (
    annotate,
    attack,
    caption,
    compare,
    detect,
    duplicates,
    evaluate,
    export,
    index,
    quantize,
    report,
    robustness,
    runs,
    search,
    serve,
    soup,
    studies,
    tags,
    words,
)
from src.bundle import CALIBRATION, DETECTOR, MATCHING, Bundle, bundle_config, save_bundle
from src.command import _line_of, _values
from src.confidence import Calibration
from src.config import ROOT
from src.data.vocabulary import Vocabulary
from src.detection import Detector
from src.help import comments
from src.model import build
from src.portable import PortableCaptioner
from src.prepare import __main__ as prepare
from src.results import references_digest
from src.service.guard import is_loopback
from src.train import train
from src.trials import open_storage
from tests.conftest import tiny_config
from tests.prepare import originals
from tests.test_compare import evaluated
from tests.test_configs import composed, tiny
from tests.test_runs import make as make_run
from tests.test_video import RED, write_video

MATCHER = {"_target_": "src.matcher.JointMatcher", "size": 8, "words": 6, "hidden": 5, "heads": 2}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "experiments" / "README.md"]


def commands(module: str) -> list[list[str]]:
    """All calls of `python -m module` in the pages' bash blocks, as arguments."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if f"-m {module}" in line:
                    found.append(words[words.index(module) + 1 :])
    return found


def matching_bundle(path: Path, words: list[str]) -> Path:
    """One with a matcher, which knows some words, and the tags en and zh."""
    known = Vocabulary.build([words], min_count=1, controls={"<en>": 1, "<zh>": 1})
    config = bundle_config(tiny_config(), {"encoder_weights": "random"})
    config |= {"tokenizer": {"_target_": "src.data.tokenizer.MixedTokenizer"}, "matcher": MATCHER}
    save_bundle(path, Bundle(build(config, known).eval(), known, config))
    return path


def identify(arguments: list[str]) -> str:
    return " ".join(arguments)[:80]


def save(path: Path, vocabulary: Vocabulary) -> Path:
    config = bundle_config(tiny_config(), {"encoder_weights": "random"})
    config["matcher"] = MATCHER
    torch.manual_seed(0)
    model = build(config, vocabulary).eval()
    model.decoder.classifier.weight.data *= 30  # so that pictures are captioned differently, as calibration needs
    model.encoder.project.weight.data *= 100
    save_bundle(path, Bundle(model, vocabulary, config))
    return path


@pytest.fixture
def regions_bundle(tmp_path, vocabulary: Vocabulary) -> Path:
    config = bundle_config(tiny_config(), {"encoder_weights": "none"})
    config["encoder"] = {"_target_": "src.encoders.RegionEncoder", "path": "regions", "dimension": 2048}
    config["encoder"] |= {"max_regions": 100, "width": 16}
    save_bundle(tmp_path / "regions_bundle", Bundle(build(config, vocabulary).eval(), vocabulary, config))
    return tmp_path / "regions_bundle"


@pytest.fixture
def bundle(tmp_path, vocabulary: Vocabulary) -> Path:
    """One that can be asked for Chinese and for five words."""
    return save(tmp_path / "bundle", vocabulary.extended([], controls={"<zh>": 1, "<length=5>": 1}))


def one_job(arguments: list[str]) -> list[str]:
    """The overrides of the first job of a sweep, or of a call that is none."""
    overrides = OverridesParser.create().parse_overrides([a for a in arguments if a != "-m"])
    return [_line_of(o, next(_values(o, exact=True))) if o.is_sweep_override() else o.input_line for o in overrides]


@pytest.mark.parametrize("arguments", commands("src.attack"), ids=identify)
def test_attack_commands(arguments, shapes, bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [f"model={bundle}" if a.startswith("model=") else a for a in arguments]
    files = ["data.val=val.tsv", "data.test=test.tsv"]
    own = ["data=tsv", f"data.root={shapes}", *files, "device=cpu", "metrics=[CIDEr]"]
    result = attack.run(composed([*arguments, *own], "attack"))
    assert "success" in result["points"][0] and "report.html" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", commands("src.train"), ids=identify)
def test_training_commands(arguments, shapes, bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    arguments = [f"init={bundle}" if a.startswith("init=") else a for a in arguments]
    swept = one_job(arguments)
    mine = [a for a in swept if a.split("=")[0] not in ("data", "data.root", "data.train", "data.split", "data.val")]
    # The tiny data's regions are 2048 wide.
    # What several processes do, tests/test_distributed.py tries.
    given = (
        "data.test",
        "data.make.language",
        "ckpt",
        "encoder.dimension",
        "trainer",
        "trainer.devices",
        "trainer.num_nodes",
    )
    mine = [a for a in mine if a.split("=")[0] not in given]
    fetched = {"encoder=resnet50", "encoder=resnet50_multiscale", "encoder=timm", "encoder=vit"}
    extra = ["encoder.backbone.weights=random"] if fetched & set(mine) else []
    if "control=tags" in mine:
        extra += ["data.train=tagged.tsv", "data.val=tagged.tsv"]
    if any(a.startswith("objective.teachers=") for a in mine):
        train(composed([*tiny(shapes, tmp_path), f"run_dir={tmp_path / 'teacher'}"]))
        extra.append(f"objective.teachers=[{tmp_path / 'teacher.fast_dev_run'}]")
    train(composed([*mine, *tiny(shapes, tmp_path), *extra]))
    assert (tmp_path / "run.fast_dev_run" / "bundle" / "config.yaml").exists()
    composed(arguments if "-m" not in arguments else swept)  # and as it stands


@pytest.mark.parametrize("arguments", commands("src.evaluate"), ids=identify)
def test_evaluation_commands(arguments, bundle, shapes, tmp_path):
    config = composed(arguments, "evaluate")
    config["data"] |= {"root": str(shapes), "cache_dir": str(tmp_path / "cache"), "make": None, "workers": 0}
    if config["tags"]:
        config["data"]["test"] = "tagged.tsv"
    if config["data"]["split"]:
        config["data"] |= {"train": "train.tsv", "split": [0.5, 0.25, 0.25]}
    if config["calibrate"]:
        config["data"]["val"] = "train.tsv"  # four pictures are too few
    if config["model"]:
        model = [str(bundle)] * len(config["model"]) if isinstance(config["model"], list) else str(bundle)
        config["model"] = model
    if config["predictions"]:
        images = dict.fromkeys(line.split("\t")[0] for line in (shapes / "test.tsv").read_text().splitlines())
        (tmp_path / "captions.tsv").write_text("".join(f"{image}\ta red square\n" for image in images))
        config |= {"predictions": str(tmp_path / "captions.tsv"), "references": str(shapes / "test.tsv")}
    if config.get("baseline"):
        config["data"]["train"] = "train.tsv"
        config["baseline"] |= {"encoder": "cnn"} if "encoder" in config["baseline"] else {}
    config["output"] = str(tmp_path / "eval")
    evaluate.run(config)
    assert json.loads((tmp_path / "eval" / "scores.json").read_text())["images"] > 0


@pytest.mark.parametrize("arguments", commands("src.robustness"), ids=identify)
def test_robustness_commands(arguments, bundle, vocabulary, shapes, tmp_path):
    config = composed(arguments, "robustness")
    config["data"] |= {"root": str(shapes), "cache_dir": str(tmp_path / "cache"), "make": None, "workers": 0}
    config["tags"] = None  # which the tiny captioner does not know
    if isinstance(config["model"], list):
        config["model"] = [str(save(tmp_path / name, vocabulary)) for name in config["model"]]
        config["relative_to"] = config["relative_to"] and str(tmp_path / config["relative_to"])
    else:
        config["model"] = str(bundle)
    # Few pictures and no Java for each state.
    config |= {"kinds": config["kinds"] or ["fog"], "limit": 2, "output": str(tmp_path / "out"), "severities": [2]}
    robustness.run(config)
    assert json.loads((tmp_path / "out" / "robustness.json").read_text())["images"] == 2


@pytest.mark.parametrize("arguments", commands("src.caption"), ids=identify)
def test_caption_commands(arguments, bundle, regions_bundle, shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_data").symlink_to(shapes)
    shutil.copytree(shapes / "images", tmp_path / "my_data_photos")
    (tmp_path / "data" / "scenes").mkdir(parents=True)
    for folder in ("data/scenes/images", "photos"):
        (tmp_path / folder).symlink_to(tmp_path / "my_data_photos")
    if "mp4" in " ".join(arguments):
        (tmp_path / "clips").mkdir()
        clip = write_video(tmp_path / "clip.mp4", [(RED, 1)])
        shutil.copy(clip, tmp_path / "clips" / "one.mp4")
    arguments = [a.replace("my_data/photos", "my_data_photos") for a in arguments]
    if "--devices" in arguments:  # which tests/test_distributed.py tries
        at = arguments.index("--devices")
        del arguments[at : at + 2]
    if "--regions" in arguments:
        arguments[arguments.index("--regions") + 1] = str(shapes / "regions" / "images")
        bundle = regions_bundle
    known = {"dog|cat": "red|blue", "grass": "grey"}  # the tiny captioner's words
    arguments = [str(bundle) if a.startswith("runs/") else known.get(a, a) for a in arguments]
    Calibration(4.0, 3.0, 0.5, 100).save(bundle / CALIBRATION)
    (tmp_path / "photo.jpg").symlink_to(shapes / "images" / "00.png")
    if "--alert" in arguments:
        bundle = matching_bundle(tmp_path / "matching", ["dog", "in", "the", "snow", "person", "with", "雪"])
        Calibration(1.0, 0.0, 0.5, 100).save(bundle / MATCHING)
        arguments += ["--alert-confidence", "0"]
    if "--refuse-unfamiliar" in arguments:
        Detector.fit(np.random.default_rng(0).normal(0, 1, (40, 16)), np.zeros((3, 16))).save(bundle / DETECTOR)
    monkeypatch.setattr("src.picture_flags.SHIPPED", bundle)
    assert caption.main(arguments) == 0
    if "--alert" in arguments:
        assert len(capsys.readouterr().out.splitlines()) == arguments.count("--alert")
        return
    if "--sidecar" in arguments:
        kind = arguments[arguments.index("--sidecar") + 1]
        assert len(list(tmp_path.glob(f"[!p]*/*.{kind}"))) == (1 if kind == "vtt" else 24)
        return
    if "-o" not in arguments:
        assert len(capsys.readouterr().out.splitlines()) == 1
        return
    if "clip.srt" in arguments:
        assert (tmp_path / "clip.srt").read_text().startswith("1\n00:00:00,000 --> ")
        return
    if "captions.jsonl" in arguments:
        assert len((tmp_path / "captions.jsonl").read_text().splitlines()) == 24
        return
    lines = (tmp_path / "captions.tsv").read_text().splitlines()
    assert len({line.split("\t")[0] for line in lines}) == 24 and (len(lines) == 24) != ("--n-best" in arguments)


def test_captioning_from_python(shapes, tmp_path, monkeypatch, capsys):
    (tmp_path / "photos").mkdir()
    image = Image.open(shapes / "images" / "00.png").convert("RGB")
    for name in ("photo.jpg", "photos/a.jpg", "photos/b.jpg"):
        image.save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    array = np.asarray(image)
    given = {"image": image, "array": array, "tensor": torch.from_numpy(array.copy()).permute(2, 0, 1)}
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "captioning.md").read_text("utf-8"), re.DOTALL)
    exec(block, given)
    assert "photos/a.jpg" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", commands("src.tags"), ids=identify)
def test_tags_commands(arguments, bundle, shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "scenes").mkdir(parents=True)
    (tmp_path / "data" / "scenes" / "images").symlink_to(shapes / "images")
    (tmp_path / "photo.jpg").symlink_to(shapes / "images" / "00.png")
    monkeypatch.setattr("src.picture_flags.SHIPPED", bundle)
    assert tags.main([str(bundle) if a.startswith("runs/") else a for a in arguments]) == 0
    written = [Path(a) for a in arguments if a.endswith((".tsv", ".jsonl", ".csv", ".html"))]
    assert all(path.stat().st_size for path in written)
    lines = (written[0].read_text() if written else capsys.readouterr().out).splitlines()
    assert len(lines) == (1 if "photo.jpg" in arguments else 24)


@pytest.mark.parametrize("arguments", commands("src.search"), ids=identify)
def test_search_commands(arguments, shapes, tmp_path, monkeypatch, capsys):
    """Each behind the pages' first `src.index`, whose captioner knows their words."""
    monkeypatch.chdir(tmp_path)
    matching_bundle(tmp_path / "bundle", ["dog", "in", "the", "snow", *"雪地里的狗"])
    monkeypatch.setattr("src.picture_flags.SHIPPED", tmp_path / "bundle")
    (tmp_path / "photos").symlink_to(shapes / "images")
    (tmp_path / "photo.jpg").symlink_to(shapes / "images" / "00.png")
    first = commands("src.index")[0]
    assert index.main(first) == 0
    capsys.readouterr()
    assert search.main(arguments) == 0
    said = capsys.readouterr()
    assert (
        (tmp_path / "found.html").exists() if "--html" in arguments else said.out or said.err == "nothing was found\n"
    )


@pytest.mark.parametrize("arguments", commands("src.index"), ids=identify)
def test_index_commands(arguments, tmp_path, monkeypatch):
    """They can be read; what they do, tests/test_retrieval.py tries."""
    asked = index.parser().parse_args(arguments)
    assert asked.index == Path("photos.index") and (asked.pictures or asked.remove or asked.compact)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [(module, arguments) for module in (annotate, duplicates) for arguments in commands(module.__name__)],
)
def test_annotating_commands(module, arguments, bundle, shapes, tmp_path, monkeypatch, capsys):
    shutil.copytree(shapes / "images", tmp_path / "my_data" / "photos")
    (tmp_path / "photos").symlink_to(tmp_path / "my_data" / "photos")
    for split, names in (("train", ("00", "01")), ("val", ("02", "00"))):
        (tmp_path / "my_data" / f"{split}.tsv").write_text("".join(f"photos/{n}.png\ta shape\n" for n in names))
    (tmp_path / "tags.tsv").write_text("my_data/photos/00.png\tred, square\n")
    (tmp_path / "captions.tsv").write_text("my_data/photos/01.png\ta red square\n")
    monkeypatch.chdir(tmp_path)
    assert module.main(["--model", str(bundle), *arguments]) == 0
    written = Path(arguments[arguments.index("-o") + 1]).read_text() if "-o" in arguments else capsys.readouterr().out
    assert written or module is duplicates


@pytest.mark.parametrize("arguments", commands("src.detect"), ids=identify)
def test_detection_commands(arguments, bundle, shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(shapes / "images")
    (tmp_path / "data" / "scenes").mkdir(parents=True)
    (tmp_path / "data" / "scenes" / "images").symlink_to(shapes / "images")
    for split in ("train", "val"):  # the tiny data's training pictures alone are too few
        (tmp_path / "data" / "scenes" / f"{split}.tsv").write_bytes((shapes / "tagged.tsv").read_bytes())
    monkeypatch.setattr("src.picture_flags.SHIPPED", bundle)
    assert detect.main([str(bundle) if a.startswith("runs/") else a for a in arguments]) == 0
    written = [Path(a) for a in arguments if a.endswith(("flags.tsv", ".html"))]
    assert all(path.stat().st_size for path in written) and (written or "24 pictures" in capsys.readouterr().out)


@pytest.mark.parametrize("arguments", commands("src.prepare"), ids=identify)
def test_preparation_commands(arguments, tmp_path, monkeypatch, bundle, shapes):
    monkeypatch.chdir(tmp_path)
    name, folder, *options = arguments
    if name == "scenes":
        if "--images" in options:
            del options[options.index("--images") : options.index("--images") + 2]
        options += ["--images", "40"]
    elif name == "regions":
        (tmp_path / options[0]).symlink_to(shapes)
        folder, options = "regions", [str(bundle) if a.startswith("runs/") else a for a in options]
    elif name == "shards":
        (tmp_path / folder).parent.symlink_to(shapes)
        if "--features" in options:
            options += ["encoder.backbone.weights=random"]
    elif name == "tagged":
        (tmp_path / folder).parent.mkdir(parents=True)
        for table in options:
            (tmp_path / table.partition("=")[2]).write_bytes((shapes / "train.tsv").read_bytes())
    else:  # a known data set: a miniature of it, where the command looks for it
        (originals.coco if name == "karpathy" else getattr(originals, name))(tmp_path / folder)
    assert prepare.main([name, folder, *options]) == 0
    if name == "tagged":
        assert len(Path(folder).read_text().splitlines()) == len(options) * 32
        return
    if name == "shards":
        assert (Path(options[0]) / "manifest.json").exists()
        return
    made = Path(options[options.index("--output") + 1]) if "--output" in options else Path(folder)
    assert list(made.glob("images/*.npz" if name == "regions" else "train*.tsv"))


def test_each_data_set_has_a_command():
    modules = {data_set.__name__.rpartition(".")[2] for data_set in prepare.DATA_SETS}
    assert modules == {arguments[0] for arguments in commands("src.prepare")}


@pytest.mark.parametrize("arguments", commands("src.runs"), ids=identify)
def test_list_commands(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs", "flickr8k/a", scores={"CIDEr": 0.6}, choices={"decoder": "lstm_attn"})
    (tmp_path / "runs" / "flickr8k" / "a" / "metrics.csv").write_text("epoch,val/CIDEr\n0,0.6\n")
    assert runs.main(arguments) == 0
    assert (tmp_path / "scores.csv").exists() == ("--csv" in arguments)
    assert (tmp_path / "curve.svg").exists() == ("--curve" in arguments)


@pytest.mark.parametrize("arguments", commands("src.studies"), ids=identify)
def test_study_commands(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = studies.parser().parse_args(arguments)
    optuna.create_study(storage=open_storage(asked.storage), study_name=asked.study)
    assert studies.main(arguments) == 0
    assert not asked.output or asked.output.exists()


@pytest.mark.parametrize("arguments", commands("src.compare"), ids=identify)
def test_comparison_commands(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = compare.parser().parse_args(arguments)
    of_files = {"references": references_digest({"1.jpg": ["a dog"], "2.jpg": ["a dog"]})}
    for path in asked.paths:
        if path.suffix == ".tsv":
            path.write_text("1.jpg\ta dog\n2.jpg\ta cat\n")
            asked.references.parent.mkdir(parents=True, exist_ok=True)
            asked.references.write_text("1.jpg\ta dog\n2.jpg\ta dog\n")
        else:
            folder = path if "eval" in path.parts or path.parts[0] != "runs" else path / "eval" / asked.split
            evaluated(folder, {"1.jpg": 0.5, "2.jpg": 0.6}, **of_files)
    assert compare.main(arguments) == 0
    printed = asked.csv.read_text() if asked.csv else capsys.readouterr().out
    assert all(str(path) in printed for path in asked.paths)


@pytest.mark.parametrize("arguments", commands("src.report"), ids=identify)
def test_report_commands(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = report.parser().parse_args(arguments)
    for path in asked.runs:
        evaluated(path / "eval" / asked.split, {"1.jpg": 0.5, "2.jpg": 0.6})
    assert report.main(arguments) == 0
    assert "<!doctype html>" in next(tmp_path.rglob("*.html")).read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", commands("src.words"), ids=identify)
def test_word_commands(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = words.parser().parse_args(arguments)
    vocabulary = Vocabulary.build([[*asked.words, "a", "the"]], min_count=1)
    save(tmp_path / asked.model, vocabulary)
    assert words.main(arguments) == 0
    assert all(f"{word} (1 in" in capsys.readouterr().out for word in asked.words[:1])
    assert not asked.output or asked.output.exists()
    assert not asked.tsv or (asked.tsv / "metadata.tsv").exists()


@pytest.mark.parametrize("arguments", commands("src.serve"), ids=identify)
def test_serve_commands(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("token").write_text("0123456789abcdef\n")
    asked = serve.parser().parse_args(arguments)
    serve.check_numbers(asked)
    assert is_loopback(asked.host) or serve.token_of(asked) == "0123456789abcdef"


@pytest.mark.parametrize(
    ("module", "arguments"),
    [(module, arguments) for module in (quantize, soup) for arguments in commands(module.__name__)],
)
def test_bundle_commands(module, arguments, vocabulary, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = module.parser().parse_args(arguments)
    for model in getattr(options, "models", None) or [options.model]:
        save(tmp_path / model, vocabulary)
    assert module.main(arguments) == 0 and (options.output / "README.md").exists()


@pytest.mark.parametrize("arguments", commands("src.export"), ids=identify)
def test_export_commands(arguments, vocabulary, shapes, tmp_path, monkeypatch, capsys):
    if torch.__version__ < export.LEAST_TORCH:
        pytest.skip("torch is too old to export")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(shapes / "images")
    monkeypatch.setattr(export, "SHIPPED", save(tmp_path / "shipped", vocabulary))
    for path in (a for a in arguments if a.startswith("runs/") and a != arguments[arguments.index("-o") + 1]):
        save(tmp_path / path, vocabulary)
    assert export.main(arguments) == 0
    assert PortableCaptioner.load(arguments[arguments.index("-o") + 1]).vocabulary.words == vocabulary.words
    assert "captions are those of the original" in capsys.readouterr().out


def test_there_are_commands_of_each_kind():
    modules = ("train", "evaluate", "attack", "robustness", "caption", "detect", "prepare", "runs", "studies")
    modules += ("compare", "report", "tags", "words", "quantize", "soup", "export", "index", "search", "serve")
    modules += ("annotate", "duplicates")
    assert [bool(commands(f"src.{module}")) for module in modules] == [True] * len(modules)


def test_pages_name_only_files_that_are_there():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_group_table_names_what_conf_holds():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for folder in sorted(p for p in (ROOT / "conf").iterdir() if p.is_dir()):
        assert f"`{folder.name}`" in readme, folder.name
        for choice in folder.rglob("*.yaml"):  # those within others, as `hydra/sweeper=optuna`
            named = f"{choice.parent.relative_to(ROOT / 'conf')}={choice.stem}`"
            assert f"`{choice.stem}`" in readme or named in readme, choice


def test_every_config_field_is_commented():
    """A file says on its first line what it is, and each field in it, however deep, and each group says what it is."""
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        assert path.read_text(encoding="utf-8").startswith("# "), path
        silent = [key for key, comment in comments(path).items() if not comment and not key.endswith("_target_")]
        assert not {key for key in silent if key not in ("defaults", "hydra", "hydra.job", "hydra.run")}, path
