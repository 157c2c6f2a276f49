"""What every encoder is: a backbone whose output can be cached, and a trainable neck."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from src.ranges import at_least, share


class Features(NamedTuple):
    """An image as a decoder sees it. B images, R regions, D wide; a fixed-length vector is R = 1."""

    grid: Tensor
    """(B, R, D): the regions, row by row."""
    pooled: Tensor
    """(B, D): the mean of the real regions."""
    boxes: Tensor
    """(B, R, 4): x1, y1, x2, y2 of each region as fractions of the picture, in [0, 1]."""
    mask: Tensor
    """(B, R): True where a region is real."""


def grid_boxes(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Boxes (height·width, 4) of the cells of a regular grid, row by row, in [0, 1]."""
    y, x = torch.meshgrid(
        torch.arange(height, device=device) / height, torch.arange(width, device=device) / width, indexing="ij"
    )
    return torch.stack([x, y, x + 1 / width, y + 1 / height], dim=-1).flatten(0, 1)


class Backbone(nn.Module):
    """Pixels (B, 3, H, W) in [0, 1] → a map (B, D, h, w). Normalisation happens inside, so that training, attack,
    export and service share one pixel space."""

    width: int
    """D, the channels of the map."""
    vector: bool = False
    """Whether the map is one fixed-length vector, 1 × 1, rather than regions to attend over."""
    mean: Tensor
    std: Tensor
    weights_used: str = "random"
    """Where the weights came from, in words: it goes into logs, bundles and scores."""

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def normalise(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.std


class BoxPosition(nn.Module):
    """Where a region lies, as a vector to add to it: Fourier features of its box (Tancik et al., 2020,
    https://arxiv.org/abs/2006.10739), projected. Reads boxes, not grid indices, so that any grid size, several grids or
    detected regions share it. Without it soft attention cannot tell left from right."""

    frequencies: Tensor

    def __init__(self, width: int, octaves: int = 4) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(octaves), persistent=False)
        self.project = nn.Linear(4 * octaves * 2, width)

    def forward(self, boxes: Tensor) -> Tensor:
        angles = (boxes.unsqueeze(-1) * self.frequencies).flatten(-2)
        return self.project(torch.cat([angles.sin(), angles.cos()], dim=-1))


class Encoder(nn.Module):
    """A backbone and its neck: projection of every region to `width`, position, layer norm, dropout.

    Args:
        backbone: the cacheable part.
        width: D of the features given to the decoder; None keeps the backbone's own.
        position: add each region's position (grids only; a single vector has none).
        frozen: the backbone learns nothing and stays in eval mode, so that its output can be cached. Gradients still
            reach the pixels.
        dropout: on the backbone's output, whole regions' channels, while training.
    """

    def __init__(
        self,
        backbone: Backbone,
        width: int | None = 512,
        position: bool = True,
        frozen: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        at_least(1, "encoder", width=width)
        share("encoder", dropout=dropout)
        self.backbone = backbone
        self.frozen = frozen
        self.width = width or backbone.width
        self.project = nn.Linear(backbone.width, self.width) if width else nn.Identity()
        self.position = BoxPosition(self.width) if position and not self.vector else None
        self.norm = nn.LayerNorm(self.width)
        self.dropout = nn.Dropout(dropout)
        if frozen:
            backbone.requires_grad_(False)
            backbone.eval()

    @property
    def vector(self) -> bool:
        """True where the backbone gives one fixed-length vector and no regions to attend over."""
        return self.backbone.vector

    def train(self, mode: bool = True) -> "Encoder":
        super().train(mode)
        if self.frozen:
            self.backbone.eval()  # frozen batch norm must neither use nor update batch statistics
        return self

    def regions(self, pixels: Tensor) -> Tensor:
        """What the feature cache keeps: pixels (B, 3, H, W), uint8 or floats in [0, 1], → (B, R, backbone width)."""
        if pixels.dtype == torch.uint8:
            pixels = pixels.float() / 255
        return self.backbone(pixels).flatten(2).transpose(1, 2)

    def forward(self, images: Tensor) -> Features:
        """Pixels (B, 3, H, W), uint8 or floats in [0, 1], or cached regions (B, R, backbone width), → Features."""
        regions = images if images.dim() == 3 else self.regions(images)
        batch, count, _ = regions.shape
        side = math.isqrt(count)
        if side * side != count:
            raise ValueError(f"{count} regions form no square grid: pictures are made square before the encoder")
        boxes = grid_boxes(side, side, regions.device)
        grid = self.project(self.dropout(regions.to(self.norm.weight.dtype)))
        if self.position is not None:
            grid = grid + self.position(boxes)
        grid = self.norm(grid)
        mask = torch.ones(batch, count, dtype=torch.bool, device=regions.device)
        return Features(grid, grid.mean(1), boxes.expand(batch, -1, -1), mask)
