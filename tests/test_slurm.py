"""Trainings as jobs of a real SLURM, of two nodes on this machine: `make test-slurm`."""

import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import torch
from safetensors.torch import load_file

from src.config import ROOT
from src.runs import checkpoints
from src.trials import KILLED, open_storage
from tests.processes import call
from tests.test_resuming import assert_same, history, small, two, wait_for

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")
MISSING = [name for name in NEEDED if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None]
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        bool(MISSING), reason=f"no SLURM here ({', '.join(MISSING)} not found); `make test-slurm` says how"
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="SLURM's daemons start jobs as their users, for which they are root"),
]
HERE = ["hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=10", "hydra.launcher.signal_delay_s=30"]
LINE = "export MASTER_ADDR=127.0.0.1 OMP_NUM_THREADS=1"  # these nodes' names are nobody's
SETUP = f"hydra.launcher.setup=['{LINE}']"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment in which SLURM's commands are for two nodes of this machine."""
    folder = tmp_path_factory.mktemp("slurm")
    port = next(start for start in range(16817, 65000, 10) if all(_is_free(start + i) for i in range(3)))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"}
    environment = {name: value for name, value in environment.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    environment["VIRTUAL_ENV"] = sys.prefix  # scripts/train.sbatch takes no other
    scripts = ROOT / "tests" / "slurm"
    try:
        subprocess.run([scripts / "start.sh", folder, "2"], env={**environment, "PORT": str(port)}, check=True)
        environment["PATH"] = f"{folder / 'bin'}:{environment['PATH']}"
        yield {**environment, "SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    finally:
        subprocess.run([scripts / "stop.sh", folder], env=environment, check=True)


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture(scope="module")
def settings(shapes, tmp_path_factory):
    return small(shapes, tmp_path_factory.mktemp("cache"))


def said(command: list[str], cluster: dict[str, str], fails: bool = False) -> str:
    """What a command prints that must not fail, or may."""
    done = subprocess.run(command, cwd=ROOT, env=cluster, capture_output=True, text=True, timeout=300)
    assert fails or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.strip()


def train(settings: list[str], *more: str) -> list[str]:
    return [sys.executable, "-m", "src.train", *settings, *more]


def release(cluster: dict[str, str]) -> None:
    """Let jobs that are back in the queue start in a moment: SLURM makes them wait for two minutes, and refuses one
    that starts within the second in which it was ended ("Job credential revoked")."""
    waiting = said(["squeue", "-h", "-t", "PD", "-o", "%A"], cluster).split()
    time.sleep(3 if waiting else 0)
    for number in waiting:
        said(["scontrol", "update", f"JobId={number}", "StartTime=now"], cluster, fails=True)


def test_a_sweep_is_an_array_of_jobs_and_one_that_is_preempted_goes_on(cluster, settings, tmp_path):
    """Three runs, two at a time; the first is told, once it has saved, that its time is up."""
    sweep, log = tmp_path / "sweep", tmp_path / "log"
    arguments = ["-m", "hydra/launcher=slurm", *HERE, SETUP, f"hydra.sweep.dir={sweep}", "seed=0,1,2"]
    asked = ["partition=debug", "account=vision", "mem_gb=1", "array_parallelism=2", "max_num_timeout=3", "name=three"]
    arguments += [f"hydra.launcher.{each}" for each in asked]
    arguments += ["+hydra.launcher.additional_parameters.comment=night"]
    arguments += [f"run_dir={tmp_path}/runs/${{seed}}"]
    with log.open("w") as file:
        launching = subprocess.Popen(train(arguments, *settings), cwd=ROOT, env=cluster, stdout=file, stderr=file)
    first = tmp_path / "runs" / "0"
    wait_for(lambda: checkpoints(first) or launching.poll() is not None)
    job = next(each for each in said(["squeue", "-h", "-r", "-o", "%i"], cluster).split() if each.endswith("_0"))
    said(["scancel", "--signal=USR2", job], cluster)
    while launching.poll() is None:
        release(cluster)
        time.sleep(0.5)
    text = log.read_text()
    assert launching.returncode == 0, text[-3000:]
    assert "3 jobs, best first" in text
    with (sweep / "summary.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert {(row["seed"], row["state"], row["epochs"]) for row in rows} == {(str(i), "finished", "6") for i in range(3)}
    (script,) = (sweep / ".submitit").rglob("*_submission.sh")
    lines = set(script.read_text().splitlines())
    assert LINE in lines and lines >= {
        f"#SBATCH --{option}"
        for option in (
            *("partition=debug", "account=vision", "mem=1GB", "array=0-2%2", "comment=night", "job-name=three"),
            *("nodes=1", "ntasks-per-node=1", "cpus-per-task=1", "time=10", "signal=USR2@30", "requeue"),
        )
    }
    logs = next((sweep / ".submitit").rglob("*_0_0_log.out")).read_text()
    assert "USR2: ending when this step is saved" in logs and "Requeued job" in logs, logs[-3000:]
    assert "Restored all states from the checkpoint" in logs
    alone = tmp_path / "alone"
    call([*settings, "seed=0", f"run_dir={alone}"], tmp_path / "alone.log")
    assert_same(first, alone)


def test_two_nodes_train_what_one_process_does_with_the_whole_batch(cluster, settings, tmp_path):
    """DDP by `hydra/launcher=slurm`, whose nodes the trainer follows."""
    plainly = [
        *settings,
        "trainer.max_epochs=2",
        "decoder.dropout=0",
        "encoder.frozen=true",
        "data.cache=false",
        "~scheduler",
    ]
    plainly += ["optimizer._target_=torch.optim.SGD", "~optimizer.betas", "optimizer.lr=0.1"]
    launcher = ["-m", "hydra/launcher=slurm", "hydra.launcher.nodes=2", *HERE, SETUP]
    where = [f"hydra.sweep.dir={tmp_path / 'sweep'}", f"run_dir={tmp_path / 'two'}"]
    said(train(launcher, *plainly, *where, "data.batch_size=2"), cluster)
    logs = [path.read_text() for path in (tmp_path / "sweep" / ".submitit").rglob("*_log.out")]
    assert len([log for log in logs if "MEMBER: 2/2" in log or "MEMBER: 1/2" in log]) == 2, logs
    call([*plainly, f"run_dir={tmp_path / 'one'}"], tmp_path / "log")
    one, two = (load_file(tmp_path / name / "bundle" / "model.safetensors") for name in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=1e-4, rtol=1e-3)
    scores = [
        [(k, float(v)) for row in history(tmp_path / name) for k, v in row.items() if k.startswith("val/")]
        for name in ("one", "two")
    ]
    assert len(scores[0]) > 10 and [k for k, _ in scores[0]] == [k for k, _ in scores[1]]
    assert [v for _, v in scores[0]] == pytest.approx([v for _, v in scores[1]], rel=1e-3, abs=1e-5)


def test_a_job_of_sbatch_goes_on_by_itself_when_its_time_is_up_and_when_it_is_preempted(cluster, settings, tmp_path):
    """scripts/train.sbatch on two nodes: SIGUSR1, as `--signal` sends it, then SIGTERM, as SLURM pre-empts."""
    run, longer = tmp_path / "run", [*settings, "trainer.max_epochs=8"]
    environment = {**cluster, "MASTER_ADDR": "127.0.0.1"}
    options = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=10", f"--output={tmp_path}/log"]
    job = said(
        ["sbatch", "--parsable", *options, "scripts/train.sbatch", *longer, "data.batch_size=2", f"run_dir={run}"],
        environment,
    )

    def state() -> str:
        return said(["squeue", "-h", "-j", job, "-o", "%T"], cluster, fails=True)

    def progress() -> int:
        there = checkpoints(run)
        return there[0].stat().st_mtime_ns if there else 0

    for command in (["scancel", "--signal=USR1", job], ["scontrol", "requeue", job]):
        before = progress()
        wait_for(lambda before=before: progress() != before)
        said(command, cluster)
        wait_for(lambda: state() == "PENDING")
        release(cluster)
    wait_for(lambda: json.loads((run / "status.json").read_text())["state"] == "finished")
    log = (tmp_path / "log").read_text()
    assert len(re.findall("Restored all states from the checkpoint", log)) >= 2 and "is back in the queue" in log, log
    whole = tmp_path / "whole"
    assert two([*longer, f"run_dir={whole}"], tmp_path) == [0, 0]
    assert_same(run, whole)


def test_a_job_that_is_cancelled_in_the_queue_is_a_failed_trial(cluster, settings, tmp_path):
    storage, log = tmp_path / "studies.log", tmp_path / "log"
    search = ["study_name=s", f"storage={storage}", "n_trials=2", "n_jobs=2"]
    arguments = ["hydra/sweeper=optuna", *(f"hydra.sweeper.{each}" for each in search), "seed=0,1"]
    arguments += ["hydra/launcher=slurm", *HERE, SETUP, "+hydra.launcher.additional_parameters.begin=now+1hour"]
    arguments += [f"hydra.sweep.dir={tmp_path / 'sweep'}", f"run_dir={tmp_path}/runs/${{seed}}"]
    with log.open("w") as file:
        searching = subprocess.Popen(
            train(["-m", *settings], *arguments), cwd=ROOT, env=cluster, stdout=file, stderr=file
        )
    wait_for(lambda: len(said(["squeue", "-h", "-o", "%A"], cluster).split()) == 2 or searching.poll() is not None)
    said(["scancel", *said(["squeue", "-h", "-o", "%A"], cluster).split()], cluster)
    assert searching.wait(300) == 1, log.read_text()[-3000:]
    trials = optuna.load_study(study_name="s", storage=open_storage(str(storage))).trials
    assert [(trial.state.name, trial.user_attrs["error"]) for trial in trials] == [("FAIL", KILLED)] * 2
    assert len(re.findall(f"^failed: .*: {KILLED}$", log.read_text(), re.M)) == 2 and "Traceback" not in log.read_text()


def test_trials_of_a_search_are_jobs_each_of_two_nodes(cluster, settings, tmp_path):
    """Four trials, two at a time: a good one beside one that is killed, then a hopeless one beside one that fails."""
    storage, log = tmp_path / "studies.log", tmp_path / "log"
    study = optuna.create_study(storage=open_storage(str(storage)), study_name="s", direction="minimize")
    for seed, rate, captions in ((0, 0.01, "val"), (1, 0.01, "val"), (2, 1e-7, "val"), (3, 0.01, "none")):
        study.enqueue_trial({"seed": str(seed), "optimizer.lr": rate, "data.val": f"{captions}.tsv"})
    search = ["study_name=s", f"storage={storage}", "n_trials=4", "n_jobs=2", "pruner.n_startup_trials=1"]
    arguments = ["hydra/sweeper=optuna", *(f"hydra.sweeper.{each}" for each in search), "hydra/launcher=slurm"]
    arguments += ["hydra.launcher.nodes=2", *HERE, SETUP, f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    arguments += ["seed=0,1,2,3", "data.val=val.tsv,none.tsv", "optimizer.lr=tag(log,interval(1e-8,0.1))"]
    arguments += ["callbacks.checkpoint.monitor=val/loss", "callbacks.checkpoint.mode=min", "trainer.max_epochs=4"]
    fixed = [each for each in settings if each.partition("=")[0] not in ("data.val", "optimizer.lr")]
    good, killed, bad, _ = (tmp_path / "runs" / str(seed) for seed in range(4))
    with log.open("w") as file:
        command = train(["-m", *fixed, *arguments], f"run_dir={tmp_path}/runs/${{seed}}", "data.batch_size=2")
        searching = subprocess.Popen(command, cwd=ROOT, env=cluster, stdout=file, stderr=file)
    wait_for(lambda: checkpoints(killed) or searching.poll() is not None)
    said(["scancel", json.loads((killed / "status.json").read_text())["job"]], cluster)
    assert searching.wait(300) == 1, log.read_text()[-3000:]
    trials = study.trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "PRUNED", "FAIL"]
    assert trials[1].user_attrs["error"] == KILLED and "none.tsv" in trials[3].user_attrs["error"]
    for trial, run, epochs in ((trials[0], good, 4), (trials[2], bad, 2)):
        losses = [float(row["val/loss"]) for row in history(run) if "val/loss" in row]
        assert trial.intermediate_values == dict(enumerate(losses, 1)) and len(losses) == epochs
    assert trials[0].value == json.loads((good / "status.json").read_text())["best"] and (good / "bundle").exists()
    assert json.loads((bad / "status.json").read_text())["state"] == "pruned"
    logs = [path.read_text() for path in (tmp_path / "sweep" / ".submitit").rglob("*_log.out")]
    assert len(logs) == 8 and sum("MEMBER: 2/2" in each for each in logs) == 3, "two processes a trial"
    assert re.search(rf"^failed: seed=1 .*: {KILLED}$", log.read_text(), re.M), log.read_text()[-3000:]
