"""All scores of a set of captions, and people's."""

import os
from pathlib import Path

import numpy as np
import pytest

from src.metrics.captions import METRICS, CaptionScorer, score_captions
from src.metrics.java import find_java
from src.metrics.mistakes import Mistake
from src.scoring import Scorer, Scoring, foldings, measured, read_nouns

FAST = tuple(name for name in METRICS if name != "METEOR")
REFERENCES = {
    "1.jpg": ["A brown dog runs.", "the dog runs on grass", "a dog is running"],
    "2.jpg": ["Two red cars", "two red cars on a street", "some cars"],
    "3.jpg": ["A man rides a horse!", "a rider", "the man on a horse"],
}
CAPTIONS = {"1.jpg": "A dog runs on the beach.", "2.jpg": "two cars", "3.jpg": "a man on a brown horse"}


def test_every_score_of_english(caplog):
    scored = Scorer(REFERENCES, Scoring(metrics=FAST), training=["A dog runs on the beach", "a cat"]).score(CAPTIONS)
    plain = score_captions(CAPTIONS, REFERENCES, metrics=FAST)
    assert {name: scored.corpus[name] for name in plain.corpus} == plain.corpus
    for image, row in plain.per_image.items():
        assert scored.per_image[image].items() >= row.items()
    assert {name: scored.corpus[name] for name in ("SPICE", "CLIPScore", "RefCLIPScore")} == dict.fromkeys(
        ("SPICE", "CLIPScore", "RefCLIPScore")
    )
    assert "spice=DIR" in scored.not_computed["SPICE"] and "clip=DIR" in scored.not_computed["RefCLIPScore"]
    # Said by two references or more: dog; car; man, horse. The colours: red. The counts: two. The actions: to run.
    expected = {"objects": 4 / 4, "colours": 0, "counts": 1, "actions": 1}
    assert {part: scored.corpus[f"{part}_recall"] for part in expected} == expected
    assert "attributes_recall" not in scored.corpus, "no reference says one"
    assert scored.corpus["novel_share"] == pytest.approx(2 / 3)
    assert scored.corpus["distinct_share"] == 1.0
    assert scored.per_image["1.jpg"]["length"] == 6 and scored.per_image["1.jpg"]["reference_length"] == 13 / 3
    assert scored.corpus["reference_length"] == pytest.approx((13 / 3 + 11 / 3 + 12 / 3) / 3)
    assert scored.wrong == [Mistake("beach", 1, 1), Mistake("brown", 1, 1)]
    assert Mistake("red", 1, 1) in scored.missed
    assert scored.alarms == []


def test_measured_gives_the_corpus_scores():
    scored = Scorer(REFERENCES, Scoring(metrics=FAST)).score(CAPTIONS)
    for name in (*FAST, "objects_recall", "colours_recall", "exact_match"):
        column = np.array([row.get(name, np.nan) for row in scored.per_image.values()])
        found = measured(name, scored.statistics, column)
        assert found is not None and found.whole == pytest.approx(scored.corpus[name], abs=1e-12), name
    assert measured("Bleu_4", {}, np.ones(3)) is None, "a mean of pictures' BLEU is not BLEU"
    assert measured("SPICE", scored.statistics, None) is None


def test_chinese_by_character_and_by_word():
    references = {"1": ["一只狗在草地上跑", "狗跑过草地"], "2": ["两个男孩踢足球", "有两个男孩踢球"]}
    captions = {"1": "一只狗在跑", "2": "两个男孩踢足球"}
    scored = Scorer(references, Scoring("script", METRICS)).score(captions)
    assert scored.tokenizer == "character" and scored.corpus["METEOR"] is None
    assert "Chinese" in scored.not_computed["METEOR"] and "English only" in scored.not_computed["SPICE"]
    for tokenizer, ending in (("character", ""), ("word", "_word")):
        plain = CaptionScorer(references, tokenizer=tokenizer, metrics=FAST).score(captions)
        for name in FAST:
            assert scored.corpus[name + ending] == plain.corpus[name]
            assert scored.per_image["1"][name + ending] == plain.per_image["1"][name]
            column = np.array([row[name + ending] for row in scored.per_image.values()])
            found = measured(name + ending, scored.statistics, column)
            assert found is not None and found.whole == pytest.approx(plain.corpus[name], abs=1e-12)
    assert scored.corpus["Bleu_1"] != scored.corpus["Bleu_1_word"]
    assert "METEOR_word" not in scored.corpus
    assert scored.corpus["counts_recall"] == 1.0 and scored.corpus["objects_recall"] < 1.0


def test_chinese_words_need_rjieba(monkeypatch):
    monkeypatch.setattr("src.scoring.importlib.util.find_spec", lambda name: None)
    scored = Scorer({"1": ["一只狗", "狗"]}, Scoring("character", ["Bleu_1"])).score({"1": "狗"})
    assert scored.corpus["Bleu_1_word"] is None and "pip install rjieba" in scored.not_computed["Bleu_1_word"]


def test_leaving_each_reference_out_by_hand():
    how = Scoring(metrics=FAST, leave_one_out=True)
    found = Scorer(REFERENCES, how).score(CAPTIONS)
    people = Scorer(REFERENCES, how).score(None)
    by_hand, of_people = [], []
    for k in range(3):
        rest = {image: group[:k] + group[k + 1 :] for image, group in REFERENCES.items()}
        by_hand.append(score_captions(CAPTIONS, rest, metrics=FAST))
        held = {image: group[k] for image, group in REFERENCES.items()}
        of_people.append(score_captions(held, rest, metrics=FAST))
    for scored, single in ((found, by_hand), (people, of_people)):
        for name in FAST:
            assert scored.corpus[name] == pytest.approx(np.mean([each.corpus[name] for each in single]))
            means = [np.mean([each.per_image[image][name] for each in single]) for image in REFERENCES]
            assert [row[name] for row in scored.per_image.values()] == pytest.approx(means)
            column = np.array(means)
            assert measured(name, scored.statistics, column).whole == pytest.approx(scored.corpus[name], abs=1e-12)
        assert scored.statistics["Bleu"].shape == (3, 3, 10)
        assert isinstance(scored.corpus["distinct_words"], int)


def test_images_with_fewer_references_come_round_again():
    references = {"1": ["a", "b", "c"], "2": ["x", "y"]}
    found = foldings(references)
    assert [held for held, _ in found] == [{"1": "a", "2": "x"}, {"1": "b", "2": "y"}, {"1": "c", "2": "x"}]
    assert [rest for _, rest in found] == [
        {"1": ["b", "c"], "2": ["y"]},
        {"1": ["a", "c"], "2": ["x"]},
        {"1": ["a", "b"], "2": ["y"]},
    ]
    with pytest.raises(ValueError, match="leave_one_out: 1 images have a single reference, such as 2"):
        foldings({"1": ["a", "b"], "2": ["x"]})


def test_tokenized_references_are_kept(tmp_path, monkeypatch):
    how = Scoring(metrics=FAST, cache=tmp_path / "tokenized")
    first = Scorer(REFERENCES, how)
    (kept,) = (tmp_path / "tokenized").iterdir()
    tokenizer = first.scorers[0].tokenize
    calls = []
    monkeypatch.setitem(
        __import__("src.metrics.captions", fromlist=["TOKENIZERS"]).TOKENIZERS,
        first.tokenizer,
        _named(tokenizer, lambda captions: calls.append(len(captions)) or tokenizer(captions)),
    )
    again = Scorer(REFERENCES, how)
    assert calls == [] and again.scorers[0].references == first.scorers[0].references
    kept.write_text("[[")
    assert Scorer(REFERENCES, how).scorers[0].references == first.scorers[0].references and calls == [3]
    Scorer({**REFERENCES, "3.jpg": ["another"]}, how)
    assert calls == [3, 3], "other references are tokenized"


def _named(like, function):
    function.__name__ = like.__name__
    return function


def test_what_is_wrong_as_a_whole_is_said():
    scored = Scorer(REFERENCES, Scoring(metrics=("Bleu_1",))).score(dict.fromkeys(REFERENCES, "a a a a a"))
    assert [alarm.split(":")[0] for alarm in scored.alarms] == [
        "one caption for 3 of 3 pictures",
        "3 of 3 captions repeat a phrase endlessly, such as “a a a a a”",
    ]


def test_nouns(tmp_path):
    path = tmp_path / "nouns.json"
    path.write_text('{"1.jpg": {"objects": [["dog"]]}, "9.jpg": {"objects": [["cat"]]}}')
    nouns = read_nouns(path, ["1.jpg"])
    references = {"1.jpg": REFERENCES["1.jpg"]}
    scored = Scorer(references, Scoring(metrics=("Bleu_1",)), nouns=nouns).score({"1.jpg": "a dog"})
    assert scored.corpus["objects_named"] == 1.0
    with pytest.raises(ValueError, match=r"nouns.json: no nouns of 1 images, such as 2.jpg"):
        read_nouns(path, ["1.jpg", "2.jpg"])


def test_spice_that_cannot_be_computed_says_why(tmp_path):
    scored = Scorer(REFERENCES, Scoring(metrics=("Bleu_1",), spice=tmp_path)).score(CAPTIONS)
    assert scored.corpus["SPICE"] is None and "lacks stanford-corenlp-3.6.0.jar" in scored.not_computed["SPICE"]


@pytest.mark.flickr8k
@pytest.mark.skipif(find_java() is None, reason="no Java")
@pytest.mark.skipif(not os.environ.get("FLICKR8K"), reason="set FLICKR8K to the folder of its TSVs")
def test_equal_to_pycocoevalcap_on_a_thousand_real_captions(monkeypatch):
    """Each validation picture's first caption against its other four, every score of pycocoevalcap that needs no
    further download, over all and picture by picture, with its own tokenizer and its own METEOR."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    from src.predictions import read_references

    monkeypatch.setenv("PATH", os.path.dirname(str(find_java())), prepend=os.pathsep)
    groups = read_references(Path(os.environ["FLICKR8K"]) / "val.tsv").captions
    captions = {image: group[0] for image, group in groups.items()}
    references = {image: group[1:] for image, group in groups.items()}
    assert len(captions) >= 1000
    scored = Scorer(references, Scoring()).score(captions)
    tokenize = PTBTokenizer().tokenize
    gts = tokenize({image: [{"caption": text} for text in group] for image, group in references.items()})
    res = tokenize({image: [{"caption": text}] for image, text in captions.items()})
    expected = dict(zip(METRICS, zip(*Bleu(4).compute_score(gts, res, verbose=0), strict=True), strict=False))
    expected |= {"METEOR": Meteor().compute_score(gts, res)}
    expected |= {"ROUGE_L": Rouge().compute_score(gts, res), "CIDEr": Cider().compute_score(gts, res)}
    assert set(expected) == set(METRICS)
    for name, (corpus, each) in expected.items():
        assert scored.corpus[name] == pytest.approx(corpus, abs=1e-6), name
        ours = [scored.per_image[image][name] for image in gts]
        assert ours == pytest.approx([float(value) for value in each], abs=1e-6), name
