"""A data set in webdataset's form: tars of pictures, or of a frozen encoder's features, with their captions.

Beside the tars of a split lie `manifest.json` (the shards with their sizes and checksums), `captions.tsv` (all rows, so
that nothing need be read to begin) and `index.npy` (where in its shard each picture's bytes are). With these any
picture is read by its number, in any order, on any rank and in any worker, which is what makes the order a function of
seed, epoch and step. `python -m src.prepare shards` writes them; tars packed by others are indexed on first use.
"""

import functools
import glob
import hashlib
import http.client
import itertools
import json
import logging
import mmap
import os
import re
import tarfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, NamedTuple, get_args

import numpy as np
from torch import Tensor
from tqdm import tqdm

from src.addresses import opened
from src.data.images import ImageError, Pictures, load_image
from src.data.table import Captions, Strings, kept, mapped
from src.data.transforms import AS_IT_IS, Preprocess, Variation
from src.data.tsv import kept_path, read_tsv
from src.files import FULL, DiskFull, locked, read_json, room_for, write_atomically

log = logging.getLogger(__name__)

MANIFEST, CAPTIONS, INDEX = "manifest.json", "captions.tsv", "index.npy"
PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
FEATURES = "npy"
TEXTS = ("txt", "caption", "cap", "text")
OnBadShard = Literal["error", "skip"]
OPEN = 64
"""Shards that a process keeps open."""
TRIES = 3
"""Of what has an address, before it counts as not to be had,"""
AGAIN = 300.0
"""and seconds after which it is tried again."""
STARTED = time.time()
"""When this process began, about: what did not come for another process since then is not tried again, so that those
that train together leave out the same."""
NAMED = 20
"""Bad shards and pictures that a warning names, and then how many more there are."""
CHUNK = 1 << 20
MOST_TEXT = 1 << 20
"""Bytes of a text in a tar."""


class ShardError(ValueError):
    """A shard that cannot be used; the message names it and says how to mend it."""


class NotThereError(ShardError):
    """There is nothing at an address."""


class FetchError(ShardError):
    """What an address has did not come, or not all of it; another time it may."""


class Shard(NamedTuple):
    """One tar, as the manifest has it."""

    name: str
    """Relative to the manifest's place, or whole."""
    images: int
    bytes: int
    sha256: str | None
    """None where it was packed by others."""


_NAME = re.compile(r"[\w.][\w.+=@~/-]*")
"""What a shard is called in a manifest: addresses of some kinds become part of a shell's command (webdataset's way), so
that nothing that a shell would heed may be in it."""
_ADDRESS = re.compile(r"\w+://[\w.+=@~/:?&%,-]*")


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says of a split's shards."""

    shards: list[Shard]
    sha256: dict[str, str] = field(default_factory=dict)
    """Of captions.tsv and index.npy."""
    features: dict[str, Any] | None = None
    """What the frozen encoder's features are of (`features_key`), their `shape` and `dtype`; None: pictures."""
    packed: str | None = None
    """A digest of what they were packed from, and how; of tars of others, of their names, sizes and times."""

    @property
    def first(self) -> np.ndarray:
        """(shards + 1,) the number of each one's first image, and of all."""
        return np.cumsum([0, *(shard.images for shard in self.shards)])

    def _check(self, own: bool) -> None:
        """Raises ValueError for names, numbers or features that none has."""
        if not isinstance(self.sha256, dict):
            raise ValueError("its checksums are no mapping")
        if unknown := self.sha256.keys() - {CAPTIONS, INDEX}:
            raise ValueError(f"{min(unknown)}: not one of its files")
        for shard in self.shards:
            if not own and (not _NAME.fullmatch(shard.name) or ".." in shard.name.split("/")):
                raise ValueError(f"{shard.name!r}: a path below the manifest's folder is wanted")
            if not all(type(number) is int and 0 <= number < 2**48 for number in (shard.images, shard.bytes)):
                raise ValueError(f"{shard.name}: {shard.images!r} images, {shard.bytes!r} bytes")
            if not isinstance(shard.sha256, str | None):
                raise ValueError(f"{shard.name}: its checksum is no text")
        if (features := self.features) is not None:
            shape, kind, of = features["shape"], features["dtype"], features["of"]
            if kind not in ("float16", "float32") or not isinstance(of, dict):
                raise ValueError(f"features of {kind!r}")
            if len(shape) != 2 or not all(type(side) is int and 0 < side < 2**20 for side in shape):
                raise ValueError(f"features of shape {shape!r}")

    def write(self, folder: Path) -> None:
        """Write manifest.json."""
        content = {**asdict(self), "shards": [shard._asdict() for shard in self.shards]}
        write_atomically(folder / MANIFEST, json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, file: Path, own: bool = False) -> "Manifest":
        """Read manifest.json.

        Args:
            file: it.
            own: it was written here, of the user's own tars, whose names are whole. Others may be a stranger's: what
                they name lies beside them.

        Raises:
            ShardError: it is none, or cannot be read.
        """
        try:
            content = read_json(file.read_text(encoding="utf-8"))
            manifest = cls(
                [Shard(**shard) for shard in content["shards"]],
                content["sha256"],
                content["features"],
                content["packed"],
            )
            manifest._check(own)
            return manifest
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ShardError(
                f"{file}: no manifest of shards ({error!r}): pack them again with "
                "`python -m src.prepare shards … --overwrite`"
            ) from None


# ---------------------------------------------------------------- reading


class Shards:
    """The images of a split, or their features, read by their number.

    Args:
        place: the folder or address that shards are relative to, for messages and where names are not whole.
        manifest: of the shards.
        index: (images, 2) where each one's bytes begin in its shard, and how many they are.
        cache: where shards that have an address are kept.
        most: bytes of such shards that are kept at most; None: all.
    """

    def __init__(self, place: str, manifest: Manifest, index: np.ndarray, cache: Path, most: int | None = None) -> None:
        self.place, self.manifest, self.index, self.cache, self.most = place, manifest, index, cache, most
        self.first = manifest.first
        self._forget()

    def _forget(self) -> None:
        self._open: dict[int, Content] = {}  # by shard, what was asked for last at the end
        self._bad: dict[int, tuple[float, str]] = {}  # and what cannot be opened: since when, why
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_open", "_bad", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()  # open files go into no other process

    def shard_of(self, numbers: np.ndarray) -> np.ndarray:
        """Which shard each of these images is in."""
        return np.searchsorted(self.first, numbers, "right") - 1

    def digest(self) -> str:
        """Of the content, as the manifest has it."""
        about: list[Any] = [shard._asdict() for shard in self.manifest.shards]
        if any(shard.sha256 is None for shard in self.manifest.shards):
            about.append(self.manifest.packed)
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def path(self, shard: int) -> str:
        """Where a shard is: a file or an address."""
        return joined_place(self.place, self.manifest.shards[shard].name)

    def read(self, number: int) -> bytes:
        """An image's bytes, as they were packed.

        Raises:
            ShardError: its shard is missing or damaged.
        """
        shard = int(self.shard_of(np.array(number)))
        begin, size = self.index[number].tolist()
        content = self._content(shard)
        if not 0 <= begin <= begin + size <= content.size:
            raise ShardError(f"{self.path(shard)}: damaged, it ends before its image {number}: copy it again")
        try:
            data = content.read(begin, size)
        except OSError as error:
            raise ShardError(_why(self.path(shard), error)) from error
        if len(data) < size:
            raise ShardError(f"{self.path(shard)}: damaged, it ends before its image {number}: copy it again")
        return data

    def features(self, numbers: Sequence[int]) -> np.ndarray:
        """(B, R, D) float16 features of these images, read into one array.

        Raises:
            ShardError: a shard is missing or damaged.
        """
        assert self.manifest.features is not None
        found = np.empty((len(numbers), *self.manifest.features["shape"]), self.manifest.features["dtype"])
        places, shards = self.index[np.asarray(numbers)].tolist(), self.shard_of(np.asarray(numbers)).tolist()
        for row, shard, (begin, size) in zip(found, shards, places, strict=True):
            content = self._content(shard)
            if size != row.nbytes or not 0 <= begin <= content.size - size:
                raise ShardError(f"{self.path(shard)}: damaged, its features are cut off: copy it again")
            row[...] = np.ndarray(row.shape, row.dtype, content.mapped, begin)
        return found

    def _content(self, shard: int) -> "Content":
        """An open shard, fetched if need be. Threads may ask at once; what one of them reads stays open."""
        with self._lock:
            content = self._open.pop(shard, None)
            if content is None:
                content = self._opened(shard)
                self._let_go()
            self._open[shard] = content
            return content

    def _opened(self, shard: int) -> "Content":
        at, why = self._bad.get(shard, (0.0, ""))
        if why and time.time() < at + AGAIN:  # with `skip` each of its images asks for it
            raise ShardError(why)
        path = self.path(shard)
        try:
            return self._fetched(shard, at + AGAIN if why else None) if is_address(path) else Content(path)
        except DiskFull:
            raise
        except (OSError, ShardError) as error:
            why = _why(path, error)
            self._bad[shard] = (time.time(), why)
            raise ShardError(why) from error

    def _let_go(self) -> None:
        """Make way for another open shard: without the one that was asked for longest ago, where there are many, and
        without those that some process has removed to make room, which would take it still."""
        gone = [shard for shard, content in self._open.items() if self.most is not None and not content.is_there()]
        for shard in gone:
            del self._open[shard]
        while len(self._open) >= OPEN:
            del self._open[next(iter(self._open))]

    def _fetched(self, shard: int, since: float | None) -> "Content":
        """A shard that has an address: its copy, fetched where it is not there, or did not come before `since`; others
        make room."""
        about = self.manifest.shards[shard]
        target = fetched_to(self.cache, f"{self.path(shard)}{about.sha256 or ''}")  # packed anew is fetched anew
        while True:
            if not target.exists():
                fetch(self.path(shard), target, about.bytes, about.sha256, since)
                make_room(self.cache, target, self.most)
            with suppress(FileNotFoundError):  # another process has made room, just now
                return Content(target)

    def check_room(self, together: int) -> None:
        """Warn where fewer shards are kept than a training reads at a time, of which so many are mixed."""
        sizes = [shard.bytes for i, shard in enumerate(self.manifest.shards) if is_address(self.path(i))]
        needed = min(2 * together * max(sizes, default=0), sum(sizes))  # as one mixture ends, the next begins
        if self.most is not None and self.most < needed:
            log.warning(
                "%s: data.shard_cache_gb=%g keeps fewer shards than are read at a time, so that they are fetched again "
                "and again: %.3g, or fewer data.shuffle_shards",
                *(self.place, self.most / 1e9, needed / 1e9),
            )

    def missing(self, among: Sequence[int]) -> dict[int, str]:
        """What is wrong with these shards, by number: that are not there or of another size. Those that have an address
        are looked at when they are fetched."""
        found = {}
        for number in among:
            size, path = self.manifest.shards[number].bytes, self.path(number)
            if is_address(path):
                continue
            try:
                there = os.stat(path).st_size
            except OSError as error:
                found[number] = f"{path}: {error.strerror}: copy it again"
            else:
                if there != size:
                    found[number] = f"{path}: {there} bytes, and the manifest says {size}: copy it again"
        return found

    def damaged(self, among: Sequence[int]) -> tuple[dict[int, str], dict[int, str]]:
        """What is wrong with the content of these shards, by their number, and with pictures, by theirs: each shard is
        read as a whole, once, those that have an address too. Of processes with one cache one does, and the others use
        what it has found."""
        shards: dict[int, str] = {}
        images: dict[int, str] = {}
        self.cache.mkdir(parents=True, exist_ok=True)
        file = self.cache / "content.json"
        with locked(file.with_suffix(".lock"), f"the content of {self.place}"):
            known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            try:
                for number in tqdm(among, desc="checking shards", unit="shard", disable=None):
                    shard, path = self.manifest.shards[number], self.path(number)
                    path = path if is_address(path) else os.path.abspath(path)
                    try:
                        changed = None if is_address(path) else os.stat(path).st_mtime_ns
                        stamp = [shard.bytes, changed, shard.sha256]
                        before, unreadable = known.get(path, (None, {}))
                        if before != stamp:
                            if changed is not None and shard.sha256 not in (None, sha256_of(Path(path))):
                                raise ShardError(
                                    f"{path}: another content than the manifest says (SHA-256): copy it again"
                                )
                            unreadable = self._undecodable(number)
                            known[path] = stamp, unreadable
                    except DiskFull:
                        raise
                    except (OSError, ShardError) as error:
                        shards[number] = _why(path, error)
                    else:
                        images |= {int(self.first[number]) + int(i): why for i, why in unreadable.items()}
            finally:
                write_atomically(file, json.dumps(known, ensure_ascii=False))
        return shards, images

    def _undecodable(self, shard: int) -> dict[str, str]:
        """Place in the shard → reason, of its pictures that cannot be decoded."""
        self._content(shard)  # one that has an address is checked as it is fetched
        if self.manifest.features is not None:
            return {}
        first, end = self.first[shard : shard + 2].tolist()

        def problem(number: int) -> str | None:
            try:
                load_image(self.read(number), draft=1)  # reads all of a JPEG, but inverts little of the DCT
            except ImageError as error:
                return f"{self.path(shard)}: its image {number - first}: {error}"
            return None

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            reasons = pool.map(problem, range(first, end))
            return {str(place): why for place, why in enumerate(reasons) if why is not None}


class Content:
    """An open file, which is closed when nothing reads it any more.

    Args:
        path: of the file.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.number = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self.number).st_size

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)

    def is_there(self) -> bool:
        """Whether the file is still where it was."""
        return os.path.exists(self.path)

    def read(self, begin: int, size: int) -> bytes:
        """Some of it, or what there is of that."""
        return os.pread(self.number, size, begin)

    @functools.cached_property
    def mapped(self) -> mmap.mmap:
        """All of it in memory, for what is small and read often."""
        return mmap.mmap(self.number, 0, access=mmap.ACCESS_READ)


class ShardImages:
    """The pictures of a table's images."""

    def __init__(self, shards: Shards, images: Strings) -> None:
        self.shards, self.images = shards, images

    def digest(self) -> str:
        """Of their content and order."""
        chosen = self.images.chosen
        digest = self.shards.digest()
        return digest if chosen is None else hashlib.sha256(digest.encode() + chosen.tobytes()).hexdigest()

    def blocks(self) -> np.ndarray:
        """(N,) which shard each image is in."""
        chosen = self.images.chosen
        return self.shards.shard_of(np.arange(len(self.images)) if chosen is None else chosen)

    def open(self, i: int, preprocess: Preprocess, variation: Variation = AS_IT_IS) -> Tensor:
        """An image's pixels (3, H, W) uint8.

        Raises:
            ShardError, ImageError: it cannot be read; names its shard.
        """
        number = i if self.images.chosen is None else int(self.images.chosen[i])
        try:
            return preprocess.open(self.shards.read(number), variation)
        except ImageError as error:
            shard = self.shards.path(int(self.shards.shard_of(np.array(number))))
            raise ImageError(f"{shard}: its image {self.images[i]}: {error}") from error


class ShardFeatures(Sequence[np.ndarray]):
    """The features of a table's images, as if they lay in one array (images, R, D)."""

    def __init__(self, shards: Shards, numbers: np.ndarray | None) -> None:
        self.shards, self.numbers = shards, numbers

    def __len__(self) -> int:
        return len(self.shards.index) if self.numbers is None else len(self.numbers)

    def __getitem__(self, i: Any) -> Any:
        return self.take([i])[0]

    def take(self, places: Sequence[int]) -> np.ndarray:
        """(B, R, D) of these images."""
        return self.shards.features(places if self.numbers is None else self.numbers[places].tolist())


def check_features(shards: Shards, wanted: dict[str, Any]) -> None:
    """Refuse features of another encoder than they are to be read for (`features_key`).

    Raises:
        ShardError: names the first difference.
    """
    assert shards.manifest.features is not None
    found = shards.manifest.features["of"]
    for key in sorted((wanted.keys() | found.keys()) - {"precision"}):  # which changes no meaning
        if wanted.get(key) != found.get(key):
            raise ShardError(
                f"{shards.place}: its features are of another encoder or transform: their {key} is {found.get(key)}, "
                f"and this training's {wanted.get(key)}; choose the one that they were packed with, or pack pictures"
            )


def sha256_of(file: Path) -> str:
    """Of a file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# ---------------------------------------------------------------- addresses


def _why(place: str, error: Exception) -> str:
    """A sentence that names a bad shard."""
    return f"{place}: {error.strerror or error}: copy it again" if isinstance(error, OSError) else str(error)


def is_address(place: str) -> bool:
    """Whether it is no file here: http://, https://, s3://, gs://, pipe: …"""
    return "://" in place or place.startswith("pipe:")


def joined_place(base: str, name: str) -> str:
    """A shard's file or address, from its manifest's."""
    if is_address(name) or os.path.isabs(name):
        return name
    return f"{base.rstrip('/')}/{name}"


def fetched_to(cache: Path, what: str) -> Path:
    """Where a tar that has an address is kept."""
    return cache / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.tar"


def _is_http(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def _stream(address: str) -> BinaryIO:
    if _is_http(address):
        return opened(address, 60)  # type: ignore[no-any-return]
    if not address.startswith("pipe:") and not _ADDRESS.fullmatch(
        address
    ):  # a pipe is a command by the user's own wish
        raise ShardError(f"{address}: a character in it that no address has")
    try:
        from webdataset import gopen
    except ImportError as error:
        raise ShardError(f"{address}: `pip install webdataset` first, which opens such addresses") from error
    return gopen(address)  # type: ignore[no-any-return]


def fetch(
    address: str, target: Path, size: int | None = None, sha256: str | None = None, since: float | None = None
) -> None:
    """Copy what has an address to a file: whole, or not at all. One process does, others wait; what did not come for
    one of them after the time `since` (None: as this process began) is not tried by the others.

    Raises:
        NotThereError: the server says so; of other kinds of addresses, they cannot be opened in three tries.
        FetchError: it does not come in three tries.
        ShardError: it is other than it should be.
        DiskFull: there is no room for it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    failed = target.with_name(f"{target.name}.failed")
    with locked(target.with_name(f"{target.name}.lock"), address), room_for(target, size):
        if target.exists():
            return
        if failed.exists():
            at, missing, why = json.loads(failed.read_text(encoding="utf-8"))
            if at > (since or STARTED):
                raise (NotThereError if missing else FetchError)(why)
            failed.unlink()
        for left in reversed(range(TRIES)):
            try:
                return _copy(address, target, size, sha256)
            except (FetchError, NotThereError) as error:
                missing = isinstance(error, NotThereError)
                if not left or (missing and _is_http(address)):
                    write_atomically(failed, json.dumps([time.time(), missing, str(error)]))
                    raise
                log.warning("%s; trying again", error)
                time.sleep(1)


def _copy(address: str, target: Path, size: int | None, sha256: str | None) -> None:
    partial = target.with_name(f"{target.name}.partial")
    digest, done = hashlib.sha256(), 0
    try:
        with _stream(address) as source, partial.open("wb") as file:
            announced = getattr(source, "length", None) if size is None else size  # HTTP's; a cut-off end is no error
            while data := source.read(CHUNK):
                file.write(data)
                digest.update(data)
                done += len(data)
        if announced is not None and done < announced:
            raise FetchError(f"{address}: cut off: {done} of {announced} bytes came")
        if announced not in (None, done):
            raise ShardError(f"{address}: {done} bytes, and the manifest says {announced}")
        if sha256 not in (None, digest.hexdigest()):
            raise ShardError(f"{address}: damaged: its checksum is not the manifest's")
        os.replace(partial, target)
    except (OSError, http.client.HTTPException) as error:
        if getattr(error, "errno", None) in FULL:
            raise
        missing = getattr(error, "code", None) in (403, 404, 410) or not _is_http(address)
        raise (NotThereError if missing else FetchError)(f"{address}: it could not be fetched ({error})") from error
    finally:
        partial.unlink(missing_ok=True)


def make_room(cache: Path, newest: Path, most: int | None) -> None:
    """Remove the shards that were fetched first until at most so many bytes are kept; None: all."""
    if most is None:
        return
    files = []
    for file in cache.glob("*.tar"):
        with suppress(FileNotFoundError):  # another process makes room, too
            stat = file.stat()
            files.append((stat.st_mtime, stat.st_size, file))
    total = sum(size for _, size, _ in files)
    for _, size, file in sorted(files):
        if total > most and file != newest:
            total -= size
            file.unlink(missing_ok=True)


# ---------------------------------------------------------------- finding


def found_shards(
    root: str,
    where: str | Sequence[str],
    cache_dir: Path,
    *,
    on_bad_shard: str = "error",
    verify: str = "exists",
    most: int | None = None,
) -> tuple[Captions, Shards]:
    """A split in shards: its table, and what reads its images.

    Args:
        root: the folder or address that `where` is relative to.
        where: a folder or address with a manifest.json; or tars: a pattern (`train-*.tar`, `{00..31}.tar`), or a list.
        cache_dir: where indexes, and shards that have an address, are kept.
        on_bad_shard: `error` raises for the first shard that is missing or damaged, or picture that cannot be decoded;
            `skip` leaves their images out and counts them.
        verify: `none` looks at no shard; `exists` at whether each is there in its size; `decode` at its content too,
            and decodes each picture.
        most: bytes of fetched shards that are kept at most.

    Raises:
        ShardError: there are none, or a bad one.
        ValueError: `on_bad_shard` is none of its choices.
    """
    if on_bad_shard not in get_args(OnBadShard):
        raise ValueError(f"on_bad_shard={on_bad_shard}: choose {', '.join(get_args(OnBadShard))}")
    cache = cache_dir / "shards"
    place, folder, chosen = _located(root, where, cache, on_bad_shard, most)
    manifest = Manifest.read(folder / MANIFEST, own=not place)
    for name, sha256 in manifest.sha256.items():
        if verify == "decode" and sha256_of(folder / name) != sha256:
            raise ShardError(f"{folder / name}: another content than {MANIFEST} says: copy it again")
    table = read_tsv(folder / CAPTIONS, folder, verify="none", cache_dir=cache_dir)
    index = mapped(folder / INDEX)
    if index.shape != (len(index), 2) or index.dtype.kind not in "iu":
        raise ShardError(f"{folder / INDEX}: no places of images: pack it again with `python -m src.prepare shards …`")
    if not len(index) == manifest.first[-1] == len(table):
        raise ShardError(
            f"{folder}: {CAPTIONS} has {len(table)} images, {INDEX} {len(index)} and {MANIFEST} {manifest.first[-1]}: "
            "they are of different data; pack it again with `python -m src.prepare shards … --overwrite`"
        )
    shards = Shards(place, manifest, index, cache, most)
    wanted = np.ones(len(manifest.shards), bool)
    if chosen is not None:
        wanted = np.array([shard.name in chosen for shard in manifest.shards])
    images_wanted = np.repeat(wanted, np.diff(manifest.first))
    bad = {} if verify == "none" else shards.missing(np.flatnonzero(wanted).tolist())
    unreadable: dict[int, str] = {}
    if verify == "decode":
        damaged, unreadable = shards.damaged([i for i in np.flatnonzero(wanted).tolist() if i not in bad])
        bad |= damaged
    if reasons := [*bad.values(), *unreadable.values()]:
        if on_bad_shard == "error":
            others = f" ({len(reasons) - 1} besides)" if len(reasons) > 1 else ""
            raise ShardError(f"{reasons[0]}{others}; data.on_bad_shard=skip leaves its images out")
        total, of = int(images_wanted.sum()), int(wanted.sum())
        for number in bad:
            images_wanted[manifest.first[number] : manifest.first[number + 1]] = False
        images_wanted[list(unreadable)] = False
        more = "" if len(reasons) <= NAMED else f"; and {len(reasons) - NAMED} more"
        log.warning(
            "%s: left out are %d of %d shards, %d of %d images: %s%s",
            *(place, len(bad), of, total - int(images_wanted.sum()), total, "; ".join(reasons[:NAMED]), more),
        )
        if not images_wanted.any():
            raise ShardError(f"{place}: no shard is left. {reasons[0]}")
    return (table if images_wanted.all() else table.only(np.flatnonzero(images_wanted))), shards


def _located(
    root: str, where: str | Sequence[str], cache: Path, on_bad_shard: str, most: int | None
) -> tuple[str, Path, set[str] | None]:
    """What shard names are relative to; the folder of the manifest and what belongs to it; of some shards, which."""
    if isinstance(where, str) and not where.endswith(".tar"):
        place = joined_place(root, where)
        if is_address(place):
            return place, _fetched_manifest(place, cache), None
        if (Path(place) / MANIFEST).is_file():
            return place, Path(place), None
        tars = sorted(str(tar) for tar in Path(place).glob("*.tar"))
        if not tars:
            raise ShardError(f"{place}: no {MANIFEST} and no .tar in it: give a folder of shards, or a pattern of tars")
    else:
        patterns = [where] if isinstance(where, str) else where
        tars = [tar for pattern in patterns for tar in _expanded(joined_place(root, pattern))]
    if not tars:
        raise ShardError(f"{root}: an empty list of shards: give a folder of them, or a pattern of tars")
    tars = [tar if is_address(tar) else os.path.abspath(tar) for tar in tars]
    parents = {tar.rpartition("/")[0] for tar in tars}
    if len(parents) == 1:
        (place,) = parents
        names = {tar.rpartition("/")[2] for tar in tars}
        folder = None
        if not is_address(place):
            folder = Path(place) if (Path(place) / MANIFEST).is_file() else None
        else:
            with suppress(NotThereError):  # there need be none
                folder = _fetched_manifest(place, cache)
        if folder is not None and names <= {shard.name for shard in Manifest.read(folder / MANIFEST).shards}:
            return place, folder, names
    return "", _indexed(tars, cache, on_bad_shard, most), None


def _expanded(pattern: str) -> list[str]:
    """`{00..31}`, `{a,b}` and, of files, `*`, `?` and `[…]`."""
    from braceexpand import braceexpand

    found = []
    for each in braceexpand(pattern):
        if is_address(each) or not glob.has_magic(each):
            found.append(each)
        elif matched := sorted(glob.glob(each, recursive=True)):
            found += matched
        else:
            raise ShardError(f"{each}: no file matches this pattern")
    return found


def _fetched_manifest(address: str, cache: Path) -> Path:
    """The folder of a manifest that has an address, and of its captions and index: fetched where they have changed."""
    folder = cache / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f"{MANIFEST}.new"
    with locked(folder / "fetching.lock", address):
        new.unlink(missing_ok=True)
        fetch(joined_place(address, MANIFEST), new)  # always the present one
        for name, sha256 in Manifest.read(new).sha256.items():
            file = folder / name
            if not file.exists() or sha256_of(file) != sha256:
                file.unlink(missing_ok=True)
                try:
                    fetch(joined_place(address, name), file, sha256=sha256)
                except NotThereError as error:  # which the manifest itself may be
                    raise ShardError(str(error)) from error
        os.replace(new, folder / MANIFEST)  # others may be reading it
    return folder


# ---------------------------------------------------------------- tars


class Packed(NamedTuple):
    """What is in a tar: of each image its name, captions, tags, and where its bytes are."""

    names: list[str]
    captions: list[list[str]]
    tags: list[list[str]]
    places: list[tuple[int, int]]


def read_tar(file: Path, prefix: str = "", place: str = "") -> Packed:
    """Look through a tar in webdataset's form: files of one name up to the first dot are a sample. `.json` with
    `captions` (and `tags`) or `caption`, or `.txt`, says what the picture beside it shows; a path as its `image` is the
    picture's name, else `prefix` and the files' own. Samples without a picture or a caption are left out.

    Args:
        file: the tar.
        prefix: of names.
        place: where the tar is from, for messages; empty: the file.

    Raises:
        ShardError: no tar, or a damaged one.
    """
    place = place or str(file)
    samples: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                stem, _, kind = path.name.partition(".")
                kind = kind.lower().rpartition(".")[2]
                if not member.isfile() or not stem or not kind:
                    continue
                if member.issparse():  # its size is any number, and nothing of it need be there
                    raise ShardError(f"{place}: {member.name[:60]!r} in it is a sparse file: pack it again without")
                sample = samples.setdefault(str(path.parent / stem), {})
                if kind in (*PICTURES, FEATURES):
                    sample["at"] = (member.offset_data, member.size)
                elif kind == "json" or kind in TEXTS:
                    if member.size > MOST_TEXT:
                        raise ShardError(
                            f"{place}: {member.name[:60]!r} in it has {member.size:,} bytes of text: leave it out"
                        )
                    text = tar.extractfile(member)
                    assert text is not None
                    sample["json" if kind == "json" else "text"] = text.read().decode()
            end = tar.offset
        if end > file.stat().st_size:
            raise ShardError(f"{place}: damaged, it ends too early: copy it again")
        found = Packed([], [], [], [])
        for key, sample in samples.items():
            about = read_json(sample.get("json", "{}"))
            if not isinstance(about, dict):
                raise ShardError(f"{place}: the JSON of its sample {key} is no object: mend it, or leave it out")
            said = _texts(about.get("captions")) or _texts(about.get("caption")) or _texts(sample.get("text"))
            tags = about.get("tags") or ""
            each = itertools.repeat(tags) if isinstance(tags, str) else itertools.chain(tags, itertools.repeat(""))
            rows = [(text, "".join(_texts(tag))) for text, tag in zip(said, each, strict=False) if text]
            if rows and "at" in sample:
                found.names.append(_name(about.get("image"), prefix + key))
                found.captions.append([text for text, _ in rows])
                found.tags.append([tag for _, tag in rows])
                found.places.append(sample["at"])
        return found
    except ShardError:
        raise
    except Exception as error:  # of numbers that no file has, tarfile raises OverflowError and MemoryError, too
        raise ShardError(f"{place}: damaged, or no tar of pictures and captions ({error}): copy it again") from error


def _texts(value: Any) -> list[str]:
    """Of a text or a list of them, each in one line; what is no text is empty, and keeps its place."""
    values = value if isinstance(value, list) else [value]
    found = [" ".join(each.split()) if isinstance(each, str) else "" for each in values]
    return found if any(found) else []


def _name(wanted: Any, own: str) -> str:
    """What an image is called in a table: as its JSON wants it, where that is a path below a folder."""
    if isinstance(wanted, str) and wanted.isprintable():
        kept, problem = kept_path(wanted.strip())
        if problem is None:
            return kept
    parts = "".join(each if each.isprintable() else "_" for each in own).replace("\\", "/").split("/")
    kept, problem = kept_path("/".join(part.strip() for part in parts if part.strip() not in ("", ".", "..")))
    return kept if problem is None else f"image-{hashlib.sha256(own.encode(errors='replace')).hexdigest()[:16]}"


def _indexed(tars: Sequence[str], cache: Path, on_bad_shard: str, most: int | None = None) -> Path:
    """The folder of a manifest, captions and index of tars that have none. Each tar is looked through once; those that
    cannot be are tried, and named, in every call."""
    cache.mkdir(parents=True, exist_ok=True)
    known = cache / _key(tars)
    with locked(cache / f"{known.name}.looking.lock", f"looking through {len(tars)} shards"):
        if known.exists():
            return known
        good: dict[str, Path] = {}
        for tar, prefix in tqdm(
            zip(tars, _prefixes(tars), strict=True), "looking through shards", len(tars), unit="shard", disable=None
        ):
            try:
                good[tar] = _looked_through(tar, prefix, cache, most)
            except ShardError as error:
                if on_bad_shard == "error":
                    raise ShardError(f"{error}; data.on_bad_shard=skip leaves its images out") from error
                log.warning("left out: %s", error)
        key = _key(list(good))

        def build(partial: Path) -> None:
            shards: list[Shard] = []
            index: list[tuple[int, int]] = []
            where: dict[str, str] = {}  # each image's tar
            with (partial / CAPTIONS).open("w", encoding="utf-8", newline="\n") as file:
                for tar, note in good.items():
                    size, *lists = json.loads(note.read_text(encoding="utf-8"))
                    packed = Packed(*lists)
                    for name in packed.names:
                        if name in where:
                            raise ShardError(f"{tar}: its image {name} is in {where[name]}, too: leave one of them out")
                        where[name] = tar
                    shards.append(Shard(tar, len(packed.names), size, None))
                    file.writelines(table_lines(packed.names, packed.captions, packed.tags))
                    index += packed.places
            if not index:
                raise ShardError(f"{tars[0]}: no pictures with captions in the {len(tars)} shards")
            np.save(partial / INDEX, np.array(index, np.int64))
            Manifest(shards, packed=key).write(partial)

        folder = kept(cache / key, f"looking through {len(tars)} shards", build)
        if folder == known:  # else the next call looks at the others only
            for note in good.values():
                note.unlink(missing_ok=True)
        return folder


def _key(tars: Sequence[str]) -> str:
    """Of the content of tars, by their names, sizes and times."""
    return hashlib.sha256(json.dumps([[tar, _stamp(tar)] for tar in tars]).encode()).hexdigest()[:16]


def _stamp(tar: str) -> tuple[int, int] | None:
    """A file's size and time; None: it has an address, or is not there."""
    if is_address(tar) or not os.path.exists(tar):
        return None
    stat = os.stat(tar)
    return stat.st_size, stat.st_mtime_ns


def _prefixes(tars: Sequence[str]) -> list[str]:
    """What the names of each tar's images begin with: its own name, where tars of one name lie in several folders with
    theirs."""
    parts = [PurePosixPath(tar).with_suffix("").parts for tar in tars]
    depth = 1
    while depth < max(map(len, parts)) and len({each[-depth:] for each in parts}) < len({*parts}):
        depth += 1
    return ["/".join(each[-depth:]) + "/" for each in parts]


def _looked_through(tar: str, prefix: str, cache: Path, most: int | None) -> Path:
    """A note of a tar's bytes and what is in it, made once.

    Raises:
        ShardError: it is missing or damaged.
    """
    note = cache / f"{hashlib.sha256(json.dumps([tar, _stamp(tar), prefix]).encode()).hexdigest()[:16]}.json"
    file = fetched_to(cache, tar) if is_address(tar) else Path(tar)
    while not note.exists():
        if is_address(tar):
            fetch(tar, file)
            make_room(cache, file, most)
        try:
            packed, size = read_tar(file, prefix, tar), file.stat().st_size
        except (ShardError, FileNotFoundError):
            if is_address(tar) and not file.exists():  # another process has made room, just now
                continue
            if is_address(tar):  # what came was none, and may be another time
                file.unlink(missing_ok=True)
            raise
        write_atomically(note, json.dumps([size, *packed], ensure_ascii=False))
    return note


def table_lines(
    images: Iterable[str], captions: Iterable[Sequence[str]], tags: Iterable[Sequence[str]]
) -> Iterator[str]:
    """The rows of captions.tsv."""
    for image, texts, labels in zip(images, captions, tags, strict=True):
        for text, label in zip(texts, labels, strict=True):
            yield f"{image}\t{text}\t{label}\n" if label else f"{image}\t{text}\n"


def pictures_below(root: Path) -> Pictures:
    """The pictures of a folder, or where that is a folder of shards, theirs."""
    return Pictures(str(root.resolve()), functools.partial(picture_of, root))


def picture_of(root: Path, image: str) -> Path | bytes:
    """A picture to show: its file below `root`, or where that is a folder of shards, its bytes; the file's path where
    there is neither."""
    if not (root / image).is_file() and (root / MANIFEST).is_file():
        shards, numbers = _shown(root, (root / MANIFEST).stat().st_mtime_ns)
        number = numbers.get(image)
        if number is not None and shards.manifest.features is None:
            return shards.read(number)
    return root / image


@functools.lru_cache(maxsize=2)
def _shown(folder: Path, changed: int) -> tuple[Shards, dict[str, int]]:
    """A folder's shards, which keep their files open, and where each image is in them."""
    table = read_tsv(folder / CAPTIONS, folder, verify="none")
    shards = Shards(str(folder), Manifest.read(folder / MANIFEST), mapped(folder / INDEX), folder)
    return shards, {image: number for number, image in enumerate(table.images)}
