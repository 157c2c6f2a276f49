"""Decoder → captions."""

from src.generation.base import Hypotheses, Search
from src.generation.beam import BeamSearch
from src.generation.greedy import GreedySearch

__all__ = ["BeamSearch", "GreedySearch", "Hypotheses", "Search"]
