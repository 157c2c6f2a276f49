"""An attack as a page: curves over the budget, and pictures before and after. Of several, clean scores against those
under attack: `python -m src.attack_report runs/attack/A runs/attack/B`."""

import argparse
import base64
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup
from PIL import Image

from src.charts import DASHES, Line, line_chart
from src.figures import LONGEST_SIDE
from src.files import write_atomically
from src.overview import score_name, score_text
from src.report import template
from src.rows import check_output

if TYPE_CHECKING:
    from src.attack import Point

FAR = ("linf", "l2", "ssim")


class Shown(NamedTuple):
    """A picture of the report."""

    name: str
    clean: Image.Image
    changed: Image.Image
    wanted: str
    place: int
    """Among the captions."""


def difference(clean: Image.Image, changed: Image.Image) -> tuple[Image.Image, float]:
    """What was added to a picture, around grey, and how many times it is enlarged: the largest becomes black or
    white."""
    change = np.asarray(changed, np.float32) - np.asarray(clean, np.float32)
    times = 127 / max(float(np.abs(change).max()), 1)
    return Image.fromarray((128 + times * change).round().clip(0, 255).astype(np.uint8)), times


def _address(picture: Image.Image) -> str:
    picture = picture.copy()
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def curves(result: Mapping[str, Any]) -> dict[str, Markup]:
    """Success, and each score, over the budget, as charts: a line a captioner."""
    points = result["points"]
    names = list(dict.fromkeys(point["captioner"] for point in points))
    unit = (
        ("budget in 255ths (L∞)", "预算（L∞，单位 1/255）")
        if result["norm"] == "linf"
        else ("budget (L2)", "预算（L2）")
    )
    wanted = (
        ("goal met, %", "达到目标的比例，%") if result["targeted"] else ("captions changed, %", "描述改变的比例，%")
    )
    scores = [s for s in points[0] if s not in ("captioner", "budget", "success", *FAR) and points[0][s] is not None]
    found = {}
    for key, title in (("success", wanted), *((score, score_name(score)) for score in scores)):
        lines = [
            Line(
                Path(name).name if names.count(name) == 1 else name,
                [(p["budget"], 100 * p[key]) for p in points if p["captioner"] == name and p["budget"] is not None],
                series=number,
                dash=DASHES[number % len(DASHES)],
            )
            for number, name in enumerate(names)
        ]
        found[key] = Markup(line_chart(lines, title=title, across=unit, up=title, size=(420, 280)))
    return found


def write_attack_report(
    path: Path, result: Mapping[str, Any], points: "Sequence[Point]", shown: Sequence[Shown]
) -> None:
    """Write one HTML file that needs nothing else.

    Args:
        path: the file.
        result: what attack.json holds.
        points: the captions.
        shown: pictures, changed within the largest budget.
    """
    most = max(point.size for point in points)
    cards = []
    for each in shown:
        picture, times = difference(each.clean, each.changed)
        cards.append(
            {
                "name": each.name,
                "wanted": each.wanted,
                "times": f"{times:.0f}",
                "pictures": [_address(p) for p in (each.clean, each.changed, picture)],
                "said": [
                    (
                        Path(point.captioner).name,
                        next(p for p in points if p.captioner == point.captioner and not p.size).captions[each.place],
                        point.captions[each.place],
                        point.met[each.place],
                    )
                    for point in points
                    if point.size == most
                ],
            }
        )
    scores = [key for key in result["points"][0] if key not in ("captioner", "budget", "success", *FAR)]
    html = template("attack.html.j2").render(
        result=result,
        charts=curves(result),
        cards=cards,
        scores=scores,
        score_text=score_text,
        stem=lambda name: Path(name).name,
    )
    write_atomically(path, html)


# ---------------------------------------------------------------- several attacks


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m src.attack_report",
        description="Scores of pictures as they are against scores of changed ones: what a defence gives up, and what "
        "it gains. A row for each attack, a line of the curve for each budget.",
    )
    result.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="what src.attack wrote; the first is what the others are compared with",
    )
    result.add_argument("--score", default="CIDEr", metavar="NAME", help="one of its metrics (default: CIDEr)")
    result.add_argument("-o", "--output", type=Path, metavar="FILE.svg", help="draw it, too")
    return result


def trade(folders: Sequence[Path], score: str) -> dict[str, dict[float, float]]:
    """Of each attack, by its folder, the attacked captioner's score by budget; 0: of the pictures as they are. The
    budgets are those that all have; the best on clean pictures comes first.

    Raises:
        ValueError: no attack there, without that score, or attacks that cannot be compared; names the folder.
    """
    found, first = {}, None
    for folder in folders:
        path = folder / "attack.json"
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            points = [point for point in result["points"] if point["captioner"] == result["model"]]
            own = {point["budget"]: point.get(score) for point in points if point["budget"] is not None}
            about = {name: result[name] for name in ("norm", "attack", "goal", "generation", "references")}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: not what src.attack writes ({error})") from error
        if missing := [name for name, value in own.items() if value is None]:
            raise ValueError(f"{path}: no {score} of budget {missing[0]:g}: choose another --score")
        first = first or (path, about)
        if other := [name for name, value in about.items() if value != first[1][name]]:
            what = "pictures or references" if other[0] == "references" else other[0]
            raise ValueError(f"{path}: of another {what} than {first[0]}, and cannot be compared with it")
        found[str(folder)] = own
    common = sorted(set.intersection(*(set(own) for own in found.values())))
    if len(common) < 2:
        raise ValueError("the attacks have no budget in common")
    return {
        name: {budget: own[budget] for budget in common}
        for name, own in sorted(found.items(), key=lambda each: -each[1][0])
    }


def trade_chart(found: Mapping[str, Mapping[float, float]], score: str) -> str:
    """Scores under attack over clean scores, as SVG: a line a budget, a point an attack."""
    budgets = list(next(iter(found.values())))[1:]
    lines = [
        Line(
            f"budget {budget:g}",
            [(100 * own[0], 100 * own[budget]) for own in found.values()],
            series=number,
            dash=DASHES[number % len(DASHES)],
            notes=list(found),
        )
        for number, budget in enumerate(budgets)
    ]
    return line_chart(
        lines,
        title=f"{score} × 100",
        across=f"{score} of clean pictures",
        up=f"{score} of attacked ones",
        whole=False,
        size=(480, 320),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for a wrong call."""
    options = parser().parse_args(arguments)
    try:
        if options.output:
            check_output(options.output)
        found = trade(options.folders, options.score)
        if options.output:
            write_atomically(options.output, trade_chart(found, options.score))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    base = found[str(options.folders[0])]
    budgets = list(base)
    width = max(map(len, found))
    print(" " * width, *(f"{'clean' if not budget else f'{budget:g}':>6}" for budget in budgets), "   kept  less lost")
    for name, own in found.items():
        lost = [each[0] - each[budgets[1]] for each in (own, base)]
        less = f"{1 - lost[0] / lost[1]:10.1%}" if lost[1] > 0 else "–".rjust(10)
        kept = f"{own[0] / base[0]:7.1%}" if base[0] > 0 else "–".rjust(7)
        print(name.ljust(width), *(f"{100 * own[budget]:6.1f}" for budget in budgets), kept, less)
    print(f"kept: of the clean score of {options.folders[0]}; less lost: by budget {budgets[1]:g}, than that one loses")
    return 0


if __name__ == "__main__":
    sys.exit(main())
