"""What every search shares: its result, how a caption begins, and the rules on which words may come next."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from src.data.vocabulary import BOS, EOS, PAD, UNK
from src.decoders.base import Decoder, first_tensor

if TYPE_CHECKING:
    from src.data.tokenizer import Tokenizer
    from src.data.vocabulary import Vocabulary


log = logging.getLogger(__name__)


MOST_NEVER, MOST_LETTERS = 2000, 40_000
"""Words and phrases that are never said, and their letters in all: a bundle keeps them, and src/strangers.py takes no
config that is much larger."""


def read_never(never: Sequence[str] | str) -> list[str]:
    """The words and phrases of a list, or of a file that has one a line.

    Raises:
        ValueError: there is no such file, or it is no UTF-8; or there are too many.
    """
    found = list(never) if not isinstance(never, str) else _read_lines(never)
    if len(found) > MOST_NEVER or sum(map(len, found)) > MOST_LETTERS:
        raise ValueError(
            f"generation.never: {len(found):,} words and phrases of {sum(map(len, found)):,} letters; at most "
            f"{MOST_NEVER:,} of {MOST_LETTERS:,} are kept in a bundle: leave out those that the captioner cannot say"
        )
    return found


def _read_lines(never: str) -> list[str]:
    try:
        lines = Path(never).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"generation.never={never}: cannot be read as UTF-8 ({error}); give a file with a word or phrase a line, "
            "or a list"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def self_contained(generation: Mapping[str, Any]) -> dict[str, Any]:
    """A search's config, in which the words of a file stand themselves: what is kept needs no file."""
    never = generation.get("never", ())
    return {**generation, "never": read_never(never)} if isinstance(never, str) else dict(generation)


class Hypotheses(NamedTuple):
    """B images, K captions each, best first; T the longest. Nothing here needs Lightning."""

    tokens: Tensor
    """(B, K, T) ids without BOS and control tokens; EOS where it ended by itself, then padding."""
    log_probs: Tensor
    """(B, K, T) the model's own log-probability of each token, 0 on padding."""
    scores: Tensor
    """(B, K): what the search ranked by; −∞ where there were fewer than K captions to be had (such rows are empty)."""
    lengths: Tensor
    """(B, K) words, EOS not counted."""
    finished: Tensor
    """(B, K): False where the caption was cut at max_length."""
    attention: Tensor | None
    """(B, K, T, R) where asked for and the decoder attends."""

    def ranked(self, scores: Tensor) -> "Hypotheses":
        """Each image's captions in the order of other scores (B, K), which become theirs; equals stay as they are."""
        order = scores.argsort(dim=1, descending=True, stable=True)

        def ordered(x: Tensor) -> Tensor:
            return x.gather(1, order.view(*order.shape, *[1] * (x.dim() - 2)).expand(x.shape))

        return Hypotheses(
            ordered(self.tokens),
            ordered(self.log_probs),
            ordered(scores),
            ordered(self.lengths),
            ordered(self.finished),
            None if self.attention is None else ordered(self.attention),
        )


class Search:
    """Limits that hold for every way of searching.

    Args:
        max_length: most words of a caption; one that would go on is cut there.
        min_length: fewest words.
        no_repeat_ngram: no run of this many words occurs twice in a caption; 0 allows all.
        allow_unknown: whether the unknown word may be said.
        never: words and phrases, in any of its languages, that no caption says, as the captioner's tokenizer divides
            them: "girl" leaves "girls" to be said. What the captioner has no word for it cannot say. Or a file of such,
            one a line.

    Raises:
        ValueError: limits that no caption can meet, or no such file.
    """

    captions = 1
    """K, at most."""

    def __init__(
        self,
        max_length: int = 30,
        min_length: int = 1,
        no_repeat_ngram: int = 0,
        allow_unknown: bool = False,
        never: Sequence[str] | str = (),
    ) -> None:
        if not 0 <= min_length <= max_length or max_length < 1:
            raise ValueError(
                f"generation.min_length={min_length} and generation.max_length={max_length} leave no caption: "
                "0 ≤ min_length ≤ max_length and max_length ≥ 1"
            )
        if no_repeat_ngram < 0:
            raise ValueError(f"generation.no_repeat_ngram={no_repeat_ngram}: 0 (off) or a number of words")
        self.max_length = max_length
        self.min_length = min_length
        self.no_repeat_ngram = no_repeat_ngram
        self.never = read_never(never)
        self.banned = [PAD, BOS] if allow_unknown else [PAD, BOS, UNK]
        """Ids that are never said."""
        self.phrases: list[tuple[int, ...]] = []
        """Of two ids or more, likewise."""

    @property
    def remembers(self) -> bool:
        """Whether what may come next hangs on more than the last word said."""
        return bool(self.no_repeat_ngram or self.phrases)

    def bind(self, vocabulary: "Vocabulary", tokenizer: "Tokenizer") -> None:
        """Learn the captioner's words, for what the search is told in words.

        Raises:
            ValueError: a word that must occur and that it does not know.
        """
        special = [each for each in self.banned if each in (PAD, BOS, UNK)]
        words, self.phrases = set(), []
        for phrase in self.never:
            ids = tuple(vocabulary.index.get(word, UNK) for word in tokenizer.tokens(phrase))
            if not ids or UNK in ids:
                log.debug("generation.never=%r: the captioner has no such words, and cannot say it", phrase)
            elif len(ids) == 1:
                words.add(ids[0])
            else:
                self.phrases.append(ids)
        self.banned = [*special, *sorted(words)]

    def __call__(
        self, decoder: Decoder, memory: Any, *, prefix: Tensor | None = None, attention: bool = False
    ) -> Hypotheses:
        """Caption every image of a Memory. `prefix` (B, P) are control tokens that each begins with; `attention` asks
        for the looks as well, which costs memory."""
        raise NotImplementedError

    def begin(
        self,
        decoder: Decoder,
        memory: Any,
        prefix: Tensor | None,
        generator: torch.Generator | None = None,
        captions: int = 1,
    ) -> tuple[Any, Tensor]:
        """The State before the last given word, and that word (B, captions): BOS, or the last of a prefix."""
        state = decoder.start(memory, generator=generator, captions=captions)
        first = first_tensor(state)
        word = torch.full((len(first), captions), BOS, device=first.device)
        for control in () if prefix is None else prefix.to(word.device).unbind(1):
            _, state = decoder.step(decoder.embed(word), state, memory)
            word = control.unsqueeze(1).expand(-1, captions)
        return state, word

    def next_words(self, decoder: Decoder, hidden: Tensor, step: int, history: Tensor | None) -> Tensor:
        """What the decoder left (B, Q, ·) → log-probabilities (B, Q, V) in float32 of the word number `step` (from 0),
        with the forbidden ones at −∞. history (B, Q, step) is needed where the search `remembers`. The probabilities
        are the model's own: what is forbidden is struck out, not redistributed."""
        log_probs = decoder.logits(hidden).float().log_softmax(-1)
        log_probs[..., [*self.banned, *decoder.controls]] = -torch.inf
        end = log_probs[..., EOS].clone()
        if step < self.min_length:
            log_probs[..., EOS] = -torch.inf
        for *before, word in self.phrases:
            if history is not None and step >= len(before):
                begun = history[..., step - len(before) : step] == history.new_tensor(before)
                log_probs[..., word] = log_probs[..., word].masked_fill(begun.all(-1), -torch.inf)
        n = self.no_repeat_ngram
        if n and history is not None and step >= n:
            past = history.unfold(-1, n, 1)  # (B, Q, step − n + 1, n)
            last = history[..., step - n + 1 :].unsqueeze(2)  # the n − 1 words that the next one would complete
            seen = (past[..., :-1] == last).all(-1)
            repeated = torch.zeros_like(log_probs, dtype=torch.bool)
            repeated.scatter_reduce_(-1, past[..., -1], seen, "amax")
            log_probs = log_probs.masked_fill(repeated, -torch.inf)
            stuck = log_probs.isneginf().all(-1)  # every word would repeat something: then it may end, however short
            log_probs[..., EOS] = torch.where(stuck, end, log_probs[..., EOS])
        return log_probs
