import pytest

from src.metrics.degenerate import degenerate, repeated

SOUND = ["a dog runs", "two cats sleep on a bed", "a man rides a horse", "a boy and a girl play", "a red car", "snow"]
REFERENCES = {str(i): [caption, f"{caption} outside"] for i, caption in enumerate(SOUND)}


def test_sound_captions_raise_no_alarm():
    assert degenerate(SOUND, REFERENCES) == []
    assert degenerate(["a dog runs", "a dog runs", *SOUND[2:]], REFERENCES) == [], "a third exactly"
    assert degenerate(["a dog"] * 2, {"0": ["a dog"], "1": ["a dog"]}) == [], "of two pictures, two may be alike"
    assert degenerate([], {}) == []


@pytest.mark.parametrize(
    ("captions", "words"),
    [
        (["a dog"] * 3 + SOUND[:3], ["one caption for 3 of 6 pictures: “a dog”"]),
        (["", "", *SOUND[2:]], ["2 of 6 captions are empty"]),
        ([""] * 6, ["6 of 6 captions are empty"]),
        (["a dog dog dog dog", *SOUND[1:]], ["1 of 6 captions repeat a phrase endlessly, such as “a dog dog dog dog”"]),
        (["in the in the in the", *SOUND[1:]], ["1 of 6 captions repeat a phrase endlessly"]),
        (["狗 狗 狗 狗"] * 3 + SOUND[:3], ["one caption for 3 of 6 pictures", "3 of 6 captions repeat"]),
    ],
)
def test_each_alarm_names_what_it_is_about(captions, words):
    found = degenerate(captions, REFERENCES)
    assert len(found) == len(words)
    assert all(sentence.startswith(start) for sentence, start in zip(found, words, strict=True))


def test_a_collapsed_vocabulary():
    references = {str(i): [f"word{i} and word{i + 1000} together"] for i in range(200)}
    captions = [["a dog", "two dogs", "a cat", "two cats"][i % 4] for i in range(200)]
    (sentence,) = degenerate(captions, references)
    assert sentence == "the vocabulary has collapsed: all captions together use 6 words, the references 402"
    assert degenerate([f"word{i % 9} and" for i in range(200)], references) == [], "ten words are enough of 402"


@pytest.mark.parametrize(
    "caption", ["dog dog dog", "a big big big dog", "a dog and a dog and", "no no no way", "dogs dog dog dog"]
)
def test_what_is_no_endless_repetition(caption):
    assert repeated(caption) is None


@pytest.mark.parametrize(
    ("caption", "phrase"),
    [
        ("a a a a", "a"),
        ("on on on on on the", "on"),
        ("a dog and a dog and a dog and", "a dog and"),
        ("it is on the bed on the bed on the bed", "on the bed"),
    ],
)
def test_endless_repetition(caption, phrase):
    assert repeated(caption) == phrase
