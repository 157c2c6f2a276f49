import random

import pytest

from src.metrics.memory import longest_runs, memory_report


def by_brute_force(caption, training):
    words = caption.split()
    runs = [words[i:j] for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
    said = [each.split() for each in training]
    held = [len(run) for run in runs if any(run == each[k : k + len(run)] for each in said for k in range(len(each)))]
    return max(held, default=0)


def test_the_longest_run_is_that_of_brute_force():
    rng = random.Random(0)
    for _ in range(20):
        captions, training = (
            [" ".join(rng.choices("abcdef"[:letters], k=rng.randint(0, 9))) for _ in range(rng.randint(1, 12))]
            for letters in (6, 5)
        )
        assert longest_runs(captions, training).tolist() == [by_brute_force(each, training) for each in captions]
    assert longest_runs(["a b"], []).tolist() == [0]


TRAINING = {"a dog runs": 3, "a cat": 1, "two dogs play here": 1}


def test_shares_are_those_by_hand():
    captions = {"1": "a dog runs", "2": "a dog runs", "3": "a dog sleeps here", "4": "a cat"}
    references = {"1": ["a dog runs", "one dog"], "2": ["a hound"], "3": ["x"], "4": ["y", "z", "two dogs play here"]}
    found = memory_report(captions, references, TRAINING)
    assert found["share"] == 3 / 4 and found["people"]["share"] == 2 / 7
    assert found["run"] == (3 + 3 + 2 + 2) / 4 and found["length"] == (3 + 3 + 4 + 2) / 4
    assert found["people"]["run"] == (3 + 1 + 1 + 0 + 0 + 0 + 4) / 7
    assert found["captions"] == [
        {"caption": "a dog runs", "images": 2, "training": 3},
        {"caption": "a cat", "images": 1, "training": 1},
    ]
    assert "own" not in found


def test_of_training_pictures_their_own_captions_are_counted_apart():
    captions = {"1": "a dog runs", "2": "a cat"}
    references = {"1": ["a dog runs"], "2": ["two dogs play here"]}
    found = memory_report(captions, references, TRAINING, own=True)
    assert found["share"] == 1 and found["own"] == pytest.approx(0.5) and "people" not in found
