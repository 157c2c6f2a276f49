"""The feature cache: what a backbone's frozen stages say of each image, computed once a data set."""

import hashlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from src.data.shards import ShardImages
from src.data.table import mapped
from src.data.transforms import AS_IT_IS, Preprocess, Variation
from src.encoders.base import Encoder
from src.files import locked

log = logging.getLogger(__name__)

FLUSH_EVERY = 1024
"""Images after which a build is on disk: at most so many are lost when it is interrupted."""

A = TypeVar("A")
B = TypeVar("B")


def state_digest(*modules: torch.nn.Module) -> str:
    """A digest of modules' weights' content."""
    digest = hashlib.sha256()
    for number, module in enumerate(modules):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{number} {name}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def images_digest(root: Path, images: Sequence[str]) -> str:
    """A digest of the images' names, sizes and times of change: their content without reading them."""
    digest = hashlib.sha256()
    for image in images:
        stat = (root / image).stat()
        digest.update(f"{image}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def features_key(
    encoder: Encoder, backbone_config: Mapping[str, Any], preprocess: Preprocess, precision: torch.dtype | None
) -> dict[str, Any]:
    """All that features depend on besides the images and how they are varied."""
    return {
        "backbone": {k: v for k, v in backbone_config.items() if k != "weights"},
        "stages": encoder.frozen_stages,
        **encoder.cache_key,
        "weights": state_digest(*encoder.frozen_modules),
        "preprocess": preprocess.to_dict(),
        "precision": str(precision),
    }


def cached_features(
    encoder: Encoder,
    backbone_config: Mapping[str, Any],
    root: Path,
    images: Sequence[str],
    preprocess: Preprocess,
    directory: Path,
    *,
    variations: Sequence[Variation] | None = None,
    shards: ShardImages | None = None,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Regions (N, R, D) float16 of all images, memory-mapped; computed where the cache does not have them.

    The key is the backbone's configuration, the number and the weights' content of its frozen stages, what the encoder
    takes of them, the preprocessing, the arithmetic's precision, the images (names, sizes, times of change) and how
    each is varied. A
    build that was interrupted goes on where it stopped; one that runs at the same time is waited for. A finished one is
    never written again.

    Args:
        encoder: at least one of its stages is frozen.
        backbone_config: what the backbone was built from.
        root: the folder that `images` are relative to.
        images: their paths, in the order of the rows.
        preprocess: how a picture becomes pixels.
        directory: where caches live; one folder each.
        variations: how each picture is varied; None: not at all.
        shards: what the images are read from, instead of files below `root`.
        device: where the backbone runs.
        precision: autocast to this type; None for float32.
        batch_size: images a forward pass; None: few on a CPU, whose caches hold the maps of few, else more.
        workers: threads that decode and, on a CPU, encode; None: as many as torch has. The rows do not depend on it.
        progress: show a bar.
    """
    digest = images_digest(root, images) if shards is None else shards.digest()
    key = {**features_key(encoder, backbone_config, preprocess, precision), "images": digest}
    variations = variations or [AS_IT_IS] * len(images)
    if any(variation != AS_IT_IS for variation in variations):
        key["variations"] = hashlib.sha256(json.dumps(variations).encode()).hexdigest()
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]

    def opened(i: int) -> Tensor:
        if shards is not None:
            return shards.open(i, preprocess, variations[i])
        return preprocess.open(root / images[i], variations[i])

    finished, partial = directory / name, directory / f"{name}.partial"
    directory.mkdir(parents=True, exist_ok=True)
    if not finished.exists():
        with locked(directory / f"{name}.lock", f"the features of {len(images)} images"):
            if not finished.exists():
                _build(
                    encoder,
                    opened,
                    len(images),
                    partial,
                    key,
                    device,
                    precision,
                    batch_size or default_batch(torch.device(device).type),
                    workers,
                    progress,
                )
                os.replace(partial, finished)
                log.info("feature cache: %d images in %s", len(images), finished)
    return mapped(finished / "regions.npy")


def in_order(pool: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A], ahead: int) -> Iterator[B]:
    """function(item) of each item in turn, computed by the pool's threads for up to `ahead` items in advance."""
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def encoded(
    encoder: Encoder,
    opened: Callable[[int], Tensor],
    images: range,
    device: torch.device | str,
    precision: torch.dtype | None,
    batch_size: int | None,
    workers: int | None,
) -> Generator[np.ndarray, None, None]:
    """The frozen stages' output (B, R, D) float16 of images, in order, batch by batch.

    On a CPU each thread decodes a batch and encodes it, all on one core: cores that share an operation wait for each
    other. Beside an accelerator the threads decode ahead, and this one encodes.

    Args:
        encoder: at least one of its stages is frozen.
        opened: an image's number → its pixels (3, H, W) uint8.
        images: which.
        device, precision, batch_size, workers: as in `cached_features`.

    Raises:
        ValueError: the output overflows half precision.
    """
    kind, training, cores = torch.device(device).type, encoder.training, torch.get_num_threads()
    batch_size = batch_size or default_batch(kind)
    encoder = encoder.to(device).eval()
    encoder.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def decode(start: int) -> Tensor:
        return torch.stack([opened(i) for i in range(start, min(start + batch_size, images.stop))])

    def encode(pixels: Tensor) -> np.ndarray:
        # Both contexts hold for the thread that enters them alone.
        with torch.inference_mode(), torch.autocast(kind, precision, enabled=precision is not None):
            pixels = pixels.to(device, memory_format=torch.channels_last)
            half = encoder.frozen_regions(pixels).to(torch.float16).cpu()
        if not torch.isfinite(half).all():
            raise ValueError("the frozen stages' output overflows half precision: set data.cache=false")
        return half.numpy()

    threads = max(1, cores if workers is None else workers)
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    starts = range(images.start, images.stop, batch_size)
    try:
        if kind == "cpu":
            yield from in_order(pool, lambda start: encode(decode(start)), starts, 2 * threads)
        else:
            yield from map(encode, in_order(pool, decode, starts, 2 * threads))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)  # threads to come take the number that was set last, by any thread
        encoder.backbone.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        encoder.train(training)


def default_batch(kind: str) -> int:
    """Images a forward pass on a kind of device: few on a CPU, whose caches hold the maps of few."""
    return 8 if kind == "cpu" else 32


def _build(
    encoder: Encoder,
    opened: Callable[[int], Tensor],
    count: int,
    partial: Path,
    key: Mapping[str, Any],
    device: torch.device | str,
    precision: torch.dtype | None,
    batch_size: int,
    workers: int | None,
    progress: bool,
) -> None:
    """Fill `partial`: regions.npy in the images' order, and how many of its rows are done in progress.txt."""
    partial.mkdir(exist_ok=True)
    (partial / "key.json").write_text(json.dumps(key, indent=2))
    counter, path = partial / "progress.txt", partial / "regions.npy"
    done = int(counter.read_text() or 0) if counter.exists() and path.exists() else 0
    done -= done % batch_size  # the same batches as without an interruption: rounding may depend on their size
    rows = np.load(path, mmap_mode="r+") if done else None
    batches = encoded(encoder, opened, range(done, count), device, precision, batch_size, workers)
    with closing(batches), tqdm(total=count, initial=done, desc="features", unit="img", disable=not progress) as bar:
        for regions in batches:
            if rows is None:
                size = count * regions[0].nbytes
                free = shutil.disk_usage(partial).free
                if size > free:
                    raise OSError(
                        f"{partial}: the feature cache needs {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: "
                        "set data.cache_dir to a larger disk, or data.cache=false to encode every epoch"
                    )
                rows = np.lib.format.open_memmap(path, "w+", np.float16, (count, *regions.shape[1:]))
            rows[done : done + len(regions)] = regions
            done += len(regions)
            if done // FLUSH_EVERY != (done - len(regions)) // FLUSH_EVERY or done == count:
                rows.flush()
                counter.write_text(str(done))
            bar.update(len(regions))
