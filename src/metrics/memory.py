"""Whether captions are what stood in training: word for word, and how long a stretch of each does."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

MOST = 10
"""Captions that are listed."""


def longest_runs(captions: Sequence[str], training: Iterable[str]) -> np.ndarray:
    """(N,) of each caption (space-joined tokens) the most words on end that stand so in one training caption."""
    index: dict[str, int] = {}
    own, starts = _stream(captions, index, grow=True)
    words, _ = _stream(training, index, grow=False)
    runs = np.zeros(len(own), np.int64)
    here, there = np.flatnonzero(own >= 0), np.flatnonzero(words >= 0)
    ours, theirs = own[here], words[there]  # of each place that is still in, which n-gram begins there
    length = 0
    while len(here) and len(there):
        known = np.unique(ours)
        place = np.searchsorted(known, theirs).clip(max=len(known) - 1)
        both = known[place] == theirs
        there, theirs = there[both], place[both]
        said = np.zeros(len(known), bool)
        said[theirs] = True
        ours = np.searchsorted(known, ours)
        here, ours = here[said[ours]], ours[said[ours]]
        length += 1
        runs[here] = length
        # One word more; a caption ends in a word that is none.
        keep, kept = own[here + length] >= 0, words[there + length] >= 0
        here, there = here[keep], there[kept]
        ours = ours[keep] * len(index) + own[here + length]
        theirs = theirs[kept] * len(index) + words[there + length]
    return np.maximum.reduceat(runs, starts) if len(captions) else runs


def _stream(captions: Iterable[str], index: dict[str, int], grow: bool) -> tuple[np.ndarray, np.ndarray]:
    """All words as numbers, each caption ended by −1, which an unknown word is too; and where captions begin."""
    numbers: list[int] = []
    starts = []
    for caption in captions:
        starts.append(len(numbers))
        for word in caption.split():
            numbers.append(index.setdefault(word, len(index)) if grow else index.get(word, -1))
        numbers.append(-1)
    return np.array(numbers, np.int64), np.array(starts, np.int64)


def memory_report(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    training: Mapping[str, int],
    own: bool = False,
) -> dict[str, Any]:
    """How much of the captions stands in training, as plain values. People say the same of like pictures, too: their
    share is what a captioner's is to be seen against.

    Args:
        captions: of each image, as words joined by spaces.
        references: of the same images, likewise.
        training: how often each training caption stands there, likewise.
        own: the images are training images: captions that are one of the same picture's are counted apart, and there
            is nothing to say of people.
    """
    said = list(captions.values())
    found: dict[str, Any] = {
        "images": len(said),
        "share": float(np.mean([caption in training for caption in said])),
        "run": float(np.mean(longest_runs(said, training))),
        "length": float(np.mean([len(caption.split()) for caption in said])),
    }
    if own:
        found["own"] = float(np.mean([caption in references[image] for image, caption in captions.items()]))
    else:
        every = [reference for image in captions for reference in references[image]]
        found["people"] = {
            "share": float(np.mean([reference in training for reference in every])),
            "run": float(np.mean(longest_runs(every, training))),
            "length": float(np.mean([len(reference.split()) for reference in every])),
        }
    often = Counter(caption for caption in said if caption in training)
    found["captions"] = [
        {"caption": caption, "images": times, "training": training[caption]}
        for caption, times in sorted(often.items(), key=lambda each: (-each[1], each[0]))[:MOST]
    ]
    return found
