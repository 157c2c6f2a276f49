import math
from collections import Counter

import numpy as np
import pytest

from src.bm25 import bm25, postings

TEXTS = [
    "a dog runs on the beach",
    "a dog and a dog and a cat",
    "two children on a swing",
    "",
    "the beach",
    "a man on a beach with a dog near the sea at night",
]


def by_hand(texts, query, k1=1.2, b=0.75):
    """The formula, text by text."""
    words = [text.split() for text in texts]
    mean = sum(map(len, words)) / len(words)
    scores = []
    for own in words:
        counts, score = Counter(own), 0.0
        for term in dict.fromkeys(query):
            n = sum(term in other for other in words)
            idf = math.log(1 + (len(words) - n + 0.5) / (n + 0.5))
            f = counts[term]
            score += idf * f * (k1 + 1) / (f + k1 * (1 - b + b * len(own) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", [["dog"], ["dog", "beach", "dog"], ["zebra"], ["a", "zebra", "sea"], []])
def test_it_is_the_formula_in_one_part_or_several(query):
    expected = by_hand(TEXTS, query)
    for cuts in ([0, 6], [0, 2, 2, 5, 6]):
        parts = [postings([text.split() for text in TEXTS[a:z]]) for a, z in zip(cuts, cuts[1:], strict=False)]
        found = bm25([(part, np.ones(len(part.lengths), bool)) for part in parts], query)
        np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-5)


def test_texts_that_are_gone_count_for_nothing():
    whole = postings([text.split() for text in TEXTS])
    alive = np.array([True, False, True, True, True, True])
    (found,) = bm25([(whole, alive)], ["dog", "beach"])
    expected = by_hand([text for text, here in zip(TEXTS, alive, strict=True) if here], ["dog", "beach"])
    np.testing.assert_allclose(found[alive], expected, rtol=1e-5)


def test_of_no_texts_there_is_nothing():
    (found,) = bm25([(postings([]), np.zeros(0, bool))], ["dog"])
    assert found.shape == (0,)
