"""The commands as a user calls them: train, resume, evaluate, caption, in one small run."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from src import caption, evaluate, index, quantize, runs, search, serve, soup
from src.config import ROOT
from src.prepare import __main__ as prepare
from src.train import build_data
from tests.test_configs import composed


def call(*arguments: str, expect: int = 0, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(home or Path.home())}
    environment = {k: v for k, v in environment.items() if not k.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def settings(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    return folder, [
        "data=tsv",
        f"data.root={shapes}",
        "data.train=train.tsv",
        "data.val=val.tsv",
        "data.min_count=1",
        "data.batch_size=8",
        f"data.cache_dir={folder / 'cache'}",
        "data.workers=0",
        "data.cache_workers=0",
        "data.nouns=nouns.json",
        "transform.size=32",
        "encoder=cnn",
        "encoder.backbone.channels=[16,32]",
        "encoder.backbone.weights=random",
        "encoder.width=64",
        "embedding.size=32",
        "attention.width=32",
        "decoder.hidden=64",
        "decoder.dropout=0.0",
        "optimizer.lr=0.01",
        "trainer.max_epochs=2",
        "trainer.log_every_n_steps=1",
        "trainer.precision=32-true",
        f"run_dir={folder / 'run'}",
    ]


@pytest.fixture(scope="module")
def run(settings):
    folder, overrides = settings
    done = call("src.train", *overrides)
    assert "objects_named" in done.stdout and "report.html" in done.stdout
    return folder / "run"


def test_a_run_leaves_all_it_promises(run):
    for name in (
        "config.yaml",
        "metrics.csv",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "bundle/config.yaml",
        "bundle/vocabulary.json",
        "bundle/model.safetensors",
        "bundle/README.md",
        "eval/val/scores.json",
        "eval/val/meta.json",
        "eval/val/captions.tsv",
        "eval/val/per_image.csv",
        "eval/val/report.html",
    ):
        assert (run / name).exists(), name
    assert not list(run.rglob("*.partial"))
    scores = json.loads((run / "eval/val/scores.json").read_text())
    for name in ("Bleu_4", "METEOR", "CIDEr", "ROUGE_L", "next_token_accuracy", "exact_match", "objects_named"):
        assert isinstance(scores[name], float), name
    assert scores["encoder_weights"] == "random"
    assert list((run / "tensorboard").rglob("events.out.tfevents.*"))
    header = (run / "metrics.csv").read_text().splitlines()[0]
    assert "val/CIDEr" in header and "train/loss" in header


def test_resuming_goes_on_and_a_finished_run_stays_as_it_is(run, settings):
    _, overrides = settings
    weights = (run / "bundle" / "model.safetensors").read_bytes()
    history = (run / "metrics.csv").read_text()
    assert "ckpt=last" in call("src.train", *overrides, expect=1).stderr, (
        "a run that is there is never overwritten unasked"
    )
    done = call("src.train", *overrides, "ckpt=last")
    assert "max_epochs=2` reached" in done.stdout + done.stderr
    assert (run / "bundle" / "model.safetensors").read_bytes() == weights
    assert (run / "metrics.csv").read_text().startswith(history)
    longer = [*overrides, f"run_dir={run.parent / 'longer'}"]
    call("src.train", *longer, "trainer.max_epochs=1", "evaluate_splits=[]")
    call("src.train", *longer, "trainer.max_epochs=3", "evaluate_splits=[]", "ckpt=last")
    with (run.parent / "longer" / "metrics.csv").open() as file:
        epochs = [row["epoch"] for row in csv.DictReader(file) if row["val/CIDEr"]]
    assert epochs == ["0", "1", "2"]


@pytest.fixture(scope="module")
def packed(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    for split in ("train", "val"):
        call("src.prepare", "shards", str(shapes / f"{split}.tsv"), str(folder / split), "--images", "5")
    return folder


def test_shards_train_what_their_table_trains(run, settings, packed, tmp_path):
    _, overrides = settings
    kept = [
        o
        for o in overrides
        if not o.startswith(("data=", "data.root", "data.train", "data.val", "data.nouns", "run_dir"))
    ]
    mine = ["data=shards", f"data.root={packed}"]
    call("src.train", *kept, *mine, f"run_dir={tmp_path / 'run'}")
    assert (tmp_path / "run/bundle/model.safetensors").read_bytes() == (run / "bundle/model.safetensors").read_bytes()
    for name in ("captions.tsv", "references.tsv", "per_image.csv"):
        assert (tmp_path / "run/eval/val" / name).read_bytes() == (run / "eval/val" / name).read_bytes()
    page = (tmp_path / "run/eval/val/report.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == (run / "eval/val/report.html").read_text().count("data:image/jpeg") > 0
    (packed / "train" / "000001.tar").write_bytes(b"")
    error = call("src.train", *kept, *mine, f"run_dir={tmp_path / 'bad'}", expect=1).stderr
    assert "000001.tar: 0 bytes, and the manifest says" in error and "Traceback" not in error
    skipping = build_data(composed([*kept, *mine, f"run_dir={tmp_path / 'bad'}", "data.on_bad_shard=skip"]))
    assert len(skipping.tables["train"].images) == 11, "5 of 16 are left out"


def test_without_validation_pictures_it_says_what_to_do(shapes, tmp_path):
    done = call("src.train", "data=tsv", f"data.root={shapes}", "data.train=train.tsv", f"run_dir={tmp_path}", expect=1)
    assert "data.split=[0.9,0.05,0.05]" in done.stderr and "Traceback" not in done.stderr


def test_evaluate_a_bundle_and_a_checkpoint_alike(run, shapes, tmp_path):
    data = ["data=tsv", f"data.root={shapes}", "data.val=val.tsv", f"data.cache_dir={tmp_path}", "precision=32-true"]
    call("src.evaluate", f"model={run / 'bundle'}", *data, "split=val", f"output={tmp_path / 'a'}")
    call("src.evaluate", f"model={run / 'checkpoints/best.ckpt'}", *data, "split=val", f"output={tmp_path / 'b'}")
    first, second = (json.loads((tmp_path / name / "scores.json").read_text()) for name in "ab")
    assert first == second
    trained = json.loads((run / "eval/val/scores.json").read_text())
    assert {k: v for k, v in trained.items() if not k.endswith(("_named", "novel_share"))} == first
    stamp = (tmp_path / "a" / "scores.json").stat().st_mtime_ns
    again = [f"model={run / 'bundle'}", *data, "split=val", f"output={tmp_path / 'a'}"]
    evaluate.run(composed([*again, "reuse=true"], "evaluate"))
    assert (tmp_path / "a" / "scores.json").stat().st_mtime_ns == stamp
    evaluate.run(composed([*again, "reuse=true", "generation=greedy"], "evaluate"))
    assert (tmp_path / "a" / "scores.json").stat().st_mtime_ns > stamp, "another search is scored anew"
    evaluate.run(composed([*again, "limit=2", "metrics=[CIDEr]"], "evaluate"))
    assert json.loads((tmp_path / "a" / "scores.json").read_text())["images"] == 2
    missing = call("src.evaluate", f"model={run / 'bundle'}", *data, "split=test", expect=1)
    assert "split=test: this data has val" in missing.stderr and "Traceback" not in missing.stderr


def test_errors_of_a_run_are_one_sentence(shapes, tmp_path):
    (tmp_path / "bad.tsv").write_text("image,caption\n")
    bad = ["data=tsv", f"data.root={tmp_path}", "data.train=bad.tsv", "data.val=bad.tsv", f"run_dir={tmp_path}"]
    done = call("src.train", *bad, expect=1)
    assert "bad.tsv:1" in done.stderr and "Traceback" not in done.stderr
    done = call("src.evaluate", f"model={tmp_path / 'none'}", "data=tsv", f"data.root={shapes}", expect=1)
    assert "no such file or directory" in done.stderr and "Traceback" not in done.stderr


def test_wandb_runs_offline_without_a_key(settings, tmp_path):
    _, overrides = settings
    folder = f"run_dir={tmp_path / 'w'}"
    done = call("src.train", *overrides, "logger=wandb", folder, "evaluate_splits=[]", home=tmp_path)
    assert "no W&B key here" in done.stdout + done.stderr
    assert list((tmp_path / "w" / "wandb").glob("offline-run-*"))
    assert (tmp_path / "w" / "metrics.csv").exists()


def test_a_sweep_trains_every_choice(settings, tmp_path):
    _, overrides = settings
    kept = [o for o in overrides if not o.startswith("run_dir")]
    done = call(
        "src.train", "-m", *kept, "decoder=lstm,lstm_attn", f"run_dir={tmp_path}/${{name}}", "trainer.fast_dev_run=true"
    )
    bundles = list(tmp_path.rglob("bundle"))
    assert len(bundles) == 2, done.stdout[-2000:]


def test_caption_files_folders_and_globs(run, shapes, tmp_path, capsys):
    model = ["--model", str(run), "--device", "cpu"]
    assert caption.main([*model, str(shapes / "images" / "00.png")]) == 0
    path, text = capsys.readouterr().out.rstrip("\n").split("\t")
    assert path.endswith("00.png") and text
    output = tmp_path / "captions.tsv"
    assert caption.main([*model, str(shapes / "images"), "-o", str(output), "--batch-size", "5"]) == 0
    rows = [line.split("\t") for line in output.read_text().splitlines()]
    assert [Path(r[0]).name for r in rows] == [f"{i:02d}.png" for i in range(24)]
    assert rows[0][1] == text
    assert caption.main([*model, str(shapes / "images" / "0*.png"), "--beam", "5"]) == 0
    same = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[1] for line in same] == [r[1] for r in rows[:10]], "the bundle's own beam is 5 too"
    assert caption.main([*model, str(shapes / "images" / "00.png"), "--beam", "0"]) == 2


def test_caption_draws_attention(run, shapes, tmp_path):
    assert caption.main(["--model", str(run), str(shapes / "images/00.png"), "--attention", str(tmp_path / "a")]) == 0
    from PIL import Image

    assert Image.open(tmp_path / "a" / "00.png").width > 200


def test_caption_names_unreadable_pictures_and_goes_on(run, shapes, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes((shapes / "images/00.png").read_bytes()[:50])
    (tmp_path / "whole.png").write_bytes((shapes / "images/00.png").read_bytes())
    assert caption.main(["--model", str(run), str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1 and "whole.png" in said.out
    assert "broken.jpg" in said.err and "1 of 2 pictures" in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere", "README.md"], "nowhere: no such file"),
        (["--model", "nowhere", "no/such/*.jpg"], "no such file or folder"),
        (["--model", "nowhere", "conf"], "no pictures in this folder"),
        (["models/flickr8k-bilingual", "README.md"], "bilingual: a captioner, no picture; write --model before it"),
    ],
)
def test_caption_wrong_calls_are_one_sentence(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert caption.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("module", ["src.train", "src.evaluate"])
def test_help(module):
    assert len(call(module, "--help").stdout) > 200


@pytest.mark.parametrize("command", [caption, prepare, runs, soup, quantize, index, search, serve])
def test_help_of_commands_with_flags(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    said = capsys.readouterr().out
    assert len(said) > 200 and command.__name__.removesuffix(".__main__") in said
