"""PIL picture → the pixels that an encoder takes, and how training pictures are varied on the way."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from src.corruptions import GREY, SEVERITIES, UNATTENDED, corrupt
from src.data.images import load_image

if TYPE_CHECKING:  # an exported captioner makes its pixels without torch
    from torch import Tensor

FITS = ("squash", "crop", "letterbox")
INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
FLIP_CAPTIONS = ("swap", "leave")

Rectangle = tuple[float, float, float, float]
"""Left, top, width, height as fractions of a picture, in [0, 1]."""


class Damage(NamedTuple):
    """A corruption (src/corruptions.py) of one picture."""

    kind: str
    severity: int
    seed: int


class Variation(NamedTuple):
    """How one training picture is varied, once; without arguments, not at all."""

    flip: bool = False
    """Left and right are exchanged, last of all."""
    box: Rectangle = (0.0, 0.0, 1.0, 1.0)
    """What is kept of the picture, before it is made square."""
    angle: float = 0.0
    """Degrees counter-clockwise; the corners become grey."""
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    """Turns of the colour circle."""
    erased: Rectangle | None = None
    """What becomes grey of the square."""
    damage: Damage | None = None
    """What befalls the picture once it is scaled and recoloured."""


AS_IT_IS = Variation()


@dataclass(frozen=True)
class Augmentation:
    """What varies training pictures, and no others: each is off by default.

    Args:
        flip: probability of mirroring.
        flip_captions: `swap`: a mirrored picture's captions have left and right exchanged (`swap_sides`). `leave`:
            captions stay, and pictures whose captions name a side are never mirrored.
        crop: least share of the picture's area that a random rectangle keeps (random resized crop, Szegedy et al.,
            2014, https://arxiv.org/abs/1409.4842); 1 keeps all. It changes the proportions by 4/3 at most.
        rotation: degrees at most, either way.
        brightness, contrast, saturation: each is multiplied by 1 ± this at most.
        hue: turns of the colour circle at most, either way; 0.5 reaches every hue.
        erasing: probability that a random rectangle becomes grey (Zhong et al., 2017,
            https://arxiv.org/abs/1708.04896).
        erasing_area: largest share of the area that is erased, the least being 0.02.
        corruption: probability that a picture is corrupted.
        corruption_kinds: by which of `src.corruptions.UNATTENDED`; None: any of them.
        corruption_severity: 1 to this, at most 5.

    Raises:
        ValueError: an argument outside its range.
    """

    flip: float = 0.0
    flip_captions: str = "swap"
    crop: float = 1.0
    rotation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    erasing: float = 0.0
    erasing_area: float = 0.2
    corruption: float = 0.0
    corruption_kinds: Sequence[str] | None = None
    corruption_severity: int = 3

    def __post_init__(self) -> None:
        if self.flip_captions not in FLIP_CAPTIONS:
            choices = ", ".join(FLIP_CAPTIONS)
            raise ValueError(f"transform.augment.flip_captions={self.flip_captions}: choose {choices}")
        ranges: dict[str, tuple[float, float]] = {"crop": (0.01, 1), "rotation": (0, 180), "hue": (0, 0.5)}
        ranges |= {"erasing_area": (0.02, 1), "corruption_severity": (1, len(SEVERITIES))}
        for name in (field.name for field in fields(self) if field.name not in ("flip_captions", "corruption_kinds")):
            low, high = ranges.get(name, (0, 1))
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"transform.augment.{name}={value}: give a number from {low} to {high}")
        if self.corruption_kinds is not None:
            object.__setattr__(self, "corruption_kinds", tuple(self.corruption_kinds))  # a config's list has no hash
            wrong = [kind for kind in self.corruption_kinds if kind not in UNATTENDED]
            if wrong or not self.corruption_kinds:
                named = ", ".join(map(str, wrong)) or "[]"
                raise ValueError(
                    f"transform.augment.corruption_kinds: {named}: null, or choose {', '.join(UNATTENDED)}"
                )

    def draw(self, seed: int | Sequence[int]) -> Variation:
        """A variation that depends on the seed alone, not on any global random state."""
        rng = np.random.default_rng(seed)

        def around(middle: float, most: float) -> float:
            return middle + rng.uniform(-most, most)

        return Variation(
            flip=bool(rng.random() < self.flip),
            box=_rectangle(rng, self.crop, 1, 4 / 3),
            angle=around(0, self.rotation),
            brightness=around(1, self.brightness),
            contrast=around(1, self.contrast),
            saturation=around(1, self.saturation),
            hue=around(0, self.hue),
            erased=_rectangle(rng, 0.02, self.erasing_area, 1 / 0.3) if rng.random() < self.erasing else None,
            damage=self._damage(rng),  # drawn last: what else a seed draws is as it was before there were corruptions
        )

    def _damage(self, rng: np.random.Generator) -> Damage | None:
        if not rng.random() < self.corruption:
            return None
        kinds = self.corruption_kinds or UNATTENDED
        severity = int(rng.integers(1, self.corruption_severity + 1))
        return Damage(kinds[int(rng.integers(len(kinds)))], severity, int(rng.integers(2**63)))


def _rectangle(rng: np.random.Generator, least: float, most: float, ratio: float) -> Rectangle:
    """A rectangle anywhere in the unit square: its area uniform, the logarithm of width / height uniform in ± that of
    `ratio` as far as both sides fit, so that nothing is drawn twice."""
    area = rng.uniform(least, most)
    bound = min(math.log(ratio), math.log(1 / area))
    stretch = math.exp(rng.uniform(-bound, bound) / 2)
    width, height = min(1.0, math.sqrt(area) * stretch), min(1.0, math.sqrt(area) / stretch)
    return rng.random() * (1 - width), rng.random() * (1 - height), width, height


@dataclass(frozen=True)
class Preprocess:
    """Pictures of any shape → uint8 (3, size, size), 0 … 255; the encoder divides by 255 and normalises.

    Deterministic: `augment` only says what training does besides (`CaptionedImages` draws from it).

    Args:
        size: pixels a side.
        fit: `squash`: the whole picture, both sides to size, its proportions lost. `crop`: the shorter side
            to size, then the centre square. `letterbox`: the whole picture in its proportions, centred
            between grey bars.
        interpolation: `bicubic` or `bilinear`, both antialiased.
        draft: `open` may decode JPEGs reduced, to no less than this many times size (or resize) on the shorter
            side; 0 decodes all of them in full.
        resize: with fit=crop, the shorter side to this many pixels, not size, before the centre square of size is
            cut: ImageNet's 256 and 224.
        augment: of training pictures.

    Raises:
        ValueError: an argument that is none of these.
    """

    size: int = 224
    fit: str = "squash"
    interpolation: str = "bicubic"
    draft: int = 2
    resize: int | None = None
    augment: Augmentation | None = None

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ValueError(f"transform.fit={self.fit}: choose {', '.join(FITS)}")
        if self.interpolation not in INTERPOLATIONS:
            choices = ", ".join(INTERPOLATIONS)
            raise ValueError(f"transform.interpolation={self.interpolation}: choose {choices}")
        if self.size < 1 or self.draft < 0:
            raise ValueError(f"transform.size={self.size}, draft={self.draft}: at least 1, and at least 0")
        if self.resize is not None and (self.fit != "crop" or self.resize < self.size):
            raise ValueError(
                f"transform.resize={self.resize}: null, or with fit=crop at least size ({self.size}); fit is {self.fit}"
            )
        if self.augment is not None and not isinstance(self.augment, Augmentation):
            raise ValueError(f"transform.augment={self.augment}: null, or begin with transform=augmented")

    def seen(self, width: float, height: float) -> tuple[float, float]:
        """Width and height of what the pixels show, around the middle of a picture of width × height, in its units;
        more than the picture's own where there are grey bars."""
        if self.fit == "squash":
            return width, height
        side = max(width, height) if self.fit == "letterbox" else min(width, height)
        side *= self.size / (self.resize or self.size)
        return side, side

    def __call__(self, image: Image.Image, variation: Variation = AS_IT_IS) -> "Tensor":
        """RGB picture → uint8 (3, size, size)."""
        import torch

        return torch.from_numpy(self.pixels(image, variation))

    def pixels(self, image: Image.Image, variation: Variation = AS_IT_IS) -> np.ndarray:
        """The same as an array."""
        resample, square = INTERPOLATIONS[self.interpolation], (self.size, self.size)
        x, y, width, height = np.multiply(variation.box, 2 * image.size).tolist()
        across, down = self.seen(width, height)
        if self.fit == "letterbox":
            inner = (max(1, round(self.size * width / across)), max(1, round(self.size * height / down)))
        else:
            x, y, width, height = x + (width - across) / 2, y + (height - down) / 2, across, down
            inner = square
        # What is kept is cut and scaled in one step: a panorama is never enlarged as a whole.
        box = (x, y, min(image.width, x + width), min(image.height, y + height))
        image = _recoloured(image.resize(inner, resample, box), variation)
        if variation.damage:
            kind, severity, seed = variation.damage
            image = Image.fromarray(corrupt(np.asarray(image), kind, severity, np.random.default_rng(seed)))
        if inner != square:
            content, image = image, Image.new("RGB", square, GREY)
            image.paste(content, ((self.size - inner[0]) // 2, (self.size - inner[1]) // 2))
        if variation.angle:
            image = image.rotate(variation.angle, Image.Resampling.BILINEAR, fillcolor=GREY)
        pixels = np.array(image)
        if variation.erased:
            left, top, width, height = np.multiply(variation.erased, self.size).tolist()
            pixels[round(top) : round(top + height), round(left) : round(left + width)] = GREY
        if variation.flip:
            pixels = pixels[:, ::-1]
        return pixels.transpose(2, 0, 1).copy()

    def open(self, path: str | os.PathLike[str] | bytes, variation: Variation = AS_IT_IS) -> "Tensor":
        """A picture file, or its bytes, → uint8 (3, size, size).

        Raises:
            ImageError: the file cannot be decoded; the message names it.
        """
        return self(self.decode(path), variation)

    def decode(self, path: str | os.PathLike[str] | bytes) -> Image.Image:
        """A picture file, or its bytes, → RGB, JPEGs reduced as `draft` allows.

        Raises:
            ImageError: the file cannot be decoded; the message names it.
        """
        return load_image(path, draft=self.draft * (self.resize or self.size) or None)

    def to_dict(self) -> dict[str, Any]:
        """All that the pixels of evaluation, and so cached features, depend on: the arguments that are set, without
        `augment`."""
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "augment"}
        return {name: value for name, value in given.items() if value is not None}


def _recoloured(image: Image.Image, variation: Variation) -> Image.Image:
    if variation == AS_IT_IS:
        return image
    from torchvision.transforms.v2 import functional

    for factor, adjust in (
        (variation.brightness, functional.adjust_brightness),
        (variation.contrast, functional.adjust_contrast),
        (variation.saturation, functional.adjust_saturation),
    ):
        if factor != 1:
            image = adjust(image, factor)
    return functional.adjust_hue(image, variation.hue) if variation.hue else image
