"""Commands in processes of their own, that can be killed, of which each starts in a moment: a server that has imported
everything forks them (https://docs.python.org/3/library/multiprocessing.html#contexts-and-start-methods)."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["src.train", "src.metrics.captions"])


class Stop(NamedTuple):
    """A signal that a process sends itself in the midst of a step."""

    step: str
    """`training_step`, `validation_step` or another method of CaptioningModule."""
    number: int
    """Which, from 1, counted over the epochs of this process."""
    signal: int = signal.SIGTERM


def _call(
    arguments: list[str], log: Path, stop: Stop | None, limit: int | None, environment: Mapping[str, str]
) -> None:
    os.environ.update(environment)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    from src import train
    from src.training import CaptioningModule

    torch.set_num_threads(1)
    rank_zero_only.rank = int(os.environ.get("RANK", 0))
    if limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if stop is not None:
        step, calls = getattr(CaptioningModule, stop.step), 0

        def stopping(*values: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == stop.number:
                os.kill(os.getpid(), stop.signal)
            return step(*values)

        setattr(CaptioningModule, stop.step, stopping)
    sys.argv = ["src.train", *arguments]
    train.main()


def start(
    arguments: list[str], log: Path, stop: Stop | None = None, limit: int | None = None, **environment: str
) -> BaseProcess:
    """`python -m src.train` with these arguments; what it says is added to `log`. No file can grow beyond `limit`."""
    process = FORKING.Process(target=_call, args=(arguments, log, stop, limit, environment))
    process.start()
    return process


def call(
    arguments: list[str],
    log: Path,
    expect: int = 0,
    stop: Stop | None = None,
    limit: int | None = None,
    **environment: str,
) -> str:
    """The same to its end: what it and others said in `log`."""
    process = start(arguments, log, stop, limit, **environment)
    process.join(300)
    said = log.read_text()
    assert process.exitcode == expect, (process.exitcode, said[-5000:])
    return said
