"""Near-duplicates among pictures, in groups: `python -m src.duplicates photos/ -o groups.tsv`; or of one split in
another: `python -m src.duplicates --across train.tsv val.tsv --root data`."""

import argparse
import base64
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

from src.captioner import Captioner
from src.config import keep_freed_memory
from src.data.images import ImageError
from src.data.tsv import read_tsv
from src.distributed import Place
from src.files import check_names, encodable
from src.parts import Parts
from src.picture_flags import add_computing_flags, add_model_flag, check_computing, depends_on, ended, one_captioner
from src.pictures import find_pictures
from src.rows import check_output

SIDE, LARGE = 16, 64
"""Pixels a side at which pictures are compared, and from which windows are cut for that."""
WINDOWS = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7)
"""Sides of the windows, as shares of the picture's."""
SHIFTS = 5
"""Places of a window, across and down."""
ALIKE = 0.8
"""The cosine of two pictures' features from which they are compared as pixels."""
SIMILARITY = 0.9
"""From which two pictures are nearly the same: see docs/annotating.md."""
BLOCK = 1024
"""Pictures whose cosines with all others are held at a time."""


class Look(NamedTuple):
    """What is kept of a picture."""

    features: np.ndarray
    """(D,) float16: its pooled features, of unit length."""
    grey: np.ndarray
    """(LARGE, LARGE) uint8."""
    pixels: int
    """Width × height of the file."""


class Pair(NamedTuple):
    first: int
    second: int
    similarity: float
    """In [0, 1]: see `pairs`."""


def pairs(
    looks: Sequence[Look], similarity: float, progress: bool = False, splits: Sequence[int] | None = None
) -> Iterator[Pair]:
    """Pictures that are near-duplicates: scaled, compressed, cropped, mirrored, made brighter or grey.

    Two pictures whose features have a cosine of ALIKE or more, which also holds for different pictures of like things,
    are compared as pixels: their similarity is the highest normalised cross-correlation of one, as it is or mirrored,
    with the windows of the other, at SIDE × SIDE; 1 where all that is kept of their pixels is equal, since flat ones
    have nothing to correlate.

    Args:
        looks: of all pictures.
        similarity: from which a pair is yielded, in (0, 1].
        progress: show a bar.
        splits: which each picture is of, where only pairs of different ones are asked for.
    """
    of = np.arange(len(looks)) if splits is None else np.array(splits)
    features = np.stack([look.features for look in looks]).astype(np.float32)
    whole = _normalised(np.stack([_small(look.grey) for look in looks]))
    mirrored = _normalised(np.stack([_small(look.grey)[:, ::-1] for look in looks]))
    kinds: dict[bytes, int] = {}
    kind = np.array([kinds.setdefault(hashlib.sha256(look.grey.tobytes()).digest(), len(kinds)) for look in looks])
    with tqdm(total=len(looks), desc="comparing", unit="img", disable=not progress) as bar:
        for start in range(0, len(looks), BLOCK):
            block = slice(start, start + BLOCK)
            close = features[block] @ features.T >= ALIKE
            for first in range(start, min(start + BLOCK, len(looks))):
                others = np.flatnonzero(close[first - start])
                others = others[of[others] != of[first]]
                if len(others):
                    windows = _windows(looks[first].grey)
                    both = np.stack([windows @ whole[others].T, windows @ mirrored[others].T])
                    values = np.where(kind[others] == kind[first], 1.0, both.max((0, 1)))
                    for second, value in zip(others.tolist(), values.tolist(), strict=True):
                        if value >= similarity:
                            yield Pair(first, second, value)
                bar.update()


def groups(count: int, found: Sequence[Pair]) -> list[list[int]]:
    """Pictures that pairs connect, two or more a group, in order."""
    leader = list(range(count))

    def root(number: int) -> int:
        while leader[number] != number:
            leader[number] = leader[leader[number]]
            number = leader[number]
        return number

    for pair in found:
        one, other = sorted((root(pair.first), root(pair.second)))
        leader[other] = one
    members: dict[int, list[int]] = {}
    for number in range(count):
        members.setdefault(root(number), []).append(number)
    return [group for group in members.values() if len(group) > 1]


def _small(grey: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)


def _windows(grey: np.ndarray) -> np.ndarray:
    """A picture's windows (W, SIDE²), normalised."""
    image, found = Image.fromarray(grey), []
    for share in WINDOWS:
        side = LARGE * share
        for x in np.linspace(0, LARGE - side, SHIFTS if share < 1 else 1):
            for y in np.linspace(0, LARGE - side, SHIFTS if share < 1 else 1):
                box = (x, y, min(x + side, LARGE), min(y + side, LARGE))
                found.append(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX, box), np.float32))
    return _normalised(np.stack(found))


def _normalised(pictures: np.ndarray) -> np.ndarray:
    """(n, SIDE, SIDE) → (n, SIDE²) of mean 0 and length 1; of a picture without contrast nearly 0."""
    flat = pictures.reshape(len(pictures), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.sqrt(np.square(flat).sum(1, keepdims=True) + SIDE * SIDE)


def look(captioner: Captioner, opened: Sequence[Image.Image], pixels: Sequence[int]) -> list[Look]:
    """What is kept of pictures, as `Captioner.open` gave them, whose files have so many pixels."""
    seen = captioner.features(captioner.stacked(opened))
    features = F.normalize(seen.pooled.float(), dim=-1).half().cpu().numpy()
    greys = [np.asarray(image.convert("L").resize((LARGE, LARGE), Image.Resampling.BOX)) for image in opened]
    return [Look(*each) for each in zip(features, greys, pixels, strict=True)]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m src.duplicates",
        description="Find pictures that are nearly the same: scaled, compressed, cropped, mirrored, made brighter or "
        "grey. They are printed in groups, `group<TAB>img_path<TAB>similarity`, the largest picture of each first.",
        usage="%(prog)s [FLAGS] FILE|FOLDER|GLOB ...\n"
        "       %(prog)s [FLAGS] --across TSV TSV ... [--root DIR] [--fail]",
    )
    result.add_argument("pictures", nargs="*", metavar="FILE|FOLDER|GLOB", help="what to look through")
    result.add_argument("-o", "--output", type=Path, help="write the TSV here; a stopped call is taken up by the same")
    result.add_argument(
        "--similarity",
        type=float,
        default=SIMILARITY,
        metavar="S",
        help="from which two are the same, in (0, 1] (%(default)s)",
    )
    result.add_argument(
        "--across",
        nargs="+",
        type=Path,
        metavar="TSV",
        help="instead of pictures: tables of splits, `img_path<TAB>caption`, training first; prints the pairs of "
        "different ones, `split<TAB>img_path<TAB>split<TAB>img_path<TAB>similarity`",
    )
    result.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="of --across: what image paths are relative to (default: the first table's)",
    )
    result.add_argument("--fail", action="store_true", help="of --across: end with status 1 where there are such pairs")
    add_model_flag(result, several=False)
    add_computing_flags(result)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 where some pictures could not be read or, with --fail, splits
    share some, 2 for a wrong call, 130 where it was interrupted."""
    command = parser()
    options = command.parse_intermixed_args(arguments)
    if not options.pictures and not options.across:
        command.error("which pictures? Name files, folders or patterns, or --across two tables")
    if options.across and (options.pictures or len(options.across) < 2):
        command.error("--across takes two tables or more, and no other pictures")
    if not options.across and (options.root or options.fail):
        command.error("--root and --fail are of --across")
    keep_freed_memory()
    return ended(run, options, goes_on=options.output is not None)


def run(options: argparse.Namespace) -> int:
    """What `main` is asked for, but for its errors."""
    if not 0 < options.similarity <= 1:
        raise ValueError(f"--similarity {options.similarity:g}: a number above 0, up to 1, is wanted")
    check_computing(options)
    items = _of_splits(options) if options.across else [("", str(path)) for path in find_pictures(options.pictures)]
    paths = [str(options.root / image) if options.across else image for _, image in items]
    check_names(paths)
    if options.output:
        check_output(options.output, map(Path, [*paths, *(options.across or ())]))
    captioner = one_captioner(options)
    key = depends_on(list(map(Path, [*paths, *(options.across or ())])), captioner, options)
    made = Crossing(items, options.similarity) if options.across else Groups(paths, options.similarity)
    if options.output:
        status = find(paths, captioner, options.batch_size, made, options.output, key)
    else:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "groups.tsv"
            status = find(paths, captioner, options.batch_size, made, output, key)
            sys.stdout.write(output.read_text(encoding="utf-8"))
    return 1 if options.fail and made.found else status


def _of_splits(options: argparse.Namespace) -> list[tuple[str, str]]:
    """(split, image) of every table; sets the root where none is given."""
    options.root = options.root or options.across[0].parent
    names = [path.stem for path in options.across]
    if len(set(names)) < len(names):
        names = [str(path) for path in options.across]
    tables = [read_tsv(path, options.root, progress=False).images for path in options.across]
    return [(name, image) for name, images in zip(names, tables, strict=True) for image in images]


def find(
    paths: Sequence[str],
    captioner: Captioner,
    batch_size: int,
    made: "Groups | Crossing",
    output: Path,
    key: str,
) -> int:
    """Write what is made of the pictures' looks to a file, in parts of that key until all are looked at; returns the
    exit status."""
    parts = Parts(output, key, len(paths), Place())
    if parts.done:
        print(f"{output}: {parts.done} of {len(paths)} are looked at already", file=sys.stderr)
    with tqdm(total=len(parts.share), desc="looking", unit="img", disable=None) as bar:
        for start in range(0, len(parts.share), batch_size):
            batch = parts.share[start : start + batch_size]
            opened: dict[int, Image.Image] = {}
            pixels = []
            for number in batch:
                try:
                    image = captioner.decode(paths[number])
                    with Image.open(paths[number]) as file:
                        pixels.append(file.width * file.height)
                    opened[number] = image
                except (ImageError, OSError, Image.DecompressionBombError) as error:
                    print(f"error: {error}", file=sys.stderr)
            for number, each in zip(
                opened, look(captioner, list(opened.values()), pixels) if opened else [], strict=True
            ):
                said = [base64.b64encode(array.tobytes()).decode() for array in (each.features, each.grey)]
                parts.add(number, [json.dumps([number, each.pixels, *said])])
            parts.flush()
            bar.update(len(batch))
    count = parts.join(made)
    print(made.told(count), file=sys.stderr)
    if failed := len(paths) - count:
        print(f"{failed} of {len(paths)} pictures could not be read", file=sys.stderr)
    return 1 if failed else 0


def _looks(lines: Iterable[str]) -> tuple[list[int], list[Look]]:
    """What `find` keeps of each picture → the pictures' numbers and looks."""
    numbers, looks = [], []
    for number, pixels, features, grey in map(json.loads, lines):
        arrays = np.frombuffer(base64.b64decode(features), np.float16), np.frombuffer(base64.b64decode(grey), np.uint8)
        numbers.append(number)
        looks.append(Look(arrays[0], arrays[1].reshape(LARGE, LARGE), pixels))
    return numbers, looks


class Groups:
    """Lines `group<TAB>img_path<TAB>similarity`, the largest picture of each group first."""

    def __init__(self, paths: Sequence[str], similarity: float) -> None:
        self.paths, self.similarity = paths, similarity
        self.found: list[list[int]] = []

    def __call__(self, lines: Iterable[str]) -> Iterator[str]:
        numbers, looks = _looks(lines)
        pairs_ = list(pairs(looks, self.similarity, progress=len(looks) > BLOCK)) if looks else []
        closest: dict[int, float] = {}
        for pair in pairs_:
            for place in (pair.first, pair.second):
                closest[place] = max(closest.get(place, 0.0), pair.similarity)
        self.found = groups(len(looks), pairs_)
        for name, group in enumerate(self.found, start=1):
            for place in sorted(group, key=lambda place: -looks[place].pixels):
                yield encodable(f"{name}\t{self.paths[numbers[place]]}\t{min(closest[place], 1):.3f}\n")

    def told(self, count: int) -> str:
        several = sum(map(len, self.found))
        return f"{several} of {count} pictures are nearly the same as another, in {len(self.found)} groups"


class Crossing:
    """Lines `split<TAB>img_path<TAB>split<TAB>img_path<TAB>similarity` of pairs of different splits, the most alike
    first.

    Args:
        items: each picture's split and name.
        similarity: as of `pairs`.
    """

    def __init__(self, items: Sequence[tuple[str, str]], similarity: float) -> None:
        self.items, self.similarity = items, similarity
        self.found: dict[tuple[int, int], float] = {}

    def __call__(self, lines: Iterable[str]) -> Iterator[str]:
        numbers, looks = _looks(lines)
        names = list(dict.fromkeys(split for split, _ in self.items))
        splits = [names.index(self.items[number][0]) for number in numbers]
        for pair in pairs(looks, self.similarity, len(looks) > BLOCK, splits) if looks else ():
            first, second = sorted((numbers[pair.first], numbers[pair.second]))
            self.found[first, second] = max(self.found.get((first, second), 0.0), min(pair.similarity, 1.0))
        for (first, second), value in sorted(self.found.items(), key=lambda each: (-each[1], each[0])):
            yield encodable("\t".join((*self.items[first], *self.items[second], f"{value:.3f}")) + "\n")

    def told(self, count: int) -> str:
        splits = ", ".join(dict.fromkeys(split for split, _ in self.items))
        return (
            f"{len(self.found)} pairs of nearly the same picture in different splits, of {count} pictures in {splits}"
        )


if __name__ == "__main__":
    sys.exit(main())
