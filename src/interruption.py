"""Signals that end a training in order: what is learned is saved, and the run can go on from there."""

import logging
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from pytorch_lightning.utilities.rank_zero import rank_zero_only

from src.slurm import requeue

log = logging.getLogger(__name__)

GO_ON_LATER = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""A cluster's warning that the time is nearly up (`sbatch --signal=USR1@120`): the job is to go back to the queue."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, *GO_ON_LATER)


class Interrupted(SystemExit):
    """A signal has ended the training. The process's exit status is the shell's for that signal, 128 and its number; of
    processes that train together, the first one's alone."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number if is_first() else 0)
        self.signal = signal.Signals(number)


def is_first() -> bool:
    """Whether this is the first of the processes that train together."""
    return getattr(rank_zero_only, "rank", 0) == 0


class Interruption:
    """While this context is entered, the first of `SIGNALS` ends the training by `Interrupted`: at once, or where it
    `waits`, when that asks for what was `received`. Later ones are heeded no more, so that they disturb no saving, but
    for a second Ctrl-C, which ends it at once.

    Where the signal was the cluster's warning, leaving the context puts the job back in the queue: by the handler that
    was there before, if that is submitit's, else by SLURM's `scontrol requeue`.
    """

    def __init__(self) -> None:
        self.received = 0  # the first signal's number
        self.waits = False  # whether somebody looks at `received` before long
        self.ending = False
        self.process = os.getpid()
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python leaves signals to no other
            there = {number: signal.getsignal(number) for number in SIGNALS}
            # What the caller ignores, as `nohup` and a shell's background jobs do, stays ignored.
            self.before = {number: handler for number, handler in there.items() if handler is not signal.SIG_IGN}
            self.listen()
        return self

    def listen(self) -> None:
        """Be the one who is told of signals, again: Lightning puts handlers of its own in the place of others', which
        exchange tensors between processes that may be anywhere."""
        for number in self.before:
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            return  # a loading process, which ends with its parent
        impatient = bool(self.received) and number == signal.SIGINT
        self.received = self.received or number
        if impatient or not (self.waits or self.ending):
            raise self.end()
        if not self.ending:  # written past Python's buffers, in which the signal may have come
            os.write(2, f"\n{signal.Signals(number).name}: ending when this step is saved\n".encode())

    def end(self) -> Interrupted:
        """What is to be raised."""
        self.ending = True
        return Interrupted(self.received)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if isinstance(error, Interrupted) and error.signal in GO_ON_LATER:
                handler = self.before.get(error.signal)
                if callable(handler):
                    handler(error.signal, None)
                elif is_first():
                    requeue()
        finally:
            for number, handler in self.before.items():
                signal.signal(number, handler)


def undisturbed(worker: int) -> None:
    """For loading processes, whom a terminal and a cluster signal together with their parent: they go on loading until
    that has saved, for half a minute at most."""
    for number in (signal.SIGINT, *GO_ON_LATER):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))  # by which a process ends
