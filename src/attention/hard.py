"""Hard attention: one region at a time."""

import torch
from torch import Tensor

from src.attention.soft import AdditiveAttention, Attended, AttentionMemory, masked


class HardAttention(AdditiveAttention):
    """Stochastic "hard" attention of Show, Attend and Tell (Xu et al., 2015, section 4.1,
    https://arxiv.org/abs/1502.03044): while training, the region is drawn from the weights of additive attention, and
    the weights learn by REINFORCE from the log-probability of the draw (`CrossEntropy` has that part, and its moving
    baseline). In eval mode it is the likeliest region.

    Args:
        query_width, memory_width, width, input_width: see `Attention`.
        expected: share of the looks in training that take the weights' mean instead of a draw, in [0, 1]: lowers the
            variance (0.5 in the paper).
    """

    def __init__(
        self,
        query_width: int,
        memory_width: int,
        width: int = 512,
        input_width: int | None = None,
        expected: float = 0.5,
    ) -> None:
        super().__init__(query_width, memory_width, width, input_width)
        if not 0 <= expected <= 1:
            raise ValueError(f"attention.expected={expected}: a share in [0, 1]")
        self.expected = expected

    def forward(self, query: Tensor, input: Tensor, cell: Tensor, memory: AttentionMemory) -> Attended:
        log_weights = masked(self.scores(query, memory.keys), memory.mask).log_softmax(-1)
        weights = log_weights.exp()
        if not self.training:
            look = torch.zeros_like(weights).scatter_(-1, weights.argmax(-1, keepdim=True), 1.0)
            return Attended(look.to(memory.values.dtype) @ memory.values, weights)
        region = torch.multinomial(weights.detach().flatten(0, 1), 1).view(*weights.shape[:2], 1)
        drawn = torch.rand(region.shape, device=region.device) >= self.expected
        look = torch.where(drawn, torch.zeros_like(weights).scatter_(-1, region, 1.0), weights)
        log_prob = log_weights.gather(-1, region) * drawn
        return Attended(look.to(memory.values.dtype) @ memory.values, weights, log_prob.squeeze(-1))
