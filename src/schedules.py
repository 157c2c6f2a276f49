"""Learning rates over a run."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from src.ranges import at_least, share


class WarmupCosine(LambdaLR):
    """Linear warm-up, then half a cosine down (Loshchilov and Hutter, 2017, https://arxiv.org/abs/1608.03983).

    Args:
        optimizer: whose learning rates are scaled; each group keeps its own.
        total_steps: optimizer steps of the whole run.
        warmup: share of the steps that climb, in [0, 1).
        final: what the rate ends at, as a share of its peak.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup: float = 0.1, final: float = 0.01) -> None:
        share("scheduler", warmup=warmup)
        at_least(0, "scheduler", final=final)
        climb = max(1, round(total_steps * warmup))

        def scale(step: int) -> float:
            if step < climb:
                return (step + 1) / climb
            done = min(1.0, (step - climb) / max(1, total_steps - climb))
            return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2

        super().__init__(optimizer, scale)
