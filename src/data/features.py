"""The feature cache: what a backbone's frozen stages say of each image, computed once a data set."""

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from src.data.transforms import Preprocess
from src.encoders.base import Encoder
from src.files import locked

log = logging.getLogger(__name__)

FLUSH_EVERY = 1024
"""Images after which a build is on disk: at most so many are lost when it is interrupted."""


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


class Pictures(Dataset[Tensor]):
    """Images as the encoder gets them: uint8 (3, size, size)."""

    def __init__(self, root: Path, images: Sequence[str], preprocess: Preprocess) -> None:
        self.root, self.images, self.preprocess = root, images, preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.preprocess.open(self.root / self.images[index])


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)  # a decoding process that spins beside the encoder's threads slows both many times over


def cached_features(
    encoder: Encoder,
    backbone_config: Mapping[str, Any],
    root: Path,
    images: Sequence[str],
    preprocess: Preprocess,
    directory: Path,
    *,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    batch_size: int = 32,
    workers: int = 2,
    progress: bool = True,
) -> np.ndarray:
    """Regions (N, R, D) float16 of all images, memory-mapped; computed where the cache does not have them.

    The key is the backbone's configuration, the number and the weights' content of its frozen stages, the
    preprocessing, the arithmetic's precision and the images (names, sizes, times of change). A build that was
    interrupted goes on where it stopped; one that runs at the same time is waited for. A finished one is never written
    again.

    Args:
        encoder: at least one of its stages is frozen.
        backbone_config: what the backbone was built from.
        root: the folder that `images` are relative to.
        images: their paths, in the order of the rows.
        preprocess: how a picture becomes pixels.
        directory: where caches live; one folder each.
        device: where the backbone runs.
        precision: autocast to this type; None for float32.
        batch_size: images a forward pass.
        workers: decoding processes.
        progress: show a bar.
    """
    key = {
        "backbone": {k: v for k, v in backbone_config.items() if k != "weights"},
        "stages": encoder.frozen_stages,
        "weights": state_digest(*encoder.frozen_modules),
        "preprocess": preprocess.to_dict(),
        "precision": str(precision),
        "images": images_digest(root, images),
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    finished, partial = directory / name, directory / f"{name}.partial"
    directory.mkdir(parents=True, exist_ok=True)
    if not finished.exists():
        with locked(directory / f"{name}.lock", f"the features of {len(images)} images"):
            if not finished.exists():
                _build(
                    encoder, root, images, preprocess, partial, key, device, precision, batch_size, workers, progress
                )
                os.replace(partial, finished)
                log.info("feature cache: %d images in %s", len(images), finished)
    return np.load(finished / "regions.npy", mmap_mode="r")


def _build(
    encoder: Encoder,
    root: Path,
    images: Sequence[str],
    preprocess: Preprocess,
    partial: Path,
    key: Mapping[str, Any],
    device: torch.device | str,
    precision: torch.dtype | None,
    batch_size: int,
    workers: int,
    progress: bool,
) -> None:
    """Fill `partial`: regions.npy in the images' order, and how many of its rows are done in progress.txt."""
    partial.mkdir(exist_ok=True)
    (partial / "key.json").write_text(json.dumps(key, indent=2))
    counter, path = partial / "progress.txt", partial / "regions.npy"
    done = int(counter.read_text() or 0) if counter.exists() and path.exists() else 0
    rows = np.load(path, mmap_mode="r+") if done else None
    pictures = Pictures(root, images[done:], preprocess)
    workers = min(workers, len(pictures) // batch_size)  # a process is not worth starting for less than a batch
    loader = DataLoader(
        pictures,
        batch_size,
        num_workers=workers,
        worker_init_fn=_one_thread,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    training = encoder.training
    encoder = encoder.to(device).eval()
    encoder.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    bar = tqdm(total=len(images), initial=done, desc="features", unit="img", disable=not progress)
    kind = torch.device(device).type
    with bar, torch.inference_mode(), torch.autocast(kind, precision, enabled=precision is not None):
        for batch in loader:
            pixels = batch.to(device, memory_format=torch.channels_last)
            half = encoder.frozen_regions(pixels).to(torch.float16).cpu()
            if not torch.isfinite(half).all():
                raise ValueError("the frozen stages' output overflows half precision: set data.cache=false")
            regions = half.numpy()
            if rows is None:
                size = len(images) * regions[0].nbytes
                free = shutil.disk_usage(partial).free
                if size > free:
                    raise OSError(
                        f"{partial}: the feature cache needs {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: set "
                        "data.cache_dir to a larger disk, or data.cache=false to encode every epoch"
                    )
                rows = np.lib.format.open_memmap(path, "w+", np.float16, (len(images), *regions.shape[1:]))
            rows[done : done + len(regions)] = regions
            done += len(regions)
            if done // FLUSH_EVERY != (done - len(regions)) // FLUSH_EVERY or done == len(images):
                rows.flush()
                counter.write_text(str(done))
            bar.update(len(regions))
    encoder.backbone.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    encoder.train(training)
