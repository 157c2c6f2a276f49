"""Regions computed beforehand, such as bottom-up attention: the neck of an encoder without a backbone."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from src.defences import Defence
from src.encoders.base import Backbone, Encoder, Features, Stage
from src.ranges import at_least


class Regions(NamedTuple):
    """B pictures' regions as they were computed; ragged R is padded and masked."""

    regions: Tensor
    """(B, R, D)."""
    boxes: Tensor
    """(B, R, 4): x1, y1, x2, y2 as fractions of the picture, in [0, 1]."""
    mask: Tensor
    """(B, R): True where a region is real; at least one a picture."""


class NoBackbone(Backbone):
    """What stands where others compute regions from pixels: nothing to freeze, to fine-tune or to cache."""

    def __init__(self, width: int, source: str) -> None:
        super().__init__(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.width, self.weights_used = width, source

    @property
    def stages(self) -> list[Stage]:
        return []


class RegionEncoder(Encoder):
    """Projection, position, layer norm and dropout of regions that another program computed, such as the objects that
    a detector found: bottom-up attention, Anderson et al., 2018 (https://arxiv.org/abs/1707.07998). How many there are
    differs from picture to picture. `src/data/regions.py` reads them.

    Args:
        path: where they are, relative to the data's root: a folder of `.npz` or `.npy` files, or an HDF5 file.
        dimension: D of the files.
        max_regions: of a picture; of more, those listed first are taken.
        width: D of the features given to the decoder; None keeps the files'.
        position: add each region's position.
        dropout: on the regions, while training.
    """

    def __init__(
        self,
        path: str,
        dimension: int,
        max_regions: int,
        width: int | None = 512,
        position: bool = True,
        dropout: float = 0.0,
    ) -> None:
        at_least(1, "encoder", dimension=dimension, max_regions=max_regions)
        source = f"none (regions computed beforehand, {Path(path).name})"
        super().__init__(NoBackbone(dimension, source), width, position, dropout=dropout)

    def defend(self, defence: Defence | None) -> None:
        """Raises ValueError: there are no pixels here that could be transformed."""
        if defence is not None:
            raise ValueError(
                "defence: regions computed beforehand are no pictures, and no pixels are read: choose another encoder, "
                "or defence=null"
            )

    def blank(self, size: int) -> Regions:
        mask = torch.ones(1, 2, dtype=torch.bool)
        return Regions(torch.zeros(1, 2, self.backbone.width), torch.zeros(1, 2, 4), mask)

    def forward(self, images: Regions) -> Features:  # type: ignore[override]
        """Regions → Features; padding is zero and masked."""
        regions = self.dropout(images.regions.to(self.norm.weight.dtype))
        return self.placed(self.project(regions), images.boxes, images.mask)
