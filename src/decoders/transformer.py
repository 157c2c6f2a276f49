"""A transformer decoder with a key-value cache."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.decoders.base import Decoder, Output
from src.dropout import Dropout
from src.embeddings.base import Embedding
from src.encoders.base import Features
from src.ranges import at_least, divides


class TransformerMemory(NamedTuple):
    keys: tuple[Tensor, ...]
    """Of each layer (B, heads, R, H / heads): the regions as queries are compared with them."""
    values: tuple[Tensor, ...]
    """Likewise, as they enter the context."""
    mask: Tensor
    """(B, R): True where a region is real."""


class TransformerState(NamedTuple):
    keys: tuple[Tensor, ...]
    """Of each layer (B, Q, t, H): of the words so far."""
    values: tuple[Tensor, ...]
    """Likewise."""


def positions(first: int, count: int, width: int, device: torch.device) -> Tensor:
    """Sines and cosines (count, width) of the places first … first + count - 1: Vaswani et al., 2017, section 3.5."""
    place = torch.arange(first, first + count, device=device, dtype=torch.float32).unsqueeze(1)
    rate = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000.0) / width))
    angles = place * rate
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]


class Block(nn.Module):
    """Self-attention, attention to the image, and a feed-forward part, each behind a layer norm and added on (pre-norm:
    Xiong et al., 2020, https://arxiv.org/abs/2002.04745)."""

    def __init__(self, hidden: int, heads: int, feedforward: int, memory_width: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(3))
        self.words = nn.Linear(hidden, 3 * hidden)
        self.words_output = nn.Linear(hidden, hidden)
        self.query = nn.Linear(hidden, hidden)
        self.image = nn.Linear(memory_width, 2 * hidden)
        self.image_output = nn.Linear(hidden, hidden)
        self.expand, self.contract = nn.Linear(hidden, feedforward), nn.Linear(feedforward, hidden)
        self.dropout = Dropout(dropout)

    def split(self, x: Tensor) -> Tensor:
        """(N, t, H) → (N, heads, t, H / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def read(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Words (B, Q, T, H) attend to themselves and those before them; T is 1 where there is a past (B, Q, t, H).
        Returns the sum, and the keys and values of all words so far."""
        query, key, value = self.words(self.norms[0](x)).chunk(3, dim=-1)
        if past is not None:
            key, value = (
                torch.cat([old.expand(-1, x.size(1), -1, -1), new], 2)
                for old, new in zip(past, (key, value), strict=True)
            )
        q, k, v = (self.split(each.flatten(0, 1)) for each in (query, key, value))
        if past is None:
            context = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:  # one query a row: plain products are the faster ones
            context = (q * q.size(-1) ** -0.5 @ k.transpose(-1, -2)).float().softmax(-1).to(v.dtype) @ v
        context = context.transpose(1, 2).flatten(2).view(query.shape)
        return x + self.dropout(self.words_output(context)), key, value

    def look(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor, tell: bool) -> tuple[Tensor, Tensor | None]:
        """Words (B, Q, T, H) attend to their image's regions (B, heads, R, H / heads). Returns the sum and, where asked
        for, the heads' mean weights (B, Q, T, R)."""
        query = self.query(self.norms[1](x))
        q = self.split(query.flatten(1, 2))  # all captions of an image beside one copy of its regions
        weights = None
        if tell:
            scores = (q * q.size(-1) ** -0.5 @ keys.transpose(-1, -2)).float()
            weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
            context = weights.to(values.dtype) @ values
            weights = weights.mean(1).view(*x.shape[:3], -1)
        else:
            context = F.scaled_dot_product_attention(q, keys, values, mask)
        context = context.transpose(1, 2).flatten(2).view(query.shape)
        return x + self.dropout(self.image_output(context)), weights

    def think(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.contract(self.dropout(F.gelu(self.expand(self.norms[2](x))))))


class TransformerDecoder(Decoder):
    """Vaswani et al., 2017 (https://arxiv.org/abs/1706.03762), pre-norm, over the image's regions. The regions' keys
    and values are projected once an image, those of the words are kept from step to step. Its attention map is the
    last layer's, the mean of the heads.

    Args:
        embedding: the word table, E wide.
        memory_width: D of the encoder's regions.
        hidden: H of every layer.
        layers: L blocks.
        heads: of attention; divides `hidden`.
        feedforward: width of the feed-forward parts; None: 4 · H.
        dropout: on words, behind every part and on the output, while training.
        tied: the output layer shares the word table.

    Where E is not H, words are projected on their way in and out.
    """

    attends = True

    def __init__(
        self,
        embedding: Embedding,
        memory_width: int,
        hidden: int = 512,
        layers: int = 3,
        heads: int = 8,
        feedforward: int | None = None,
        dropout: float = 0.3,
        tied: bool = False,
    ) -> None:
        super().__init__(embedding, tied, dropout)
        at_least(1, "decoder", hidden=hidden, layers=layers, feedforward=feedforward)
        divides("decoder", hidden, heads)
        size = embedding.size
        same = size == hidden
        self.hidden_size = hidden
        self.input: nn.Module = nn.Identity() if same else nn.Linear(size, hidden)
        blocks = [Block(hidden, heads, feedforward or 4 * hidden, memory_width, dropout) for _ in range(layers)]
        self.blocks: Sequence[Block] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.norm = nn.LayerNorm(hidden)
        self.output: nn.Module = nn.Identity() if same else nn.Linear(hidden, size)

    def to_compile(self) -> list[nn.Module]:
        return [self]

    def prepare(self, features: Features) -> TransformerMemory:
        pairs = [block.image(features.grid).chunk(2, dim=-1) for block in self.blocks]
        keys, values = (
            tuple(block.split(each).contiguous() for block, each in zip(self.blocks, every, strict=True))
            for every in zip(*pairs, strict=True)
        )
        return TransformerMemory(keys, values, features.mask)

    def first_state(self, memory: TransformerMemory) -> TransformerState:
        empty = memory.keys[0].new_zeros(memory.mask.size(0), 1, 0, self.hidden_size)
        return TransformerState((empty,) * len(self.blocks), (empty,) * len(self.blocks))

    def _run(
        self, embedded: Tensor, state: TransformerState | None, memory: TransformerMemory
    ) -> tuple[Output, TransformerState]:
        """Words (B, Q, T, E), from a state (then T is 1) or from the beginning."""
        words = embedded.size(2)
        past = 0 if state is None else state.keys[0].size(2)
        x = self.input(embedded) * self.hidden_size**0.5  # words are of unit length, places of √(H / 2)
        x = x + positions(past, words, x.size(-1), x.device).to(x.dtype)
        mask = memory.mask[:, None, None]
        keys, values, weights = [], [], None
        for layer, block in enumerate(self.blocks):
            before = None if state is None else (state.keys[layer], state.values[layer])
            x, key, value = block.read(x, before)
            x, weights = block.look(x, memory.keys[layer], memory.values[layer], mask, block is self.blocks[-1])
            x = block.think(x)
            keys.append(key)
            values.append(value)
        return Output(self.output(self.norm(x)), weights), TransformerState(tuple(keys), tuple(values))

    def step(
        self, embedded: Tensor, state: TransformerState, memory: TransformerMemory
    ) -> tuple[Output, TransformerState]:
        output, after = self._run(embedded.unsqueeze(2), state, memory)
        assert output.attention is not None
        return Output(output.hidden.squeeze(2), output.attention.squeeze(2)), after

    def read(self, embedded: Tensor, memory: TransformerMemory, lengths: Tensor | None = None) -> Output:
        return self._run(embedded, None, memory)[0]
