"""Whether two captioners differ by more than chance of the pictures: paired bootstrap, approximate randomization.

A score of a set of pictures is a function of sums over them (BLEU of n-gram counts, a mean of scores and their number),
so that a set drawn anew costs one product of matrices, whatever the score.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from src.ranges import at_least

AT_ONCE = 200
"""Draws: bounds the memory."""


class Measured(NamedTuple):
    """What a captioner's score is computed from. N pictures, F foldings of the references (1, unless each reference was
    left out in turn), S statistics."""

    statistics: np.ndarray
    """(N, F, S)."""
    of: Callable[[np.ndarray], np.ndarray]
    """Sums over pictures (…, S) → scores (…)."""

    def score(self, sums: np.ndarray) -> np.ndarray:
        """Sums (…, F, S) → scores (…): the mean over the foldings."""
        return self.of(sums).mean(-1)

    @property
    def whole(self) -> float:
        """The score of all pictures."""
        return float(self.score(self.statistics.sum(0)))


class Interval(NamedTuple):
    """Of a score, or of a difference of two."""

    low: float
    high: float


def ratio(sums: np.ndarray) -> np.ndarray:
    """(…, 2) → the first over the second, 0 where both are 0."""
    return sums[..., 0] / np.maximum(sums[..., 1], 1e-300)


def mean_of(values: np.ndarray) -> Measured:
    """The mean of pictures' scores (N,)."""
    return Measured(np.stack([values, np.ones_like(values)], -1)[:, None], ratio)


def _products(weights: Iterator[np.ndarray], systems: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Every system's statistics (N, F, S), summed with each row of the weights (…, N) → (rows, F, S)."""
    columns = np.concatenate([each.reshape(len(each), -1) for each in systems], 1)
    sums = np.concatenate([each @ columns for each in weights])
    ends = np.cumsum([each[0].size for each in systems])[:-1]
    parts = np.split(sums, ends, axis=1)
    return [part.reshape(-1, *each.shape[1:]) for part, each in zip(parts, systems, strict=True)]


def bootstrap(systems: Sequence[Measured], draws: int = 10_000, seed: int = 0) -> np.ndarray:
    """Scores (systems, draws) of the same pictures for all, drawn with replacement (Efron, 1979,
    https://doi.org/10.1214/aos/1176344552; for paired systems Koehn, 2004, https://aclanthology.org/W04-3250).

    Args:
        systems: of the same N pictures in the same order.
        draws: how often N pictures are drawn.
        seed: of the drawing.
    """
    count = len(systems[0].statistics)
    at_least(1, "compare", draws=draws, pictures=count)
    random = np.random.default_rng(seed)
    # How often each picture is drawn is all that a sum needs.
    chances = np.full(count, 1 / count)
    weights = (
        random.multinomial(count, chances, size=min(AT_ONCE, draws - done)).astype(np.float64)
        for done in range(0, draws, AT_ONCE)
    )
    sums = _products(weights, [each.statistics for each in systems])
    return np.stack([each.score(part) for each, part in zip(systems, sums, strict=True)])


def interval(scores: np.ndarray, level: float = 0.95) -> Interval:
    """The percentile interval of drawn scores or differences (draws,); `level` is the share of them inside."""
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def wilson(times: int, of: int) -> Interval:
    """The 95 % interval of a share, `times` of `of`, that holds near 0 and 1 too (Wilson, 1927,
    https://doi.org/10.1080/01621459.1927.10502953); of nothing, all of [0, 1]."""
    if not of:
        return Interval(0.0, 1.0)
    z, share = 1.959963984540054, times / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / (1 + z * z / of)
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def randomization(first: Measured, others: Sequence[Measured], draws: int = 10_000, seed: int = 0) -> list[float]:
    """p-values of "both captioners are alike", of each other against the first, two-sided: how often a difference as
    large comes about where each picture's captions are exchanged between the two by the toss of a coin (Noreen, 1989;
    Riezler and Maxwell, 2005, https://aclanthology.org/W05-0908). Never below 1 / (draws + 1).

    Args:
        first, others: of the same N pictures in the same order, and of the same score.
        draws: how often coins are tossed for all pictures.
        seed: of the tossing.
    """
    count = len(first.statistics)
    at_least(1, "compare", draws=draws, pictures=count)
    random = np.random.default_rng(seed)
    coins = (
        random.integers(0, 2, (min(AT_ONCE, draws - done), count)).astype(np.float64)
        for done in range(0, draws, AT_ONCE)
    )
    moves = [other.statistics - first.statistics for other in others]
    p_values = []
    for other, moved in zip(others, _products(coins, moves), strict=True):
        exchanged = first.score(first.statistics.sum(0) + moved), other.score(other.statistics.sum(0) - moved)
        seen = abs(other.whole - first.whole)
        as_large = np.abs(exchanged[1] - exchanged[0]) >= seen - 1e-12  # rounding apart
        p_values.append((1 + int(as_large.sum())) / (1 + draws))
    return p_values


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, corrected so that the chance of even one false alarm among them keeps its level (Holm,
    1979, https://www.jstor.org/stable/4615733)."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
