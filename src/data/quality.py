"""How well a picture can be seen, from its pixels alone: a no-reference estimate in [0, 1]."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from src.data.images import load_image

SIDE = 512
"""Larger pictures are looked at with their longer side at so many pixels: sharpness is then that of what is shown, not
of single pixels of a sensor."""
SHARP = 100.0
"""The variance of the Laplacian (of grey from 0 to 255) at which sharpness is 1/2."""
CONTRASTY = 0.2
"""The standard deviation of luminance, in [0, 1], from which contrast is full."""
ENOUGH = 224
"""Pixels of the shorter side from which resolution is full: what most encoders take."""
CLIPPED = 2 / 255
"""Luminance this near to black or white has lost its detail."""


class Quality(NamedTuple):
    """Parts of the estimate, each in [0, 1]."""

    sharpness: float
    """v / (v + SHARP), where v is the variance of the Laplacian: the focus measure of Pech-Pacheco et al., 2000
    (Diatom autofocusing in brightfield microscopy, ICPR, https://doi.org/10.1109/ICPR.2000.903548)."""
    exposure: float
    """The share of pixels that are neither black nor white, times 1 − (2m − 1)⁴ for a mean luminance m in [0, 1]."""
    contrast: float
    """Standard deviation of luminance over CONTRASTY, 1 at most (root mean square contrast: Peli, 1990, Contrast in
    complex images, https://doi.org/10.1364/JOSAA.7.002032)."""
    resolution: float
    """The picture's shorter side over ENOUGH, 1 at most."""

    @property
    def score(self) -> float:
        """The parts' geometric mean: one that is 0 makes it 0."""
        return float(np.prod(self) ** (1 / len(self)))


def quality(picture: Image.Image) -> Quality:
    """The estimate of a picture as it was taken, in full size.

    It knows nothing of what the picture shows: a drawing on white counts as overexposed, fog as lacking contrast.

    Raises:
        ImageError: the picture is damaged.
    """
    picture = load_image(picture)
    shown = picture.convert("L")
    if max(shown.size) > SIDE:
        shown.thumbnail((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=None)
    grey = np.asarray(shown, dtype=np.float64) / 255
    variance = float((255 * _laplacian(grey)).var())
    mean = float(grey.mean())
    clipped = float(((grey <= CLIPPED) | (grey >= 1 - CLIPPED)).mean())
    return Quality(
        variance / (variance + SHARP),
        (1 - clipped) * (1 - (2 * mean - 1) ** 4),
        min(1.0, float(grey.std()) / CONTRASTY),
        min(1.0, min(picture.size) / ENOUGH),
    )


def _laplacian(grey: np.ndarray) -> np.ndarray:
    """(H, W) → the sum of each pixel's four neighbours less four times itself; at the border it is its own
    neighbour."""
    padded = np.pad(grey, 1, mode="edge")
    return padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * grey
