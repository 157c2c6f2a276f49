"""Cross-entropy of the next word, teacher-forced."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from src.encoders.base import Features
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


CHUNK = 1 << 22
"""Logits that are held at a time on a CPU, 16 MB of float32, which its caches hold; elsewhere 16 times as many."""


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a linear layer's output, summed, a few rows at a time: the logits of a whole batch never exist.
    Gradients are made on the way, while a chunk's logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, smoothing: float, learning: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        vocabulary = weight.size(0)
        narrow = weight.to(hidden.dtype)
        narrow_bias = bias.to(hidden.dtype)
        rows = max(1, (CHUNK if hidden.device.type == "cpu" else 16 * CHUNK) // vocabulary)
        total, plain, correct = (hidden.new_zeros((), dtype=torch.float32) for _ in range(3))
        wanted = learning and any(ctx.needs_input_grad)  # which says nothing of no_grad
        grad_hidden = torch.empty_like(hidden) if wanted else hidden
        grad_weight = torch.zeros_like(weight) if wanted else weight
        grad_bias = torch.zeros_like(bias) if wanted else bias
        for start in range(0, len(hidden), rows):
            x, target = hidden[start : start + rows], targets[start : start + rows].unsqueeze(1)
            log_probs = torch.addmm(narrow_bias, x, narrow.t()).log_softmax(1, dtype=torch.float32)
            correct += (log_probs.argmax(1, keepdim=True) == target).sum()
            nats = -log_probs.gather(1, target).sum()
            plain += nats
            total += (1 - smoothing) * nats
            if smoothing:
                total -= smoothing / vocabulary * log_probs.sum()
            if wanted:
                slope = log_probs.exp_()
                if smoothing:
                    slope -= smoothing / vocabulary
                slope.scatter_add_(1, target, slope.new_full((), smoothing - 1).expand_as(target))
                grad_bias += slope.sum(0)
                slope = slope.to(hidden.dtype)
                torch.mm(slope, narrow, out=grad_hidden[start : start + rows])
                grad_weight += slope.t() @ x
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.mark_non_differentiable(plain, correct)
        return total, plain, correct

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        return grad_hidden * grad, grad_weight * grad, grad_bias * grad, None, None, None


def linear_cross_entropy(
    hidden: Tensor, classifier: nn.Linear, targets: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden (N, E), a layer to V words and targets (N,) → three sums: the smoothed cross-entropy, with its gradient,
    the plain one in nats, and how many targets are the likeliest word."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden = hidden.to(torch.get_autocast_dtype(kind))
    with torch.autocast(kind, enabled=False):
        return _LinearCrossEntropy.apply(
            hidden, classifier.weight, classifier.bias, targets, smoothing, torch.is_grad_enabled()
        )


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
        seen = batch.images if isinstance(batch.images, Features) else model.encoder(batch.images)
        memory = model.memory(seen)
        real = batch.mask[..., 1:].clone()
        output = decoder(decoder.embed(batch.tokens[..., :-1]), memory, lengths=real.sum(-1))
        steps = torch.arange(1, batch.tokens.size(-1), device=real.device)
        real &= steps >= batch.prefix.unsqueeze(-1)  # control tokens are given, never predicted
        targets = batch.tokens[..., 1:][real]
        total, likelihood, correct = linear_cross_entropy(
            decoder.dropout(output.hidden[real]), decoder.classifier, targets, self.label_smoothing
        )
        count = real.sum()
        logs = {"cross_entropy": likelihood, "token_accuracy": correct}
        if self.attention_penalty and output.attention is not None:
            looked = (output.attention * real.unsqueeze(-1)).sum(2)  # (B, Q, R)
            words = real.sum(-1)  # (B, Q)
            regions = seen.mask.unsqueeze(1)  # (B, 1, R): padding is not to be looked at
            penalty = ((1 - looked).square() * regions).sum(-1) / regions.sum(-1)
            penalty = (penalty * words).sum()  # weighted by words: additive over ranks
            total = total + self.attention_penalty * penalty
            logs["attention_penalty"] = penalty.detach()
        return Loss(total, count, logs)
