"""How different the captions of a picture are among themselves, and what the best of them would score.

Captions are space-joined tokens, `{image: [caption, …]}`, as the other scores take them; repeated captions count."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from src.metrics.bleu import bleu, ngrams
from src.metrics.captions import CaptionScorer

Captions = Mapping[str, Sequence[str]]


def distinct(captions: Captions, order: int) -> float:
    """Div-n: different n-grams of a picture's captions over all their words, the mean over pictures, in [0, 1] (Li et
    al., 2016, https://arxiv.org/abs/1510.03055; per picture: Shetty et al., 2017, https://arxiv.org/abs/1703.10476).
    A picture without a word counts 0."""
    shares = []
    for group in captions.values():
        split = [caption.split() for caption in group]
        different = {ngram for words in split for ngram in ngrams(words, order)}
        shares.append(len(different) / max(1, sum(map(len, split))))
    return float(np.mean(shares))


def self_bleu(captions: Captions) -> float | None:
    """Mean BLEU-4 of each caption against the same picture's others, then over pictures, in [0, 1]; lower is more
    varied (Zhu et al., 2018, https://arxiv.org/abs/1802.01886; mBLEU-4 of Shetty et al.). None where no picture has
    two captions. A picture with one is left out."""
    scores = []
    for group in captions.values():
        if len(group) > 1:
            numbered = {str(k): caption for k, caption in enumerate(group)}
            others = {k: [c for n, c in numbered.items() if n != k] for k in numbered}
            _, each = bleu(others, {k: [caption] for k, caption in numbered.items()})
            scores.append(each[3].mean())
    return float(np.mean(scores)) if scores else None


def words_used(captions: Captions, vocabulary: Iterable[str]) -> float:
    """The share of a vocabulary's words that occur in the captions, in [0, 1]."""
    words = set(vocabulary)
    return len(words & {word for group in captions.values() for c in group for word in c.split()}) / max(1, len(words))


def diversity(samples: Captions, scorer: CaptionScorer) -> dict[str, float | None]:
    """Scores of several raw captions a picture: Div_1, Div_2, self_bleu, and with CIDEr among the scorer's metrics
    CIDEr_oracle (of each picture's best) and CIDEr_mean (over all captions of a picture)."""
    tokenized = scorer.tokenize(samples)
    scores: dict[str, float | None] = {f"Div_{order}": distinct(tokenized, order) for order in (1, 2)}
    scores["self_bleu"] = self_bleu(tokenized)
    if scorer.cider is not None:
        each = [[scorer.cider.score_one(image, c) for c in group] for image, group in tokenized.items()]
        scores["CIDEr_oracle"] = float(np.mean([max(group) for group in each]))
        scores["CIDEr_mean"] = float(np.mean([np.mean(group) for group in each]))
    return scores
