"""Model and batch → loss."""

from src.objectives.cross_entropy import CrossEntropy, Loss

__all__ = ["CrossEntropy", "Loss"]
