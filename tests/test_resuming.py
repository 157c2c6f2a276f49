"""A training that was killed, told to stop, or had no room to write is the same training when it goes on."""

import csv
import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from src.checkpoints import damage, newest
from src.config import ROOT
from tests.processes import Stop, call, start

TIMED = ("_per_second", "data_wait")
"""What differs from run to run."""


@pytest.fixture(scope="module")
def settings(shapes, tmp_path_factory):
    """Overrides of a training of 6 epochs, each of 4 steps, with dropout, a schedule and early stopping's state."""
    return [
        *("data=tsv", f"data.root={shapes}", "data.train=train.tsv", "data.val=val.tsv", "data.min_count=1"),
        *("data.batch_size=4", "data.eval_batch_size=1", "data.workers=0", "data.cache_workers=0"),
        f"data.cache_dir={tmp_path_factory.mktemp('cache')}",
        *("transform.size=16", "encoder=cnn", "encoder.backbone.channels=[8,16]", "encoder.backbone.weights=random"),
        *("encoder.width=16", "embedding.size=12", "attention.width=12", "decoder.hidden=16", "optimizer.lr=0.01"),
        *("generation=greedy", "generation.max_length=8", "validation_metrics=[CIDEr]", "evaluate_splits=[]"),
        *("trainer.max_epochs=6", "trainer.log_every_n_steps=1", "trainer.precision=32-true", "logger=csv"),
        *("trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "callbacks.last.steps=1"),
        *("callbacks.pictures=null", "callbacks.early_stopping.patience=9"),
    ]


def history(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without what is measured with a clock."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if v and not k.endswith(TIMED)} for row in rows]


def assert_same(run: Path, whole: Path) -> None:
    """Two runs ended alike, to the bit: the bundle's weights, the last checkpoint's, its optimizer, scores, logs."""
    mine, its = (load_file(each / "bundle" / "model.safetensors") for each in (run, whole))
    assert mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)
    mine, its = (torch.load(each / "checkpoints" / "last.ckpt", weights_only=True) for each in (run, whole))
    for part in ("state_dict", "current_model_state"):
        assert mine.get(part, {}).keys() == its.get(part, {}).keys()
        for name, tensor in its.get(part, {}).items():
            assert torch.equal(mine[part][name], tensor), name
    moments, expected = (ckpt["optimizer_states"][0]["state"] for ckpt in (mine, its))
    for number, state in expected.items():
        assert all(torch.equal(moments[number][name], value) for name, value in state.items())
    assert (mine["epoch"], mine["global_step"]) == (its["epoch"], its["global_step"])
    assert mine["lr_schedulers"] == its["lr_schedulers"]
    assert history(run) == history(whole)
    record, expected = (json.loads((each / "status.json").read_text()) for each in (run, whole))
    for key in ("state", "epochs", "best", "monitor"):
        assert record[key] == expected[key], key
    assert not list(run.rglob("*.partial"))


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    call([*settings, f"run_dir={folder / 'run'}"], folder / "log")
    assert len(history(folder / "run")) == 6 * 5 + 1
    return folder / "run"


def wait_for(condition, process=None, seconds=120):
    """Until it holds, or the process has ended."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if process is not None and not process.is_alive():
            return None
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)
    return found


def written(path: Path):
    return path.stat().st_mtime_ns if path.exists() else 0


def test_a_run_killed_ten_times_is_the_run_that_was_not(settings, whole, tmp_path):
    """SIGKILL at random moments, after some more checkpoints each time, or before the first."""
    run, rng = tmp_path / "run", random.Random(0)
    arguments, last = [*settings, f"run_dir={run}", "ckpt=last"], run / "checkpoints" / "last.ckpt"
    killed, steps = 0, []
    while killed < 10:
        process = start(arguments, tmp_path / "log")
        for _ in range(rng.randint(0, 3) if killed else 0):
            before = written(last)
            wait_for(lambda before=before: written(last) != before, process)
        time.sleep(rng.uniform(0, 0.2))
        assert process.is_alive(), (tmp_path / "log").read_text()[-3000:]
        process.kill()
        process.join()
        killed += 1
        if last.exists():
            steps.append(torch.load(last, weights_only=True)["global_step"])
    assert steps == sorted(steps) and 0 < steps[-1] < 24, steps
    call(arguments, tmp_path / "log")
    assert_same(run, whole)


TRAINING, VALIDATION = "training_step", "validation_step"
RANDOM = "objective.from_random=true"


@pytest.mark.parametrize(
    ("options", "stop"),
    [
        ([], Stop(TRAINING, 6)),
        ([], Stop(TRAINING, 8)),  # the last of an epoch: validation is still to come
        ([], Stop(VALIDATION, 6)),  # in the midst of the second one
        ([], Stop(VALIDATION, 24)),  # of the last one
        (["attention=hard", "objective.scheduled_sampling=0.5"], Stop(TRAINING, 6)),
        (["objective=self_critical", RANDOM], Stop(TRAINING, 6)),
        (["objective=variational", "objective.word_dropout=0.3"], Stop(TRAINING, 6)),
        (["objective=adversarial", RANDOM], Stop(TRAINING, 6)),
        (["objective=adversarial", RANDOM, "objective.estimator=policy"], Stop(TRAINING, 6)),
        (["callbacks=averaged", "callbacks.averaging.update_every_n_steps=2"], Stop(TRAINING, 6)),
        (["callbacks=averaged", "callbacks.averaging.update_every_n_steps=2"], Stop(TRAINING, 8)),
        (["callbacks=averaged", "callbacks.averaging.update_every_n_steps=2"], Stop(VALIDATION, 6)),
        (["trainer.accumulate_grad_batches=3"], Stop(TRAINING, 5)),  # between the batches of a step
        (["transform=augmented", "transform.size=16", "data.workers=1"], Stop(TRAINING, 6)),
        (["+trainer.val_check_interval=2"], Stop(TRAINING, 6)),
        (["+trainer.val_check_interval=2"], Stop(VALIDATION, 10)),
        (["trainer.check_val_every_n_epoch=2"], Stop(TRAINING, 8)),
        (["+trainer.max_steps=18"], Stop(TRAINING, 6)),
        (["+trainer.max_steps=18"], Stop(TRAINING, 8)),
        (["+trainer.max_steps=18"], Stop(VALIDATION, 6)),
    ],
    ids=str,
)
def test_a_run_that_was_told_to_stop_goes_on_as_the_same_run(options, stop, settings, tmp_path):
    """In the midst of an epoch, at its end, in a validation; with all that is drawn, averaged and accumulated."""
    never = ["trainer.max_epochs=3", "callbacks.last.steps=null"] if stop.number < 24 else ["callbacks.last.steps=null"]
    both = [[*settings, *never, *options, f"run_dir={tmp_path / name}"] for name in ("whole", "run")]
    call(both[0], tmp_path / "whole.log")
    said = call(both[1], tmp_path / "log", 128 + signal.SIGTERM, stop)
    assert "SIGTERM: ending when this step is saved" in said and "same command with ckpt=last goes on" in said
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "interrupted"
    call([*both[1], "ckpt=last"], tmp_path / "log")
    assert_same(tmp_path / "run", tmp_path / "whole")
