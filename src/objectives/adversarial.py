"""A caption GAN: a discriminator judges picture and caption together, the captioner learns to pass."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from src.data.vocabulary import BOS, EOS, PAD
from src.decoders.base import Decoder, first_tensor, map_tensors
from src.generation import SampleSearch
from src.objectives.base import Loss, Objective
from src.objectives.cross_entropy import CrossEntropy
from src.objectives.self_critical import learns_what_it_draws, policy_gradient, undropped
from src.ranges import at_least

if TYPE_CHECKING:
    from src.data.module import Batch, CaptionData
    from src.model import CaptioningModel


class Discriminator(nn.Module):
    """Whether a caption is a person's and of this image: a GRU over its words, the pooled image, and their product, as
    in Dai et al., 2017 (https://arxiv.org/abs/1703.06029).

    Args:
        words: V.
        memory_width: D of the image.
        hidden: width of words, GRU and image.
    """

    def __init__(self, words: int, memory_width: int, hidden: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, hidden)
        self.reader = nn.GRU(hidden, hidden, batch_first=True)
        self.image = nn.Linear(memory_width, hidden)
        self.judge = nn.Linear(3 * hidden, 1)

    def forward(self, words: Tensor, lengths: Tensor, pooled: Tensor) -> Tensor:
        """Captions (N, T) as ids or (N, T, V) as probabilities, of which the first `lengths` (N,) words are real, and
        images (N, D) → logits (N,): high for a person's caption of this image."""
        embedded = words @ self.embedding.weight if words.is_floating_point() else self.embedding(words)
        packed = pack_padded_sequence(embedded, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.reader(packed)
        read, seen = last[-1], self.image(pooled).tanh()
        return self.judge(torch.cat([read, seen, read * seen], -1)).squeeze(-1)


def relaxed_captions(decoder: Decoder, memory: Any, longest: int, temperature: float) -> tuple[Tensor, Tensor]:
    """One caption an image, whose every word is drawn by straight-through Gumbel-softmax (Jang et al., 2017,
    https://arxiv.org/abs/1611.01144): one-hot going on, with the gradient of probabilities. Returns them (B, T, V) and
    their lengths (B,) with EOS."""
    state = decoder.start(memory)
    batch, device = len(first_tensor(state)), first_tensor(state).device
    word = torch.full((batch, 1), BOS, device=device)
    never = torch.tensor([PAD, BOS, *decoder.controls], device=device)
    going = torch.ones(batch, dtype=torch.bool, device=device)
    words, lengths = [], torch.zeros(batch, dtype=torch.long, device=device)
    for _ in range(longest):
        output, state = decoder.step(decoder.embed(word), state, memory)
        logits = decoder.logits(output.hidden).float()
        word = F.gumbel_softmax(logits.index_fill(-1, never, -1e4), temperature, hard=True)
        words.append(word.squeeze(1))
        lengths = lengths + going
        going = going & (word[:, 0].argmax(-1) != EOS)
        if not going.any():
            break
    return torch.stack(words, 1), lengths


class Adversarial(Objective):
    """A conditional caption GAN (Dai et al., 2017, https://arxiv.org/abs/1703.06029) after pre-training. The
    discriminator learns to tell a person's caption of an image from one of another image and from the captioner's; the
    captioner learns to be taken for a person, through straight-through Gumbel-softmax (`gumbel`; Shetty et al., 2017,
    https://arxiv.org/abs/1703.10476) or by policy gradient (`policy`), besides cross-entropy. Both learn at once, each
    from a loss whose gradient stops at the other. All sums go over captions weighted by their words.

    In eval mode it is the cross-entropy, without label smoothing.

    Args:
        estimator: `gumbel` or `policy`.
        weight: of what the captioner learns from the discriminator.
        likelihood: weight of cross-entropy besides, which keeps sentences whole.
        temperature: of the Gumbel-softmax, above 0.
        samples: captions drawn an image by `policy`.
        max_length: most words of a caption drawn.
        hidden: width of the discriminator.
        from_random: allow a start from random weights, which no discriminator takes for a person.
    """

    follows = ()

    def __init__(
        self,
        estimator: str = "gumbel",
        weight: float = 0.3,
        likelihood: float = 1.0,
        temperature: float = 0.5,
        samples: int = 3,
        max_length: int = 20,
        hidden: int = 256,
        from_random: bool = False,
    ) -> None:
        super().__init__()
        if estimator not in ("gumbel", "policy"):
            raise ValueError(f"objective.estimator={estimator}: choose gumbel or policy")
        at_least(1, "objective", samples=samples, max_length=max_length, hidden=hidden)
        at_least(0, "objective", weight=weight, likelihood=likelihood)
        if not temperature > 0:
            raise ValueError(f"objective.temperature={temperature}: above 0")
        if estimator == "policy" and samples < 2:
            raise ValueError("objective.samples=1: each caption is held against the image's others; give 2 or more")
        self.estimator, self.weight, self.temperature = estimator, weight, temperature
        self.samples, self.max_length, self.hidden = samples, max_length, hidden
        self.needs_start = not from_random
        self.likelihood_weight, self.likelihood = likelihood, CrossEntropy(label_smoothing=0.0)
        self.sampling = SampleSearch(samples, max_length=max_length, min_length=0, allow_unknown=True)
        self.discriminator: Discriminator | None = None

    def check(self, model: "CaptioningModel") -> None:
        learns_what_it_draws(model.decoder, "adversarial")

    def begin(self, model: "CaptioningModel", data: "CaptionData | None" = None) -> None:
        words = model.decoder.embedding.weight.size(0)
        self.discriminator = Discriminator(words, model.encoder.width, self.hidden)

    def forward(self, model: "CaptioningModel", batch: "Batch") -> Loss:
        if not self.training:
            return self.likelihood(model, batch)
        assert self.discriminator is not None, "begin(model) first"
        judge, decoder = self.discriminator, model.decoder
        features = model.features(batch.images)
        plain = self.likelihood(model, batch._replace(images=features))
        memory, pooled = decoder.prepare(features), features.pooled.detach()

        # What the captioner learns: the discriminator's weights are constants in it.
        with undropped(decoder):
            if self.estimator == "gumbel":
                words, lengths = relaxed_captions(decoder, memory, self.max_length, self.temperature)
                judge.requires_grad_(False)  # a constant, here
                taken = judge(words, lengths, pooled)
                judge.requires_grad_(True)
                learned = (F.softplus(-taken) * lengths).sum()  # − log P(a person's)
                false = words.detach().argmax(-1)
            else:
                self.sampling.seed = int(torch.randint(2**31, ()))
                with torch.no_grad():
                    drawn = self.sampling(decoder, map_tensors(Tensor.detach, memory)).tokens
                    false, lengths = drawn.flatten(0, 1), (drawn != PAD).sum(-1).flatten()
                    pictures = pooled.repeat_interleave(self.samples, 0)
                    reward = judge(false, lengths, pictures).float().sigmoid().view(-1, self.samples)
                    others = (reward.sum(1, keepdim=True) - reward) / (self.samples - 1)
                torch.clear_autocast_cache()  # casts made without gradients: torch before 2.10 would use them again
                learned, _ = policy_gradient(decoder, memory, drawn, reward - others)

        # What the discriminator learns, from one caption an image of each kind. Which one is drawn: an image's captions
        # come by length, and what was drawn of it by likelihood.
        there = batch.mask.any(-1)
        mine = torch.multinomial(there.float(), 1).view(-1, 1, 1).expand(-1, 1, batch.tokens.size(-1))
        true, sizes = batch.tokens.gather(1, mine)[:, 0, 1:], batch.mask.gather(1, mine)[:, 0, 1:].sum(-1)
        each = len(false) // len(true)
        one = torch.arange(len(true), device=true.device) * each + torch.randint(each, (len(true),), device=true.device)
        false, lengths = false[one], lengths[one]
        apart = batch.index != batch.index.roll(1)  # of other images
        right, wrong, made = (
            judge(true, sizes, pooled),
            judge(true, sizes, pooled.roll(1, 0)),
            judge(false, lengths, pooled),
        )
        told = ((F.softplus(-right) + 0.5 * apart * F.softplus(wrong)) * sizes).sum()
        told = told + (0.5 * F.softplus(made) * lengths).sum()
        count = plain.count
        logs = {
            **plain.logs,
            "discriminator": told.detach(),
            "taken_for_true": (made.sigmoid().mean() * count).detach(),
            "true_for_true": (right.sigmoid().mean() * count).detach(),
        }
        return Loss(self.likelihood_weight * plain.total + self.weight * learned + told, count, logs)
