"""The evidence lower bound of a captioner with a latent variable."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from src.attention import HardAttention
from src.data.vocabulary import UNK
from src.decoders.latent import Gaussian, GaussianLatent, GaussianNetwork
from src.objectives.base import Loss, Objective
from src.objectives.cross_entropy import linear_cross_entropy
from src.ranges import at_least, share

if TYPE_CHECKING:
    from src.data.module import Batch, CaptionData
    from src.model import CaptioningModel


class Posterior(nn.Module):
    """What latent a caption of an image speaks of: a two-way GRU over its words, and the pooled image.

    Args:
        word_width: E.
        memory_width: D.
        size: Z.
        hidden: width of each way of the GRU.
    """

    def __init__(self, word_width: int, memory_width: int, size: int, hidden: int = 256) -> None:
        super().__init__()
        self.reader = nn.GRU(word_width, hidden, batch_first=True, bidirectional=True)
        self.network = GaussianNetwork(2 * hidden + memory_width, hidden, size)

    def forward(self, words: Tensor, lengths: Tensor, pooled: Tensor) -> Gaussian:
        """Embedded words (B, Q, T, E), of which the first `lengths` (B, Q) are real, and images (B, D) → (B, Q, Z).
        Captions of no words get what the empty reader says."""
        flat, sizes = words.flatten(0, 1), lengths.flatten()
        packed = pack_padded_sequence(flat, sizes.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.reader(packed)
        read = last.transpose(0, 1).flatten(1).unflatten(0, words.shape[:2])
        return self.network(torch.cat([read, pooled.unsqueeze(1).expand(-1, words.size(1), -1).to(read.dtype)], -1))


class Variational(Objective):
    """The conditional variational autoencoder: cross-entropy of the words under a latent drawn from the posterior
    q(z | image, caption), plus KL(q ‖ p) to the prior p(z | image) that the decoder has learned (`latent=gaussian`):
    Kingma and Welling, 2014 (https://arxiv.org/abs/1312.6114); Sohn et al., 2015 (https://papers.nips.cc/paper/5775).

    Against a latent that says nothing: the KL's weight rises, words that are read are dropped (both Bowman et al.,
    2016, https://arxiv.org/abs/1511.06349), and dimensions may cost nothing up to some nats (free bits: Kingma et al.,
    2016, https://arxiv.org/abs/1606.04934; here of each caption, not of a batch's mean). In eval mode the latent is the
    posterior's mean and the KL counts in full.

    Args:
        kl_weight: β of the KL at the end.
        annealing: share of the run over which it rises from 0, in [0, 1].
        free_bits: nats that each dimension may hold at no cost.
        word_dropout: share of the words read that become `<unk>` in training.
        label_smoothing: as in cross_entropy.
        hidden: width of the posterior.
    """

    def __init__(
        self,
        kl_weight: float = 1.0,
        annealing: float = 0.3,
        free_bits: float = 0.1,
        word_dropout: float = 0.2,
        label_smoothing: float = 0.0,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        at_least(0, "objective", kl_weight=kl_weight, free_bits=free_bits, annealing=annealing)
        at_least(1, "objective", hidden=hidden)
        share("objective", word_dropout=word_dropout, label_smoothing=label_smoothing)
        if annealing > 1:
            raise ValueError(f"objective.annealing={annealing}: a share of the run in [0, 1]")
        self.kl_weight, self.annealing, self.free_bits = kl_weight, annealing, free_bits
        self.word_dropout, self.label_smoothing, self.hidden = word_dropout, label_smoothing, hidden
        self.scheduled = annealing > 0
        self.posterior: Posterior | None = None

    def check(self, model: "CaptioningModel") -> None:
        if not isinstance(model.decoder, GaussianLatent):
            raise ValueError("objective=variational trains a latent variable, and there is none: add latent=gaussian")
        if any(isinstance(module, HardAttention) for module in model.decoder.modules()):
            raise ValueError("objective=variational does not teach drawn looks: choose another attention than hard")

    def begin(self, model: "CaptioningModel", data: "CaptionData | None" = None) -> None:
        self.check(model)
        decoder = model.decoder
        assert isinstance(decoder, GaussianLatent)
        self.posterior = Posterior(decoder.embedding.size, model.encoder.width, decoder.size, self.hidden)

    @property
    def beta(self) -> float:
        """The KL's weight now."""
        return self.kl_weight * (min(1.0, self.progress / self.annealing) if self.annealing else 1.0)

    def forward(self, model: "CaptioningModel", batch: "Batch") -> Loss:
        assert self.posterior is not None, "begin(model) first"
        decoder = model.decoder
        features = model.features(batch.images)
        memory = decoder.prepare(features)
        steps = torch.arange(1, batch.tokens.size(-1), device=batch.tokens.device)
        real = batch.mask[..., 1:] & (steps >= batch.prefix.unsqueeze(-1))
        lengths = batch.mask[..., 1:].sum(-1)
        # The posterior reads the whole caption behind BOS; its last token is EOS.
        posterior = self.posterior(decoder.embed(batch.tokens[..., 1:]), lengths, features.pooled)
        prior = Gaussian(*(x.unsqueeze(1) for x in memory.prior))
        latent = posterior.sample() if self.training else posterior.mean
        given = batch.tokens[..., :-1]
        if self.training and self.word_dropout:
            dropped = torch.rand(given.shape, device=given.device) < self.word_dropout
            dropped[..., 0] = False
            dropped[..., 1:] &= real[..., :-1]
            given = given.masked_fill(dropped, UNK)
        hidden = decoder(decoder.embed(given), memory, latent, lengths).hidden
        total, nats, correct = linear_cross_entropy(
            decoder.dropout(hidden[real]), decoder.classifier, batch.tokens[..., 1:][real], self.label_smoothing
        )
        divergence = posterior.divergence(prior) * (lengths > 0).unsqueeze(-1)  # (B, Q, Z), of real captions
        cost, beta = divergence, 1.0
        if self.training:
            cost, beta = divergence.clamp(min=self.free_bits) * (lengths > 0).unsqueeze(-1), self.beta
        logs = {"cross_entropy": nats.sum(), "token_accuracy": correct, "kl": divergence.detach().sum()}
        return Loss(total + beta * cost.sum(), real.sum(), logs)
