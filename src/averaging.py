"""A moving average of the weights."""

from collections.abc import Sequence

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from src.ranges import at_least


class MovingAverage(WeightAveraging):
    """Exponential moving average of the weights (Polyak and Juditsky, 1992, https://doi.org/10.1137/0330046, with a
    horizon): validated, kept and shipped in place of the last step's. Lightning's, but for three things: what does not
    change stays as it is to the bit, so that cached features of frozen stages go on being found; whole numbers are not
    averaged; and the average is in place until a validation's very end, where the logged captions are made.

    Args:
        decay: what stays of the old average at an update, in [0, 1].
        update_every_n_steps: optimizer steps from one update to the next.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(self, decay: float = 0.99, update_every_n_steps: int = 5) -> None:
        at_least(1, "callbacks.averaging", update_every_n_steps=update_every_n_steps)
        if not 0 <= decay <= 1:
            raise ValueError(f"callbacks.averaging.decay={decay}: from 0 to 1")

        def update(averaged: Sequence[Tensor], current: Sequence[Tensor], _: Tensor) -> None:
            for mean, new in zip(averaged, current, strict=True):
                if mean.is_floating_point():
                    mean.lerp_(new, 1 - decay)  # exact where both are equal, as decay · mean + (1 − decay) · new is not
                else:
                    mean.copy_(new)

        super().__init__(multi_avg_fn=update)
        self.every = update_every_n_steps
        self.in_place = False  # the average, where the model's own weights are

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and step_idx % self.every == 0

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        self.in_place = True

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """In place already."""

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Not yet: `Pictures` captions with the average too."""

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.put_back(pl_module)

    def put_back(self, pl_module: lightning.LightningModule) -> None:
        """Give the model its own weights again, where the average is in their place."""
        if self.in_place:
            self._swap_models(pl_module)
        self.in_place = False
