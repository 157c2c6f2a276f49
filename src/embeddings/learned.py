"""A table of word vectors learned with the captioner."""

from src.data.vocabulary import Vocabulary
from src.embeddings.base import Embedding


class LearnedEmbedding(Embedding):
    """One trainable vector a word, from a random start.

    Args:
        vocabulary: V words.
        size: E, the width of a word's vector.
    """

    def __init__(self, vocabulary: Vocabulary, size: int = 512) -> None:
        super().__init__(vocabulary, size)
