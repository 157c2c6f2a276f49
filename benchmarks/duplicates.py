"""How many near-duplicates are found, and how many other pictures taken for some: `python -m benchmarks.duplicates`."""

import argparse
import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageEnhance, ImageOps
from tqdm import tqdm

from src.bundle import SHIPPED
from src.captioner import Captioner
from src.duplicates import SIMILARITY, Look, look, pairs
from src.predictions import read_references

PICTURES, CHANGED = 1000, 200


def _compressed(image: Image.Image, quality: int = 30) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _cut(image: Image.Image, left: float, top: float, share: float) -> Image.Image:
    width, height = image.size
    box = (left * width, top * height, (left + share) * width, (top + share) * height)
    return image.crop(tuple(map(round, box)))


def _banner(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.paste("white", (0, round(0.85 * image.height), image.width, image.height))
    return image


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "JPEG of quality 30": _compressed,
    "the middle 90 % of each side": lambda image: _cut(image, 0.05, 0.05, 0.9),
    "the middle 80 %": lambda image: _cut(image, 0.1, 0.1, 0.8),
    "85 %, from a corner": lambda image: _cut(image, 0, 0, 0.85),
    "mirrored": ImageOps.mirror,
    "brighter by 30 %": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "turned by 3°": lambda image: image.rotate(3),
    "a banner over the lowest 15 %": _banner,
}


def looks_of(captioner: Captioner, images: Sequence[Image.Image]) -> list[Look]:
    """What is kept of pictures in memory."""
    found: list[Look] = []
    for start in tqdm(range(0, len(images), 16), unit="batch", disable=None):
        batch = images[start : start + 16]
        found += look(captioner, batch, [image.width * image.height for image in batch])
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the shares; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.duplicates", description=__doc__)
    parser.add_argument("table", type=Path, help="a TSV img_path<TAB>caption, whose first 1,000 pictures are taken")
    parser.add_argument("--model", default=str(SHIPPED), help="(%(default)s)")
    options = parser.parse_args(arguments)
    names = list(read_references(options.table).captions)[:PICTURES]
    captioner = Captioner.load(options.model)
    images = [captioner.open(options.table.parent / name) for name in names]
    assert all(isinstance(image, Image.Image) for image in images)
    looks = looks_of(captioner, images)  # type: ignore[arg-type]
    alike = {(min(p[:2]), max(p[:2])): p.similarity for p in pairs(looks, SIMILARITY)}
    print(f"of {len(images):,} pictures, {len(images) * (len(images) - 1) // 2:,} pairs, nearly the same:", len(alike))
    for (first, second), similarity in alike.items():
        print(f"  {names[first]} {names[second]} {similarity:.3f}")
    chosen = random.Random(0).sample(range(len(images)), min(CHANGED, len(images)))
    for name, change in CHANGES.items():
        changed = looks_of(captioner, [change(images[number]) for number in chosen])  # type: ignore[arg-type]
        both = [each for number, other in zip(chosen, changed, strict=True) for each in (looks[number], other)]
        found = {frozenset(pair[:2]) for pair in pairs(both, SIMILARITY)}
        share = sum(frozenset((2 * n, 2 * n + 1)) in found for n in range(len(chosen))) / len(chosen)
        print(f"| {name} | {100 * share:.0f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
