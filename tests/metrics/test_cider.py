import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider

from src.metrics.cider import CiderD, DocumentFrequencies


def test_equal_to_pycocoevalcap(tokenized):
    references, candidates = tokenized
    mean, per_image = CiderD(references).score(candidates)
    expected, expected_per_image = Cider().compute_score(references, candidates)
    assert mean == pytest.approx(expected, abs=1e-9)
    assert mean > 0.5
    np.testing.assert_allclose(per_image, expected_per_image, atol=1e-9)


def test_a_part_is_scored_with_the_whole_set_s_statistics(tokenized):
    references, candidates = tokenized
    cider = CiderD(references)
    _, whole = cider.score(candidates)
    some = dict(list(candidates.items())[10:20])
    np.testing.assert_array_equal(cider.score(some)[1], whole[10:20])
    image, (caption,) = next(iter(some.items()))
    assert cider.score_one(image, caption) == whole[10]


def test_a_caption_equal_to_its_only_reference_scores_ten():
    references = {"x": ["a dog runs fast today"], "y": ["two cats sleep here now"]}
    assert CiderD(references).score_one("x", "a dog runs fast today") == pytest.approx(10.0)
    assert CiderD(references).score_one("x", "two cats sleep here now") == 0.0


def test_one_image_has_no_document_frequencies():
    assert CiderD({"x": ["a dog"]}).score({"x": ["a dog"]})[0] == 0.0


def test_samples_are_scored_by_cached_document_frequencies(tokenized, tmp_path):
    """Equal to pycocoevalcap's, whose statistics are the same references'; a second call reads the file."""
    references, candidates = tokenized
    groups = list(references.values())
    first = DocumentFrequencies.cached(groups, tmp_path)
    again = DocumentFrequencies.cached(groups, tmp_path)
    assert dict(first.counts) == dict(again.counts) and first.images == again.images == len(groups)
    assert len(list(tmp_path.iterdir())) == 1
    assert DocumentFrequencies.cached(groups[:5], tmp_path).images == 5
    expected = Cider().compute_score(references, candidates)[1]
    cider = CiderD({}, again)
    found = [cider.score_samples(references[image], caption)[0] for image, caption in candidates.items()]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    image = next(iter(references))
    several = [caption for (caption,) in list(candidates.values())[:4]]
    one_by_one = [cider.score_samples(references[image], [caption])[0] for caption in several]
    assert cider.score_samples(references[image], several) == one_by_one


def test_a_newcomer_is_scored_as_if_it_were_one_of_them(tokenized):
    references, candidates = tokenized
    image = list(references)[3]
    rest = {name: group for name, group in references.items() if name != image}
    frequencies = DocumentFrequencies.of(references.values())._replace(images=len(rest))
    expected = CiderD({image: references[image]}, frequencies).score_one(image, candidates[image][0])
    assert CiderD(rest).score_newcomer(references[image], candidates[image][0]) == pytest.approx(expected) and expected
    known = CiderD(references).score_newcomer(references[image], candidates[image][0])
    assert known != pytest.approx(expected), "one that is there already would count twice"
