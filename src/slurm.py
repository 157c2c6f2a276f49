"""What a training knows of SLURM (https://slurm.schedmd.com), in whose job it runs. Nothing here imports torch."""

import json
import logging
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def job() -> str | None:
    """This job's number, of an array's job with its own, such as `17_3`; None outside of jobs."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def was_requeued(status: Path) -> bool:
    """Whether this job has been put back in the queue since it began the run whose record `status` is."""
    return bool(int(os.environ.get("SLURM_RESTART_COUNT") or 0)) and is_own(status)


def is_own(status: Path) -> bool:
    """Whether it is this job that trains, or last trained, the run whose record `status` is."""
    if job() is None:
        return False
    try:
        return json.loads(status.read_text(encoding="utf-8")).get("job") == job()
    except (OSError, ValueError, AttributeError):
        return False


def requeue() -> None:
    """Put this job back in the queue, which ends it; nothing outside of jobs."""
    number = job()
    if number is None:
        return
    try:
        done = subprocess.run(["scontrol", "requeue", number], capture_output=True, text=True, timeout=60)
        problem = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        log.error("scontrol requeue %s: %s; submit it again, with ckpt=last", number, problem)
    else:
        log.info("job %s is back in the queue", number)


def with_srun() -> bool:
    """Whether `srun` has started the processes that train together: not a job's own script, where `src.train` starts
    them as anywhere else, nor what it or torchrun has started."""
    started = "TORCHELASTIC_RUN_ID" in os.environ
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")  # a shell, which is a step, too
    # One alone needs nothing of it; and a script that was submitted from within a step has that step's variables.
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1 and not started and not interactive


def plugins() -> list[Any]:
    """For Lightning's Trainer, what started this process. Lightning takes every process of a job for one of `srun`, so
    that in a script each would train alone; and its own handlers of signals would save elsewhere, and not wait for a
    step's end."""
    from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    if with_srun():
        return [SLURMEnvironment(auto_requeue=False)]
    if "SLURM_NTASKS" in os.environ:
        return [TorchElasticEnvironment() if TorchElasticEnvironment.detect() else LightningEnvironment()]
    return []


def on_cluster(options: Mapping[str, Any]) -> dict[str, Any]:
    """Lightning's options for its Trainer, with as many nodes, and processes on each, as `srun` has started, where they
    are left open."""
    options, environment = dict(options), os.environ
    if not with_srun():
        return options
    tasks, nodes = int(environment["SLURM_NTASKS"]), int(environment.get("SLURM_NNODES") or 1)
    if options.get("num_nodes", 1) == 1:
        options["num_nodes"] = nodes
    if options.get("devices", "auto") == "auto":
        options["devices"] = int(environment.get("SLURM_NTASKS_PER_NODE") or max(1, tasks // nodes))
    return options
