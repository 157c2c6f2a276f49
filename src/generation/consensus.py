"""Beam search's captions, chosen among by what they share with others that the captioner might have said."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from src.data.vocabulary import PAD
from src.decoders.base import Decoder
from src.generation.base import Hypotheses
from src.generation.beam import BeamSearch
from src.generation.stepwise import SampleSearch
from src.metrics.cider import CiderD, DocumentFrequencies
from src.ranges import at_least

if TYPE_CHECKING:
    from src.data.tokenizer import Tokenizer
    from src.data.vocabulary import Vocabulary


class ConsensusSearch(BeamSearch):
    """Beam search, whose K captions are ranked anew: minimum Bayes risk decoding (Kumar and Byrne, 2004,
    https://aclanthology.org/N04-1022). Captions are drawn from the captioner, and stand for what people would say; the
    best of the beam is the one that is most like them on average. Likeness is that of CIDEr-D, with all n-grams of one
    weight: a captioner knows no document frequencies. (Devlin et al., 2015, https://arxiv.org/abs/1505.04467, choose so
    among the captions of similar pictures.) The same pictures in the same batch give the same captions.

    Args:
        beam_size: K; what it chooses from.
        samples: captions drawn an image, which cost more than the beams.
        temperature: of the draws.
        seed: of the draws.
        length_penalty, **limits: see `BeamSearch`.
    """

    def __init__(
        self,
        beam_size: int = 5,
        samples: int = 40,
        temperature: float = 0.8,
        seed: int = 0,
        length_penalty: float = 1.0,
        **limits: Any,
    ) -> None:
        super().__init__(beam_size, length_penalty, **limits)
        at_least(1, "generation", samples=samples)
        self.drawing = SampleSearch(samples, temperature, seed=seed, **limits)
        self.likeness = CiderD({}, DocumentFrequencies({}, 3))  # of more than one image, or every n-gram weighs nothing

    def bind(self, vocabulary: "Vocabulary", tokenizer: "Tokenizer") -> None:
        super().bind(vocabulary, tokenizer)
        self.drawing.bind(vocabulary, tokenizer)

    def __call__(
        self, decoder: Decoder, memory: Any, *, prefix: Tensor | None = None, attention: bool = False
    ) -> Hypotheses:
        """As `Search`; `scores` are the mean CIDEr-D against the draws, in [0, 10]."""
        found = super().__call__(decoder, memory, prefix=prefix, attention=attention)
        self.drawing.max_length = self.max_length
        drawn = self.drawing(decoder, memory, prefix=prefix)
        pairs = zip(_texts(drawn.tokens), _texts(found.tokens), strict=True)
        scores = found.scores.new_tensor([self.likeness.score_samples(others, own) for others, own in pairs])
        return found.ranked(scores.masked_fill(found.scores.isneginf(), -torch.inf))


def _texts(tokens: Tensor) -> list[list[str]]:
    """Captions (B, K, T) as space-joined ids, the end token a word."""
    return [[" ".join(str(i) for i in row if i != PAD) for row in rows] for rows in tokens.tolist()]
