"""How much sooner eight runs are done with two workers than with one: `python -m benchmarks.sweep`.

The same sweep (two decoders × two seeds × two learning rates, on the built-in pictures over a frozen encoder, its
features cached) is called through the real command in fresh folders, by turns with one worker that has all cores and
with two that have half of them each. Prints a line a sweep, and writes JSON with --output. Wants a quiet machine.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SWEPT = ["decoder=lstm,lstm_attn", "seed=0,1", "optimizer.lr=0.001,0.003"]


def sweep(folder: Path, data: list[str], epochs: int, workers: int) -> dict[str, Any]:
    """One sweep in an empty folder: wall seconds, how often features were computed for each split, scores by job.

    Raises:
        RuntimeError: it failed; the message ends in what it said.
    """
    sizes = [
        "decoder.hidden=256",
        "embedding.size=256",
        "attention.width=256",
        "encoder.width=256",
        "data.batch_size=50",
    ]
    command = [
        *(sys.executable, "-m", "src.train", "-m", *SWEPT, *data, *sizes, f"trainer.max_epochs={epochs}", "logger=csv"),
        *(f"data.cache_dir={folder / 'cache'}", f"run_dir={folder}/${{name}}", f"hydra.sweep.dir={folder / 'sweep'}"),
        *("trainer.enable_progress_bar=false", "hydra/launcher=parallel", f"hydra.launcher.n_jobs={workers}"),
    ]
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"the sweep with {workers} workers failed:\n{(done.stdout + done.stderr)[-3000:]}")
    logs = "".join(log.read_text(encoding="utf-8") for log in (folder / "sweep").glob("*/train.log"))
    with (folder / "sweep" / "summary.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        "workers": workers,
        "seconds": seconds,
        "cache_builds": logs.count("feature cache: "),
        "job_seconds": sorted(60 * float(row["minutes"]) for row in rows),
        "best": {" ".join(row[key.split("=")[0]] for key in SWEPT): float(row["best"]) for row in rows},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, default=800, help="built-in pictures (%(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="of each run (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="sweeps with each number of workers (%(default)s)")
    parser.add_argument(
        "--cores", type=int, default=2, help="that all may use, where the system can say so (%(default)s)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    options = parser.parse_args(arguments)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    results = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = ["data=scenes", f"data.root={root / 'scenes'}", f"data.make.images={options.images}"]
        scenes = ["-m", "src.prepare", "scenes", str(root / "scenes"), "--images", str(options.images)]
        subprocess.run([sys.executable, *scenes], cwd=ROOT, check=True)
        for number in range(options.rounds):
            for workers in (1, 2) if number % 2 == 0 else (2, 1):
                place = root / f"{number}-{workers}"
                place.mkdir()
                results.append(sweep(place, data, options.epochs, workers))
                last = results[-1]
                low, high = last["job_seconds"][0], last["job_seconds"][-1]
                print(
                    f"round {number + 1}, {workers} worker{'s' if workers > 1 else ''}: {last['seconds']:6.1f} s; jobs "
                    f"{low:.0f} to {high:.0f} s each; features of the 2 splits computed {last['cache_builds']} times",
                    flush=True,
                )
    one, two = (sum(r["seconds"] for r in results if r["workers"] == w) / options.rounds for w in (1, 2))
    print(f"eight runs: {one:.1f} s with one worker, {two:.1f} s with two: {one / two:.2f} times as fast")
    if options.output:
        options.output.write_text(
            json.dumps({"settings": vars(options), "sweeps": results}, indent=2, default=str) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
