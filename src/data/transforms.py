"""PIL picture → the pixels that an encoder takes."""

import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from src.data.images import load_image

GREY = (124, 116, 104)
"""ImageNet's mean colour: nothing, after the normalisation inside the encoders."""

FITS = ("squash", "crop", "letterbox")
INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Preprocess:
    """Pictures of any shape → uint8 (3, size, size), 0 … 255; the encoder divides by 255 and normalises.

    Args:
        size: pixels a side.
        fit: `squash`: the whole picture, both sides to size, its proportions lost. `crop`: the shorter side
            to size, then the centre square. `letterbox`: the whole picture in its proportions, centred
            between grey bars.
        interpolation: `bicubic` or `bilinear`, both antialiased.
        draft: `open` may decode JPEGs reduced, to no less than this many times size on the shorter side; 0
            decodes all of them in full.

    Raises:
        ValueError: an argument that is none of these.
    """

    size: int = 224
    fit: str = "squash"
    interpolation: str = "bicubic"
    draft: int = 2

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ValueError(f"transform.fit={self.fit}: choose {', '.join(FITS)}")
        if self.interpolation not in INTERPOLATIONS:
            choices = ", ".join(INTERPOLATIONS)
            raise ValueError(f"transform.interpolation={self.interpolation}: choose {choices}")
        if self.size < 1 or self.draft < 0:
            raise ValueError(f"transform.size={self.size}, draft={self.draft}: at least 1, and at least 0")

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB picture → uint8 (3, size, size)."""
        resample, square = INTERPOLATIONS[self.interpolation], (self.size, self.size)
        width, height = image.size
        if self.fit == "crop":
            # The square is cut and scaled in one step: a panorama is never enlarged as a whole.
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            image = image.resize(square, resample, box=(left, top, left + side, top + side))
        elif self.fit == "letterbox":
            scale = self.size / max(width, height)
            inner = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), resample)
            image = Image.new("RGB", square, GREY)
            image.paste(inner, ((self.size - inner.width) // 2, (self.size - inner.height) // 2))
        else:
            image = image.resize(square, resample)
        return torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())

    def open(self, path: str | os.PathLike[str]) -> Tensor:
        """A picture file → uint8 (3, size, size).

        Raises:
            ImageError: the file cannot be decoded; the message names it.
        """
        return self(self.decode(path))

    def decode(self, path: str | os.PathLike[str]) -> Image.Image:
        """A picture file → RGB, JPEGs reduced as `draft` allows.

        Raises:
            ImageError: the file cannot be decoded; the message names it.
        """
        return load_image(path, draft=self.draft * self.size or None)

    def to_dict(self) -> dict[str, Any]:
        """All that the pixels depend on: the arguments, for a config and for a cache's key."""
        return asdict(self)
