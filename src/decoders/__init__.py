"""Features and tokens → logits."""

from src.decoders.base import Decoder, Output
from src.decoders.ensemble import EnsembleDecoder
from src.decoders.latent import GaussianLatent
from src.decoders.recurrent import GRUDecoder, LSTMDecoder
from src.decoders.recurrent_attn import AttentionGRUDecoder, AttentionLSTMDecoder, UpDownDecoder
from src.decoders.transformer import TransformerDecoder

__all__ = [
    "AttentionGRUDecoder",
    "AttentionLSTMDecoder",
    "Decoder",
    "EnsembleDecoder",
    "GRUDecoder",
    "GaussianLatent",
    "LSTMDecoder",
    "Output",
    "TransformerDecoder",
    "UpDownDecoder",
]
