"""Decoder → captions."""

from src.generation.base import Hypotheses, Search
from src.generation.beam import BeamSearch, ConstrainedBeamSearch, DiverseBeamSearch
from src.generation.stepwise import GreedySearch, SampleSearch

__all__ = [
    "BeamSearch",
    "ConstrainedBeamSearch",
    "DiverseBeamSearch",
    "GreedySearch",
    "Hypotheses",
    "SampleSearch",
    "Search",
]
