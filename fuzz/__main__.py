"""Feed damaged inputs to what reads strangers' files: `python -m fuzz TARGET …`, or `--all` (`make fuzz`).

Prints a table, and writes it to runs/fuzz/record.json; an input that went wrong is kept in runs/fuzz/TARGET/ beside how
to give it again. Stopped runs keep what they had: `--table` shows it.
"""

import argparse
import datetime
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fuzz.engine import REPLAY
from fuzz.names import NAMES

HEAD = "| target | how | inputs | accepted | seconds | inputs/s | slowest, ms | branches | findings |"
ENDINGS = {"atheris": "guided by coverage", "mutation": "mutation"}


def run(target: str, options: argparse.Namespace) -> int:
    """Run a target in a process of its own; its exit status."""
    command = [
        sys.executable,
        "-m",
        "fuzz.engine",
        target,
        "--seed",
        str(options.seed),
        "--output",
        str(options.output),
    ]
    for flag in ("inputs", "seconds"):
        if getattr(options, flag) is not None:
            command += [f"--{flag}", str(getattr(options, flag))]
    folder, log = options.output / target, options.output / f"{target}.log"
    folder.mkdir(parents=True, exist_ok=True)
    for stale in ("note.json", "current.bin"):
        (folder / stale).unlink(missing_ok=True)
    with log.open("wb") as opened:
        status = subprocess.run(command, stdout=opened, stderr=opened).returncode
    note = folder / "note.json"
    if status not in (0, 1) and note.exists():
        died(note, status, log)
    elif not note.exists():
        print(f"{target}: could not begin; see {log}", file=sys.stderr)
        return 2
    return int(status != 0)


def died(note: Path, status: int, log: Path) -> None:
    """Add to a run's note that its process ended by itself, with what it was given last."""
    known = json.loads(note.read_text(encoding="utf-8"))
    current, kept = note.with_name("current.bin"), note.with_name("died.bin")
    data = current.read_bytes()
    kept.write_bytes(data[8 : 8 + int.from_bytes(data[:8], "little")])
    errors = re.findall(r"(?:ERROR|Error|Timeout).*", log.read_text(encoding="utf-8", errors="replace"))
    known["findings"].append(
        {
            "what": f"its process ended with {status}",
            "says": f"{errors[-1][:200]}; see {log}" if errors else f"see {log}",
            "times": 1,
            "replay": REPLAY.format(target=known["target"], file=kept),
        }
    )
    note.write_text(json.dumps(known), encoding="utf-8")


def notes(output: Path) -> list[dict[str, Any]]:
    """What is known of each target's last run."""
    found = []
    for target in NAMES:
        note = output / target / "note.json"
        if note.exists():
            log = output / f"{target}.log"
            edges = re.findall(rb"cov: (\d+)", log.read_bytes()) if log.exists() else []
            found.append({**json.loads(note.read_text(encoding="utf-8")), "edges": int(edges[-1]) if edges else None})
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = [HEAD, "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        rate = row["inputs"] / max(row["seconds"], 0.1)
        fed = f"{row['inputs']:,}" + (f" of {row['wanted']:,}" if row["inputs"] < row["wanted"] else "")
        cells = [row["target"], ENDINGS[row["engine"]], fed, f"{row['accepted']:,}"]
        cells += [f"{row['seconds']:.0f}", f"{rate:,.0f}", f"{row['slowest_ms']:.0f}", str(row["edges"] or "")]
        lines.append(f"| {' | '.join([*cells, str(len(row['findings']))])} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__.split("\n\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(NAMES))
    parser.add_argument("--all", action="store_true", help="every target, one after the other")
    parser.add_argument("--rest", action="store_true", help="only those whose last run did not reach its number")
    parser.add_argument("--table", action="store_true", help="feed nothing: the table of the last runs")
    parser.add_argument("--inputs", type=int, metavar="N", help="of each target (each target's own number)")
    parser.add_argument("--seconds", type=float, metavar="S", help="of each target, at most (no limit)")
    parser.add_argument("--seed", type=int, default=0, metavar="K", help="(%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/fuzz"), metavar="FOLDER", help="(%(default)s)")
    options = parser.parse_args(arguments)
    if unknown := [target for target in options.targets if target not in NAMES]:
        parser.error(f"{unknown[0]}: no target; there are {', '.join(NAMES)}")
    targets = NAMES if options.all else options.targets
    if not targets and not options.table:
        parser.error("which targets? Name some, or --all")
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed (`pip install -e '.[fuzz]'`): nothing is guided by coverage", file=sys.stderr)
    if options.rest:
        whole = {row["target"] for row in notes(options.output) if row["inputs"] >= row["wanted"]}
        targets = [target for target in targets if target not in whole]
    status = max([0, *(run(target, options) for target in targets)])
    rows = notes(options.output)
    about = {"date": datetime.date.today().isoformat(), "seed": options.seed, "version": version("captionary")}
    record = json.dumps({**about, "targets": rows}, indent=1)
    (options.output / "record.json").write_text(record + "\n", encoding="utf-8")
    print(table(rows))
    for row in rows:
        for found in row["findings"]:
            print(f"{row['target']}: {found['what']}, {found['times']} times: {found['says']}", file=sys.stderr)
            print(f"  {found['replay']}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
