"""Generated captions from every process, each image once."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class GatheredCaptions(Metric):
    """Gathers (image index, padded token ids) across ranks, so that scores are computed over the whole set.

    A distributed sampler repeats images to give every rank as many; duplicates are dropped by index. Only
    tensors travel. `max_length` is the widest caption in tokens: ranks and batches may pad to other widths.
    """

    full_state_update = False
    rows: list[Tensor]  # (B, 1 + max_length): index, then ids. One state, so one gather.

    def __init__(self, max_length: int, pad: int = 0) -> None:
        super().__init__()
        self.max_length, self.pad = max_length, pad
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, index: Tensor, ids: Tensor) -> None:
        """Adds a batch: image index (B,) and token ids (B, T), padded with `pad`.

        Raises ValueError for other shapes, or a token beyond `max_length`.
        """
        if index.ndim != 1 or ids.ndim != 2 or len(index) != len(ids):
            raise ValueError(f"expected index (B,) and ids (B, T), got {tuple(index.shape)} and {tuple(ids.shape)}")
        if (ids[:, self.max_length :] != self.pad).any():
            raise ValueError(f"a caption is longer than GatheredCaptions' max_length={self.max_length}: raise it")
        width = min(ids.shape[1], self.max_length)
        rows = self._empty(len(ids))
        rows[:, 0] = index
        rows[:, 1 : 1 + width] = ids[:, :width]
        self.rows.append(rows)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """As torchmetrics', which on a rank without any batch sends a tensor that fits no other rank's."""
        if not len(self.rows):
            self.rows.append(self._empty(0))
        super().sync(*args, **kwargs)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Image index (N,), sorted and unique, and token ids (N, max_length); the first duplicate stays."""
        rows = dim_zero_cat(self.rows) if len(self.rows) else self._empty(0)
        rows = rows[torch.argsort(rows[:, 0], stable=True)]
        first = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        first[1:] = rows[1:, 0] != rows[:-1, 0]
        return rows[first, 0], rows[first, 1:]

    def _wrap_compute(self, compute: Callable[[], Any]) -> Callable[[], Any]:
        # torchmetrics squeezes results of one element; a set of one image is still a set.
        wrapped = super()._wrap_compute(compute)

        @wraps(wrapped)
        def with_axes() -> tuple[Tensor, Tensor]:
            index, ids = wrapped()
            return index.reshape(-1), ids.reshape(-1, self.max_length)

        return with_axes

    def _empty(self, rows: int) -> Tensor:
        return torch.full((rows, 1 + self.max_length), self.pad, dtype=torch.long, device=self.device)
