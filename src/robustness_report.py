"""What robustness measured, as a table, as CSV and as a page."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from src.charts import Line, Text, line_chart
from src.corruptions import FAMILIES
from src.files import encodable, write_atomically
from src.overview import score_name, score_text
from src.report import template
from src.runs import csv_table, text_table
from src.translations import both, known

SIZE = (400, 260)
"""Pixels of a chart."""
LONGEST_SIDE = 256
"""Pixels of a picture on the page."""


def text_of(report: Mapping[str, Any]) -> str:
    """Tables for a terminal, × 100: each captioner by kind and severity, and all of them together."""
    measure, severities = report["measure"], report["severities"]
    parts = []
    for each in report["captioners"]:
        rows = [_row("clean", "", [], each["clean"][measure], None, measure, severities)]
        for kind, family in report["kinds"].items():
            scores = [each["scores"][kind][str(severity)][measure] for severity in severities]
            rows.append(_row(kind, family, scores, each["by_kind"][kind], each["clean"][measure], measure, severities))
        rows += [
            _row(f"all {family}", family, [], value, each["clean"][measure], measure, severities)
            for family, value in each["by_family"].items()
        ]
        columns = ["damage", "family", *map(str, severities), "mean", "kept"]
        heading = f"\n{each['model']}, {report['split']}, {report['images']} images, {measure} × 100 by severity:"
        parts += [heading, text_table(columns, rows)]
        if not each["attends"] and "occlusion" in report["kinds"]:
            parts.append("  occlusion: it does not say where it looks, so the middle of the pictures is hidden")
    rows = [
        {
            "captioner": each["model"],
            "clean": score_text(measure, each["clean"][measure]),
            "damaged": score_text(measure, each["mean"]),
            "95 % interval": _range(each["interval"]),
            "mCE": _hundred(each["mCE"]),
            "relative mCE": _hundred(each["relative_mCE"]),
        }
        for each in report["captioners"]
    ]
    beside = f"mCE (error 1 − ROUGE-L) and relative mCE ({measure}) beside {report['relative_to']}, 100 as much:"
    return "\n".join([*parts, f"\n{beside}", text_table(list(rows[0]), rows)])


def _row(
    kind: str,
    family: str,
    scores: Sequence[float],
    mean: float,
    clean: float | None,
    measure: str,
    severities: Sequence[int],
) -> dict[str, Any]:
    by_severity = {str(s): score_text(measure, score) for s, score in zip(severities, scores, strict=False)}
    kept = f"{100 * mean / clean:.0f} %" if clean else None
    return {"damage": kind, "family": family, **by_severity, "mean": score_text(measure, mean), "kept": kept}


def _hundred(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _range(ends: Sequence[float] | None) -> str:
    return "–" if ends is None else f"{100 * ends[0]:.1f} … {100 * ends[1]:.1f}"


def csv_of(report: Mapping[str, Any]) -> str:
    """A row for each captioner, kind and severity; clean pictures are of severity 0; scores are fractions."""
    rows = []
    for each in report["captioners"]:
        rows.append({"captioner": each["model"], "kind": "clean", "family": "", "severity": 0, **each["clean"]})
        for kind, family in report["kinds"].items():
            rows += [
                {"captioner": each["model"], "kind": kind, "family": family, "severity": int(severity), **scores}
                for severity, scores in each["scores"][kind].items()
            ]
    return csv_table(["captioner", "kind", "family", "severity", *report["metrics"]], rows)


# ---------------------------------------------------------------- the page


def write_page(path: Path, report: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]) -> None:
    """Write one HTML file that fetches nothing: heat maps, charts, and pictures with their captions.

    Args:
        path: the file; its folder is made.
        report: what robustness.json holds.
        examples: `name`, `kind`, `severity`, `before` and `after` (H, W, 3), `said` ([name of a captioner, captions
            before and after, their scores]), `references`.
    """
    measure, captioners = report["measure"], report["captioners"]
    cards = [
        {
            **example,
            "kind": kind_name(example["kind"]),
            "pictures": [_jpeg(example["before"]), _jpeg(example["after"])],
            "said": [
                (name, captions, [score_text(measure, score) for score in scores])
                for name, captions, scores in example["said"]
            ],
        }
        for example in examples
    ]
    html = template("robustness.html.j2").render(
        report=report,
        measure=score_name(measure),
        several=len(captioners) > 1,
        maps=[_heat_map(report, each) for each in captioners],
        summary=[
            {
                "model": each["model"],
                "clean": score_text(measure, each["clean"][measure]),
                "clean_interval": _range(each["clean_interval"]),
                "damaged": score_text(measure, each["mean"]),
                "interval": _range(each["interval"]),
                "kept": _kept(each["mean"], each["clean"][measure]),
                "mce": _hundred(each["mCE"]),
                "relative_mce": _hundred(each["relative_mCE"]),
            }
            for each in captioners
        ],
        charts=_charts(report),
        cards=cards,
        in_the_middle=[each["model"] for each in captioners if not each["attends"] and "occlusion" in report["kinds"]],
    )
    write_atomically(path, encodable(html))


def kind_name(kind: str) -> Text:
    """A kind's name for readers."""
    return known(kind.replace("_", " ").replace("jpeg", "JPEG"))


def _kept(score: float, clean: float) -> int | None:
    """Per cent of the clean score."""
    return round(100 * score / clean) if clean else None


def _heat_map(report: Mapping[str, Any], each: Mapping[str, Any]) -> list[tuple[Text, list[dict[str, Any]]]]:
    """By family, the rows of kinds: their cells, a number and its share of the clean score each."""
    measure = report["measure"]
    clean = each["clean"][measure]

    def cell(score: float) -> tuple[str, int | None]:
        return score_text(measure, score), _kept(score, clean)

    return [
        (
            known(family),
            [
                {
                    "name": kind_name(kind),
                    "cells": [cell(each["scores"][kind][str(s)][measure]) for s in report["severities"]],
                    "mean": cell(each["by_kind"][kind]),
                }
                for kind, of in report["kinds"].items()
                if of == family
            ],
        )
        for family in FAMILIES
        if family in each["by_family"]
    ]


def _charts(report: Mapping[str, Any]) -> list[tuple[Text, str]]:
    """Score by severity: of the captioners, where there are several; of each one's families; of a family's kinds."""
    measure, severities = report["measure"], report["severities"]

    def line(name: Text, each: Mapping[str, Any], kinds: Sequence[str], series: int) -> Line:
        scores = [np.mean([each["scores"][kind][str(s)][measure] for kind in kinds]) for s in severities]
        points = [(0.0, 100 * each["clean"][measure])]
        points += [(float(s), 100 * float(score)) for s, score in zip(severities, scores, strict=True)]
        return Line(name, points, series)

    def chart(title: Text, lines: Sequence[Line]) -> tuple[Text, str]:
        across = both("severity (0: as it is)")
        return title, line_chart(lines, title=title, across=across, up=f"{measure} × 100", size=SIZE)

    every, captioners = list(report["kinds"]), report["captioners"]
    charts = []
    if len(captioners) > 1:
        lines = [line(each["model"], each, every, i) for i, each in enumerate(captioners)]
        charts.append(chart(both("Captioners, all kinds"), lines))
    for each in captioners:
        of = {family: [kind for kind in every if report["kinds"][kind] == family] for family in each["by_family"]}
        lines = [line(known(family), each, kinds, i) for i, (family, kinds) in enumerate(of.items())]
        name = each["model"] if len(captioners) > 1 else None
        charts.append(chart(both("Families of {name}", name=name) if name else both("Families"), lines))
    first = captioners[0]
    for family, kinds in of.items():
        lines = [line(kind_name(kind), first, [kind], i) for i, kind in enumerate(kinds)]
        charts.append(chart(known(family), lines))
    return charts


def _jpeg(pixels: np.ndarray) -> dict[str, Any]:
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    image.save(buffer, "JPEG", quality=85, optimize=True)
    data = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"data": data, "width": image.width, "height": image.height}
