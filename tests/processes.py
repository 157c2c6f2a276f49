"""Commands in processes of their own, that can be killed, of which each starts in a moment: a server that has imported
everything forks them (https://docs.python.org/3/library/multiprocessing.html#contexts-and-start-methods)."""

import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["src.train", "src.metrics.captions"])


def _call(arguments: list[str], log: Path, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    from src import train

    torch.set_num_threads(1)
    sys.argv = ["src.train", *arguments]
    train.main()


def start(arguments: list[str], log: Path, **environment: str) -> BaseProcess:
    """`python -m src.train` with these arguments; what it says is added to `log`."""
    process = FORKING.Process(target=_call, args=(arguments, log, environment))
    process.start()
    return process


def call(arguments: list[str], log: Path, expect: int = 0, **environment: str) -> str:
    """The same to its end: what it and others said in `log`."""
    process = start(arguments, log, **environment)
    process.join(300)
    said = log.read_text()
    assert process.exitcode == expect, said[-5000:]
    return said
