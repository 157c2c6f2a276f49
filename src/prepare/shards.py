"""A TSV data set as webdataset tars: pictures, or what a frozen encoder says of them, with their captions inside."""

import argparse
import functools
import hashlib
import io
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from joblib import delayed
from PIL import Image
from tqdm import tqdm

from src.data.shards import (
    CAPTIONS,
    FEATURES,
    INDEX,
    MANIFEST,
    PICTURES,
    Manifest,
    Shard,
    read_tar,
    sha256_of,
    table_lines,
)
from src.data.table import Captions, in_processes
from src.data.tsv import read_tsv
from src.files import locked, write_atomically
from src.prepare.importer import many

PARTS = "parts"
"""The folder of what is known of each finished shard, until all are."""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `python -m src.prepare shards`."""
    text = "webdataset tars of a TSV's pictures, or of a frozen encoder's features, for data=shards"
    parser = subparsers.add_parser("shards", help=text, description=text + ". A call that was stopped goes on.")
    parser.add_argument("table", type=Path, metavar="TABLE.tsv", help="rows of img_path<TAB>caption[<TAB>tags]")
    parser.add_argument("output", type=Path, metavar="FOLDER", help="of the shards, such as data/shards/train")
    parser.add_argument("--root", type=Path, help="the folder that image paths are relative to (default: the table's)")
    parser.add_argument("--images", type=int, default=1000, metavar="N", help="images a shard (default: %(default)s)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    parser.add_argument("--verify", choices=("none", "exists", "decode"), default="exists", help="look at each picture")
    parser.add_argument("--skip", action="store_true", help="leave bad rows out, and count them")
    parser.add_argument("--overwrite", action="store_true", help="pack all anew, whatever lies there")
    parser.add_argument(
        "--features",
        nargs="+",
        metavar="OVERRIDE",
        help="pack what the frozen encoder of `python -m src.train OVERRIDE …` says of the pictures, such as "
        "encoder=resnet50 transform=crop",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    write_shards(
        options.table,
        options.output,
        options.root,
        images=options.images,
        workers=options.workers,
        verify=options.verify,
        on_bad_row="skip" if options.skip else "error",
        features=options.features,
        overwrite=options.overwrite,
    )


def write_shards(
    table: Path,
    output: Path,
    root: Path | None = None,
    *,
    images: int = 1000,
    workers: int | None = None,
    verify: str = "exists",
    on_bad_row: str = "error",
    features: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write the shards of a table's images into `output`, each whole or not at all, and their manifest at the end. What
    an earlier call of the same data has finished is kept; a tar that is missing or has another size is packed anew.
    Of calls at the same time one packs, and the others wait.

    Args:
        table: rows of `img_path<TAB>caption`.
        output: the folder; its name should tell the split.
        root: the folder that image paths are relative to; None: the table's.
        images: of a shard.
        workers: processes that pack, or of features, threads that decode and encode; None: one a core.
        verify, on_bad_row: as in `read_tsv`.
        features: overrides of the training whose frozen encoder's features are packed; None: the pictures' files.
        overwrite: pack all anew, and replace shards of other data.

    Raises:
        ValueError: a number out of its range, a bad row, shards of other data, an encoder that is not frozen.
        OSError: a file that cannot be read or written.
    """
    if images < 1 or (workers is not None and workers < 1):
        raise ValueError(f"--images {images} --workers {workers}: 1 or more")
    from src.data.features import images_digest  # and torch with it

    root = root or table.parent
    captions = read_tsv(table, root, verify=verify, on_bad_row=on_bad_row)
    source = None if features is None else FrozenFeatures(features, root, captions, workers)
    about = [list(captions.images), list(captions.captions), list(captions.tags), str(root.resolve()), images]
    about.append(images_digest(root, captions.images))  # pictures that were replaced since are other data
    key = hashlib.sha256(json.dumps([about, None if source is None else source.key]).encode()).hexdigest()
    output.mkdir(parents=True, exist_ok=True)
    with locked(output / ".lock", f"the shards in {output}"):
        _make_way(output, key, overwrite)
        shards = range(0, len(captions), images)
        if not (output / MANIFEST).exists():
            todo = [n for n in range(len(shards)) if not _is_packed(output, n)]
            bar = tqdm(
                total=len(captions),
                desc=str(output),
                unit="img",
                initial=(len(shards) - len(todo)) * images,
                disable=None,
            )

            def part(n: int) -> Captions:
                return captions.only(np.arange(shards[n], min(shards[n] + images, len(captions))))

            with bar:
                if source is None:
                    work = (delayed(pack)(output, n, shards[n], *_lists(part(n)), root) for n in todo)
                    for done in in_processes(work, len(todo), workers):
                        bar.update(done)
                else:
                    for n in todo:
                        rows = source.rows(range(shards[n], min(shards[n] + images, len(captions))))
                        bar.update(pack(output, n, shards[n], *_lists(part(n)), root, rows))
            _finish(output, len(shards), captions, key, None if source is None else source.key)
        manifest = Manifest.read(output / MANIFEST)
    size = sum(shard.bytes for shard in manifest.shards)
    print(
        f"{output}: {many(len(captions), 'image')}, {many(len(captions.texts), 'caption')} in "
        f"{many(len(manifest.shards), 'shard')} ({size / 1e9:.2f} GB)\n"
        f"Train on them with data=shards data.root={output.parent} data.train={output.name} data.val=…"
        + (f" {' '.join(features)}" if features else "")
    )
    return manifest


def _make_way(output: Path, key: str, overwrite: bool) -> None:
    """Keep what an earlier call with the same key has made, as far as it is whole; refuse what another has, or with
    `overwrite` remove all."""
    note, finished = output / PARTS / "key", output / MANIFEST
    if overwrite:
        shutil.rmtree(output / PARTS, ignore_errors=True)
        for old in (finished, *output.glob("*.tar")):
            old.unlink(missing_ok=True)
    manifest = Manifest.read(finished) if finished.exists() else None
    packed = note.read_text() if note.exists() else None
    known = packed if manifest is None else manifest.packed
    if known is None and (manifest is not None or any(output.glob("*.tar"))):
        known = "packed by others"
    if known not in (None, key):
        raise ValueError(f"{output} holds shards of other data or settings: give another folder, or --overwrite")
    if manifest is None:
        write_atomically(note, key)
    elif not _is_whole(output, manifest):
        _reopen(output, manifest)


def _is_whole(output: Path, manifest: Manifest) -> bool:
    """Whether all that a manifest names is there: tars by their size, the table and the index by their content."""
    return all(_has_size(output / shard.name, shard.bytes) for shard in manifest.shards) and all(
        (output / name).exists() and sha256_of(output / name) == sha256 for name, sha256 in manifest.sha256.items()
    )


def _has_size(file: Path, size: int) -> bool:
    return file.exists() and file.stat().st_size == size


def _is_packed(output: Path, number: int) -> bool:
    """Whether a shard is finished and there."""
    part = output / PARTS / f"{number:06d}.json"
    if not part.exists():
        return False
    shard = Shard(*json.loads(part.read_text())["shard"])
    return _has_size(output / shard.name, shard.bytes)


def _reopen(output: Path, manifest: Manifest) -> None:
    """Make finished shards, some of which are gone, ones whose packing was stopped."""
    assert manifest.packed is not None
    shutil.rmtree(output / PARTS, ignore_errors=True)
    write_atomically(output / PARTS / "key", manifest.packed)
    index = output / INDEX
    if index.exists() and sha256_of(index) == manifest.sha256[INDEX]:  # without it nothing is known of any shard
        places = np.split(np.load(index), manifest.first[1:-1])
        shape = None if manifest.features is None else manifest.features["shape"]
        for number, shard in enumerate(manifest.shards):
            known = {"shard": shard, "places": places[number].tolist(), "shape": shape}
            write_atomically(output / PARTS / f"{number:06d}.json", json.dumps(known))
    (output / MANIFEST).unlink()  # last: a call that is stopped before begins again


def _lists(captions: Captions) -> tuple[list[str], list[list[str]], list[list[str]]]:
    return list(captions.images), list(captions.captions), list(captions.tags)


def pack(
    output: Path,
    number: int,
    first: int,
    names: Sequence[str],
    captions: Sequence[Sequence[str]],
    tags: Sequence[Sequence[str]],
    root: Path,
    features: np.ndarray | None = None,
) -> int:
    """Write a shard, and what is known of it beside; returns how many images it has.

    Args:
        output: the folder of all shards.
        number: the shard's.
        first: the number of its first image.
        names, captions, tags: of its images.
        root: the folder that names are relative to.
        features: (images, R, D) float16, instead of the pictures' files.
    """
    from webdataset import TarWriter

    file, partial = output / f"{number:06d}.tar", output / f"{number:06d}.tar.partial"
    with TarWriter(str(partial), encoder=False, mtime=0, user="", group="") as tar:
        for i, name in enumerate(names):
            about = {"image": name, "captions": captions[i], **({"tags": tags[i]} if any(tags[i]) else {})}
            if features is None:
                data = (root / name).read_bytes()
                kind = _kind(name, data)
            else:
                buffer = io.BytesIO()
                np.save(buffer, features[i])
                data, kind = buffer.getvalue(), FEATURES
            tar.write(
                {"__key__": f"{first + i:09d}", kind: data, "json": json.dumps(about, ensure_ascii=False).encode()}
            )
    packed = read_tar(partial)
    places = packed.places
    if features is not None:  # behind the header of .npy
        places = [(begin + size - features[0].nbytes, features[0].nbytes) for begin, size in places]
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    shard = Shard(file.name, len(names), partial.stat().st_size, sha256_of(partial))
    known = {"shard": shard, "places": places, "shape": None if features is None else features.shape[1:]}
    os.replace(partial, file)
    write_atomically(output / PARTS / f"{number:06d}.json", json.dumps(known))
    return len(names)


def _kind(name: str, data: bytes) -> str:
    """What a picture is called in a shard: by its name, or where that tells nothing by its content."""
    kind = Path(name).suffix.lower().lstrip(".")
    if kind in PICTURES:
        return kind
    with Image.open(io.BytesIO(data)) as picture:
        found = (picture.format or "").lower()
    if found not in PICTURES:
        raise ValueError(
            f"{name}: {found or 'no'} picture: shards hold {', '.join(PICTURES)}; convert it to JPEG or PNG"
        )
    return found


def _finish(output: Path, shards: int, captions: Captions, key: str, of: dict[str, Any] | None) -> None:
    """Write captions.tsv, index.npy and last the manifest, from what is known of each shard."""
    parts = [json.loads((output / PARTS / f"{n:06d}.json").read_text()) for n in range(shards)]
    with (output / f"{CAPTIONS}.partial").open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(table_lines(captions.images, captions.captions, captions.tags))
    os.replace(output / f"{CAPTIONS}.partial", output / CAPTIONS)
    with (output / f"{INDEX}.partial").open("wb") as index:
        np.save(index, np.concatenate([np.array(part["places"], np.int64) for part in parts]))
    os.replace(output / f"{INDEX}.partial", output / INDEX)
    features = None if of is None else {"of": of, "shape": parts[0]["shape"], "dtype": "float16"}
    sums = {name: sha256_of(output / name) for name in (CAPTIONS, INDEX)}
    Manifest([Shard(*part["shard"]) for part in parts], sums, features, key).write(output)
    shutil.rmtree(output / PARTS)


class FrozenFeatures:
    """What the frozen encoder of a training says of a table's images.

    Args:
        overrides: of the training.
        root: the folder that images are relative to.
        captions: the table.
        workers: threads; None: as many as torch has.

    Raises:
        ValueError: no stage of the encoder is frozen, or it reads no pixels.
    """

    def __init__(self, overrides: Sequence[str], root: Path, captions: Captions, workers: int | None) -> None:
        from hydra import compose, initialize_config_dir

        from src.config import CONF, autocast_dtype, device, plain, precision
        from src.data.features import encoded, features_key
        from src.model import instantiate

        with initialize_config_dir(CONF, version_base="1.3"):
            config = plain(compose("train", overrides=list(overrides)))
        encoder, preprocess = instantiate(config["encoder"]), instantiate(config["transform"])
        if not getattr(encoder, "frozen_stages", 0):
            raise ValueError(
                "--features: no stage of this encoder is frozen: choose a pretrained one, or pack pictures"
            )
        if preprocess.augment is not None:
            raise ValueError("--features: pictures are packed as they are: leave transform=augmented out")
        here = device()
        arithmetic = autocast_dtype(precision(config["trainer"]["precision"], here))
        self.key = features_key(encoder, config["encoder"]["backbone"], preprocess, arithmetic)
        self._encoded = functools.partial(
            encoded,
            encoder,
            lambda i: preprocess.open(root / captions.images[i]),
            device=here,
            precision=arithmetic,
            batch_size=None,
            workers=workers,
        )

    def rows(self, images: range) -> np.ndarray:
        """(images, R, D) float16."""
        return np.concatenate(list(self._encoded(images=images)))
