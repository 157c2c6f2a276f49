"""ROUGE-L (Lin, ACL 2004), as pycocoevalcap computes it: best precision and recall over the references."""

from collections.abc import Mapping, Sequence

import numpy as np

_BETA = 1.2  # weight of recall, as in the COCO caption evaluation


def rouge_l(
    references: Mapping[str, Sequence[str]], candidates: Mapping[str, Sequence[str]]
) -> tuple[float, np.ndarray]:
    """Mean ROUGE-L in [0, 1] and an array (images,) in the candidates' order.

    Captions are space-joined tokens, one candidate an image. Not torchmetrics' ROUGE-L, which takes the
    reference with the best F-measure; here precision and recall may come from two references.
    """
    per_image = np.array([_rouge(references[image], caption) for image, (caption,) in candidates.items()])
    return float(per_image.mean()), per_image


def _rouge(references: Sequence[str], candidate: str) -> float:
    words = candidate.split(" ")
    places: dict[str, int] = {}
    for place, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << place
    precision = recall = 0.0
    for reference in references:
        other = reference.split(" ")
        common = _longest_common_subsequence(places, len(words), other)
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(other))
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _longest_common_subsequence(places: Mapping[str, int], length: int, other: Sequence[str]) -> int:
    """Its length, a row of the table at a time in the bits of one integer (Hyyrö, 2004).

    `places` holds each word's positions among the `length` words of the first sequence as set bits.
    """
    full = row = (1 << length) - 1
    for word in other:
        match = row & places.get(word, 0)
        row = ((row + match) | (row - match)) & full
    return length - row.bit_count()
