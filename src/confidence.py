"""How sure a captioner is of a caption: its words' mean log-probability, calibrated to a probability of being good."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

BINS = 10
"""Of the calibration error; and as many pictures are the fewest that can calibrate."""
LEAST = -50.0
"""The mean log-probability of a caption that has none, and the lowest there is."""
EDGE = 1e-6
"""Confidences keep this distance from 0 and 1."""


def mean_log_prob(log_probs: Sequence[float]) -> float:
    """Log-probabilities of a caption's words and end token → their mean, in nats, in [LEAST, 0]."""
    return max(float(np.mean(log_probs)), LEAST) if len(log_probs) else LEAST


class Calibration(NamedTuple):
    """Platt's calibration (Platt, 1999, Probabilistic outputs for support vector machines): the logistic function of a
    line over the mean log-probability."""

    slope: float
    """Per nat."""
    intercept: float
    threshold: float
    """The CIDEr from which a caption counted as good."""
    pictures: int
    """How many it was fitted on."""

    def __call__(self, mean: float) -> float:
        """Mean log-probability → the probability that the caption is good, in (0, 1)."""
        return float(_logistic(self.slope * np.asarray(mean, dtype=np.float64) + self.intercept))

    @classmethod
    def fit(cls, means: np.ndarray, good: np.ndarray, threshold: float = 0.0) -> "Calibration":
        """Maximum likelihood by Newton's method with Platt's targets, (N₊ + 1) / (N₊ + 2) and 1 / (N₋ + 2) instead of 1
        and 0, which keep it finite (Lin, Lin and Weng, 2007, https://doi.org/10.1007/s10994-007-5018-6).

        Args:
            means: (N,) mean log-probabilities.
            good: (N,) whether each caption is good.
            threshold: what counted as good, to be kept with it.
        """
        means, good = np.asarray(means, np.float64), np.asarray(good, bool)
        yes, no = int(good.sum()), int((~good).sum())
        targets = np.where(good, (yes + 1) / (yes + 2), 1 / (no + 2))
        middle, spread = means.mean(), means.std() or 1.0
        columns = np.stack([(means - middle) / spread, np.ones_like(means)], 1)
        line = np.array([0.0, np.log((yes + 1) / (no + 1))])

        def loss(line: np.ndarray) -> float:
            z = columns @ line
            return float((np.logaddexp(0, z) - targets * z).sum())

        for _ in range(100):
            p = _logistic(columns @ line)
            slope = columns.T @ (p - targets)
            curvature = (columns * (p * (1 - p))[:, None]).T @ columns + 1e-9 * np.eye(2)
            step = np.linalg.solve(curvature, slope)
            scale = 1.0
            while scale > 1e-6 and loss(line - scale * step) > loss(line):
                scale /= 2
            line = line - scale * step
            if np.abs(step).max() < 1e-10:
                break
        return cls(float(line[0] / spread), float(line[1] - line[0] * middle / spread), float(threshold), len(means))

    def save(self, path: Path) -> None:
        """Write plain JSON."""
        from src.files import write_atomically  # which needs packages that an exported captioner does without

        write_atomically(path, json.dumps(self._asdict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Calibration":
        """Read what `save` wrote.

        Raises:
            ValueError: the file is damaged; names it.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            slope, intercept, threshold = (float(values[name]) for name in cls._fields[:3])
            found = cls(slope, intercept, threshold, int(values["pictures"]))
            if not np.isfinite(found).all():
                raise ValueError("a number is not finite")
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path}: no calibration ({error}); delete it, or evaluate with calibrate=true") from error
        return found


def _logistic(z: np.ndarray) -> np.ndarray:
    return np.clip(0.5 * (1 + np.tanh(z / 2)), EDGE, 1 - EDGE)


class Assessed(NamedTuple):
    """What a split with scored captions says of confidence."""

    calibration: Calibration | None
    """Fitted on all of it."""
    scores: dict[str, float | None]
    """`confidence_ece` in [0, 1] and `confidence_spearman` in [−1, 1], held out."""
    reason: str = ""
    """Why there are none."""


def assess(means: Sequence[float], ciders: Sequence[float] | None) -> Assessed:
    """Mean log-probabilities and CIDEr of a split's captions → a calibration, and how good one is.

    A caption is good whose CIDEr is the split's median or more (above it, where the median is also the least). The
    scores are cross-fitted: the split is halved at random, and each half's confidences are calibrated on the other.
    """
    nothing: dict[str, float | None] = {"confidence_ece": None, "confidence_spearman": None}
    if ciders is None:
        return Assessed(None, nothing, "confidence is calibrated to CIDEr: add it to metrics")
    if len(means) < BINS:
        return Assessed(None, nothing, f"confidence needs {BINS} pictures or more to be calibrated on")
    x, quality = np.asarray(means, np.float64), np.asarray(ciders, np.float64)
    threshold = float(np.median(quality))
    if threshold == quality.min():
        above = quality[quality > threshold]
        if not len(above):
            return Assessed(None, nothing, "all captions have the same CIDEr: none is better than another")
        threshold = float(above.min())
    good = quality >= threshold
    halves = np.array_split(np.random.default_rng(0).permutation(len(x)), 2)
    confidence = np.empty(len(x))
    for mine, other in (halves, halves[::-1]):
        fitted = Calibration.fit(x[other], good[other])
        confidence[mine] = [fitted(mean) for mean in x[mine]]
    correlation = spearman(confidence, quality)
    scores = {"confidence_ece": calibration_error(confidence, good), "confidence_spearman": correlation}
    reason = "" if correlation is not None else "all captions are equally likely"
    return Assessed(Calibration.fit(x, good, threshold), scores, reason)


def calibration_error(confidence: np.ndarray, good: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error (Naeini et al., 2015, https://doi.org/10.1609/aaai.v29i1.9602), in [0, 1]: the mean
    distance between confidence and the share that is good, over bins of equally many captions."""
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    gaps = [len(part) * abs(confidence[part].mean() - good[part].mean()) for part in parts]
    return float(sum(gaps) / len(order))


def spearman(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float | None:
    """Spearman's rank correlation in [−1, 1], the ranks of ties averaged; None where one of the two is constant."""
    first, second = _ranks(np.asarray(a)), _ranks(np.asarray(b))
    first, second = first - first.mean(), second - second.mean()
    norm = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / norm) if norm > 0 else None


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = count.cumsum()
    return (last - (count - 1) / 2)[place.reshape(-1)]
