"""Model and batch → loss."""

from src.objectives.adversarial import Adversarial
from src.objectives.adversarial_training import AdversarialTraining
from src.objectives.base import Loss, Objective
from src.objectives.contrastive import Contrastive
from src.objectives.cross_entropy import CrossEntropy
from src.objectives.distillation import Distillation
from src.objectives.self_critical import SelfCritical
from src.objectives.variational import Variational

__all__ = [
    "Adversarial",
    "AdversarialTraining",
    "Contrastive",
    "CrossEntropy",
    "Distillation",
    "Loss",
    "Objective",
    "SelfCritical",
    "Variational",
]
