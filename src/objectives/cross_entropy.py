"""Cross-entropy of the next word, teacher-forced."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from src.decoders.base import Decoder, Output
from src.objectives.base import Loss, Objective, over_ranks
from src.ranges import at_least, share

if TYPE_CHECKING:
    from src.data.module import Batch
    from src.model import CaptioningModel


CHUNK = 1 << 22
"""Logits that are held at a time on a CPU, 16 MB of float32, which its caches hold; elsewhere 16 times as many."""


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a linear layer's output, summed, a few rows at a time: the logits of a whole batch never exist.
    Gradients are made on the way, while a chunk's logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        smoothing: float,
        row_weights: Tensor | None,
        taught: Sequence[tuple[Tensor, Tensor, Tensor]],
        share: float,
        learning: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        vocabulary = weight.size(0)
        narrow = weight.to(hidden.dtype)
        narrow_bias = bias.to(hidden.dtype)
        rows = max(1, (CHUNK if hidden.device.type == "cpu" else 16 * CHUNK) // vocabulary)
        total, correct = (hidden.new_zeros((), dtype=torch.float32) for _ in range(2))
        plain = hidden.new_empty(len(hidden), dtype=torch.float32)
        wanted = learning and any(ctx.needs_input_grad)  # which says nothing of no_grad
        grad_hidden = torch.empty_like(hidden) if wanted else hidden
        grad_weight = torch.zeros_like(weight) if wanted else weight
        grad_bias = torch.zeros_like(bias) if wanted else bias
        for start in range(0, len(hidden), rows):
            x, target = hidden[start : start + rows], targets[start : start + rows].unsqueeze(1)
            log_probs = torch.addmm(narrow_bias, x, narrow.t()).log_softmax(1, dtype=torch.float32)
            correct += (log_probs.argmax(1, keepdim=True) == target).sum()
            nats = plain[start : start + rows] = -log_probs.gather(1, target).squeeze(1)
            chosen = row_weights[start : start + rows] if row_weights is not None else None
            each = (1 - smoothing) * nats
            if smoothing:
                each = each - smoothing / vocabulary * log_probs.sum(1)
            expected = None
            if taught:
                expected = _mean_probabilities(taught, slice(start, start + rows))
                each = (1 - share) * each - share * (expected * log_probs).sum(1)
            total += each.sum() if chosen is None else each @ chosen
            if wanted:
                slope = log_probs.exp_()
                own = 1 - share  # the captions' share of the target
                if smoothing:
                    slope -= own * smoothing / vocabulary
                slope.scatter_add_(1, target, slope.new_full((), own * (smoothing - 1)).expand_as(target))
                if expected is not None:
                    slope.sub_(expected, alpha=share)
                if chosen is not None:
                    slope *= chosen.unsqueeze(1)
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
        return grad_hidden * grad, grad_weight * grad, grad_bias * grad, None, None, None, None, None, None


def _mean_probabilities(taught: Sequence[tuple[Tensor, Tensor, Tensor]], rows: slice) -> Tensor:
    """(N', V) of some rows: the mean over those who say something, each by its hidden (N, E), weight and bias."""
    total: Tensor | None = None
    for h, w, b in taught:
        said = torch.addmm(b.to(h.dtype), h[rows], w.to(h.dtype).t()).softmax(1, dtype=torch.float32)
        total = said if total is None else total.add_(said)
    assert total is not None
    return total.div_(len(taught))


def linear_cross_entropy(
    hidden: Tensor,
    classifier: nn.Linear,
    targets: Tensor,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
    taught: Sequence[tuple[Tensor, Tensor, Tensor]] = (),
    share: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden (N, E), a layer to V words and targets (N,) → the sum of the smoothed cross-entropy, each row times its
    weight (N,), with its gradient; the plain one of each row (N,) in nats; and how many targets are the likeliest
    word. A share of the target is the mean of what others say, `taught`: each one's hidden (N, E'), weight (V, E') and
    bias (V,)."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden = hidden.to(torch.get_autocast_dtype(kind))
        taught = [(other.to(hidden.dtype), w, b) for other, w, b in taught]
    with torch.autocast(kind, enabled=False):
        return _LinearCrossEntropy.apply(
            hidden,
            classifier.weight,
            classifier.bias,
            targets,
            smoothing,
            weights,
            taught,
            share if taught else 0.0,
            torch.is_grad_enabled(),
        )


def spread(rows: Tensor, where: Tensor) -> Tensor:
    """Values (N,) of the places where a mask (…) is True → (…), zero elsewhere."""
    return rows.new_zeros(where.shape).masked_scatter(where, rows)


class CrossEntropy(Objective):
    """Cross-entropy over real tokens, with label smoothing (Szegedy et al., 2016, https://arxiv.org/abs/1512.00567),
    the doubly stochastic attention penalty of Show, Attend and Tell (Xu et al., 2015,
    https://arxiv.org/abs/1502.03044, section 4.2.1: over a caption, each region should be looked at about once in all),
    and scheduled sampling (Bengio et al., 2015, https://arxiv.org/abs/1506.03099).

    Where attention draws its looks (`attention=hard`), they learn by REINFORCE (section 4.1 of Xu et al.): a look's
    reward is the log-probability of the words from its own on, less a moving average of it, and its entropy is
    encouraged.

    Args:
        label_smoothing: share of probability spread over the vocabulary, in [0, 1).
        attention_penalty: weight of mean over regions of (1 − Σ_t α_t)²; 0 turns it off, and it is off for decoders
            that do not attend.
        scheduled_sampling: probability, at the end of training, that a word that is read is one that the model drew
            itself instead of the caption's, in [0, 1); it rises linearly from 0.
        look_weight: of the REINFORCE part of drawn looks.
        look_entropy: weight of the looks' entropy in nats.
        look_baseline: what stays of the moving average at a step, in [0, 1).
    """

    taught_share: float = 0.0
    """Of the target, what others say."""
    baseline: Tensor
    """(2,): moving sums of a word's log-probability in nats, and of their weights; their quotient is the average."""

    def __init__(
        self,
        label_smoothing: float = 0.1,
        attention_penalty: float = 0.0,
        scheduled_sampling: float = 0.0,
        look_weight: float = 1.0,
        look_entropy: float = 0.01,
        look_baseline: float = 0.9,
    ) -> None:
        super().__init__()
        share(
            "objective",
            label_smoothing=label_smoothing,
            scheduled_sampling=scheduled_sampling,
            look_baseline=look_baseline,
        )
        at_least(
            0, "objective", attention_penalty=attention_penalty, look_weight=look_weight, look_entropy=look_entropy
        )
        self.label_smoothing = label_smoothing
        self.attention_penalty = attention_penalty
        self.scheduled_sampling, self.scheduled = scheduled_sampling, scheduled_sampling > 0
        self.look_weight, self.look_entropy, self.look_baseline = look_weight, look_entropy, look_baseline
        self.register_buffer("baseline", torch.zeros(2))

    def forward(self, model: "CaptioningModel", batch: "Batch") -> Loss:
        decoder = model.decoder
        seen = model.features(batch.images)
        memory = decoder.prepare(seen)
        real = batch.mask[..., 1:].clone()
        lengths = real.sum(-1)
        sampled = self.progress * self.scheduled_sampling if self.training else 0.0
        if sampled:
            output = read_own_words(decoder, memory, batch.tokens[..., :-1], batch.prefix, sampled)
        else:
            output = decoder(decoder.embed(batch.tokens[..., :-1]), memory, lengths=lengths)
        steps = torch.arange(1, batch.tokens.size(-1), device=real.device)
        real &= steps >= batch.prefix.unsqueeze(-1)  # control tokens are given, never predicted
        targets = batch.tokens[..., 1:][real]
        total, nats, correct = linear_cross_entropy(
            decoder.dropout(output.hidden[real]),
            decoder.classifier,
            targets,
            self.label_smoothing,
            taught=self.taught(batch, real),
            share=self.taught_share,
        )
        count = real.sum()
        logs = {"cross_entropy": nats.sum(), "token_accuracy": correct}
        if self.attention_penalty and output.attention is not None:
            looked = (output.attention * real.unsqueeze(-1)).sum(2)  # (B, Q, R)
            words = real.sum(-1)  # (B, Q)
            regions = seen.mask.unsqueeze(1)  # (B, 1, R): padding is not to be looked at
            penalty = ((1 - looked).square() * regions).sum(-1) / regions.sum(-1)
            penalty = (penalty * words).sum()  # weighted by words: additive over ranks
            total = total + self.attention_penalty * penalty
            logs["attention_penalty"] = penalty.detach()
        if output.attention is not None and output.aux and "log_prob" in output.aux:
            looked = batch.mask[..., 1:]  # while given words were read, too
            log_prob, nats = output.aux["log_prob"], spread(nats, real)
            total = total + self._looks(log_prob, output.attention, nats, looked, real, logs)
        return Loss(total, count, logs)

    def taught(self, batch: "Batch", real: Tensor) -> Sequence[tuple[Tensor, Tensor, Tensor]]:
        """What others say in the places (B, Q, T) of real words, as `linear_cross_entropy` takes it: nobody, here."""
        return ()

    def _looks(
        self, log_prob: Tensor, weights: Tensor, nats: Tensor, looked: Tensor, said: Tensor, logs: dict[str, Tensor]
    ) -> Tensor:
        """What looks of log-probability (B, Q, T), drawn from weights (B, Q, T, R) where `looked`, learn from words of
        `nats`, where they were `said`."""
        total, count = over_ranks(-nats.sum(), said.sum())
        mean = total / count.clamp(min=1)
        baseline = torch.where(self.baseline[1] > 0, self.baseline[0] / self.baseline[1], mean)
        reward = (-nats - baseline * said).flip(-1).cumsum(-1).flip(-1)  # of the words that this look can have changed
        learned = -(log_prob * reward * looked).sum()
        entropy = -(weights * weights.clamp(min=torch.finfo(weights.dtype).tiny).log()).sum(-1)
        entropy = (entropy * looked).sum()
        logs |= {"look_entropy": entropy.detach()}
        self.baseline.lerp_(torch.stack([mean, torch.ones_like(mean)]), 1 - self.look_baseline)
        return self.look_weight * learned - self.look_entropy * entropy


def read_own_words(decoder: Decoder, memory: Any, tokens: Tensor, prefix: Tensor, share: float) -> Output:
    """Captions word by word, where a word that is read is, with a probability, one that the decoder drew in its place.

    Args:
        decoder, memory: of B images.
        tokens: (B, Q, T) from BOS on.
        prefix: (B, Q) how many first tokens are always read as they are.
        share: that probability.
    """
    state = decoder.start(memory)
    word = tokens[..., 0]
    steps: list[Output] = []
    for t in range(tokens.size(-1)):
        if t:
            with torch.no_grad():
                own = decoder.logits(steps[-1].hidden).float().softmax(-1).flatten(0, 1)
                drawn = torch.multinomial(own, 1).view_as(word)
            instead = (torch.rand(word.shape, device=word.device) < share) & (t >= prefix)
            word = torch.where(instead, drawn, tokens[..., t])
        output, state = decoder.step(decoder.embed(word), state, memory)
        steps.append(output)

    def together(name: str) -> Any:
        parts = [getattr(step, name) for step in steps]
        return None if parts[0] is None else torch.stack(parts, 2)

    aux = {name: torch.stack([(step.aux or {})[name] for step in steps], 2) for name in steps[0].aux or {}}
    return Output(together("hidden"), together("attention"), aux or None)
