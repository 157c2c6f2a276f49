"""A picture of words: their vectors on a plane, as SVG, HTML or PNG."""

import io
import os
from collections.abc import Collection, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from src.figures import drawable, fitted, language
from src.files import write_atomically

WIDTH, HEIGHT, MARGIN = 1200, 900, 30
FONT, DOT = 14, 2
PLAIN, MARKED, FAINT = "#374151", "#dc2626", "#9ca3af"
FORMATS = (".svg", ".html", ".png")


class Place(NamedTuple):
    word: str
    x: float
    y: float
    """Of its dot, in pixels from the top left."""
    label: float | None
    """Where its name begins; None: there is no room for it."""
    marked: bool


def plane(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, E) → (N, 2): their directions along the two axes on which they differ most (principal components)."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    left, strength, _ = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    points = np.zeros((len(vectors), 2))
    found = (left * strength)[:, :2]
    points[:, : found.shape[1]] = found
    return points * np.where(points.sum(0) < 0, -1, 1)  # an axis has no direction of its own


def places(words: Sequence[str], points: np.ndarray, marked: Collection[str] = ()) -> list[Place]:
    """Where words are drawn. Names do not overlap: marked words have theirs first, then the words in their order.

    Args:
        words: N.
        points: (N, 2).
        marked: those of them that stand out.
    """
    low, high = points.min(0), points.max(0)
    scaled = (points - low) / np.where(high > low, high - low, 1)
    x, y = MARGIN + scaled[:, 0] * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - scaled[:, 1] * (HEIGHT - 2 * MARGIN)
    labels: dict[int, float] = {}
    taken = np.zeros((0, 4))
    for i in sorted(range(len(words)), key=lambda i: words[i] not in marked):
        width = _length(words[i])
        for left in (x[i] + 2 * DOT, x[i] - 2 * DOT - width):
            box = np.array([left, y[i] - FONT / 2, left + width, y[i] + FONT / 2])
            clear = (box[:2] >= taken[:, 2:]).any(1) | (box[2:] <= taken[:, :2]).any(1)
            if left >= 0 and box[2] <= WIDTH and clear.all():
                labels[i], taken = left, np.vstack([taken, box])
                break
    return [Place(word, x[i], y[i], labels.get(i), word in marked) for i, word in enumerate(words)]


def _length(word: str) -> float:
    """Pixels of its name, roughly: a browser has fonts of its own."""
    if language(word) == "zh":
        return FONT * len(word)
    return ImageFont.load_default(FONT).getlength(word)


def map_svg(drawn: Sequence[Place]) -> str:
    """Words as an SVG; each dot says its word where the mouse is on it."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="{FONT}"><title>{len(drawn)} words</title><rect width="100%" height="100%" fill="white"/>'
    ]
    for place in drawn:
        colour = MARKED if place.marked else PLAIN if place.label is not None else FAINT
        name = escape(place.word)
        parts.append(
            f'<circle cx="{place.x:.1f}" cy="{place.y:.1f}" r="{DOT}" fill="{colour}"><title>{name}</title></circle>'
        )
        if place.label is not None:
            parts.append(
                f'<text x="{place.label:.1f}" y="{place.y:.1f}" dy="0.35em" fill="{colour}" '
                f'lang="{language(place.word)}">{name}</text>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def map_image(drawn: Sequence[Place]) -> Image.Image:
    """Words as a picture.

    Raises:
        ValueError: some are Chinese, and this machine has no font for them.
    """
    if any(not drawable(place.word) for place in drawn):
        raise ValueError(
            "no font with Chinese characters here: install one, for example Debian's fonts-wqy-microhei, or write .svg "
            "or .html, for which a browser has its own"
        )
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    for place in drawn:
        colour = MARKED if place.marked else PLAIN if place.label is not None else FAINT
        draw.ellipse((place.x - DOT, place.y - DOT, place.x + DOT, place.y + DOT), fill=colour)
        if place.label is not None:
            word, font = fitted(place.word, FONT, WIDTH)
            draw.text((place.label, place.y), word, fill=colour, font=font, anchor="lm")
    return image


def write_map(path: Path, drawn: Sequence[Place]) -> None:
    """Write words as a file; its ending, one of FORMATS, tells of which kind.

    Raises:
        ValueError: as `map_image`, for a PNG.
    """
    if path.suffix == ".png":
        content = io.BytesIO()
        map_image(drawn).save(content, "PNG")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_bytes(content.getvalue())
        os.replace(partial, path)
        return
    svg = map_svg(drawn)
    page = f'<!doctype html>\n<meta charset="utf-8">\n<title>{len(drawn)} words</title>\n{svg}'
    write_atomically(path, page if path.suffix == ".html" else svg)
