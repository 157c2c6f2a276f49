import random

import numpy as np
import pytest
from pycocoevalcap.rouge.rouge import Rouge, my_lcs

from src.metrics.rouge import rouge_l


def test_equal_to_pycocoevalcap(tokenized):
    references, candidates = tokenized
    mean, per_image = rouge_l(references, candidates)
    expected, expected_per_image = Rouge().compute_score(references, candidates)
    assert mean == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(per_image, expected_per_image, atol=1e-12)


def test_longest_common_subsequence_of_random_sentences():
    generator = random.Random(0)
    for _ in range(300):
        one, two = (generator.choices("abcde", k=generator.randint(1, 90)) for _ in range(2))
        common = my_lcs(one, two)
        precision, recall = common / len(one), common / len(two)
        expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision) if common else 0.0
        assert rouge_l({"x": [" ".join(two)]}, {"x": [" ".join(one)]})[0] == pytest.approx(expected)


def test_precision_and_recall_may_come_from_two_references():
    mean, _ = rouge_l({"x": ["a b", "a z z z b c d"]}, {"x": ["a b c d"]})
    assert mean == pytest.approx(1.0)  # recall 1 from the first, precision 1 from the second
