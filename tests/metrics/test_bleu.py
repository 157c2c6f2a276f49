import math

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu

from src.metrics.bleu import bleu, bleu_counts, bleu_of


def test_equal_to_pycocoevalcap(tokenized):
    references, candidates = tokenized
    corpus, per_image = bleu(references, candidates)
    expected, expected_per_image = Bleu(4).compute_score(references, candidates, verbose=0)
    np.testing.assert_allclose(corpus, expected, atol=1e-9)
    np.testing.assert_allclose(per_image, expected_per_image, atol=1e-9)
    some = list(candidates)[3:8]
    expected, _ = Bleu(4).compute_score({i: references[i] for i in some}, {i: candidates[i] for i in some}, verbose=0)
    sums = bleu_counts(references, candidates)[3:8].sum(0)
    np.testing.assert_allclose(bleu_of(np.stack([sums, sums])), [expected, expected], atol=1e-9)


def test_by_hand():
    # "the" counts twice at most, so 3 of 4 words are right; "cat the", no: 1 of 3 bigrams ("the cat").
    references = {"x": ["the cat saw the dog", "a cat"]}
    corpus, per_image = bleu(references, {"x": ["the cat the the"]})
    penalty = math.exp(1 - 5 / 4)  # the nearest length is 5
    assert corpus[0] == pytest.approx(3 / 4 * penalty)
    assert corpus[1] == pytest.approx(math.sqrt(3 / 4 * 1 / 3) * penalty)
    assert corpus[2] < 1e-3
    np.testing.assert_allclose(per_image[:, 0], corpus)


def test_of_equally_close_lengths_the_shorter_counts():
    corpus, _ = bleu({"x": ["a b c d e", "a b c"]}, {"x": ["a b c d"]})
    assert corpus[0] == pytest.approx(1.0)


def test_corpus_is_not_the_mean_of_images():
    references = {"x": ["a b c d"], "y": ["e f g h i j k l"]}
    corpus, per_image = bleu(references, {"x": ["a b c d"], "y": ["z z z z z z z z"]})
    assert corpus[0] == pytest.approx(4 / 12)
    assert per_image[0].mean() == pytest.approx(1 / 2)
