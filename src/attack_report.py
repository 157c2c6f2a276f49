"""An attack as a page: curves over the budget, and pictures before and after."""

import base64
import io
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
