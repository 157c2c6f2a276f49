"""Captions to space-joined tokens for scoring: Penn Treebank for English, characters for Chinese.

Every tokenizer takes and gives `{image: [caption, ...]}`, keeps order and number of captions, and keeps
nothing between calls: `cached` does, for the references that one scores against again and again.
"""

import hashlib
import json
import re
import subprocess
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from src.data.tokenizer import RJiebaTokenizer
from src.files import write_atomically
from src.metrics.java import JavaNotFound, java_environment, pycocoevalcap_folder, require_java

__all__ = [
    "JavaNotFound",
    "cached",
    "character_tokenize",
    "ptb_tokenize",
    "ptb_tokenize_python",
    "share_of_chinese",
    "word_tokenize",
]

# pycocoevalcap drops these after tokenizing. Lower-casing makes -LRB- into -lrb-, so brackets in fact stay.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)

# What the Java tokenizer takes for the end of a line, and so of a caption.
_LINE_BREAK = re.compile("[\n\r\v\f\u2028\u2029]")


def ptb_tokenize(captions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Lower-cased Penn Treebank tokens without punctuation, equal to pycocoevalcap 1.2's PTBTokenizer.

    The same Stanford CoreNLP 3.4.1 runs, but reads a pipe, so that nothing is written beside its jar. A line
    break inside a caption counts as a space (pycocoevalcap does so for `\\n`, and loses its place at the
    others). Raises JavaNotFound without a Java.
    """
    java = require_java("The PTB tokenizer")
    lines = [_LINE_BREAK.sub(" ", caption) for group in captions.values() for caption in group]
    if not lines:
        return {image: [] for image in captions}
    command = [java, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]  # a short run: quick to start, one thread
    command += ["-cp", "stanford-corenlp-3.4.1.jar", "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase"]
    text = "".join(line + "\n" for line in lines).encode("utf-8", errors="replace")
    folder = pycocoevalcap_folder("tokenizer")
    done = subprocess.run(command, cwd=folder, env=java_environment(), input=text, capture_output=True)
    tokenized = done.stdout.decode("utf-8").split("\n")[:-1]
    if done.returncode or len(tokenized) != len(lines):
        message = done.stderr.decode("utf-8", errors="replace").strip()[-1000:]
        raise RuntimeError(
            f"{java} tokenized {len(tokenized)} of {len(lines)} captions (exit {done.returncode}): {message}"
        )
    rest = iter(tokenized)
    return {image: [_without_punctuation(next(rest)) for _ in group] for image, group in captions.items()}


def _without_punctuation(line: str) -> str:
    return " ".join(token for token in line.rstrip().split(" ") if token not in PUNCTUATION)


# Penn Treebank's contractions of one written word, and the clitics that end one.
_SPLIT_WORDS = {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "wanna": "wan na",
    "gimme": "gim me",
    "lemme": "lem me",
}
_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))$")
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_PTB_TOKEN = re.compile(
    r"""
    https?://\S+ | www\.\S+\w | \w+\.(?:com|org|net)(?!\w) | [\w.+-]+@[\w-]+(?:\.[\w-]+)+ # addresses
    | @\w+ | \#[^\W\d]\w*
    | <[a-z/][^<>\s]*>
    | (?:[^\W\d_]\.)+[^\W\d_]\.?(?!\w)   # a.m.
    | (?<!\w)(?:mr|mrs|ms|dr|st|mt|jr|sr|vs|etc|no(?=\.\s*\d))\.   # mr.
    | '\d0s | 'n' | '(?:s|m|d|re|ve|ll|t|em|til|cause)(?!\w)   # clitics that stand alone
    | \d+(?:[.,:/]\d+)+ | \.\d+   # 1,000 5:30 1/2
    | [^\W_]+(?:(?:[-_/]|'(?!n'))[^\W_]+)*   # words: t-shirt, man/woman, o'clock
    | \.{2,} | -{2,} | [?!]+
    | \S
    """,
    re.VERBOSE,
)
_TYPOGRAPHY = str.maketrans({"’": "'", "‘": "`", "“": '"', "”": '"', "–": "--", "—": "--", "…": "...", "´": "'"})


def ptb_tokenize_python(captions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """A close likeness of `ptb_tokenize` that needs no Java.

    Ordinary captions come out the same; rare abbreviations, addresses and emoticons may not. Scores made with
    it say
    `tokenizer = "ptb-python"` and should not be set beside published ones.
    """
    return _each(_ptb_python, captions)


def _ptb_python(caption: str) -> str:
    tokens: list[str] = []
    for token in _PTB_TOKEN.findall(caption.translate(_TYPOGRAPHY).lower()):
        if token == '"' or token in PUNCTUATION or _is_emoji(token):
            continue
        token = _BRACKETS.get(token, token)
        token = _SPLIT_WORDS.get(token, token)
        tokens.append(_CLITIC.sub(r" \1", token))
    return " ".join(tokens)


def _is_emoji(token: str) -> bool:
    return len(token) == 1 and ord(token) > 0xFFFF  # Java's lexer has no rule for a surrogate pair


_CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_WORD = rf"(?:(?![{_CJK}])[^\W_])+"
_CHARACTER_TOKEN = re.compile(rf"[{_CJK}]|\d+(?:[.,:]\d+)+|{_WORD}(?:['’-]{_WORD})*")


_IS_CJK = re.compile(f"[{_CJK}]")


def share_of_chinese(captions: Mapping[str, Sequence[str]]) -> float:
    """The share of captions in which there is a Chinese character (or kana), in [0, 1]; 0 of none."""
    every = [bool(_IS_CJK.search(caption)) for group in captions.values() for caption in group]
    return sum(every) / max(len(every), 1)


def character_tokenize(captions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Every Chinese character a token; Latin words and numbers whole and lower-cased; punctuation dropped.

    Full-width letters and digits count as their ordinary forms (Unicode NFKC).
    """
    return _each(_characters, captions)


def _characters(caption: str) -> str:
    return " ".join(_CHARACTER_TOKEN.findall(unicodedata.normalize("NFKC", caption).lower()))


def word_tokenize(captions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Chinese words as rjieba divides them; the rest as `character_tokenize`. Raises ImportError without rjieba."""
    tokenizer = RJiebaTokenizer()
    return _each(lambda caption: " ".join(tokenizer.tokens(caption)), captions)


def cached(
    tokenize: Callable[[Mapping[str, Sequence[str]]], dict[str, list[str]]],
    captions: Mapping[str, Sequence[str]],
    folder: Path,
) -> dict[str, list[str]]:
    """`tokenize(captions)`, kept in a folder as JSON under a digest of the captions and the tokenizer's name."""
    images = list(captions)
    given = json.dumps([tokenize.__name__, images, list(captions.values())], ensure_ascii=False)
    path = folder / f"{hashlib.sha256(given.encode(errors='surrogatepass')).hexdigest()[:20]}.json"
    try:
        groups = json.loads(path.read_text(encoding="utf-8"))
        if list(map(len, groups)) == list(map(len, captions.values())):
            return dict(zip(images, groups, strict=True))
    except (FileNotFoundError, ValueError, TypeError):  # never made, or damaged: made anew
        pass
    found = tokenize(captions)
    write_atomically(path, json.dumps(list(found.values()), ensure_ascii=False))
    return found


def _each(tokenize: Callable[[str], str], captions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {image: [tokenize(caption) for caption in group] for image, group in captions.items()}
