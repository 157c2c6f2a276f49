"""Captions in flat form: texts in one buffer with offsets, words in another, memory-mapped where they come from the
cache, so that ten million rows are there at once, and every process reads the same pages."""

import hashlib
import inspect
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from joblib import Parallel, cpu_count, delayed
from tqdm import tqdm

from src.data.tokenizer import Tokenizer
from src.files import DiskFull, is_full, locked

BLOCK = 200_000
"""Rows that are looked at together, or by one process."""


# ---------------------------------------------------------------- arrays in files


class Mapped(np.memmap):
    """A memory-mapped array that another process opens for itself, where pickling would copy it."""

    file: Path | None = None  # of the whole array; a part of it has none

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (mapped, (self.file,)) if self.file is not None else np.array(self).__reduce_ex__(protocol)


def mapped(file: Path) -> Mapped:
    """An array's `.npy` file, not read but mapped."""
    array = np.load(file, mmap_mode="r").view(Mapped)
    array.file = file
    return array


def kept(folder: Path, doing: str, build: Callable[[Path], None]) -> Path:
    """The folder itself, filled by `build(partial)` where it is not there yet. It is there whole or not at all; of
    processes that come at once, one builds and the others wait.

    Raises:
        DiskFull, OSError: it cannot be written; says what may help.
    """
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.lock"), doing):
            if not folder.exists():
                partial = folder.with_name(f"{folder.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
                partial.mkdir()
                build(partial)
                os.replace(partial, folder)
    except DiskFull:
        raise
    except OSError as error:
        free = shutil.disk_usage(folder.parent).free / 1e9 if folder.parent.exists() else 0
        raise (DiskFull if is_full(error) else OSError)(
            f"{folder.parent}: {error.strerror or error} ({free:.1f} GB are free): set data.cache_dir to a folder that "
            "can be written, on a disk with room"
        ) from error
    return folder


def ranges(lengths: np.ndarray) -> np.ndarray:
    """(0, 1, … l₁ - 1, 0, 1, … l₂ - 1, …) of lengths l."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


# ---------------------------------------------------------------- texts


class Strings(Sequence[str]):
    """Texts in one UTF-8 buffer, each decoded when it is asked for.

    Args:
        buffer: (bytes,) uint8.
        offsets: (texts + 1,) where each begins, and the last ends.
        chosen: which of them these are, in order; None: all.
    """

    def __init__(self, buffer: np.ndarray, offsets: np.ndarray, chosen: np.ndarray | None = None) -> None:
        self.buffer, self.offsets, self.chosen = buffer, offsets, chosen
        self._bytes = memoryview(np.asarray(buffer))  # type: ignore[arg-type]

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Strings":
        """A list of texts."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        return cls(np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)]))

    def __getstate__(self) -> Any:
        return self.buffer, self.offsets, self.chosen

    def __setstate__(self, state: Any) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.offsets) - 1 if self.chosen is None else len(self.chosen)

    @overload
    def __getitem__(self, i: int) -> str: ...

    @overload
    def __getitem__(self, i: slice) -> list[str]: ...

    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        row = i if self.chosen is None else self.chosen[i]
        return str(self._bytes[self.offsets[row] : self.offsets[row + 1]], "utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BLOCK):
            rows = slice(start, min(start + BLOCK, len(self)))
            places = np.arange(rows.start, rows.stop) if self.chosen is None else self.chosen[rows]
            for begin, end in zip(self.offsets[places].tolist(), self.offsets[places + 1].tolist(), strict=True):
                yield str(self._bytes[begin:end], "utf-8", "surrogatepass")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    def __repr__(self) -> str:
        return f"Strings({self[:3]}{'…' if len(self) > 3 else ''}, {len(self)} in all)"

    def block(self, start: int, stop: int) -> "Strings":
        """Those of a range, as a copy of their own. Not of chosen ones."""
        offsets = self.offsets[start : stop + 1]
        return Strings(np.array(self.buffer[offsets[0] : offsets[-1]]), np.asarray(offsets - offsets[0]))

    def gathered(self, places: np.ndarray) -> "Strings":
        """Those at these places, in a buffer of their own, one after another. Not of chosen ones."""
        starts, lengths = self.offsets[places], np.diff(self.offsets)[places]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        buffer = np.empty(offsets[-1], np.uint8)
        for i in range(0, len(places), BLOCK):
            some = slice(i, i + BLOCK)
            end = offsets[min(i + BLOCK, len(places))]
            buffer[offsets[i] : end] = self.buffer[np.repeat(starts[some], lengths[some]) + ranges(lengths[some])]
        return Strings(buffer, offsets)

    def digest(self) -> str:
        """SHA-256 of the texts and of where each ends, the same however they are kept."""
        lengths, content = hashlib.sha256(), hashlib.sha256()
        everything = Strings(self.buffer, self.offsets)
        for start in range(0, len(self), BLOCK):
            rows = slice(start, min(start + BLOCK, len(self)))
            some = self.block(start, rows.stop) if self.chosen is None else everything.gathered(self.chosen[rows])
            lengths.update(np.diff(some.offsets).astype("<i8").tobytes())
            content.update(some.buffer.tobytes())
        return hashlib.sha256(lengths.digest() + content.digest()).hexdigest()

    def take(self, places: np.ndarray) -> "Strings":
        """Those at these places."""
        return Strings(self.buffer, self.offsets, places if self.chosen is None else self.chosen[places])


def joined(parts: Sequence[Strings]) -> Strings:
    """Texts one after another. Not of chosen ones."""
    sizes = np.concatenate([[0], *(np.diff(part.offsets) for part in parts)])
    return Strings(np.concatenate([part.buffer for part in parts]), np.cumsum(sizes))


class Groups(Sequence[list[str]]):
    """Texts in groups, such as the captions of each image.

    Args:
        texts: of all groups, one after another.
        first: (groups + 1,) where each group begins, and the last ends.
    """

    def __init__(self, texts: Strings, first: np.ndarray) -> None:
        self.texts, self.first = texts, first

    def __len__(self) -> int:
        return len(self.first) - 1

    @overload
    def __getitem__(self, i: int) -> list[str]: ...

    @overload
    def __getitem__(self, i: slice) -> list[list[str]]: ...

    def __getitem__(self, i: int | slice) -> list[str] | list[list[str]]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        return self.texts[self.first[i] : self.first[i + 1]]

    def __iter__(self) -> Iterator[list[str]]:
        texts = iter(self.texts)
        for start in range(0, len(self), BLOCK):
            for count in np.diff(self.first[start : start + BLOCK + 1]).tolist():
                yield list(itertools.islice(texts, count))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"Groups({self[:2]}{'…' if len(self) > 2 else ''}, {len(self)} in all)"


# ---------------------------------------------------------------- a table


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
    """Images in order of first appearance, and what the table says of each: N images, M rows, those of an image one
    after another in the table's order."""

    images: Strings
    """(N,) POSIX paths relative to the root, each once."""
    first: np.ndarray
    """(N + 1,) where the rows of each image begin, and the last's end."""
    texts: Strings
    """(M,) captions."""
    labels: Strings
    """(M,) the third column; empty where there is none. Its `chosen` are places among the labels that there are."""
    lines: np.ndarray
    """(M,) of the file, from 1."""
    folder: Path | None = field(default=None, compare=False)
    """Where the table lies in the cache, and its words with it."""
    skipped: list[BadRow] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        images: Sequence[str],
        captions: Sequence[Sequence[str]],
        tags: Sequence[Sequence[str]] | None = None,
    ) -> "Captions":
        """From lists: of each image its captions, and of each caption its tags."""
        first = np.cumsum([0, *map(len, captions)])
        labels = list(itertools.chain.from_iterable(tags)) if tags is not None else [""] * int(first[-1])
        names = {name: place for place, name in enumerate(dict.fromkeys(labels))}
        return cls(
            Strings.of(images),
            first,
            Strings.of(itertools.chain.from_iterable(captions)),
            Strings.of(names).take(np.array([names[name] for name in labels], np.int32)),
            np.arange(1, len(labels) + 1, dtype=np.int32),
        )

    def __len__(self) -> int:
        return len(self.images)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Captions) and all(
            getattr(self, name) == getattr(other, name) for name in ("images", "captions", "tags", "skipped")
        )

    @property
    def captions(self) -> Groups:
        """(N,) of each image, one or more."""
        return Groups(self.texts, self.first)

    @property
    def tags(self) -> Groups:
        """(N,) of each image, of each of its captions."""
        return Groups(self.labels, self.first)

    def digest(self) -> str:
        """SHA-256 of which images there are and what is said of each, in order: of the content, not of the file."""
        parts = "".join(texts.digest() for texts in (self.images, self.texts, self.labels))
        return hashlib.sha256(parts.encode() + np.diff(self.first).astype("<i8").tobytes()).hexdigest()

    def only(self, images: np.ndarray) -> "Captions":
        """These images, in this order, with all their rows."""
        counts = np.diff(self.first)[images]
        rows = np.repeat(self.first[images], counts) + ranges(counts)
        return self._part(images, rows, counts)

    def where(self, rows: np.ndarray) -> "Captions":
        """These rows, (M,) of truth values, and the images that have any."""
        counts = np.add.reduceat(rows, self.first[:-1], dtype=np.int64)
        images = np.flatnonzero(counts)
        return self._part(images, np.flatnonzero(rows), counts[images])

    def _part(self, images: np.ndarray, rows: np.ndarray, counts: np.ndarray) -> "Captions":
        return Captions(
            self.images.take(images),
            np.concatenate([[0], np.cumsum(counts)]),
            self.texts.take(rows),
            self.labels.take(rows),
            self.lines[rows],
            self.folder,
            self.skipped,
        )

    def label_names(self) -> Strings:
        """The labels that there are, each once; `labels.chosen` are places among them."""
        return Strings(self.labels.buffer, self.labels.offsets)

    def labelled(self, label: str) -> "Captions":
        """The same, every row with this label."""
        everywhere = Strings.of([label]).take(np.zeros(len(self.texts), np.int32))
        return replace(self, labels=everywhere)

    def save(self, folder: Path) -> None:
        """Write the arrays of a whole table, for `load`."""
        arrays = {
            "images": self.images.buffer,
            "images_at": self.images.offsets,
            "first": self.first,
            "texts": self.texts.buffer,
            "texts_at": self.texts.offsets,
            "labels": self.labels.buffer,
            "labels_at": self.labels.offsets,
            "label": np.asarray(self.labels.chosen),
            "lines": self.lines,
        }
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        (folder / "skipped.json").write_text(json.dumps(self.skipped), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Captions":
        """What `save` wrote, memory-mapped."""

        def array(name: str) -> Mapped:
            return mapped(folder / f"{name}.npy")

        return cls(
            Strings(array("images"), array("images_at")),
            array("first"),
            Strings(array("texts"), array("texts_at")),
            Strings(array("labels"), array("labels_at"), array("label")),
            array("lines"),
            folder,
            [BadRow(*row) for row in json.loads((folder / "skipped.json").read_text(encoding="utf-8"))],
        )


# ---------------------------------------------------------------- words


@dataclass(frozen=True)
class Words:
    """The words of a table's captions, in one buffer with offsets: tokenized once, whatever the vocabulary."""

    types: Strings
    """(K,) the distinct words, in order of first appearance."""
    stream: np.ndarray
    """(words,) int32: which of them each word is, of all rows of the whole table."""
    offsets: np.ndarray
    """(rows of the whole table + 1,) where each row's words begin, and the last's end."""
    rows: np.ndarray | None = None
    """(M,) which rows these are; None: all."""

    def spans(self, rows: np.ndarray | slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Where the words of these rows begin in the stream, and how many they are."""
        if self.rows is not None:
            rows = self.rows[rows]
        elif isinstance(rows, slice):
            offsets = self.offsets[rows.start : None if rows.stop is None else rows.stop + 1]
            return offsets[:-1], np.diff(offsets)
        starts = self.offsets[rows]
        return starts, self.offsets[np.asarray(rows) + 1] - starts

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The words of some rows after another, and how many each of the rows has."""
        total = len(self.offsets) - 1 if self.rows is None else len(self.rows)
        for start in range(0, total, BLOCK):
            begin, counts = self.spans(slice(start, min(start + BLOCK, total)))
            yield self.stream[np.repeat(begin, counts) + ranges(counts)], counts

    def counts(self) -> dict[str, int]:
        """How often each word occurs."""
        found = np.zeros(len(self.types), np.int64)
        for block, _ in self._blocks():
            found += np.bincount(block, minlength=len(found))
        return {word: count for word, count in zip(self.types, found.tolist(), strict=True) if count}

    def __iter__(self) -> Iterator[list[str]]:
        """The words of each row."""
        types = list(self.types)
        for block, counts in self._blocks():
            words = iter(block.tolist())
            for count in counts.tolist():
                yield [types[id_] for id_ in itertools.islice(words, count)]

    def rows_with(self, types: np.ndarray) -> np.ndarray:
        """The rows that have a word of these, (K,) of truth values."""
        found, start = [], 0
        for block, counts in self._blocks():
            rows = np.repeat(np.arange(start, start + len(counts)), counts)
            found.append(np.unique(rows[types[block]]))
            start += len(counts)
        return np.concatenate(found) if found else np.zeros(0, np.int64)


def words_of(captions: Captions, tokenizer: Tokenizer, progress: bool = True) -> Words:
    """A table's words. Where the table lies in the cache they are kept beside it, for any part of it.

    Args:
        captions: the table, or a part of one.
        tokenizer: how a caption becomes words.
        progress: show a bar, where there are many rows.
    """
    whole = Strings(captions.texts.buffer, captions.texts.offsets)
    if captions.folder is None:
        types, ids, counts = _tokenized_in_blocks(whole, tokenizer, progress)
        return Words(Strings.of(types), ids, np.concatenate([[0], np.cumsum(counts)]), captions.texts.chosen)

    def build(partial: Path) -> None:
        types, ids, counts = _tokenized_in_blocks(whole, tokenizer, progress)
        strings = Strings.of(types)
        arrays = {"types": strings.buffer, "types_at": strings.offsets, "stream": ids}
        arrays["stream_at"] = np.concatenate([[0], np.cumsum(counts)])
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array)

    folder = kept(captions.folder / f"words-{_tokenizer_key(tokenizer)}", "the captions' words", build)
    names = ("types", "types_at", "stream", "stream_at")
    words, words_at, stream, at = (mapped(folder / f"{name}.npy") for name in names)
    return Words(Strings(words, words_at), stream, at, captions.texts.chosen)


def _tokenizer_key(tokenizer: Tokenizer) -> str:
    """What the words depend on besides the captions: the tokenizer's code, and its package's version."""
    kind, package = type(tokenizer), getattr(tokenizer, "package", None)
    about = f"{kind.__qualname__} {version(package) if package else ''}".encode()
    return hashlib.blake2b(about + Path(inspect.getfile(kind)).read_bytes(), digest_size=8).hexdigest()


def _tokenized_in_blocks(
    texts: Strings, tokenizer: Tokenizer, progress: bool
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The distinct words in order of first appearance, which of them each word is, and how many each text has."""
    known: dict[str, int] = {}
    found, counts = [], []
    blocks = [(start, min(start + BLOCK, len(texts))) for start in range(0, max(1, len(texts)), BLOCK)]
    work = (delayed(_tokenized)(texts.block(*each), tokenizer) for each in blocks)
    bar = tqdm(
        total=len(texts), desc="captions to words", unit="row", disable=None if progress and len(blocks) > 1 else True
    )
    with bar:
        for types, ids, lengths in in_processes(work, len(blocks)):
            places = np.array([known.setdefault(word, len(known)) for word in types], np.int32)
            found.append(places[ids] if len(places) else ids)
            counts.append(lengths)
            bar.update(len(lengths))
    return list(known), np.concatenate(found), np.concatenate(counts)


def _tokenized(texts: Strings, tokenizer: Tokenizer) -> tuple[list[str], np.ndarray, np.ndarray]:
    known: dict[str, int] = {}
    ids: list[int] = []
    lengths = []
    for text in texts:
        words = tokenizer.tokens(text)
        lengths.append(len(words))
        ids += [known.setdefault(word, len(known)) for word in words]
    return list(known), np.array(ids, np.int32), np.array(lengths, np.int32)


def in_processes(work: Iterable[Any], count: int, workers: int | None = None) -> Iterator[Any]:
    """The results of `count` pieces of work (joblib's `delayed`), in order; of several, in so many processes, or one a
    core. Pieces and results wait for each other, so that memory holds a few."""
    yield from Parallel(n_jobs=max(1, min(count, workers or cpu_count())), return_as="generator", max_nbytes=None)(work)
