"""Vocabulary → word vectors."""

from src.embeddings.base import Embedding
from src.embeddings.cbow import CBOWEmbedding
from src.embeddings.frequency import FrequencyEmbedding
from src.embeddings.learned import LearnedEmbedding
from src.embeddings.pretrained import PretrainedEmbedding

__all__ = ["CBOWEmbedding", "Embedding", "FrequencyEmbedding", "LearnedEmbedding", "PretrainedEmbedding"]
