"""What the importers of known data sets share: from a user's own copy to train.tsv, val.tsv and test.tsv.

An importer reads its data set's texts into a `DataSet`; `publish` finds the images, writes the tables, and says what
was left out and what to run next.
"""

import argparse
import os
import posixpath
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from src.files import read_json as decoded
from src.files import write_atomically

SPLITS = ("train", "val", "test")
OWNERS = {
    "Flickr8k": "https://hockenmaier.cs.illinois.edu/8k-pictures.html",
    "Flickr30k": "https://shannon.cs.illinois.edu/DenotationGraph/",
    "COCO": "https://cocodataset.org/#download",
}

Captions = dict[str, list[str]]
"""Image name → its captions, in the order of the text. The name may begin with folders: `val2014/x.jpg`."""


class Wanted(NamedTuple):
    """A file or folder of a data set."""

    names: tuple[str, ...]
    """It goes by any of these; the first that is there is taken."""
    page: str
    """Where its owners publish it."""

    def __str__(self) -> str:
        return f"{' or '.join(self.names)} (published at {self.page})"


@dataclass
class DataSet:
    """What a data set's texts say, before its images are looked for."""

    name: str
    texts: Sequence[Path]
    """The files it was read from."""
    splits: Mapping[str, Captions]
    images: Wanted
    """The folder of the images."""
    left_out: list[str] = field(default_factory=list)
    """What is in the texts and in no split, and why: one phrase each."""
    suffix: str = ""
    """Of the tables' names: `_zh` makes train_zh.tsv."""
    overrides: tuple[str, ...] = ()
    """Of the training command, such as `tokenizer=character`."""


class Folder:
    """A user's folder, and all files below it by name, without hidden ones and `__MACOSX`. Links are followed.

    Raises NotADirectoryError where there is no such folder.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise NotADirectoryError(f"{path} is no folder: give the one that holds your copy of the data set.")
        self.path = path
        self._below: dict[str, list[str]] = {}
        seen = set()
        with tqdm(desc=f"looking through {path}", unit=" files", leave=False, disable=None) as bar:
            for parent, folders, files in os.walk(path, followlinks=True):
                place = os.stat(parent)
                if (place.st_dev, place.st_ino) in seen:  # a link that leads round in a circle
                    folders.clear()
                    continue
                seen.add((place.st_dev, place.st_ino))
                folders[:] = sorted(name for name in folders if name[0] != "." and name != "__MACOSX")
                inside = Path(parent).relative_to(path).as_posix()
                for name in files:
                    if name[0] != ".":
                        self._below.setdefault(_key(name), []).append(posixpath.normpath(f"{inside}/{name}"))
                bar.update(len(files))

    def named(self, name: str) -> Path | None:
        """The file of that name, or None; of several, the one nearest to the top."""
        found = [path for path in self._below.get(_key(name), []) if posixpath.basename(path) == name]
        return self.path / min(found, key=lambda path: (path.count("/"), path)) if found else None

    def find(self, *wanted: Wanted) -> list[Path]:
        """The path of each; raises FileNotFoundError that names all that are missing."""
        found = [next(filter(None, map(self.named, one.names)), None) for one in wanted]
        missing = [str(one) for one, path in zip(wanted, found, strict=True) if path is None]
        if missing:
            raise FileNotFoundError(
                f"{self.path} and the folders in it lack {'; '.join(missing)}: put the files there."
            )
        return [path for path in found if path is not None]

    def image(self, name: str) -> str | None:
        """The image's path relative to the folder, or None where there is no such file, or an empty one.

        Of several with its name, the one that lies in the folders that `name` begins with, else the one nearest to
        the top. COCO's images are found under their names of 2014 and of 2017.
        """
        base = posixpath.basename(name)

        def rank(path: str) -> tuple[bool, bool, int, str]:
            return not f"/{path}".endswith(f"/{name}"), posixpath.basename(path) != base, path.count("/"), path

        for path in sorted(self._below.get(_key(base), []), key=rank):
            try:
                if os.path.getsize(self.path / path):
                    return path
            except OSError:  # a link to nowhere
                continue
        return None


def _key(name: str) -> str:
    """COCO_val2014_000000000042.jpg is 000000000042.jpg of 2017."""
    return re.sub(r"^COCO_[a-z]+2014_(?=\d)", "", name) if name.startswith("COCO_") else name


# ---------------------------------------------------------------- reading


def read_text(path: Path) -> str:
    """A text in UTF-8, with or without BOM, its lines ended by LF alone; raises ValueError for another encoding."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8: get the file again, or convert it with "
            f"iconv -f ENCODING -t UTF-8."
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """A JSON object with at least these keys; raises ValueError where it is something else."""
    try:
        data = decoded(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}): the file may be cut short, get it again.") from None
    for key in keys:
        if not isinstance(data, dict) or key not in data:
            raise ValueError(f"{path}: no {key!r} in it, which its form has: get the file again.")
    return data


def divide(captions: Captions, lists: Mapping[str, Sequence[str]]) -> tuple[dict[str, Captions], list[str]]:
    """({split: captions of its images, in its list's order}, what is left out): images in no list.

    A listed image that the text does not know has no captions.
    """
    listed = {name for names in lists.values() for name in names}
    unlisted = [texts for name, texts in captions.items() if name not in listed]
    left_out = []
    if unlisted:
        left_out = [f"{many(sum(map(len, unlisted)), 'caption')} of {many(len(unlisted), 'image')} in no split's list"]
    return {split: {name: captions.get(name, []) for name in names} for split, names in lists.items()}, left_out


def many(number: int, noun: str) -> str:
    """`1 image`, `6,000 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# ---------------------------------------------------------------- writing


def publish(
    data: DataSet, folder: Folder, output: Path | None = None, *, allow_missing: bool = False, overwrite: bool = False
) -> None:
    """Write a table a split, and print what is in them, what was left out, and the next command.

    Image paths are relative to `folder`, which is the `data.root` of training. Nothing is written before everything
    is known to be right; tables that are there with the same rows are left alone.

    Args:
        output: the folder for the tables; None: `folder`.
        allow_missing: leave out images that are not there (or empty files).
        overwrite: replace tables with other rows.

    Raises:
        FileNotFoundError: images are missing.
        FileExistsError: a table is there with other rows.
        ValueError: an image is in two splits, or no caption is left.
    """
    left_out = list(data.left_out)
    total = sum(map(len, data.splits.values()))
    tables: dict[str, list[str]] = {}
    images: dict[str, int] = {}
    split_of: dict[str, str] = {}
    missing: list[str] = []
    silent = empty = 0
    with tqdm(total=total, desc="finding images", unit="img", leave=False, disable=None) as bar:
        for split, captions in data.splits.items():
            rows: list[str] = []
            absent = len(missing)
            images[split] = 0
            for name, texts in captions.items():
                bar.update()
                # Any run of white space is one space: a tab or a line's end would break the row.
                cleaned = [text for text in (" ".join(text.split()) for text in texts) if text]
                empty += len(texts) - len(cleaned)
                if not cleaned:
                    silent += 1
                elif (image := folder.image(name)) is None:
                    missing.append(name)
                elif split_of.setdefault(image, split) != split:
                    raise ValueError(f"{image} is in {split_of[image]} and in {split}: get the lists of splits again.")
                else:
                    images[split] += 1
                    rows += [f"{image}\t{text}\n" for text in cleaned]
            if rows:
                tables[f"{split}{data.suffix}.tsv"] = rows
            elif absent < len(missing):
                left_out.append(f"{split} as a whole: none of its {many(len(captions), 'image')} is there")

    if missing:
        _complain(data, folder, missing, total - silent, allow_missing)
        left_out.append(f"{many(len(missing), 'image')} not there, or empty: {_first(missing)}")
    if not tables:
        raise ValueError(f"{', '.join(map(str, data.texts))}: no caption of a listed image: get the texts again.")
    if empty:
        left_out.append(f"{many(empty, 'empty caption')}")
    if silent:
        left_out.append(f"{many(silent, 'listed image')} without a caption")

    output = folder.path if output is None else output
    _write(output, {name: "".join(rows) for name, rows in tables.items()}, overwrite)

    print(f"{data.name}, read from {', '.join(os.path.relpath(path, folder.path) for path in data.texts)}")
    for split, number in images.items():
        if number:
            path = output / f"{split}{data.suffix}.tsv"
            print(f"  {split:5} {number:>9,} images {len(tables[path.name]):>9,} captions  {path}")
    for what in left_out:
        print(f"  left out: {what}")
    print(f"Next:\n  {_next_command(data, folder.path, output, tables)}")


def _complain(data: DataSet, folder: Folder, missing: Sequence[str], total: int, allowed: bool) -> None:
    if len(missing) == total:
        raise FileNotFoundError(
            f"None of the {many(total, 'image')} is below {folder.path}, the first being {missing[0]}: "
            f"put {data.images} there."
        )
    if not allowed:
        raise FileNotFoundError(
            f"{len(missing):,} of {many(total, 'image')} are not below {folder.path}, or are empty files: "
            f"{_first(missing)}. Put them there, from {data.images}, or leave them out with --allow-missing."
        )


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _write(output: Path, tables: Mapping[str, str], overwrite: bool) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        fresh = {output / name: text for name, text in tables.items()}
        for path in list(fresh):
            if not path.exists():
                continue
            if path.read_bytes() == fresh[path].encode():
                del fresh[path]
            elif not overwrite:
                raise FileExistsError(
                    f"{path} is there with other rows: replace it with --overwrite, or write elsewhere with --output."
                )
        for path, text in fresh.items():
            write_atomically(path, text)
    except OSError as error:
        if error.strerror is None:
            raise
        raise OSError(f"{output}: {error.strerror}: write the tables elsewhere with --output DIR.") from error


def _next_command(data: DataSet, root: Path, output: Path, tables: Mapping[str, Any]) -> str:
    names = {split: f"{split}{data.suffix}.tsv" for split in SPLITS}
    if output.resolve() != root.resolve():  # TSVs are looked for in the root unless their paths are absolute
        names = {split: str(output.resolve() / name) for split, name in names.items()}
    settings = [_override("data.root", str(root))]
    settings += [_override(f"data.{split}", name) for split, name in names.items() if Path(name).name in tables]
    if f"train{data.suffix}.tsv" in tables:
        return " ".join(["python -m src.train data=tsv", *settings, *data.overrides])
    split = next(split for split in SPLITS if f"{split}{data.suffix}.tsv" in tables)
    return " ".join(["python -m src.evaluate model=FOLDER data=tsv", *settings, f"split={split}"])


def _override(key: str, value: str) -> str:
    """`key=value`, quoted for Hydra and the shell where either needs it."""
    if re.fullmatch(r"[\w./-]*[A-Za-z_/.][\w./-]*", value, re.ASCII):
        return f"{key}={value}"
    # Hydra takes a backslash for an escape only before a quotation mark.
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)
    escaped += "\\" * (len(value) - len(value.rstrip("\\")))
    return shlex.quote(f'{key}="{escaped}"')


# ---------------------------------------------------------------- the command line


def add_command(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    layout: str,
    read: Callable[[Folder, argparse.Namespace], DataSet],
) -> argparse.ArgumentParser:
    """Add `python -m src.prepare NAME FOLDER`, which publishes what `read` finds; more options go to its parser."""
    parser = subparsers.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}: writes train.tsv, val.tsv and test.tsv of your own copy.",
        epilog=layout,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="holds the texts and the images, at any depth; training's data.root")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the tables (the data set's own)")
    parser.add_argument("--allow-missing", action="store_true", help="leave out images that are not there")
    parser.add_argument("--overwrite", action="store_true", help="replace tables that have other rows")

    def run(options: argparse.Namespace) -> None:
        folder = Folder(options.folder)
        data = read(folder, options)
        publish(data, folder, options.output, allow_missing=options.allow_missing, overwrite=options.overwrite)

    parser.set_defaults(run=run)
    return parser
