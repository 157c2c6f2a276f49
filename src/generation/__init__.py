"""Decoder → captions."""

from src.generation.base import Hypotheses, Search
from src.generation.beam import BeamSearch, ConstrainedBeamSearch, DiverseBeamSearch
from src.generation.consensus import ConsensusSearch
from src.generation.stepwise import GreedySearch, SampleSearch

__all__ = [
    "BeamSearch",
    "ConsensusSearch",
    "ConstrainedBeamSearch",
    "DiverseBeamSearch",
    "GreedySearch",
    "Hypotheses",
    "SampleSearch",
    "Search",
]
