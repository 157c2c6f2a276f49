"""`src.caption`'s flags: searches, several captions a picture, confidence, quality."""

import argparse
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from src import caption
from src.bundle import Bundle, bundle_config, load_bundle, save_bundle
from src.captioner import Captioner
from src.confidence import Calibration, mean_log_prob
from src.data.quality import quality
from src.generation import BeamSearch, DiverseBeamSearch, GreedySearch, Hypotheses, SampleSearch
from src.model import build
from src.picture_flags import depends_on
from src.search_flags import add_search_flags, chosen_search
from src.video import scenes
from tests.conftest import tiny_config
from tests.test_video import BLUE, RED, write_video

CALIBRATION = Calibration(4.0, 3.0, 0.5, 100)


@pytest.fixture
def model(tmp_path, vocabulary):
    torch.manual_seed(2)
    config = bundle_config(tiny_config(), {"encoder_weights": "random"})
    made = build(config, vocabulary).eval()
    made.decoder.classifier.weight.data *= 30
    made.encoder.project.weight.data *= 100
    save_bundle(tmp_path / "bundle", Bundle(made, vocabulary, config, CALIBRATION))
    return tmp_path / "bundle"


@pytest.fixture
def call(model, shapes, capsys):
    files = [str(shapes / "images" / f"{number:02d}.png") for number in range(5)]

    def run(*flags: str, status: int = 0) -> tuple[list[list[str]], str]:
        assert caption.main(["--model", str(model), "--device", "cpu", *files, *flags]) == status
        said = capsys.readouterr()
        return [line.split("\t") for line in said.out.splitlines()], said.err

    return run


def loaded(model, generation=None):
    return Captioner.load(model, generation, "cpu")


def test_without_a_model_it_is_the_one_that_comes_with_the_code(call, model, shapes, tmp_path, monkeypatch, capsys):
    plain, _ = call()
    monkeypatch.setattr("src.picture_flags.SHIPPED", model)
    monkeypatch.chdir(tmp_path)
    assert caption.main([*(row[0] for row in plain), "--device", "cpu"]) == 0
    assert [line.split("\t") for line in capsys.readouterr().out.splitlines()] == plain
    with pytest.raises(SystemExit):
        caption.main([])
    assert "which pictures?" in capsys.readouterr().err
    monkeypatch.setattr("src.bundle.SHIPPED", model)
    shutil.rmtree(model)
    assert caption.main([plain[0][0]]) == 2
    said = "the captioner that comes with the code is not there; name another one with --model"
    assert capsys.readouterr() == ("", f"error: {model}: {said}\n")


def test_n_best(call, model, shapes, tmp_path):
    plain, _ = call()
    rows, _ = call("--n-best", "3")
    expected = list(loaded(model)([row[0] for row in plain], alternatives=2))
    for path, best in zip([row[0] for row in plain], expected, strict=True):
        mine = [row[1:] for row in rows if row[0] == path]
        assert mine == [[each.text, f"{each.score:.4f}"] for each in (best, *best.alternatives)]
        scores = [float(score) for _, score in mine]
        assert scores == sorted(scores, reverse=True) and len({text for text, _ in mine}) == len(mine)
    assert len(rows) > 5 and [row[:2] for row in call("--n-best", "1")[0]] == plain and len(plain[0]) == 2
    call("--n-best", "2", "-o", str(tmp_path / "n.tsv"))
    assert (tmp_path / "n.tsv").read_text().splitlines() == ["\t".join(r) for r in call("--n-best", "2")[0]]


def test_rows_that_are_no_captions_or_read_the_same_are_left_out(model, vocabulary):
    """As samples do, and beams in groups."""
    words = {word: i for i, word in enumerate(vocabulary.words)}
    tokens = torch.tensor([[[words["a"], words["red"], 2]] * 2 + [[words["a"], words["blue"], 2], [0, 0, 0]]])
    found = Hypotheses(
        tokens,
        torch.full(tokens.shape, -0.5),
        torch.tensor([[-0.1, -0.2, -0.3, -torch.inf]]),
        torch.tensor([[2, 2, 2, 0]]),
        torch.tensor([[True, True, True, False]]),
        None,
    )
    captioner = loaded(model)
    (best,) = captioner.captions(found, alternatives=3)
    assert [(c.text, c.score) for c in (best, *best.alternatives)] == [
        ("a red", pytest.approx(-0.1)),
        ("a blue", pytest.approx(-0.3)),
    ]
    (best,) = captioner.captions(found, alternatives=3, distinct=False)
    assert [c.text for c in best.alternatives] == ["a red", "a blue"]
    (best,) = captioner.captions(found, alternatives=1)
    assert [c.text for c in best.alternatives] == ["a blue"], "a repeated caption takes no other's place"


def test_confidence(call, model, capsys):
    rows, _ = call("--confidence")
    expected = list(loaded(model)([row[0] for row in rows]))
    for (_, text, confidence), found in zip(rows, expected, strict=True):
        assert text == found.text and confidence == f"{found.confidence:.3f}"
        assert found.confidence == pytest.approx(CALIBRATION(mean_log_prob(found.log_probs)))
    confidences = sorted(found.confidence for found in expected)
    assert confidences[0] < confidences[-1]
    least = (confidences[1] + confidences[2]) / 2
    kept, said = call("--min-confidence", f"{least}")
    assert [bool(row[1]) for row in kept] == [found.confidence >= least for found in expected]
    assert said.count("caption left out, its confidence") == sum(found.confidence < least for found in expected)
    several, _ = call("--n-best", "3", "--confidence", "--min-confidence", f"{least}")
    assert all(len(row) == 4 and (row[1:] == ["", "", ""] or float(row[3]) >= round(least, 3)) for row in several)
    assert {row[0] for row in several} == {row[0] for row in rows}, "every picture has a line"
    (model / "calibration.json").unlink()
    assert "not calibrated" in call("--confidence", status=2)[1]
    assert loaded(model)(rows[0][0])[0].confidence is None
    (model / "calibration.json").write_text("{}")
    assert "calibration.json: no calibration" in call(status=2)[1]


def test_a_bundle_keeps_its_calibration(model, tmp_path):
    assert load_bundle(model).calibration == CALIBRATION
    save_bundle(tmp_path / "again", load_bundle(model))
    assert load_bundle(tmp_path / "again").calibration == CALIBRATION


def test_quality(call, tmp_path, model, shapes, capsys):
    rows, _ = call("--quality")
    for path, text, seen in rows:
        assert text and seen == f"{quality(Image.open(path)).score:.3f}"
    Image.new("RGB", (300, 300), "grey").save(tmp_path / "00_poor.png")
    files = [str(tmp_path / "00_poor.png"), rows[0][0]]
    assert caption.main(["--model", str(model), *files, "--min-quality", "0.05", "--confidence", "--quality"]) == 0
    out, said = capsys.readouterr()
    poor, fine = (line.split("\t") for line in out.splitlines())
    assert poor == [files[0], "", "", "0.000"] and fine[:2] == rows[0][:2] and len(fine) == 4
    assert said.count("not captioned, its quality 0.000 is below 0.05") == 1
    assert len(call("--min-quality", "1")[0]) == 5, "nothing is left to caption"


def options(*flags):
    parser = argparse.ArgumentParser()
    add_search_flags(parser)
    return parser.parse_args(flags)


OWN = {"_target_": "src.generation.BeamSearch", "beam_size": 3, "length_penalty": 0.3, "max_length": 8}
OWN |= {"allow_unknown": True}
DRAWN = {"_target_": "src.generation.SampleSearch", "captions": 4, "max_length": 8}


@pytest.mark.parametrize(
    ("own", "flags", "kind", "expected"),
    [
        (OWN, ["--beam", "5"], "BeamSearch", {"beam_size": 5, "length_penalty": 0.3, "max_length": 8}),
        (DRAWN, ["--beam", "5"], "BeamSearch", {"beam_size": 5, "length_penalty": 0.7, "max_length": 8}),
        (OWN, ["--search", "greedy"], "GreedySearch", {"max_length": 8, "allow_unknown": True, "min_length": 1}),
        (OWN, ["--search", "sample", "--set", "temperature=0.5"], "SampleSearch", {"temperature": 0.5, "captions": 5}),
        (OWN, ["--set", "length_penalty=1", "--set", "max_length=4"], "BeamSearch", {"beam_size": 3, "max_length": 4}),
        (OWN, ["--search", "diverse_beam"], "DiverseBeamSearch", {"beam_size": 6, "groups": 3}),
        (OWN, ["--search", "diverse_beam", "--beam", "9"], "DiverseBeamSearch", {"beam_size": 9}),
        (OWN, ["--include", "red", "--include", "a|on"], "ConstrainedBeamSearch", {"include": ["red", "a|on"]}),
        (DRAWN, ["--exclude", "grey", "--beam", "2"], "ConstrainedBeamSearch", {"exclude": ["grey"], "beam_size": 2}),
        (DRAWN, ["--never", "grey", "--never", "a red"], "SampleSearch", {"never": ["grey", "a red"], "captions": 4}),
        (OWN | {"never": ["on"]}, ["--never", "grey", "--beam", "2"], "BeamSearch", {"never": ["on", "grey"]}),
        (OWN | {"never": ["on"]}, ["--search", "greedy"], "GreedySearch", {"never": ["on"]}),
    ],
)
def test_search_flags(own, flags, kind, expected):
    found = chosen_search(options(*flags), own)
    assert found["_target_"] == f"src.generation.{kind}"
    assert {name: found[name] for name in expected} == expected


def test_without_flags_the_search_stays():
    assert chosen_search(options(), OWN) is None


def test_searches_caption(call, model):
    for flags, search in (
        (["--search", "greedy"], GreedySearch(max_length=8)),
        (["--search", "sample", "--set", "captions=2"], SampleSearch(2, max_length=8)),
        (["--search", "diverse_beam"], DiverseBeamSearch(length_penalty=0.7, max_length=8)),
        (["--beam", "4"], BeamSearch(4, max_length=8)),
    ):
        rows, _ = call(*flags)
        assert [row[1] for row in rows] == [found.text for found in loaded(model, search)([row[0] for row in rows])]
    with_blue, _ = call("--include", "blue|circle", "--exclude", "grey")
    assert all(("blue" in row[1] or "circle" in row[1]) and "grey" not in row[1] for row in with_blue)


def test_words_are_never_said_in_any_search(call, tmp_path):
    one, other = next(row[1] for row in call()[0]).split()[:2]
    (tmp_path / "never.txt").write_text(f"{other}\nunheardof\n", encoding="utf-8")
    for flags in ([], ["--search", "greedy"], ["--search", "sample"], ["--beam", "2"], ["--include", "blue|square"]):
        rows, _ = call("--never", one, "--never-from", str(tmp_path / "never.txt"), *flags)
        said = {word for row in rows for word in row[1].split()}
        assert said and not said & {one, other}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ["--search", "bean"],
            "generation is one of beam, consensus, constrained, diverse_beam, greedy, sample (did you mean",
        ),
        (["--search", "greedy", "--beam", "3"], "generation.beam_size is no field"),
        (["--set", "temperatur=1", "--search", "sample"], "(did you mean generation.temperature?)"),
        (["--set", "beam_size=many"], "generation.beam_size=many: a whole number (int) is wanted"),
        (["--set", "beam_size"], "--set beam_size: FIELD=VALUE is wanted"),
        (["--set", "beam_size=["], "--set beam_size=[: FIELD=VALUE is wanted"),
        (["--set", "_target_=os.system"], "not allowed here"),
        (["--search", "greedy", "--include", "red"], "--include and --exclude are of --search constrained"),
        (["--include", "zebra"], "the captioner has no word 'zebra'"),
        (["--beam", "0"], "generation.beam_size=0: at least 1"),
        (["--n-best", "4"], "--n-best 4: the search gives 1 to 3 captions a picture; add --beam 4"),
        (["--n-best", "0"], "--n-best 0: the search gives 1 to 3"),
        (["--n-best", "2", "--search", "greedy"], "1 to 1 captions"),
        (["--min-confidence", "2"], "--min-confidence 2: a number from 0 to 1"),
        (["--min-quality", "nan"], "--min-quality nan: a number from 0 to 1"),
    ],
)
def test_wrong_flags_are_one_sentence(call, flags, sentence):
    rows, said = call(*flags, status=2)
    assert not rows and said.startswith("error: ") and sentence in said and said.count("\n") == 1


def test_files_of_every_kind(call, tmp_path):
    rows, _ = call("--n-best", "2", "--confidence")
    for name in ("a.jsonl", "a.json"):
        call("--n-best", "2", "--confidence", "-o", str(tmp_path / name))
    found = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert found == json.loads((tmp_path / "a.json").read_text())
    again = [
        [each["img_path"], one["caption"], f"{one['score']:.4f}", f"{one['confidence']:.3f}"]
        for each in found
        for one in (each, *each.get("alternatives", ()))
    ]
    assert again == rows and all(each["words"] == each["caption"].split() for each in found)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["a.json", "a.jsonl"]


def test_sidecars_are_written_beside_the_pictures_and_never_twice(model, shapes, tmp_path, capsys):
    shutil.copytree(shapes / "images", tmp_path / "photos")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "photos").iterdir()}
    line = ["--model", str(model), "--device", "cpu", str(tmp_path / "photos"), "--sidecar", "txt"]
    (tmp_path / "photos" / "03.png.txt").write_text("mine")
    (tmp_path / "photos" / "bad.png").write_bytes(b"")
    assert caption.main(line) == 1
    said = capsys.readouterr()
    assert "--sidecar: 1 of 25 are captioned already" in said.err and "1 of 25 pictures could not be read" in said.err
    assert not said.out and (tmp_path / "photos" / "03.png.txt").read_text() == "mine"
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    (tmp_path / "photos" / "bad.png").unlink()
    (tmp_path / "photos" / "05.png.txt").unlink()
    assert caption.main(line) == 0 and "23 of 24 are captioned already" in capsys.readouterr().err
    assert caption.main([*line, "--overwrite"]) == 0
    expected = {each.picture: f"{each.text}\n" for each in loaded(model)(tmp_path / "photos")}
    assert {str(path): Path(f"{path}.txt").read_text() for path in before} == expected


def test_scenes_of_a_video(model, shapes, tmp_path, capsys):
    pictures = [Image.open(shapes / "images" / f"{number:02d}.png").resize((96, 64)) for number in (0, 1, 2)]
    clip = write_video(tmp_path / "clip.mp4", [(RED, 1.5), (pictures[1], 2), (BLUE, 1.5)])
    line = ["--model", str(model), "--device", "cpu", str(clip)]
    expected = list(scenes(clip))
    texts = [each.text for each in loaded(model)([scene.frame.image for scene in expected])]
    assert caption.main(line) == 0
    rows = [row.split("\t") for row in capsys.readouterr().out.splitlines()]
    assert rows == [
        [f"{clip}#t={round(scene.start, 3):g},{round(scene.end, 3):g}", text]
        for scene, text in zip(expected, texts, strict=True)
    ]
    for name in ("clip.srt", "clip.vtt", "clip.json", "clip.tsv"):
        assert caption.main([*line, "-o", str(tmp_path / name)]) == 0
    assert [each["caption"] for each in json.loads((tmp_path / "clip.json").read_text())] == texts
    assert (tmp_path / "clip.srt").read_text().count(" --> ") == len(texts) == 3
    assert (tmp_path / "clip.vtt").read_text().startswith("WEBVTT\n\n1\n00:00:00.000 --> 00:00:01.5")
    both = [
        *line,
        str(shapes / "images" / "00.png"),
        "-o",
        str(tmp_path / "both.jsonl"),
        "--quality",
        "--batch-size",
        "2",
    ]
    assert caption.main(both) == 0
    found = [json.loads(row) for row in (tmp_path / "both.jsonl").read_text().splitlines()]
    assert ["video" in each for each in found] == [True] * 3 + [False] and all(0 < e["quality"] < 1 for e in found)
    assert caption.main([*line, "--sidecar", "srt", "--every", "0.7"]) == 0
    cues = (tmp_path / "clip.mp4.srt").read_text().split("\n\n")[:-1]
    assert len(cues) < 7 and [cue.splitlines()[2] for cue in cues][::1][0] == texts[0], "what says the same is one cue"
    assert all(one.splitlines()[2] != other.splitlines()[2] for one, other in itertools.pairwise(cues))
    assert caption.main([*line, "--attention", str(tmp_path / "looks")]) == 0
    assert len(list((tmp_path / "looks").glob("clip-*s.png"))) == 3
    assert caption.main([*line, "--min-quality", "1", "-o", str(tmp_path / "none.srt")]) == 0
    assert (tmp_path / "none.srt").read_text() == "" and "clip.mp4, 0.8 s: not captioned" in capsys.readouterr().err
    (tmp_path / "bad.mp4").write_bytes(b"no video" * 99)
    assert caption.main([*line[:-1], str(tmp_path / "bad.mp4"), str(clip)]) == 1
    said = capsys.readouterr()
    assert (
        "bad.mp4: no video, or a damaged one" in said.err and [r.split("\t")[1] for r in said.out.splitlines()] == texts
    )


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["-o", "{0}"], "a folder; name a file to write, or write files beside the pictures with --sidecar"),
        (["-o", "{0}/a.tsv", "--sidecar", "txt"], "-o writes one file, --sidecar one beside each picture"),
        (["--overwrite"], "--overwrite: of --sidecar"),
        (["-o", "{0}/mine.jpg"], "mine.jpg: a picture, a video or an input, which is never written over"),
        (["-o", "{0}/clip.mp4"], "clip.mp4: a picture, a video or an input"),
        (["-o", "{0}/clip.mp4/a.tsv"], "clip.mp4"),
        (["--device", "nonsense"], "device nonsense: not here"),
        (["--every", "nan"], "--every nan: seconds"),
        (["-o", "{0}/a.srt"], "a.srt: subtitles are of one video; name one, or write --sidecar srt"),
        (["--sidecar", "vtt"], "--sidecar vtt: subtitles are of videos, and "),
        (["http://127.0.0.1:9/a.png"], "an address, and nothing is fetched unless asked for: --urls"),
        (["http://127.0.0.1:9/a.png", "--urls", "--sidecar", "txt"], "--sidecar: there is no place beside http://"),
        (["--scene-change", "0"], "--scene-change 0: a number above 0"),
        (["--every", "-1"], "--every -1: seconds, more than 0"),
        (["--batch-size", "0"], "--batch-size 0: 1 or more"),
        (["--regions", "{0}", "{0}/clip.mp4"], "clip.mp4: a video has no regions computed beforehand"),
        (["{0}/a\tb.png"], "a tab or line break in its name, which no TSV has: rename it, or -o X.jsonl"),
    ],
)
def test_files_that_cannot_be_written_are_one_sentence(call, tmp_path, flags, sentence):
    (tmp_path / "clip.mp4").touch()
    (tmp_path / "a\tb.png").touch()
    rows, said = call(*(flag.format(tmp_path) for flag in flags), status=2)
    assert not rows and said.startswith("error: ") and sentence in said and said.count("\n") == 1


def test_what_could_not_be_read_leaves_an_earlier_file_alone(model, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"")
    (tmp_path / "said.tsv").write_text("earlier\n")
    line = ["--model", str(model), "--device", "cpu", str(tmp_path / "bad.png"), "-o", str(tmp_path / "said.tsv")]
    assert caption.main(line) == 1 and (tmp_path / "said.tsv").read_text() == "earlier\n"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["bad.png", "said.tsv"]


def test_what_captions_depend_on(model, shapes, monkeypatch):
    picture = shapes / "images" / "00.png"
    options = caption.parser().parse_args([str(picture)])
    captioner = loaded(model)
    keys = [depends_on([picture], captioner, options)]
    captioner.matching = CALIBRATION
    keys.append(depends_on([picture], captioner, options))
    captioner.control = ["<zh>"]
    keys.append(depends_on([picture], captioner, options))
    captioner.config = captioner.config | {"transform": {"fit": "crop"}}
    keys.append(depends_on([picture], captioner, options))
    options.regions = str(shapes / "regions")
    keys.append(depends_on([picture], captioner, options))
    assert len(set(keys)) == 5
    captioner.config = captioner.config | {"provenance": {"seed": 5}}
    assert depends_on([picture], captioner, options) == keys[-1]


def test_an_interrupted_call_says_that_it_goes_on(model, shapes, tmp_path, monkeypatch, capsys):
    def stops(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(caption, "caption_all", stops)
    line = ["--model", str(model), "--device", "cpu", str(shapes / "images")]
    assert caption.main([*line, "-o", str(tmp_path / "a.tsv")]) == 130
    assert capsys.readouterr().err == "interrupted; the same call goes on\n"


def test_quality_is_not_of_regions(model, shapes, vocabulary, tmp_path, capsys):
    config = bundle_config(tiny_config(), {})
    config["encoder"] = {"_target_": "src.encoders.RegionEncoder", "path": "x", "dimension": 2048, "max_regions": 9}
    save_bundle(tmp_path / "regions", Bundle(build(config, vocabulary).eval(), vocabulary, config))
    line = ["--model", str(tmp_path / "regions"), "--regions", str(shapes / "regions"), "images/00.png"]
    assert caption.main([*line, "--quality"]) == 2
    assert "leave one of the two out" in capsys.readouterr().err
    assert caption.main([*line, "--n-best", "2"]) == 0
