"""Run folders: what is recorded, and `python -m src.runs`, which lists, filters, sorts and exports them."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from src import runs
from src.config import ROOT
from src.runs import STATUS, matches, read_run, recorded

CONFIG = {"seed": 0, "decoder": {"_target_": "src.decoders.LSTMDecoder", "hidden": 512}, "optimizer": {"lr": 0.001}}


def make(
    root: Path, name: str, state: str = "finished", scores: dict | None = None, lr: float = 0.001, **record
) -> Path:
    run = root / name
    (run / "eval" / "val").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "optimizer": {"lr": lr}}))
    overrides = [f"optimizer.lr={lr}"]
    (run / STATUS).write_text(json.dumps({"state": state, "overrides": overrides, **record}))
    if scores:
        (run / "eval" / "val" / "scores.json").write_text(json.dumps(scores))
    return run


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "runs"
    first = {"best": 0.61, "monitor": "val/CIDEr", "mode": "max", "minutes": 12.34, "epochs": 3}
    started = "2026-01-0{}T10:20:30+00:00"
    lstm, attending = {"decoder": "lstm"}, {"decoder": "lstm_attn"}
    make(folder, "a", scores={"CIDEr": 0.612, "Bleu_4": 0.213}, choices=attending, started=started.format(1), **first)
    make(folder, "flickr8k/b", scores={"CIDEr": 0.5}, lr=1e-4, choices=lstm, started=started.format(3))
    make(folder, "flickr8k/c", state="failed", lr=1e-5, choices=lstm, started=started.format(2), error="out of memory")
    make(folder, "a.fast_dev_run")
    (folder / "a" / "bundle").mkdir()
    (folder / "a" / "bundle" / "config.yaml").write_text("not: a run")
    return folder


def listed(root: Path, *arguments: str) -> list[str]:
    return [line.split()[0] for line in shown(root, *arguments).splitlines()[1:]]


def shown(root: Path, *arguments: str) -> str:
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert runs.main([str(root), *arguments]) == 0
    return out.getvalue()


def test_scores_of_other_evaluations_and_what_was_measured_are_columns(root):
    for folder, scores, meta in (
        ("samples", {"Div_2": 0.5}, {"parameters": 5, "images_per_second": 1.26}),
        ("val", {"CIDEr": 0.612}, {"parameters": 4, "images_per_second": 40.26, "date": "today"}),
    ):
        (root / "a" / "eval" / folder).mkdir(exist_ok=True)
        (root / "a" / "eval" / folder / "scores.json").write_text(json.dumps(scores))
        (root / "a" / "eval" / folder / "meta.json").write_text(json.dumps(meta))
    columns = "run,CIDEr,samples/Div_2,parameters,images_per_second,samples/images_per_second"
    table = shown(root, "--filter", "minutes>0", "--columns", columns).splitlines()
    assert table[1].split() == ["a", "61.2", "50.0", "4", "40.3", "1.3"]


def test_a_table_for_a_readme(root):
    table = shown(root, "--filter", "best>0", "--columns", "run,CIDEr,minutes", "--markdown")
    assert table == "| run | CIDEr | minutes |\n| --- | --- | --- |\n| a | 61.2 | 12.3 |\n"


def test_the_list_shows_all_runs_the_newest_first_with_scores_in_hundreds(root):
    lines = shown(root).splitlines()
    assert lines[0].split() == ["run", "state", "started", "minutes", "epochs", "best", "Bleu_4", "CIDEr"]
    assert [line.split()[0] for line in lines[1:]] == ["flickr8k/b", "flickr8k/c", "a"]
    assert lines[3].split() == ["a", "finished", "2026-01-01", "10:20", "12.3", "3", "61.0", "21.3", "61.2"]


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        (["decoder=lstm"], ["flickr8k/b", "flickr8k/c"]),
        (["decoder!=lstm"], ["a"]),
        (["decoder~LSTM"], ["flickr8k/b", "flickr8k/c", "a"]),
        (["CIDEr>0.5"], ["a"]),
        (["CIDEr>=0.50"], ["flickr8k/b", "a"]),
        (["optimizer.lr=0.0001"], ["flickr8k/b"]),
        (["optimizer.lr<1e-3"], ["flickr8k/b", "flickr8k/c"]),
        (["started<2026-01-03"], ["flickr8k/c", "a"]),
        (["state=failed"], ["flickr8k/c"]),
        (["flickr8k"], ["flickr8k/b", "flickr8k/c"]),
        (["flickr8k", "CIDEr > 0"], ["flickr8k/b"]),
    ],
    ids=str,
)
def test_filters(root, conditions, found):
    assert listed(root, *(part for c in conditions for part in ("--filter", c))) == found


def test_sorting_columns_and_limit(root):
    assert listed(root, "--sort", "CIDEr") == ["flickr8k/b", "a", "flickr8k/c"]
    assert listed(root, "--sort", "-CIDEr") == ["a", "flickr8k/b", "flickr8k/c"], "what has no value comes last"
    assert listed(root, "--sort=-optimizer.lr", "--limit", "2") == ["a", "flickr8k/b"]
    lines = shown(root, "--columns", "run,optimizer.lr,decoder.hidden,error", "--filter", "state=failed").splitlines()
    assert lines[0].split() == ["run", "optimizer.lr", "decoder.hidden", "error"]
    assert lines[1].split() == ["flickr8k/c", "1e-05", "512", "out", "of", "memory"]
    assert "no run fulfils seed=9" in shown(root, "--filter", "seed=9")


def test_csv_has_every_column_and_scores_as_they_are_stored(root, tmp_path):
    runs.main([str(root), "--csv", str(tmp_path / "out.csv"), "--sort", "run"])
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["a", "flickr8k/b", "flickr8k/c"]
    assert float(rows[0]["CIDEr"]) == 0.612 and float(rows[0]["optimizer.lr"]) == 0.001
    assert rows[2]["CIDEr"] == "" and rows[2]["error"] == "out of memory" and rows[2]["decoder"] == "lstm"
    assert (
        shown(root, "--csv", "-", "--columns", "run,CIDEr", "--sort", "run")
        == "run,CIDEr\na,0.612\nflickr8k/b,0.5\nflickr8k/c,\n"
    )


def test_wrong_calls_are_one_sentence(root, tmp_path, capsys):
    assert runs.main([str(root), "--sort", "CIDer"]) == 2
    said = capsys.readouterr().err
    assert "did you mean CIDEr?" in said and "Bleu_4" in said and said.count("\n") == 1
    assert runs.main([str(root), "--filter", "decodr=lstm"]) == 2
    assert "decoder" in capsys.readouterr().err
    assert runs.main([str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_damaged_folders_are_named_and_skipped(root, capsys):
    (root / "a" / STATUS).write_text('{"state": ')
    (root / "flickr8k" / "b" / "eval" / "val" / "scores.json").write_text("[]")
    assert listed(root) == ["flickr8k/c"]
    said = capsys.readouterr().err
    assert str(root / "a" / STATUS) in said and "scores.json" in said and said.count("skipped") == 2


def test_a_run_of_an_older_version_is_there(root):
    (root / "a" / STATUS).unlink()
    assert read_run(root / "a", "a", "val")["state"] == "unknown"


def test_the_command_starts_at_once():
    code = "import sys, src.runs; print(sorted({'torch', 'numpy', 'PIL', 'hydra'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"


def test_a_training_is_recorded_to_its_end(tmp_path):
    run = tmp_path / "run"
    with recorded(run, {"overrides": ["seed=1"]}) as record:
        assert read_run(run, "run", "val")["state"] == "running"
        with pytest.raises(ValueError, match="is being trained by another process"), recorded(run, {}):
            pass
        record["best"] = 0.5
    found = read_run(run, "run", "val")
    assert (found["state"], found["best"], found["overrides"]) == ("finished", 0.5, ["seed=1"])
    assert found["minutes"] >= 0 and found["started"] <= found["ended"]
    for error, state in ((RuntimeError("out of memory"), "failed"), (KeyboardInterrupt(), "interrupted")):
        with pytest.raises(type(error)), recorded(run, {}):
            raise error
        assert read_run(run, "run", "val")["state"] == state
    assert "error" not in read_run(run, "run", "val")


def test_minutes_add_up_over_the_calls_of_a_run(tmp_path):
    (tmp_path / STATUS).write_text(json.dumps({"state": "interrupted", "minutes": 10.0}))
    with recorded(tmp_path, {}, resumes=True):
        pass
    assert 10 <= read_run(tmp_path, "", "val")["minutes"] < 11
    with recorded(tmp_path, {}):
        pass
    assert read_run(tmp_path, "", "val")["minutes"] < 1


def test_a_killed_training_does_not_run_for_ever(tmp_path):
    code = (
        "import os, sys, pathlib; from src.runs import recorded\n"
        "with recorded(pathlib.Path(sys.argv[1]), {}): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    assert json.loads((tmp_path / STATUS).read_text())["state"] == "running"
    assert read_run(tmp_path, "", "val")["state"] == "interrupted"


def test_a_process_that_only_helps_records_nothing(tmp_path):
    with recorded(tmp_path / "run", {}, keep=False):
        pass
    assert not (tmp_path / "run").exists()


def test_truth_values_and_missing_fields():
    row = {"run": "x", "frozen": True, "limit": None}
    assert matches(row, "frozen=true") and not matches(row, "frozen=1") and matches(row, "limit=null")
    assert not matches(row, "other=1") and matches(row, "other!=1") and not matches(row, "other>1")
