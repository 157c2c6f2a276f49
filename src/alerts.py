"""When a video's picture matches a sentence, as one would watch a camera."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from src.captioner import Captioner
from src.matching import match_calibration, picture_vectors, sentence_vectors
from src.video import Frame

RATE = 2.0
"""Frames a second that are looked at."""


class Alert(NamedTuple):
    """A time during which the picture matches a sentence."""

    sentence: str
    start: float
    """Seconds from the video's beginning."""
    end: float
    """Likewise; the start, of one that has only begun."""
    confidence: float
    """The highest probability of a match so far, in (0, 1)."""
    ended: bool


def matches(
    captioner: Captioner, frames: Iterable[Frame], sentences: Sequence[str], batch_size: int
) -> Iterator[tuple[float, np.ndarray]]:
    """The time of each frame, and the probability (N,) that each sentence is said of it: the inner product of their
    vectors, calibrated.

    Raises:
        ValueError: the captioner has no matcher, or no calibration of it, or knows no word of a sentence.
    """
    calibration = match_calibration(captioner)
    wanted = sentence_vectors(captioner, sentences)
    pending = iter(frames)
    while batch := list(islice(pending, batch_size)):
        seen = captioner.features(captioner.stacked([frame.image for frame in batch]))
        for frame, cosines in zip(batch, picture_vectors(captioner, seen) @ wanted.T, strict=True):
            yield frame.time, np.array([calibration(cosine) for cosine in cosines])


def alerts(found: Iterable[tuple[float, np.ndarray]], sentences: Sequence[str], threshold: float) -> Iterator[Alert]:
    """Times and probabilities (N,) of N sentences, as `matches` gives them → an alert as it begins, and again as it
    ends. What decides is the median of a frame and its two neighbours, so that one frame alone raises none; an alert
    lasts until the first frame that does not match any more."""
    begun: list[Alert | None] = [None] * len(sentences)
    last = 0.0
    for time, chances in _steadied(found):
        for number, (sentence, chance) in enumerate(zip(sentences, chances.tolist(), strict=True)):
            alert = begun[number]
            if chance >= threshold:
                if alert is None:
                    begun[number] = alert = Alert(sentence, time, time, chance, False)
                    yield alert
                begun[number] = alert._replace(confidence=max(alert.confidence, chance))
            elif alert is not None:
                begun[number] = None
                yield alert._replace(end=time, ended=True)
        last = time
    for alert in begun:
        if alert is not None:
            yield alert._replace(end=last, ended=True)


def _steadied(found: Iterable[tuple[float, np.ndarray]]) -> Iterator[tuple[float, np.ndarray]]:
    """Each time with the median of its values and its neighbours'; the first and the last are their own neighbours."""
    before: np.ndarray | None = None
    held: tuple[float, np.ndarray] | None = None
    for time, values in found:
        if held is not None:
            yield held[0], np.median([held[1] if before is None else before, held[1], values], axis=0)
            before = held[1]
        held = time, values
    if held is not None:
        yield held[0], np.median([held[1] if before is None else before, held[1], held[1]], axis=0)
