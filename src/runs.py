"""Run folders: what a training records of itself, and `python -m src.runs`, which lists, filters and sorts past runs.

Nothing here imports torch, so that the list is there at once.
"""

import argparse
import csv
import difflib
import io
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from src.charts import Line, line_chart
from src.curves import read_curve
from src.files import DiskFull, read_in_part, write_atomically
from src.metrics import is_fraction

STATUS = "status.json"
LOCK = ".training.lock"
RECORD = ("run", "state", "started", "ended", "minutes", "epochs", "best", "monitor", "mode", "version", "overrides")
"""What status.json says of a run, and the names of those columns; `error` besides, where it failed."""
KNOWN = ("environment", "fingerprint")
"""What it says besides of the machine and of the data, shown as `environment.torch`, `fingerprint.train.captions`, …"""
SCORES = ("Bleu_1", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
"""The scores that tables show unasked."""
MEASURED = ("parameters", "images_per_second")
"""What meta.json says of a captioner in numbers: its size, and how fast it captioned."""
INSIDE = {"bundle", "checkpoints", "eval", "tensorboard", "wandb"}
"""Folders of a run that hold no further run."""

Row = dict[str, Any]
"""A run as one flat row: its record, its scores, its config's choices (`decoder`) and fields (`decoder.hidden`)."""


# ---------------------------------------------------------------- what a training records


def run_folder(config: Mapping[str, Any]) -> Path:
    """Where this training keeps its results; a trial has a folder of its own, so that it never touches a real run."""
    run = Path(config["run_dir"])
    return run.with_name(run.name + ".fast_dev_run") if config["trainer"].get("fast_dev_run") else run


LAST, BEFORE = "last.ckpt", "before.ckpt"
"""A run's last checkpoint and the one before."""


def checkpoints(run: Path) -> list[Path]:
    """What `ckpt=last` can go on from, the newest first."""
    return [path for path in (run / "checkpoints" / LAST, run / "checkpoints" / BEFORE) if path.exists()]


def last_checkpoint(run: Path) -> Path:
    """Where a run's last checkpoint is kept, once there is one."""
    return next(iter(checkpoints(run)), run / "checkpoints" / LAST)


def sentence(error: BaseException) -> str:
    """An error as one sentence: the message alone of what a user can mend, else with the error's kind."""
    message = str(error).strip()
    if message.startswith("Caught "):  # from a loading process: its traceback, ending in the sentence
        message = message.splitlines()[-1].partition(": ")[2]
    if isinstance(error, ValueError | OSError | ImportError):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


@contextmanager
def recorded(run: Path, about: Mapping[str, Any], resumes: bool = False, keep: bool = True) -> Iterator[Row]:
    """Keep `run`/status.json while a training runs; what is put in the record meanwhile is kept at the end.

    Args:
        run: the run's folder, made if need be.
        about: the first entries of the record.
        resumes: whether an earlier call is gone on with, whose `minutes` count too.
        keep: whether it is this process, of several that train together, that writes.

    Raises:
        ValueError: another process is training this run.
    """
    if not keep:
        yield {}
        return
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / LOCK)
    try:
        lock.acquire(timeout=1)  # `python -m src.runs` holds it for a moment
    except Timeout:
        raise ValueError(f"{run} is being trained by another process: wait for it, or choose another name") from None
    earlier = ((_read(run / STATUS) if resumes else None) or {}).get("minutes", 0.0)
    record: Row = {"state": "running", "started": datetime.now(UTC).isoformat(timespec="seconds"), **about}
    start = time.monotonic()
    write_atomically(run / STATUS, json.dumps(record, indent=2) + "\n")
    try:
        yield record
        if record["state"] == "running":  # not where the training has ended otherwise, and says so
            record["state"] = "finished"
    except Exception as error:
        record |= {"state": "failed", "error": sentence(error)}
        raise
    except BaseException:
        record["state"] = "interrupted"
        raise
    finally:
        record["ended"] = datetime.now(UTC).isoformat(timespec="seconds")
        record["minutes"] = round(earlier + (time.monotonic() - start) / 60, 3)
        # On a full disk, what went wrong first is what is to be told.
        with suppress(DiskFull) if record["state"] != "finished" else nullcontext():
            write_atomically(run / STATUS, json.dumps(record, indent=2) + "\n")
        lock.release()


# ---------------------------------------------------------------- reading


def find_runs(root: Path) -> list[Path]:
    """All run folders below `root`, trials left out."""
    found = []
    for folder, inside, files in os.walk(root):
        if STATUS in files or "config.yaml" in files:
            found.append(Path(folder))
            inside[:] = [name for name in inside if name not in INSIDE]
        inside[:] = sorted(n for n in inside if not n.startswith(".") and not n.endswith(".fast_dev_run"))
    return found


def read_run(run: Path, name: str, split: str, config: bool = False) -> Row:
    """A run's row, with its scores on `split`, and if `config` with its config's fields and, as `FOLDER/SCORE`, the
    scores of its other evaluations in eval/.

    Raises:
        ValueError: one of its files is damaged; the message names it.
    """
    status = _read(run / STATUS) or {"state": "unknown"}
    if status["state"] == "running" and not is_locked(run / LOCK):
        status["state"] = "interrupted"  # killed, before it could say so
    choices = status.pop("choices", {})
    known = flat({name: status.pop(name) for name in KNOWN if name in status})
    fields = flat(_read(run / "config.yaml") or {}) | known if config else {}
    for folder in sorted((run / "eval").glob("*/")) if config else ():
        if folder.name != split:
            fields |= {f"{folder.name}/{key}": value for key, value in _scores(folder).items()}
    return {"run": name, **fields, **choices, **_scores(run / "eval" / split), **status}


def _scores(folder: Path) -> Row:
    """What an evaluation found, and of what it records besides, the numbers."""
    meta = _read(folder / "meta.json") or {}
    return (_read(folder / "scores.json") or {}) | {key: meta[key] for key in MEASURED if key in meta}


def flat(config: Mapping[str, Any], prefix: str = "") -> Row:
    """A nested config as {"decoder.hidden": 512, …}."""
    fields: Row = {}
    for key, value in config.items():
        fields |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return fields


def _read(path: Path) -> Row | None:
    """A JSON or YAML file's mapping; None where there is no file."""
    try:
        text = path.read_text(encoding="utf-8")
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is there
        found = json.loads(text) if path.suffix == ".json" else yaml.load(text, loader)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: damaged: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict) or (path.name == STATUS and "state" not in found):
        raise ValueError(f"{path}: damaged: not what a training writes there")
    return found


def is_locked(path: Path) -> bool:
    """Whether some process holds a lock file that is there."""
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except (Timeout, OSError):  # OSError: someone else's folder, where nothing can be said
        return True


# ---------------------------------------------------------------- choosing

_CONDITION = re.compile(r"([\w./-]+?)\s*(!=|>=|<=|=|>|<|~)\s*(.*)")


def keys_of(conditions: Sequence[str]) -> list[str]:
    """The fields that conditions name; none for those that are text."""
    return [match[1] for condition in conditions if (match := _CONDITION.fullmatch(condition))]


def matches(row: Row, condition: str) -> bool:
    """Whether a row fulfils `KEY=VALUE` (also != < <= > >=, and ~ for "contains"), or contains a text in its name or
    overrides. Numbers are compared as numbers; a row without the field fulfils != only."""
    match = _CONDITION.fullmatch(condition)
    if match is None:
        return condition.lower() in " ".join([row["run"], *row.get("overrides", ())]).lower()
    key, operator, wanted = match.groups()
    found = row.get(key)
    if operator == "~":
        return found is not None and wanted.lower() in _plain(found).lower()
    if operator in ("=", "!="):
        numbers = _number(found), _number(wanted)
        equal = numbers[0] == numbers[1] if None not in numbers else _plain(found).lower() == wanted.lower()
        return equal == (operator == "=")
    left, right = _number(found), _number(wanted)
    if left is None or right is None:
        if found is None or isinstance(found, int | float):
            return False
        left, right = _plain(found), wanted  # type: ignore[assignment]
    return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[operator]  # type: ignore


def in_order(rows: Iterable[Row], key: str) -> list[Row]:
    """Rows sorted by a column, `-KEY` largest first; those without a value last."""
    name, descending = key.removeprefix("-"), key.startswith("-")
    rows = list(rows)
    there = [row for row in rows if row.get(name) is not None and row[name] == row[name]]
    numbers = all(_number(row[name]) is not None for row in there)
    there.sort(key=lambda row: _number(row[name]) if numbers else _plain(row[name]), reverse=descending)  # type: ignore
    return there + [row for row in rows if row.get(name) is None or row[name] != row[name]]


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def _plain(value: Any) -> str:
    """A value as the command line writes it."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return " ".join(value)
    return json.dumps(value)


# ---------------------------------------------------------------- tables


def cell(row: Row, column: str) -> str:
    """A value as tables show it: scores × 100, times to the minute."""
    value = row.get(column)
    if value is None:
        return ""
    score = (row.get("monitor") or "" if column == "best" else column).split("/")[-1]
    if isinstance(value, float) and is_fraction(score):
        return f"{100 * value:.1f}"
    if column == "minutes" or score == "images_per_second":
        return f"{value:.1f}"
    if column in ("started", "ended"):
        return str(value)[:16].replace("T", " ")
    return f"{value:.6g}" if isinstance(value, float) else _plain(value)


def text_table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Aligned columns for a terminal: numbers to the right."""
    cells = [[cell(row, column) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    right = [any(_number(row.get(c)) is not None for row in rows) for c in columns]
    lines = [
        "  ".join(text.rjust(w) if r else text.ljust(w) for text, w, r in zip(line, widths, right, strict=True))
        for line in [list(columns), *cells]
    ]
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """The same for a README."""
    lines = [
        list(columns),
        ["---"] * len(columns),
        *([cell(row, c).replace("|", "\\|") for c in columns] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def csv_table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """The same with values as they are stored: scores are fractions."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if row.get(c) is None else _plain(row[c]) for c in columns] for row in rows)
    return text.getvalue()


# ---------------------------------------------------------------- the command

EXAMPLES = """examples:
  python -m src.runs                                             all runs, the newest first
  python -m src.runs --filter decoder=lstm_attn --sort -CIDEr    the best of one decoder
  python -m src.runs --filter 'CIDEr>0.5' --filter flickr8k      both; a text is looked for in names and overrides
  python -m src.runs --filter state=failed --columns run,error   what went wrong
  python -m src.runs --columns run,optimizer.lr,seed,CIDEr       any field of the config is a column
  python -m src.runs --columns run,CIDEr,samples/Div_2           so is a score of another evaluation, of eval/samples
  python -m src.runs --filter flickr8k --curve curve.svg         a picture of validation CIDEr-D by epoch
  python -m src.runs runs/flickr8k --split test --csv scores.csv all columns, for a spreadsheet; `-` prints them

Tables show scores × 100; filters and CSV have them as scores.json does, from 0 to 1 (CIDEr to 10).
States: running, finished, failed, interrupted (stopped or killed: ckpt=last goes on), pruned (ended by its study),
unknown (no status.json).
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m src.runs",
        description="List past runs with their scores.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("root", nargs="?", type=Path, default=Path("runs"), help="searched for runs (%(default)s)")
    result.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="CONDITION",
        help="KEY=VALUE, also != < <= > >= and ~ (contains), or a text; several must all hold",
    )
    result.add_argument("--sort", default="-started", metavar="KEY", help="-KEY: largest first (%(default)s)")
    result.add_argument("--columns", metavar="KEY,KEY,…", help="what to show: of the record, scores, choices or config")
    result.add_argument("--split", default="val", help="whose scores (%(default)s)")
    result.add_argument("--limit", type=int, metavar="N", help="only the first N")
    form = result.add_mutually_exclusive_group()
    form.add_argument("--curve", type=Path, metavar="FILE.svg", help="draw their learning curves instead")
    result.add_argument("--score", default="CIDEr", help="what --curve draws, of the validation (%(default)s)")
    form.add_argument("--csv", metavar="FILE", help="write CSV instead, every column unless --columns says which")
    form.add_argument("--markdown", action="store_true", help="print a table for a README")
    return result


def _read_all(root: Path, split: str, config: bool) -> tuple[list[Row], list[str]]:
    """The rows of all runs, and what is wrong with those that cannot be read."""
    rows, damaged = [], []
    for run in find_runs(root):
        try:
            rows.append(read_run(run, str(run.relative_to(root)), split, config))
        except ValueError as error:
            damaged.append(str(error))
    return rows, damaged


def listed(options: argparse.Namespace) -> tuple[list[str], list[Row]]:
    """The columns and rows that are asked for; damaged runs are named on stderr and left out.

    Raises:
        ValueError: there is no such folder, or no run has such a column.
    """
    if not options.root.is_dir():
        raise ValueError(f"{options.root}: no such folder; give the one that holds your runs")
    wanted = [column.strip() for column in options.columns.split(",")] if options.columns else []
    asked = [*wanted, *keys_of(options.filter), options.sort.removeprefix("-")]
    rows, damaged = _read_all(options.root, options.split, config=options.csv is not None)
    there = set().union(RECORD, ["error"], *rows)
    if not there.issuperset(asked):  # a field of the configs, which take longer to read
        rows, damaged = _read_all(options.root, options.split, config=True)
        there = set().union(RECORD, ["error"], *rows)
    for problem in damaged:
        print(f"skipped: {problem}", file=sys.stderr)
    if rows:
        for key in asked:
            if key not in there:
                close = difflib.get_close_matches(key, there, n=3, cutoff=0.5)
                hint = f": did you mean {' or '.join(close)}?" if close else ""
                scores = sorted(k for k in set().union(*rows) if is_fraction(k) and "." not in k)
                choices = ", ".join([*RECORD, *scores])
                raise ValueError(f"no run has {key!r}{hint} There are {choices}, and every field of the config")
    rows = in_order([row for row in rows if all(matches(row, c) for c in options.filter)], options.sort)[
        : options.limit
    ]
    usual = ["run", "state", "started", "minutes", "epochs", "best", *(s for s in SCORES if any(s in r for r in rows))]
    every = list(dict.fromkeys([*usual, *RECORD, *(key for row in rows for key in row)]))
    return wanted or (usual if options.csv is None else every), rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for a wrong call."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for i in range(len(words) - 1):  # argparse takes -CIDEr for an option
        if words[i] == "--sort":
            words[i : i + 2] = [f"--sort={words[i + 1]}"]
            break
    options = parser().parse_args(words)
    try:
        with read_in_part():
            columns, rows = listed(options)
            if options.curve:
                if not rows:
                    raise ValueError("no runs to draw: look at them without --curve first")
                share = is_fraction(options.score)
                lines = []
                for i, name in enumerate(str(row["run"]) for row in rows):
                    curve = read_curve(options.root / name, options.score)
                    lines.append(Line(name, [(epoch, (100 if share else 1) * value) for epoch, value in curve], i))
                label = f"validation {options.score}" + (" × 100" if share else "")
                write_atomically(options.curve, line_chart(lines, title=f"{label} by epoch", across="epoch", up=label))
                print(f"{len(rows)} runs: {options.curve}")
            elif options.csv and options.csv != "-":
                write_atomically(Path(options.csv), csv_table(columns, rows))
                print(f"{len(rows)} runs: {options.csv}")
            elif options.csv:
                print(csv_table(columns, rows), end="")
            elif rows:
                print((markdown_table if options.markdown else text_table)(columns, rows))
            else:
                print("no runs" if not options.filter else "no run fulfils " + ", ".join(options.filter))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
