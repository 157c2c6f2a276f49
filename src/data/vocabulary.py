"""Words ↔ ids."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS, UNK = range(4)


def _counted(token_lists: Iterable[Sequence[str]] | Mapping[str, int]) -> Counter[str]:
    if isinstance(token_lists, Mapping):
        return Counter(token_lists)
    seen: Counter[str] = Counter()
    for tokens in token_lists:
        seen.update(tokens)
    return seen


class Vocabulary:
    """The words a model knows, with the specials `<pad>` 0, `<bos>` 1, `<eos>` 2, `<unk>` 3 before them, and behind or
    among them the control tokens that it can be given, such as `<length=12>` (src/data/control.py).

    A caption in which a special or control token is written out (`<eos>`) has an unknown word there, never that token.

    Attributes:
        words: of every id, specials first.
        counts: how often each was seen in training; the one of `<unk>` is of all tokens left out, those of control
            tokens are of the captions that they belong to.
        controls: which of the words are control tokens.
        index: id of each word that captions can have: neither specials nor control tokens.
        control_index: id of each control token.

    Args:
        words, counts, controls: as above, words and counts equally long.

    Raises:
        ValueError: they are not a vocabulary.
    """

    def __init__(self, words: Sequence[str], counts: Sequence[int], controls: Sequence[str] = ()) -> None:
        self.words, self.counts, self.controls = list(words), list(counts), list(controls)
        if tuple(self.words[: len(SPECIALS)]) != SPECIALS:
            raise ValueError(f"the first words are {self.words[: len(SPECIALS)]}, not {' '.join(SPECIALS)}")
        if len(self.words) == len(SPECIALS):
            raise ValueError("there is no word but the specials")
        if len(self.words) != len(self.counts):
            raise ValueError(f"{len(self.words)} words, but {len(self.counts)} counts")
        for id_, word in enumerate(self.words):
            if not isinstance(word, str) or not word:
                raise ValueError(f"word {id_} is {word!r}, not a word")
        for id_, count in enumerate(self.counts):
            if type(count) is not int or count < 0:
                raise ValueError(f"count {id_} ({self.words[id_]!r}) is {count!r}, not a whole number")
        places = {word: id_ for id_, word in enumerate(self.words) if id_ >= len(SPECIALS)}
        if strange := [name for name in self.controls if not isinstance(name, str) or name not in places]:
            raise ValueError(f"the control token {strange[0]!r} is not among the words")
        self.control_index = {name: places[name] for name in self.controls}
        self.index = {word: id_ for word, id_ in places.items() if word not in self.control_index}
        if not self.index:
            raise ValueError("there is no word but the specials and control tokens")
        if len(set(self.words)) != len(self.words):
            twice = Counter(self.words).most_common(1)[0][0]
            raise ValueError(f"the word {twice!r} is there more than once")

    @classmethod
    def build(
        cls,
        token_lists: Iterable[Sequence[str]] | Mapping[str, int],
        min_count: int = 5,
        max_size: int | None = None,
        controls: Mapping[str, int] | None = None,
    ) -> "Vocabulary":
        """The vocabulary of training captions, by falling count, then alphabetically (code points).

        Args:
            token_lists: the tokens of each caption, or how often each token occurs.
            min_count: words seen less often are left out.
            max_size: how many words at most, specials and control tokens not counted.
            controls: control tokens, in order, and how many captions each belongs to; all are kept.

        Raises:
            ValueError: no word is left, or a limit is below 1.
        """
        if min_count < 1 or (max_size is not None and max_size < 1):
            raise ValueError(f"min_count={min_count}, max_size={max_size}: 1 or more, or max_size null")
        seen = _counted(token_lists)
        ranked = sorted(seen.items(), key=lambda item: (-item[1], item[0]))
        controls = controls or {}
        kept = [(word, n) for word, n in ranked if n >= min_count and word not in (*SPECIALS, *controls)][:max_size]
        if not kept:
            if not ranked:
                raise ValueError("the training captions have no words: is the tokenizer for their language?")
            word, most = ranked[0]
            raise ValueError(
                f"no word of the training captions occurs {min_count} times or more (the most frequent, "
                f"{word!r}, {most} times): lower min_count"
            )
        unknown = seen.total() - sum(n for _, n in kept)
        return cls(
            [*SPECIALS, *(word for word, _ in kept), *controls],
            [0, 0, 0, unknown, *(n for _, n in kept), *controls.values()],
            list(controls),
        )

    def extended(
        self,
        token_lists: Iterable[Sequence[str]] | Mapping[str, int],
        min_count: int = 5,
        max_size: int | None = None,
        new: bool = True,
        controls: Mapping[str, int] | None = None,
    ) -> "Vocabulary":
        """This vocabulary with the counts of further captions added, and behind it their words and control tokens that
        it lacks.

        Args:
            token_lists, min_count, max_size: as in `build`; max_size limits old and new words together.
            new: False adds no words, only counts.
            controls: as in `build`; those that are new are added in any case.
        """
        controls = controls or {}
        reserved = {*SPECIALS, *self.controls, *controls}
        seen = _counted(token_lists)
        ranked = sorted(seen.items(), key=lambda item: (-item[1], item[0]))
        added = [(w, n) for w, n in ranked if n >= min_count and w not in self.index and w not in reserved]
        room = 0 if not new else None if max_size is None else max(0, max_size - len(self.index))
        added = added[:room]
        more = {word: n for word, n in seen.items() if word in self.index} | dict(controls)
        counts = [n + more.get(word, 0) for word, n in zip(self.words, self.counts, strict=True)]
        known = sum(n for word, n in seen.items() if word in self.index) + sum(n for _, n in added)
        counts[UNK] += seen.total() - known
        fresh = {name: n for name, n in controls.items() if name not in self.control_index}
        return Vocabulary(
            [*self.words, *(w for w, _ in added), *fresh],
            [*counts, *(n for _, n in added), *fresh.values()],
            [*self.controls, *fresh],
        )

    def __len__(self) -> int:
        return len(self.words)

    @property
    def tokens(self) -> int:
        """How many words the training captions have in all, `<unk>` among them."""
        return sum(self.counts) - sum(self.counts[id_] for id_ in self.control_index.values())

    @property
    def coverage(self) -> float:
        """Share of the training captions' words that are not `<unk>`, in [0, 1]."""
        return 1 - self.counts[UNK] / (self.tokens or 1)

    def summary(self) -> str:
        """One line for a log."""
        rarest = min(self.counts[id_] for id_ in self.index.values())
        return (
            f"vocabulary: {len(self.index):,} words, {self.coverage:.2%} of {self.tokens:,} "
            f"training tokens; the rarest was seen {rarest} times"
            + (f"; {len(self.controls)} control tokens" if self.controls else "")
        )

    def encode(self, tokens: Iterable[str], add_bos_eos: bool = True) -> list[int]:
        """Words → ids, `<unk>` for what is not known; between BOS and EOS unless told otherwise."""
        ids = [self.index.get(token, UNK) for token in tokens]
        return [BOS, *ids, EOS] if add_bos_eos else ids

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Ids → words up to the first EOS; specials, `<unk>` among them, and control tokens dropped."""
        words = []
        for id_ in map(int, ids):
            if id_ == EOS:
                break
            if not 0 <= id_ < len(self.words):
                raise ValueError(f"id {id_}: the vocabulary has ids 0 … {len(self.words) - 1}")
            if id_ >= len(SPECIALS) and self.words[id_] not in self.control_index:
                words.append(self.words[id_])
        return words

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for a checkpoint."""
        controls = {"controls": self.controls} if self.controls else {}
        return {"words": self.words, "counts": self.counts, **controls}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Vocabulary":
        """The opposite of `to_dict`.

        Raises:
            ValueError: it is not what `to_dict` gave.
        """
        if not isinstance(plain, Mapping):
            raise ValueError(f"expected an object with words and counts, not a {type(plain).__name__}")
        for key in ("words", "counts"):
            if not isinstance(plain.get(key), list):
                raise ValueError(f"{key!r} is missing, or no list")
        controls = plain.get("controls", [])  # older files have none
        if not isinstance(controls, list):
            raise ValueError("'controls' is no list")
        return cls(plain["words"], plain["counts"], controls)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, one word a line."""
        path = Path(path)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Read what `save` wrote.

        Raises:
            ValueError: the file is damaged or was edited into something else; names the file and the fault.
            FileNotFoundError: there is no such file.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:  # JSON's and Unicode's errors are ValueErrors too
            raise ValueError(f"{path}: no vocabulary: {error}; copy or train the captioner again") from error
