"""Features and tokens → logits."""

from src.decoders.base import Decoder, Output
from src.decoders.lstm import LSTMDecoder
from src.decoders.lstm_attn import AttentionLSTMDecoder

__all__ = ["AttentionLSTMDecoder", "Decoder", "LSTMDecoder", "Output"]
