"""What every search shares: its result, how a caption begins, and the rules on which words may come next."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from src.data.vocabulary import BOS, EOS, PAD, UNK
from src.decoders.base import Decoder, first_tensor

if TYPE_CHECKING:
    from src.data.tokenizer import Tokenizer
    from src.data.vocabulary import Vocabulary


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

    Raises:
        ValueError: limits that no caption can meet.
    """

    captions = 1
    """K, at most."""

    def __init__(
        self, max_length: int = 30, min_length: int = 1, no_repeat_ngram: int = 0, allow_unknown: bool = False
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
        self.never = [PAD, BOS] if allow_unknown else [PAD, BOS, UNK]

    def bind(self, vocabulary: "Vocabulary", tokenizer: "Tokenizer") -> None:
        """Learn the captioner's words, for searches that are told some.

        Raises:
            ValueError: a word that it does not know.
        """

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
        with the forbidden ones at −∞. history (B, Q, step) is needed where n-grams are blocked. The probabilities are
        the model's own: what is forbidden is struck out, not redistributed."""
        log_probs = decoder.logits(hidden).float().log_softmax(-1)
        log_probs[..., [*self.never, *decoder.controls]] = -torch.inf
        end = log_probs[..., EOS].clone()
        if step < self.min_length:
            log_probs[..., EOS] = -torch.inf
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
