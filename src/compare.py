"""Captioners beside a first one, on the same pictures: `python -m src.compare runs/a runs/b captions.tsv`.

Nothing here imports torch, so that the table is there at once.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from src.files import read_in_part, write_atomically
from src.metrics import is_fraction
from src.metrics.captions import METRICS
from src.predictions import read_predictions, read_references
from src.results import Evaluation, read_results, references_digest
from src.runs import csv_table, markdown_table, text_table
from src.scoring import Scorer, Scoring
from src.significance import Interval, bootstrap, holm, interval, randomization

SAME = {
    "references": "other pictures or references",
    "tokenization": "captions divided into words otherwise",
    "leave_one_out": "one of them against all references, one against all but one",
}
"""What of meta.json has to agree, and what it means where it does not."""
USUAL = ("Bleu_4", "METEOR", "ROUGE_L")
"""Scores shown besides, where all evaluations have them."""
LEVEL = 0.05
"""Below which a corrected p-value is called a difference."""


def check_same(first: Evaluation, other: Evaluation) -> None:
    """Refuse to compare scores that stand for different things.

    Raises:
        ValueError: says what differs.
    """
    for key, meaning in SAME.items():
        if (first.meta.get(key) or False) != (other.meta.get(key) or False):
            raise ValueError(
                f"{other.name} and {first.name} cannot be compared: {meaning} "
                f"({key}: {other.meta.get(key)}, {first.meta.get(key)}); evaluate both with the same data"
            )
    if list(first.captions) != list(other.captions):
        missing = sorted(first.captions.keys() ^ other.captions.keys()) or ["their order"]
        raise ValueError(f"{other.name} and {first.name} are of different pictures, such as {missing[0]}")


class Compared(NamedTuple):
    """One score of one captioner, and how it differs from the first one's."""

    score: float
    own: Interval
    difference: float = 0.0
    between: Interval | None = None
    """Of the difference; None of the first."""
    p: float | None = None
    """Of approximate randomization."""
    corrected: float | None = None
    """`p` after Holm's correction for the number of captioners that are compared with the first."""

    @property
    def differs(self) -> bool:
        """Whether a difference is shown."""
        return self.corrected is not None and self.corrected < LEVEL


def compared(
    evaluations: Sequence[Evaluation], scores: Sequence[str], draws: int, seed: int
) -> dict[str, list[Compared]]:
    """Some scores of each evaluation, with 95 % intervals, beside the first's; pictures are drawn once for all.

    Raises:
        ValueError: two of them are not of the same pictures, references and tokenization, or one lacks a score.
    """
    for evaluation in evaluations[1:]:
        check_same(evaluations[0], evaluation)
    systems = {score: [each.measured(score) for each in evaluations] for score in scores}
    drawn = iter(bootstrap([each for group in systems.values() for each in group], draws, seed))
    found: dict[str, list[Compared]] = {}
    for score, (first, *others) in systems.items():
        base = next(drawn)
        p_values = randomization(first, others, draws, seed) if others else []
        found[score] = [Compared(first.whole, interval(base))]
        for other, p, corrected in zip(others, p_values, holm(p_values), strict=True):
            own = next(drawn)
            row = Compared(other.whole, interval(own), other.whole - first.whole, interval(own - base), p, corrected)
            found[score].append(row)
    return found


def table(
    evaluations: Sequence[Evaluation], results: Mapping[str, Sequence[Compared]], main: str
) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows for people: the other scores, marked * where they differ, then the main one in detail."""
    rows = []
    for i, evaluation in enumerate(evaluations):
        row: dict[str, Any] = {"captioner": evaluation.name}
        for score, found in results.items():
            mark = "*" if found[i].differs and score != main else ""
            row[score] = f"{_scale(score) * found[i].score:.{_digits(score)}f}{mark}"
        own = results[main][i]
        row["95 %"] = _span(own.own, main, "")
        if own.between is not None:
            base = results[main][0].score
            row["difference"] = f"{_scale(main) * own.difference:+.{_digits(main)}f}"
            row["95 % of it"] = _span(own.between, main, "+")
            row["relative"] = f"{100 * own.difference / base:+.1f} %" if base else ""
            row["p"] = f"{own.p:.4f}"
            if len(evaluations) > 2:
                row["p, corrected"] = f"{own.corrected:.4f}"
            row["differs"] = "yes" if own.differs else "not shown"
        rows.append(row)
    order = ["captioner", *(score for score in results if score != main), main, "95 %"]
    return [*order, *(name for name in rows[-1] if name not in order)], rows


def _scale(score: str) -> int:
    return 100 if is_fraction(score) else 1


def _digits(score: str) -> int:
    return 1 if is_fraction(score) else 2


def _span(span: Interval, score: str, sign: str) -> str:
    # Adding 0 makes of -0.0 what it is.
    low, high = (round(_scale(score) * end, _digits(score)) + 0.0 for end in span)
    return f"{low:{sign}.{_digits(score)}f} … {high:{sign}.{_digits(score)}f}"


def numbers(
    evaluations: Sequence[Evaluation], results: Mapping[str, Sequence[Compared]]
) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows for programs: every number of every score, fractions as they are."""
    rows = []
    for i, evaluation in enumerate(evaluations):
        row: dict[str, Any] = {"captioner": evaluation.name}
        for score, found in results.items():
            one = found[i]
            row |= {score: one.score, f"{score}_low": one.own.low, f"{score}_high": one.own.high}
            if one.between is not None:
                row |= {
                    f"{score}_difference": one.difference,
                    f"{score}_difference_low": one.between.low,
                    f"{score}_difference_high": one.between.high,
                    f"{score}_p": one.p,
                    f"{score}_p_corrected": one.corrected,
                    f"{score}_differs": one.differs,
                }
        rows.append(row)
    return list(rows[-1]), rows


def scored_file(path: Path, references: Path, leave_one_out: bool, metrics: Sequence[str]) -> Evaluation:
    """A predictions file, scored on the spot.

    Raises:
        ValueError: either file cannot be used; lists what is wrong.
    """
    known = read_references(references)
    captions = {image: said for image, (said,) in read_predictions(path, known).items()}
    scorer = Scorer(known.captions, Scoring("script", metrics, leave_one_out))
    scored = scorer.score(captions)
    meta = {
        "references": references_digest(known.captions),
        "tokenization": scored.tokenizer,
        "leave_one_out": leave_one_out,
    }
    rows = list(scored.per_image.values())
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return Evaluation(path, str(path), meta, scored.corpus, captions, columns, scored.statistics)


def read_all(paths: Sequence[Path], split: str, references: Path | None, scores: Sequence[str]) -> list[Evaluation]:
    """What stands at each path: a run, an evaluation's folder, or a predictions file.

    Raises:
        ValueError: one of them cannot be read, or is a file and there are no references.
    """
    found: dict[Path, Evaluation] = {path: read_results(path, split) for path in paths if not path.is_file()}
    alone = any(evaluation.meta.get("leave_one_out") for evaluation in found.values())
    for path in paths:
        if path.is_file():
            if references is None:
                raise ValueError(f"{path}: a predictions file needs --references FILE to be scored against")
            found[path] = scored_file(path, references, alone, [name for name in METRICS if name in scores])
    return [found[path] for path in paths]


EXAMPLES = """examples:
  python -m src.compare runs/base runs/rewarded                      on the validation split
  python -m src.compare runs/base runs/other --split test --score ROUGE_L --also CIDEr,length
  python -m src.compare runs/base/eval/greedy runs/base/eval/val     two searches of one captioner: evaluations' folders
  python -m src.compare runs/base theirs.tsv --references val.tsv    a file of anybody's captions, scored on the spot
  python -m src.compare runs/*/ --csv table.csv                      all numbers of all scores

Scores are of the whole set of pictures, × 100 where they are shares; intervals are of the bootstrap over pictures, of a
difference of the paired one. p is of approximate randomization: how often so large a difference comes about where the
two captioners' captions are exchanged at random. A difference is called one (yes; *) where p, corrected for the number
of captioners (Holm), is below 0.05. Another training, with another seed, is in none of these.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m src.compare",
        description="Compare captioners with a first one: intervals and significance.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="a run's folder, an evaluation's, or a predictions file (TSV, or COCO's results JSON); the first is what "
        "the others are held against",
    )
    result.add_argument("--split", default="val", help="of runs, which evaluation in eval/ (%(default)s)")
    result.add_argument("--score", default="CIDEr", help="the one that is shown in detail (%(default)s)")
    result.add_argument(
        "--also", metavar="SCORE,…", help=f"further ones ({','.join(USUAL)}, where there are); '' for none"
    )
    result.add_argument("--references", type=Path, metavar="FILE", help="of predictions files: TSV, or COCO's JSON")
    result.add_argument("--draws", type=int, default=10_000, help="of pictures, and of exchanges (%(default)s)")
    result.add_argument("--seed", type=int, default=0, help="of the drawing (%(default)s)")
    form = result.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print a table for a README")
    form.add_argument("--csv", type=Path, metavar="FILE", help="write CSV instead: all numbers, as fractions")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for a wrong call."""
    options = parser().parse_args(arguments)
    try:
        with read_in_part():
            also = USUAL if options.also is None else [name for name in options.also.split(",") if name]
            wanted = list(dict.fromkeys([*also, options.score]))
            evaluations = read_all(options.paths, options.split, options.references, wanted)
            if options.also is None:
                there = [all(each.scores.get(name) is not None for each in evaluations) for name in wanted]
                wanted = [name for name, has in zip(wanted, there, strict=True) if has or name == options.score]
            results = compared(evaluations, wanted, options.draws, options.seed)
            if options.csv:
                write_atomically(options.csv, csv_table(*numbers(evaluations, results)))
                print(f"{len(evaluations)} captioners: {options.csv}")
                return 0
            columns, rows = table(evaluations, results, options.score)
            print((markdown_table if options.markdown else text_table)(columns, rows))
            if any("*" in str(row[score]) for row in rows for score in wanted):
                print("\n* differs from the first" + (" (see --help)" if not options.markdown else ""))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
