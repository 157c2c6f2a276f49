"""Sweeps through the real command: parallel jobs, one cache, failures that stay alone, a second call, the table."""

import csv
import json
import math
import os
import re
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from omegaconf import OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from hydra_plugins import captionary
from src import sweeps
from src.config import ROOT
from src.runs import LOCK, STATUS
from src.sweeps import NOTE, job_row, keep_to_share, summary, take_up, wait_for_others


def call(*arguments: str, expect: int = 0) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


# ---------------------------------------------------------------- trainings


@pytest.fixture(scope="module")
def settings(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps")
    root = folder / "shapes"
    root.mkdir()
    (root / "images").symlink_to(shapes / "images")
    for name in ("train.tsv", "val.tsv"):
        (root / name).write_text((shapes / name).read_text())
    (root / "damaged.tsv").write_text((shapes / "train.tsv").read_text() + "damaged.jpg\tA damaged picture.\n")
    (root / "damaged.jpg").write_bytes(b"not a picture")  # found out when features are computed, not before
    tiny = [
        *("data=tsv", f"data.root={root}", "data.train=train.tsv", "data.val=val.tsv", "data.min_count=1"),
        *("data.batch_size=8", f"data.cache_dir={folder / 'cache'}", "data.workers=0", "data.cache_workers=0"),
        *("transform.size=32", "encoder=cnn", "encoder.backbone.channels=[16,32]", "encoder.frozen=true"),
        *("encoder.width=32", "embedding.size=32", "attention.width=32", "decoder.hidden=32", "logger=csv"),
        *("generation=greedy", "trainer.max_epochs=1", "trainer.enable_progress_bar=false"),
        f"run_dir={folder}/${{name}}",
        "name='${hydra:runtime.choices.decoder}-${data.train}'",
    ]
    return folder, tiny


@pytest.fixture(scope="module")
def swept(settings):
    """Four jobs, two at once, one of which fails."""
    folder, tiny = settings
    parallel = ["hydra/launcher=parallel", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={folder / 'first'}"]
    jobs = ["decoder=lstm,lstm_attn", "data.train=train.tsv,damaged.tsv"]
    return folder, call("-m", "src.train", "-m", *tiny, *parallel, *jobs, expect=1)


def test_a_failed_job_does_not_end_the_sweep(swept):
    folder, said = swept
    table = said[said.index("4 jobs, best first") :]
    assert len(re.findall(r"^train.tsv +lstm(_attn)? .* finished$", table, re.M)) == 2
    assert len(re.findall(r"^damaged.tsv +lstm(_attn)? .* failed$", table, re.M)) == 2
    assert re.search(
        r"^failed: data.train=damaged.tsv decoder=lstm: .*damaged.jpg: no picture in a format", table, re.M
    )
    logs = [log.read_text() for log in (folder / "first").glob("*/train.log")]
    assert "Traceback" not in said and sum("Traceback" in log for log in logs) == 2
    assert "damaged.jpg" in json.loads((folder / "lstm-damaged.tsv" / STATUS).read_text())["error"]
    record = json.loads((folder / "lstm-train.tsv" / STATUS).read_text())
    assert record["state"] == "finished" and record["monitor"] == "val/CIDEr" and record["epochs"] == 1
    assert "decoder=lstm" in record["overrides"] and record["choices"]["decoder"] == "lstm"


def test_the_summary_is_written_too(swept):
    folder, _ = swept
    with (folder / "first" / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["finished", "finished", "failed", "failed"]
    assert rows[0]["CIDEr"] and rows[0]["METEOR"] and Path(rows[0]["run"]).name.startswith("lstm")
    assert (folder / "first" / "summary.md").read_text().startswith("| data.train | decoder | best |")


def test_the_feature_cache_is_built_once_and_cores_are_shared(swept):
    folder, _ = swept
    logs = "".join(log.read_text() for log in (folder / "first").glob("*/train.log"))
    assert logs.count("feature cache: 16 images") == 1 and logs.count("feature cache: 4 images") == 1
    threads = {int(n) for n in re.findall(r"one of 2 jobs at once on \d+ cores: (\d+) threads", logs)}
    assert threads == {max(1, sweeps.cpu_count() // 2)}


def test_a_second_call_takes_up_what_is_finished_and_tries_again_what_is_not(swept, settings):
    folder, tiny = settings
    weights = {run: (run / "bundle/model.safetensors").stat().st_mtime_ns for run in folder.glob("*-train.tsv")}
    done = folder / "lstm_attn-train.tsv" / STATUS
    done.write_text(json.dumps(json.loads(done.read_text()) | {"state": "running"}))  # as if it had been killed
    jobs = ["decoder=lstm,lstm_attn", "data.train=train.tsv", f"hydra.sweep.dir={folder / 'second'}"]
    said = call("-m", "src.train", "-m", *tiny, *jobs)
    table = said[said.index("2 jobs, best first") :]
    assert re.search(r"^lstm .* reused$", table, re.M) and re.search(r"^lstm_attn .* finished$", table, re.M)
    changed = {run.name: (run / "bundle/model.safetensors").stat().st_mtime_ns != weights[run] for run in weights}
    assert changed == {"lstm-train.tsv": False, "lstm_attn-train.tsv": True}


# ---------------------------------------------------------------- jobs that only pretend to train

JOB = """
import os, signal, time
import hydra, torch
from hydra.core.hydra_config import HydraConfig
from src.config import CONF
from src.sweeps import sweep_job

@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
@sweep_job
def main(config):
    print("job", config.seed, config.name, torch.get_num_threads(), HydraConfig.get().launcher.n_jobs, flush=True)
    time.sleep(0.5)
    if config.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if config.seed == 2:
        raise RuntimeError("out of memory")
    return config.seed / 10

main()
"""


def pretend(folder: Path, *overrides: str, expect: int = 0) -> str:
    (folder / "job.py").write_text(JOB)
    where = [f"hydra.sweep.dir={folder / 'sweep'}", f"run_dir={folder}/${{name}}"]
    return call(str(folder / "job.py"), "-m", "hydra/launcher=parallel", *where, *overrides, expect=expect)


def states(folder: Path) -> list[str]:
    notes = sorted((folder / "sweep").glob(f"*/{NOTE}"))
    return [json.loads(note.read_text())["state"] for note in notes]


def test_a_killed_process_fails_its_job_and_the_others_go_on(tmp_path):
    said = pretend(tmp_path, "experiments=demo", "seed=0,1,2,3,4", "hydra.launcher.n_jobs=2", expect=1)
    found = states(tmp_path)
    assert found[1] == found[2] == "failed" and found[3:] == ["finished"] * 2 and found[0] != "running"
    assert "its process was killed" in said and "RuntimeError: out of memory" in said, said
    with (tmp_path / "sweep" / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 and {row["seed"] for row in rows if row["state"] == "failed"} >= {"1", "2"}
    share = max(1, sweeps.cpu_count() // 2)
    assert f"job 4 demo {share} 2" in said, "recipes and names are found in workers, and cores are shared"


@pytest.mark.parametrize(
    ("wanted", "jobs", "gpus", "workers"),
    [(None, 8, 0, 2), (None, 8, 4, 4), (16, 3, 0, 3), (-1, 8, 0, 2), (1, 8, 4, 1)],
)
def test_how_many_workers(wanted, jobs, gpus, workers, monkeypatch):
    monkeypatch.setattr(captionary, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    base = captionary.ParallelLauncher.__base__  # Hydra's search for plugins may have imported it twice
    monkeypatch.setattr(base, "launch", lambda self, overrides, first: self.joblib["n_jobs"])
    launcher = captionary.ParallelLauncher(wanted)
    launcher.config = OmegaConf.create({"hydra": {"overrides": {"hydra": []}}})
    assert launcher.launch([["seed=0"]] * jobs, 0) == workers
    assert launcher.config.hydra.overrides.hydra == [f"hydra.launcher.n_jobs={workers}"], "and the jobs know"


# ---------------------------------------------------------------- parts


def config(**data) -> OmegaConf:
    return OmegaConf.create({"data": {"workers": 8, **data}, "trainer": {"accelerator": "auto", "devices": "auto"}})


@pytest.fixture
def threads(monkeypatch):
    """A machine of 16 cores; returns what torch.set_num_threads was told."""
    told: list[int] = []
    monkeypatch.setattr(sweeps, "cpu_count", lambda: 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: told[-1] if told else 16)
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    return told


@pytest.mark.parametrize(("jobs", "share"), [(2, 8), (4, 4), (5, 3), (32, 1), (-1, 1), (-13, 4)])
def test_a_job_keeps_to_its_share_of_the_cores(threads, jobs, share):
    mine = config()
    keep_to_share(mine, 0, jobs)
    assert threads == [share] and mine.data.workers == min(8, share)


def test_a_job_alone_has_all_cores(threads):
    mine = config()
    keep_to_share(mine, 0, 1)
    assert threads == [] and mine.data.workers == 8 and mine.trainer.devices == "auto"


def test_jobs_take_turns_on_several_gpus(threads, monkeypatch):
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    mine = config()
    keep_to_share(mine, 6, 4)
    assert mine.trainer.devices == [2] and chosen == [2]
    mine.trainer.devices = 2
    keep_to_share(mine, 6, 4)
    assert mine.trainer.devices == 2, "what the user says stays"


@pytest.fixture
def earlier(tmp_path):
    """A config, and a run that has been trained with it."""
    run = tmp_path / "run"
    mine = {
        **{"seed": 0, "overwrite": False, "ckpt": None, "evaluate_splits": ["val"], "logger": None},
        **{"decoder": {"hidden": 32}, "data": {"root": "x", "workers": 2}},
        **{"trainer": {"max_epochs": 2, "devices": 1}, "scheduler": {"warmup": 0.1}, "init": None, "freeze": []},
        **{"transform": {"size": 32, "augment": None}, "validation_metrics": ["CIDEr", "Bleu_4"]},
    }
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    (run / "config.yaml").write_text(yaml.safe_dump(mine))
    (run / STATUS).write_text('{"state": "finished"}')
    return OmegaConf.create(mine), run


def test_a_finished_run_is_taken_up(earlier):
    mine, run = earlier
    mine.data.workers = 0  # it would learn the same
    assert take_up(mine, run)


def test_a_stopped_run_goes_on(earlier):
    mine, run = earlier
    (run / STATUS).write_text('{"state": "interrupted"}')
    assert not take_up(mine, run) and mine.ckpt == "last"
    (run / "checkpoints" / "last.ckpt").unlink()
    mine.ckpt = None
    assert not take_up(mine, run) and mine.ckpt is None, "there is nothing to go on from"


def test_a_run_that_lacks_an_evaluation_goes_on(earlier):
    mine, run = earlier
    mine.evaluate_splits = ["val", "test"]
    assert not take_up(mine, run) and mine.ckpt == "last"


def test_a_run_of_other_settings_is_refused(earlier):
    mine, run = earlier
    mine.decoder.hidden = 64
    with pytest.raises(ValueError, match="holds a training with decoder.hidden=32, not 64: choose another name"):
        take_up(mine, run)
    mine.overwrite = True
    assert not take_up(mine, run) and mine.ckpt is None


@pytest.mark.parametrize(
    "change",
    [
        {"init_vocabulary": "keep"},
        {"freeze": ["decoder.embedding"]},
        {"transform": {"size": 32, "augment": {"flip": 0.5}}},
        {"scheduler": None},
        {"callbacks": {"checkpoint": {"monitor": "val/Bleu_4"}}},
        {"validation_metrics": ["CIDEr"]},
    ],
    ids=str,
)
def test_whatever_is_learned_otherwise_is_another_run(earlier, change):
    mine, run = earlier
    with pytest.raises(ValueError, match=f"holds a training with {next(iter(change))}"):
        take_up(OmegaConf.merge(mine, OmegaConf.create(change)), run)


def test_a_jobs_processes_do_not_wait_for_their_first_one(tmp_path, monkeypatch):
    """Which has the run's lock; for another job's, they do."""
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    waiting = threading.Thread(target=wait_for_others, args=[tmp_path], daemon=True)
    with FileLock(tmp_path / LOCK):
        (tmp_path / STATUS).write_text('{"job": "7"}')
        wait_for_others(tmp_path)
        (tmp_path / STATUS).write_text('{"job": "8"}')
        waiting.start()
        waiting.join(1)
        assert waiting.is_alive()
    waiting.join(20)
    assert not waiting.is_alive()


@pytest.mark.parametrize("devices", [2, "0,1", [0, 1]])
def test_several_processes_a_job_are_refused(devices, monkeypatch):
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    job = config()
    job.trainer.devices = devices
    with pytest.raises(ValueError, match="in a sweep: its jobs have one device each"):
        sweeps.keep_to_one_process(job)
    for tasks in ("1", "2"):
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", tasks)
        with nullcontext() if tasks == "2" else pytest.raises(ValueError, match=r"hydra\.launcher\.tasks_per_node"):
            sweeps.keep_to_one_process(job)  # which srun has started
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    for devices in ("auto", 1, [0], "1", -1):
        job.trainer.devices = devices
        sweeps.keep_to_one_process(job)


def test_the_table_is_best_first_in_either_direction():
    def jobs(mode):
        return [
            {"overrides": ["decoder=lstm", f"seed={i}"], "state": "finished", "best": best, "mode": mode, "CIDEr": best}
            for i, best in enumerate([0.2, math.nan, 0.3])
        ]

    columns, rows = summary(jobs("max"))
    assert columns == ["seed", "best", "CIDEr", "epochs", "minutes", "state"]
    assert [row["seed"] for row in rows] == ["2", "0", "1"]
    assert [row["seed"] for row in summary(jobs("min"))[1]] == ["0", "2", "1"]


def test_a_job_that_failed_before_its_run_was_known_has_a_row():
    note = {"run": None, "overrides": ["seed=1"], "state": "failed", "score": None, "error": "no such file"}
    assert job_row(note, "val") == {"overrides": ["seed=1"], "state": "failed", "error": "no such file"}
