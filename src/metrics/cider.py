"""CIDEr-D (Vedantam, Zitnick and Parikh, CVPR 2015), as pycocoevalcap's `Cider` computes it."""

import hashlib
import json
import math
from collections import ChainMap, Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.files import write_atomically
from src.metrics.bleu import ngrams

ORDERS = 4
_SIGMA = 6.0  # width of the length penalty, in bigrams

NGram = tuple[str, ...]


class _Vector(NamedTuple):
    weights: list[dict[NGram, float]]  # tf-idf, a dict an order
    norms: list[float]
    length: int  # bigrams, as pycocoevalcap measures length


class DocumentFrequencies(NamedTuple):
    """In the references of how many images each n-gram of up to four words occurs."""

    counts: Mapping[NGram, int]
    images: int

    @classmethod
    def of(cls, groups: Iterable[Sequence[str]]) -> "DocumentFrequencies":
        """Of space-joined tokens, one list an image."""
        counts: Counter[NGram] = Counter()
        images = 0
        for images, group in enumerate(groups, start=1):  # noqa: B007
            counts.update({ngram for caption in group for ngram in _count(caption)})
        return cls(counts, images)

    @classmethod
    def cached(cls, groups: Sequence[Sequence[str]], folder: Path) -> "DocumentFrequencies":
        """`of`, kept in a folder as JSON under a digest of the references."""
        digest = hashlib.sha256(json.dumps(groups, ensure_ascii=False).encode()).hexdigest()[:20]
        path = folder / f"{digest}.json"
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            return cls({tuple(ngram.split(" ")): n for ngram, n in kept["counts"].items()}, kept["images"])
        found = cls.of(groups)
        plain = {" ".join(ngram): n for ngram, n in found.counts.items()}
        write_atomically(path, json.dumps({"images": found.images, "counts": plain}, ensure_ascii=False))
        return found


class CiderD:
    """CIDEr-D against fixed references, whose document frequencies and tf-idf vectors are computed once.

    `references` are space-joined tokens, one list an image. Scores have the range [0, 10]; 0.46 is what
    tables print as 46. The document frequencies are the references' own unless others are given: with a
    single image every score is 0.
    """

    def __init__(self, references: Mapping[str, Sequence[str]], frequencies: DocumentFrequencies | None = None) -> None:
        frequencies = frequencies or DocumentFrequencies.of(references.values())
        self._counts = frequencies.counts
        # An n-gram that no reference has counts as if one had it.
        self._unseen = math.log(frequencies.images) if frequencies.images else 0.0
        self._idf = {ngram: self._unseen - math.log(number) for ngram, number in frequencies.counts.items()}
        self._references = {image: self._vectors(group) for image, group in references.items()}

    def score(self, candidates: Mapping[str, Sequence[str]]) -> tuple[float, np.ndarray]:
        """Mean and an array (images,) in the candidates' order; one candidate (joined tokens) an image.

        The candidates may be of some of the images only: a training batch is scored against the whole set's
        statistics.
        """
        per_image = np.array([self.score_one(image, caption) for image, (caption,) in candidates.items()])
        return float(per_image.mean()), per_image

    def score_one(self, image: str, caption: str) -> float:
        """CIDEr-D of one caption."""
        return self._score(self._references[image], caption)

    def score_samples(self, references: Sequence[str], captions: Sequence[str]) -> list[float]:
        """CIDEr-D of several captions of an image whose references are given, by the document frequencies at hand."""
        vectors = self._vectors(references)
        return [self._score(vectors, caption) for caption in captions]

    def score_newcomer(self, references: Sequence[str], caption: str) -> float:
        """CIDEr-D of a caption of an image that is not among those that the document frequencies are of, as if it were
        one of them: every n-gram that its references have occurs in one more."""
        own = {ngram for reference in references for ngram in _count(reference)}
        more = {ngram: self._unseen - math.log(self._counts.get(ngram, 0) + 1) for ngram in own}
        idf = ChainMap(more, self._idf)
        return self._score([self._vector(_count(each), idf) for each in references], caption, idf)

    def _vectors(self, captions: Sequence[str]) -> list[_Vector]:
        return [self._vector(_count(caption)) for caption in captions]

    def _score(self, references: Sequence[_Vector], caption: str, idf: Mapping[NGram, float] | None = None) -> float:
        candidate = self._vector(_count(caption), idf)
        total = sum(_similarity(candidate, reference) for reference in references)
        return 10.0 * total / (ORDERS * len(references))

    def _vector(self, counts: Mapping[NGram, int], idf: Mapping[NGram, float] | None = None) -> _Vector:
        idf = self._idf if idf is None else idf
        weights: list[dict[NGram, float]] = [{} for _ in range(ORDERS)]
        squares, length = [0.0] * ORDERS, 0
        for ngram, count in counts.items():
            order = len(ngram) - 1
            weight = count * idf.get(ngram, self._unseen)
            weights[order][ngram] = weight
            squares[order] += weight * weight
            if order == 1:
                length += count
        return _Vector(weights, [math.sqrt(square) for square in squares], length)


def _count(caption: str) -> dict[NGram, int]:
    words = caption.split()
    return {ngram: n for order in range(1, ORDERS + 1) for ngram, n in ngrams(words, order).items()}


def _similarity(candidate: _Vector, reference: _Vector) -> float:
    """Sum over the orders of the clipped cosine similarity, less the length penalty."""
    total = 0.0
    for order in range(ORDERS):
        norm = candidate.norms[order] * reference.norms[order]
        theirs = reference.weights[order]
        if not norm:
            continue
        ours = candidate.weights[order]
        total += sum(min(ours[ngram], theirs[ngram]) * theirs[ngram] for ngram in ours.keys() & theirs.keys()) / norm
    return total * math.exp(-((candidate.length - reference.length) ** 2) / (2 * _SIGMA**2))
