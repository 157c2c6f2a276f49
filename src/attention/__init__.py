"""Query and memory → context and weights."""

from src.attention.soft import AdditiveAttention, Attended, Attention, AttentionMemory, DotAttention

__all__ = ["AdditiveAttention", "Attended", "Attention", "AttentionMemory", "DotAttention"]
