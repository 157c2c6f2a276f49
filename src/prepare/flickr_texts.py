"""The texts of Flickr8k, Flickr8k-CN and Flickr30k: captions as their owners and as Kaggle publish them, and lists."""

import csv
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from src.prepare.importer import Captions, many, read_text

_IMAGE = re.compile(r"[^/]+\.(?:jpe?g|png)", re.IGNORECASE)
# NAME#2<TAB>caption, and Flickr8k-CN's NAME#zhc#2 caption
_TOKEN = re.compile(r"([^#\s]+)#(?:[a-z]+#)?\d+(?:[\t ](.*))?")
# NAME| 2| caption. The second | is optional, for Flickr30k's row `2199200615.jpg| 4   A dog runs across the grass .`
_PIPED = re.compile(r"([^|]+?)\s*\|\s*\d+(?:\s*\||\s|$)(.*)")

Row = tuple[str, str]
"""(image name as it is written, caption)"""


class Text(NamedTuple):
    """A file of captions."""

    captions: Captions
    left_out: list[str]
    """What was not taken, and why: one phrase each."""


def read_captions(path: Path) -> Text:
    """Read `NAME#2<TAB>caption`, `NAME#zhc#2 caption`, or a table with a header: `image,caption`, `image_name| … | …`.

    Captions of a name that no image can have (Flickr8k: `….jpg.1`) are left out. Raises ValueError for a line in
    another form.
    """
    lines = [(number, line) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    read, header = _form(lines[0][1] if lines else "")
    captions: Captions = {}
    damaged = Counter[str]()
    for number, line in lines[header:]:
        row = read(line)
        if row is None:
            raise ValueError(
                f"{path}:{number}: expected IMAGE.jpg#0<TAB>caption in every line, or the header image,caption (or "
                f"image_name| comment_number| comment) above such rows, but found {line[:60]!r}: get the file again."
            )
        name, caption = row
        if image := image_name(name):
            captions.setdefault(image, []).append(caption)
        else:
            damaged[name] += 1
    return Text(captions, [f"{many(n, 'caption')} of {name}, which is no image's name" for name, n in damaged.items()])


def _form(first: str) -> tuple[Callable[[str], Row | None], bool]:
    """(what reads a row, whether the first line is a header), from the first line."""
    if "|" in first and not _TOKEN.fullmatch(first):
        return _matching(_PIPED), not _PIPED.fullmatch(first)
    if re.search(r",\s*\"?(caption|comment)", first, re.IGNORECASE) and not _TOKEN.fullmatch(first):
        columns = first.count(",")  # before the caption: the image, and perhaps the caption's number

        def commas(line: str) -> Row | None:
            cells = next(csv.reader([line]))
            return (cells[0], ",".join(cells[columns:])) if len(cells) > columns else None

        return commas, True
    return _matching(_TOKEN), False


def _matching(pattern: re.Pattern[str]) -> Callable[[str], Row | None]:
    def read(line: str) -> Row | None:
        match = pattern.fullmatch(line)
        return (match[1], match[2] or "") if match else None

    return read


def read_list(path: Path) -> list[str]:
    """The images of a split, one a line, with or without `.jpg`; raises ValueError for an empty list."""
    names = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    if not names:
        raise ValueError(f"{path} is empty: expected an image's name in each line; get the file again.")
    return [image_name(name) or name for name in names]


def image_name(written: str) -> str | None:
    """The image's file name; `.jpg` is added where there is no extension. None for what no image can be called."""
    if _IMAGE.fullmatch(written):
        return written
    return None if "." in written else f"{written}.jpg"
