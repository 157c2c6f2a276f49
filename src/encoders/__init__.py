"""Images → Features."""

from src.encoders.base import Encoder, Features
from src.encoders.cnn import CNN
from src.encoders.multiscale import MultiscaleEncoder
from src.encoders.precomputed import RegionEncoder, Regions
from src.encoders.pretrained import TimmBackbone, TorchvisionBackbone

__all__ = [
    "CNN",
    "Encoder",
    "Features",
    "MultiscaleEncoder",
    "RegionEncoder",
    "Regions",
    "TimmBackbone",
    "TorchvisionBackbone",
]
