"""Pictures found by a sentence, by a picture, by words of their captions: an index on disk and what is asked of it."""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from src.bm25 import bm25
from src.captioner import Captioner
from src.data.control import asked
from src.data.images import ImageError
from src.files import locked, onto_disk, room_for
from src.matching import digest_of, log_likelihoods, matcher_of, picture_vectors, said, sentence_vectors
from src.segments import (
    FANOUT,
    MANIFEST,
    SMALLEST,
    IndexFault,
    Row,
    Segment,
    State,
    faiss,
    keys_of,
    new_manifest,
    read_state,
    sweep,
    words_of,
    write_manifest,
    write_segment,
)

PROBES = 64
"""Clusters of a large segment's inverted file that a search looks into."""
AT_ONCE = 16
"""Pictures that re-ranking looks at together."""
COMMIT = 1000
"""Pictures after which an update is kept,"""
SECONDS = 60
"""or seconds: at most so much is lost when it is killed."""


class Found(NamedTuple):
    """A picture that was found."""

    path: str
    """Whole, from the root."""
    score: float
    """By which it ranks: cosine in [−1, 1] by sentence or picture, or what re-ranking makes of it; by words BM25."""
    caption: str
    """Generated; one a line, where the index has them in several languages; empty where it has none."""


class Added(NamedTuple):
    """What `Index.add` did."""

    new: int
    unchanged: int
    failed: list[str]
    """A sentence on each picture that could not be read."""


class Index:
    """An index of pictures: `Index.open` one that is there, `Index.create` a new one.

    Any number of processes and threads may read while one writes; each sees the last state that was complete when it
    opened the index, `refresh`ed it, or wrote to it.
    """

    def __init__(self, directory: Path, state: State) -> None:
        self.directory = directory
        self.state = state  # replaced as a whole, so that threads that read need no lock

    @classmethod
    def open(cls, directory: str | Path) -> "Index":
        """An index that is there.

        Raises:
            IndexFault: there is none, or a damaged one.
            ImportError: faiss is not installed.
        """
        faiss()
        return cls(Path(directory), read_state(Path(directory)))

    @classmethod
    def create(cls, directory: str | Path, captioner: Captioner, languages: Sequence[str] | None = None) -> "Index":
        """An index of this captioner's vectors, with captions in these languages (None: as the captioner's default is;
        none: without captions); the one that is there, if it is of the same.

        Raises:
            IndexFault: there is another one, or a damaged one.
            ControlError: a language that the captioner does not know.
            ValueError: the captioner has no matcher.
            ImportError: faiss is not installed.
        """
        faiss()
        directory, digest = Path(directory), digest_of(captioner)
        wanted = [""] if languages is None else list(languages)
        for language in wanted:
            _asked(captioner, language)
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory / "lock", f"{directory} is being written"):
            if not (directory / MANIFEST).exists():
                left = {"lock", f"{MANIFEST}.partial"}  # of a process that was killed here
                if any(path.name not in left for path in directory.iterdir()):
                    raise IndexFault(f"{directory}: no index, and not empty: name another folder for it")
                model = {"digest": digest, "size": matcher_of(captioner).size}
                write_manifest(directory, new_manifest(model, wanted))
        index = cls.open(directory)
        index.check(captioner)
        if languages is not None and index.languages != wanted:
            raise IndexFault(
                f"{directory}: its captions are {index._captions()}: leave --language and --no-captions out, or build "
                "another index"
            )
        return index

    def __len__(self) -> int:
        return sum(int(mask.sum()) for mask in self.state.alive)

    @property
    def languages(self) -> list[str]:
        """Of the captions: tags such as `zh`, "" for the captioner's default; none where there are no captions."""
        return self.state.manifest["languages"]

    def _captions(self) -> str:
        languages = ", ".join(each or "the captioner's default language" for each in self.languages)
        return f"in {languages}" if languages else "none"

    def check(self, captioner: Captioner) -> None:
        """Refuse a captioner whose vectors are not this index's.

        Raises:
            IndexFault: it is another than the index was built with.
        """
        if digest_of(captioner) != self.state.manifest["model"]["digest"]:
            raise IndexFault(
                f"{self.directory}: built with another captioner, or before this one was trained further: name that "
                "one with --model, or build a new index"
            )

    def refresh(self) -> None:
        """See what other processes have written since.

        Raises:
            IndexFault: the index is damaged, or gone.
        """
        self.state = read_state(self.directory, self.state)

    def rows(self) -> Iterator[Row]:
        """All pictures that are in it."""
        state = self.state
        for segment, alive in zip(state.segments, state.alive, strict=True):
            yield from map(segment.row, np.flatnonzero(alive).tolist())

    # ------------------------------------------------------------------ what is asked

    def by_vector(
        self,
        vector: np.ndarray,
        count: int = 10,
        folder: str | Path | None = None,
        but: str | Path | None = None,
        probes: int = PROBES,
    ) -> list[Found]:
        """The pictures whose vectors have the largest inner product with a unit vector (E,), best first.

        Args:
            vector: it.
            count: how many at most.
            folder: only those in it or below: a whole path, one from the working folder, or some parts that lie
                anywhere in a picture's path.
            but: a picture that is not looked for.
            probes: clusters of large segments that are looked into: more find more, and take longer.

        Raises:
            ValueError: another size than the index's vectors have, or a count below 1.
        """
        state, vector = self.state, np.asarray(vector, np.float32)
        _at_least_one(count)
        if vector.shape != (state.manifest["model"]["size"],):
            raise ValueError(f"a vector of {state.manifest['model']['size']} numbers is wanted, not {vector.shape}")
        found: list[tuple[float, Segment, int]] = []
        for segment, allowed in zip(state.segments, _allowed(state, folder), strict=True):
            if but is not None:
                allowed = allowed.copy()
                here = segment.rows(keys_of([_whole_path(but)]))
                allowed[here[here >= 0]] = False
            rows, products = segment.nearest(vector, count, allowed, probes)
            found += [(float(p), segment, int(row)) for row, p in zip(rows, products, strict=True)]
        return _best(found, count)

    def by_sentence(
        self, captioner: Captioner, text: str, count: int = 10, folder: str | Path | None = None, rerank: int = 0
    ) -> list[Found]:
        """The pictures that a sentence describes, best first.

        Args:
            captioner: the one that the index was built with.
            text: in a language of its.
            count: how many at most.
            folder: as in `by_vector`.
            rerank: so many of the first are looked at again: they rank by the inner product and by how likely the
                captioner is to say the sentence of them; all others, and those whose files are gone, count as being as
                unlikely as the least likely of them. 0: none are.

        Raises:
            IndexFault: another captioner.
            ValueError: it knows none of the words.
        """
        self.check(captioner)
        _at_least_one(count)
        (vector,) = sentence_vectors(captioner, [text])
        found = self.by_vector(vector, max(count, rerank), folder)
        return _reranked(captioner, text, found, rerank)[:count] if rerank else found

    def by_picture(
        self,
        captioner: Captioner,
        image: str | Path | Image.Image,
        count: int = 10,
        folder: str | Path | None = None,
    ) -> list[Found]:
        """The pictures that are most like one, a file or an opened picture, best first; itself is not among them.

        Raises:
            IndexFault: another captioner than the index was built with.
            ImageError: it cannot be read.
        """
        self.check(captioner)
        picture = image if isinstance(image, Image.Image) else captioner.open(image)
        (vector,) = picture_vectors(captioner, captioner.features(captioner.stacked([picture])))
        return self.by_vector(vector, count, folder, None if isinstance(image, Image.Image) else image)

    def by_words(self, text: str, count: int = 10, folder: str | Path | None = None) -> list[Found]:
        """The pictures whose captions hold words of a text, best first by BM25 (src/bm25.py).

        Raises:
            IndexFault: the index has no captions.
            ValueError: a text without words.
        """
        _at_least_one(count)
        state, words = self.state, words_of(text)
        if not self.languages:
            raise IndexFault(f"{self.directory}: it was built with --no-captions, so there are no words to search in")
        if not words:
            raise ValueError(f"“{text}”: no words to search for")
        parts = [(each.postings, alive) for each, alive in zip(state.segments, state.alive, strict=True)]
        found: list[tuple[float, Segment, int]] = []
        for segment, scores, allowed in zip(state.segments, bm25(parts, words), _allowed(state, folder), strict=True):
            rows = np.flatnonzero((scores > 0) & allowed)
            if len(rows) > count:
                rows = rows[np.argpartition(-scores[rows], count - 1)[:count]]
            found += [(float(scores[row]), segment, int(row)) for row in rows]
        return _best(found, count)

    # ------------------------------------------------------------------ what is written

    @contextmanager
    def updating(self) -> "Iterator[Update]":
        """Write, alone: what the block adds and removes is kept where it ends, and every now and then before (see
        `Update.commit`). What was swept away is gone for readers of older states only as files: what they have opened
        they keep."""
        with locked(self.directory / "lock", f"{self.directory} is being written"):
            self.refresh()
            sweep(self.directory, self.state.manifest)
            update = Update(self)
            try:
                yield update
            except KeyboardInterrupt:
                update.commit()
                raise
            update.commit()

    def add(
        self,
        captioner: Captioner,
        pictures: Sequence[str | Path],
        batch_size: int = 16,
        progress: Callable[[int], Any] = lambda count: None,
    ) -> Added:
        """Embed pictures, caption them in the index's languages, and keep them. Those that are there and have not
        changed since, by size and time, are passed over; those that have take the place of what was.

        Args:
            captioner: the one that the index was built with.
            pictures: files.
            batch_size: how many at a time.
            progress: told of so many more that are done, or passed over.

        Raises:
            IndexFault: another captioner.
            DiskFull: there is no room; what was kept before is whole.
        """
        self.check(captioner)
        captioner.check_source()
        failed: list[str] = []
        new, paths = 0, list(dict.fromkeys(map(_whole_path, pictures)))
        with self.updating() as update:
            fresh = update.fresh(paths)
            progress(len(paths) - len(fresh))
            pending = iter(fresh)
            while batch := list(islice(pending, batch_size)):
                rows, opened = [], []
                for path in batch:
                    try:
                        stat = os.stat(path)
                        opened.append(captioner.open(path))
                        rows.append(Row(path, stat.st_size, stat.st_mtime_ns))
                    except (ImageError, OSError) as error:
                        failed.append(str(error))
                if rows:
                    seen = captioner.features(captioner.stacked(opened))
                    captions: list[list[str]] = [[] for _ in rows]
                    for language in self.languages:
                        asked_for = _asked(captioner, language)
                        prefix = asked_for.expand(len(rows), -1) if len(asked_for) else None
                        said_of = captioner.captions(captioner.search(seen, prefix=prefix))
                        for own, caption in zip(captions, said_of, strict=True):
                            own.append(caption.text)
                    rows = [row._replace(caption="\n".join(own)) for row, own in zip(rows, captions, strict=True)]
                    update.put(rows, picture_vectors(captioner, seen))
                    new += len(rows)
                progress(len(batch))
        return Added(new, len(paths) - len(fresh), failed)

    def remove(self, paths: Sequence[str | Path]) -> int:
        """Take pictures, and all below folders, out of the index; returns how many."""
        with self.updating() as update:
            return update.remove(paths)


class Update:
    """What is about to be written to an index, whose lock is held."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._begin()

    def _begin(self) -> None:
        self.pending: dict[str, tuple[Row, np.ndarray]] = {}
        self.removed = [~alive for alive in self.index.state.alive]
        self.changed = False
        self.kept_at = time.monotonic()

    def fresh(self, paths: Sequence[str]) -> list[str]:
        """Of files, by their whole paths, those that are not in the index as they are now."""
        known = np.zeros(len(paths), bool)
        keys = keys_of(paths)
        for segment, removed in zip(self.index.state.segments, self.removed, strict=True):
            rows = segment.rows(keys)
            for place in np.flatnonzero(rows >= 0).tolist():
                row = int(rows[place])
                if not removed[row]:
                    try:
                        stat = os.stat(paths[place])
                    except OSError:
                        continue  # the reader says what is wrong with it
                    own = segment.stats[row]
                    known[place] = (own[0], own[1]) == (stat.st_size, stat.st_mtime_ns)
        return [path for path, there in zip(paths, known.tolist(), strict=True) if not there]

    def put(self, rows: Sequence[Row], vectors: np.ndarray) -> None:
        """Add pictures with their unit vectors (n, E); one that is there is replaced."""
        self.pending |= {row.path: (row, vector) for row, vector in zip(rows, vectors, strict=True)}
        if len(self.pending) >= COMMIT or (self.pending and time.monotonic() - self.kept_at > SECONDS):
            self.commit()

    def remove(self, paths: Sequence[str | Path]) -> int:
        """Take pictures, and all below folders, out; returns how many."""
        before = sum(int(mask.sum()) for mask in self.removed)
        whole = [_whole_path(path) for path in paths]
        keys = keys_of(whole)
        both = list(zip(self.index.state.segments, self.removed, strict=True))
        found = np.zeros(len(keys), bool)
        for segment, removed in both:
            rows = segment.rows(keys)
            removed[rows[rows >= 0]] = True
            found |= rows >= 0
        for place in np.flatnonzero(~found).tolist():  # which are folders
            for segment, removed in both:
                removed |= segment.below(whole[place])
        count = sum(int(mask.sum()) for mask in self.removed) - before
        self.changed |= count > 0
        return count

    def commit(self, together: bool = False) -> None:
        """Keep what was added and removed: from the moment that the manifest is replaced, all of it; before, none.

        Segments of like size, `FANOUT` of them, are then written as one, and such of which most is gone anew; with
        `together` all are. So there are few, and a picture is written again a few times only.

        Raises:
            DiskFull: there is no room; the index is as it was.
        """
        index, state = self.index, self.index.state
        if not (self.pending or self.changed or together):
            return
        manifest = dict(state.manifest)
        number = manifest["next"]
        entries = [dict(entry) for entry in manifest["segments"]]
        if self.pending:
            keys = keys_of(self.pending)
            for segment, removed in zip(state.segments, self.removed, strict=True):
                rows = segment.rows(keys)
                removed[rows[rows >= 0]] = True
        for entry, removed, alive in zip(entries, self.removed, state.alive, strict=True):
            if not np.array_equal(~removed, alive):
                entry["removed"] = f"segment-{number:06d}.npy"
                file = index.directory / entry["removed"]
                with room_for(file):
                    np.save(file, np.flatnonzero(removed).astype(np.uint32))
                onto_disk(file)
                number += 1
        groups = _to_merge(
            [int((~removed).sum()) for removed in self.removed], list(map(len, state.segments)), len(self.pending)
        )
        if together:
            groups = [list(range(len(entries) + bool(self.pending)))]
        merged = {i for group in groups for i in group}
        own = len(entries)
        kept: list[dict[str, Any]] = [entry for i, entry in enumerate(entries) if i not in merged]
        if self.pending and own not in merged:
            groups.append([own])
        for group in groups:
            gathered, vectors = self._gathered(group)
            if gathered:
                name = f"segment-{number:06d}"
                files = write_segment(index.directory / name, gathered, vectors)
                kept.append({"name": name, "files": files, "removed": None})
                number += 1
        manifest |= {"segments": kept, "next": number}
        onto_disk(index.directory)  # what the manifest names is there before it is
        write_manifest(index.directory, manifest)
        index.refresh()
        sweep(index.directory, index.state.manifest)
        self._begin()

    def _gathered(self, group: Sequence[int]) -> tuple[list[Row], np.ndarray]:
        """The pictures of some segments that are not removed, and of what is pending, where that is in the group."""
        state = self.index.state
        rows: list[Row] = []
        size = state.manifest["model"]["size"]
        vectors = [np.zeros((0, size), np.float16)]
        for i in group:
            if i == len(state.segments):
                rows += [row for row, _ in self.pending.values()]
                vectors.append(np.array([vector for _, vector in self.pending.values()], np.float16))
            else:
                segment, places = state.segments[i], np.flatnonzero(~self.removed[i])
                rows += map(segment.row, places.tolist())
                vectors.append(segment.vectors[places])
        return rows, np.concatenate(vectors)


def _to_merge(alive: Sequence[int], rows: Sequence[int], pending: int) -> list[list[int]]:
    """Which segments, by number (the pending one's is the last), become one: see `Update.commit`."""
    sizes = [*alive, pending] if pending else list(alive)
    wasted = [i for i, (left, all_) in enumerate(zip(alive, rows, strict=True)) if left <= all_ / 2]
    groups = [[i] for i in wasted]
    tiers: dict[int, list[int]] = {}
    for i, size in enumerate(sizes):
        if i not in wasted:
            tiers.setdefault(_tier(size), []).append(i)
    merging: list[int] = []
    for tier in range(max(tiers, default=-1) + 1):
        own = tiers.get(tier, [])
        gained = [merging] if merging and _tier(sum(sizes[i] for i in merging)) <= tier else []
        if len(own) + len(gained) >= FANOUT:
            merging = merging + own
    return [*groups, merging] if merging else groups


def _tier(size: int) -> int:
    return max(0, math.ceil(math.log(max(size, 1) / SMALLEST, FANOUT)))


def _at_least_one(count: int) -> None:
    if count < 1:
        raise ValueError(f"{count} pictures are asked for: ask for 1 or more")


def _asked(captioner: Captioner, language: str) -> torch.Tensor:
    """The control tokens of captions in a language, or where it is "" of those by default, without a word to the
    captioner, of which another thread may ask something else."""
    names = asked(captioner.vocabulary, tags=None if language else captioner.default, language=language or None)
    return torch.tensor([captioner.vocabulary.control_index[name] for name in names], dtype=torch.long)


def _whole_path(path: str | Path) -> str:
    return os.path.abspath(path)


def _allowed(state: State, folder: str | Path | None) -> list[np.ndarray]:
    """(n,) of each segment, which pictures may be found."""
    if folder is None:
        return state.alive
    both = zip(state.segments, state.alive, strict=True)
    return [alive & segment.below(str(folder)) for segment, alive in both]


def _best(found: list[tuple[float, Segment, int]], count: int) -> list[Found]:
    found.sort(key=lambda each: -each[0])
    return [Found(segment.path(row), score, segment.captions[row]) for score, segment, row in found[:count]]


def _reranked(captioner: Captioner, text: str, found: Sequence[Found], count: int) -> list[Found]:
    sentence = said(captioner, text)
    likely: dict[int, float] = {}
    for start in range(0, min(count, len(found)), AT_ONCE):
        opened = {}
        for place in range(start, min(start + AT_ONCE, count, len(found))):
            with suppress(ImageError, OSError):
                opened[place] = captioner.open(found[place].path)
        if opened:
            seen = captioner.features(captioner.stacked(list(opened.values())))
            means = log_likelihoods(captioner, seen, [[sentence]] * len(opened))
            likely |= {place: float(own[0]) for place, own in zip(opened, means, strict=True)}
    weight, least = matcher_of(captioner).likelihood, min(likely.values(), default=0.0)
    again = [each._replace(score=each.score + weight * likely.get(place, least)) for place, each in enumerate(found)]
    return sorted(again, key=lambda each: -each.score)
