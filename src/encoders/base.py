"""What every encoder is: a backbone in stages, the frozen ones of which can be cached, and a trainable neck."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.defences import Defence
from src.dropout import Dropout
from src.encoders.depthwise import hasten_depthwise
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


class Stage(NamedTuple):
    """A stretch of a backbone: what is frozen, fine-tuned and cached as one."""

    name: str
    modules: Sequence[nn.Module]
    """Applied one after the other."""


class Backbone(nn.Module):
    """Pixels (B, 3, H, W) in [0, 1] → a map (B, D, h, w), stage by stage. Normalisation happens inside, so that
    training, attack, export and service share one pixel space."""

    width: int
    """D, the channels of the map."""
    vector: bool = False
    """Whether the map is one fixed-length vector, 1 × 1, rather than regions to attend over."""
    tokens: bool = False
    """Whether its stages but the last give tokens (B, N, D), those besides the regions' among them, instead of maps."""
    img_size: int | None = None
    """Pixels a side of the only pictures that it takes; None: any."""
    mean: Tensor
    std: Tensor
    weights_used: str = "random"
    """Where the weights came from, in words: it goes into logs, bundles and scores."""

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def stages(self) -> list[Stage]:
        """All of the network, from the pixels on."""
        raise NotImplementedError

    def forward(self, images: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Stages `first` … `last` - 1: of pixels where first is 0, else of what stage first - 1 gave."""
        x = images if first else (images - self.mean) / self.std
        for stage in self.stages[first:last]:
            for module in stage.modules:
                x = module(x)
        return x


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
        backbone: its first stages are cacheable where they are frozen.
        width: D of the features given to the decoder; None keeps the backbone's own.
        position: add each region's position (grids only; a single vector has none).
        pool: one fixed-length vector, the mean of the regions, instead of the grid.
        grids: sides of coarser grids of the same map to attend over besides, such as (1, 3): a region of theirs is the
            mean of what it covers. The spatial pyramid of He et al., 2015 (https://arxiv.org/abs/1406.4729).
        frozen: how many of the backbone's stages learn nothing, counted from the pixels; True: all, False: none. They
            stay in eval mode, so that what they give can be cached. Gradients still reach the pixels.
        unfreeze_epoch: the other stages learn from this epoch on (0-based), and are frozen before.
        learning_rate: their peak learning rate; None: the optimizer's.
        batch_norm: of the stages that learn: `keep` the running statistics, `learn` them, or `auto`: keep those that
            were loaded, learn those that started at random.
        dropout: on the backbone's output, while training.

    Raises:
        ValueError: a number of stages that the backbone does not have, settings of learning where all is frozen, or
            grids of a single vector.
    """

    def __init__(
        self,
        backbone: Backbone,
        width: int | None = 512,
        position: bool = True,
        pool: bool = False,
        grids: Sequence[int] = (),
        frozen: bool | int = True,
        unfreeze_epoch: int = 0,
        learning_rate: float | None = None,
        batch_norm: str = "auto",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        at_least(1, "encoder", width=width, grids=grids)
        at_least(0, "encoder", learning_rate=learning_rate, unfreeze_epoch=unfreeze_epoch)
        share("encoder", dropout=dropout)
        stages = backbone.stages
        count = len(stages) if frozen is True else int(frozen)
        if not 0 <= count <= len(stages):
            names = ", ".join(f"{number} {stage.name}" for number, stage in enumerate(stages, start=1))
            raise ValueError(
                f"encoder.frozen={frozen}: this backbone has {len(stages)} stages ({names}); give how many of them are "
                "frozen, true for all or false for none"
            )
        if batch_norm not in ("auto", "keep", "learn"):
            raise ValueError(f"encoder.batch_norm={batch_norm}: choose auto, keep or learn")
        if count == len(stages) and (unfreeze_epoch or learning_rate is not None):
            raise ValueError(
                "encoder.learning_rate and encoder.unfreeze_epoch are of stages that learn, and encoder.frozen="
                f"{str(frozen).lower()} leaves none: set encoder.frozen to a number below {len(stages)}"
            )
        self.backbone = backbone
        self.frozen_stages, self.unfreeze_epoch = count, unfreeze_epoch
        self.learning_rate, self.batch_norm = learning_rate, batch_norm
        self.pool, self.grids = pool, tuple(grids)
        if self.vector and self.grids:
            raise ValueError(f"encoder.grids={list(grids)}: the encoder gives one vector, which has no grids; use []")
        self.asleep = unfreeze_epoch > 0
        """Whether the stages that are to learn wait for their epoch."""
        self.width = width or backbone.width
        self.project: nn.Module = nn.Linear(backbone.width, self.width) if width else nn.Identity()
        self.position = BoxPosition(self.width) if position and not self.vector else None
        self.norm = nn.LayerNorm(self.width)
        self.dropout = Dropout(dropout)
        self.defence: Defence | None = None
        for module in self.frozen_modules:
            module.requires_grad_(False)
        hasten_depthwise(backbone)
        self.train(self.training)

    @property
    def vector(self) -> bool:
        """True where a decoder gets one fixed-length vector and no regions to attend over."""
        return self.backbone.vector or self.pool

    @property
    def cache_key(self) -> dict[str, Any]:
        """What the feature cache's rows depend on besides the backbone and how many of its stages are frozen."""
        return {} if self.defence is None else {"defence": repr(self.defence)}

    def defend(self, defence: Defence | None) -> None:
        """From now on transform pixels by it first; None: take them as they are."""
        self.defence = defence if defence is None else defence.train(self.training)

    @property
    def frozen_modules(self) -> list[nn.Module]:
        """The modules of the frozen stages, in order."""
        return [module for stage in self.backbone.stages[: self.frozen_stages] for module in stage.modules]

    def train(self, mode: bool = True) -> "Encoder":
        super().train(mode)
        if mode:
            still = self.frozen_modules  # frozen batch norm must neither use nor update batch statistics
            if self.asleep or self.frozen_stages == len(self.backbone.stages):
                still = [self.backbone]
            elif self.batch_norm == "keep" or (
                self.batch_norm == "auto" and not self.backbone.weights_used.startswith("random")
            ):
                still += [m for m in self.backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
            for module in still:
                module.eval()
        return self

    def at_epoch(self, epoch: int) -> None:
        """Wake the stages that are to learn, or let them sleep."""
        asleep = epoch < self.unfreeze_epoch
        if asleep != self.asleep:
            self.asleep = asleep
            self.train(self.training)

    def regions(self, images: Tensor, last: int | None = None) -> Tensor:
        """What the backbone says of pictures (B, R, D); with `last`, what its first stages say.

        Args:
            images: pixels (B, 3, H, W), uint8 or floats in [0, 1], or the frozen stages' cached output (B, R', D').
            last: the stage before which to stop.
        """
        if images.dim() == 3:
            first, x = self.frozen_stages, images.to(self.norm.weight.dtype)
            if not self.backbone.tokens or first == len(self.backbone.stages):
                side = math.isqrt(images.size(1))
                if side * side != images.size(1):
                    raise ValueError(f"{images.size(1)} regions form no square grid: cached maps are square")
                x = x.transpose(1, 2).unflatten(2, (side, side))
        else:
            first, x = 0, self.pixels(images)
        x = self.backbone(x, first, last)
        return x if x.dim() == 3 else x.flatten(2).transpose(1, 2)

    def scaled(self, images: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), uint8 or floats in [0, 1] → floats in [0, 1]."""
        x = images.to(self.norm.weight.dtype)
        return x / 255 if images.dtype == torch.uint8 else x

    def pixels(self, images: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), uint8 or floats in [0, 1], as the backbone takes them."""
        x = self.scaled(images)
        return x if self.defence is None else self.defence(x)

    def frozen_regions(self, pixels: Tensor) -> Tensor:
        """What the feature cache keeps of pixels (B, 3, H, W): the last frozen stage's output as (B, R', D')."""
        return self.regions(pixels, self.frozen_stages)

    def blank(self, size: int) -> Any:
        """What `forward` takes of one black picture of `size` pixels a side."""
        return torch.zeros(1, 3, size, size, dtype=torch.uint8)

    def boxes(self, regions: int, device: torch.device | None = None) -> Tensor:
        """Boxes (R, 4) of R regions as `forward` orders them: the map's cells row by row, then each coarser grid's.

        Raises:
            ValueError: the map is not square, or one of the grids is no coarser than it.
        """
        cells = regions - sum(side * side for side in self.grids)
        finest = math.isqrt(max(cells, 0))
        if finest * finest != cells:
            raise ValueError(f"{cells} regions form no square grid: pictures are made square before the encoder")
        if any(side >= finest for side in self.grids):
            raise ValueError(f"encoder.grids={list(self.grids)}: the map is {finest} × {finest}; each must be coarser")
        return torch.cat([grid_boxes(side, side, device) for side in (finest, *self.grids)])

    def forward(self, images: Tensor) -> Features:
        """Pixels (B, 3, H, W), uint8 or floats in [0, 1], or the frozen stages' output (B, R', D'), → Features."""
        regions = self.regions(images)
        if self.pool:
            regions = regions.mean(1, keepdim=True)
        boxes = self.boxes(regions.size(1) + sum(side * side for side in self.grids), regions.device)
        grid = self.project(self.dropout(regions.to(self.norm.weight.dtype)))
        if self.grids:
            finest = grid.transpose(1, 2).unflatten(2, (math.isqrt(grid.size(1)), -1))
            coarser = [F.adaptive_avg_pool2d(finest, side).flatten(2).transpose(1, 2) for side in self.grids]
            grid = torch.cat([grid, *coarser], 1)
        return self.placed(grid, boxes)

    def placed(self, grid: Tensor, boxes: Tensor, mask: Tensor | None = None) -> Features:
        """Projected regions (B, R, width) and their boxes (R, 4) or (B, R, 4): the rest of the neck. All regions are
        real, or those of the mask (B, R)."""
        if self.position is not None:
            grid = grid + self.position(boxes)
        grid = self.norm(grid)
        if mask is None:
            mask, pooled = torch.ones(grid.shape[:2], dtype=torch.bool, device=grid.device), grid.mean(1)
        else:
            grid = grid.masked_fill(~mask.unsqueeze(-1), 0)
            pooled = grid.sum(1) / mask.sum(1, keepdim=True)
        return Features(grid, pooled, boxes.expand(grid.size(0), -1, -1), mask)
