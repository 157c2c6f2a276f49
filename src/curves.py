"""Learning curves of runs as an SVG picture: a score by epoch, from metrics.csv."""

import csv
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 36, 44
COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")

Curve = Sequence[tuple[int, float]]
"""Epochs, counted from 1, and the score after each."""


def read_curve(run: Path, score: str) -> Curve:
    """A validation score by epoch, as metrics.csv in a run's folder has it.

    Raises:
        ValueError: there is no metrics.csv, or it never has this score; the message names those it has.
    """
    path = run / "metrics.csv"
    if not path.exists():
        raise ValueError(f"{path}: no such file: this run has no curve (logger=csv writes it)")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    values = {int(row["epoch"]) + 1: float(row[f"val/{score}"]) for row in rows if row.get(f"val/{score}")}
    if not values:
        names = sorted({key.removeprefix("val/") for row in rows for key in row if key and key.startswith("val/")})
        raise ValueError(f"{path} has no val/{score}; it has {', '.join(names) or 'no validation yet'}")
    return sorted(values.items())


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from low to high, at most so many steps apart."""
    rough = (high - low) / most or 1.0
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    return [step * number for number in range(math.floor(low / step), math.ceil(high / step - 1e-9) + 1)]


def curves_svg(curves: Mapping[str, Curve], label: str, scale: float = 1.0) -> str:
    """Draw curves by name, each value times `scale`."""
    epochs = [epoch for curve in curves.values() for epoch, _ in curve]
    values = [scale * value for curve in curves.values() for _, value in curve]
    across = [tick for tick in _ticks(min(epochs), max(epochs), 12) if tick == int(tick) and tick <= max(epochs)]
    up = _ticks(min(values), max(values), 6)
    first, last = min(epochs), max(max(epochs), min(epochs) + 1)

    def x(epoch: float) -> float:
        return LEFT + (epoch - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - up[0]) / ((up[-1] - up[0]) or 1) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><title>{escape(label)} by epoch</title><rect width="100%" height="100%" fill="white"/>'
    ]
    for tick in up:
        parts.append(f'<path d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end" fill="#374151">{tick:g}</text>')
    for tick in across:
        if tick >= first:
            place = f'x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}"'
            parts.append(f'<text {place} text-anchor="middle" fill="#374151">{tick:g}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle" fill="#374151">epoch</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 16}" fill="#374151">{escape(label)}</text>')
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{x(epoch):.1f},{y(scale * value):.1f}" for epoch, value in curve)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        dots = "".join(f'<circle cx="{x(e):.1f}" cy="{y(scale * v):.1f}" r="2.5"/>' for e, v in curve)
        parts.append(f'<g fill="{colour}">{dots}</g>')
        place = f'x="{WIDTH - RIGHT - 8}" y="{HEIGHT - BOTTOM - 10 - 16 * (len(curves) - 1 - number)}"'
        parts.append(f'<text {place} text-anchor="end" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
