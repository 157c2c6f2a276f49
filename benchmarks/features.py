"""How near the feature cache's build comes to what its cores allow: `python -m benchmarks.features`.

Pictures made on the spot are decoded alone, encoded alone, and both, on the same cores: d and e images a second apart
allow 1 / (1/d + 1/e) together. By turns with these: the build itself, and the plain loop (decode a batch, then encode
it with all cores). Prints medians, and writes JSON with --output. Wants a quiet machine.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from src.config import autocast_dtype, precision
from src.data.features import cached_features
from src.data.transforms import Preprocess
from src.encoders import Encoder, TimmBackbone

BATCH = 8
"""Images a forward pass, the build's own number on a CPU; the plain loop is no faster with more."""
SIZES = ((224, 224), (640, 480))
"""Width and height: the encoder's own input, and what cameras and data sets give."""


def make_pictures(folder: Path, count: int, size: tuple[int, int]) -> list[str]:
    """JPEGs about as heavy as photographs (25 KB at 224 × 224, 127 KB at 640 × 480): smooth noise, a little grain."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        pixels = np.asarray(coarse) + rng.normal(0, 8, (size[1], size[0], 1))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05d}.jpg", quality=90)
    return [f"{number:05d}.jpg" for number in range(count)]


def measure(
    size: tuple[int, int] = SIZES[0],
    images: int = 384,
    repeats: int = 5,
    threads: int | None = None,
    arithmetic: str = "auto",
) -> dict[str, Any]:
    """Images a second of each way, with a frozen EfficientNet-Lite0 on a CPU.

    Args:
        size: width and height of the JPEGs.
        images: how many; rounded down to whole batches, as many for each thread.
        repeats: of each way, in alternating order; the medians count.
        threads: cores to use; None: as many as PyTorch does.
        arithmetic: Lightning's name of the precision; auto as in training.

    Returns:
        images/s: medians by way; all: each reading. share: the build's part of what decoding and encoding allow
        together, the median over the repeats of each one's own. ratio: build / loop.
    """
    before = torch.get_num_threads()
    threads = threads or before
    torch.set_num_threads(threads)
    arithmetic = precision(arithmetic, "cpu")
    autocast, preprocess = autocast_dtype(arithmetic), Preprocess(224)
    config = {"name": "tf_efficientnet_lite0", "weights": "auto"}
    encoder = Encoder(TimmBackbone(**config), frozen=True).eval()
    starts = range(0, max(1, images // (BATCH * threads)) * threads * BATCH, BATCH)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = make_pictures(folder, len(starts) * BATCH, size)

        def decode(start: int) -> Tensor:
            return torch.stack([preprocess.open(folder / each) for each in pictures[start : start + BATCH]])

        def encode(pixels: Tensor) -> Tensor:
            with torch.inference_mode(), torch.autocast("cpu", autocast, enabled=autocast is not None):
                regions = encoder.frozen_regions(pixels.to(memory_format=torch.channels_last))
                return regions.to(torch.float16)

        def a_core_each(work: Callable[[Any], Any], items: Sequence[Any]) -> None:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                list(pool.map(work, items))
            torch.set_num_threads(threads)

        def loop() -> None:
            rows = np.empty((len(pictures), 49, 1280), np.float16)
            for start in starts:
                rows[start : start + BATCH] = encode(decode(start)).numpy()

        def build() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as cache:
                cached_features(
                    encoder,
                    config,
                    folder,
                    pictures,
                    preprocess,
                    Path(cache),
                    precision=autocast,
                    batch_size=BATCH,
                    workers=threads,
                    progress=False,
                )

        pixels = decode(0)
        ways: dict[str, Callable[[], None]] = {
            "decode": lambda: a_core_each(decode, starts),
            "encode": lambda: a_core_each(encode, [pixels] * len(starts)),
            "build": build,
            "loop": loop,
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        try:
            for number in range(-1, repeats):  # the first round warms up
                for way in list(ways) if number % 2 else reversed(list(ways)):
                    # As the build has it; the build itself sets it, and sets it back.
                    encoder.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                    begin = time.perf_counter()
                    ways[way]()
                    if number >= 0:
                        rates[way].append(len(pictures) / (time.perf_counter() - begin))
        finally:
            torch.set_num_threads(before)
    rates["allowed"] = [1 / (1 / d + 1 / e) for d, e in zip(rates["decode"], rates["encode"], strict=True)]
    median = {way: statistics.median(each) for way, each in rates.items()}
    shares = [b / a for b, a in zip(rates["build"], rates["allowed"], strict=True)]
    return {
        "settings": {"size": list(size), "images": len(pictures), "threads": threads, "precision": arithmetic},
        "images/s": median,
        "share": statistics.median(shares),
        "ratio": statistics.median(b / p for b, p in zip(rates["build"], rates["loop"], strict=True)),
        "all": rates,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features", description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, default=384, help="pictures of each size (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="of each way (%(default)s)")
    parser.add_argument(
        "--cores", type=int, default=2, help="that all may use, where the system can say so (%(default)s)"
    )
    parser.add_argument("--precision", default="auto", help="of the encoder: 32-true, bf16-mixed (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    options = parser.parse_args(arguments)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    results = []
    print("JPEGs       decode   encode  allowed    build   share     loop   build/loop   (images/s)")
    for size in SIZES:
        one = measure(size, options.images, options.repeats, options.cores, options.precision)
        rate = one["images/s"]
        results.append(one)
        print(
            f"{size[0]} × {size[1]} {rate['decode']:8.0f} {rate['encode']:8.1f} {rate['allowed']:8.1f} "
            f"{rate['build']:8.1f} {one['share']:6.0%} {rate['loop']:8.1f} {one['ratio']:8.2f}",
            flush=True,
        )
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
