import pytest

from src.metrics.named import named_shares

DOG, HOT_DOG = ["dog", "dogs"], ["hot dog", "hot dogs"]


def test_micro_average_by_part():
    nouns = {
        "1": {"objects": [DOG, ["cat", "cats"]], "backgrounds": [["grass"]]},
        "2": {"objects": [["bus", "buses"]], "backgrounds": [["brick wall"]]},
    }
    captions = {"1": "Two Dogs on the grass.", "2": "a bus, before a brick wall"}
    assert named_shares(captions, nouns) == {"objects_named": pytest.approx(2 / 3), "backgrounds_named": 1.0}
    captions["2"] = "A business by a brick building"
    assert named_shares(captions, nouns) == {"objects_named": pytest.approx(1 / 3), "backgrounds_named": 0.5}


def test_a_longer_noun_swallows_the_shorter_also_another_scene_s():
    nouns = {"1": {"objects": [DOG]}, "2": {"objects": [HOT_DOG]}, "3": {"objects": [DOG, HOT_DOG]}}
    share = lambda image, caption: named_shares({image: caption}, nouns)["objects_named"]  # noqa: E731
    assert share("1", "a hot dog") == 0.0
    assert share("1", "a hot-dog") == 0.0
    assert share("1", "a hot dog beside a dog") == 1.0
    assert share("2", "two Hot  Dogs") == 1.0
    assert share("2", "a dog in hot weather") == 0.0
    assert share("3", "two hot dogs") == 0.5
    assert share("3", "the dog eats a hot dog") == 1.0


def test_the_longest_goes_first_wherever_it_stands():
    nouns = {"1": {"objects": [["hot dog"], ["dog food bowl"], ["dog"]]}}
    assert named_shares({"1": "a hot dog food bowl"}, nouns) == {"objects_named": pytest.approx(1 / 3)}


def test_chinese_by_substring():
    nouns = {
        "1": {"objects": [["狗"]], "backgrounds": [["草地"]]},
        "2": {"objects": [["热狗"]], "backgrounds": [["沙子", "沙滩"]]},
        "3": {"objects": [["dvd"]]},
    }
    captions = {"1": "一个热狗在草地上", "2": "沙滩上有热狗", "3": "一张dvd光盘"}
    assert named_shares(captions, nouns) == {"objects_named": pytest.approx(2 / 3), "backgrounds_named": 1.0}


def test_a_noun_counts_once_and_a_part_without_nouns_has_no_share():
    nouns = {"1": {"objects": [DOG, DOG, ["cat"]], "backgrounds": []}}
    assert named_shares({"1": "dog dog dogs"}, nouns) == {"objects_named": 0.5}
    assert named_shares({}, nouns) == {}


def test_unknown_images():
    with pytest.raises(ValueError, match="'2'"):
        named_shares({"2": "a dog"}, {"1": {"objects": [DOG]}})
