"""A data set's table: rows of `img_path<TAB>caption`, a third column for tags; several captions an image."""

import hashlib
import json
import logging
import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

from tqdm import tqdm

from src.data.images import AGAIN, ImageError, load_image
from src.files import write_atomically

log = logging.getLogger(__name__)

OnBadRow = Literal["error", "skip"]
Verify = Literal["none", "exists", "decode"]
Look = Callable[[Sequence[str], bool], dict[str, tuple[str, str]]]
"""(images, whether to decode them) → the image, kind and reason of each that cannot be used."""


class TsvError(ValueError):
    """A table that cannot be used; the message names file and line and says how to mend it."""


class BadRow(NamedTuple):
    """A row that was left out."""

    line: int
    """From 1, as editors count."""
    kind: str
    """One of: columns, backslash-t, commas, header, empty caption, encoding, path, missing image,
    unreadable image, missing regions, unreadable regions."""
    reason: str
    """What is wrong, and how to mend it."""
    row: str
    """As it stands in the file; bytes that are not UTF-8 as `\\xe9`."""


@dataclass(frozen=True)
class Captions:
    """Images in order of first appearance, and what the table says of each."""

    images: list[str]
    """POSIX paths relative to the root, each once."""
    captions: list[list[str]]
    """Of each image, one or more, in the table's order."""
    tags: list[list[str]]
    """Of each caption, the third column; empty where there is none."""
    skipped: list[BadRow] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)


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
        cache_dir: where images that could be decoded are remembered by path, size and time of change, so that
            a second call decodes none of them.
        progress: show a bar while decoding, on a terminal.
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

    lines = _lines(path)
    rows, bad = _parse(path, lines)
    images = list(dict.fromkeys(image for _, image, _, _ in rows))
    if verify == "none":
        problems = {}
    elif look is not None:
        problems = look(images, verify == "decode")
    else:
        problems = _verify(path, root, images, verify == "decode", cache_dir, progress)
    if problems:
        bad += [
            BadRow(line, *problems[image], _shown(lines[line - 1])) for line, image, _, _ in rows if image in problems
        ]
        rows = [row for row in rows if row[1] not in problems]
    bad.sort(key=lambda row: row.line)

    if bad and on_bad_row == "error":
        first, more = bad[0], bad[1:]
        others = f" ({_counted(more)} besides; on_bad_row=skip leaves bad rows out)" if more else ""
        raise TsvError(f"{path}:{first.line}: {first.reason}{others}")
    if bad:
        log.warning("%s: %d of %d rows skipped: %s", path, len(bad), len(bad) + len(rows), _counted(bad))
    if not rows:
        why = f"no row is left; skipped were {_counted(bad)}. {bad[0].reason}" if bad else "no rows"
        raise TsvError(f"{path}:1: {why}: expected rows img_path<TAB>caption")

    captions: dict[str, list[str]] = {image: [] for _, image, _, _ in rows}
    tags: dict[str, list[str]] = {image: [] for image in captions}
    for _, image, caption, tag in rows:
        captions[image].append(caption)
        tags[image].append(tag)
    return Captions(list(captions), list(captions.values()), list(tags.values()), bad)


def read_rows(path: Path) -> tuple[list["Row"], list[BadRow]]:
    """A table's rows, and those that are not well formed, whatever images there are; `read_tsv` says what a row is.

    Raises:
        TsvError: there is no such table, or it is UTF-16.
    """
    return _parse(path, _lines(path))


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
    order = sorted(captions.images, key=lambda image: hashlib.sha256(f"{seed}\0{image}".encode()).digest())
    parts = [Captions([], [], []) for _ in sizes]
    part_of: dict[str, Captions] = {}
    start = 0
    for part, size in zip(parts, sizes, strict=True):
        part_of |= dict.fromkeys(order[start : start + size], part)
        start += size
    for image, texts, tags in zip(captions.images, captions.captions, captions.tags, strict=True):
        part = part_of[image]
        part.images.append(image)
        part.captions.append(texts)
        part.tags.append(tags)
    return parts


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


def _lines(path: Path) -> list[bytes]:
    """The file's lines with their ends: LF, CRLF and CR, and none of Unicode's others."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise TsvError(f"{path}: no such file") from None
    except OSError as error:
        raise TsvError(f"{path}: {error.strerror}") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or data[:4096].count(b"\0") > len(data[:4096]) // 4:
        raise TsvError(f"{path}:1: byte 0: UTF-16 text, not UTF-8: {_iconv('UTF-16', path)}")
    return data.splitlines(keepends=True)


def _parse(path: Path, lines: list[bytes]) -> tuple[list[Row], list[BadRow]]:
    """Rows that are well formed, and the others."""
    rows: list[Row] = []
    bad: list[BadRow] = []
    clean: dict[str, str] = {}  # path as written → as kept; each spelling is looked at once
    mostly_utf8: bool | None = None
    offset = 0
    for number, raw in enumerate(lines, 1):
        try:
            # A BOM on any line: `cat` of two files leaves one in the middle.
            line = raw.decode().removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            if mostly_utf8 is None:
                mostly_utf8 = _mostly_utf8(lines)
            reason = _encoding(path, raw, error.start, offset + error.start, mostly_utf8)
            bad.append(BadRow(number, "encoding", reason, _shown(raw)))
            continue
        finally:
            offset += len(raw)
        columns = line.split("\t")
        if 2 <= len(columns) <= 3:
            caption = columns[1].strip()
            image, problem = clean.get(columns[0]), None
            if image is None:
                image, problem = _path(columns[0].strip())
                if problem is None:
                    clean[columns[0]] = image
            if problem is None and caption:
                rows.append((number, image, caption, columns[2].strip() if len(columns) == 3 else ""))
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
    return rows, bad


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


def _path(written: str) -> tuple[str, tuple[str, str] | None]:
    """(the path as it is kept, None), or (the path as written, (kind, reason))."""
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


def _mostly_utf8(lines: Iterable[bytes]) -> bool:
    """Whether, of the lines that tell, more are UTF-8 than not."""
    votes = 0
    for line in lines:
        if not line.isascii():
            try:
                line.decode()
                votes += 1
            except UnicodeDecodeError:
                votes -= 1
    return votes > 0


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
        cache = Path(cache_dir) / f"decoded-{name}.json"
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
