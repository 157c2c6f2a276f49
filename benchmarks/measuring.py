"""What the benchmarks share: readings in alternating order, peak memory, the machine, and the table."""

import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from src.config import keep_freed_memory, precision
from src.evaluation import code_version

QUIET = 0.5
"""Load above which a machine is not quiet, as processes that want a core."""


def alternate(ways: Mapping[str, Callable[[], Any]], repeats: int, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each way, `repeats` readings each, in the order A B B A …: what slows a machine down for a while, or
    more and more, slows all of them. `warm` rounds before are not counted."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(-warm, repeats):
        for way in list(ways) if number % 2 == 0 else reversed(list(ways)):
            start = time.perf_counter()
            ways[way]()
            if number >= 0:
                seconds[way].append(time.perf_counter() - start)
    return seconds


def spread(readings: Sequence[float]) -> dict[str, Any]:
    """The median with what it was taken from."""
    return {"median": statistics.median(readings), "min": min(readings), "max": max(readings), "all": list(readings)}


def peak_mb(run: Callable[[], Any]) -> float | None:
    """MB that the process holds at most during a call, above what it held before; None where the system cannot say.

    Call it in a fresh process: the peak is one of its whole life. It is read from /proc, since `ru_maxrss` survives
    exec: a small process started by a big one reports the big one's."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None

    def kilobytes(field: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(f"{field}:"))

    before = kilobytes("VmRSS")
    run()
    return (kilobytes("VmHWM") - before) / 1024


def use_cores(count: int) -> None:
    """Keep this process, and those that it starts, to so many cores, where the system can; and no more threads. All
    that is timed has the allocator that training has: the baseline is not slowed by the system's."""
    keep_freed_memory()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    torch.set_num_threads(min(count, torch.get_num_threads()))


def machine(arithmetic: str = "auto") -> dict[str, Any]:
    """What the figures were measured on, and whether it was quiet. Call it first: a benchmark is itself a load."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    cpuinfo, meminfo = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    models = [x.partition(":")[2].strip() for x in _lines(cpuinfo) if x.startswith("model name")]
    memory = [int(x.split()[1]) / 2**20 for x in _lines(meminfo) if x.startswith("MemTotal")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "memory_gb": round(memory[0], 1) if memory else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vector_units": torch.backends.cpu.get_cpu_capability(),
        "precision": precision(arithmetic, "cpu"),
        "load": load,
        "quiet": None if load is None else load <= QUIET,
        "code": code_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def warn_unless_quiet(described: Mapping[str, Any]) -> None:
    if described["quiet"] is False:
        print(
            f"WARNING: the machine is not quiet (load {described['load']:.2f}, above {QUIET}): other work runs on it, "
            "and these figures are not to be published.",
            file=sys.stderr,
            flush=True,
        )


class Row(NamedTuple):
    """A line of the table."""

    what: str
    ours: str
    baseline: str
    ratio: float | None = None
    floor: float | None = None
    aim: float | None = None
    at_most: bool = False
    """Whether floor and aim are upper limits."""

    @property
    def verdict(self) -> str:
        def reached(goal: float | None) -> bool:
            return goal is not None and (self.ratio <= goal if self.at_most else self.ratio >= goal)  # type: ignore[operator]

        if self.ratio is None or self.floor is None:
            return ""
        return "MISSED" if not reached(self.floor) else "met, aim too" if reached(self.aim) else "met"


def table(rows: Sequence[Row]) -> str:
    """Rows as text."""

    def goal(row: Row, value: float | None) -> str:
        return "" if value is None else f"{'≤' if row.at_most else '≥'} {value:g}"

    cells = [("what", "ours", "baseline", "ratio", "floor", "aim", "")]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        cells.append((row.what, row.ours, row.baseline, ratio, goal(row, row.floor), goal(row, row.aim), row.verdict))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
