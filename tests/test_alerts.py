"""When a video's picture matches a sentence."""

import json

import numpy as np
import pytest

from src import caption
from src.alerts import Alert, alerts, matches
from src.captioner import Captioner
from src.confidence import Calibration
from src.matching import match_calibration, picture_vectors, sentence_vectors
from src.video import frames
from tests.test_retrieval import bundles  # noqa: F401
from tests.test_video import BLUE, GREEN, RED, write_video


def found(*values, step=0.5):
    return [(number * step, np.atleast_1d(np.asarray(value, float))) for number, value in enumerate(values)]


def ended(*args, **kwargs):
    return [each for each in alerts(*args, **kwargs) if each.ended]


def test_an_alert_is_told_as_it_begins_and_as_it_ends():
    values = [0.1, 0.1, 0.8, 0.9, 0.95, 0.85, 0.2, 0.1, 0.1]
    assert list(alerts(found(*values), ["a"], 0.7)) == [
        Alert("a", 1.0, 1.0, 0.8, False),
        Alert("a", 1.0, 3.0, 0.9, True),
    ], "by medians of three: 0.1 0.1 0.8 0.9 0.9 0.85 0.2 0.1 0.1"


def test_one_frame_alone_is_none_and_the_ends_count():
    assert ended(found(0.1, 0.1, 0.9, 0.1, 0.1), ["a"], 0.5) == []
    assert ended(found(0.9, 0.9, 0.1, 0.9, 0.9), ["a"], 0.5) == [Alert("a", 0.0, 2.0, 0.9, True)], "nor is one missing"
    assert ended(found(0.9, 0.9, 0.1, 0.1), ["a"], 0.5) == [Alert("a", 0.0, 1.0, 0.9, True)]
    assert ended(found(0.1, 0.9, 0.9), ["a"], 0.5) == [Alert("a", 0.5, 1.0, 0.9, True)]
    assert ended(found(0.9), ["a"], 0.5) == [Alert("a", 0.0, 0.0, 0.9, True)]
    assert ended(found(0.5, 0.5), ["a"], 0.5)[0].confidence == 0.5 and ended([], ["a"], 0.5) == []


def test_sentences_do_not_mind_each_other():
    both = found([0.9, 0.1], [0.9, 0.9], [0.1, 0.9], [0.1, 0.9], [0.1, 0.1], [0.1, 0.1])
    one, two = (ended(found(*[v[n] for _, v in both]), ["ab"[n]], 0.5) for n in range(2))
    assert sorted(ended(both, ["a", "b"], 0.5)) == sorted([*one, *two])


@pytest.fixture
def watching(bundles, tmp_path):  # noqa: F811
    """A captioner that is calibrated so that one of two sentences is of green frames rather than of the others."""
    captioner = Captioner.load(bundles[0], device_name="cpu", precision_name="32-true")
    seen = captioner.features(captioner.stacked([GREEN, RED, BLUE]))
    for sentence in ("a red square", "blue circle", "green on grey", "a circle", "red", "grey", "一个红色"):
        products = picture_vectors(captioner, seen) @ sentence_vectors(captioner, [sentence])[0]
        if products[0] > products[1:].max() + 1e-4:
            break
    else:
        raise AssertionError("no sentence of green")
    middle = (products[0] + products[1:].max()) / 2
    slope = 40 / (products[0] - products[1:].max())
    calibration = Calibration(float(slope), float(-slope * middle), 0.5, 100)
    calibration.save(bundles[0] / "matching.json")
    yield bundles[0], sentence
    (bundles[0] / "matching.json").unlink()


def test_probabilities_are_those_of_inner_products(watching, tmp_path):
    bundle, sentence = watching
    captioner = Captioner.load(bundle, device_name="cpu", precision_name="32-true")
    clip = write_video(tmp_path / "clip.mp4", [(RED, 1), (GREEN, 1)])
    several = list(matches(captioner, frames(clip, 4), [sentence, "red"], batch_size=3))
    assert [time for time, _ in several] == [frame.time for frame in frames(clip, 4)]
    for frame, (_, chances) in zip(frames(clip, 4), several, strict=True):
        (vector,) = picture_vectors(captioner, captioner.features(captioner.stacked([frame.image])))
        products = sentence_vectors(captioner, [sentence, "red"]) @ vector
        assert chances == pytest.approx([match_calibration(captioner)(each) for each in products], abs=1e-3)


def test_the_command_watches_a_video(watching, tmp_path, capsys):
    bundle, sentence = watching
    clip = write_video(tmp_path / "clip.mp4", [(RED, 3), (GREEN, 4), (BLUE, 3)])
    line = ["--model", str(bundle), "--device", "cpu", str(clip), "--alert", sentence]
    assert caption.main(line) == 0
    said = capsys.readouterr()
    (row,) = (each.split("\t") for each in said.out.splitlines())
    name, times = row[0].split("#t=")
    start, end = map(float, times.split(","))
    assert name == str(clip) and row[1] == sentence and float(row[2]) > 0.9
    assert start == pytest.approx(3, abs=0.6) and end == pytest.approx(7, abs=0.6)
    assert f"{clip}, 00:00:0{start:.3f}: {sentence} (" in said.err
    assert caption.main([*line, "-o", str(tmp_path / "a.json")]) == 0
    (alert,) = json.loads((tmp_path / "a.json").read_text())
    assert (alert["start"], alert["end"], alert["caption"]) == (start, end, sentence) and "words" not in alert
    assert caption.main([*line, "--alert-confidence", "1"]) == 0 and not capsys.readouterr().out
    none = [*line, "--alert-confidence", "1", "-o", str(tmp_path / "none.tsv")]
    assert caption.main(none) == 0 and (tmp_path / "none.tsv").read_text() == "", "no alert is no failure"
    assert caption.main([*line, "--alert", "red zebras"]) == 0
    assert "“red zebras”: the captioner does not know zebras, and watches for the rest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--alert", "red", "--n-best", "2"], "--n-best: of captions, and --alert writes none"),
        (["--alert", "zebras"], "“zebras”: the captioner knows none of these words"),
        (["--alert", "red", "--alert-confidence", "2"], "--alert-confidence 2: a number from 0 to 1"),
        (["--alert", "red", "{shapes}/images/00.png"], "00.png is none; `python -m src.search` finds pictures"),
    ],
)
def test_wrong_alerts_are_one_sentence(watching, shapes, tmp_path, flags, sentence, capsys):
    bundle, _ = watching
    (tmp_path / "clip.mp4").touch()
    flags = [flag.format(shapes=shapes) for flag in flags]
    assert caption.main(["--model", str(bundle), "--device", "cpu", str(tmp_path / "clip.mp4"), *flags]) == 2
    said = capsys.readouterr()
    assert not said.out and said.err.startswith("error: ") and sentence in said.err and said.err.count("\n") == 1


def test_a_captioner_that_cannot_watch_says_why(bundles, tmp_path, capsys):  # noqa: F811
    (tmp_path / "clip.mp4").touch()
    for name, why in (
        ("plain", "this captioner has no matcher"),
        (0, "matcher is not calibrated; `python -m src.eval"),
    ):
        line = ["--model", str(bundles[name]), "--device", "cpu", str(tmp_path / "clip.mp4"), "--alert", "red"]
        assert caption.main(line) == 2 and why in capsys.readouterr().err
