"""A training that was killed, told to stop, or had no room to write is the same training when it goes on."""

import csv
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from safetensors.torch import load_file

from src.bundle import load_bundle, save_bundle
from src.checkpoints import damage, newest
from src.config import CONF, ROOT
from src.files import DiskFull
from src.interruption import Interrupted, Interruption, undisturbed
from src.loggers import Rows, WandbOrOffline
from src.runs import checkpoints
from src.slurm import on_cluster, plugins
from src.trials import open_storage
from tests.processes import FORKING, Stop, call, start

TIMED = ("_per_second", "data_wait")
"""What differs from run to run."""


def small(shapes: Path, cache: Path) -> list[str]:
    """Overrides of a training of 6 epochs, each of 4 steps, with dropout, a schedule and early stopping's state."""
    return [
        *("data=tsv", f"data.root={shapes}", "data.train=train.tsv", "data.val=val.tsv", "data.min_count=1"),
        *("data.batch_size=4", "data.eval_batch_size=1", "data.workers=0", "data.cache_workers=0"),
        f"data.cache_dir={cache}",
        *("transform.size=16", "encoder=cnn", "encoder.backbone.channels=[8,16]", "encoder.backbone.weights=random"),
        *("encoder.width=16", "embedding.size=12", "attention.width=12", "decoder.hidden=16", "optimizer.lr=0.01"),
        *("generation=greedy", "generation.max_length=8", "validation_metrics=[CIDEr]", "evaluate_splits=[]"),
        *("trainer.max_epochs=6", "trainer.log_every_n_steps=1", "trainer.precision=32-true", "logger=csv"),
        *("trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "callbacks.last.steps=1"),
        *("callbacks.pictures=null", "callbacks.early_stopping.patience=9"),
    ]


@pytest.fixture(autouse=True)
def heeded():
    """Ctrl-C is heeded here and in what is started, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def settings(shapes, tmp_path_factory):
    return small(shapes, tmp_path_factory.mktemp("cache"))


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


def wait_for(condition, process=None, seconds=300):
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


def test_a_run_killed_ten_times_is_the_run_that_was_not(settings, tmp_path):
    """SIGKILL at random moments: as it starts, and up to three steps' time after some more checkpoints."""
    longer, rng = [*settings, "trainer.max_epochs=15", "trainer.check_val_every_n_epoch=2"], random.Random(0)
    run, whole = tmp_path / "run", tmp_path / "whole"
    call([*longer, f"run_dir={whole}"], tmp_path / "whole.log")
    arguments, last = [*longer, f"run_dir={run}", "ckpt=last"], run / "checkpoints" / "last.ckpt"
    steps, pace = [], 0.01
    for kill in range(10):
        process = start(arguments, tmp_path / "log")
        more = rng.randint(0, 3) if kill else 0
        for _ in range(more):
            before, since = written(last), time.monotonic()
            wait_for(lambda before=before: written(last) != before, process)
            pace = min(pace, time.monotonic() - since)
        time.sleep(rng.uniform(0, 3 * pace if more else 0.2))
        assert process.is_alive(), (tmp_path / "log").read_text()[-3000:]
        process.kill()
        process.join()
        if last.exists():
            steps.append(torch.load(last, weights_only=True)["global_step"])
    assert steps == sorted(steps) and 0 < steps[-1] < 60, steps
    call(arguments, tmp_path / "log")
    assert_same(run, whole)


TRAINING, VALIDATION, EPOCH_END = "training_step", "validation_step", "on_train_epoch_end"
RANDOM = "objective.from_random=true"
SHORT = ["trainer.max_epochs=3", "callbacks.last.steps=null"]
AVERAGED = ["callbacks=averaged", "callbacks.averaging.update_every_n_steps=2"]
TWICE = ["+trainer.val_check_interval=2"]
MOST = ["+trainer.max_steps=12"]
KILL = signal.SIGKILL
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def whole_of(settings, tmp_path_factory):
    """The uninterrupted run of some options, trained once."""
    trained = {}

    def train(options: list[str]) -> Path:
        if (key := str(options)) not in trained:
            trained[key] = tmp_path_factory.mktemp("whole") / "run"
            call([*settings, *SHORT, *options, f"run_dir={trained[key]}"], trained[key].parent / "log")
        return trained[key]

    return train


@pytest.mark.parametrize(
    ("options", "stop"),
    [
        ([], Stop(TRAINING, 6)),
        ([], Stop(TRAINING, 8)),  # the last of an epoch: validation is still to come
        ([], Stop(VALIDATION, 6)),  # in the midst of the second one
        ([], Stop(VALIDATION, 12)),  # of the last one
        ([], Stop(TRAINING, 9, KILL)),  # after an epoch was saved
        (["attention=hard", "objective.scheduled_sampling=0.5"], Stop(TRAINING, 6)),
        (["objective=self_critical", RANDOM], Stop(TRAINING, 6)),
        (["objective=variational", "objective.word_dropout=0.3"], Stop(TRAINING, 6)),
        (["objective=adversarial", RANDOM], Stop(TRAINING, 6)),
        (["objective=adversarial_training", "data.cache=false"], Stop(TRAINING, 6)),
        pytest.param(["objective=adversarial", RANDOM, "objective.estimator=policy"], Stop(TRAINING, 6), marks=slow),
        pytest.param(AVERAGED, Stop(TRAINING, 6), marks=slow),
        pytest.param(AVERAGED, Stop(TRAINING, 8), marks=slow),
        (AVERAGED, Stop(VALIDATION, 6)),
        (["trainer.accumulate_grad_batches=3"], Stop(TRAINING, 5)),  # between the batches of a step
        pytest.param(["transform=augmented", "transform.size=16", "data.workers=1"], Stop(TRAINING, 6), marks=slow),
        pytest.param(TWICE, Stop(TRAINING, 6), marks=slow),
        pytest.param(TWICE, Stop(VALIDATION, 10), marks=slow),
        pytest.param(TWICE, Stop(TRAINING, 9, KILL), marks=slow),
        pytest.param(["trainer.check_val_every_n_epoch=2"], Stop(TRAINING, 8), marks=slow),
        pytest.param(MOST, Stop(TRAINING, 8), marks=slow),
        pytest.param(MOST, Stop(VALIDATION, 6), marks=slow),
        (MOST, Stop(TRAINING, 9, KILL)),
    ],
    ids=lambda value: "-".join(map(str, value)) or "plain",
)
def test_a_run_that_was_stopped_goes_on_as_the_same_run(options, stop, settings, whole_of, tmp_path):
    """In the midst of an epoch, at its end, in a validation; with all that is drawn, averaged and accumulated."""
    run = tmp_path / "run"
    arguments = [*settings, *SHORT, *options, f"run_dir={run}"]
    if stop.signal == KILL:
        call(arguments, tmp_path / "log", -KILL, stop)
    else:
        said = call(arguments, tmp_path / "log", 128 + stop.signal, stop)
        assert "SIGTERM: ending when this step is saved" in said and "same command with ckpt=last goes on" in said
        assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    call([*arguments, "ckpt=last"], tmp_path / "log")
    assert_same(run, whole_of(options))


@pytest.mark.parametrize("most", [6, pytest.param(8, marks=slow)])
def test_a_run_that_ended_in_an_epoch_goes_on_there_when_it_is_given_more_steps(most, settings, whole_of, tmp_path):
    run = tmp_path / "run"
    arguments = [*settings, *SHORT, "~scheduler", f"run_dir={run}"]
    call([*arguments, f"+trainer.max_steps={most}"], tmp_path / "log")
    ended = history(run)
    call([*arguments, f"+trainer.max_steps={most}", "ckpt=last"], tmp_path / "log")
    assert history(run) == ended
    call([*arguments, "+trainer.max_steps=11", "ckpt=last"], tmp_path / "log")
    assert_same(run, whole_of(["~scheduler", "+trainer.max_steps=11"]))


def test_a_run_that_stopped_early_has_stopped(settings, tmp_path):
    early = ["callbacks.early_stopping.patience=2", "+callbacks.early_stopping.min_delta=100"]
    arguments = [*settings, *early, "callbacks.last.steps=null", f"run_dir={tmp_path / 'run'}"]
    call(arguments, tmp_path / "log")
    ended = history(tmp_path / "run")
    assert len(ended) == 3 * 5 + 1
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["callbacks"]["LastCheckpoint"]["rows"] == 5 * (best["epoch"] + 1), "for whoever goes on from the best"
    call([*arguments, "ckpt=last"], tmp_path / "log")
    assert history(tmp_path / "run") == ended


def test_the_time_from_one_checkpoint_to_the_next(settings, tmp_path):
    """callbacks.last.minutes, within an epoch: none of an hour, all of none."""
    for minutes, saved in ((60, 0), (0, 3)):
        run = tmp_path / str(minutes)
        timed = [*settings, "callbacks.last.steps=null", f"callbacks.last.minutes={minutes}", f"run_dir={run}"]
        call(timed, tmp_path / "log", -KILL, Stop(TRAINING, 4, KILL))
        steps = [torch.load(path, weights_only=True)["global_step"] for path in checkpoints(run)]
        assert steps == ([3, 2] if saved else [])


@pytest.mark.parametrize(
    "second", [Stop(TRAINING, 3, KILL), Stop(TRAINING, 5, KILL), Stop(VALIDATION, 2, KILL)], ids=str
)
@pytest.mark.parametrize("every", [1, 2])
def test_a_run_killed_after_an_epochs_last_step_and_then_in_the_next_is_the_run_that_was_not(
    every, second, settings, whole_of, tmp_path
):
    """Its first checkpoint is of the epoch's last step, before the epoch has ended."""
    options = [*SHORT, "callbacks.last.steps=1", f"trainer.check_val_every_n_epoch={every}"]
    arguments = [*settings, *options, f"run_dir={tmp_path / 'run'}", "ckpt=last"]
    call(arguments, tmp_path / "log", -KILL, Stop(EPOCH_END, 1, KILL))
    call(arguments, tmp_path / "log", -KILL, second)
    call(arguments, tmp_path / "log")
    assert_same(tmp_path / "run", whole_of(options))


def test_a_run_killed_after_its_very_last_step_is_the_run_that_was_not(settings, whole_of, tmp_path):
    """Nothing is left to train, and its last epoch is not a whole one."""
    options = [*SHORT, "callbacks.last.steps=1", "+trainer.max_steps=10"]
    arguments = [*settings, *options, f"run_dir={tmp_path / 'run'}", "ckpt=last"]
    call(arguments, tmp_path / "log", -KILL, Stop(EPOCH_END, 3, KILL))
    call(arguments, tmp_path / "log")
    assert_same(tmp_path / "run", whole_of(options))


@pytest.mark.parametrize("harm", ["cut", "zeros", "a byte", "other"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(harm, settings, whole_of, tmp_path):
    run = tmp_path / "run"
    arguments = [*settings, *SHORT, "callbacks.last.steps=1", f"run_dir={run}"]
    call(arguments, tmp_path / "log", -KILL, Stop(TRAINING, 7, KILL))
    last, before = checkpoints(run)
    assert [torch.load(path, weights_only=True)["global_step"] for path in (last, before)] == [6, 5]
    whole = last.read_bytes()
    if harm == "cut":
        last.write_bytes(whole[: len(whole) // 2])
    elif harm == "zeros":
        last.write_bytes(bytes(len(whole)))
    elif harm == "a byte":  # of a tensor, which torch.load does not notice
        weight = torch.load(last, weights_only=True)["state_dict"]["model.decoder.word.weight"].numpy().tobytes()
        at = whole.index(weight)
        last.write_bytes(whole[: at + 5] + bytes([whole[at + 5] ^ 255]) + whole[at + 6 :])
        torch.load(last, weights_only=True)
    else:
        torch.save({"state_dict": {}}, last)
    assert damage(last) and not damage(before) and newest(run) == before
    said = call([*arguments, "ckpt=last"], tmp_path / "log", -KILL, Stop(TRAINING, 2, KILL))
    assert f"{last} is damaged" in said and f"from the checkpoint at {before}" in said
    assert len(checkpoints(run)) == 2 and not any(map(damage, checkpoints(run))), "the damaged one is not kept as such"
    call([*arguments, "ckpt=last"], tmp_path / "log")
    assert_same(run, whole_of([]))


def test_where_all_checkpoints_are_damaged_it_says_what_to_do(settings, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("last.ckpt", "before.ckpt"):
        (run / "checkpoints" / name).write_bytes(b"")
    said = call([*settings, f"run_dir={run}", "ckpt=last"], tmp_path / "log", 1)
    assert re.search(r"error: \S+last.ckpt and \S+before.ckpt: damaged, .* overwrite=true begins anew\n$", said)
    given = f"ckpt={run / 'checkpoints' / 'last.ckpt'}"
    said = call([*settings, f"run_dir={run}", given], tmp_path / "log", 1)
    assert f"error: {given}: no checkpoint that a training can go on from" in said


# ---------------------------------------------------------------- signals


def test_ctrl_c_ends_the_command_in_order(settings, whole, tmp_path):
    """The real command; a second signal, while it saves, does no harm."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "src.train", *settings, f"run_dir={run}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    wait_for((run / "checkpoints" / "last.ckpt").exists)
    process.send_signal(signal.SIGINT)
    time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGINT, (tmp_path / "log").read_text()[-3000:]
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "interrupted" and "Traceback" not in (tmp_path / "log").read_text()
    call([*settings, f"run_dir={run}", "ckpt=last"], tmp_path / "log")
    assert_same(run, whole)


def test_a_second_ctrl_c_waits_for_nothing():
    with pytest.raises(Interrupted) as left, Interruption() as interruption:
        interruption.waits = True
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
    assert left.value.code == 128 + signal.SIGINT and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_warning_goes_to_the_handler_that_was_there_and_sigterm_does_not_requeue(monkeypatch):
    """submitit's, which puts its job back in the queue; else SLURM's own command does."""
    told = []
    monkeypatch.setattr("src.interruption.requeue", lambda: told.append("requeue"))
    earlier = signal.signal(signal.SIGUSR2, lambda number, frame: told.append(number))
    try:
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            with pytest.raises(Interrupted), Interruption():
                os.kill(os.getpid(), number)
                time.sleep(1)
    finally:
        signal.signal(signal.SIGUSR2, earlier)
    assert told == ["requeue", signal.SIGUSR2]


def test_loading_processes_outlive_what_tells_their_parent_to_save():
    """A terminal's and a cluster's signals go to all processes of a training."""
    loading = FORKING.Process(target=_load)
    loading.start()
    time.sleep(1)
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        os.kill(loading.pid, number)
    loading.join(0.5)
    assert loading.exitcode is None
    loading.kill()
    loading.join()


def _load() -> None:
    undisturbed(0)
    time.sleep(10)


def two(arguments: list[str], folder: Path, stop: Stop | None = None, second: Sequence[str] = ()) -> list[int | None]:
    """A training of two processes, as torchrun starts them, of which the second may stop, and may have arguments of its
    own besides; their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    environment |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "1"}
    both = [*arguments, "trainer.devices=2", "data.batch_size=2"]
    processes = [
        start(
            [*both, *((), second)[rank]],
            folder / f"log{rank}",
            (None, stop)[rank],
            **environment,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
        )
        for rank in range(2)
    ]
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def test_a_signal_to_one_of_two_processes_ends_both(settings, tmp_path):
    """In training and in validation; both save together, and both go on."""
    short, whole = [*settings, *SHORT], tmp_path / "whole"
    assert two([*short, f"run_dir={whole}"], tmp_path) == [0, 0]
    for step, number in ((TRAINING, 6), (VALIDATION, 3)):
        run = tmp_path / step
        ended = two([*short, f"run_dir={run}"], tmp_path, Stop(step, number))
        assert ended == [128 + signal.SIGTERM, 0], (tmp_path / "log0").read_text()[-3000:]
        assert torch.load(newest(run), weights_only=True)["global_step"] == (6 if step == TRAINING else 8)
        assert two([*short, f"run_dir={run}", "ckpt=last"], tmp_path) == [0, 0]
        assert_same(run, whole)


# ---------------------------------------------------------------- pruning


def hopeless(folder: Path) -> tuple[optuna.Study, list[str]]:
    """A study with a trial that nobody reaches, and overrides that make a training the next one, which is pruned after
    its second epoch."""
    storage = str(folder / "studies.log")
    study = optuna.create_study(storage=open_storage(storage), study_name="s", direction="maximize")
    study.add_trial(optuna.create_trial(value=99, intermediate_values=dict.fromkeys(range(1, 9), 99.0)))
    fields = ["study_name=s", f"storage={storage}", f"trial={study.ask().number}", "pruner.n_startup_trials=1"]
    return study, ["hydra/sweeper=optuna", *(f"hydra.sweeper.{each}" for each in fields)]


def test_two_processes_are_pruned_together_and_go_on_as_the_same_run(settings, tmp_path):
    """The second one would find no study."""
    run, whole, elsewhere = tmp_path / "run", tmp_path / "whole", tmp_path / "elsewhere.log"
    arguments = [*settings, *SHORT, "trainer=ddp_cpu"]
    study, trial = hopeless(tmp_path)
    pruned = two([*arguments, *trial, f"run_dir={run}"], tmp_path, second=[f"hydra.sweeper.storage={elsewhere}"])
    assert pruned == [0, 0], (tmp_path / "log0").read_text()[-3000:]
    record = json.loads((run / "status.json").read_text())
    assert (record["state"], record["epochs"]) == ("pruned", 2) and not (run / "bundle").exists()
    scores = [float(row["val/CIDEr"]) for row in history(run) if "val/CIDEr" in row]
    assert study.trials[1].intermediate_values == dict(enumerate(scores, 1)) and len(scores) == 2
    assert not elsewhere.exists()
    assert two([*arguments, f"run_dir={run}", "ckpt=last"], tmp_path) == [0, 0]
    assert two([*arguments, f"run_dir={whole}"], tmp_path) == [0, 0]
    assert_same(run, whole)


@pytest.mark.parametrize("options", [[], TWICE], ids=["after an epoch", "in an epoch"])
def test_a_run_that_was_pruned_goes_on_as_the_same_run(options, settings, whole_of, tmp_path):
    arguments = [*settings, *SHORT, *options, f"run_dir={tmp_path / 'run'}"]
    call([*arguments, *hopeless(tmp_path)[1]], tmp_path / "log")
    step = torch.load(newest(tmp_path / "run"), weights_only=True)["global_step"]
    assert step == (6 if options else 8)
    call([*arguments, "ckpt=last"], tmp_path / "log")
    assert_same(tmp_path / "run", whole_of(options))


# ---------------------------------------------------------------- full disks


@contextmanager
def mounted(disk: Path, size: str) -> Iterator[Path]:
    """A disk of this size; the test is skipped where none can be mounted."""
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(settings, whole, tmp_path):
    """A real one, of four megabytes."""
    with mounted(tmp_path / "disk", "4m") as disk:
        run, filler = disk / "run", disk / "filler"
        arguments = [*settings, f"run_dir={run}", "ckpt=last"]
        call(arguments, tmp_path / "log", -KILL, Stop(TRAINING, 7, KILL))
        room = shutil.disk_usage(disk).free
        filler.write_bytes(bytes(room - 60_000))
        said = call(arguments, tmp_path / "log2", 1)
        error = said.splitlines()[-1]
        assert re.fullmatch(
            rf"error: {run}/checkpoints/last.ckpt: there is no room for it \(No space left on device: 0\.\d MB are "
            r"needed, 0\.\d MB are free\); what was written before is whole: make room, and go on with ckpt=last",
            error,
        ), said[-3000:]
        assert "Traceback" not in said
        assert newest(run) == run / "checkpoints" / "last.ckpt" and not list(run.rglob("*.partial"))
        metrics, bundle, rows = (
            (run / "metrics.csv").read_text(),
            load_bundle(whole / "bundle"),
            Rows(disk / "rows.csv"),
        )
        filler.write_bytes(bytes(room))
        with pytest.raises(DiskFull, match="rows.csv: there is no room for it"):
            for step in range(10_000):
                rows.log_metrics({"loss": 0.1}, step)
            rows.save()
        with pytest.raises(DiskFull, match="disk/bundle: there is no room for it"):
            save_bundle(disk / "bundle", bundle)
        assert {path.name for path in disk.iterdir()} == {"run", "filler"}
        assert (run / "metrics.csv").read_text() == metrics
        filler.unlink()
        call(arguments, tmp_path / "log")
        assert_same(run, whole)


def test_of_several_disks_the_full_one_is_named(settings, tmp_path):
    """A real one, for the cache."""
    with mounted(tmp_path / "cache", "8k") as disk:
        arguments = [*settings, f"data.cache_dir={disk}", f"run_dir={tmp_path / 'run'}"]
        error = call(arguments, tmp_path / "log", 1).splitlines()[-1]
    assert re.fullmatch(
        rf"error: {disk}\S*: No space left on device \(0\.0 GB are free\): set data.cache_dir to .*", error
    ), error


def test_no_room_for_a_checkpoint_is_the_same_where_nothing_can_be_mounted(settings, tmp_path):
    """By the system's limit of a file's size."""
    run = tmp_path / "run"
    said = call([*settings, f"run_dir={run}"], tmp_path / "log", 1, limit=50_000)
    assert re.search(r"error: \S+last.ckpt: there is no room for it \(File too large: 0.\d MB are needed", said)
    assert not list(run.rglob("*.partial")) and not newest(run)
    assert json.loads((run / "status.json").read_text())["state"] == "failed"


# ---------------------------------------------------------------- W&B, SLURM


def test_a_run_of_wandb_is_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    first, again, other = (WandbOrOffline(str(tmp_path / name)) for name in ("run", "run", "other"))
    assert first.version and first.version == again.version != other.version
    assert WandbOrOffline(str(tmp_path / "run"), id="given").version == "given"
    assert WandbOrOffline(str(tmp_path / "run")).version == "given"


@slow
def test_offline_processes_of_one_run_are_one_run_of_wandb(settings, tmp_path):
    run = tmp_path / "run"
    arguments = [*settings, *SHORT, "logger=wandb", "logger.wandb.log_bundle=false", f"run_dir={run}"]
    call(arguments, tmp_path / "log", 128 + signal.SIGTERM, Stop(TRAINING, 6), WANDB_MODE="offline")
    call([*arguments, "ckpt=last"], tmp_path / "log", WANDB_MODE="offline")
    records = [path.name for path in (run / "wandb").glob("offline-run-*/*.wandb")]
    assert records == [f"run-{(run / 'wandb_id.txt').read_text().strip()}.wandb"] * 2
    call([*arguments, "overwrite=true"], tmp_path / "log", WANDB_MODE="offline")
    assert len({path.name for path in (run / "wandb").glob("offline-run-*/*.wandb")}) == 2, "another training"


def test_a_job_that_was_requeued_goes_on_with_its_own_run(settings, whole_of, tmp_path):
    """With the command that it was given: also one that overwrites what was there before it began."""
    run = tmp_path / "run"
    call([*settings, *SHORT, "seed=1", f"run_dir={run}"], tmp_path / "log")
    arguments, job = [*settings, *SHORT, "overwrite=true", f"run_dir={run}"], {"SLURM_JOB_ID": "7"}
    call(arguments, tmp_path / "log", -KILL, Stop(TRAINING, 1, KILL), **job)
    assert not checkpoints(run)
    call(arguments, tmp_path / "log", -KILL, Stop(TRAINING, 6, KILL), **job)
    assert "Restored all states" not in call(
        arguments, tmp_path / "other", -KILL, Stop(TRAINING, 6, KILL), SLURM_JOB_ID="8", SLURM_RESTART_COUNT="1"
    ), "another job's run"
    said = call(arguments, tmp_path / "log", SLURM_JOB_ID="8", SLURM_RESTART_COUNT="1")
    assert said.count("Restored all states") == 1
    assert_same(run, whole_of([]))


@pytest.mark.parametrize(
    ("split", "mine", "its"),
    [
        ("train", "15 images, 30 captions", "16 images, 32 captions"),
        ("val", "4 images, 8 captions", "4 images, 8 captions"),
    ],
)
def test_processes_that_have_other_data_do_not_train_together(split, mine, its, settings, shapes, tmp_path):
    """A picture is missing on one of two nodes, where its captions are left out; or as many are others."""
    shutil.copytree(shapes, tmp_path / "lacking")
    if split == "train":
        (tmp_path / "lacking" / "images" / "03.png").unlink()
    else:
        rows = (shapes / "val.tsv").read_text().splitlines(keepends=True)
        (tmp_path / "lacking" / "val.tsv").write_text("".join([*rows[2:], *rows[:2]]))
    lacking = [f"data.root={tmp_path / 'lacking'}"]
    statuses = two([*settings, "data.on_bad_row=skip", f"run_dir={tmp_path / 'run'}"], tmp_path, second=lacking)
    assert statuses == [1, 1]
    for log in ("log0", "log1"):
        said = (tmp_path / log).read_text()
        assert re.search(rf"of {split}, process 1 has {mine} \(\w+\), and process 0 {its} \(\w+\): give each", said)


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}


def step(tasks: int, **more: str) -> dict[str, str]:
    """What srun tells the processes of a step, on two nodes."""
    return {"SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_NTASKS": str(tasks), "SLURM_NNODES": "2", **more}


def only(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no other variables of SLURM and of torchrun."""
    for name in [name for name in os.environ if name.startswith("SLURM_") or name in TORCHRUN]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("environment", "given", "expected"),
    [
        ({}, {}, {}),
        (step(8, SLURM_NTASKS_PER_NODE="4"), {}, {"devices": 4, "num_nodes": 2}),
        (step(8), {"devices": 2}, {"devices": 2, "num_nodes": 2}),
        (step(4), {"num_nodes": 1}, {"devices": 2, "num_nodes": 2}),
        (step(1, SLURM_JOB_NAME="interactive"), {"devices": "auto"}, {"devices": "auto"}),
        (step(4, RANK="1", WORLD_SIZE="4", LOCAL_RANK="1"), {}, {"devices": 2, "num_nodes": 2}),  # a wrapper's names
        (step(1), {"devices": "auto"}, {"devices": "auto"}),  # or of a step that a script was submitted from
        (step(2, **TORCHRUN), {"devices": "auto"}, {"devices": "auto"}),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2"}, {"devices": "auto"}, {"devices": "auto"}),
    ],
    ids=str,
)
def test_the_trainer_follows_the_nodes_and_processes_of_srun(environment, given, expected, monkeypatch):
    only(environment, monkeypatch)
    assert on_cluster(given) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, []),
        (step(2), [SLURMEnvironment]),
        (step(2, **TORCHRUN), [TorchElasticEnvironment]),  # one torchrun a node
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, [LightningEnvironment]),  # a job's own script
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", **TORCHRUN}, [TorchElasticEnvironment]),
        (step(1, SLURM_JOB_NAME="bash"), [LightningEnvironment]),
        (step(1), [LightningEnvironment]),
    ],
    ids=str,
)
def test_lightning_is_told_who_started_a_jobs_processes(environment, expected, monkeypatch):
    only({"SLURM_NTASKS_PER_NODE": "1", **environment} if environment else {}, monkeypatch)
    assert [type(each) for each in plugins()] == expected


def test_processes_on_a_cluster_are_as_many_as_gpus():
    with initialize_config_dir(CONF, version_base="1.3"):
        for line, tasks in ((["hydra.launcher.gpus_per_node=4"], 4), ([], 1), (["hydra.launcher.tasks_per_node=2"], 2)):
            config = compose("train", ["hydra/launcher=slurm", *line], return_hydra_config=True)
            assert config.hydra.launcher.tasks_per_node == tasks
