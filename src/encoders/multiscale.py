"""Regions of several sizes: maps of several stages of one backbone, side by side or as a feature pyramid."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from src.encoders.base import Backbone, Encoder, Features, grid_boxes
from src.ranges import at_least

MERGES = ("regions", "pyramid")
SIDE = 256
"""Pixels a side of the picture that tells the stages' strides; no real one is needed."""


class MultiscaleEncoder(Encoder):
    """A backbone, of which several maps are the region set: a learned vector says from which a region is.

    Args:
        backbone: at least one of its stages gives a map of each of `strides`.
        strides: pixels a cell of each map, finest first; of each stride the last stage's map is taken.
        sides: the most cells a side of each map: a finer one is averaged down to it. None: as it is.
        merge: `regions`: each map is projected by its own layer. `pyramid`: each is added to the coarser ones before
            that, a feature pyramid (Lin et al., 2017, https://arxiv.org/abs/1612.03144), all levels of which are taken.
        width: D of the features given to the decoder.
        position: add each region's position.
        frozen, unfreeze_epoch, learning_rate, batch_norm: as in `Encoder`. Stages behind the last map that is taken
            are neither computed nor learned.
        dropout: on the backbone's maps, while training.

    Raises:
        ValueError: strides that the backbone does not have, or settings that contradict one another.
    """

    def __init__(
        self,
        backbone: Backbone,
        strides: Sequence[int] = (8, 16, 32),
        sides: Sequence[int | None] = (7, 7, 7),
        merge: str = "regions",
        width: int = 512,
        position: bool = True,
        frozen: bool | int = True,
        unfreeze_epoch: int = 0,
        learning_rate: float | None = None,
        batch_norm: str = "auto",
        dropout: float = 0.0,
    ) -> None:
        at_least(1, "encoder", strides=strides, sides=[side for side in sides if side is not None])
        if merge not in MERGES:
            raise ValueError(f"encoder.merge={merge}: choose {' or '.join(MERGES)}")
        if len(strides) != len(sides):
            raise ValueError(f"encoder.sides={list(sides)}: give one for each of encoder.strides={list(strides)}")
        if len(strides) < 2 or list(strides) != sorted(set(strides)):
            raise ValueError(
                f"encoder.strides={list(strides)}: give two or more, finest first; for one map choose an encoder "
                "without _multiscale"
            )
        maps = _maps(backbone)
        last = {stride: stage for stage, (_, stride) in enumerate(maps) if stride}
        if not set(strides) <= set(last):
            there = f"the stages of this backbone give maps of strides {', '.join(map(str, last))}"
            if len(last) < 2:
                there = "this backbone gives a single map: choose one in stages, such as a ResNet or an EfficientNet"
            raise ValueError(f"encoder.strides={list(strides)}: {there}")
        super().__init__(
            backbone,
            width,
            position,
            frozen=frozen,
            unfreeze_epoch=unfreeze_epoch,
            learning_rate=learning_rate,
            batch_norm=batch_norm,
            dropout=dropout,
        )
        self.strides, self.sides = tuple(strides), tuple(sides)
        self.taps = tuple(last[stride] for stride in strides)
        """The stages whose maps are taken."""
        self.channels = [channels for channels, _ in maps]
        """Of each stage's map."""
        if self.frozen_stages > self.taps[-1]:
            self.frozen_stages = self.taps[-1] + 1
            if unfreeze_epoch or learning_rate is not None:
                raise ValueError(
                    f"encoder.frozen={frozen} leaves no stage that learns for encoder.learning_rate and "
                    f"encoder.unfreeze_epoch: set it to a number below {self.frozen_stages}"
                )
        for stage in backbone.stages[self.taps[-1] + 1 :]:
            for module in stage.modules:
                module.requires_grad_(False)
        widths = [self.channels[tap] for tap in self.taps]
        self.project = (
            FeaturePyramidNetwork(widths, width)
            if merge == "pyramid"
            else nn.ModuleList(nn.Linear(each, width) for each in widths)
        )
        self.scale = nn.Embedding(len(strides), width)
        nn.init.normal_(self.scale.weight, std=0.02)

    @property
    def cache_key(self) -> dict[str, Any]:
        return {**super().cache_key, "strides": self.strides, "sides": self.sides}

    def maps(self, images: Tensor) -> list[Tensor]:
        """The maps (B, D, side, side) that are taken, finest first.

        Args:
            images: pixels (B, 3, H, W), uint8 or floats in [0, 1], or the frozen stages' cached maps (B, 1, S).
        """
        end = self.taps[-1] + 1
        if images.dim() == 4:
            return self._run(self.pixels(images), [], 0, end)[0]
        maps = self._unpacked(images)
        taken = sum(tap < self.frozen_stages for tap in self.taps)
        return self._run(maps[-1], maps[:taken], self.frozen_stages, end)[0]

    def _run(self, x: Tensor, taken: list[Tensor], first: int, last: int) -> tuple[list[Tensor], Tensor]:
        """Stages first … last - 1 of x: the maps taken so far with those that are added, and the last stage's."""
        for stage in range(first, last):
            x = self.backbone(x, stage, stage + 1)
            if stage in self.taps:
                side = self.sides[self.taps.index(stage)]
                taken = [*taken, x if side is None or side >= x.size(-1) else F.adaptive_avg_pool2d(x, side)]
        return taken, x

    def frozen_regions(self, pixels: Tensor) -> Tensor:
        """What the feature cache keeps of pixels (B, 3, H, W), one row (B, 1, S) each: the sides of the maps, then the
        maps one after the other. They are those of the frozen stages that are taken and, where further stages go on
        from there, the last frozen stage's."""
        maps, last = self._run(self.pixels(pixels), [], 0, self.frozen_stages)
        if self.frozen_stages <= self.taps[-1]:
            maps = [*maps, last]
        sides = torch.tensor([x.size(-1) for x in maps], dtype=torch.float32, device=last.device)
        return torch.cat([sides.expand(len(last), -1), *(x.flatten(1) for x in maps)], 1).unsqueeze(1)

    def _unpacked(self, rows: Tensor) -> list[Tensor]:
        """The maps that `frozen_regions` has put into rows (B, 1, S)."""
        stages = [tap for tap in self.taps if tap < self.frozen_stages]
        if self.frozen_stages <= self.taps[-1]:
            stages.append(self.frozen_stages - 1)
        sides = [int(side) for side in rows[0, 0, : len(stages)].tolist()]
        shapes = [(self.channels[stage], side, side) for stage, side in zip(stages, sides, strict=True)]
        parts = rows[:, 0, len(stages) :].to(self.norm.weight.dtype).split([math.prod(shape) for shape in shapes], 1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]

    def forward(self, images: Tensor) -> Features:
        """Pixels (B, 3, H, W), uint8 or floats in [0, 1], or the frozen stages' cached maps (B, 1, S), → Features."""
        maps = [self.dropout(x) for x in self.maps(images)]
        if isinstance(self.project, nn.ModuleList):
            levels = [layer(_rows(x)) for layer, x in zip(self.project, maps, strict=True)]
        else:
            levels = [_rows(x) for x in self.project({str(i): x for i, x in enumerate(maps)}).values()]
        grid = torch.cat([level + scale for level, scale in zip(levels, self.scale.weight, strict=True)], 1)
        return self.placed(grid, torch.cat([grid_boxes(x.size(2), x.size(3), grid.device) for x in maps]))


def _rows(x: Tensor) -> Tensor:
    """A map (B, D, h, w) as regions (B, h · w, D)."""
    return x.flatten(2).transpose(1, 2)


def _maps(backbone: Backbone) -> list[tuple[int, int]]:
    """Channels and stride of each stage's map, from a run without memory; (0, 0) where a stage gives tokens."""
    size = backbone.img_size or SIDE
    training = backbone.training
    tensors = [*backbone.named_parameters(), *backbone.named_buffers()]
    nowhere = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
    found = []
    with torch.device("meta"), torch.no_grad():
        x = torch.zeros(1, 3, size, size)
        backbone.eval()
        for stage in range(len(backbone.stages)):
            x = functional_call(backbone, nowhere, (x, stage, stage + 1))
            # Strides are powers of two, also where one does not divide the picture.
            found.append((x.size(1), 2 ** round(math.log2(size / x.size(-1)))) if x.dim() == 4 else (0, 0))
    backbone.train(training)
    return found
