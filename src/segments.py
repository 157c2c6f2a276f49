"""A search index on disk: segments that never change, and one manifest, replaced as a whole, that names those that
count. What a killed process was about to write is not named there, and is swept away by the next one that writes."""

import hashlib
import importlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from src.bm25 import Postings, postings
from src.data.tokenizer import MixedTokenizer
from src.files import onto_disk, read_json, room_for, whole

MANIFEST = "manifest.json"
FORMAT = 1
EXACT = 20_000
"""Vectors up to which a segment is searched exactly; larger ones have an inverted file."""
FEW = 0.05
"""Share of a segment's vectors up to which those that are allowed are looked at one by one."""
AT_ONCE = 1 << 16
"""Vectors that are converted at a time."""
FANOUT = 8
"""So many segments of like size become one."""
SMALLEST = 500
"""Rows of segments that are of like size with all smaller ones."""


class IndexFault(ValueError):
    """An index that is not there, damaged, or of another captioner; the message says which, and what to do."""


def faiss() -> Any:
    """The package.

    Raises:
        ImportError: it is not installed; says how it is.
    """
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise ImportError("the search index needs faiss: `pip install faiss-cpu` first, or `make install`") from error


class Row(NamedTuple):
    """What an index knows of a picture besides its vector."""

    path: str
    """Whole, from the root."""
    size: int
    """Bytes of the file, as it was."""
    changed: int
    """When, in nanoseconds."""
    caption: str = ""
    """One a line."""


def key_of(path: str) -> int:
    """64 bits that stand for a path."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=8).digest(), "little")


def keys_of(paths: Iterable[str]) -> np.ndarray:
    """`key_of` of several, uint64."""
    return np.fromiter(map(key_of, paths), np.uint64)


class Texts:
    """Strings in one buffer, as they lie on disk."""

    def __init__(self, folder: Path, name: str) -> None:
        self.bytes = np.load(folder / f"{name}.npy", mmap_mode="r")
        self.first = np.load(folder / f"{name}_first.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.first) - 1

    def __getitem__(self, row: int) -> str:
        return os.fsdecode(self.bytes[self.first[row] : self.first[row + 1]].tobytes())

    @staticmethod
    def save(folder: Path, name: str, texts: Sequence[str]) -> None:
        """Write them."""
        encoded = [os.fsencode(text) for text in texts]
        np.save(folder / f"{name}.npy", np.frombuffer(b"".join(encoded), np.uint8))
        np.save(folder / f"{name}_first.npy", np.cumsum([0, *map(len, encoded)], dtype=np.int64))


def words_of(caption: str) -> list[str]:
    """What is searched for in captions: words, and Chinese by character."""
    return MixedTokenizer().tokens(caption)


class Segment:
    """Some pictures, in the order of their paths' keys. All its files are opened at once: they may be swept away.

    Args:
        folder: what `write_segment` wrote.
        files: the sizes of its files, in bytes.

    Raises:
        IndexFault: one of them is missing or has another size.
    """

    def __init__(self, folder: Path, files: Mapping[str, int]) -> None:
        for name, size in files.items():
            if (found := (folder / name).stat().st_size) != size:
                raise IndexFault(
                    f"{folder / name}: damaged ({found:,} bytes instead of {size:,}); restore it, or delete the index "
                    "and build it again"
                )
        self.folder, self.files = folder, dict(files)
        try:
            self._open(folder)
        except (FileNotFoundError, ImportError, IndexFault):
            raise
        except Exception as error:  # NumPy, JSON and faiss raise many kinds
            raise IndexFault(
                f"{folder}: damaged ({error}); restore it, or delete the index and build it again"
            ) from error

    def _open(self, folder: Path) -> None:
        self.vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        self.keys = np.load(folder / "keys.npy")
        self.stats = np.load(folder / "stats.npy", mmap_mode="r")
        self.folder_of = np.load(folder / "folder_of.npy")
        self.folders = json.loads((folder / "folders.json").read_text(encoding="ascii"))
        self.names, self.captions = Texts(folder, "names"), Texts(folder, "captions")
        terms = json.loads((folder / "terms.json").read_text(encoding="ascii"))
        arrays = (np.load(folder / f"postings_{name}.npy", mmap_mode="r") for name in Postings._fields[1:])
        self.postings = Postings({term: number for number, term in enumerate(terms)}, *arrays)
        self._check()
        self.index = self._faiss()

    def _check(self) -> None:
        """Raises ValueError where its arrays do not belong together: later each of them is trusted."""
        count, terms = len(self.keys), len(self.postings.terms)
        shapes = {
            "keys": (self.keys, (count,), "u"),
            "vectors": (self.vectors, (count, self.vectors.shape[-1]), "f"),
            "stats": (self.stats, (count, 2), "i"),
            "folder_of": (self.folder_of, (count,), "i"),
            "names_first": (self.names.first, (count + 1,), "i"),
            "captions_first": (self.captions.first, (count + 1,), "i"),
            "postings_first": (self.postings.first, (terms + 1,), "i"),
            "postings_lengths": (self.postings.lengths, (count,), "u"),
            "postings_counts": (self.postings.counts, self.postings.rows.shape, "u"),
        }
        for name, (array, shape, kind) in shapes.items():
            if array.shape != shape or array.dtype.kind != kind:
                raise ValueError(f"{name} has shape {array.shape} of {array.dtype}, and {shape} is wanted")
        for name, first, last in (
            ("names", self.names.first, len(self.names.bytes)),
            ("captions", self.captions.first, len(self.captions.bytes)),
            ("postings", self.postings.first, len(self.postings.rows)),
        ):
            if first[0] != 0 or first[-1] != last or (np.diff(first) < 0).any():
                raise ValueError(f"{name} do not lie one after the other")
        if not all(isinstance(folder, str) for folder in self.folders):
            raise ValueError("its folders are no texts")
        if count and not 0 <= self.folder_of.min() <= self.folder_of.max() < len(self.folders):
            raise ValueError("a picture in no folder")
        if len(self.postings.rows) and int(self.postings.rows.max()) >= count:
            raise ValueError("words of a picture that is not there")

    def __len__(self) -> int:
        return len(self.keys)

    def _faiss(self) -> Any:
        if "inverted.faiss" in self.files:
            file = self.folder / "inverted.faiss"
            try:
                return faiss().read_index(str(file))
            except RuntimeError:
                file.stat()  # says better that it is gone
                raise
        kinds = faiss().ScalarQuantizer.QT_fp16, faiss().METRIC_INNER_PRODUCT
        exact = faiss().IndexScalarQuantizer(self.vectors.shape[1], *kinds)
        exact.add(self.vectors.astype(np.float32))
        return exact

    def path(self, row: int) -> str:
        """A picture's, whole."""
        return os.path.join(self.folders[self.folder_of[row]], self.names[row])

    def row(self, row: int) -> Row:
        """All that is known of a picture."""
        return Row(self.path(row), int(self.stats[row, 0]), int(self.stats[row, 1]), self.captions[row])

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """The row of each key, -1 where it is not here."""
        if not len(self):
            return np.full(len(keys), -1)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self) - 1)
        return np.where(self.keys[places] == keys, places, -1)

    def below(self, folder: str) -> np.ndarray:
        """(n,) whether a picture lies in a folder, or below it: its whole path, or some parts that lie anywhere in
        one."""
        sought = os.path.join(os.path.abspath(folder), "")
        part = None if os.path.isabs(folder) else os.path.join(os.sep, os.path.normpath(folder), "")
        inside = [(each := os.path.join(its, "")).startswith(sought) or (part and part in each) for its in self.folders]
        return np.array(inside, bool)[self.folder_of]

    def nearest(
        self, vector: np.ndarray, count: int, allowed: np.ndarray, probes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The rows whose vectors have the largest inner products with one, of those that are allowed (n,), best first,
        and the products."""
        some = int(allowed.sum())
        if not some:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        inverted = "inverted.faiss" in self.files
        if inverted and some <= FEW * len(self):
            rows = np.flatnonzero(allowed)
        else:
            options: dict[str, Any] = {}
            if some < len(self):
                options["sel"] = faiss().IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
            kind = faiss().SearchParametersIVF if inverted else faiss().SearchParameters
            wanted = min(4 * count + 20 if inverted else count, some)
            while True:
                if inverted:
                    options["nprobe"] = probes
                parameters = kind(**options) if options else None
                _, found = self.index.search(vector[None].astype(np.float32), wanted, params=parameters)
                rows = found[0][found[0] >= 0]
                if len(rows) >= wanted or not inverted or probes >= self.index.nlist:
                    break
                probes *= 4  # those that are allowed may lie in clusters far away
        products = self.vectors[rows].astype(np.float32) @ vector  # the inverted file's are of eight bits
        best = np.argsort(-products, kind="stable")[:count]
        return rows[best], products[best]


def write_segment(folder: Path, rows: Sequence[Row], vectors: np.ndarray) -> dict[str, int]:
    """Write a segment, on the disk itself when this returns; what was there of an earlier trial goes.

    Args:
        folder: it.
        rows: its pictures.
        vectors: (n, E), theirs.

    Returns:
        The sizes of its files.

    Raises:
        DiskFull: there is no room for it.
    """
    keys = keys_of(row.path for row in rows)
    order = np.argsort(keys)
    rows = [rows[i] for i in order.tolist()]
    names: list[str] = []
    folders: dict[str, int] = {}
    folder_of = np.zeros(len(rows), np.int32)
    for number, row in enumerate(rows):
        place, name = os.path.split(row.path)
        folder_of[number] = folders.setdefault(place, len(folders))
        names.append(name)
    shutil.rmtree(folder, ignore_errors=True)
    with room_for(folder):
        folder.mkdir(parents=True)
        sorted_vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float16, vectors.shape)
        for start in range(0, len(order), AT_ONCE):
            sorted_vectors[start : start + AT_ONCE] = vectors[order[start : start + AT_ONCE]]
        sorted_vectors.flush()
        np.save(folder / "keys.npy", keys[order])
        np.save(folder / "stats.npy", np.array([(row.size, row.changed) for row in rows], np.int64).reshape(-1, 2))
        np.save(folder / "folder_of.npy", folder_of)
        (folder / "folders.json").write_text(json.dumps(list(folders)), encoding="ascii")
        Texts.save(folder, "names", names)
        Texts.save(folder, "captions", [row.caption for row in rows])
        found = postings(words_of(row.caption) for row in rows)
        (folder / "terms.json").write_text(json.dumps(list(found.terms)), encoding="ascii")
        for name in Postings._fields[1:]:
            np.save(folder / f"postings_{name}.npy", getattr(found, name))
        if len(rows) > EXACT:
            _write_inverted(folder / "inverted.faiss", sorted_vectors)
        for file in folder.iterdir():
            onto_disk(file)
        onto_disk(folder)
    return {file.name: file.stat().st_size for file in sorted(folder.iterdir())}


def _write_inverted(file: Path, vectors: np.ndarray) -> None:
    """An inverted file of clusters (Jégou et al., 2011, https://doi.org/10.1109/TPAMI.2010.57), in which a vector has
    eight bits a dimension."""
    count, size = vectors.shape
    clusters = int(2 * count**0.5)
    kinds = faiss().ScalarQuantizer.QT_8bit, faiss().METRIC_INNER_PRODUCT
    index = faiss().IndexIVFScalarQuantizer(faiss().IndexFlatIP(size), size, clusters, *kinds)
    index.cp.niter, index.cp.max_points_per_centroid = 10, 64
    drawn = np.random.default_rng(0).permutation(count)[: 64 * clusters]
    index.train(vectors[np.sort(drawn)].astype(np.float32))
    for start in range(0, count, AT_ONCE):
        index.add(vectors[start : start + AT_ONCE].astype(np.float32))
    faiss().write_index(index, str(file))


class State(NamedTuple):
    """What an index held when its manifest was read."""

    manifest: dict[str, Any]
    segments: list[Segment]
    alive: list[np.ndarray]
    """(n,) of each segment, which of its pictures have not been removed since."""


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of an index.

    Raises:
        IndexFault: there is none, or a damaged one.
    """
    file = directory / MANIFEST
    try:
        text = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IndexFault(
            f"{directory}: no index here; `python -m src.index FOLDER --index {directory}` builds one"
        ) from error
    try:
        manifest = read_json(text)
        digest = manifest.pop("digest")
        if digest != _digest(manifest):
            raise ValueError("its content is not what was written")
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']}, and this version reads {FORMAT}")
        for entry in manifest["segments"]:
            for name in (entry["name"], entry["removed"] or "segment-", *entry["files"]):
                if Path(name).name != name:
                    raise ValueError(f"{name!r}: a name in the index's folder is wanted")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IndexFault(f"{file}: damaged ({error}); restore it, or delete {directory} and build it again") from error
    return manifest


def new_manifest(model: Mapping[str, Any], languages: Sequence[str]) -> dict[str, Any]:
    """That of an index of nothing."""
    born = {"format": FORMAT, "id": uuid.uuid4().hex}
    return {**born, "model": dict(model), "languages": list(languages), "next": 0, "segments": []}


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]


def write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Put a manifest in the place of the one before: what it names is the index from now on."""
    with whole(directory / MANIFEST) as partial:
        partial.write_text(json.dumps({**manifest, "digest": _digest(manifest)}, indent=1), encoding="utf-8")


def read_state(directory: Path, known: State | None = None) -> State:
    """Read an index; segments that are `known` already are taken over.

    Raises:
        IndexFault: there is none, or a damaged one.
    """
    for trial in range(10):
        manifest = read_manifest(directory)
        same = known is not None and known.manifest["id"] == manifest["id"]  # not deleted since, and built again
        there = {each.folder.name: each for each in known.segments} if known is not None and same else {}
        try:
            segments, alive = [], []
            for entry in manifest["segments"]:
                folder = directory / entry["name"]
                segments.append(there.get(entry["name"]) or Segment(folder, entry["files"]))
                mask = np.ones(len(segments[-1]), bool)
                if entry["removed"]:
                    mask[_removed(directory / entry["removed"])] = False
                alive.append(mask)
            return State(manifest, segments, alive)
        except FileNotFoundError as error:
            if trial < 9 and read_manifest(directory) != manifest:
                continue  # another process has replaced it, and swept
            raise IndexFault(
                f"{error.filename}: missing; restore it, or delete {directory} and build the index again"
            ) from error
    raise AssertionError


def _removed(file: Path) -> np.ndarray:
    """The rows that a segment has lost."""
    try:
        return np.load(file)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise IndexFault(f"{file}: damaged ({error}); restore it, or delete the index and build it again") from error


def sweep(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Delete what the manifest does not name: what was merged, and what a killed process left. For the process that
    holds the lock."""
    named = {each for entry in manifest["segments"] for each in (entry["name"], entry["removed"])}
    for path in directory.iterdir():
        if path.name.startswith("segment-") and path.name not in named:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
