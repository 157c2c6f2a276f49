"""How far pixels may be changed, and how far they were. B pictures (B, 3, H, W) in [0, 1]."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Norm = Literal["linf", "l2"]
LEVELS = 255
"""Steps from black to white of an 8-bit picture."""


def lengths(change: Tensor) -> Tensor:
    """The L2 norms of changes (B, …) as (B, 1, 1, 1)."""
    return change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


class Budget(NamedTuple):
    """All pictures within a distance of one, in [0, 1] a channel: L∞, of each value, or L2, of all together."""

    norm: Norm
    size: float

    def project(self, change: Tensor, images: Tensor) -> Tensor:
        """The nearest change within the budget, of which no pixel leaves [0, 1]. Clipping pixels only shortens it."""
        if self.norm == "linf":
            change = change.clamp(-self.size, self.size)
        else:
            change = change * (self.size / lengths(change).clamp(min=1e-12)).clamp(max=1)
        return (images + change).clamp(0, 1) - images

    def start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A random change within the budget: L∞ uniform; L2 in a uniform direction, of a length uniform up to it."""
        if self.norm == "linf":
            change = (2 * torch.rand(images.shape, generator=generator) - 1) * self.size
        else:
            change = torch.randn(images.shape, generator=generator)
            change *= self.size * torch.rand(len(images), 1, 1, 1, generator=generator) / lengths(change)
        return self.project(change.to(images), images)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The change of norm 1 along which a function of this gradient rises most."""
        if self.norm == "linf":
            return gradient.sign()
        return gradient / lengths(gradient).clamp(min=1e-12)

    def eight_bit(self, change: Tensor, images: Tensor) -> Tensor:
        """The change after which pixels are whole 255ths, as files keep them, and which is still within the budget:
        rounded; L∞ cut to whole 255ths, L2 with its smallest parts left out where rounding made it too long.

        Args:
            change: within the budget.
            images: whole 255ths.
        """
        before = (images * LEVELS).round()
        steps = ((images + change) * LEVELS).round().clamp(0, LEVELS) - before
        if self.norm == "linf":
            most = int(self.size * LEVELS + 1e-4)
            steps = steps.clamp(-most, most)
        elif bool((lengths(steps) > self.size * LEVELS).any()):
            order = change.flatten(1).abs().argsort(dim=1, descending=True, stable=True)
            squares = steps.flatten(1).square().gather(1, order).double().cumsum(1)
            kept = (squares <= (self.size * LEVELS) ** 2).to(steps.dtype)
            steps = steps * torch.zeros_like(kept).scatter(1, order, kept).view_as(steps)
        return steps / LEVELS


class Distortion(NamedTuple):
    """How far pictures were changed, each (B,)."""

    linf: Tensor
    """The largest change of a value, in 255ths."""
    l2: Tensor
    """Of values in [0, 1]."""
    ssim: Tensor
    """Structural similarity, at most 1."""


def distortion(images: Tensor, changed: Tensor) -> Distortion:
    """How far pictures (B, 3, H, W) in [0, 1] lie from those that they were made of."""
    change = ((changed * LEVELS).round() - (images * LEVELS).round()).flatten(1)
    return Distortion(change.abs().amax(1), change.norm(dim=1) / LEVELS, ssim(images, changed))


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Structural similarity (B,) of pictures in [0, 1], the mean over channels and places (Wang et al., 2004,
    https://doi.org/10.1109/TIP.2003.819861): windows of 11 × 11, Gaussian with σ = 1.5, inside the picture.

    Raises:
        ValueError: pictures smaller than a window.
    """
    if min(one.shape[-2:]) < 11:
        raise ValueError(f"pictures of {one.size(-1)} × {one.size(-2)} pixels: SSIM looks through windows of 11 × 11")
    place = torch.arange(-5.0, 6.0, device=one.device)
    bell = (-place.square() / (2 * 1.5**2)).exp()
    bell /= bell.sum()

    def blurred(x: Tensor) -> Tensor:
        x = x.flatten(0, 1).unsqueeze(1).float()
        return F.conv2d(F.conv2d(x, bell.view(1, 1, 1, -1)), bell.view(1, 1, -1, 1))

    mean, mean_other = blurred(one), blurred(other)
    variance = blurred(one * one) - mean.square()
    variance_other = blurred(other * other) - mean_other.square()
    together = blurred(one * other) - mean * mean_other
    c1, c2 = 0.01**2, 0.03**2
    map_ = ((2 * mean * mean_other + c1) * (2 * together + c2)) / (
        (mean.square() + mean_other.square() + c1) * (variance + variance_other + c2)
    )
    return map_.flatten(1).mean(1).view(one.shape[:2]).mean(1)
