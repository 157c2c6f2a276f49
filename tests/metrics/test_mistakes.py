from src.metrics.mistakes import Mistake, left_out, wrongly_said

REFERENCES = {
    "1": ["a brown dog runs", "the dog runs on grass", "a dog"],
    "2": ["two cats", "two cats sleep", "some kittens"],
    "3": ["a man on a horse", "a rider", "a man rides a horse"],
}


def test_by_hand():
    captions = {"1": "a cat on the grass", "2": "two cats", "3": "a cat and a man"}
    assert wrongly_said(captions, REFERENCES) == [Mistake("cat", 2, 2)]
    assert left_out(captions, REFERENCES) == [Mistake("dog", 1, 1), Mistake("horse", 1, 1), Mistake("runs", 1, 1)]
    assert wrongly_said(captions | {"2": "two cat"}, REFERENCES) == [Mistake("cat", 3, 3)]


def test_the_most_frequent_come_first_and_no_more_than_asked_for():
    captions = {"1": "dog zebra", "2": "dog zebra", "3": "dog tree"}
    assert wrongly_said(captions, REFERENCES, most=2) == [Mistake("zebra", 2, 2), Mistake("dog", 2, 3)]


def test_half_of_two_references_is_not_most():
    references = {"1": ["a dog", "a puppy"]}
    assert left_out({"1": "a cat"}, references) == []
    assert wrongly_said({"1": "a puppy of the dog"}, references) == [], "either will do"
