"""What a sweep (`python -m src.train -m …`) adds to its jobs: each keeps to its share of the machine, fails alone, and
takes up what an earlier call has trained; at the end there is one table of all."""

import functools
import gc
import json
import logging
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from joblib import cpu_count
from omegaconf import DictConfig, ListConfig

from src import slurm
from src.config import NOT_IN_NAME, called, given_fields, plain
from src.files import locked, write_atomically
from src.initial import started
from src.interruption import is_first
from src.runs import (
    LOCK,
    SCORES,
    STATUS,
    Row,
    csv_table,
    flat,
    in_order,
    is_locked,
    last_checkpoint,
    markdown_table,
    read_run,
    run_folder,
    sentence,
    text_table,
)
from src.trials import JobTrial, is_study

log = logging.getLogger(__name__)

NOTE = "job.json"
"""In each job's folder of the sweep: its run, overrides, state, score and error."""

# ---------------------------------------------------------------- a job


def sweep_job(main: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Make an entry point a good job of a sweep; a single run is left as it is.

    A job that fails returns NaN, says one sentence and leaves its traceback in its log file: the sweep goes on, and
    ends with a non-zero status. A run that an earlier sweep finished is not trained again; one that was stopped goes on
    from its last checkpoint. The job of a study's trial says there how it ended.
    """

    @functools.wraps(main)
    def wrapped(config: DictConfig) -> Any:
        return _job(main, config) if HydraConfig.get().mode == RunMode.MULTIRUN else main(config)

    return wrapped


def _job(main: Callable[[DictConfig], Any], config: DictConfig) -> float | None:
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    trial = JobTrial.of_this_job()
    if (folder / NOTE).exists():  # launched again, because a job's process was killed, perhaps this one's
        done = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        if done["state"] != "running":  # else a cluster has put it back in its queue, or this is another rank of it
            if trial:
                trial.ended(done["state"], done["score"], done.get("error"))
            return math.nan if done["state"] == "failed" else done["score"]
    note = note_start(folder, called()["overrides"])
    try:
        run = run_folder(config)
        note["run"] = str(run)
        _write(folder, note)
        if trial:
            trial.began(run, folder)
            wait_for_others(run)
        keep_to_share(config, hydra.job.num, hydra.launcher.get("n_jobs", 1))
        keep_to_one_process(config)
        if take_up(config, run):
            note |= {"state": "reused", "score": json.loads((run / STATUS).read_text()).get("best")}
            log.info("%s is finished already", run)
        else:
            note |= {"score": main(config), "state": "pruned" if trial and is_pruned(run) else "finished"}
    except Exception as error:
        note |= {"state": "failed", "error": sentence(error)}
        with (folder / f"{hydra.job.name}.log").open("a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
        log.error("job %s failed: %s", hydra.job.num, note["error"])
    _write(folder, note)
    if trial:
        trial.ended(note["state"], note["score"], note.get("error"))
    gc.collect()  # the next job in this process needs the memory
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return math.nan if note["state"] == "failed" else note["score"]


def note_start(folder: Path, overrides: Sequence[str]) -> Row:
    """Write, and return, a job's note that it has begun."""
    note: Row = {"state": "running", "overrides": list(overrides), "run": None, "score": None}
    _write(folder, note)
    return note


def _write(folder: Path, note: Mapping[str, Any]) -> None:
    if is_first():
        write_atomically(folder / NOTE, json.dumps(note, indent=2) + "\n")


def wait_for_others(run: Path) -> None:
    """Wait while another job trains `run`: of a trial with the same values, or of a lost one that still runs. Where a
    job is of several processes, the first of them may by now be training it, which the others are not to wait for."""
    if is_first() and is_locked(run / LOCK):
        with locked(run / LOCK, f"it trains {run}"):
            pass
    while not is_first() and is_locked(run / LOCK) and not slurm.is_own(run / STATUS):
        time.sleep(0.5)


def keep_to_share(config: DictConfig, job: int, jobs: int) -> None:
    """Keep a job that runs beside others to its share of the cores, and to one GPU: processes that together have more
    threads than cores wait for each other, spinning, and are many times slower.

    Args:
        config: its loading processes and devices are changed in place.
        job: its number in the sweep.
        jobs: how many run at once; negative as joblib counts: -1 is one a core.
    """
    cores = cpu_count()
    jobs = jobs if jobs > 0 else max(1, cores + 1 + jobs)
    if jobs == 1:
        return
    share = max(1, cores // jobs)
    torch.set_num_threads(min(torch.get_num_threads(), share))
    log.info("one of %d jobs at once on %d cores: %d threads", jobs, cores, torch.get_num_threads())
    config.data.workers = min(config.data.workers, share)
    gpus = torch.cuda.device_count()
    if gpus > 1 and config.trainer.devices == "auto" and config.trainer.accelerator in ("auto", "gpu", "cuda"):
        torch.cuda.set_device(job % gpus)
        config.trainer.devices = [job % gpus]


def keep_to_one_process(config: DictConfig) -> None:
    """A job that is a call of a function here is one process: the processes that Lightning starts for further devices
    would each call the whole sweep. SLURM starts a job's processes itself, where they are several.

    Raises:
        ValueError: the job asks for several devices.
    """
    if slurm.with_srun():
        return
    devices, several = config.trainer.devices, torch.cuda.device_count() > 1
    if devices == "auto":
        config.trainer.devices = 1 if several else devices
        return
    counted = len([d for d in devices.split(",") if d]) if isinstance(devices, str) and "," in devices else devices
    number = len(counted) if isinstance(counted, ListConfig) else int(counted)
    if number > 1 or (number == -1 and several) or config.trainer.get("num_nodes", 1) > 1:
        raise ValueError(
            f"trainer.devices={devices} in a sweep: its jobs have one device each (hydra/launcher=parallel takes turns "
            "on GPUs; for hydra/launcher=slurm set hydra.launcher.tasks_per_node); call trainings of several one by"
            " one"
        )


def is_pruned(run: Path) -> bool:
    """Whether a run was ended early because its study had better ones."""
    return (run / STATUS).exists() and json.loads((run / STATUS).read_text(encoding="utf-8"))["state"] == "pruned"


def take_up(config: DictConfig, run: Path) -> bool:
    """Whether `run` has been trained to the end, with all that is to be evaluated; one that was stopped is set to go on
    from its last checkpoint.

    Raises:
        ValueError: `run` holds another training.
    """
    if config.overwrite or config.ckpt is not None or config.trainer.get("fast_dev_run"):
        return False
    there = (run / "config.yaml").exists() and last_checkpoint(run).exists()
    if not there:
        return False
    wanted, _ = started(plain(config), given_fields())
    found = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    mine, its = (flat({part: c[part] for part in c if part != "logger"}) for c in (wanted, found))
    for key in sorted((mine.keys() | its.keys()) - NOT_IN_NAME):
        if mine.get(key) != its.get(key):
            raise ValueError(
                f"{run} holds a training with {key}={its.get(key)}, not {mine.get(key)}: choose another name, or "
                "overwrite=true"
            )
    config.ckpt = "last"
    status = run / STATUS
    finished = status.exists() and json.loads(status.read_text(encoding="utf-8"))["state"] == "finished"
    return finished and set(wanted["evaluate_splits"] or ()) <= set(found["evaluate_splits"] or ())


# ---------------------------------------------------------------- the sweep


def fail_running_jobs(sweep: str, error: str) -> list[Path]:
    """Note as failed, by this error, all jobs that were running when their processes were killed; returns their
    notes."""
    lost = []
    for path in _notes(Path(sweep)):
        note = json.loads(path.read_text(encoding="utf-8"))
        if note["state"] == "running":
            note |= {"state": "failed", "error": error}
            _write(path.parent, note)
            log.error("job %s failed: %s", path.parent.name, note["error"])
            lost.append(path)
    return lost


def _notes(sweep: Path) -> list[Path]:
    return sorted(sweep.rglob(NOTE))


class SweepSummary(Callback):
    """Hydra's callback that prints a sweep's table, writes it to the sweep's folder as summary.csv and summary.md, and
    ends the process with status 1 if a job failed."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        if is_study(config.hydra.sweeper):  # its sweeper takes a folder of its own
            return
        for note in _notes(Path(config.hydra.sweep.dir)):  # of an earlier sweep in this folder
            note.unlink()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        sweep = Path(config.hydra.sweep.dir)
        paths = _notes(sweep)
        if not paths:
            return
        splits = config.get("evaluate_splits") or ["val"]
        rows = [job_row(json.loads(path.read_text(encoding="utf-8")), splits[-1]) for path in paths]
        columns, rows = summary(rows)
        write_atomically(sweep / "summary.csv", csv_table([*columns, "run", "error"], rows))
        write_atomically(sweep / "summary.md", markdown_table([*columns, "run"], rows) + "\n")
        monitor = next((row["monitor"] for row in rows if row.get("monitor")), None)
        best = f"best: {monitor}; others: " if monitor else ""
        print(f"\n{len(rows)} jobs, best first ({best}scores on {splits[-1]}; × 100):")
        print(text_table(columns, rows))
        failed = [row for row in rows if row["state"] == "failed"]
        for row in failed:
            what = " ".join(f"{key}={row[key]}" for key in columns if key in settings(row))
            print(f"failed: {what or row.get('run') or ' '.join(row['overrides'])}: {row['error']}")
        if failed and not is_study(config.hydra.sweeper):
            print("The same call again tries these anew and keeps the others.")
        print(f"{sweep / 'summary.csv'}, summary.md beside it; each job's log is in its folder there", flush=True)
        if failed:
            raise SystemExit(1)  # Hydra turns other exceptions of a callback into warnings


def job_row(note: Mapping[str, Any], split: str) -> Row:
    """A job's row: what its run recorded, and the job's own state."""
    row: Row = {}
    if note["run"] is not None and note["state"] != "failed":
        row = read_run(Path(note["run"]), note["run"], split)
    return {**row, **{key: value for key, value in note.items() if value is not None and key != "score"}}


def summary(rows: list[Row]) -> tuple[list[str], list[Row]]:
    """Columns and rows of a sweep's table, best first: what differed between the jobs, and what came of it."""
    keys = list(dict.fromkeys(key for row in rows for key in settings(row)))
    differed = [key for key in keys if len({settings(row).get(key) for row in rows}) > 1]
    shown = [{**row, **{key: settings(row).get(key) for key in differed}} for row in rows]
    scores = [name for name in SCORES if any(name in row for row in rows)]
    smallest = any(row.get("mode") == "min" for row in rows)
    return [*differed, "best", *scores, "epochs", "minutes", "state"], in_order(shown, "best" if smallest else "-best")


def settings(row: Row) -> dict[str, str]:
    """A job's overrides by their keys."""
    return dict(override.lstrip("+~").partition("=")[::2] for override in row["overrides"])
