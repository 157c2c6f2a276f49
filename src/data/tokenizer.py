"""Sentence → words, and back.

What a model generates is joined to a sentence and tokenized anew for the scores, so a tokenizer here need not
be the one of the evaluation; but a word that it splits otherwise is a word that scores lower.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal, Protocol


class Tokenizer(Protocol):
    """What every tokenizer has. `tokens(join(tokens(text))) == tokens(text)`."""

    name: str
    evaluation: Literal["ptb", "character"]
    """Which tokenization the scores use: `ptb` or `character`."""

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


_CLITIC = re.compile(r"(?<=[^\W_])(n't|'(?:s|m|d|re|ve|ll))(?!\w)")
_ENGLISH = re.compile(
    r"""
    \d+(?:[.,:/]\d+)+                          # 1,000  5:30  1/2
    | (?:[^\W\d_]\.)+[^\W\d_]\b\.?             # u.s.  a.m.
    | (?:mr|mrs|ms|dr|st|mt|jr|sr|vs|etc)\.
    | [^\W_]+(?:[-/_'][^\W_]+)*               # words: t-shirt  man/woman  o'clock
    | '(?:s|m|d|re|ve|ll)(?![\w'])             # clitics
    | [$£€¥¢%&\#@+=*/°]
    """,
    re.VERBOSE,
)
_GLUE = re.compile(r"(?<=\S) (n't|'(?:s|m|d|re|ve|ll))(?!\S)")


class EnglishTokenizer:
    """Penn Treebank words in pure Python: lower-case, clitics apart (`dog's` → `dog 's`, `isn't` → `is n't`).

    Punctuation is dropped as caption evaluation does (pycocoevalcap's PTBTokenizer), and so are brackets,
    which it spells out, and emoji. Numbers (`1,000`), abbreviations (`u.s.`, `mr.`) and words with inner
    hyphens, slashes or apostrophes (`t-shirt`, `o'clock`) stay whole. Treebank's splits of `cannot` and
    `gonna` are left to the evaluation.
    """

    name = "english"
    evaluation: Literal["ptb", "character"] = "ptb"

    def tokens(self, text: str) -> list[str]:
        """A sentence's words, lower-case, without punctuation."""
        text = _normalised(text)
        if "'" in text:
            text = _CLITIC.sub(r" \1", text)
        return _ENGLISH.findall(text)

    def join(self, tokens: Sequence[str]) -> str:
        """Words as a sentence, clitics glued to the word before them."""
        return _GLUE.sub(r"\1", " ".join(tokens))


_CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_LETTERS = rf"[^\W_{_CJK}]+"
_CHARACTERS = re.compile(rf"[{_CJK}]|\d+(?:[.,:]\d+)+|{_LETTERS}(?:['’-]{_LETTERS})*")
_IS_CJK = re.compile(f"[{_CJK}]")


class CharacterTokenizer:
    """Chinese (and kana) by character, so that no word segmentation is needed; Latin words and numbers whole.

    Lower-case; full-width letters and digits in their ordinary form; punctuation and symbols dropped.
    """

    name = "character"
    evaluation: Literal["ptb", "character"] = "character"

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
