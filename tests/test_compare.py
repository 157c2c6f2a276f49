"""`python -m src.compare`: captioners beside a first one, with intervals."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from src import compare
from src.compare import bootstrap

META = {"references": "abc", "split": "val", "tokenization": "PTB"}


def evaluated(folder: Path, scores: dict[str, float], **meta: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps(META | meta))
    with (folder / "per_image.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["image", "caption", "CIDEr"], *([name, "a dog , running", score] for name, score in scores.items())]
        )
    return folder


def test_the_interval_of_a_mean_against_its_closed_form():
    differences = np.random.default_rng(1).normal(0.05, 1, 2000)
    low, high = bootstrap(differences, draws=20_000)
    error = 1.959964 * differences.std() / np.sqrt(2000)
    assert (low, high) == pytest.approx((differences.mean() - error, differences.mean() + error), abs=0.03 * error)


def test_the_interval_of_two_pictures_by_hand():
    """Means are 0, 1 and 2 with chances 1/4, 1/2 and 1/4."""
    differences = np.array([0.0, 2.0])
    assert bootstrap(differences) == (0, 2)
    assert bootstrap(differences, level=0.4) == (1, 1), "the middle half is 1"
    assert bootstrap(np.full(7, 0.25)) == pytest.approx((0.25, 0.25))


def test_a_seed_gives_one_interval():
    differences = np.random.default_rng(2).normal(size=50)
    assert bootstrap(differences, 301, seed=1) == bootstrap(differences, 301, seed=1) != bootstrap(differences, 301)


def test_the_table(tmp_path, capsys):
    names = [f"{i}.jpg" for i in range(100)]
    first = evaluated(tmp_path / "a" / "eval" / "val", dict.fromkeys(names, 0.5)).parents[1]
    better = evaluated(tmp_path / "b" / "eval" / "val", dict.fromkeys(reversed(names), 0.55)).parents[1]
    alike = evaluated(tmp_path / "c", {name: 0.5 + 0.1 * (-1) ** i for i, name in enumerate(names)})
    assert compare.main([str(first), str(better), str(alike), "--draws", "500"]) == 0
    head, base, up, same = (line.split("  ") for line in capsys.readouterr().out.splitlines())
    cells = [[cell.strip() for cell in line if cell.strip()] for line in (head, base, up, same)]
    assert cells[0] == ["captioner", "CIDEr", "difference", "95 % interval", "relative", "differs"]
    assert cells[1] == [str(first), "50.0"]
    assert cells[2] == [str(better), "55.0", "+5.0", "+5.0 … +5.0", "+10.0 %", "yes"]
    assert cells[3][:3] == [str(alike), "50.0", "+0.0"] and cells[3][-1] == "not shown"

    assert compare.main([str(first), str(better), "--markdown"]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith(f"| {first} | 50.0 |")
    table = tmp_path / "table.csv"
    assert compare.main([str(first), str(better), "--csv", str(table)]) == 0
    assert [float(row["CIDEr"]) for row in csv.DictReader(table.open())] == pytest.approx([0.5, 0.55])


@pytest.mark.parametrize(
    ("meta", "images", "options", "words"),
    [
        ({"references": "other"}, ["1.jpg"], [], "other pictures or references"),
        ({"split": "test"}, ["1.jpg"], [], "another split"),
        ({"tokenization": "characters"}, ["1.jpg"], [], "divided into words otherwise"),
        ({}, ["2.jpg"], [], "different pictures, such as 1.jpg"),
        ({}, ["1.jpg"], ["--score", "SPICE"], "no SPICE of single pictures; there are CIDEr"),
        ({}, ["1.jpg"], ["--draws", "0"], "compare.draws=0: at least 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, capsys, meta, images, options, words):
    first = evaluated(tmp_path / "a", {"1.jpg": 0.5})
    other = evaluated(tmp_path / "b", dict.fromkeys(images, 0.5), **meta)
    assert compare.main([str(first), str(other), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and said.count("\n") == 1


def test_a_missing_or_damaged_evaluation_is_named(tmp_path, capsys):
    first = evaluated(tmp_path / "a", {"1.jpg": 0.5})
    assert compare.main([str(first), str(tmp_path / "none")]) == 2
    assert f"{tmp_path / 'none' / 'eval' / 'val'}: no evaluation there" in capsys.readouterr().err
    broken = evaluated(tmp_path / "b", {"1.jpg": 0.5})
    (broken / "per_image.csv").write_text("image,caption,CIDEr\n1.jpg,a dog,much\n")
    assert compare.main([str(first), str(broken)]) == 2
    assert f"{broken / 'per_image.csv'}: could not convert string to float: 'much'" in capsys.readouterr().err
    for rows, words in (("", "empty"), ("1.jpg,a dog,nan\n", "no number for CIDEr in every row")):
        (broken / "per_image.csv").write_text("image,caption,CIDEr\n" + rows)
        assert compare.main([str(first), str(broken)]) == 2
        assert f"{broken / 'per_image.csv'}: {words}" in capsys.readouterr().err
