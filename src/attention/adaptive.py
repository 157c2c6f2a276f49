"""Adaptive attention: whether to look at all."""

import torch
from torch import Tensor, nn

from src.attention.soft import AdditiveAttention, Attended, AttentionMemory, masked


class AdaptiveAttention(AdditiveAttention):
    """Additive attention over the regions and a visual sentinel, which is what the decoder knows already: Lu et al.,
    2017, Knowing When to Look (https://arxiv.org/abs/1612.01887). The sentinel is its gated memory cell; the share β of
    the look that it takes is `Attended.sentinel`, and `Attended.weights` are those among the regions. The paper looks
    behind its LSTM; a decoder that looks before it (`lstm_attn`) has the sentinel of the word before.

    Args:
        query_width, memory_width, width: see `Attention`.
        input_width: E of the decoder's words, which the gate reads.
    """

    def __init__(self, query_width: int, memory_width: int, width: int = 512, input_width: int | None = None) -> None:
        super().__init__(query_width, memory_width, width, input_width)
        if input_width is None:
            raise ValueError("attention: adaptive attention reads the decoder's words, so it needs their input_width")
        self.gate = nn.Linear(query_width + input_width, query_width)
        self.sentinel = nn.Linear(query_width, memory_width)

    def forward(self, query: Tensor, input: Tensor, cell: Tensor, memory: AttentionMemory) -> Attended:
        gate = self.gate(torch.cat([query, input.to(query.dtype)], -1)).sigmoid()
        sentinel = self.sentinel(gate * cell.tanh())  # (B, Q, D), as wide as a region
        own = self.score(torch.tanh(self.key(sentinel) + self.query(query)))
        scores = masked(self.scores(query, memory.keys), memory.mask)
        share = torch.cat([scores, own.float()], -1).softmax(-1)[..., -1]
        weights = scores.softmax(-1)
        seen = weights.to(memory.values.dtype) @ memory.values
        return Attended(
            torch.lerp(seen, sentinel.to(seen.dtype), share.unsqueeze(-1).to(seen.dtype)), weights, None, share
        )
