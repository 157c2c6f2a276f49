"""A table of word vectors learned with the captioner."""

from torch import Tensor, nn

from src.ranges import at_least


class LearnedEmbedding(nn.Module):
    """One trainable vector a word.

    Args:
        vocabulary_size: V.
        size: E, the width of a word's vector.
    """

    def __init__(self, vocabulary_size: int, size: int = 512) -> None:
        super().__init__()
        at_least(1, "embedding", size=size)
        self.table = nn.Embedding(vocabulary_size, size)
        nn.init.normal_(self.table.weight, std=size**-0.5)  # unit-length rows: as good a start for tied output weights
        self.size = size

    @property
    def weight(self) -> Tensor:
        """The table (V, E), for tied output weights and relaxed words."""
        return self.table.weight

    def forward(self, words: Tensor) -> Tensor:
        """Ids (…) or probabilities over the vocabulary (…, V) → vectors (…, E)."""
        return words @ self.weight if words.is_floating_point() else self.table(words)
