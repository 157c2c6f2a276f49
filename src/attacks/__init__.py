"""Small changes of a picture that change its caption much."""

from src.attacks.budget import Budget, distortion
from src.attacks.goals import Aim, Goal, Keyword, Sentence, Untargeted
from src.attacks.methods import FGSM, PGD, Attack, CarliniWagner
from src.attacks.victim import AttackError, Victim

__all__ = [
    "FGSM",
    "PGD",
    "Aim",
    "Attack",
    "AttackError",
    "Budget",
    "CarliniWagner",
    "Goal",
    "Keyword",
    "Sentence",
    "Untargeted",
    "Victim",
    "distortion",
]
