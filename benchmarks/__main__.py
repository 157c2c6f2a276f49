"""All that the project says of its speed, measured: `python -m benchmarks`, or `make bench`.

The attention decoder beside a textbook's and Hugging Face `generate`, its parts, the share of rewards in a
self-critical step, the feature cache, a step of fine-tuning, and a whole evaluation. Prints one table, and writes JSON
with the machine's description. Wants a quiet machine, and a quarter of an hour.
`benchmarks/sweep.py` stays apart.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import decoder, evaluation, features, fine_tuning, parts, rewards
from benchmarks.measuring import Row, machine, table, use_cores, warn_unless_quiet
from src.files import write_atomically

PARTS = ("decoder", "parts", "rewards", "features", "fine_tuning", "evaluation")


def feature_cache(repeats: int, cores: int) -> tuple[list[dict[str, Any]], list[Row]]:
    """The feature cache's build, for each size of picture."""
    measured, rows = [], []
    for size in features.SIZES:
        one = features.measure(size, repeats=repeats, threads=cores)
        rates = one["images/s"]
        build, what = f"{rates['build']:.1f} images/s", f"feature cache, JPEGs of {size[0]} × {size[1]}"
        rows.append(Row(f"{what}, beside the plain loop", build, f"{rates['loop']:.1f} images/s", one["ratio"]))
        rows.append(Row("  of what its cores allow", build, f"{rates['allowed']:.1f} images/s", one["share"], 0.9))
        measured.append(one)
    return measured, rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n\n")[1])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts alone")
    parser.add_argument("--repeats", type=int, default=5, help="readings of each; of the evaluation 3 (%(default)s)")
    parser.add_argument("--cores", type=int, default=2, help="that all may use (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/bench.json"), metavar="FILE", help="(%(default)s)")
    options = parser.parse_args(arguments)
    use_cores(options.cores)
    results: dict[str, Any] = {"machine": machine()}
    warn_unless_quiet(results["machine"])
    rows: list[Row] = []
    options.output.parent.mkdir(parents=True, exist_ok=True)

    def keep(part: str, measured: Any, found: list[Row]) -> None:
        results[part] = measured
        rows.extend(found)
        write_atomically(options.output, json.dumps(results, indent=2) + "\n")
        print(f"{part} done", file=sys.stderr, flush=True)

    if "decoder" in options.only:
        measured = {name: decoder.measure(name, options.repeats) for name in decoder.SETTINGS}
        keep("decoder", measured, [row for name, each in measured.items() for row in decoder.rows(name, each)])
    if "parts" in options.only:
        measured = {name: parts.measure(name, options.repeats) for name in decoder.SETTINGS}
        keep("parts", measured, [row for name, each in measured.items() for row in parts.rows(name, each)])
    if "rewards" in options.only:
        measured = rewards.every_mix(decoder.SETTINGS["49x1280"], options.repeats)
        keep("rewards", measured, rewards.rows(measured))
    if "features" in options.only:
        keep("features", *feature_cache(options.repeats, options.cores))
    if "fine_tuning" in options.only:
        measured = fine_tuning.measure(options.repeats)
        keep("fine_tuning", measured, fine_tuning.rows(measured))
    if "evaluation" in options.only:
        measured = evaluation.measure(repeats=min(options.repeats, 3))
        keep("evaluation", measured, evaluation.rows(measured))
    described = results["machine"]
    print(
        f"{described['cpu']}, {described['cores']} cores, {described['memory_gb']} GB, torch {described['torch']}, "
        f"{described['precision']}, {described['code']}, {described['date'][:10]}\n\n{table(rows)}\n\n"
        "medians; in brackets the batch, and the memory that a first call takes above what was there before"
    )
    warn_unless_quiet(described)
    return 0


if __name__ == "__main__":
    sys.exit(main())
