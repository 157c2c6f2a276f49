"""Soft attention: a weighted mean of an image's regions. Keys are projected once an image, whatever the number of
captions, beams and steps that look at it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from src.encoders.base import Features
from src.ranges import at_least


class AttentionMemory(NamedTuple):
    """What attention reads at every step, made once an image."""

    keys: Tensor
    """(B, R, A): the regions as they are compared with a query."""
    values: Tensor
    """(B, R, D): the regions as they enter the context."""
    mask: Tensor
    """(B, R): True where a region is real."""


class Attended(NamedTuple):
    """One look at the image by Q captions."""

    context: Tensor
    """(B, Q, D)."""
    weights: Tensor
    """(B, Q, R): non-negative, summing to 1 over the real regions."""
    log_prob: Tensor | None = None
    """(B, Q): log-probability of a sampled look, where attention samples."""
    sentinel: Tensor | None = None
    """(B, Q): share of the look that went to the decoder's own memory instead of the image."""


class Attention(nn.Module):
    """The frame of soft attention; subclasses say how keys are made and compared with queries."""

    def keys(self, grid: Tensor) -> Tensor:
        """Regions (B, R, D) → keys (B, R, A)."""
        raise NotImplementedError

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """Queries (B, Q, H) against keys (B, R, A) → unnormalised scores (B, Q, R)."""
        raise NotImplementedError

    def prepare(self, features: Features) -> AttentionMemory:
        return AttentionMemory(self.keys(features.grid), features.grid, features.mask)

    def forward(self, query: Tensor, input: Tensor, cell: Tensor, memory: AttentionMemory) -> Attended:
        """Look once. query (B, Q, H) is the decoder's hidden state; input (B, Q, E), the embedded word, and cell
        (B, Q, H) are for kinds of attention that weigh the image against what the decoder knows already."""
        scores = self.scores(query, memory.keys).float()
        scores = scores.masked_fill(~memory.mask.unsqueeze(1), torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        return Attended(weights.to(memory.values.dtype) @ memory.values, weights)


class AdditiveAttention(Attention):
    """v · tanh(W query + U region): Bahdanau et al., 2015 (https://arxiv.org/abs/1409.0473), as Show, Attend and Tell
    uses it (https://arxiv.org/abs/1502.03044).

    Args:
        query_width: H of the decoder.
        memory_width: D of the regions.
        width: A, the width in which they are compared.
    """

    def __init__(self, query_width: int, memory_width: int, width: int = 512) -> None:
        super().__init__()
        at_least(1, "attention", width=width)
        self.key = nn.Linear(memory_width, width)
        self.query = nn.Linear(query_width, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)

    def keys(self, grid: Tensor) -> Tensor:
        return self.key(grid)

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        compared = torch.tanh(keys.unsqueeze(1) + self.query(query).unsqueeze(2))
        return self.score(compared).squeeze(-1)


class DotAttention(Attention):
    """Scaled dot product of projected query and region: Luong et al., 2015 (https://arxiv.org/abs/1508.04025), scaled
    as by Vaswani et al., 2017 (https://arxiv.org/abs/1706.03762).

    Args:
        query_width: H of the decoder.
        memory_width: D of the regions.
        width: A, the width in which they are compared.
    """

    def __init__(self, query_width: int, memory_width: int, width: int = 512) -> None:
        super().__init__()
        at_least(1, "attention", width=width)
        self.key = nn.Linear(memory_width, width)
        self.query = nn.Linear(query_width, width)

    def keys(self, grid: Tensor) -> Tensor:
        return self.key(grid)

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        query = self.query(query) * keys.size(-1) ** -0.5
        return query @ keys.transpose(1, 2)
