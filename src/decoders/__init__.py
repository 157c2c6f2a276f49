"""Features and tokens → logits."""

from src.decoders.base import Decoder, Output
from src.decoders.recurrent import GRUDecoder, LSTMDecoder
from src.decoders.recurrent_attn import AttentionGRUDecoder, AttentionLSTMDecoder, UpDownDecoder
from src.decoders.transformer import TransformerDecoder

__all__ = [
    "AttentionGRUDecoder",
    "AttentionLSTMDecoder",
    "Decoder",
    "GRUDecoder",
    "LSTMDecoder",
    "Output",
    "TransformerDecoder",
    "UpDownDecoder",
]
