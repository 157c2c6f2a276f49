"""Pictures that stand in several splits, byte for byte: what is scored on them is what was learned from them."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from src.files import write_atomically

Leaks = Literal["warn", "error", "off"]


class Leak(NamedTuple):
    """A picture of a split, and the same content in another split."""

    split: str
    image: str
    other_split: str
    other: str


def exact_leaks(splits: Mapping[str, Sequence[str]], root: Path) -> list[Leak]:
    """The pictures of later splits whose content an earlier split has; of several there, the first. Only files of one
    size are read. Files that are not there are left out: that they are missing is for others to say.

    Args:
        splits: images of each, as paths relative to root; training first.
        root: the folder.
    """
    names = list(splits)
    images = [image for name in names for image in splits[name]]
    if not images:
        return []
    of = np.repeat(np.arange(len(names)), [len(splits[name]) for name in names])
    sizes = np.array([_size(root / image) for image in images], np.int64)
    order = np.lexsort((of, sizes))
    ends = np.flatnonzero(np.diff(sizes[order])) + 1
    found: list[tuple[int, int]] = []
    for same in np.split(order, ends):
        if sizes[same[0]] < 0 or of[same[0]] == of[same[-1]]:
            continue
        first: dict[bytes, int] = {}
        digests: dict[str, bytes | None] = {}  # a file that two splits name is read once
        for place in same.tolist():
            image = images[place]
            if image not in digests:
                digests[image] = _digest(root / image)
            digest = digests[image]
            if digest is not None and of[first.setdefault(digest, place)] != of[place]:
                found.append((first[digest], place))
    found.sort(key=lambda pair: pair[1])
    return [Leak(names[of[b]], images[b], names[of[a]], images[a]) for a, b in found]


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _digest(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None


def write_leaks(path: Path, leaks: Sequence[Leak]) -> None:
    """Write them as `split<TAB>picture<TAB>split<TAB>picture`; of none there is no file."""
    path.unlink(missing_ok=True)
    if leaks:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join("\t".join(leak) + "\n" for leak in leaks))


def leaks_told(leaks: Sequence[Leak], listed: Path) -> str:
    """A sentence on some, one or more."""
    counts = Counter((leak.split, leak.other_split) for leak in leaks)
    told = ", ".join(f"{times} of {split} in {other}" for (split, other), times in counts.items())
    one = leaks[0]
    return (
        f"pictures stand in two splits, byte for byte: {told}, such as {one.image} ({one.split}) and {one.other} "
        f"({one.other_split}). Scores on them are of what was learned: leave them out of one ({listed} lists them; "
        "`python -m src.duplicates --across` finds copies that were scaled, cropped or compressed too)"
    )
