"""Soft attention: a weighted mean of an image's regions. Keys are projected once an image, whatever the number of
captions, beams and steps that look at it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from src.encoders.base import Features
from src.ranges import at_least, divides


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
    """(B, Q): log-probability of a sampled look, where attention samples; 0 where this look was none."""
    sentinel: Tensor | None = None
    """(B, Q): share of the look that went to the decoder's own memory instead of the image, in [0, 1]."""


class Attention(nn.Module):
    """The frame of soft attention; subclasses say how keys are made and compared with queries. All are made with

    - query_width: H of the decoder,
    - memory_width: D of the regions, and of the context,
    - width: A, in which query and region are compared,
    - input_width: E of the decoder's words, for kinds that look at them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        at_least(1, "attention", width=width)

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
        weights = masked(self.scores(query, memory.keys), memory.mask).softmax(-1)
        return Attended(weights.to(memory.values.dtype) @ memory.values, weights)


def masked(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores (B, Q, R) in float32, so low where mask (B, R) has no region that a softmax makes them 0."""
    scores = scores.float()
    return scores.masked_fill(~mask.unsqueeze(1), torch.finfo(scores.dtype).min)


LIMIT = 40.0
"""Of twice a key or query, either way, before it is exponentiated: tanh has long been flat there, and no product of two
overflows."""


class _AdditiveScores(torch.autograd.Function):
    """Σ_a v_a tanh(k_a + q_a) of every query and region, from exp(2k) and exp(2q): tanh(k + q) = 1 - 2 / (1 + exp(2k)
    exp(2q)). One exponential a key and a query instead of one a pair, and one saved tensor a pair."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, v: Tensor) -> Tensor:
        """queries (B, Q, A), keys (B, R, A), both exponentiated, v (A,), of one type → scores (B, Q, R)."""
        r = torch.addcmul(queries.new_ones(()), queries.unsqueeze(2), keys.unsqueeze(1)).reciprocal_()
        ctx.save_for_backward(queries, keys, v, r)
        return v.sum() - 2 * (r.flatten(0, 2) @ v.unsqueeze(1)).view(r.shape[:3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        queries, keys, v, r = ctx.saved_tensors
        batch, captions, regions, width = r.shape
        grad_v = grad.sum() - 2 * (grad.reshape(1, -1) @ r.flatten(0, 2)).squeeze(0)
        slope = torch.addcmul(r, r, r, value=-1)  # d tanh / dx = 4 r (1 - r)
        grad_queries = (grad.reshape(-1, 1, regions) @ slope.view(-1, regions, width)).view_as(queries)
        grad_keys = torch.zeros_like(keys)
        for q in range(captions):
            grad_keys.addcmul_(grad[:, q].unsqueeze(-1), slope[:, q])
        # Of k and q, then of their exponentials.
        return grad_queries * (2 * v) / queries, grad_keys * (2 * v) / keys, grad_v


class AdditiveAttention(Attention):
    """v · tanh(W query + U region): Bahdanau et al., 2015 (https://arxiv.org/abs/1409.0473), as Show, Attend and Tell
    uses it (https://arxiv.org/abs/1502.03044).

    Args:
        query_width, memory_width, width, input_width: see `Attention`.
    """

    def __init__(self, query_width: int, memory_width: int, width: int = 512, input_width: int | None = None) -> None:
        super().__init__(width)
        self.key = nn.Linear(memory_width, width)
        self.query = nn.Linear(query_width, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)

    @staticmethod
    def _exponential(x: Tensor) -> Tensor:
        """exp(2x) in x's own type, but not in half precision, whose range ends at exp(11)."""
        result = (2 * x.float()).clamp(-LIMIT, LIMIT).exp()
        return result if x.dtype == torch.float16 else result.to(x.dtype)

    def keys(self, grid: Tensor) -> Tensor:
        return self._exponential(self.key(grid))

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        queries = self._exponential(self.query(query)).to(keys.dtype)
        with torch.autocast(keys.device.type, enabled=False):
            return _AdditiveScores.apply(queries, keys, self.score.weight[0].to(keys.dtype))


class DotAttention(Attention):
    """Scaled dot product of projected query and region: Luong et al., 2015 (https://arxiv.org/abs/1508.04025), scaled
    as by Vaswani et al., 2017 (https://arxiv.org/abs/1706.03762).

    Args:
        query_width, memory_width, width, input_width: see `Attention`.
    """

    def __init__(self, query_width: int, memory_width: int, width: int = 512, input_width: int | None = None) -> None:
        super().__init__(width)
        self.key = nn.Linear(memory_width, width)
        self.query = nn.Linear(query_width, width)

    def keys(self, grid: Tensor) -> Tensor:
        return self.key(grid)

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        query = self.query(query) * keys.size(-1) ** -0.5
        return query @ keys.transpose(1, 2)


class MultiheadAttention(Attention):
    """Several scaled dot products side by side, each over its own part of keys and values: Vaswani et al., 2017
    (https://arxiv.org/abs/1706.03762). Values are projected once an image too; weights are the heads' mean.

    Args:
        query_width, memory_width, width, input_width: see `Attention`.
        heads: their number, which divides `width`.
    """

    def __init__(
        self,
        query_width: int,
        memory_width: int,
        width: int = 512,
        input_width: int | None = None,
        heads: int = 8,
    ) -> None:
        super().__init__(width)
        divides("attention", width, heads)
        self.heads = heads
        self.key = nn.Linear(memory_width, width)
        self.value = nn.Linear(memory_width, width)
        self.query = nn.Linear(query_width, width)
        self.output = nn.Linear(width, memory_width)

    def keys(self, grid: Tensor) -> Tensor:
        return self.key(grid)

    def prepare(self, features: Features) -> AttentionMemory:
        """Values are (B, R, A), the heads' parts one behind another."""
        return AttentionMemory(self.key(features.grid), self.value(features.grid), features.mask)

    def _split(self, x: Tensor) -> Tensor:
        """(B, ·, A) → (B, heads, ·, A / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, query: Tensor, input: Tensor, cell: Tensor, memory: AttentionMemory) -> Attended:
        queries, keys, values = (self._split(x) for x in (self.query(query), memory.keys, memory.values))
        scores = queries * queries.size(-1) ** -0.5 @ keys.transpose(-1, -2)
        weights = masked(scores.flatten(1, 2), memory.mask).softmax(-1).unflatten(1, (self.heads, -1))
        context = (weights.to(values.dtype) @ values).transpose(1, 2).flatten(-2)
        return Attended(self.output(context), weights.mean(1))
