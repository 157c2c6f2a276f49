"""Cross-entropy of the next word, teacher-forced."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.ranges import at_least, share

if TYPE_CHECKING:
    from src.data.module import Batch
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


class CrossEntropy(nn.Module):
    """Cross-entropy over real tokens, with label smoothing (Szegedy et al., 2016, https://arxiv.org/abs/1512.00567) and
    the doubly stochastic attention penalty of Show, Attend and Tell (https://arxiv.org/abs/1502.03044, section 4.2.1):
    over a caption, each region should be looked at about once in all.

    Args:
        label_smoothing: share of probability spread over the vocabulary, in [0, 1).
        attention_penalty: weight of mean over regions of (1 − Σ_t α_t)²; 0 turns it off, and it is off for decoders
            that do not attend.
    """

    manual = False

    def __init__(self, label_smoothing: float = 0.1, attention_penalty: float = 0.0) -> None:
        super().__init__()
        share("objective", label_smoothing=label_smoothing)
        at_least(0, "objective", attention_penalty=attention_penalty)
        self.label_smoothing = label_smoothing
        self.attention_penalty = attention_penalty

    def forward(self, model: "CaptioningModel", batch: "Batch") -> Loss:
        decoder = model.decoder
        memory = model.memory(batch.images)
        output = decoder(decoder.embed(batch.tokens[..., :-1]), memory)
        real = batch.mask[..., 1:].clone()
        steps = torch.arange(1, batch.tokens.size(-1), device=real.device)
        real &= steps >= batch.prefix.unsqueeze(-1)  # control tokens are given, never predicted
        targets = batch.tokens[..., 1:][real]
        logits = decoder.logits(output.hidden[real]).float()
        total = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=self.label_smoothing)
        count = real.sum()
        with torch.no_grad():
            likelihood = F.cross_entropy(logits, targets, reduction="sum") if self.label_smoothing else total
            logs = {
                "cross_entropy": likelihood.detach(),
                "token_accuracy": (logits.argmax(-1) == targets).sum(),
            }
        if self.attention_penalty and output.attention is not None:
            looked = (output.attention * real.unsqueeze(-1)).sum(2)  # (B, Q, R)
            words = real.sum(-1)  # (B, Q)
            penalty = ((1 - looked).square().mean(-1) * words).sum()  # weighted by words: additive over ranks
            total = total + self.attention_penalty * penalty
            logs["attention_penalty"] = penalty.detach()
        return Loss(total, count, logs)
