"""Several processes that do one piece of work: how they are started, which of them this is, how they wait for each
other. On a GPU each they exchange tensors by NCCL, on CPUs by gloo; what they write goes through a folder that all see.
"""

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from joblib import cpu_count
from torch import distributed

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others, captioning and scoring; training has a field for it."""
PASSED_ON = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
]
"""Signals that whoever starts processes passes on to them."""


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
    """Run `python -m MODULE ARGUMENTS` (this command's own) in so many processes of this machine, told what torchrun
    tells its own, and end as they end: signals are passed on to all, and where one fails, the others are ended. On a
    CPU each gets its share of the cores: threads that outnumber the cores wait for each other, spinning, and are many
    times slower."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // processes)))
    said = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": uuid.uuid4().hex}
    said |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "GROUP_RANK": "0"}
    children: list[subprocess.Popen[bytes]] = []

    def tell(number: int, _: Any = None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    for number in PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, tell)
    command = [sys.executable, "-m", module, *(sys.argv[1:] if arguments is None else arguments)]
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        # In a session of its own, so that a Ctrl-C comes once; and nobody's orphan.
        children.append(
            subprocess.Popen(command, env=os.environ | said | own, start_new_session=True, preexec_fn=_end_with_parent)
        )
    while any(child.poll() is None for child in children) and not any(child.poll() for child in children):
        time.sleep(0.1)
    failed = next((rank for rank, child in enumerate(children) if child.poll()), None)
    for number, seconds in ((0, 5), (signal.SIGTERM, 60), (signal.SIGKILL, 10)):  # most notice by themselves
        tell(number)
        until = time.monotonic() + seconds
        while any(child.poll() is None for child in children) and time.monotonic() < until:
            time.sleep(0.1)
    code = 0 if failed is None else children[failed].returncode
    if code < 0:
        print(f"error: process {failed} was ended by signal {-code}", file=sys.stderr)
    sys.exit(code if code >= 0 else 128 - code)


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    if _libc is not None:
        _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: what waits for a killed parent would wait for ever


@contextmanager
def together() -> Iterator[Place]:
    """For a `with` block, be one of the processes that were started together, if there are several: `barrier` then
    waits for all. Those that train together are so already."""
    here = place()
    alone = here.world == 1 or distributed.is_initialized()
    if not alone:
        if "MASTER_ADDR" not in os.environ:
            from pytorch_lightning.plugins.environments import SLURMEnvironment  # seconds, for one process too

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
