"""One-hot words weighted by how often they are said, and projected."""

from typing import Literal

import torch
from torch import Tensor

from src.data.vocabulary import Vocabulary
from src.embeddings.base import Embedding

Weighting = Literal["count", "log", "inverse"]


class FrequencyEmbedding(Embedding):
    """e(w) = f(w) · W[w]: a one-hot word, weighted by its count in the training captions, times a matrix W (V, E) that
    learns. The weights f do not; their mean over the words is 1, and the specials' and control tokens' is 1. They are
    saved with the model, so that fine-tuning on other captions leaves those of known words as they were.

    Args:
        vocabulary: V words, with their counts.
        size: E.
        weighting: f before it is scaled: `count` is the count, `log` 1 + ln count, `inverse` ln(1 + tokens / count),
            the inverse frequency of retrieval (Spärck Jones, 1972, https://doi.org/10.1108/eb026526) by token, smoothed
            so that no word's is 0.
    """

    frequency: Tensor

    def __init__(self, vocabulary: Vocabulary, size: int = 512, weighting: Weighting = "log") -> None:
        super().__init__(vocabulary, size)
        rows = list(vocabulary.index.values())
        counts = torch.tensor(vocabulary.counts, dtype=torch.float64)
        words = counts[rows].clamp(min=1)  # a word of an older captioner may not have been said since
        if weighting == "log":
            weights = 1 + words.log()
        elif weighting == "inverse":
            weights = (1 + vocabulary.tokens / words).log()
        elif weighting == "count":
            weights = words
        else:
            raise ValueError(f"embedding.weighting={weighting}: one of count, log, inverse is wanted")
        frequency = torch.ones_like(counts)
        frequency[rows] = weights / weights.mean()
        self.register_buffer("frequency", frequency.float())

    @property
    def weight(self) -> Tensor:
        return self.table.weight * self.frequency.unsqueeze(-1)

    def lookup(self, ids: Tensor) -> Tensor:
        return self.table(ids) * self.frequency[ids].unsqueeze(-1)

    def tie(self) -> Tensor:
        raise ValueError(
            "decoder.tied=true: embedding=frequency weights its table, so the output layer cannot share it: choose "
            "embedding=learned, or set decoder.tied=false"
        )
