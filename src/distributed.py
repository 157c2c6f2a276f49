"""Several processes that do one piece of work: how they are started, which of them this is, how they wait for each
other. On a GPU each they exchange tensors by NCCL, on CPUs by gloo; what they write goes through a folder that all see.
"""

import logging
import os
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from joblib import cpu_count
from pytorch_lightning.plugins.environments import SLURMEnvironment
from torch import distributed

log = logging.getLogger(__name__)

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others, captioning and scoring; training has a field for it."""


class Place(NamedTuple):
    """Which of several processes one is."""

    rank: int = 0
    """Among all, from 0."""
    world: int = 1
    """How many there are."""
    local: int = 0
    """Among those of this machine, from 0."""


def place() -> Place:
    """This process's, from what started it: torchrun, srun, Lightning, or `launch`; alone otherwise."""
    said = os.environ
    if distributed.is_available() and distributed.is_initialized():
        local = said.get("LOCAL_RANK", said.get("SLURM_LOCALID", 0))
        return Place(distributed.get_rank(), distributed.get_world_size(), int(local))
    if "RANK" in said and "WORLD_SIZE" in said:
        return Place(int(said["RANK"]), int(said["WORLD_SIZE"]), int(said.get("LOCAL_RANK", 0)))
    if "SLURM_STEP_NUM_TASKS" in said:  # of an srun; a job's own script has none
        return Place(int(said["SLURM_PROCID"]), int(said["SLURM_STEP_NUM_TASKS"]), int(said["SLURM_LOCALID"]))
    return Place()


def launch(processes: int, module: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `python -m MODULE ARGUMENTS` (this command's own) in so many processes of this machine, as torchrun does, and
    end as they end: where one fails, the others are stopped. On a CPU each gets its share of the cores: threads that
    outnumber the cores wait for each other, spinning, and are many times slower."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        max_restarts=0,
        monitor_interval=0.5,
    )
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the process says itself what is wrong
    try:
        elastic_launch(config, sys.executable)("-m", module, *(sys.argv[1:] if arguments is None else arguments))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            print(f"error: process {rank} was ended by signal {-failure.exitcode}", file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 1)
    sys.exit(0)


@contextmanager
def together() -> Iterator[Place]:
    """For a `with` block, be one of the processes that were started together, if there are several: `barrier` then
    waits for all. Those that train together are so already."""
    here = place()
    alone = here.world == 1 or distributed.is_initialized()
    if not alone:
        if "MASTER_ADDR" not in os.environ:
            cluster = SLURMEnvironment(auto_requeue=False)
            os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = cluster.main_address, str(cluster.main_port)
        distributed.init_process_group("gloo", rank=here.rank, world_size=here.world, timeout=PATIENCE)
    try:
        yield here
    finally:
        if not alone:
            distributed.destroy_process_group()


def barrier() -> None:
    """Wait until all processes are here.

    Raises:
        RuntimeError: one of them has died.
    """
    if distributed.is_available() and distributed.is_initialized():
        try:
            distributed.barrier()
        except RuntimeError as error:
            raise RuntimeError("another of the processes has died, and says why itself") from error


def device_of(kind: str, here: Place) -> str:
    """The device of a kind that is this process's own: of several GPUs its own one."""
    return f"cuda:{here.local % torch.cuda.device_count()}" if kind == "cuda" and here.world > 1 else kind


def exchange(part: Mapping[str, Any], folder: Path, here: Place) -> list[dict[str, Any]]:
    """Give the first process what each of them has found: it returns their parts in the ranks' order, the others
    nothing. A part is tensors and plain values; it passes through a file in `folder`.

    Raises:
        RuntimeError: a process has died.
    """
    if here.world == 1:
        return [dict(part)]

    def path(rank: int) -> Path:
        return folder / f"part-{rank}-of-{here.world}.pt"

    partial = path(here.rank).with_suffix(".partial")
    torch.save(dict(part), partial)
    os.replace(partial, path(here.rank))
    barrier()
    if here.rank:
        return []
    parts = [torch.load(path(rank), weights_only=True) for rank in range(here.world)]
    for rank in range(here.world):
        path(rank).unlink()
    return parts


def only_warnings() -> None:
    """Have every process but the first say only what is wrong: the first one's log is that of all."""
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    for handler in root.handlers[:]:
        if isinstance(handler, logging.FileHandler):
            root.removeHandler(handler)
            handler.close()
