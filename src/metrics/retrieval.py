"""Recall of retrieval, both ways: which sentences a picture finds, and which picture a sentence does."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

AT = (1, 5, 10)
BLOCK = 1000
"""Rows of similarities that are held at a time."""


def ranks(scores: np.ndarray, own: np.ndarray) -> np.ndarray:
    """How many of the others come before the best of a row's own (0: none), each that scores no less among them.

    Args:
        scores: (M, N).
        own: (M, N), True where a column is one of those that the row seeks; each row has one or more.
    """
    best = np.where(own, scores, -np.inf).max(1, keepdims=True)
    return ((scores >= best) & ~own).sum(1)


def recall(i2t: np.ndarray, t2i: np.ndarray) -> dict[str, float]:
    """Ranks of `ranks` → R@1, R@5, R@10 as fractions and the median rank, counted from 1, of the sentences that
    pictures find (`i2t_`) and the pictures that sentences find (`t2i_`); and `rsum`, the sum of the six."""
    scores: dict[str, float] = {}
    for way, found in (("i2t", i2t), ("t2i", t2i)):
        scores |= {f"{way}_R@{at}": float((found < at).mean()) for at in AT}
        scores[f"{way}_median_rank"] = float(np.median(found)) + 1
    return {**scores, "rsum": sum(value for name, value in scores.items() if "R@" in name)}


RETRIEVAL = tuple(recall(np.zeros(1), np.zeros(1)))
"""The names of its scores."""


def scores_of(pictures: Tensor, sentences: Tensor, image: Sequence[int] | np.ndarray) -> dict[str, float]:
    """Unit vectors (B, E) and (N, E), and each sentence's picture (N,) → `recall`. Pictures without sentences seek
    none."""
    image = np.asarray(image)
    described = np.unique(image)
    ways = []
    for seeking, names, found, their in (
        (pictures[described], described, sentences, image),
        (sentences, image, pictures, np.arange(len(pictures))),
    ):
        blocks = range(0, len(seeking), BLOCK)
        ways.append(
            np.concatenate(
                [
                    ranks((seeking[a : a + BLOCK] @ found.t()).cpu().numpy(), names[a : a + BLOCK, None] == their)
                    for a in blocks
                ]
            )
        )
    return recall(*ways)


class GatheredVectors(Metric):
    """Gathers pictures' and sentences' vectors from every process, each picture once."""

    full_state_update = False
    pictures: list[Tensor]  # (B, 1 + E): the image's index, its vector. One state, so one gather.
    sentences: list[Tensor]  # (N, 1 + E): likewise

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        for name in ("pictures", "sentences"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, index: Tensor, pictures: Tensor, sentences: Tensor, image: Tensor) -> None:
        """Adds a batch: image index (B,), unit vectors (B, E) and (N, E), and each sentence's picture (N,) as its place
        in the batch."""
        both = index.float(), index[image].float()
        for rows, numbers, vectors in zip((self.pictures, self.sentences), both, (pictures, sentences), strict=True):
            rows.append(torch.cat([numbers.unsqueeze(1), vectors.detach().float()], 1))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """As torchmetrics', which on a rank without any batch sends a tensor that fits no other rank's."""
        for rows in (self.pictures, self.sentences):
            if not len(rows):
                rows.append(torch.zeros(0, 1 + self.size, device=self.device))
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, float]:
        """`recall`."""
        pictures, sentences = (dim_zero_cat(rows) for rows in (self.pictures, self.sentences))
        index, first = np.unique(pictures[:, 0].cpu().numpy(), return_index=True)
        image = np.searchsorted(index, sentences[:, 0].cpu().numpy())
        return scores_of(pictures[torch.from_numpy(first), 1:], sentences[:, 1:], image)
