"""Tell pictures that a captioner is not to be trusted with: `python -m src.detect score photos/ -o flags.tsv`."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from tqdm import tqdm

from src.bundle import DETECTOR, bundle_folder
from src.captioner import Captioner
from src.captions import Caption
from src.charts import DASHES, Line, line_chart
from src.confidence import mean_log_prob
from src.config import keep_freed_memory
from src.data.images import ImageError
from src.data.tsv import read_rows
from src.detection import Detector, auroc, check_alone, curve, interval
from src.files import check_names, encodable, write_atomically
from src.picture_flags import add_computing_flags, add_model_flag, check_computing, ended, one_captioner
from src.pictures import find_pictures
from src.report import template
from src.rows import check_output

SCORES = ("unfamiliar", "confidence", "stability")
DRAWN = 60
"""Points of a drawn curve, at most."""

EPILOG = """examples:
  python -m src.detect fit runs/mine --root my_data --data train.tsv --val val.tsv
                                             learn what familiar pictures are; the bundle keeps it
  python -m src.detect score photos/         each picture's numbers
  python -m src.detect auroc --known photos/ --unknown scans/ --html auroc.html
                                             how well each number tells the ones from the others

A table of pictures is a TSV whose first column is their paths, such as captions.tsv."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m src.detect",
        description="Tell pictures that a captioner is not to be trusted with: those unlike the ones that it learned "
        "from, and those that were changed to deceive it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")
    fit = commands.add_parser(
        "fit",
        help="learn what familiar pictures are",
        description="Learn from a captioner's own training pictures what is familiar to it, and keep that in its "
        "bundle: statistics of features, no pictures.",
    )
    fit.add_argument("model", type=Path, help="a bundle/ directory, or a run's folder or name")
    fit.add_argument("--data", type=Path, required=True, metavar="TSV", help="its training pictures")
    fit.add_argument("--val", type=Path, required=True, metavar="TSV", help="others like them, that it has not seen")
    fit.add_argument(
        "--root", type=Path, metavar="DIR", help="what all paths are relative to (default: a TSV's folder)"
    )
    score = commands.add_parser(
        "score",
        help="say how far pictures are to be trusted",
        description="Write of each picture how unfamiliar it is, how sure the captioner is of its caption and how "
        "firmly that stands, as TSV with a header.",
    )
    score.add_argument("pictures", nargs="+", metavar="FILE|FOLDER|GLOB|TSV", help="what to look at")
    score.add_argument("-o", "--output", type=Path, metavar="FILE.tsv", help="write it here instead of printing")
    against = commands.add_parser(
        "auroc",
        help="measure how well that tells two sets of pictures apart",
        description="The area under the ROC curve of each number, with its 95 %% interval: 0.5 tells nothing, 1 all.",
    )
    against.add_argument(
        "--known", nargs="+", required=True, metavar="FILE|FOLDER|GLOB|TSV", help="pictures to be trusted"
    )
    against.add_argument(
        "--unknown",
        nargs="+",
        action="append",
        required=True,
        metavar="FILE|FOLDER|GLOB|TSV",
        help="pictures not to be trusted; repeatable, for several sets",
    )
    against.add_argument("--limit", type=int, metavar="N", help="only the first N of each")
    against.add_argument("--html", type=Path, metavar="FILE.html", help="a page with the curves")
    against.add_argument("--json", type=Path, metavar="FILE.json", help="the numbers and the curves")
    for each in (score, against):
        each.add_argument(
            "--root", type=Path, metavar="DIR", help="what a TSV's paths are relative to (default: its folder)"
        )
        add_model_flag(each, several=False)
        add_computing_flags(each)
    fit.add_argument("--batch-size", type=int, default=16, help="pictures at a time (default: 16)")
    fit.add_argument("--device", help="cpu, cuda, mps (default: the fastest here)")
    return result


def table_pictures(path: Path, root: Path | None) -> list[Path]:
    """The pictures that a TSV names, each once.

    Raises:
        ValueError: it has none, or rows that cannot be read.
    """
    rows, bad = read_rows(path)
    if bad or not rows:
        raise ValueError(f"{path}: " + (f"line {bad[0].line}: {bad[0].reason}" if bad else "no rows"))
    return [(root or path.parent) / image for image in dict.fromkeys(row[1] for row in rows)]


def named_pictures(names: Sequence[str], root: Path | None) -> list[Path]:
    """Pictures that are named as files, folders, patterns, or by a TSV.

    Raises:
        ValueError: a name of nothing.
    """
    found: dict[Path, None] = {}
    for name in names:
        table = name.endswith(".tsv") and Path(name).is_file()
        found |= dict.fromkeys(table_pictures(Path(name), root) if table else map(Path, find_pictures([name])))
    return list(found)


def opened(captioner: Captioner, paths: Sequence[Path], size: int, title: str) -> Iterator[dict[Path, Any]]:
    """Pictures in batches, as `Captioner.open` gives them; stderr tells of those that cannot be read."""
    left = iter(tqdm(paths, desc=title, unit="img", disable=None))
    while batch := list(islice(left, size)):
        found = {}
        for path in batch:
            try:
                found[path] = captioner.open(path)
            except ImageError as error:
                print(f"error: {error}", file=sys.stderr)
        if found:
            yield found


def pooled(captioner: Captioner, paths: Sequence[Path], size: int, title: str) -> np.ndarray:
    """The pooled features (N, D) of the pictures that can be read."""
    rows = [
        captioner.features(captioner.stacked(list(batch.values()))).pooled.float().cpu().numpy()
        for batch in opened(captioner, paths, size, title)
    ]
    return np.concatenate(rows) if rows else np.empty((0, captioner.model.encoder.width), np.float32)


def scored(captioner: Captioner, paths: Sequence[Path], size: int, title: str) -> dict[Path, Caption]:
    """What is said of the pictures that can be read, and how firmly that stands."""
    found: dict[Path, Caption] = {}
    for batch in opened(captioner, paths, size, title):
        found |= zip(batch, captioner.stream(batch.values(), size, stability=True), strict=True)
    return found


def confidence(caption: Caption) -> float:
    """That of a calibrated captioner; of another, the mean probability of a word, which ranks captions likewise."""
    return float(np.exp(mean_log_prob(caption.log_probs))) if caption.confidence is None else caption.confidence


def fit(options: argparse.Namespace) -> int:
    folder = bundle_folder(options.model)
    if not (folder / "config.yaml").exists():
        raise ValueError(f"{options.model}: no bundle here: a detector is kept in a bundle/ directory")
    paths = [table_pictures(table, options.root) for table in (options.data, options.val)]
    options.model = folder
    captioner = one_captioner(options)
    check_alone(captioner)
    training, held_out = (
        pooled(captioner, each, options.batch_size, title)
        for each, title in zip(paths, ("training", "held out"), strict=True)
    )
    Detector.fit(training, held_out).save(folder / DETECTOR)
    size = (folder / DETECTOR).stat().st_size
    print(f"{folder / DETECTOR}: of {len(training)} pictures, {len(held_out)} held out; {size / 1e3:.0f} kB")
    return 1 if len(training) + len(held_out) < sum(map(len, paths)) else 0


def score(options: argparse.Namespace) -> int:
    paths = named_pictures(options.pictures, options.root)
    check_names(paths)
    if options.output:
        check_output(options.output, paths)
    captioner = one_captioner(options)
    check_alone(captioner)
    found = scored(captioner, paths, options.batch_size, "scoring")
    lines = ["\t".join(("img_path", *SCORES))]
    for path, caption in found.items():
        numbers = (caption.unfamiliar, confidence(caption), caption.stability)
        lines.append(encodable("\t".join([str(path), *("" if n is None else f"{n:.4f}" for n in numbers)])))
    text = "\n".join(lines) + "\n"
    if options.output:
        write_atomically(options.output, text)
    else:
        sys.stdout.write(text)
    return 1 if len(found) < len(paths) else 0


def suspicions(found: Mapping[Path, Caption]) -> dict[str, np.ndarray]:
    """Of each of SCORES the numbers (N,) of all pictures, turned so that higher ones are to be trusted less; without
    `unfamiliar` where there is no detector."""
    every = list(found.values())
    values: dict[str, list[float | None]] = {
        "unfamiliar": [caption.unfamiliar for caption in every],
        "confidence": [-confidence(caption) for caption in every],
        "stability": [-(caption.stability or 0) for caption in every],
    }
    return {name: np.array(each, float) for name, each in values.items() if all(n is not None for n in each)}


Told = dict[str, tuple[float, float, float, list[tuple[float, float]]]]
"""Of each of SCORES the area, the ends of its interval, and the curve."""


def told_apart(known: Mapping[Path, Caption], unknown: Mapping[Path, Caption]) -> Told:
    """How well each score tells two sets of pictures apart."""
    pairs = {name: (own, suspicions(unknown)[name]) for name, own in suspicions(known).items()}
    areas = {name: auroc(*pair) for name, pair in pairs.items()}
    return {
        name: (areas[name], *interval(areas[name], len(known), len(unknown)), curve(*pair))
        for name, pair in pairs.items()
    }


def compare(options: argparse.Namespace) -> int:
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit {options.limit}: 1 or more")
    for output in (options.json, options.html):
        if output is not None:
            check_output(output)
    sets = {" ".join(names): named_pictures(names, options.root)[: options.limit] for names in options.unknown}
    trusted = named_pictures(options.known, options.root)[: options.limit]
    captioner = one_captioner(options)
    check_alone(captioner)
    known = scored(captioner, trusted, options.batch_size, "known")
    failed = len(trusted) - len(known)
    results: dict[str, tuple[int, Told]] = {}
    for name, paths in sets.items():
        unknown = scored(captioner, paths, options.batch_size, "unknown")
        failed += len(paths) - len(unknown)
        if not known or not unknown:
            raise ValueError(
                f"--known {' '.join(options.known)} --unknown {name}: of one of them, no picture could be read"
            )
        told = told_apart(known, unknown)
        results[name] = len(unknown), told
        print(f"{len(known)} known and {len(unknown)} unknown pictures, {name}")
        for each, (area, low, high, _) in told.items():
            print(f"  {each:<12}AUROC {area:.3f}  ({low:.3f} to {high:.3f})", flush=True)
    if captioner.detector is None:
        print("no detector: `python -m src.detect fit` adds one, and with it `unfamiliar`")
    if options.json:
        fields = ("auroc", "low", "high", "curve")
        said = {
            name: {"pictures": count} | {each: dict(zip(fields, row, strict=True)) for each, row in told.items()}
            for name, (count, told) in results.items()
        }
        write_atomically(options.json, json.dumps({"known": len(known), "unknown": said}, indent=1) + "\n")
    if options.html:
        write_atomically(
            options.html, page(Path(options.model).name, f"{len(known)}, {' '.join(options.known)}", results)
        )
    return 1 if failed else 0


def page(model: str, known: str, results: Mapping[str, tuple[int, Told]]) -> str:
    """The curves and tables as HTML that needs nothing else."""
    sets = []
    for name, (count, told) in results.items():
        lines = [Line("chance", [(0, 0), (1, 1)], 5, DASHES[5])]
        for number, (each, (*_, points)) in enumerate(told.items()):
            chosen = sorted({*range(0, len(points), -(-len(points) // DRAWN)), len(points) - 1})
            lines.append(Line(each, [points[i] for i in chosen], number, DASHES[number]))
        chart = line_chart(
            lines,
            title=("ROC curves", "ROC 曲线"),
            across=("share of the known that is flagged", "已知图片中被标记的比例"),
            up=("share of the unknown", "不可信图片中被标记的比例"),
            whole=False,
            size=(420, 280),
        )
        sets.append({"name": name, "count": count, "told": told, "chart": Markup(chart)})
    return template("detect.html.j2").render(model=model, known=known, sets=sets)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 where some pictures could not be read, 2 for a wrong call, 130
    where it was interrupted."""
    options = parser().parse_args(arguments)
    keep_freed_memory()

    def run(options: argparse.Namespace) -> int:
        check_computing(options)
        return {"fit": fit, "score": score, "auroc": compare}[options.command](options)

    return ended(run, options)


if __name__ == "__main__":
    sys.exit(main())
