"""Recall of retrieval, both ways: which sentences a picture finds, and which picture a sentence does."""

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


def scores_of(pictures: np.ndarray, sentences: np.ndarray, image: np.ndarray) -> dict[str, float]:
    """Unit vectors (B, E) and (N, E), and each sentence's picture (N,) → `recall`. Pictures without sentences seek
    none."""
    described = np.unique(image)
    i2t, t2i = [], []
    for start in range(0, len(described), BLOCK):
        own = described[start : start + BLOCK]
        i2t.append(ranks(pictures[own] @ sentences.T, own[:, None] == image))
    for start in range(0, len(sentences), BLOCK):
        own = image[start : start + BLOCK]
        t2i.append(ranks(sentences[start : start + BLOCK] @ pictures.T, own[:, None] == np.arange(len(pictures))))
    return recall(np.concatenate(i2t), np.concatenate(t2i))


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
        pictures, sentences = (dim_zero_cat(rows).cpu().numpy() for rows in (self.pictures, self.sentences))
        index, first = np.unique(pictures[:, 0], return_index=True)
        return scores_of(pictures[first, 1:], sentences[:, 1:], np.searchsorted(index, sentences[:, 0]))
