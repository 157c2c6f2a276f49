"""Model and batch → loss."""

from src.objectives.base import Loss, Objective
from src.objectives.cross_entropy import CrossEntropy

__all__ = ["CrossEntropy", "Loss", "Objective"]
