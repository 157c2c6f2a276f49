"""Counts by hand: what captions say of people beside what references say."""

import json
import math

import numpy as np
import pytest

from src.metrics.content import ContentWords
from src.metrics.groups import MIXED, NEUTRAL, NOTHING, GroupWords, flat_scores, group_report, label, summary
from src.significance import mean_of

WORDS = GroupWords.load()
REFERENCES = {
    "1": ["a woman on a bench", "a lady sits", "a person sits"],
    "2": ["a girl runs", "a young girl in red", "a child runs"],
    "3": ["a man rides", "a guy on a horse", "a rider"],
    "4": ["a man and a woman", "a couple", "two people"],
    "5": ["a skier", "people on a slope", "snow"],
    "6": ["a dog in the snow", "a dog", "an old boat"],
    "7": ["an old man sits", "an elderly gentleman", "a man"],
    "8": ["a boy with a girl", "a boy", "a girl"],
}
CAPTIONS = {
    "1": "a man on a bench",
    "2": "a boy runs",
    "3": "a man on a horse",
    "4": "a man and a woman",
    "5": "a man on a slope",
    "6": "a dog in the snow",
    "7": "a man is sitting",
    "8": "people are standing",
}


def test_counts_are_those_by_hand():
    report = group_report(CAPTIONS, REFERENCES, WORDS)
    gender = report["attributes"]["gender"]
    assert gender["values"] == ["women", "men"]
    table = {(own, said): times for own, row in gender["table"].items() for said, times in row.items() if times}
    assert table == {
        ("women", "men"): 2,
        ("men", "men"): 2,
        (MIXED, MIXED): 1,
        (MIXED, NEUTRAL): 1,  # 8: one says both, one a boy, one a girl
        (NEUTRAL, "men"): 1,
        (NOTHING, NOTHING): 1,
    }
    assert {v: (each["wrong"], each["of"]) for v, each in gender["errors"].items()} == {"women": (2, 2), "men": (0, 2)}
    assert (gender["guessed"]["wrong"], gender["guessed"]["of"]) == (1, 2)
    assert gender["references"] == {"women": 2, "men": 2} and gender["captions"] == {"women": 0, "men": 5}
    assert flat_scores(report) == {"gender_error": 2 / 4}
    age = report["attributes"]["age"]
    assert age["table"]["old"] == {"adult": 1, "child": 0, "old": 0, MIXED: 0, NEUTRAL: 0, NOTHING: 0}
    assert (age["errors"]["child"]["wrong"], age["errors"]["child"]["of"]) == (0, 2)
    words = report["words"]
    assert words["man"]["captions"] == 5 / 8 and words["woman"]["captions"] == 1 / 8
    assert words["man"]["references"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 3) / 8)
    assert words["old man"]["references"] == pytest.approx((2 / 3) / 8), "and is no man besides"
    assert json.loads(json.dumps(report)) == report


def test_pictures_of_nobody_have_no_report():
    assert group_report({"6": "a dog"}, REFERENCES, WORDS) is None
    assert group_report({"6": "a woman"}, REFERENCES, WORDS) is None, "whatever the caption says"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (["women", "women", "men"], "women"),
        (["women", "men"], MIXED),
        (["women", MIXED, NEUTRAL], MIXED),
        (["men", NEUTRAL, NOTHING, NEUTRAL, NOTHING], "men"),
        ([NEUTRAL, NOTHING], NEUTRAL),
        ([NOTHING, NOTHING], NOTHING),
    ],
)
def test_a_label_is_what_most_say_of_those_that_say_any(said, expected):
    assert label(said) == expected


@pytest.mark.parametrize(
    ("caption", "gender", "age"),
    [
        ("A woman's dog", "women", "adult"),
        ("two boys and a girl", MIXED, "child"),
        ("an older man waves", "men", "old"),
        ("old buildings by the sea", NOTHING, NOTHING),
        ("kids build a snowman", NEUTRAL, "child"),
        ("a dog shakes water off his back", NOTHING, NOTHING),
        ("一个小女孩在玩", "women", "child"),
        ("一男一女在跳舞", MIXED, "adult"),
        ("一位老人坐着", NEUTRAL, "old"),
        ("人行道上的狗", NOTHING, NOTHING),
        ("一群人在街道上", NEUTRAL, NOTHING),
    ],
)
def test_what_sentences_say(caption, gender, age):
    groups = WORDS.said(caption)
    assert (WORDS.value("gender", groups), WORDS.value("age", groups)) == (gender, age)


def test_scores_by_group_and_the_interval_of_their_difference():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.4, 0.1, 40), rng.normal(0.6, 0.1, 60), [9.0]])
    captions = {str(i): "x" for i in range(101)}
    references = {str(i): ["a woman" if i < 40 else "a man" if i < 100 else "a dog"] for i in range(101)}
    report = group_report(captions, references, WORDS, measured={"CIDEr": mean_of(values)})
    (row,) = report["attributes"]["gender"]["scores"]
    women, men = values[:40], values[40:100]
    assert row["scores"] == {"women": pytest.approx(women.mean()), "men": pytest.approx(men.mean())}
    error = math.sqrt(women.var() / 40 + men.var() / 60)
    difference = women.mean() - men.mean()
    assert row["low"] == pytest.approx(difference - 1.96 * error, abs=0.15 * error)
    assert row["high"] == pytest.approx(difference + 1.96 * error, abs=0.15 * error)
    few = {name: references[name] for name in [*map(str, range(5)), *map(str, range(40, 60))]}
    measured = {"CIDEr": mean_of(values[[*range(5), *range(40, 60)]])}
    report = group_report(dict.fromkeys(few, "x"), few, WORDS, measured=measured)
    assert report["attributes"]["gender"]["scores"] == [], "five pictures are too few"


def test_what_goes_with_wrong_words():
    content = ContentWords.load()
    captions = {str(i): "a man on a skateboard" for i in range(4)} | {"4": "a woman on a skateboard"}
    captions |= {str(i): "a woman by a tree" for i in range(5, 10)}
    references = {name: ["a woman", "a lady"] for name in captions}
    report = group_report(captions, references, WORDS, content)
    (row,) = report["attributes"]["gender"]["context"]
    assert row == {"label": "women", "said": "men", "concept": "skateboard", "wrong": 4, "of": 5}


def test_the_model_card_says_it():
    text = summary(group_report(CAPTIONS, REFERENCES, WORDS))
    assert "| women | 2 | 0 | 2 | 0 |" in text and "| men | 2 | 2 | 0 | 0 |" in text
    assert "the caption does in 1 of 2" in text


def test_a_list_of_ones_own(tmp_path):
    path = tmp_path / "own.tsv"
    path.write_text(
        "# jobs\ngroup\tjob\tEnglish\tChinese\ndoctor\tmedical\tdoctor, nurse\t医生\nchef\tkitchen\tchef\t-\n"
    )
    words = GroupWords.load(path)
    assert words.values == {"job": ["medical", "kitchen"]} and words.value("job", words.said("医生在")) == "medical"
    report = group_report({"1": "a chef"}, {"1": ["a nurse"]}, words)
    assert report["attributes"]["job"]["errors"]["medical"]["wrong"] == 1 and flat_scores(report) == {}


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("woman\twomen\tx\t-\n", "line 1: the first row should name the columns"),
        ("group\ta\tEnglish\tChinese\nx\ty\tz\n", "line 2: 4 columns"),
        ("group\ta\tEnglish\tChinese\nx\ty\tz\t-\nx\ty\tq\t-\n", "'x' has a row already"),
        ("group\ta\tEnglish\tChinese\nx\ty\tz\t-\nw\ty\tz\t-\n", "'z' is listed in line 2 too"),
        ("group\ta\tEnglish\tChinese\nx\tmixed\tz\t-\n", "'mixed' is no value of a"),
        ("group\ta\tEnglish\tChinese\nx\ty\tz,,q\t-\n", "'' is no form"),
        ("# nothing\n", "no row names a group"),
    ],
)
def test_a_wrong_list_is_one_sentence(tmp_path, rows, sentence):
    (tmp_path / "own.tsv").write_text(rows)
    with pytest.raises(ValueError, match="own.tsv") as error:
        GroupWords.load(tmp_path / "own.tsv")
    assert sentence in str(error.value)
    with pytest.raises(ValueError, match="groups=.*nowhere.tsv"):
        GroupWords.load(tmp_path / "nowhere.tsv")
