"""What a reader looks at: an evaluation's HTML report, and a picture of where a caption's words looked."""

import base64
import io
import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from src.data.images import ImageError, load_image
from src.data.transforms import GREY, Preprocess
from src.metrics import is_fraction

log = logging.getLogger(__name__)

LONGEST_SIDE = 320
"""Pixels of a picture in the report."""
UNIT = 10_000
"""Attention weights are written as whole numbers of 1 / UNIT."""
FAINT = 3
"""A word's overlay reaches full strength at its largest weight, but only where that is FAINT times the even
share 1 / R or more: attention that is spread over everything should not look as if it pointed somewhere."""
RAMP = ((8, 8, 28, 200), (44, 14, 66, 176), (140, 36, 92, 132), (250, 130, 60, 72), (255, 220, 110, 24))
"""Red, green, blue, alpha laid over the picture, from weight 0 to the strongest, evenly spaced: the
unattended sinks into the dark, the attended keeps its own colours."""
SQUASHED = Preprocess()
CJK_FONTS = (
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.otf"),
    *("SourceHanSansSC-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf"),
    *("PingFang.ttc", "Hiragino Sans GB.ttc", "STHeiti Medium.ttc", "msyh.ttc", "simhei.ttf", "simsun.ttc"),
)
"""Looked for by name where the system keeps its fonts (Linux, macOS, Windows)."""


def nothing() -> Image.Image:
    """What is shown of a picture of which there are regions and no file."""
    return Image.new("RGB", (LONGEST_SIDE, LONGEST_SIDE), GREY)


class Example(NamedTuple):
    """A captioned picture. R regions."""

    image: Path
    """The picture's file."""
    caption: str
    words: list[str]
    """The generated words in order, without EOS."""
    attention: np.ndarray | None
    """(len(words), R) weights; a row sums to 1, or less where a sentinel took the rest."""
    boxes: np.ndarray | None
    """(R, 4): x1, y1, x2, y2 in [0, 1] of the picture as the model saw it (`preprocess`). None: a square grid."""
    references: list[str]
    scores: dict[str, float]
    """The picture's own, e.g. {"CIDEr": 0.8}: fractions."""
    picture: Image.Image | None = None
    """What is shown instead of the file, where there is none."""


def score_text(name: str, value: float | int | str | None) -> str:
    """A score as it is printed: fractions × 100, counts and lengths as they are, None as "not computed"."""
    if value is None:
        return "not computed"
    if isinstance(value, str):
        return value
    if is_fraction(name):
        return f"{100 * value:.1f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def evenly(total: int, count: int) -> list[int]:
    """Up to `count` of the numbers below `total`, evenly spread from the first to the last."""
    count = min(count, total)
    return sorted({round(i * (total - 1) / max(1, count - 1)) for i in range(count)})


def write_report(
    path: Path,
    *,
    title: str,
    scores: Mapping[str, float | int | str | None],
    not_computed: Mapping[str, str],
    meta: Mapping[str, object],
    examples: Sequence[Example],
    preprocess: Preprocess = SQUASHED,
) -> None:
    """Write one HTML file that needs nothing else: pictures and weights are inside, and nothing is fetched.

    It comes after a long evaluation and so does not fail over one example: an unreadable picture leaves a
    placeholder that names it; attention that does not fit its words and boxes is left out with a warning.

    Args:
        path: the file; its folder is made.
        title: the heading.
        scores: by name (see `is_fraction`), shown in this order, numbers first.
        not_computed: why a score is None, and what to install.
        meta: settings to be shown, nested ones as JSON.
        examples: in the order to be shown.
        preprocess: how pictures became square; boxes are placed by it.
    """
    rows = []
    for name, value in {**scores, **{name: None for name in not_computed if name not in scores}}.items():
        wide = value is None or isinstance(value, str)
        reason = not_computed.get(name, "") if value is None else ""
        rows.append({"name": _label(name), "value": score_text(name, value), "reason": reason, "wide": wide})
    html = _template().render(
        title=title,
        scores=sorted(rows, key=lambda row: bool(row["wide"])),
        meta=[(name, _setting(value)) for name, value in meta.items()],
        sort_keys=list(dict.fromkeys(key for example in examples for key in example.scores)),
        examples=[_card(example, preprocess) for example in examples],
        ramp=RAMP,
        unit=UNIT,
        faint=FAINT,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    # a file name may hold bytes that are not UTF-8
    partial.write_text(html, encoding="utf-8", errors="replace")
    os.replace(partial, path)


def attention_figure(
    image: Path | Image.Image,
    words: Sequence[str],
    attention: np.ndarray,
    boxes: np.ndarray | None = None,
    columns: int | None = None,
    tile: int = 200,
    preprocess: Preprocess = SQUASHED,
) -> Image.Image:
    """Draw where each word looked: the picture, then for each word the picture under its attention.

    A Chinese word is drawn as its number in the caption where this machine has no font for it.

    Args:
        image: the picture.
        words: W words.
        attention: (W, R) weights.
        boxes: (R, 4) as in `Example`; a regular grid is drawn smoothly, other boxes as they are.
        columns: tiles in a row; by default at most six, in rows of like length.
        tile: pixels of a tile's longer side.
        preprocess: as in `write_report`.

    Returns:
        RGB, on white.

    Raises:
        ValueError: no words, or shapes that do not agree.
        ImageError: a picture that cannot be read.
    """
    picture = ImageOps.contain(load_image(image, draft=2 * tile), (tile, tile), Image.Resampling.LANCZOS)
    weights, regions = _placed(words, attention, boxes, picture.size, preprocess)
    count = len(words) + 1
    columns = columns or math.ceil(count / math.ceil(count / 6))
    gap, size = tile // 20, tile // 10
    step_x, step_y = picture.width + gap, picture.height + 2 * size + gap
    rows = math.ceil(count / columns)
    figure = Image.new("RGB", (min(columns, count) * step_x + gap, rows * step_y), "white")
    draw = ImageDraw.Draw(figure)
    for i in range(count):
        x, y = gap + i % columns * step_x, gap + i // columns * step_y
        figure.paste(picture, (x, y))
        if i:
            overlay = _overlay(weights[i - 1], regions, picture.size)
            figure.paste(overlay, (x, y), overlay)
            word = words[i - 1] if drawable(words[i - 1]) else str(i)
            word, font = fitted(word, size, picture.width)
            place = (x + picture.width // 2, y + picture.height + int(0.9 * size))
            draw.text(place, word, fill="#1a1d23", font=font, anchor="mm")
    return figure


# Attention


class _Regions(NamedTuple):
    boxes: np.ndarray
    """(R, 4): x1, y1, x2, y2 as fractions of the whole picture; beyond [0, 1] where the model saw bars."""
    grid: tuple[int, int] | None
    """Rows and columns, where the boxes are a regular grid's cells row by row."""
    extent: np.ndarray
    """x1, y1, x2, y2 around all boxes."""


def _placed(
    words: Sequence[str],
    attention: np.ndarray,
    boxes: np.ndarray | None,
    size: tuple[int, int],
    preprocess: Preprocess,
) -> tuple[np.ndarray, _Regions]:
    """The weights, and where their regions lie on a picture of this size. ValueError: shapes disagree."""
    weights = np.nan_to_num(np.asarray(attention, dtype=np.float64), posinf=0).clip(0)
    if weights.ndim != 2 or len(weights) != len(words) or weights.size == 0:
        raise ValueError(f"attention is {weights.shape}, where {len(words)} words need ({len(words)}, R)")
    count = weights.shape[1]
    square = math.isqrt(count)
    boxes = _cells(square, square) if boxes is None else np.asarray(boxes, dtype=np.float64)
    if boxes.shape != (count, 4):
        raise ValueError(f"boxes are {boxes.shape}, where attention over {count} regions needs ({count}, 4)")
    # Maps of several stages may have cells of the same places: what is seen there is seen once.
    _, first, place = np.unique(boxes.round(4), axis=0, return_index=True, return_inverse=True)
    if len(first) < count:
        order = np.argsort(np.argsort(first))
        weights = weights @ np.eye(len(first))[order[place.reshape(-1)]]
        boxes = boxes[np.sort(first)]
    boxes = (boxes - 0.5) * np.tile(np.divide(preprocess.seen(*size), size), 2) + 0.5
    extent = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
    columns, rows = (len(np.unique(boxes[:, axis].round(4))) for axis in (0, 1))
    cells = _cells(rows, columns) * np.tile(extent[2:] - extent[:2], 2) + np.tile(extent[:2], 2)
    regular = cells.shape == boxes.shape and np.allclose(cells, boxes, atol=1e-3)
    return weights, _Regions(boxes, (rows, columns) if regular else None, extent)


def _cells(rows: int, columns: int) -> np.ndarray:
    """Boxes (rows · columns, 4) of a regular grid over the unit square, row by row."""
    y, x = (index.ravel() for index in np.indices((rows, columns)))
    return np.stack([x, y, x + 1, y + 1], 1) / [columns, rows, columns, rows]


def _quantised(weights: np.ndarray) -> np.ndarray:
    """(W, R) weights as whole numbers of 1 / UNIT whose rows keep their sums: what rounding down leaves over
    goes to those with the largest remainders."""
    scaled = weights * UNIT
    whole = np.floor(scaled).astype(np.int64)
    missing = np.rint(scaled.sum(1)).astype(np.int64) - whole.sum(1)
    rank = np.argsort(np.argsort(whole - scaled, axis=1, kind="stable"), axis=1)
    return whole + (rank < missing[:, None])


def _overlay(row: np.ndarray, regions: _Regions, size: tuple[int, int]) -> Image.Image:
    """One word's weights (R,) as an RGBA layer; the report's script draws the same."""
    values = row / max(row.max(), FAINT / len(row))
    strength = Image.new("F", size, 0.0)
    pixels = np.array([*size, *size])
    corners = np.rint(regions.boxes * pixels).astype(int).tolist()
    if regions.grid:
        x1, y1, x2, y2 = np.rint(regions.extent * pixels).astype(int).tolist()
        cells = Image.fromarray(values.reshape(regions.grid).astype(np.float32))
        strength.paste(cells.resize((max(1, x2 - x1), max(1, y2 - y1)), Image.Resampling.BICUBIC), (x1, y1))
    else:
        draw = ImageDraw.Draw(strength)
        for i in np.argsort(values, kind="stable"):  # the strongest last: where boxes overlap, it is seen
            draw.rectangle(corners[i], fill=float(values[i]))
    at = np.asarray(strength).clip(0, 1) * (len(RAMP) - 1)
    layer = np.stack([np.interp(at, range(len(RAMP)), channel) for channel in zip(*RAMP, strict=True)], -1)
    result = Image.fromarray(layer.astype(np.uint8))
    if not regions.grid:
        draw = ImageDraw.Draw(result)
        for i in np.flatnonzero(values > 0.5):
            draw.rectangle(corners[i], outline="white")
    return result


# Words


def language(text: str) -> str:
    """The lang attribute: browsers choose Chinese glyphs, line breaks and voices by it."""
    ideograph = r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
    return "zh" if re.search(ideograph, text) else "en"


def _aligned(caption: str, words: Sequence[str]) -> list[tuple[str, str]]:
    """The caption cut into (what stands between, word), its end as (…, ""); the words alone where it does not
    hold them in order, as when a tokenizer joins them otherwise."""
    parts, at = [], 0
    for word in words:
        found = caption.find(word, at)
        if found < 0:
            space = "" if language(caption) == "zh" else " "
            return [(space if i else "", word) for i, word in enumerate(words)]
        parts.append((caption[at:found], word))
        at = found + len(word)
    return [*parts, (caption[at:], "")] if at < len(caption) else parts


@cache
def _cjk_font() -> str | None:
    """The first of CJK_FONTS that is here."""
    for name in CJK_FONTS:
        try:
            ImageFont.truetype(name)
        except OSError:
            continue
        return name
    log.warning(
        "no font with Chinese characters here: pictures of attention number their words instead; install one, for "
        "example Debian's fonts-wqy-microhei"
    )
    return None


def drawable(word: str) -> bool:
    """Whether there is a font for it: Pillow's own has no Chinese characters and would draw every one as a box."""
    return language(word) != "zh" or _cjk_font() is not None


@cache
def _font(size: int, language: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    name = _cjk_font() if language == "zh" else None
    return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)


def fitted(word: str, size: int, width: int) -> tuple[str, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """The word, cut with an ellipsis where it is wider than `width` pixels, and its font."""
    font = _font(size, language(word))
    whole = word
    while len(word) > 1 and font.getlength(word) > width:
        whole = whole[:-1]
        word = whole + "…"
    return word, font


def _label(name: str) -> str:
    """A score's name for readers: BLEU-4 for Bleu_4, "mean length" for mean_length."""
    known = re.sub(r"^Bleu_", "BLEU-", name).replace("ROUGE_L", "ROUGE-L")
    return known.replace("_", " ")


def _setting(value: object) -> str:
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, indent=2, ensure_ascii=False, default=str)
    return str(value)


# The page


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"lang": language, "label": _label}
    return environment.get_template("report.html.j2")


def _card(example: Example, preprocess: Preprocess) -> dict[str, Any]:
    """What the template shows of an example."""
    name = "/".join(example.image.parts[-2:])  # not where the reader's home is
    scores = {key: value for key, value in example.scores.items() if math.isfinite(value)}
    card: dict[str, Any] = {
        "name": name,
        "alt": example.references[0] if example.references else f"Picture {example.image.name}",
        "caption": example.caption,
        "words": _aligned(example.caption, example.words),
        "references": example.references,
        "scores": scores,
        "measures": [(_label(key), score_text(key, value)) for key, value in scores.items()],
        "picture": None,
        "attention": None,
    }
    try:
        picture = load_image(example.picture or example.image, draft=2 * LONGEST_SIDE)
    except ImageError as error:
        log.warning("not shown in the report: %s", error)
        return card | {"problem": str(error).replace(str(example.image), name)}
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=75, optimize=True, progressive=True)
    card["picture"] = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    card["aspect"] = picture.width / picture.height
    if example.attention is not None and example.words:
        try:
            weights, regions = _placed(example.words, example.attention, example.boxes, picture.size, preprocess)
        except ValueError as error:
            log.warning("%s: its attention is left out of the report: %s", example.image, error)
            return card
        where: dict[str, Any] = {"boxes": regions.boxes.round(4).tolist()}
        if regions.grid:
            where = {"grid": regions.grid, "extent": regions.extent.round(4).tolist()}
        card["attention"] = json.dumps(_quantised(weights).tolist(), separators=(",", ":"))
        card["regions"] = json.dumps(where, separators=(",", ":"))
    return card
