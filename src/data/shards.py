"""A data set in webdataset's form: tars of pictures, or of a frozen encoder's features, with their captions.

Beside the tars of a split lie `manifest.json` (the shards with their sizes and checksums), `captions.tsv` (all rows, so
that nothing need be read to begin) and `index.npy` (where in its shard each picture's bytes are). With these any
picture is read by its number, in any order, on any rank and in any worker, which is what makes the order a function of
seed, epoch and step. `python -m src.prepare shards` writes them; tars packed by others are indexed on first use.
"""

import functools
import glob
import hashlib
import itertools
import json
import logging
import os
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, NamedTuple, get_args

import numpy as np
from torch import Tensor
from tqdm import tqdm

from src.data.images import ImageError, Pictures
from src.data.table import Captions, Strings, kept, mapped
from src.data.transforms import AS_IT_IS, Preprocess, Variation
from src.data.tsv import read_tsv
from src.files import locked, write_atomically

log = logging.getLogger(__name__)

MANIFEST, CAPTIONS, INDEX = "manifest.json", "captions.tsv", "index.npy"
PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
FEATURES = "npy"
TEXTS = ("txt", "caption", "cap", "text")
OnBadShard = Literal["error", "skip"]
OPEN = 64
"""Shards that a process keeps open."""
CHUNK = 1 << 20


class ShardError(ValueError):
    """A shard that cannot be used; the message names it and says how to mend it."""


class Shard(NamedTuple):
    """One tar, as the manifest has it."""

    name: str
    """Relative to the manifest's place, or whole."""
    images: int
    bytes: int
    sha256: str | None
    """None where it was packed by others."""


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says of a split's shards."""

    shards: list[Shard]
    sha256: dict[str, str] = field(default_factory=dict)
    """Of captions.tsv and index.npy."""
    features: dict[str, Any] | None = None
    """What the frozen encoder's features are of (`features_key`), their `shape` and `dtype`; None: pictures."""
    packed: str | None = None
    """A digest of what they were packed from, and how; None: by others."""

    @property
    def first(self) -> np.ndarray:
        """(shards + 1,) the number of each one's first image, and of all."""
        return np.cumsum([0, *(shard.images for shard in self.shards)])

    def write(self, folder: Path) -> None:
        """Write manifest.json."""
        content = {**asdict(self), "shards": [shard._asdict() for shard in self.shards]}
        write_atomically(folder / MANIFEST, json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, file: Path) -> "Manifest":
        """Read manifest.json.

        Raises:
            ShardError: it is none.
        """
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            return cls(
                [Shard(**shard) for shard in content["shards"]],
                content["sha256"],
                content["features"],
                content["packed"],
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ShardError(
                f"{file}: no manifest of shards ({error!r}): pack them again with `python -m src.prepare shards`"
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
        self._open: dict[int, int] = {}  # shard → file descriptor, that of the longest use last

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # open files go into no other process

    def shard_of(self, numbers: np.ndarray) -> np.ndarray:
        """Which shard each of these images is in."""
        return np.searchsorted(self.first, numbers, "right") - 1

    def digest(self) -> str:
        """Of the content, as the manifest has it."""
        return hashlib.sha256(json.dumps([shard._asdict() for shard in self.manifest.shards]).encode()).hexdigest()

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
        data = os.pread(self._file(shard), size, begin)
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
        content, row = found.data.cast("B"), found[:1].nbytes
        for to, shard, (begin, size) in zip(range(0, len(content), row), shards, places, strict=True):
            if size != row or os.preadv(self._file(shard), [content[to : to + row]], begin) < row:
                raise ShardError(f"{self.path(shard)}: damaged, its features are cut off: copy it again")
        return found

    def _file(self, shard: int) -> int:
        file = self._open.pop(shard, None)
        if file is None:
            path = self.path(shard)
            try:
                local = self._fetched(shard) if is_address(path) else path
                file = os.open(local, os.O_RDONLY)
            except OSError as error:
                raise ShardError(f"{path}: {error.strerror or error}: copy it again, or pack it anew") from error
            while len(self._open) >= OPEN:
                os.close(self._open.pop(next(iter(self._open))))
        self._open[shard] = file
        return file

    def _fetched(self, shard: int) -> Path:
        """The copy of a shard that has an address, fetched where it is not there; others make room."""
        about = self.manifest.shards[shard]
        name = f"{self.path(shard)}{about.sha256 or ''}"  # what is packed anew at an address is fetched anew
        target = self.cache / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.tar"
        if not target.exists():
            fetch(self.path(shard), target, about.bytes, about.sha256)
            if self.most is not None:
                _make_room(self.cache, target, self.most)
        return target

    def problems(self, decode: bool, among: Sequence[int]) -> dict[int, str]:
        """What is wrong with these shards, by number: that are missing or of another size; with `decode`, of another
        content, for which of processes with one cache one reads them, and the others wait and use what it found. Those
        that have an address are looked at when they are fetched."""
        found, known_file = {}, self.cache / "verified.json"
        if decode:
            self.cache.mkdir(parents=True, exist_ok=True)
        with locked(known_file.with_suffix(".lock"), f"the checksums of {self.place}") if decode else nullcontext():
            known = json.loads(known_file.read_text()) if decode and known_file.exists() else {}
            for number in tqdm(among, desc="checking shards", unit="shard", disable=None if decode else True):
                shard, path = self.manifest.shards[number], self.path(number)
                if is_address(path):
                    continue
                try:
                    stat = os.stat(path)
                except OSError as error:
                    found[number] = f"{path}: {error.strerror}: copy it again"
                    continue
                if stat.st_size != shard.bytes:
                    found[number] = f"{path}: {stat.st_size} bytes, and the manifest says {shard.bytes}: copy it again"
                elif decode and shard.sha256 is not None:
                    stamp = [stat.st_size, stat.st_mtime_ns, shard.sha256]
                    if known.get(os.path.abspath(path)) == stamp:
                        continue
                    if sha256_of(Path(path)) != shard.sha256:
                        found[number] = f"{path}: another content than the manifest says (SHA-256): copy it again"
                    else:
                        known[os.path.abspath(path)] = stamp
            if decode:
                write_atomically(known_file, json.dumps(known))
        return found


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


def is_address(place: str) -> bool:
    """Whether it is no file here: http://, https://, s3://, gs://, pipe: …"""
    return "://" in place or place.startswith("pipe:")


def joined_place(base: str, name: str) -> str:
    """A shard's file or address, from its manifest's."""
    if is_address(name) or os.path.isabs(name):
        return name
    return f"{base.rstrip('/')}/{name}"


def _stream(address: str) -> BinaryIO:
    if address.startswith(("http://", "https://")):
        return urllib.request.urlopen(address, timeout=60)  # type: ignore[no-any-return]
    try:
        from webdataset import gopen
    except ImportError as error:
        raise ShardError(f"{address}: `pip install webdataset` first, which opens such addresses") from error
    return gopen(address)  # type: ignore[no-any-return]


def fetch(address: str, target: Path, size: int | None = None, sha256: str | None = None) -> None:
    """Copy what has an address to a file: whole, or not at all. One process does, others wait.

    Raises:
        ShardError: it is not there, or other than it should be.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f"{target.name}.lock"), address):
        if target.exists():
            return
        partial = target.with_name(f"{target.name}.partial")
        digest, done = hashlib.sha256(), 0
        try:
            with _stream(address) as source, partial.open("wb") as file:
                while data := source.read(CHUNK):
                    file.write(data)
                    digest.update(data)
                    done += len(data)
        except (OSError, urllib.error.URLError) as error:
            raise ShardError(f"{address}: it could not be fetched ({error})") from error
        if size not in (None, done) or sha256 not in (None, digest.hexdigest()):
            partial.unlink()
            raise ShardError(f"{address}: damaged: {done} bytes came, and their checksum is not the manifest's")
        os.replace(partial, target)


def _make_room(cache: Path, newest: Path, most: int) -> None:
    """Remove the shards that were fetched first until at most so many bytes are kept; open ones stay readable."""
    files = sorted((file for file in cache.glob("*.tar") if file != newest), key=lambda file: file.stat().st_mtime)
    total = newest.stat().st_size + sum(file.stat().st_size for file in files)
    for file in files:
        if total <= most:
            break
        total -= file.stat().st_size
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
        on_bad_shard: `error` raises for the first shard that is missing or damaged; `skip` leaves their images out and
            counts them.
        verify: `none` looks at no shard; `exists` at whether each is there in its size; `decode` at its content too.
        most: bytes of fetched shards that are kept at most.

    Raises:
        ShardError: there are none, or a bad one.
        ValueError: `on_bad_shard` is none of its choices.
    """
    if on_bad_shard not in get_args(OnBadShard):
        raise ValueError(f"on_bad_shard={on_bad_shard}: choose {', '.join(get_args(OnBadShard))}")
    cache = cache_dir / "shards"
    place, folder, chosen = _located(root, where, cache, on_bad_shard)
    manifest = Manifest.read(folder / MANIFEST)
    for name, sha256 in manifest.sha256.items():
        if verify == "decode" and sha256_of(folder / name) != sha256:
            raise ShardError(f"{folder / name}: another content than {MANIFEST} says: copy it again")
    table = read_tsv(folder / CAPTIONS, folder, verify="none", cache_dir=cache_dir)
    index = mapped(folder / INDEX)
    if not len(index) == manifest.first[-1] == len(table):
        raise ShardError(
            f"{folder}: {CAPTIONS} has {len(table)} images, {INDEX} {len(index)} and {MANIFEST} {manifest.first[-1]}: "
            "they are of different data; pack it again with `python -m src.prepare shards`"
        )
    shards = Shards(place, manifest, index, cache, most)
    wanted = np.ones(len(manifest.shards), bool)
    if chosen is not None:
        wanted = np.array([shard.name in chosen for shard in manifest.shards])
    problems = {} if verify == "none" else shards.problems(verify == "decode", np.flatnonzero(wanted).tolist())
    if problems:
        reasons = list(problems.values())
        if on_bad_shard == "error":
            others = f" ({len(problems) - 1} besides)" if len(problems) > 1 else ""
            raise ShardError(f"{reasons[0]}{others}; data.on_bad_shard=skip leaves its images out")
        images = [shard.images for shard in manifest.shards]
        log.warning(
            "%s: %d of %d shards left out, with %d of %d images: %s",
            *(place, len(problems), int(wanted.sum()), sum(images[number] for number in problems)),
            *(int(np.array(images)[wanted].sum()), "; ".join(reasons)),
        )
        wanted[list(problems)] = False
        if not wanted.any():
            raise ShardError(f"{place}: no shard is left. {reasons[0]}")
    images_wanted = np.repeat(wanted, np.diff(manifest.first))
    return (table if wanted.all() else table.only(np.flatnonzero(images_wanted))), shards


def _located(
    root: str, where: str | Sequence[str], cache: Path, on_bad_shard: str
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
    parents = {tar.rpartition("/")[0] for tar in tars}
    if len(parents) == 1:
        (place,) = parents
        names = {tar.rpartition("/")[2] for tar in tars}
        folder = None
        if not is_address(place):
            folder = Path(place) if (Path(place) / MANIFEST).is_file() else None
        else:
            with suppress(ShardError):  # there need be none
                folder = _fetched_manifest(place, cache)
        if folder is not None and names <= {shard.name for shard in Manifest.read(folder / MANIFEST).shards}:
            return place, folder, names
    return "", _indexed(tars, cache, on_bad_shard), None


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
    with locked(folder / "fetching.lock", address):
        (folder / MANIFEST).unlink(missing_ok=True)  # always the present one
        fetch(joined_place(address, MANIFEST), folder / MANIFEST)
        for name, sha256 in Manifest.read(folder / MANIFEST).sha256.items():
            file = folder / name
            if not file.exists() or sha256_of(file) != sha256:
                file.unlink(missing_ok=True)
                fetch(joined_place(address, name), file, sha256=sha256)
    return folder


# ---------------------------------------------------------------- tars


class Packed(NamedTuple):
    """What is in a tar: of each image its name, captions, tags, and where its bytes are."""

    names: list[str]
    captions: list[list[str]]
    tags: list[list[str]]
    places: list[tuple[int, int]]


def read_tar(file: Path, prefix: str = "") -> Packed:
    """Look through a tar in webdataset's form: files of one name up to the first dot are a sample. `.json` with
    `captions` (and `tags`) or `caption`, or `.txt`, says what the picture beside it shows; `image` in the JSON is its
    name, else `prefix` and the files' own. Samples without a picture or without a caption are left out.

    Raises:
        ShardError: no tar, or a damaged one.
    """
    samples: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                stem, _, kind = path.name.partition(".")
                kind = kind.lower().rpartition(".")[2]
                if not member.isfile() or not stem or not kind:
                    continue
                sample = samples.setdefault(str(path.parent / stem), {})
                if kind in (*PICTURES, FEATURES):
                    sample["at"] = (member.offset_data, member.size)
                elif kind == "json" or kind in TEXTS:
                    opened = tar.extractfile(member)
                    assert opened is not None
                    sample["json" if kind == "json" else "text"] = opened.read().decode()
            end = tar.offset
        if end > file.stat().st_size:
            raise ShardError(f"{file}: damaged, it ends too early: copy it again")
        found = Packed([], [], [], [])
        for key, sample in samples.items():
            about = json.loads(sample.get("json", "{}"))
            said = about.get("captions") or [about.get("caption") or sample.get("text") or ""]
            tags = itertools.chain(about.get("tags") or (), itertools.repeat(""))
            rows = [(" ".join(str(text).split()), tag) for text, tag in zip(said, tags, strict=False)]
            rows = [(text, tag) for text, tag in rows if text]
            if rows and "at" in sample:
                found.names.append(about.get("image") or prefix + key)
                found.captions.append([text for text, _ in rows])
                found.tags.append([tag for _, tag in rows])
                found.places.append(sample["at"])
        return found
    except (OSError, tarfile.TarError, UnicodeDecodeError, ValueError, AttributeError) as error:
        if isinstance(error, ShardError):
            raise
        raise ShardError(f"{file}: damaged, or no tar of pictures and captions ({error}): copy it again") from error


def _indexed(tars: Sequence[str], cache: Path, on_bad_shard: str) -> Path:
    """The folder of a manifest, captions and index of tars that have none; made once."""
    stamps = [[tar, *(_stamp(tar) if not is_address(tar) else ())] for tar in tars]
    key = hashlib.sha256(json.dumps([stamps, on_bad_shard]).encode()).hexdigest()[:16]

    def build(partial: Path) -> None:
        shards: list[Shard] = []
        lines: list[str] = []
        index: list[tuple[int, int]] = []
        for tar in tqdm(tars, desc="looking through shards", unit="shard", disable=None):
            file = Path(tar)
            try:
                if is_address(tar):
                    file = cache / f"{hashlib.sha256(tar.encode()).hexdigest()[:16]}.tar"
                    fetch(tar, file)
                packed = read_tar(file, f"{PurePosixPath(tar).stem}/")
            except ShardError as error:
                if on_bad_shard == "error":
                    raise ShardError(f"{error}; data.on_bad_shard=skip leaves its images out") from error
                log.warning("left out: %s", error)
                continue
            name = tar if is_address(tar) else os.path.abspath(tar)
            shards.append(Shard(name, len(packed.names), file.stat().st_size, None))
            lines += table_lines(packed.names, packed.captions, packed.tags)
            index += packed.places
        if not index:
            raise ShardError(f"{tars[0]}: no pictures with captions in the {len(tars)} shards")
        (partial / CAPTIONS).write_text("".join(lines), encoding="utf-8")
        np.save(partial / INDEX, np.array(index, np.int64))
        Manifest(shards).write(partial)

    return kept(cache / key, f"looking through {len(tars)} shards", build)


def _stamp(tar: str) -> tuple[int, int]:
    try:
        stat = os.stat(tar)
    except OSError as error:
        raise ShardError(f"{tar}: {error.strerror}: copy it again, or leave it out of the list") from error
    return stat.st_size, stat.st_mtime_ns


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
