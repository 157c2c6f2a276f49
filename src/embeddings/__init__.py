"""Vocabulary → embedding table."""

from src.embeddings.learned import LearnedEmbedding

__all__ = ["LearnedEmbedding"]
