import pytest

from src.data.sides import swap_sides


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("A dog to the left of a cat.", "A dog to the right of a cat."),
        ("Left, LEFT and left-hand", "Right, RIGHT and right-hand"),
        ("the leftmost, left-most, lefthand and left-handed", "the rightmost, right-most, righthand and right-handed"),
        ("leftward, rightwards, the leftside", "rightward, leftwards, the rightside"),
        ("from left to right; upper-left/lower-right", "from right to left; upper-right/lower-left"),
        ("the right's", "the left's"),
        ("狗在猫的左边,右侧有树", "狗在猫的右边,左侧有树"),
        ("一个left边", "一个right边"),
    ],
)
def test_sides_are_swapped_both_ways(text, mirrored):
    assert swap_sides(text) == mirrored
    assert swap_sides(mirrored) == text


@pytest.mark.parametrize(
    "text",
    [
        "a bright upright frightened wright with copyright",
        "a cleft, leftovers, the rightful heir, righteous",
        "三岁左右的孩子左右看",
        "nothing of the sort",
    ],
)
def test_other_words_stay(text):
    assert swap_sides(text) == text
