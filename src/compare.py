"""Captioners beside a first one, on the same pictures: `python -m src.compare runs/a runs/b`.

Nothing here imports torch, so that the table is there at once.
"""

import argparse
import csv
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from src.files import write_atomically
from src.metrics import is_fraction
from src.ranges import at_least
from src.runs import csv_table, markdown_table, text_table

SAME = {
    "references": "other pictures or references",
    "split": "another split",
    "tokenization": "captions divided into words otherwise",
}
"""What of meta.json has to agree, and what it means where it does not."""


class Evaluated(NamedTuple):
    """One evaluation's scores by picture."""

    name: str
    meta: dict[str, Any]
    scores: dict[str, float]
    """{image: score}"""


def read_evaluation(path: Path, split: str, score: str) -> Evaluated:
    """The scores by picture of an evaluation's folder, or of a run's evaluation of `split`.

    Raises:
        ValueError: there is none, or not of that score, or it is damaged; names the file.
    """
    folder = path if (path / "per_image.csv").exists() else path / "eval" / split
    table, note = folder / "per_image.csv", folder / "meta.json"
    if not table.exists() or not note.exists():
        raise ValueError(
            f"{folder}: no evaluation there: python -m src.evaluate model={path} … output={folder} makes one"
        )
    try:
        meta = json.loads(note.read_text(encoding="utf-8"))
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if rows and score not in rows[0]:
            there = ", ".join(name for name in rows[0] if name not in ("image", "caption"))
            raise ValueError(f"no {score} of single pictures; there are {there}")
        scores = {row["image"]: float(row[score]) for row in rows}
        if not all(map(math.isfinite, scores.values())) or not scores:
            raise ValueError(f"no number for {score} in every row; evaluate anew" if scores else "empty; evaluate anew")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{table}: {error}") from error
    return Evaluated(str(path), meta, scores)


def check_same(first: Evaluated, other: Evaluated) -> None:
    """Refuse to compare scores that stand for different things.

    Raises:
        ValueError: says what differs.
    """
    for key, meaning in SAME.items():
        if first.meta.get(key) != other.meta.get(key):
            raise ValueError(
                f"{other.name} and {first.name} cannot be compared: {meaning} "
                f"({key}: {other.meta.get(key)}, {first.meta.get(key)}); evaluate both with the same data"
            )
    if first.scores.keys() != other.scores.keys():
        missing = sorted(first.scores.keys() ^ other.scores.keys())
        raise ValueError(f"{other.name} and {first.name} are of different pictures, such as {missing[0]}")


def bootstrap(differences: np.ndarray, draws: int = 10_000, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """The percentile interval of a mean of paired differences, pictures drawn with replacement (Efron, 1979,
    https://doi.org/10.1214/aos/1176344552; for paired systems Koehn, 2004, https://aclanthology.org/W04-3250).

    Args:
        differences: (N,) one a picture.
        draws: how often N pictures are drawn.
        level: the share of the drawn means inside, in (0, 1).
        seed: of the drawing.
    """
    at_least(1, "compare", draws=draws, pictures=len(differences))
    random = np.random.default_rng(seed)
    # How often each picture is drawn is all that a mean needs: 200 at a time bound the memory.
    chances = np.full(len(differences), 1 / len(differences))
    means = np.concatenate(
        [
            random.multinomial(len(differences), chances, size=min(200, draws - done)) @ differences
            for done in range(0, draws, 200)
        ]
    )
    low, high = np.quantile(means / len(differences), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def compared(evaluations: Sequence[Evaluated], score: str, draws: int, seed: int) -> list[dict[str, Any]]:
    """One row an evaluation: its mean score, and how much it differs from the first's, with a 95 % interval.

    Raises:
        ValueError: two of them are not of the same pictures, references and tokenization.
    """
    first, *others = evaluations
    names = list(first.scores)
    base = np.array([first.scores[name] for name in names])
    rows: list[dict[str, Any]] = [{"captioner": first.name, score: float(base.mean())}]
    scale = 100 if is_fraction(score) else 1
    for other in others:
        check_same(first, other)
        differences = np.array([other.scores[name] for name in names]) - base
        low, high = bootstrap(differences, draws, seed=seed)
        mean = float(differences.mean())
        rows.append(
            {
                "captioner": other.name,
                score: float(base.mean()) + mean,
                "difference": f"{scale * mean:+.1f}",
                "95 % interval": f"{scale * low:+.1f} … {scale * high:+.1f}",
                "relative": f"{100 * mean / base.mean():+.1f} %" if base.mean() else "",
                "differs": "yes" if low > 0 or high < 0 else "not shown",
            }
        )
    return rows


EXAMPLES = """examples:
  python -m src.compare runs/base runs/rewarded                      CIDEr-D on the validation split
  python -m src.compare runs/base runs/other --split test --score ROUGE_L
  python -m src.compare runs/base/eval/greedy runs/base/eval/val     two searches of one captioner: evaluations' folders

Scores are means over pictures of single captions' scores (for CIDEr and ROUGE_L the corpus score itself), × 100. The
interval is of the paired bootstrap over pictures: another training, with another seed, is not in it.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m src.compare",
        description="Compare captioners with a first one, with confidence intervals.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("first", type=Path, help="a run's folder or an evaluation's, which the others are held against")
    result.add_argument("others", type=Path, nargs="+", help="further ones")
    result.add_argument("--split", default="val", help="of runs, which evaluation in eval/ (%(default)s)")
    result.add_argument("--score", default="CIDEr", help="a column of per_image.csv (%(default)s)")
    result.add_argument("--draws", type=int, default=10_000, help="of the bootstrap (%(default)s)")
    result.add_argument("--seed", type=int, default=0, help="of the bootstrap (%(default)s)")
    form = result.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print a table for a README")
    form.add_argument("--csv", type=Path, metavar="FILE", help="write CSV instead")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for a wrong call."""
    options = parser().parse_args(arguments)
    try:
        paths = [options.first, *options.others]
        evaluations = [read_evaluation(path, options.split, options.score) for path in paths]
        rows = compared(evaluations, options.score, options.draws, options.seed)
        columns = list(rows[1])
        if options.csv:
            write_atomically(options.csv, csv_table(columns, rows))
            print(f"{len(rows)} captioners: {options.csv}")
        else:
            print((markdown_table if options.markdown else text_table)(columns, rows))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
