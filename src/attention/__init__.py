"""Query and memory → context and weights."""

from src.attention.adaptive import AdaptiveAttention
from src.attention.hard import HardAttention
from src.attention.soft import (
    AdditiveAttention,
    Attended,
    Attention,
    AttentionMemory,
    DotAttention,
    MultiheadAttention,
)

__all__ = [
    "AdaptiveAttention",
    "AdditiveAttention",
    "Attended",
    "Attention",
    "AttentionMemory",
    "DotAttention",
    "HardAttention",
    "MultiheadAttention",
]
