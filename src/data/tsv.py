"""A data set's table: rows of `img_path<TAB>caption`, a third column for tags; several captions an image."""

import hashlib
import json
import logging
import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BufferedReader
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
from joblib import delayed
from tqdm import tqdm

from src.data import table as table_module
from src.data.images import AGAIN, ImageError, load_image
from src.data.table import BadRow, Captions, Strings, in_processes, joined, kept
from src.files import write_atomically

log = logging.getLogger(__name__)

OnBadRow = Literal["error", "skip"]
Verify = Literal["none", "exists", "decode"]
Look = Callable[[Sequence[str], bool], dict[str, tuple[str, str]]]
"""(images, whether to decode them) → the image, kind and reason of each that cannot be used."""


class TsvError(ValueError):
    """A table that cannot be used; the message names file and line and says how to mend it."""


def read_tsv(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str],
    *,
    on_bad_row: str = "error",
    verify: str = "exists",
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    look: Look | None = None,
) -> Captions:
    """Read and check a table.

    UTF-8 with or without BOM; lines end in LF, CRLF or CR; blank lines don't count; space around a column is
    dropped. Rows with two and with three columns may be mixed: a missing third is empty. Paths are relative
    to root, `\\` counts as `/`, and `./a.jpg` is `a.jpg`. One that is absolute or climbs out of the root by
    `..` is an error; a symbolic link inside the root is its owner's choice, and followed.

    Args:
        path: the table.
        root: the folder that its image paths are relative to.
        on_bad_row: `error` raises for the first bad row and counts the others; `skip` logs the counts and
            returns the rows in `skipped`.
        verify: `none` looks at no image; `exists` at whether each is a file with something in it; `decode`
            also decodes each.
        cache_dir: where the table is kept in flat form by its content, so that a second call maps it and reads no row;
            and images that could be decoded by path, size and time of change, so that a second call decodes none.
        progress: show bars while reading large tables and decoding, on a terminal.
        look: what looks at the images instead, where something else than their pixels is to be read.

    Raises:
        TsvError: there is no such table, it is not text in UTF-8, no row is left, or (with `error`) a row is
            bad.
        ValueError: `on_bad_row` or `verify` is none of their choices.
    """
    path, root = Path(path), Path(root)
    if on_bad_row not in get_args(OnBadRow):
        raise ValueError(f"on_bad_row={on_bad_row}: choose {', '.join(get_args(OnBadRow))}")
    if verify not in get_args(Verify):
        raise ValueError(f"verify={verify}: choose {', '.join(get_args(Verify))}")

    table = _table(path, None if cache_dir is None else Path(cache_dir), progress)
    if verify == "none":
        problems = {}
    elif look is not None:
        problems = look(table.images, verify == "decode")
    else:
        problems = _verify(path, root, table.images, verify == "decode", cache_dir, progress)
    bad = table.skipped
    if problems:
        usable = np.array([image not in problems for image in table.images])
        rows = np.repeat(usable, np.diff(table.first))
        lost = [(line, problems[image]) for image, line in _rows_of(table, ~rows)]
        raw = _raw(path, {line for line, _ in lost})
        bad = sorted([*bad, *(BadRow(line, *why, raw[line]) for line, why in lost)], key=lambda row: row.line)

    if bad and on_bad_row == "error":
        first, more = bad[0], bad[1:]
        others = f" ({_counted(more)} besides; on_bad_row=skip leaves bad rows out)" if more else ""
        raise TsvError(f"{path}:{first.line}: {first.reason}{others}")
    if problems:
        table = table.where(rows)
    if bad:
        total = len(bad) + len(table.texts)
        log.warning("%s: %d of %d rows skipped: %s", path, len(bad), total, _counted(bad))
    if not len(table):
        why = f"no row is left; skipped were {_counted(bad)}. {bad[0].reason}" if bad else "no rows"
        raise TsvError(f"{path}:1: {why}: expected rows img_path<TAB>caption")
    return replace(table, skipped=bad)


def read_rows(path: Path) -> tuple[list["Row"], list[BadRow]]:
    """A table's rows, and those that are not well formed, whatever images there are; `read_tsv` says what a row is.

    Raises:
        TsvError: there is no such table, or it is UTF-16.
    """
    rows: list[Row] = []
    parts: list[_Part] = []
    for part in _parts(path, progress=False):
        parts.append(part)
        columns = zip(part.lines.tolist(), part.image.tolist(), part.texts, part.label.tolist(), strict=True)
        rows += [(line, part.images[image], text, part.labels[label]) for line, image, text, label in columns]
    return rows, _bad_rows(path, parts)


def check_fractions(fractions: Sequence[float]) -> None:
    """Raises ValueError unless the fractions of `split_by_image` lie in [0, 1] and sum to 1."""
    if any(not 0 <= f <= 1 for f in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"data.split={list(fractions)}: fractions must lie in [0, 1] and sum to 1")


def split_by_image(captions: Captions, fractions: Sequence[float], seed: int) -> list[Captions]:
    """Divide one table so that all captions of an image are in one part.

    Which image goes where depends on the set of image names and the seed alone: names are ordered by the
    SHA-256 of seed and name, and cut. The order inside a part is the table's. A part with a fraction above 0
    has an image.

    Raises:
        ValueError: the fractions don't sum to 1, or there are fewer images than parts.
    """
    check_fractions(fractions)
    total, wanted = len(captions.images), sum(f > 0 for f in fractions)
    if total < wanted:
        raise ValueError(f"data.split={list(fractions)}: {total} images cannot be divided into {wanted} parts")
    sizes = [int(f * total + 1e-6) for f in fractions]
    largest_rests = sorted(range(len(sizes)), key=lambda i: sizes[i] - fractions[i] * total)
    for i in largest_rests[: total - sum(sizes)]:
        sizes[i] += 1
    for i, fraction in enumerate(fractions):
        if fraction > 0 and sizes[i] == 0:
            sizes[sizes.index(max(sizes))] -= 1
            sizes[i] = 1
    names = list(captions.images)
    order = sorted(range(total), key=lambda i: hashlib.sha256(f"{seed}\0{names[i]}".encode()).digest())
    ends = np.cumsum(sizes)
    return [
        replace(captions.only(np.sort(np.array(order[end - size : end], np.int64))), skipped=[])
        for size, end in zip(sizes, ends, strict=True)
    ]


def write_skipped(path: str | os.PathLike[str], skipped: Iterable[BadRow]) -> None:
    """Write bad rows as `line<TAB>kind<TAB>reason<TAB>row`; `cut -f4-` gives the rows back, tabs and all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join("\t".join((str(b.line), b.kind, b.reason, b.row)) + "\n" for b in skipped))


def _counted(bad: Iterable[BadRow]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(row.kind for row in bad).most_common())


def _shown(raw: bytes) -> str:
    return raw.rstrip(b"\r\n").decode("utf-8", "backslashreplace")


# --- rows ---

IMAGE_HEADERS = {"img", "image", "images", "picture", "photo", "path", "file", "filename", "filepath"}
IMAGE_HEADERS |= {
    f"{what}_{which}" for what in ("img", "image", "file") for which in ("path", "name", "file", "id", "filename")
}
_CSV = re.compile(rf'"?([^",\t]*\.\w{{2,5}}|{"|".join(sorted(IMAGE_HEADERS))})"?\s*,', re.IGNORECASE)
_TO_TABS = (
    'python3 -c "import csv, sys; '
    "csv.writer(sys.stdout, 'excel-tab', lineterminator='\\n').writerows(csv.reader(sys.stdin))\" < in > out"
)

Row = tuple[int, str, str, str]
"""(line, image, caption, tags)"""


class _Part(NamedTuple):
    """Some lines of a file, read: their rows in columns, and what is wrong with the others."""

    images: list[str]
    """The distinct ones."""
    image: np.ndarray
    """(rows,) which of them."""
    texts: Strings
    labels: list[str]
    label: np.ndarray
    """(rows,) which of the distinct labels."""
    lines: np.ndarray
    """(rows,) from 1, of the file."""
    bad: list[BadRow]
    undecodable: list[tuple[int, bytes, int, int]]
    """(line, its bytes, which of them is wrong, the same of the file)."""
    votes: int
    """Of the lines that tell, how many more are UTF-8 than not."""
    read: int
    """Lines in all."""
    bytes: int
    """In all."""


def _table(path: Path, cache_dir: Path | None, progress: bool) -> Captions:
    """A table's well-formed rows, those of an image together, and its others; in flat arrays, from the cache where it
    has this very content."""

    def build(partial: Path) -> None:
        _in_arrays(path, progress).save(partial)

    if cache_dir is None:
        table = _in_arrays(path, progress)
    else:
        with _opened(path) as file:
            key = hashlib.file_digest(file, lambda: hashlib.blake2b(_CODE, digest_size=16)).hexdigest()
        table = Captions.load(kept(cache_dir / "tables" / key, f"the rows of {path}", build))
    return replace(table, skipped=[row._replace(reason=row.reason.replace(_HERE, str(path))) for row in table.skipped])


_CODE = b"".join(Path(file).read_bytes() for file in (__file__, table_module.__file__))
"""Tables in the cache that other code wrote are not read."""
_HERE = "{table}"
"""The table's path in the reasons that are kept: its content may be read from several places."""


def _in_arrays(path: Path, progress: bool) -> Captions:
    images: dict[str, int] = {}
    labels: dict[str, int] = {"": 0}
    parts = []
    for part in _parts(path, progress):
        image = np.array([images.setdefault(name, len(images)) for name in part.images], np.int64)[part.image]
        label = np.array([labels.setdefault(name, len(labels)) for name in part.labels], np.int32)[part.label]
        parts.append(part._replace(images=[], labels=[], image=image, label=label))
    image = np.concatenate([part.image for part in parts])
    label = np.concatenate([part.label for part in parts])
    lines = np.concatenate([part.lines for part in parts])
    texts = joined([part.texts for part in parts])
    if (np.diff(image) < 0).any():  # rows of an image apart
        order = np.argsort(image, kind="stable")
        image, label, lines, texts = image[order], label[order], lines[order], texts.gathered(order)
    counts = np.bincount(image, minlength=len(images))
    return Captions(
        Strings.of(images),
        np.concatenate([[0], np.cumsum(counts)]),
        texts,
        Strings.of(labels).take(label),
        lines,
        skipped=_bad_rows(Path(_HERE), parts),
    )


def _parts(path: Path, progress: bool) -> Iterator[_Part]:
    """A file's lines in order, some at a time, read by a process a core where there are many."""
    with _opened(path) as file:
        if _utf16(file.read(4096)):
            raise TsvError(f"{path}:1: byte 0: UTF-16 text, not UTF-8: {_iconv('UTF-16', path)}")
        size = os.fstat(file.fileno()).st_size
    pieces = -(-size // _PIECE) or 1
    work = (delayed(_parse)(data, offset) for offset, data in _pieces(path))
    bar = tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=None if progress and pieces > 1 else True)
    lines = 0
    with bar:
        for part in in_processes(work, pieces):
            bad = [row._replace(line=row.line + lines) for row in part.bad]
            undecodable = [(line + lines, *rest) for line, *rest in part.undecodable]
            yield part._replace(lines=part.lines + lines, bad=bad, undecodable=undecodable)
            lines += part.read
            bar.update(part.bytes)


_PIECE = 1 << 24
"""Bytes that a process reads at a time."""


def _opened(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise TsvError(f"{path}: no such file") from None
    except OSError as error:
        raise TsvError(f"{path}: {error.strerror}") from error


def _pieces(path: Path) -> Iterator[tuple[int, bytes]]:
    """A file in pieces that end with a line: where each begins, and its bytes."""
    with _opened(path) as file:
        offset, rest = 0, b""
        while True:
            data = file.read(_PIECE)
            end = data.rfind(b"\n") + 1 if data else 0
            piece = rest + data[:end] if end or not data else b""
            if piece or not data:
                yield offset, piece
                offset += len(piece)
                rest = b""
            rest += data[end:]
            if not data:
                return


def _utf16(data: bytes) -> bool:
    return data.startswith((b"\xff\xfe", b"\xfe\xff")) or data.count(b"\0") > len(data) // 4


def _parse(data: bytes, offset: int) -> _Part:
    """Rows that are well formed, and the others. Lines end in LF, CRLF or CR, and none of Unicode's others.

    Args:
        data: whole lines.
        offset: where they begin in the file.
    """
    images: dict[str, int] = {}
    labels: dict[str, int] = {}
    image_of, label_of, numbers = [], [], []
    texts: list[str] = []
    bad: list[BadRow] = []
    undecodable: list[tuple[int, bytes, int, int]] = []
    clean: dict[str, str] = {}  # path as written → as kept; each spelling is looked at once
    votes = 0
    lines = data.splitlines(keepends=True)
    for number, raw in enumerate(lines, 1):
        try:
            # A BOM on any line: `cat` of two files leaves one in the middle.
            line = raw.decode().removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            undecodable.append((number, raw, error.start, offset + error.start))
            votes -= 1
            continue
        finally:
            offset += len(raw)
        votes += not line.isascii()
        columns = line.split("\t")
        if 2 <= len(columns) <= 3:
            caption = columns[1].strip()
            image, problem = clean.get(columns[0]), None
            if image is None:
                image, problem = kept_path(columns[0].strip())
                if problem is None:
                    clean[columns[0]] = image
            if problem is None and caption:
                numbers.append(number)
                texts.append(caption)
                image_of.append(images.setdefault(image, len(images)))
                label = columns[2].strip() if len(columns) == 3 else ""
                label_of.append(labels.setdefault(label, len(labels)))
                continue
            if not line.strip():
                continue
            if problem is None:
                problem = ("empty caption", f"no caption for {image}: write one, or remove the row")
        elif not line.strip():
            continue
        else:
            problem = _columns(line, len(columns))
        bad.append(BadRow(number, *problem, _shown(raw)))
    return _Part(
        list(images),
        np.array(image_of, np.int64),
        Strings.of(texts),
        list(labels),
        np.array(label_of, np.int32),
        np.array(numbers, np.int32),
        bad,
        undecodable,
        votes,
        len(lines),
        len(data),
    )


def _bad_rows(path: Path, parts: Sequence[_Part]) -> list[BadRow]:
    """The bad rows of a whole file, in order."""
    mostly_utf8 = sum(part.votes for part in parts) > 0
    bad = [row for part in parts for row in part.bad]
    for part in parts:
        for line, raw, column, offset in part.undecodable:
            bad.append(BadRow(line, "encoding", _encoding(path, raw, column, offset, mostly_utf8), _shown(raw)))
    return sorted(bad, key=lambda row: row.line)


def _rows_of(table: Captions, rows: np.ndarray) -> Iterator[tuple[str, int]]:
    """(image, line) of these rows, (M,) of truth values."""
    part = table.where(rows)
    lines = iter(part.lines.tolist())
    for image, count in zip(part.images, np.diff(part.first).tolist(), strict=True):
        yield from ((image, next(lines)) for _ in range(count))


def _raw(path: Path, wanted: set[int]) -> dict[int, str]:
    """These lines as they stand in the file."""
    found, number = {}, 0
    for _, data in _pieces(path):
        for raw in data.splitlines(keepends=True):
            number += 1
            if number in wanted:
                found[number] = _shown(raw)
    return found


def _columns(line: str, count: int) -> tuple[str, str]:
    """(kind, reason) of a row without two or three columns."""
    if count > 3:
        return (
            "columns",
            f"{count} columns: expected img_path<TAB>caption, or <TAB>tags after them; remove tabs",
        )
    if "\\t" in line:
        return "backslash-t", (
            "a backslash and a t where a tab should be: replace them, for example with sed 's/\\\\t/\\t/g' in > out"
        )
    if _CSV.match(line):
        return "commas", f"commas where tabs should be: convert it, for example with {_TO_TABS}"
    return "columns", "one column: put a tab between img_path and caption"


def kept_path(written: str) -> tuple[str, tuple[str, str] | None]:
    """(the path as a table keeps it, None), or (the path as written, (kind, reason)) where it is none."""
    kept = posixpath.normpath(written.replace("\\", "/"))
    kind = "path"
    if not written:
        reason = "no image path before the tab: write one, or remove the row"
    elif "." not in kept and re.sub(r"[\s-]+", "_", kept.strip("#\"' ").lower()) in IMAGE_HEADERS:
        kind, reason = "header", f"a header ({written!r}): remove it, rows begin at once"
    elif "://" in written:
        reason = f"{written} is an address: download the picture, and give its path below the root"
    elif kept.startswith("/") or re.match("[A-Za-z]:", kept):
        reason = f"{written} is absolute: write it relative to the root"
    elif kept != kept.strip() or kept.startswith("\ufeff"):
        reason = f"{written!r} begins or ends with a space, or begins with a byte order mark: rename the picture"
    elif kept == "." or kept == ".." or kept.startswith("../"):
        reason = f"{written} leaves the root: move the picture into it, or set the root higher"
    else:
        return kept, None
    return written, (kind, reason)


def _encoding(path: Path, line: bytes, column: int, offset: int, mostly_utf8: bool) -> str:
    """The reason for a line that is not UTF-8: where, what it may be, and what to do."""
    where = f"byte 0x{line[column]:02x} at offset {offset} of the file, {column} of the line, is not UTF-8"
    guess = _guess(line)
    if mostly_utf8:
        return f"{where}, though the file mostly is (this line may be {guess}): write the line again"
    return f"{where}; it may be {guess}: {_iconv(guess, path)}"


def _guess(line: bytes) -> str:
    """GB18030 where high bytes come in pairs, as Chinese ones do; else the Western code page."""
    runs = re.findall(rb"[\x80-\xff]+", line)
    if 2 * sum(len(run) % 2 == 0 for run in runs) > len(runs):
        try:
            line.decode("gb18030")
        except UnicodeDecodeError:
            pass
        else:
            return "GB18030"
    return "WINDOWS-1252"


def _iconv(encoding: str, path: Path) -> str:
    return f"convert it with iconv -f {encoding} -t UTF-8 '{path}' > out.tsv"


# --- images ---


def _verify(
    path: Path,
    root: Path,
    images: Sequence[str],
    decode: bool,
    cache_dir: str | os.PathLike[str] | None,
    progress: bool,
) -> dict[str, tuple[str, str]]:
    """Image → (kind, reason), of those that are missing or (with `decode`) unreadable."""
    if not root.is_dir():
        raise TsvError(f"{path}: its root {root} is no folder: set the one that image paths are relative to")
    problems: dict[str, tuple[str, str]] = {}
    stamps: dict[str, list[int]] = {}
    for image in images:
        try:
            found = os.stat(f"{root}/{image}")
        except (OSError, ValueError):
            beside = path.parent != root and (path.parent / image).is_file()
            hint = f"it is in {path.parent}, set that as the root" if beside else "add it, or set the right root"
            problems[image] = "missing image", f"no file {image} in the root {root}: {hint}"
            continue
        if not stat.S_ISREG(found.st_mode):
            problems[image] = "missing image", f"{root / image} is not a file"
        elif found.st_size == 0:
            problems[image] = "unreadable image", f"{root / image}: empty (0 bytes): {AGAIN}"
        else:
            stamps[image] = [found.st_size, found.st_mtime_ns]
    if decode:
        problems |= _decode(root, stamps, cache_dir, progress)
    return problems


def _decode(
    root: Path, stamps: dict[str, list[int]], cache_dir: str | os.PathLike[str] | None, progress: bool
) -> dict[str, tuple[str, str]]:
    """Image → (kind, reason), of those that cannot be decoded.

    Only good ones are remembered: a bad one is always tried again.
    """
    cache = None
    known: dict[str, list[int]] = {}
    if cache_dir is not None:
        name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
        cache = Path(cache_dir) / "verified" / f"decoded-{name}.json"
        known = _read_cache(cache)
    todo = [image for image, stamp in stamps.items() if known.get(image) != stamp]
    problems: dict[str, tuple[str, str]] = {}
    if not todo:
        return problems

    def problem(image: str) -> str | None:
        try:
            load_image(root / image, draft=1)  # reads all of a JPEG, but inverts little of the DCT
        except ImageError as error:
            return " ".join(str(error).split())
        return None

    bar = tqdm(total=len(todo), desc="checking images", unit="img", disable=None if progress else True)
    try:
        # Threads: decoders release the interpreter lock. Slices: an interruption waits for one at most.
        with bar, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(todo), 256):
                some = todo[start : start + 256]
                for image, reason in zip(some, pool.map(problem, some), strict=True):
                    if reason is None:
                        known[image] = stamps[image]
                    else:
                        problems[image] = "unreadable image", reason
                    bar.update()
    finally:
        if cache is not None:
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(cache, json.dumps(_read_cache(cache) | known, ensure_ascii=False))
    return problems


def _read_cache(cache: Path) -> dict[str, list[int]]:
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        known = None
    if not isinstance(known, dict):
        log.warning("%s is damaged: images are checked again", cache)
        return {}
    return cast(dict[str, list[int]], known)
