"""Sentence → words, and back.

What a model generates is joined to a sentence and tokenized anew for the scores, so a tokenizer here need not
be the one of the evaluation; but a word that it splits otherwise is a word that scores lower.
"""

import importlib
import itertools
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal, Protocol

Evaluation = Literal["ptb", "character", "script"]
"""A tokenization for the scores; `script` is that of the references' script: character for Chinese, else ptb."""


class Tokenizer(Protocol):
    """What every tokenizer has. `tokens(join(tokens(text))) == tokens(text)`, but for `RJiebaTokenizer`."""

    name: str
    evaluation: Evaluation
    """Which tokenization the scores use."""

    def tokens(self, text: str) -> list[str]:
        """A sentence's words, lower-case, without punctuation."""
        ...

    def join(self, tokens: Sequence[str]) -> str:
        """Words as a sentence."""
        ...


_QUOTES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "´": "'", "`": "'", "‐": "-", "‑": "-"})


def _normalised(text: str) -> str:
    """Lower-case, with full-width letters and digits, ligatures and accents in one form (Unicode NFKC)."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_QUOTES))
    return text.lower()


_CLITIC = re.compile(r"(?<=[^\W_])(n't|'(?:s|m|d|re|ve|ll))(?=(?:n't)*(?![^\W_]))")
"""At the end of a word, or before n't that is; an underscore ends words, too."""
_ENGLISH = re.compile(
    r"""
    \d+(?:[.,:/]\d+)+                          # 1,000  5:30  1/2
    | (?:[^\W\d_]\.)+[^\W\d_]\b\.?             # u.s.  a.m.
    | (?:mr|mrs|ms|dr|st|mt|jr|sr|vs|etc)\.
    | [^\W_]+(?:[-/_'][^\W_]+)*               # words: t-shirt  man/woman  o'clock
    | '(?:s|m|d|re|ve|ll)(?![^\W_]|')           # clitics
    | [$£€¥¢%&\#@+=*/°]
    """,
    re.VERBOSE,
)
_NO_CLITIC = "".join(f"(?<!{clitic})" for clitic in ("n't", "'s", "'m", "'d", "'re", "'ve", "'ll"))
_GLUE = re.compile(rf"(?<=\S) ('(?:s|m|d|re|ve|ll))(?!\S)|{_NO_CLITIC}(?<=[^\W_]) (n't)(?!\S)")
"""n't is glued to no other clitic, and to no abbreviation's full stop: divided again, they would be one word."""


class EnglishTokenizer:
    """Penn Treebank words in pure Python: lower-case, clitics apart (`dog's` → `dog 's`, `isn't` → `is n't`).

    Punctuation is dropped as caption evaluation does (pycocoevalcap's PTBTokenizer), and so are brackets,
    which it spells out, and emoji. Numbers (`1,000`), abbreviations (`u.s.`, `mr.`) and words with inner
    hyphens, slashes or apostrophes (`t-shirt`, `o'clock`) stay whole. Treebank's splits of `cannot` and
    `gonna` are left to the evaluation.
    """

    name = "english"
    evaluation: Evaluation = "ptb"

    def tokens(self, text: str) -> list[str]:
        """A sentence's words, lower-case, without punctuation."""
        text = _normalised(text)
        if "'" in text:
            text = _CLITIC.sub(r" \1", text)
        return _ENGLISH.findall(text)

    def join(self, tokens: Sequence[str]) -> str:
        """Words as a sentence, clitics glued to the word before them."""
        return _GLUE.sub(r"\1\2", " ".join(tokens))


_CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_LETTERS = rf"[^\W_{_CJK}]+"
_CHARACTERS = re.compile(rf"[{_CJK}]|\d+(?:[.,:]\d+)+|{_LETTERS}(?:['’-]{_LETTERS})*")
_IS_CJK = re.compile(f"[{_CJK}]")


def is_chinese(token: str) -> bool:
    """Whether a token begins with a Chinese character or kana."""
    return _IS_CJK.match(token) is not None


class CharacterTokenizer:
    """Chinese (and kana) by character, so that no word segmentation is needed; Latin words and numbers whole.

    Lower-case; full-width letters and digits in their ordinary form; punctuation and symbols dropped.
    """

    name = "character"
    evaluation: Evaluation = "character"

    def tokens(self, text: str) -> list[str]:
        """A sentence's characters, and words of other scripts, lower-case, without punctuation."""
        return _CHARACTERS.findall(_normalised(text))

    def join(self, tokens: Sequence[str]) -> str:
        """Characters as a sentence; spaces only between two words that are not Chinese."""
        text, spaced = "", False
        for token in tokens:
            word = not _IS_CJK.match(token)
            text += f" {token}" if word and spaced else token
            spaced = word
        return text


_CHINESE_RUN = re.compile(f"([{_CJK}]+)")


class RJiebaTokenizer(CharacterTokenizer):
    """Chinese words, as rjieba divides them (jieba's dictionary and hidden Markov model, in Rust); the rest as
    CharacterTokenizer does. Scores are by character, so that they can be set beside those of `character`.

    What is between two punctuation marks is divided by itself. A sentence that was joined again has none, and may be
    divided otherwise where one was; its characters are the same, and so are its scores.
    """

    name = "rjieba"
    package = "rjieba"
    """What has to be installed."""

    @cached_property
    def _cut(self) -> Callable[[str], list[str]]:
        try:
            return importlib.import_module("rjieba").cut
        except ImportError as error:
            raise ImportError("tokenizer=rjieba needs rjieba: `pip install rjieba` first") from error

    def tokens(self, text: str) -> list[str]:
        """A sentence's words, lower-case, without punctuation."""
        words: list[str] = []
        for chinese, run in _by_script(text):
            words += self._cut(run) if chinese else _CHARACTERS.findall(run)
        return words


class MixedTokenizer:
    """English and Chinese in one data set or one sentence: what is Chinese (or kana) by character as CharacterTokenizer
    divides it, what is between as EnglishTokenizer does."""

    name = "mixed"
    evaluation: Evaluation = "script"

    def __init__(self) -> None:
        self.english = EnglishTokenizer()

    def tokens(self, text: str) -> list[str]:
        """A sentence's characters and words, lower-case, without punctuation."""
        words: list[str] = []
        for chinese, run in _by_script(text):
            words += run if chinese else self.english.tokens(run)
        return words

    def join(self, tokens: Sequence[str]) -> str:
        """Tokens as a sentence; spaces only between two that are not Chinese, none before a clitic."""
        runs = itertools.groupby(tokens, lambda token: bool(_IS_CJK.match(token)))
        return "".join("".join(run) if chinese else self.english.join(list(run)) for chinese, run in runs)


def _by_script(text: str) -> list[tuple[bool, str]]:
    """A sentence, normalised, as runs of Chinese (True) and of all else."""
    return [(bool(i % 2), run) for i, run in enumerate(_CHINESE_RUN.split(_normalised(text))) if run]
