"""BLEU-1 to BLEU-4 (Papineni et al., ACL 2002), as pycocoevalcap's `Bleu(4)` computes it."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

ORDERS = 4
# pycocoevalcap's guards against 0 / 0. They are part of the figures: without them per-image scores differ.
_TINY, _SMALL = 1e-15, 1e-9


def ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """How often each run of `order` words occurs."""
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))


def bleu(
    references: Mapping[str, Sequence[str]], candidates: Mapping[str, Sequence[str]]
) -> tuple[list[float], np.ndarray]:
    """Corpus BLEU-1..4, each in [0, 1], and an array (4, images) of the same for every image alone.

    Captions are space-joined tokens, one candidate an image; images come in the candidates' order. The
    brevity penalty takes the reference length closest to the candidate's, the shorter of two equally close.
    No smoothing.
    """
    counts = bleu_counts(references, candidates)
    return bleu_of(counts.sum(axis=0)).tolist(), bleu_of(counts).T


def bleu_counts(references: Mapping[str, Sequence[str]], candidates: Mapping[str, Sequence[str]]) -> np.ndarray:
    """(images, 2 + 2 · ORDERS): what BLEU is computed from, an image a row, of what `bleu` takes. A corpus is the sum
    of its rows."""
    rows = [_counts(references[image], caption) for image, (caption,) in candidates.items()]
    return np.array(rows, dtype=np.float64).reshape(-1, 2 + 2 * ORDERS)


def _counts(references: Sequence[str], candidate: str) -> list[int]:
    """[length, closest reference length, n-grams per order …, of them correct per order …]."""
    words = candidate.split()
    split = [reference.split() for reference in references]
    length = len(words)
    closest = min((abs(len(reference) - length), len(reference)) for reference in split)[1]
    guessed = [max(0, length - order + 1) for order in range(1, ORDERS + 1)]
    correct = [0] * ORDERS
    for order in range(1, ORDERS + 1):
        wanted = ngrams(words, order)
        found = [ngrams(reference, order) for reference in split]
        for ngram, count in wanted.items():
            correct[order - 1] += min(count, max(counts.get(ngram, 0) for counts in found))
        if not correct[order - 1]:
            break  # no run of n words matched, so none of n + 1 will
    return [length, closest, *guessed, *correct]


def bleu_of(counts: np.ndarray) -> np.ndarray:
    """Sums of rows of `bleu_counts` (…, 2 + 2 · ORDERS) → BLEU-1..4 (…, ORDERS)."""
    length, closest = counts[..., 0], counts[..., 1]
    guessed, correct = counts[..., 2 : 2 + ORDERS], counts[..., 2 + ORDERS :]
    ratio = (length + _TINY) / (closest + _SMALL)
    penalty = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    precisions = np.cumprod((correct + _TINY) / (guessed + _SMALL), axis=-1)
    return precisions ** (1 / np.arange(1, ORDERS + 1)) * penalty[..., None]
