"""Control tokens: what a caption is to be like, given before its first word, after Keskar et al., 2019
(https://arxiv.org/abs/1909.05858). `<length=12>` asks for twelve words, as the length embeddings of Deng et al., 2020
(https://arxiv.org/abs/2007.09580) do for ranges; `<zh>` or `<domain=news>` for what the TSV's third column calls so."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from src.data.vocabulary import SPECIALS, Vocabulary
from src.ranges import share

if TYPE_CHECKING:
    from src.data.table import Captions, Words

LENGTHS = {"short": 0.1, "medium": 0.5, "long": 0.9}
"""Names of lengths, and which quantile of the training captions' lengths each is."""
REFERENCE = "reference"
"""In an evaluation: the length of the picture's own first reference."""

_LENGTH = re.compile(r"<length=(\d+)>")
_TAG = re.compile(r"[^\s,，=<>]+(?:=[^\s,，=<>]+)?")


class ControlError(ValueError):
    """What a captioner cannot be asked for; the message says what it knows."""


def length_token(words: int) -> str:
    return f"<length={words}>"


def tag_tokens(text: str | Sequence[str]) -> list[str]:
    """Tags, separated by commas or spaces (`zh`, `domain=news, style=funny`), or a list of them → their tokens, each
    once, sorted, so that it does not matter how they were ordered.

    Raises:
        ControlError: one that no tag can be.
    """
    tags = re.split(r"[\s,，]+", text) if isinstance(text, str) else text
    tokens = set()
    for tag in filter(None, tags):
        if not _TAG.fullmatch(tag) or f"<{tag}>" in SPECIALS or tag.startswith("length="):
            raise ControlError(
                f"the tag {tag!r}: a word or key=word is wanted, without < and >, not pad, bos, eos, unk or length=…"
            )
        tokens.add(f"<{tag}>")
    return sorted(tokens)


class Control:
    """Which control tokens training captions are given: `BOS <zh> <length=12> word …`, tags before the length.

    So that the captioner also answers when it is asked for nothing, a share of the captions gets none; and where a
    caption has several, as large a share gets each with a chance of one half only, for requests of some of them.

    Args:
        length: the number of words, as the tokenizer counts them, `data.max_tokens` at most.
        tags: those of the TSV's third column.
        dropout: that share, in [0, 1).
        validate: tags; validation (and the scores at the end) are of the rows that carry them all, and ask for them.
        default: tags that the captioner is asked for where a user asks for none; where no training caption has
            a tag, those of all tables without tags are taken to have them.

    Raises:
        ValueError: nothing to control, or a value out of its range.
    """

    def __init__(
        self,
        length: bool = False,
        tags: bool = False,
        dropout: float = 0.1,
        validate: str | Sequence[str] | None = None,
        default: str | Sequence[str] | None = None,
    ) -> None:
        share("control", dropout=dropout)
        if not length and not tags:
            raise ValueError("control.length=false and control.tags=false: nothing is given; set one, or control=null")
        for name, given in (("validate", validate), ("default", default)):
            if tag_tokens(given or "") and not tags:
                raise ValueError(f"control.{name}={given}: control.tags=false reads none; choose control=length_tags")
        self.length, self.tags, self.dropout, self.validate, self.default = length, tags, dropout, validate, default

    def tokens(self, tags: str, words: int) -> list[str]:
        """A caption's control tokens, from its tags and its number of words."""
        return [*(tag_tokens(tags) if self.tags else ()), *([length_token(words)] if self.length else ())]

    def counts(self, table: "Captions", words: "Words", longest: int) -> dict[str, int]:
        """The control tokens of a table's captions, tags sorted, then lengths in order, and how many have each.

        Raises:
            ControlError: there are to be tags, and there is none.
        """
        seen: Counter[str] = Counter()
        if self.tags:
            for label, count in labels_of(table).items():
                seen.update(dict.fromkeys(tag_tokens(label), count))
        tagged = sorted(seen)
        if self.tags and not tagged:
            raise ControlError(
                "control.tags=true: no training caption has a tag; write them into a third column, "
                "img_path<TAB>caption<TAB>tags, say with control.default=TAG what all of them have, or choose "
                "control=length or null"
            )
        if self.length:
            lengths = np.bincount(np.minimum(words.spans()[1], longest)).tolist()
            seen.update({length_token(length): count for length, count in enumerate(lengths) if count})
        return {name: seen[name] for name in (*tagged, *(name for name in seen if _LENGTH.fullmatch(name)))}

    def kept(self, given: Sequence[Sequence[int]], draw: int) -> list[list[int]]:
        """Of the control tokens of each of an item's captions, those that stay, by the item's draw."""
        # Not the numbers that vary its picture: a sequence of one more seeds another stream.
        chances = np.random.default_rng([draw, 1])
        result = []
        for ids in given:
            chance, coins = chances.random(), chances.random(len(ids))
            if chance < self.dropout:
                ids = []
            elif len(ids) > 1 and chance < 2 * self.dropout:
                ids = [id_ for id_, coin in zip(ids, coins, strict=True) if coin < 0.5]
            result.append(list(ids))
        return result


def labels_of(table: "Captions") -> dict[str, int]:
    """The distinct third columns of a table, and how many rows have each."""
    counts = np.bincount(np.asarray(table.labels.chosen), minlength=len(table.label_names()))
    return {label: count for label, count in zip(table.label_names(), counts.tolist(), strict=True) if count}


def by_default(tables: Mapping[str, "Captions"], control: Control | None) -> dict[str, "Captions"]:
    """Tables of a training whose captions have no tags, with the tags that are the default; others as they are."""
    tables = dict(tables)
    default = tag_tokens(control.default or "") if control is not None else []
    if default and "train" in tables and not _tagged(tables["train"]):
        label = ",".join(token[1:-1] for token in default)
        tables = {name: table if _tagged(table) else table.labelled(label) for name, table in tables.items()}
    return tables


def _tagged(table: "Captions") -> bool:
    return bool(set(labels_of(table)) - {""})


def check_tags(tables: Mapping[str, "Captions"], files: Mapping[str, str]) -> None:
    """Raises ControlError for a row's tags that cannot be, with its file and picture."""
    for name, table in tables.items():
        for label in labels_of(table):
            try:
                tag_tokens(label)
            except ControlError as error:
                row = table.labels.index(label)
                image = table.images[int(np.searchsorted(table.first, row, "right")) - 1]
                raise ControlError(f"{files[name]}: a row of {image}: {error}") from error


def with_tags(table: "Captions", wanted: Sequence[str]) -> "Captions":
    """The rows of a table that carry all these tags (as tokens), and their images.

    Raises:
        ControlError: there are none; names the table's tags.
    """
    names = [set(tag_tokens(label)) for label in table.label_names()]
    carry = np.array([own.issuperset(wanted) for own in names])[np.asarray(table.labels.chosen)]
    if not carry.any():
        there = set().union(*(tag_tokens(label) for label in labels_of(table)))
        known = f"the tags there are {_shown(sorted(there))}" if there else "no row has tags, its third column"
        raise ControlError(f"no row carries {_shown(wanted)}: {known}")
    return table.where(carry)


# ---------------------------------------------------------------- asking


def asked(
    vocabulary: Vocabulary,
    length: int | str | None = None,
    tags: str | Sequence[str] | None = None,
    language: str | None = None,
) -> list[str]:
    """What to give before a caption that is to be of a length and to carry tags, as tokens.

    Args:
        vocabulary: the captioner's.
        length: words, or short, medium or long: the 10th, 50th and 90th percentile of the training captions' lengths.
        tags: as in the TSV.
        language: a tag that is written `zh` or `language=zh`.

    Raises:
        ControlError: the captioner does not know it; says what it knows.
    """
    names = tag_tokens(tags or "")
    if language is not None:
        if not language:
            raise ControlError("the language “”: a tag is wanted, such as zh")
        (plain,) = tag_tokens([language])
        keyed = f"<language={plain[1:-1]}>"
        names = sorted({*names, keyed if keyed in vocabulary.control_index else plain})
    if unknown := [name for name in names if name not in vocabulary.control_index]:
        known = [name for name in vocabulary.controls if not _LENGTH.fullmatch(name)]
        raise ControlError(
            f"{_shown(unknown)}: this captioner knows "
            + (f"the tags {_shown(known)}" if known else "no tags; it was trained without control=tags or length_tags")
        )
    return names if length is None else [*names, length_token(asked_length(vocabulary, length))]


def asked_length(vocabulary: Vocabulary, length: int | str) -> int:
    """How many words a length means, as `asked`."""
    counts = lengths(vocabulary)
    if not counts:
        raise ControlError(
            f"length {length}: this captioner knows no lengths; it was trained without control=length or length_tags"
        )
    named = {name: quantile(counts, share) for name, share in LENGTHS.items()}
    words = named.get(str(length), int(length) if str(length).isdecimal() else None)
    if words not in counts:
        raise ControlError(
            f"length {length}: this captioner knows the lengths {_ranges(list(counts))}, "
            + ", ".join(f"{name} ({words})" for name, words in named.items())
        )
    return words


def nearest_length(vocabulary: Vocabulary, words: int) -> int:
    """The length nearest to a number of words that the captioner can be asked for; of two, the shorter.

    Raises:
        ControlError: it knows none.
    """
    counts = lengths(vocabulary)
    return min(counts, key=lambda known: (abs(known - words), known)) if counts else asked_length(vocabulary, words)


def lengths(vocabulary: Vocabulary) -> dict[int, int]:
    """The lengths that a captioner can be asked for, in order, and how many training captions had each."""
    found = {_words(name): vocabulary.counts[id_] for name, id_ in vocabulary.control_index.items()}
    return {words: found[words] for words in sorted(found) if words >= 0}


def quantile(counts: Mapping[int, int], share: float) -> int:
    """The least number, in order, up to which there is this share of all that was counted."""
    numbers = sorted(counts)
    below = np.cumsum([counts[number] for number in numbers])
    return numbers[int(np.searchsorted(below, share * below[-1]))]


def _words(name: str) -> int:
    """Of a length token; −1 of another."""
    match = _LENGTH.fullmatch(name)
    return int(match[1]) if match else -1


def _shown(tokens: Iterable[str]) -> str:
    return ", ".join(name[1:-1] for name in tokens)


def _ranges(numbers: Sequence[int]) -> str:
    """`4-9, 12`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
