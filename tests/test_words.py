"""`python -m src.words`: neighbours, the map, the projector's files."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from src import figures, words
from src.bundle import Bundle, bundle_config, save_bundle
from src.data.vocabulary import Vocabulary
from src.model import build
from src.word_map import places, plane
from tests.conftest import tiny_config

ANGLES = {"dog": 0, "puppy": 10, "cat": 30, "car": 90, "狗": 180}
"""Of the words' vectors, in degrees, on the first two axes."""


@pytest.fixture
def bundle(tmp_path):
    vocabulary = Vocabulary.build([[word] * (9 - i) for i, word in enumerate(ANGLES)], min_count=1)
    config = bundle_config(tiny_config(), {"encoder_weights": "random"})
    model = build(config, vocabulary).eval()
    table = model.decoder.embedding.table.weight.data
    for number, (word, angle) in enumerate(ANGLES.items(), 1):
        radians = torch.tensor(angle).deg2rad()
        table[vocabulary.index[word]] = number * torch.tensor([radians.cos(), radians.sin(), *[0] * 10])
    save_bundle(tmp_path / "bundle", Bundle(model, vocabulary, config))
    return tmp_path / "bundle"


def test_neighbours_by_angle_with_counts(bundle, capsys):
    assert words.main(["--model", str(bundle), "dog", "CAR", "--count", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "dog (9 in the training captions)" and lines[4] == "car (6 in the training captions)"
    rows = [line.split() for line in lines]
    assert [row[1:] for row in rows[1:4]] == [["8", "puppy"], ["7", "cat"], ["6", "car"]]
    assert [float(row[0]) for row in rows[1:4]] == [0.985, 0.866, 0.0], "of 10, 30 and 90 degrees"
    assert rows[5:7] == [["0.500", "7", "cat"], ["0.174", "8", "puppy"]] and rows[7][2] == "dog"


def test_an_unknown_word_is_refused_with_those_that_look_like_it(bundle, capsys):
    assert words.main(["--model", str(bundle), "dog", "pupy"]) == 2
    told = capsys.readouterr()
    assert told.err == "error: 'pupy' is not among the captioner's 5 words; did you mean puppy?\n" and not told.out
    assert words.main(["--model", str(bundle), "xylophone"]) == 2
    assert "none looks like it" in capsys.readouterr().err
    assert words.main(["--model", str(bundle), "小狗"]) == 2
    assert "did you mean 狗?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "nothing to do: name words, or add --output FILE or --tsv FOLDER"),
        (["dog", "--output", "map.pdf"], "choose an ending of .svg, .html, .png"),
        (["dog", "--count", "0"], "count=0: at least 1"),
    ],
)
def test_a_wrong_call_is_a_sentence(given, says, bundle, capsys):
    assert words.main(["--model", str(bundle), *given]) == 2
    assert says in capsys.readouterr().err
    assert words.main(["--model", str(bundle / "none"), "dog"]) == 2
    assert "no such file or directory" in capsys.readouterr().err


def test_the_map_is_of_the_most_frequent_words_and_those_asked_for(bundle, tmp_path):
    path = tmp_path / "maps" / "map.svg"
    assert words.main(["--model", str(bundle), "狗", "--output", str(path), "--top", "3"]) == 0
    drawn = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    names = {e.text: e.get("fill") for e in drawn.iter() if e.tag.endswith("text")}
    assert names.keys() == {"狗", "dog", "puppy"} and names["狗"] != names["dog"] == names["puppy"]
    assert words.main(["--model", str(bundle), "--output", str(tmp_path / "map.html")]) == 0
    page = (tmp_path / "map.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and 'charset="utf-8"' in page and ">狗</text>" in page


def test_a_png_needs_a_font_for_chinese_words_only(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figures, "CJK_FONTS", ())
    figures._cjk_font.cache_clear()
    target = tmp_path / "map.png"
    assert words.main(["--model", str(bundle), "--output", str(target)]) == 2
    assert "no font with Chinese characters here: install one" in capsys.readouterr().err and not target.exists()
    assert words.main(["--model", str(bundle), "--output", str(target), "--top", "4"]) == 0
    figures._cjk_font.cache_clear()
    with Image.open(target) as image:
        colours = np.asarray(image.convert("L"))
    assert colours.min() < 100 < colours.mean(), "dark words on white"


def test_the_plane_is_where_vectors_differ_most():
    """Directions on a circle of which two axes out of five are used, whatever their lengths."""
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2, 20)
    flat = np.stack([np.cos(angles), np.sin(angles)], 1)
    axes = np.linalg.qr(rng.normal(size=(5, 2)))[0]
    points = plane(flat @ axes.T * rng.uniform(1, 9, (20, 1)))
    between = [np.linalg.norm(x[:, None] - x, axis=-1) for x in (flat, points)]
    np.testing.assert_allclose(*between, atol=1e-9)
    assert points[:, 0].var() > points[:, 1].var()
    assert plane(np.ones((1, 5))).tolist() == [[0, 0]]


def test_names_on_the_map_do_not_overlap_and_marked_ones_come_first():
    rng = np.random.default_rng(0)
    names = [f"word{i}" for i in range(400)]
    drawn = places(names, rng.normal(size=(400, 2)), {"word399"})
    named = [place for place in drawn if place.label is not None]
    assert 50 < len(named) < 400 and drawn[399] in named and drawn[0] in named
    assert all(0 <= p.x <= 1200 and 0 <= p.y <= 900 for p in drawn)
    for i, one in enumerate(named):
        for other in named[:i]:
            assert abs(one.y - other.y) >= 14 or abs(one.label - other.label) >= 30


def test_the_projectors_files(bundle, tmp_path):
    assert words.main(["--model", str(bundle), "--tsv", str(tmp_path / "projector")]) == 0
    rows = (tmp_path / "projector" / "metadata.tsv").read_text(encoding="utf-8").splitlines()
    vectors = np.loadtxt(tmp_path / "projector" / "vectors.tsv", delimiter="\t")
    assert rows == ["word\tcount", "dog\t9", "puppy\t8", "cat\t7", "car\t6", "狗\t5"]
    assert vectors.shape == (5, 12) and vectors[3, :2] == pytest.approx([0, 4], abs=1e-5)


def test_control_tokens_are_no_words(tmp_path, capsys):
    vocabulary = Vocabulary.build([["dog", "cat"]], 1, controls={"<zh>": 99})
    config = bundle_config(tiny_config(), {"encoder_weights": "random"})
    save_bundle(tmp_path / "b", Bundle(build(config, vocabulary), vocabulary, config))
    call = ["--model", str(tmp_path / "b"), "dog", "--output", str(tmp_path / "m.svg"), "--tsv", str(tmp_path / "t")]
    assert words.main(call) == 0
    said = capsys.readouterr().out
    assert "cat" in said and "zh" not in said and "zh" not in (tmp_path / "m.svg").read_text(encoding="utf-8")
    assert (tmp_path / "t" / "metadata.tsv").read_text(encoding="utf-8").splitlines() == [
        "word\tcount",
        "cat\t1",
        "dog\t1",
    ]
    assert words.main(["--model", str(tmp_path / "b"), "<zh>"]) == 2
