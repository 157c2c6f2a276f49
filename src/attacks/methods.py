"""How a picture is changed towards a goal. All judge 8-bit pictures, which files can keep: what is found holds for
anybody who opens them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from src.attacks.budget import LEVELS, Budget, Norm, lengths
from src.attacks.goals import Aim, Goal, Judged
from src.attacks.victim import Victim
from src.ranges import at_least, share

REACHED = 1e3
"""Taken from the loss of a picture that has met its goal: it is better than any that has not."""


class Attack:
    """Changes pictures.

    Args:
        norm: linf, distances in 255ths, or l2, of all values in [0, 1] together.

    Raises:
        ValueError: arguments out of their range.
    """

    least: bool = False
    """Whether it looks for the smallest change that meets a goal, rather than for the most that a budget allows."""

    def __init__(self, norm: Norm = "linf") -> None:
        if norm not in ("linf", "l2"):
            raise ValueError(f"attack.norm={norm}: choose linf or l2")
        self.norm: Norm = norm

    def budget(self, size: float) -> Budget:
        """So much in the norm's units."""
        return Budget(self.norm, size / LEVELS if self.norm == "linf" else size)

    def __call__(self, victim: Victim, goal: Goal, images: Tensor, aims: Sequence[Aim], size: float) -> Tensor:
        """Changed pictures (B, 3, H, W), whole 255ths.

        Args:
            victim: who is to say something else.
            goal: what.
            images: pictures (B, 3, H, W) in [0, 1], whole 255ths.
            aims: of each picture.
            size: of the budget, in the norm's units; 0 changes nothing.
        """
        raise NotImplementedError


def slope(
    victim: Victim, goal: Goal, images: Tensor, aims: Sequence[Aim], decide: bool = True
) -> tuple[Judged, Tensor]:
    """How near pictures are to a goal, and the gradient of what they lack; of a random defence, means over draws."""
    pixels = images.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    loss, gradient = torch.zeros(()), torch.zeros_like(images)
    for _ in range(victim.samples):  # one after the other: each one's memory is given back
        with victim.gradients():
            judged = goal.judge(victim, pixels, aims, decide and victim.samples == 1)
        (own,) = torch.autograd.grad(judged.loss.sum(), pixels)
        loss, gradient = loss + judged.loss.detach() / victim.samples, gradient + own / victim.samples
    met = judged.met
    if decide and victim.samples > 1:  # the draw that counts is the one that the captioner makes by itself
        met = [goal.met(aim, words) for aim, words in zip(aims, victim.words(images), strict=True)]
    return Judged(loss, met), gradient


def judgement(victim: Victim, goal: Goal, images: Tensor, aims: Sequence[Aim], decide: bool = True) -> Judged:
    """How near pictures are to a goal, without gradients; of a random defence by the draw that counts."""
    with victim.captioner.computing():
        return goal.judge(victim, images, aims, decide)


class PGD(Attack):
    """Projected gradient descent (Madry et al., 2018, https://arxiv.org/abs/1706.06083), with momentum as in Croce and
    Hein, 2020 (https://arxiv.org/abs/2003.01690), and a step that falls to nothing along half a cosine. Pictures that
    have met a targeted goal with its margin are left alone; of the others the best is kept: one that meets it, of least
    loss.

    Args:
        norm: see `Attack`.
        steps: gradients at most.
        step: the first one's size, a share of the budget; None: 5 / steps, but at least 1 / 8 and at most all of it.
        momentum: share of the step before that is taken again, in [0, 1).
        restarts: beginnings; the first is the picture itself, the others lie anywhere in the budget.
        seed: of those.
    """

    def __init__(
        self,
        norm: Norm = "linf",
        steps: int = 40,
        step: float | None = None,
        momentum: float = 0.25,
        restarts: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(norm)
        at_least(1, "attack", steps=steps, restarts=restarts)
        at_least(0, "attack", seed=seed)
        share("attack", momentum=momentum)
        if step is None:
            step = min(1.0, max(0.125, 5 / steps))
        if not 0 < step <= 1:
            raise ValueError(f"attack.step={step}: a share of the budget in (0, 1]")
        self.steps, self.step, self.momentum, self.restarts, self.seed = steps, step, momentum, restarts, seed

    def __call__(self, victim: Victim, goal: Goal, images: Tensor, aims: Sequence[Aim], size: float) -> Tensor:
        budget = self.budget(size)
        best, lowest = images.clone(), torch.full((len(images),), torch.inf, device=images.device)
        if not size:
            return best
        generator = torch.Generator().manual_seed(self.seed)
        open_ = torch.arange(len(images), device=images.device)
        for beginning in range(self.restarts):
            change = torch.zeros_like(images) if not beginning else budget.start(images, generator)
            before = torch.zeros_like(change)
            for step in range(self.steps + 1):  # the last is only judged
                clean = images[open_]
                shown = clean + budget.eight_bit(change[open_], clean)
                those, last = [aims[i] for i in open_.tolist()], step == self.steps
                if last:
                    judged = judgement(victim, goal, shown, those, goal.targeted)
                else:
                    judged, gradient = slope(victim, goal, shown, those, goal.targeted)
                met = torch.tensor(judged.met or [False] * len(open_), device=images.device)
                lacks = judged.loss.float()
                loss = torch.where(met, lacks - REACHED, lacks)
                better = loss < lowest[open_]
                best[open_[better]], lowest[open_[better]] = shown[better], loss[better]
                going = ~met | (lacks > 0)  # a margin is wanted besides: what is met narrowly may be lost to rounding
                open_ = open_[going]
                if not len(open_):
                    return best
                if last:
                    break
                size_now = self.step * budget.size * (1 + math.cos(math.pi * step / self.steps)) / 2
                clean, own = clean[going], change[open_]
                moved = budget.project(own - size_now * budget.steepest(gradient[going]), clean)
                moved = budget.project(own + (moved - own) * (1 - self.momentum) + before[open_] * self.momentum, clean)
                before[open_], change[open_] = moved - own, moved
        return best


class FGSM(PGD):
    """One step of the whole budget along the gradient's signs, or in L2 along the gradient: the fast gradient sign
    method (Goodfellow et al., 2015, https://arxiv.org/abs/1412.6572)."""

    def __init__(self, norm: Norm = "linf") -> None:
        super().__init__(norm, steps=1, step=1.0, momentum=0.0)


class CarliniWagner(Attack):
    """The smallest change that meets a goal, by Adam (Carlini and Wagner, 2017, https://arxiv.org/abs/1608.04644, as
    Show-and-Fool does it): the distance plus `weight` times what the goal lacks, pixels kept in [0, 1] by tanh; the
    weight is raised tenfold where the goal is missed, and halved by bisection where it is met. The distance is the
    squared L2 norm; in L∞ it is by how much values have changed beyond a bound, which shrinks while the goal is met
    (their section VI.C).

    Args:
        norm: see `Attack`.
        steps: of Adam, for each weight.
        searches: weights tried.
        weight: the first.
        rate: of Adam, in tanh's argument.

    A budget caps the distance; what meets the goal beyond it counts as missed, and the picture stays as it is.
    """

    least = True

    def __init__(
        self, norm: Norm = "l2", steps: int = 100, searches: int = 4, weight: float = 1.0, rate: float = 0.01
    ) -> None:
        super().__init__(norm)
        at_least(1, "attack", steps=steps, searches=searches)
        for name, value in (("weight", weight), ("rate", rate)):
            if not value > 0:
                raise ValueError(f"attack.{name}={value}: above 0")
        self.steps, self.searches, self.weight, self.rate = steps, searches, weight, rate

    def distance(self, change: Tensor, bound: Tensor) -> Tensor:
        """What is kept small (B,) of changes; `bound` (B, 1, 1, 1) is of L∞ alone."""
        if self.norm == "l2":
            return change.square().flatten(1).sum(1)
        return (change.abs() - bound).clamp(min=0).flatten(1).sum(1)

    def __call__(self, victim: Victim, goal: Goal, images: Tensor, aims: Sequence[Aim], size: float) -> Tensor:
        count, device = len(images), images.device
        best, shortest = images.clone(), torch.full((count,), self.budget(size).size + 1e-6, device=device)
        if not size:
            return best
        low, high = torch.zeros(count, device=device), torch.full((count,), torch.inf, device=device)
        weight = torch.full((count,), self.weight, device=device)
        free = Budget("linf", 1.0)  # only the pixels' range
        middle = torch.atanh((2 * images - 1) * (1 - 1e-6))
        bound = shortest.clone().view(-1, 1, 1, 1)
        for _ in range(self.searches):
            turned = middle.clone().requires_grad_()
            optimizer = torch.optim.Adam([turned], lr=self.rate)
            ever = torch.zeros(count, dtype=torch.bool, device=device)
            for step in range(self.steps + 1):  # the last is only judged
                change = (turned.tanh() + 1) / 2 - images
                rounded = free.eight_bit(change.detach(), images)
                if step == self.steps:
                    judged = judgement(victim, goal, images + rounded, aims)
                else:
                    judged, gradient = slope(victim, goal, images + rounded, aims)
                met = torch.tensor(judged.met, device=device)
                far = rounded.flatten(1).abs().amax(1) if self.norm == "linf" else lengths(rounded).flatten()
                better = met & (far < shortest)
                best[better], shortest[better] = (images + rounded)[better], far[better]
                bound[better] = 0.9 * far[better].view(-1, 1, 1, 1)
                ever |= met
                if step == self.steps:
                    break
                # The goal's gradient is that of the rounded picture, carried over.
                own = self.distance(change, bound).sum() + (weight.view(-1, 1, 1, 1) * gradient * change).sum()
                optimizer.zero_grad()
                own.backward()
                optimizer.step()
            high = torch.where(ever, torch.minimum(high, weight), high)
            low = torch.where(ever, low, torch.maximum(low, weight))
            weight = torch.where(high.isinf(), weight * 10, (low + high) / 2)
        return best
