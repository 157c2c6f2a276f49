"""`python -m src.compare`: captioners beside a first one, with intervals and significance."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from src import compare
from src.config import ROOT
from src.metrics.captions import METRICS
from src.results import read_results, write_results
from src.scoring import Scored, Scorer, Scoring

META = {"references": "abc", "split": "val", "tokenization": "ptb", "leave_one_out": False}
FAST = [name for name in METRICS if name != "METEOR"]


def evaluated(folder: Path, scores: dict[str, float], **meta: object) -> Path:
    """An evaluation with a CIDEr for every picture."""
    rows = {image: {"CIDEr": float(score)} for image, score in scores.items()}
    corpus = {"CIDEr": float(np.mean(list(scores.values())))}
    scored = Scored(corpus, rows, "ptb", {}, {}, [], [], [])
    captions = dict.fromkeys(scores, "a dog , running")
    write_results(folder, captions, {image: ["a dog"] for image in scores}, scored, corpus, META | meta)
    return folder


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]


def test_the_table(tmp_path, capsys):
    names = [f"{i}.jpg" for i in range(100)]
    first = evaluated(tmp_path / "a" / "eval" / "val", dict.fromkeys(names, 0.5)).parents[1]
    better = evaluated(tmp_path / "b" / "eval" / "val", dict.fromkeys(names, 0.55)).parents[1]
    alike = evaluated(tmp_path / "c", {name: 0.5 + 0.1 * (-1) ** i for i, name in enumerate(names)})
    assert compare.main([str(first), str(better), str(alike), "--draws", "500"]) == 0
    found = cells(capsys.readouterr().out)
    details = ["difference", "95 % of it", "relative", "p", "p, corrected", "differs"]
    assert found[0] == ["captioner", "CIDEr", "95 %", *details]
    assert found[1] == [str(first), "50.0", "50.0 … 50.0"]
    assert found[2] == [str(better), "55.0", "55.0 … 55.0", "+5.0", "+5.0 … +5.0", "+10.0 %", "0.0020", "0.0040", "yes"]
    assert found[3][:2] == [str(alike), "50.0"] and found[3][-1] == "not shown"

    assert compare.main([str(first), str(better), "--markdown", "--draws", "50"]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith(f"| {first} | 50.0 |")
    table = tmp_path / "table.csv"
    assert compare.main([str(first), str(better), "--csv", str(table), "--draws", "50"]) == 0
    rows = list(csv.DictReader(table.open()))
    assert [float(row["CIDEr"]) for row in rows] == pytest.approx([0.5, 0.55])
    assert float(rows[1]["CIDEr_difference_low"]) == pytest.approx(0.05) and rows[0]["CIDEr_difference"] == ""
    assert float(rows[1]["CIDEr_p"]) == pytest.approx(1 / 51) and rows[1]["CIDEr_differs"] == "true"
    assert compare.main([str(first), "--draws", "50"]) == 0, "one alone has its interval"
    assert cells(capsys.readouterr().out)[-1] == [str(first), "50.0", "50.0 … 50.0"]


@pytest.fixture
def captioned(tmp_path):
    """References, and a function that evaluates captions of them in earnest."""
    random = np.random.default_rng(0)
    words = np.array(["a", "dog", "man", "runs", "on", "grass", "red", "big"])
    references = {f"{i}.jpg": [" ".join(random.choice(words, 7)) for _ in range(3)] for i in range(40)}
    (tmp_path / "val.tsv").write_text("".join(f"{i}\t{text}\n" for i, group in references.items() for text in group))

    def evaluate(name: str, leave_one_out: bool = False) -> tuple[Path, Path]:
        """Its folder, and its captions' file."""
        from src.results import references_digest

        own = np.random.default_rng(len(name))
        captions = {image: " ".join(own.choice(words, 6)) for image in references}
        how = Scoring(metrics=FAST, leave_one_out=leave_one_out)
        scored = Scorer(references, how).score(captions)
        meta = {**META, "references": references_digest(references), "tokenization": scored.tokenizer}
        meta["leave_one_out"] = leave_one_out
        write_results(tmp_path / name, captions, references, scored, scored.corpus, meta)
        file = tmp_path / f"{name}.tsv"
        file.write_text("".join(f"{image}\t{text}\n" for image, text in captions.items()))
        return tmp_path / name, file

    return evaluate


@pytest.mark.parametrize("score", ["Bleu_4", "Bleu_1", "ROUGE_L", "CIDEr", "objects_recall", "length"])
def test_a_corpus_score_is_that_of_the_evaluation(captioned, score):
    (first, _), (other, _) = captioned("one"), captioned("another")
    evaluations = [read_results(first), read_results(other)]
    rows = compare.compared(evaluations, ["exact_match", score], 300, 0)[score]
    for evaluation, row in zip(evaluations, rows, strict=True):
        whole = evaluation.scores.get(score, evaluation.columns.get(score, np.zeros(1)).mean())
        assert row.score == pytest.approx(whole, abs=1e-12)
        assert row.own.low <= row.score <= row.own.high
    assert rows[1].difference == pytest.approx(rows[1].score - rows[0].score)
    assert rows[1].p is not None and 0 < rows[1].p <= 1 and rows[1].corrected == rows[1].p


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_a_predictions_file_scores_as_its_evaluation_does(captioned, capsys, tmp_path, leave_one_out):
    folder, file = captioned("one", leave_one_out)
    call = [str(folder), str(file), "--references", str(tmp_path / "val.tsv"), "--draws", "100", "--also", "Bleu_4"]
    assert compare.main(call) == 0
    _, first, other = cells(capsys.readouterr().out)
    assert other[1:3] == first[1:3] and other[-2:] == ["1.0000", "not shown"]
    assert compare.main([str(folder), str(file)]) == 2
    assert "needs --references FILE" in capsys.readouterr().err


def test_p_values_are_corrected_for_the_number_of_captioners(tmp_path):
    random = np.random.default_rng(3)
    base = random.normal(0.5, 0.2, 60)
    names = [f"{i}.jpg" for i in range(60)]
    all_of_them = [evaluated(tmp_path / "first", dict(zip(names, base, strict=True)))]
    for k in range(4):
        other = base + random.normal(0.05 * (k == 0), 0.15, 60)
        all_of_them.append(evaluated(tmp_path / str(k), dict(zip(names, other, strict=True))))
    rows = compare.compared([read_results(path) for path in all_of_them], ["CIDEr"], 2000, 0)["CIDEr"][1:]
    smallest = min(rows, key=lambda row: row.p)
    assert smallest.corrected == pytest.approx(4 * smallest.p)
    pair = [read_results(path) for path in all_of_them[:2]]
    alone = compare.compared(pair, ["CIDEr"], 2000, 0)["CIDEr"][1]
    assert alone.corrected == alone.p


@pytest.mark.parametrize(
    ("meta", "images", "options", "words"),
    [
        ({"references": "other"}, ["1.jpg"], [], "other pictures or references"),
        ({"tokenization": "character"}, ["1.jpg"], [], "divided into words otherwise"),
        ({"leave_one_out": True}, ["1.jpg"], [], "one of them against all references, one against all but one"),
        ({}, ["2.jpg"], [], "different pictures, such as 1.jpg"),
        ({}, ["1.jpg"], ["--score", "SPICE"], "no SPICE of single pictures; there are CIDEr"),
        ({}, ["1.jpg"], ["--also", "Bleu_4"], "no Bleu_4 of single pictures; there are CIDEr"),
        ({}, ["1.jpg"], ["--draws", "0"], "compare.draws=0: at least 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, capsys, meta, images, options, words):
    first = evaluated(tmp_path / "a", {"1.jpg": 0.5})
    other = evaluated(tmp_path / "b", dict.fromkeys(images, 0.5), **meta)
    assert compare.main([str(first), str(other), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and said.count("\n") == 1


def test_the_same_references_are_the_same_whatever_the_split_is_called(tmp_path):
    first, other = evaluated(tmp_path / "a", {"1.jpg": 0.5}), evaluated(tmp_path / "b", {"1.jpg": 0.6}, split=None)
    assert compare.main([str(first), str(other), "--draws", "5"]) == 0


def test_a_missing_or_damaged_evaluation_is_named(tmp_path, capsys):
    first = evaluated(tmp_path / "a", {"1.jpg": 0.5})
    assert compare.main([str(first), str(tmp_path / "none")]) == 2
    assert f"{tmp_path / 'none' / 'eval' / 'val'}: no evaluation there" in capsys.readouterr().err
    broken = evaluated(tmp_path / "b", {"1.jpg": 0.5})
    for rows, words in (
        ("1.jpg,a dog,much\n", "could not convert string to float: 'much'"),
        ("", "empty"),
        ("1.jpg,a dog,nan\n", "CIDEr of some picture is no number"),
    ):
        (broken / "per_image.csv").write_text("image,caption,CIDEr\n" + rows)
        assert compare.main([str(first), str(broken)]) == 2
        said = capsys.readouterr().err
        assert str(broken) in said and words in said
    (broken / "statistics.npz").write_bytes(b"PK\3\4 cut short")
    evaluated(tmp_path / "b2", {"1.jpg": 0.5})
    (tmp_path / "b2" / "statistics.npz").write_bytes(b"PK\3\4 cut short")
    assert compare.main([str(first), str(tmp_path / "b2")]) == 2
    assert f"{tmp_path / 'b2' / 'statistics.npz'}: damaged" in capsys.readouterr().err
    (tmp_path / "b2" / "statistics.npz").unlink()
    assert compare.main([str(first), str(tmp_path / "b2")]) == 2
    assert "evaluated by an earlier version: evaluate anew" in capsys.readouterr().err
    (tmp_path / "b2" / "meta.json").write_text("{")
    assert compare.main([str(first), str(tmp_path / "b2")]) == 2
    assert f"{tmp_path / 'b2' / 'meta.json'}: damaged" in capsys.readouterr().err


def test_the_table_does_not_wait_for_torch():
    code = "import sys, src.compare; print(sorted({'torch', 'transformers', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_meta_is_json(tmp_path):
    folder = evaluated(tmp_path / "a", {"1.jpg": 0.5})
    assert json.loads((folder / "meta.json").read_text())["alarms"] == []
