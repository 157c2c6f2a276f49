import math

import pytest

from src.metrics.captions import CaptionScorer
from src.metrics.diversity import distinct, diversity, self_bleu, words_used

SAMPLES = {"x": ["a red dog", "a red cat", "a red dog"], "y": ["two birds fly"]}


def test_distinct_by_hand():
    """x: a red dog cat of 9 words; (a red) (red dog) (red cat) of 9. y: 3 of 3 words, 2 bigrams of 3 words."""
    assert distinct(SAMPLES, 1) == pytest.approx((4 / 9 + 1) / 2)
    assert distinct(SAMPLES, 2) == pytest.approx((3 / 9 + 2 / 3) / 2)
    assert distinct({"x": ["", ""]}, 1) == 0.0


def test_self_bleu_by_hand():
    """Against b c d e x: 4 of 5 words, 3 of 4 bigrams, 2 of 3 trigrams, 1 of 2 four-grams; likewise the other way."""
    expected = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert self_bleu({"x": ["a b c d e", "b c d e x"], "y": ["alone"]}) == pytest.approx(expected, rel=1e-6)
    assert self_bleu({"x": ["a b c d"] * 3}) == pytest.approx(1.0)
    assert self_bleu({"x": ["a b c d", "e f g h"]}) < 1e-3
    assert self_bleu({"y": ["alone"]}) is None
    short = math.exp(1 - 5 / 4)  # the brevity penalty; the longer caption has one four-gram of two
    longer = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert self_bleu({"x": ["a b c d", "a b c d e"]}) == pytest.approx((short + longer) / 2, rel=1e-6)


def test_self_bleu_is_nltk_s():
    nltk = pytest.importorskip("nltk.translate.bleu_score")
    group = ["a b c d e f", "a b c d x y", "z a b c d e f"]
    split = [caption.split() for caption in group]
    each = [nltk.sentence_bleu(split[:k] + split[k + 1 :], split[k]) for k in range(3)]
    assert self_bleu({"x": group}) == pytest.approx(sum(each) / 3, rel=1e-6)


def test_used_words():
    assert words_used(SAMPLES, ["a", "red", "dog", "horse"]) == pytest.approx(3 / 4)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_scores_of_several_captions(language):
    references = {"x": ["A red dog runs."], "y": ["Two birds fly high."], "z": ["One more cat sleeps."]}
    samples = {
        "x": ["a red dog runs", "a red cat"],
        "y": ["two dogs", "two birds fly high"],
        "z": ["one more cat sleeps", "red"],
    }
    tokenizer = "ptb"
    if language == "zh":
        said = ["a", "red", "dog", "runs", "two", "birds", "fly", "high", "one", "cat", "sleeps", "dogs", "more"]
        table = dict(zip(said, "一只红狗跑两鸟飞高又猫睡再", strict=True))

        def told(text: str) -> str:
            return "".join(table[word] for word in text.lower().strip(".").split())

        references = {image: [told(t) for t in group] for image, group in references.items()}
        samples = {image: [told(t) for t in group] for image, group in samples.items()}
        tokenizer = "character"
    scorer = CaptionScorer(references, tokenizer=tokenizer, metrics=["CIDEr"])
    found = diversity(samples, scorer)
    best = scorer.score({image: group[image == "y"] for image, group in samples.items()}).corpus["CIDEr"]
    other = scorer.score({image: group[image != "y"] for image, group in samples.items()}).corpus["CIDEr"]
    assert found["CIDEr_oracle"] == pytest.approx(best) and best > other
    assert found["CIDEr_mean"] == pytest.approx((best + other) / 2)
    assert found["Div_1"] == pytest.approx((5 / 7 + 5 / 6 + 5 / 5) / 3)
    assert "CIDEr_mean" not in diversity(samples, CaptionScorer(references, tokenizer=tokenizer, metrics=["Bleu_1"]))
