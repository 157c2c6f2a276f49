"""What every objective is: model and batch → a sum of losses and over how many tokens it goes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from src.data.module import Batch, CaptionData
    from src.model import CaptioningModel


class Loss(NamedTuple):
    """What an objective returns. The caller divides by the count over all ranks and accumulation steps: a mean of means
    would make two processes differ from one."""

    total: Tensor
    """Scalar: the sum over the batch, with its gradient."""
    count: Tensor  # type: ignore[assignment]
    """Scalar: how many real tokens it sums over."""
    logs: dict[str, Tensor]
    """Detached sums over the same tokens, for the logs."""


class Objective(nn.Module):
    """May own parts that learn besides the model (a discriminator, a posterior) and statistics (a baseline). In eval
    mode it is deterministic."""

    needs_start: bool = False
    """Whether it goes on from a captioner that speaks already, and makes little of random weights."""
    follows: Sequence[str] = ("length", "tags")
    """Of what captions can be asked for (the fields of `control`), what it can teach; captions that are drawn from the
    model itself may be asked for less."""
    scheduled: bool = False
    """Whether it reads `progress`."""
    progress: float = 0.0
    """Share of the run's optimizer steps that are done, in [0, 1]: set before every batch, for schedules."""

    def check(self, model: "CaptioningModel") -> None:
        """Refuse a model that it cannot train.

        Raises:
            ValueError: says what is missing.
        """

    def begin(self, model: "CaptioningModel", data: "CaptionData") -> None:
        """What it needs to know of the data before the first step. Nothing, here."""

    def forward(self, model: "CaptioningModel", batch: "Batch") -> Loss:
        raise NotImplementedError


def over_ranks(*values: Tensor) -> list[Tensor]:
    """The sums of scalars over all processes, detached, so that statistics stay the same in each."""
    together = torch.stack([value.detach().float() for value in values])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(together)
    return list(together)
