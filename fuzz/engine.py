"""One target, fed with damaged inputs in a process of its own: `python -m fuzz.engine TARGET …`, which
`python -m fuzz` starts."""

import argparse
import faulthandler
import gc
import hashlib
import importlib.util
import json
import logging
import mmap
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

SLOW = 5.0
"""Seconds of computing in which any input must have its answer."""
STUCK = 60
"""Seconds after which a process that no signal reaches is given up."""
ROOM = 3 << 30
"""Bytes of address space above those of the start that an input may take; what takes more fails."""
GROWTH = 300 << 20
"""Bytes of memory that may be held more at the end than after the first inputs."""
LONGEST = 1 << 16
"""Bytes of an input."""
REPLAY = "OMP_NUM_THREADS=1 python -m fuzz.engine {target} --replay {file}"


class Slow(BaseException):
    """An input that took too long. No `except Exception` of a target hides it."""


# ---------------------------------------------------------------- mutating

TOKENS = (
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\r",
    b"\n",
    b"\t",
    b'"',
    b"'",
    b"\\",
    b"../",
    b"/",
    b"|",
    b"<eos>",
    b"\xe2\x80\xae",
    b"\x1b[2J",
    b"\xcc\x81" * 30,
    b"[" * 3000,
    b"{" * 3000,
    b"1e999",
    b"NaN",
    b"-1",
    b"null",
    b"true",
    b"99999999999999999999",
    b"1" * 5000,
    b"1000000000000",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff",
    b"\\ud800",
    b"!!python/object/apply:os.system",
    b"*a",
    b"&a",
    b"file:///etc/passwd",
    b"<script>",
    b"a" * 4096,
)


def mutated(rng: random.Random, seeds: Sequence[bytes], tokens: Sequence[bytes] = TOKENS) -> bytes:
    """A seed with one to six changes: bits, bytes, numbers, runs that are cut, doubled, moved or taken of another
    seed, and tokens that are known to hurt."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(9)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 2:
            width, value = rng.choice((1, 2, 4, 8)), rng.choice((0, 1, 2**7, 2**15, 2**31 - 1, 2**32 - 1, 2**63 - 1))
            order = rng.choice(("little", "big"))
            data[at : at + width] = (value % 256**width).to_bytes(width, order)  # type: ignore[arg-type]
        elif kind == 3:
            del data[at : at + rng.choice((1, 2, 8, 64, 512))]
        elif kind == 4:
            data[at:at] = data[at : at + rng.choice((1, 8, 64, 1024))] * rng.choice((1, 2, 30))
        elif kind == 5:
            del data[at:]
        elif kind == 6:
            other = rng.choice(seeds)
            start = rng.randrange(len(other) + 1)
            data[at : at + rng.choice((0, 16))] = other[start : start + rng.choice((4, 64, 1024))]
        else:
            data[at : at + rng.choice((0, 0, 1, 4))] = rng.choice(tokens)
    return bytes(data[:LONGEST])


# ---------------------------------------------------------------- running


class Run:
    """What is fed to a target, and what went wrong.

    Args:
        target: what takes the inputs.
        folder: for inputs that went wrong, and what is known while it runs.
        limits: whether memory and time are held to SLOW, ROOM and GROWTH.
    """

    def __init__(self, target: Any, folder: Path, limits: bool = True) -> None:
        self.target, self.folder, self.limits = target, folder, limits
        self.inputs, self.accepted, self.started = 0, 0, time.monotonic()
        self.slowest, self.base, self.edges = 0.0, 0, 0
        self.findings: dict[str, dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "current.bin"  # what a process that dies was given
        file.write_bytes(bytes(LONGEST + 8))
        with file.open("r+b") as opened:
            self.current = mmap.mmap(opened.fileno(), 0)
        if limits:
            signal.signal(signal.SIGPROF, self._slow)

    @staticmethod
    def _slow(*_: Any) -> NoReturn:
        raise Slow(f"no answer within {SLOW:g} s")

    def feed(self, data: bytes) -> None:
        """Give the target one input; whatever it raises that is not rightly so is a finding."""
        data = data[:LONGEST]
        self.current[:8] = len(data).to_bytes(8, "little")
        self.current[8 : 8 + len(data)] = data
        before = time.process_time()
        try:
            if self.limits:
                signal.setitimer(signal.ITIMER_PROF, SLOW)
                faulthandler.dump_traceback_later(STUCK, exit=True)
            self.accepted += bool(self.target.run(data))
        except self.target.rightly:
            pass
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self.finding(error, data)
        finally:
            if self.limits:
                signal.setitimer(signal.ITIMER_PROF, 0)
                faulthandler.cancel_dump_traceback_later()
        if (took := time.process_time() - before) > self.slowest:
            self.slowest = took
            (self.folder / "slowest.bin").write_bytes(data)
        self.inputs += 1
        if self.limits and self.inputs % 1000 == 0:
            self._look_at_memory(data)

    def finding(self, error: BaseException, data: bytes) -> None:
        """Note what went wrong, once for each kind and place, and keep the input."""
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "/src/" in frame.filename] or [
            frame for frame in frames if "/fuzz/" in frame.filename and frame.name != "holds"
        ]
        place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
        key = f"{type(error).__name__} at {place}"
        if key in self.findings:
            self.findings[key]["times"] += 1
            return
        file = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:8]}.bin"
        file.write_bytes(data)
        replay = REPLAY.format(target=self.target.name, file=file)
        self.findings[key] = {"what": key, "says": str(error)[:200], "times": 1, "replay": replay}
        file.with_suffix(".txt").write_text(
            f"{replay}\n\n{''.join(traceback.format_exception(error))}", encoding="utf-8", errors="backslashreplace"
        )

    def _look_at_memory(self, data: bytes) -> None:
        gc.collect()
        held = int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
        if self.inputs == 2000:
            self.base = held
        if self.base and held > self.base + GROWTH:
            self.finding(MemoryError(f"{(held - self.base) >> 20} MB more than after the first inputs"), data)

    def note(self, engine: str, seed: int, wanted: int) -> dict[str, Any]:
        """What is known of this run."""
        seconds = time.monotonic() - self.started
        return {
            "target": self.target.name,
            "engine": engine,
            "seed": seed,
            "wanted": wanted,
            "inputs": self.inputs,
            "accepted": self.accepted,
            "seconds": round(seconds, 1),
            "slowest_ms": round(1000 * self.slowest, 1),
            "findings": list(self.findings.values()),
        }


def replayed(target: Any, file: Path) -> int:
    """Give a target one kept input, with its traceback where it fails."""
    try:
        accepted = target.run(file.read_bytes())
    except target.rightly as error:
        print(f"refused, as it should be: {type(error).__name__}: {error}")
    else:
        print("accepted" if accepted else "refused")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one target; returns the exit status, 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.engine", description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--inputs", type=int)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--replay", type=Path)
    options = parser.parse_args(arguments)
    engine = _engine(options.target) if options.replay is None else "none"
    from fuzz.targets import TARGETS

    if engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=["src"], enable_loader_override=False):
            target = TARGETS[options.target]()  # which imports what it feeds
    else:
        target = TARGETS[options.target]()
    if options.replay is not None:
        return replayed(target, options.replay)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    seeds, wanted = list(target.seeds), options.inputs or target.inputs
    here = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (here + ROOM, resource.RLIM_INFINITY))
    run = Run(target, options.output / target.name)
    note = run.folder / "note.json"

    def ended() -> None:
        note.write_text(json.dumps(run.note(engine, options.seed, wanted)), encoding="utf-8")

    until, last = time.monotonic() + options.seconds, time.monotonic()
    ended()
    for data in seeds:
        run.feed(data)
    if engine == "atheris":
        corpus = run.folder / "corpus"
        corpus.mkdir(exist_ok=True)
        for data in seeds:
            (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)

        def one(data: bytes) -> None:
            nonlocal last
            run.feed(data)
            enough = run.inputs >= wanted or time.monotonic() > until
            if enough or time.monotonic() > last + 1:
                last = time.monotonic()
                ended()
            if enough:
                os._exit(int(bool(run.findings)))  # libFuzzer would count its own

        flags = ["-runs=-1", f"-seed={options.seed + 1}", f"-max_len={min(LONGEST, target.longest)}"]
        flags += ["-rss_limit_mb=0", "-detect_leaks=0", "-print_final_stats=1", "-verbosity=1"]
        # Time is ours to judge: 0 would end the run at an input that a whole second of the clock falls into.
        flags += [f"-timeout={20 * STUCK}", f"-artifact_prefix={run.folder}/"]

        def changed(data: bytes, most: int, number: int) -> bytes:
            rng = random.Random(number)  # half by libFuzzer's ways, half by ours
            return (target.mutate(rng, [data]) if rng.random() < 0.5 else atheris.Mutate(data, most))[:most]

        atheris.Setup([sys.argv[0], *flags, str(corpus)], one, custom_mutator=changed)
        atheris.Fuzz()  # which ends this process
    if target.draw is not None:

        def drawn(data: bytes) -> None:
            nonlocal last
            run.feed(data)
            if time.monotonic() > last + 1:
                last = time.monotonic()
                ended()

        target.draw(drawn, wanted, options.seed)
        ended()
        return int(bool(run.findings))
    rng = random.Random(options.seed)
    while run.inputs < wanted and time.monotonic() < until:
        run.feed(target.mutate(rng, seeds))
        if time.monotonic() > last + 1:
            last = time.monotonic()
            ended()
    ended()
    return int(bool(run.findings))


def _engine(target: str) -> str:
    """atheris, where it is installed and the target is one that its counters see; else our own."""
    from fuzz.names import GUIDED

    return "atheris" if target in GUIDED and importlib.util.find_spec("atheris") else "mutation"


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # threads of a target may still be waiting
