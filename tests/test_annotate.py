"""Proposals of tags and captions from a few examples."""

import math
import os
import shutil

import numpy as np
import pytest

from src import annotate
from src.annotate import Annotator, Example, Neighbours, Proposal, read_examples
from src.captioner import Captioner
from src.confidence import Calibration
from src.matching import log_likelihoods, picture_vectors, said
from tests.test_retrieval import bundles  # noqa: F401


def test_votes_are_shares_of_weight():
    """Two examples and a third that is as far as they are from each other, by hand."""
    examples = [Example("a", ["dog", "snow"], []), Example("b", ["dog"], []), Example("c", ["cat"], [])]
    vectors = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])  # cosines 0.6, 0, 0.8: usually 1.4 / 3
    found = Neighbours(examples, vectors, 2)
    assert found.usual == pytest.approx(1.4 / 3) and found.calibration is None, "too few to tell"
    picture = np.array([0.96, 0.28])
    similar = vectors @ picture  # 0.96, 0.8, 0.28
    one, two, nothing = (math.exp(x / annotate.TEMPERATURE) for x in (0.96, 0.8, 1.4 / 3))
    assert found.votes(similar) == pytest.approx(
        {"dog": (one + two) / (one + two + nothing), "snow": one / (one + two + nothing)}
    )
    assert found.nearest(similar).tolist() == [0, 1], "the third is none of the two nearest"
    far = found.votes(np.array([0.1, 0.05, 0.0]))
    assert max(far.values()) < 0.05, "of what is like no example, nothing is said"


def test_votes_become_probabilities_where_the_examples_tell():
    rng = np.random.default_rng(0)
    kinds = np.eye(8)[rng.integers(0, 4, 60)]  # pictures of four kinds
    vectors = kinds + rng.normal(0, 0.25, kinds.shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    examples = []
    for number, kind in enumerate(kinds.argmax(1)):
        noise = ["any"] if rng.random() < 0.5 else []  # of half, whatever they show
        examples.append(Example(str(number), [f"kind{kind}", *noise], []))
    found = Neighbours(examples, vectors, 5)
    assert isinstance(found.calibration, Calibration)
    votes, right = [], []
    for number, example in enumerate(examples):
        similar = vectors @ vectors[number]
        similar[number] = -np.inf
        for tag, vote in found.votes(similar).items():
            votes.append(vote)
            right.append(tag in example.tags)
    again = Calibration.fit(np.array(votes), np.array(right))
    assert [found.confidence(v) for v in (0.1, 0.5, 0.9)] == pytest.approx([again(v) for v in (0.1, 0.5, 0.9)])
    assert found.confidence(0.9) > 0.8 > found.confidence(0.1)
    said = found.summary(0.0)
    there = sum(len(example.tags) for example in examples)
    assert f"{100 * np.mean(right):.0f} % of {len(right)} tags of confidence 0 or more are right" in said
    assert f"{100 * np.sum(right) / there:.0f} % of all their tags" in said and "0 % of 0 tags" in found.summary(1.0)
    assert Neighbours(examples[:1], vectors[:1], 5).votes(vectors[:1] @ vectors[0])


@pytest.fixture
def photos(shapes, tmp_path):
    shutil.copytree(shapes / "images", tmp_path / "photos")
    (tmp_path / "tags.tsv").write_text(
        "photos/00.png\tred, square\nphotos/01.png\tgreen，square\nphotos/01.png\tgreen\n"
    )
    (tmp_path / "captions.tsv").write_text("photos/00.png\ta red square\nphotos/02.png\ta blue square\n")
    return tmp_path


def test_examples_are_read_from_both_tables(photos):
    tagged, captioned = photos / "tags.tsv", photos / "captions.tsv"
    names = [str(photos / "photos" / f"0{n}.png") for n in range(3)]
    assert read_examples(tagged, captioned) == [
        Example(names[0], ["red", "square"], ["a red square"]),
        Example(names[1], ["green", "square"], []),
        Example(names[2], [], ["a blue square"]),
    ]
    assert read_examples(None, captioned)[1] == Example(names[2], [], ["a blue square"])
    for text, sentence in (
        ("photos/00.png", "bad.tsv:1"),
        ("photos/nowhere.png\tred", "bad.tsv:1: "),
        ("../00.png\tred", "bad.tsv:1: .* leaves the root: .*; the root is the table's folder"),
        ("", "no rows"),
    ):
        (photos / "bad.tsv").write_text(text)
        with pytest.raises(ValueError, match=sentence):
            read_examples(photos / "bad.tsv", None)


def rows_of(text):
    head, *rows = (line.split("\t") for line in text.splitlines())
    assert head == list(annotate.COLUMNS)
    return rows


@pytest.mark.parametrize("name", [0, "plain"])
def test_proposals_of_the_command(name, bundles, photos, capsys):  # noqa: F811
    Calibration(4.0, 3.0, 0.5, 100).save(bundles[name] / "calibration.json")
    line = ["--model", str(bundles[name]), "--device", "cpu", str(photos / "photos")]
    line += ["--tags", str(photos / "tags.tsv"), "--captions", str(photos / "captions.tsv")]
    assert annotate.main([*line, "--min-confidence", "0"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert annotate.main([*line, "--min-confidence", "0", "-o", str(photos / "review.tsv"), "--batch-size", "5"]) == 0
    assert [row[:3] for row in rows_of((photos / "review.tsv").read_text())] == [row[:3] for row in rows]
    pictures = sorted(str(path) for path in (photos / "photos").iterdir())
    assert list(dict.fromkeys(row[0] for row in rows)) == pictures[3:], "examples are not annotated"
    captioner = Captioner.load(bundles[name], device_name="cpu")
    captioner.ask()
    for picture in pictures[3:6]:
        own = [row[1:] for row in rows if row[0] == picture]
        (best,) = captioner(picture)
        assert ["caption", best.text, f"{best.confidence:.3f}", "captioner", ""] in own
        seen = captioner.features(captioner.stacked([captioner.open(picture)]))
        texts = ["a red square", "a blue square"]
        (means,) = log_likelihoods(captioner, seen, [[said(captioner, text) for text in texts]])
        likeliest = texts[int(means.argmax())]
        (found,) = (row for row in own if row[0] == "caption" and row[3] == "neighbours")
        assert found[1] == likeliest and found[4] == pictures[2 * texts.index(likeliest)]
        assert float(found[2]) == pytest.approx(captioner.calibration(float(means.max())), abs=2e-3)
        tags = [row for row in own if row[0] == "tag"]
        assert {row[1] for row in tags} == {"red", "green", "square"}
        assert [float(row[2]) for row in tags] == sorted((float(row[2]) for row in tags), reverse=True)
        assert {row[4] for row in tags} <= {pictures[0], pictures[1]}
    (bundles[name] / "calibration.json").unlink()
    assert annotate.main([*line, "--min-confidence", "0.9"]) == 0
    few = rows_of(capsys.readouterr().out)
    assert sum(row[1] == "tag" for row in few) < sum(row[1] == "tag" for row in rows)
    assert {row[3] for row in few if row[1] == "caption"} == {""}, "a captioner that is not calibrated is not sure"


def test_the_nearest_example_is_told_and_new_tags_are_asked_for(bundles, photos):  # noqa: F811
    captioner = Captioner.load(bundles[0], device_name="cpu", precision_name="32-true")
    examples = read_examples(photos / "tags.tsv", None)
    opened = [captioner.open(photos / "photos" / f"{n:02d}.png") for n in (0, 1, 4, 9)]
    vectors = picture_vectors(captioner, captioner.features(captioner.stacked(opened)))
    nearest = [examples[int(n)].path for n in (vectors @ vectors[:2].T).argmax(1)]
    known = Annotator(captioner, examples)(opened)
    for proposals, path in zip(known, nearest, strict=True):
        (square,) = (each for each in proposals if each.text == "square")
        assert square.like == path and square.source in ("neighbours", "both")
        assert [each.kind for each in proposals][-1] == "caption" and {p.kind for p in proposals} == {"tag", "caption"}
    new = Annotator(captioner, examples, new_tags=True)(opened)
    names = [{each.text for each in proposals if each.kind == "tag"} for proposals in (*known, *new)]
    assert all(one <= other for one, other in zip(names[:4], names[4:], strict=True))
    assert set().union(*names[:4]) == {"red", "green", "square"} < set().union(*names[4:])
    assert Proposal("tag", "red", None, "captioner").line("a") == "a\ttag\tred\t\tcaptioner\t"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "--tags FILE.tsv, --captions FILE.tsv: give the examples' tags, or captions, or both"),
        (["--tags", "{0}/nowhere.tsv"], "nowhere.tsv"),
        (["--tags", "{0}/tags.tsv", "--neighbours", "0"], "--neighbours 0: 1 or more"),
        (["--tags", "{0}/tags.tsv", "--min-confidence", "2"], "--min-confidence 2: a number from 0 to 1"),
        (
            ["--tags", "{0}/tags.tsv", "--model", "flickr8k-bilingual", "flickr8k-bilingual"],
            "flickr8k-bilingual: a captioner, no picture",
        ),
    ],
)
def test_wrong_flags_are_one_sentence(flags, sentence, photos, capsys):
    flags = [flag.format(photos) for flag in flags]
    assert annotate.main([str(photos / "photos"), *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and sentence in said and said.count("\n") == 1
    only = [str(photos / "photos" / "00.png"), str(photos / "photos" / "01.png"), "--tags", str(photos / "tags.tsv")]
    if not flags:
        assert annotate.main(only) == 2 and "every picture named is an example" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        annotate.main([])


def test_what_only_the_captioner_says_is_asked_for_by_the_command(bundles, photos, capsys):  # noqa: F811
    """And nothing raises what the examples' votes say, which are named as what they are."""
    line = ["--model", str(bundles[0]), "--device", "cpu", "--tags", str(photos / "tags.tsv"), "--min-confidence", "0"]
    line.append(str(photos / "photos"))
    found = []
    for flags in ([], ["--new-tags"]):
        assert annotate.main([*line, *flags]) == 0
        out, err = capsys.readouterr()
        assert err.endswith("too few examples to calibrate: confidences are votes\n")
        found.append([row for row in rows_of(out) if row[1] == "tag"])
    known, every = ({row[2] for row in rows} for rows in found)
    assert known == {"red", "green", "square"} < every
    assert {row[4] for row in found[1] if row[2] not in known} == {"captioner"}
    captioner = Captioner.load(bundles[0], device_name="cpu")
    make = Annotator(captioner, read_examples(photos / "tags.tsv", None))
    pictures = sorted((photos / "photos").iterdir())[2:]
    seen = captioner.features(captioner.stacked([captioner.open(path) for path in pictures]))
    similar = picture_vectors(captioner, seen) @ make.neighbours.vectors.T
    votes = {str(path): make.neighbours.votes(row) for path, row in zip(pictures, similar, strict=True)}
    for row in found[1]:
        if row[4] in ("both", "neighbours"):
            assert float(row[3]) == pytest.approx(votes[row[0]][row[2]], abs=2e-2)


def test_names_outputs_and_interruptions(bundles, photos, capsys, monkeypatch):  # noqa: F811
    line = ["--model", str(bundles[0]), "--device", "cpu", "--tags", str(photos / "tags.tsv")]
    odd = os.fsdecode(os.path.join(os.fsencode(photos), b"caf\xe9.png"))
    shutil.copy(photos / "photos" / "05.png", odd)
    for flags in ([], ["-o", str(photos / "review.tsv")]):
        assert annotate.main([*line, odd, *flags]) == 0
        text = (photos / "review.tsv").read_text() if flags else capsys.readouterr().out
        assert rows_of(text)[0][0] == f"{photos}/caf\\udce9.png"
    capsys.readouterr()
    tab = photos / "a\tb.png"
    shutil.copy(photos / "photos" / "05.png", tab)
    for flags, sentence in (
        ([str(tab)], "a tab or line break in its name"),
        ([str(photos / "photos"), "-o", str(photos / "tags.tsv")], "never written over"),
        ([str(photos / "photos"), "-o", str(photos / "photos" / "05.png")], "never written over"),
    ):
        assert annotate.main([*line, *flags]) == 2
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1

    def stops(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Annotator, "__call__", stops)
    for flags, sentence in (([], "interrupted\n"), (["-o", str(photos / "new.tsv")], "; the same call goes on\n")):
        assert annotate.main([*line, str(photos / "photos"), *flags]) == 130
        assert capsys.readouterr().err.endswith(sentence)
