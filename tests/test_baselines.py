"""Baselines, beside loops that do the same one caption at a time."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from src.baselines import CaptionVectors, HumanCaptions, NearestNeighbours, RandomCaptions, TypicalCaption
from src.data.module import CaptionData
from src.data.tokenizer import MixedTokenizer
from src.data.transforms import Preprocess
from src.data.vocabulary import Vocabulary
from src.model import ConfigError

WORDS = ["a", "dog", "man", "runs", "on", "the", "grass"]


def cosine(first: dict, other: dict) -> float:
    norms = math.sqrt(sum(v * v for v in first.values())) * math.sqrt(sum(v * v for v in other.values()))
    return sum(v * other.get(k, 0.0) for k, v in first.items()) / norms if norms else 0.0


def similarities(captions: list[list[str]]) -> np.ndarray:
    """CIDEr of each caption against each other, by the book."""
    result = np.zeros((len(captions), len(captions)))
    for order in (1, 2, 3, 4):
        counts = [Counter(tuple(c[i : i + order]) for i in range(len(c) - order + 1)) for c in captions]
        frequency = Counter(ngram for each in counts for ngram in each)
        vectors = [
            {ngram: n * math.log(len(captions) / frequency[ngram]) for ngram, n in each.items()} for each in counts
        ]
        result += [[cosine(first, other) / 4 for other in vectors] for first in vectors]
    return result


@pytest.fixture
def captions() -> list[list[str]]:
    random = np.random.default_rng(0)
    return [list(random.choice(WORDS, random.integers(0, 9))) for _ in range(30)] + [["a"], [], ["a", "a", "a"]]


def test_vectors_are_ciders(captions):
    vectors, expected = CaptionVectors(captions), similarities(captions)
    some = np.array([3, 0, 31, 32, 17, 30])
    assert vectors.similarities(some) == pytest.approx(expected[np.ix_(some, some)], abs=1e-6)
    assert vectors.typicality() == pytest.approx(expected.mean(1), abs=1e-6)
    assert CaptionVectors([["a", "dog"], ["a", "dog"]]).similarities(np.array([0, 1])) == pytest.approx(
        np.zeros((2, 2))
    )


@pytest.fixture
def data(shapes, tmp_path) -> CaptionData:
    return CaptionData(
        root=shapes,
        train="train.tsv",
        val="val.tsv",
        preprocess=Preprocess(32),
        tokenizer=MixedTokenizer(),
        vocabulary=Vocabulary.build([["word"]], min_count=1),
        cache_dir=tmp_path,
        workers=0,
        eval_batch_size=3,
    )


def no_cache(encoder, config, splits):
    """Features are computed as they are needed."""


def test_the_most_typical_caption(data):
    found = TypicalCaption()(data, "val", no_cache)
    texts = [text for group in data.tables["train"].captions for text in group]
    expected = texts[similarities([data.tokenizer.tokens(text) for text in texts]).mean(1).argmax()]
    assert found == dict.fromkeys(data.tables["val"].images, expected)


def test_captions_of_random_images(data):
    found = RandomCaptions()(data, "val", no_cache)
    texts = {text for group in data.tables["train"].captions for text in group}
    assert list(found) == data.tables["val"].images and set(found.values()) <= texts
    assert found == RandomCaptions(0)(data, "val", no_cache)
    assert any(RandomCaptions(seed)(data, "val", no_cache) != found for seed in (1, 2, 3))
    with pytest.raises(ValueError, match="baseline.seed=-1"):
        RandomCaptions(-1)


@pytest.mark.parametrize("split", ["val", "train"])
@pytest.mark.parametrize(("neighbours", "consensus"), [(5, 3), (1, 125), (100, 2)])
@pytest.mark.parametrize("cached", [False, True])
def test_nearest_neighbours(data, split, neighbours, consensus, cached):
    used = []

    def computing(encoder, config, splits):
        used.append(encoder)
        if cached:
            data.cache_features(encoder, config["backbone"], splits, progress=False)

    torch.manual_seed(1)
    baseline = NearestNeighbours("cnn", neighbours=neighbours, consensus=consensus)
    found = baseline(data, split, computing)
    (encoder,) = used
    table = data.tables["train"]

    def looks(image: str) -> np.ndarray:
        with torch.inference_mode():
            regions = encoder.frozen_regions(data.preprocess.open(data.root / image)[None]).mean(1)[0].numpy()
        return regions / np.linalg.norm(regions)

    known = {image: looks(image) for image in table.images}
    texts = [text for group in table.captions for text in group]
    owner = [image for image, group in zip(table.images, table.captions, strict=True) for _ in group]
    similar = similarities([data.tokenizer.tokens(text) for text in texts])
    assert list(found) == data.tables[split].images
    for image, said in found.items():
        own = looks(image)
        others = [name for name in known if name != image or split == "val"]
        nearest = set(sorted(others, key=lambda name: -float(own @ known[name]))[:neighbours])
        rows = [i for i, name in enumerate(owner) if name in nearest]
        means = {}
        for i in rows:
            most = sorted((similar[i, j] for j in rows if j != i), reverse=True)[:consensus]
            means[i] = sum(most) / len(most)
        best = max(means.values())
        assert said in {texts[i] for i, mean in means.items() if mean > best - 1e-5}
        assert owner[texts.index(said)] in known


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"encoder": "resnet5"}, r"baseline.encoder=resnet5: no such choice.*did you mean resnet50"),
        ({"transform": "none"}, "baseline.transform=none: no such choice"),
        ({"encoder": "precomputed"}, "baseline.encoder=precomputed: it has no backbone to look with"),
        ({"neighbours": 0}, "baseline.neighbours=0: at least 1"),
    ],
)
def test_what_cannot_be_is_refused(fields, words):
    with pytest.raises((ConfigError, ValueError), match=words):
        NearestNeighbours(**fields)


def test_people_need_no_captions(data):
    assert HumanCaptions()(data, "val", no_cache) is None
