"""Words that captions say and no reference does, and words that most references say and captions leave out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_WORDS = """
a an the and or but of in on at to for from by with without into onto over under up down out off as than then that this
these those there here it its he she they them their his her him we you i who which what where while when is are was
were be been being has have had having do does did can could will would may might should not no n't 's s some any each
other another one through across near next behind front around about against along between beside inside outside above
below very so just also both all
的 了 在 着 和 与 是 有 一个 一 个 上 里 中 下 把 被 将 从 向 对 他 她 它 们 他们 她们 这 那 正 正在 地 得 边 面 上面
旁边 前 后 后面 前面 一只 一名 一位 一条 一群
"""
FUNCTION_WORDS = frozenset(_WORDS.split())
"""Words that say nothing of what a picture shows; rankings of mistakes and tags leave them out."""


class Mistake(NamedTuple):
    """How often a word goes wrong."""

    word: str
    times: int
    """Pictures on which it does."""
    of: int
    """Pictures whose caption says the word; or, of words left out, most of whose references do."""


def wrongly_said(captions: Mapping[str, str], references: Mapping[str, Sequence[str]], most: int = 30) -> list[Mistake]:
    """The words that captions most often say where no reference says them.

    Args:
        captions: space-joined tokens, one an image.
        references: the same images', tokenized alike.
        most: how many words, function words left out.
    """
    said: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for image, caption in captions.items():
        words = set(caption.split()) - FUNCTION_WORDS
        said.update(words)
        wrong.update(words.difference(*(reference.split() for reference in references[image])))
    return _ranked(wrong, said, most)


def left_out(captions: Mapping[str, str], references: Mapping[str, Sequence[str]], most: int = 30) -> list[Mistake]:
    """The words that captions most often leave out where more than half of the picture's references say them; see
    `wrongly_said` for the arguments."""
    wanted: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    for image, caption in captions.items():
        group = references[image]
        saying = Counter(word for reference in group for word in set(reference.split()))
        words = {word for word, times in saying.items() if 2 * times > len(group)} - FUNCTION_WORDS
        wanted.update(words)
        missed.update(words.difference(caption.split()))
    return _ranked(missed, wanted, most)


def _ranked(times: Counter[str], of: Counter[str], most: int) -> list[Mistake]:
    order = sorted(times, key=lambda word: (-times[word], -times[word] / of[word], word))
    return [Mistake(word, times[word], of[word]) for word in order[:most]]
