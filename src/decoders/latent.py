"""A decoder that follows a latent variable: what a caption says, drawn before its first word."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from src.decoders.base import Decoder, Output
from src.embeddings.base import Embedding
from src.encoders.base import Features
from src.ranges import at_least


class Gaussian(NamedTuple):
    """Independent normal distributions."""

    mean: Tensor
    log_std: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.log_std.exp() * noise

    def divergence(self, other: "Gaussian") -> Tensor:
        """KL(self ‖ other) of each dimension, in nats: log(σ₂/σ₁) + (σ₁² + (μ₁ − μ₂)²) / 2σ₂² − ½."""
        variance = (2 * other.log_std).exp()
        gap = (self.mean - other.mean).square()
        return other.log_std - self.log_std + ((2 * self.log_std).exp() + gap) / (2 * variance) - 0.5


class GaussianNetwork(nn.Sequential):
    """A hidden layer and two outputs: inputs (…, D) → a Gaussian of Z dimensions."""

    def __init__(self, inputs: int, hidden: int, size: int) -> None:
        super().__init__(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, 2 * size))

    def forward(self, x: Tensor) -> Gaussian:
        mean, log_std = super().forward(x).float().chunk(2, dim=-1)
        return Gaussian(mean, log_std.clamp(-5, 2))


class LatentMemory(NamedTuple):
    prior: Gaussian
    """Of (B, Z): what captions of the image may say."""
    inner: Any


class LatentState(NamedTuple):
    latent: Tensor
    """(B, Q, Z)."""
    inner: Any


class GaussianLatent(Decoder):
    """Gives any decoder a latent variable, whose prior is learned from the image: the generative part of a conditional
    variational autoencoder (Sohn et al., 2015, https://papers.nips.cc/paper/5775; for captions Wang et al., 2017,
    https://arxiv.org/abs/1711.07068). Projected, it is added to every word that is read. A search that draws draws one
    for each caption; any other takes the prior's mean. `objective=variational` trains it.

    Args:
        decoder: the one that speaks.
        memory_width: D of the encoder's features.
        size: Z.
        hidden: width of the prior's hidden layer.
    """

    def __init__(self, decoder: Decoder, memory_width: int, size: int = 32, hidden: int = 256) -> None:
        nn.Module.__init__(self)
        at_least(1, "latent", size=size, hidden=hidden)
        self.inner = decoder
        self.attends, self.controls, self.size = decoder.attends, decoder.controls, size
        self.prior = GaussianNetwork(memory_width, hidden, size)
        self.project = nn.Linear(size, decoder.embedding.size, bias=False)

    # What objectives and searches use of a decoder is the inner one's.
    @property
    def embedding(self) -> Embedding:  # type: ignore[override]
        return self.inner.embedding

    @property
    def classifier(self) -> nn.Linear:  # type: ignore[override]
        return self.inner.classifier

    @property
    def dropout(self) -> nn.Module:  # type: ignore[override]
        return self.inner.dropout

    def to_compile(self) -> list[nn.Module]:
        return self.inner.to_compile()

    def prepare(self, features: Features) -> LatentMemory:
        return LatentMemory(self.prior(features.pooled), self.inner.prepare(features))

    def start(
        self,
        memory: LatentMemory,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        captions: int = 1,
    ) -> LatentState:
        if condition is None:
            prior = Gaussian(*(x.unsqueeze(1).expand(-1, captions, -1) for x in memory.prior))
            condition = prior.mean[:, :1] if generator is None else prior.sample(generator)
        return LatentState(condition, self.inner.start(memory.inner))

    def step(self, embedded: Tensor, state: LatentState, memory: LatentMemory) -> tuple[Output, LatentState]:
        output, after = self.inner.step(embedded + self.project(state.latent), state.inner, memory.inner)
        return output, LatentState(state.latent.expand(-1, embedded.size(1), -1), after)

    def forward(
        self, embedded: Tensor, memory: LatentMemory, condition: Tensor | None = None, lengths: Tensor | None = None
    ) -> Output:
        condition = memory.prior.mean.unsqueeze(1) if condition is None else condition
        return self.inner(embedded + self.project(condition).unsqueeze(2), memory.inner, lengths=lengths)
