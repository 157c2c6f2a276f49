"""Left ↔ right in a caption, for pictures that are mirrored in training."""

import re

_SIDES = re.compile(
    r"(?<![a-z])(?:left|right)(?=(?:most|hand(?:ed|er)?|wards?|side|y)?(?![a-z]))|左右|左|右", re.IGNORECASE
)
_OTHER = {"left": "right", "right": "left", "左": "右", "右": "左", "左右": "左右"}


def swap_sides(text: str) -> str:
    """The caption of the mirrored picture: left ↔ right (also leftmost, left-hand, leftwards …), as they are written,
    and 左 ↔ 右. `bright`, `upright` and `leftovers` stay, and so does 左右, "both sides" or "about".

    It reads words, not grammar: "left" of leaving ("the water left by the sprinklers") and "right" as "just" ("right
    behind him") are swapped too, and neither clockwise nor what a sign says is known to change in a mirror.
    """
    return _SIDES.sub(_swapped, text)


def names_side(word: str) -> bool:
    """Whether a caption with this word (of any tokenizer) may be one that `swap_sides` changes."""
    return any(side in word for side in ("left", "right", "左", "右"))


def _swapped(found: re.Match[str]) -> str:
    word = found[0]
    other = _OTHER[word.lower()]
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other
