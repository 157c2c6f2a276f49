"""BM25 over short texts: an inverted index in NumPy arrays, which are read as they lie on disk."""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

K1, B = 1.2, 0.75
"""How soon a further occurrence of a word adds little, and how far a text's length counts: the usual values."""


class Postings(NamedTuple):
    """Which of n texts hold which words."""

    terms: Mapping[str, int]
    """The words' numbers."""
    first: np.ndarray
    """(words + 1,) where each word's texts begin in `rows`, and the last's end."""
    rows: np.ndarray
    """The texts that hold a word, in order, word after word."""
    counts: np.ndarray
    """How often each does."""
    lengths: np.ndarray
    """(n,) words in each text."""

    def of(self, term: str) -> tuple[np.ndarray, np.ndarray]:
        """The texts that hold a word, and how often."""
        number = self.terms.get(term)
        if number is None:
            return self.rows[:0], self.counts[:0]
        span = slice(self.first[number], self.first[number + 1])
        return self.rows[span], self.counts[span]


def postings(texts: Iterable[Sequence[str]]) -> Postings:
    """The inverted index of texts, each a list of words."""
    terms: dict[str, int] = {}
    said, lengths_so_far = array("q"), array("I")
    for text in texts:
        said.extend(terms.setdefault(word, len(terms)) for word in text)
        lengths_so_far.append(len(text))
    lengths = np.array(lengths_so_far, np.uint32)
    count = max(len(lengths), 1)
    rows = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    pairs, counts = np.unique(np.array(said, np.int64) * count + rows, return_counts=True)
    numbers, rows = np.divmod(pairs, count)
    first = np.searchsorted(numbers, np.arange(len(terms) + 1))
    return Postings(terms, first, rows.astype(np.uint32), counts.astype(np.uint16), lengths)


def bm25(parts: Sequence[tuple[Postings, np.ndarray]], query: Sequence[str]) -> list[np.ndarray]:
    """The score of every text for a query, each of its words once (Robertson and Zaragoza, 2009,
    https://doi.org/10.1561/1500000019, with the idf of Lucene, which is never negative):

        Σ ln(1 + (N − n + ½) / (n + ½)) · f (k₁ + 1) / (f + k₁ (1 − b + b · length / mean length))

    of N texts, n of which hold the word, f times this one.

    Args:
        parts: texts in several indexes, each with a mask (n,) of those that count.
        query: its words.

    Returns:
        (n,) of each part, 0 where no word occurs.
    """
    scores = [np.zeros(len(part.lengths), np.float32) for part, _ in parts]
    total = sum(int(alive.sum()) for _, alive in parts)
    words = sum(int(part.lengths[alive].sum()) for part, alive in parts)
    mean = max(words / max(total, 1), 1e-9)
    for term in dict.fromkeys(query):
        found = [part.of(term) for part, _ in parts]
        holding = sum(int(alive[rows].sum()) for (rows, _), (_, alive) in zip(found, parts, strict=True))
        weight = np.log1p((total - holding + 0.5) / (holding + 0.5))
        for (rows, counts), (part, _), own in zip(found, parts, scores, strict=True):
            norm = K1 * (1 - B + B * part.lengths[rows] / mean)
            own[rows] += weight * counts * (K1 + 1) / (counts + norm)
    return scores
