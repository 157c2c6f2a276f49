"""The searches of src/generation/ in NumPy, for captioners without torch: greedy, and beams. A test holds them to those
word for word."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from src.captions import Found
from src.data.vocabulary import BOS, EOS, PAD, UNK

FLOOR = -1e9
"""Stands for −∞ where scores are compared, so that sums stay finite."""
IMPROBABLE = -100.0
"""The log-probability of an end token that had to be forced, at least."""

Arrays = list[np.ndarray]
"""Of a Memory (B, ·) or a State (B, Q, ·)."""


class Said(NamedTuple):
    """What a decoder says of one word of Q captions (or beams) of B images."""

    log_probs: np.ndarray
    """(B, Q, V) of the next word, in float32; the search writes into it."""
    attention: np.ndarray | None
    """(B, Q, R): where it looked, of decoders that attend."""
    state: Arrays
    """What the next step goes on from."""


class Step(Protocol):
    """One word (B, Q) further."""

    def __call__(self, words: np.ndarray, state: Arrays, memory: Arrays) -> Said: ...


class PortableSearch:
    """As `src.generation.Search`.

    Args:
        max_length, min_length, no_repeat_ngram, allow_unknown: see there.
        controls: ids that are given and never said.
        never: ids of words and phrases that no caption says.
    """

    captions = 1

    def __init__(
        self,
        max_length: int = 30,
        min_length: int = 1,
        no_repeat_ngram: int = 0,
        allow_unknown: bool = False,
        controls: Sequence[int] = (),
        never: Sequence[Sequence[int]] = (),
    ) -> None:
        self.max_length, self.min_length, self.no_repeat_ngram = max_length, min_length, no_repeat_ngram
        words = [each[0] for each in never if len(each) == 1]
        self.banned = [PAD, BOS, *([] if allow_unknown else [UNK]), *controls, *words]
        self.phrases = [list(each) for each in never if len(each) > 1]

    def __call__(
        self, step: Step, state: Arrays, memory: Arrays, prefix: Sequence[int] = (), attention: bool = False
    ) -> Found:
        """Caption every image, from its first State (B, 1, ·). All captions begin with the control tokens `prefix`."""
        word = np.full((len(state[0]), 1), BOS)
        for control in prefix:
            state = step(word, state, memory).state
            word = np.full_like(word, control)
        return self.run(step, state, memory, word, attention)

    def run(self, step: Step, state: Arrays, memory: Arrays, word: np.ndarray, attention: bool) -> Found:
        """From the last given word (B, 1) on."""
        raise NotImplementedError

    def allowed(self, log_probs: np.ndarray, number: int, history: np.ndarray) -> np.ndarray:
        """Log-probabilities (B, Q, V) of the word of this number, what is forbidden at −∞ from now on. history (B, Q,
        number) is read where n-grams or phrases are blocked."""
        log_probs[..., self.banned] = -np.inf
        end = log_probs[..., EOS].copy()
        if number < self.min_length:
            log_probs[..., EOS] = -np.inf
        for *before, word in self.phrases:
            if number >= len(before):
                begun = (history[..., number - len(before) : number] == before).all(-1)
                log_probs[..., word] = np.where(begun, -np.inf, log_probs[..., word])
        n = self.no_repeat_ngram
        if n and number >= n:
            past = np.lib.stride_tricks.sliding_window_view(history, n, axis=-1)  # (B, Q, number − n + 1, n)
            last = history[..., number - n + 1 :][:, :, None]  # the n − 1 words that the next one would complete
            b, q, place = (past[..., :-1] == last).all(-1).nonzero()
            log_probs[b, q, past[b, q, place, -1]] = -np.inf
            stuck = np.isneginf(log_probs).all(-1)  # every word would repeat something: then it may end, however short
            log_probs[..., EOS] = np.where(stuck, end, log_probs[..., EOS])
        return log_probs


class PortableGreedy(PortableSearch):
    """As `src.generation.GreedySearch`."""

    def run(self, step: Step, state: Arrays, memory: Arrays, word: np.ndarray, attention: bool) -> Found:
        batch = len(word)
        tokens = np.full((batch, 1, self.max_length + 1), PAD)
        log_probs = np.zeros(tokens.shape, np.float32)
        looks: np.ndarray | None = None
        active = np.arange(batch)
        for number in range(self.max_length + 1):
            said = step(word, state, memory)
            state = said.state
            possible = self.allowed(said.log_probs, number, tokens[active, :, :number])
            word = possible.argmax(-1)
            # at the last step it may end, but no longer go on
            kept = (word == EOS) | (number < self.max_length)
            tokens[active, :, number] = np.where(kept, word, PAD)
            log_prob = np.take_along_axis(possible, word[..., None], -1)[..., 0]
            log_probs[active, :, number] = np.where(kept, log_prob, 0)
            if attention and said.attention is not None:
                if looks is None:
                    looks = np.zeros((*tokens.shape, said.attention.shape[-1]), np.float32)
                looks[active, :, number] = said.attention * kept[..., None]
            going = (word[:, 0] != EOS).nonzero()[0]
            if not len(going):
                break
            if len(going) < len(active):
                active, word = active[going], word[going]
                state, memory = [x[going] for x in state], [x[going] for x in memory]
        finished = (tokens == EOS).any(-1)
        size = (tokens != PAD).sum(-1)
        longest = max(int(size.max()), 1)
        tokens, log_probs = tokens[..., :longest], log_probs[..., :longest]
        looks = None if looks is None else looks[:, :, :longest]
        return Found(tokens, log_probs, log_probs.sum(-1), size - finished, finished, looks)


class Ended(NamedTuple):
    """The K best captions of each image that have ended so far, (B, K) each; as in src/generation/beam.py."""

    rank: np.ndarray
    step: np.ndarray
    beam: np.ndarray
    eos: np.ndarray
    cut: np.ndarray


class PortableBeam(PortableSearch):
    """As `src.generation.BeamSearch`.

    Args:
        beam_size, length_penalty: see there.
        **limits: see `PortableSearch`.
    """

    def __init__(self, beam_size: int = 5, length_penalty: float = 1.0, **limits: int | bool | Sequence[int]) -> None:
        super().__init__(**limits)  # type: ignore[arg-type]
        self.captions, self.length_penalty = beam_size, length_penalty

    def run(self, step: Step, state: Arrays, memory: Arrays, word: np.ndarray, attention: bool) -> Found:
        width, alpha, batch = self.captions, self.length_penalty, len(word)
        # alive: log-probabilities (A, Q) of the unfinished captions of the A images still searched; Q is 1 at first
        alive = np.zeros((batch, 1), np.float32)
        history = np.empty((batch, 1, 0), np.int64)
        images = np.arange(batch)
        none = np.full((batch, width), -1)
        floor = np.full(none.shape, 2 * FLOOR, np.float32)
        ended = Ended(floor, none, np.zeros_like(none), np.zeros_like(floor), none > 0)
        kept = Ended(*(x.copy() for x in ended))
        trail: list[Arrays] = []  # per step, (B, K): the parent, the word, its log-probability
        looks: Arrays = []  # per step, (B, beams, R), by the beam that looked

        for number in range(self.max_length + 1):
            said = step(word, state, memory)
            state = said.state
            if attention and said.attention is not None:
                look = np.zeros((batch, *said.attention.shape[1:]), np.float32)
                look[images] = said.attention
                looks.append(look)
            log_probs = self.allowed(said.log_probs, number, history)

            eos = log_probs[..., EOS].clip(min=FLOOR)
            log_probs[..., EOS] = -np.inf
            total, parent, next_word, log_prob = _continued(alive, log_probs, width)

            last = number == self.max_length
            mine = alive + (eos.clip(min=IMPROBABLE) if last else eos)
            likeliest = best(np.concatenate([mine, total], 1), width)[0][:, -1:]
            offered = (mine > FLOOR / 2) & (last | (mine >= likeliest))
            offers = Ended(
                np.where(offered, mine / np.float32((number + 1) ** alpha), np.float32(2 * FLOOR)),
                np.where(offered, number, -1),
                np.broadcast_to(np.arange(alive.shape[1]), mine.shape),
                eos,
                log_probs.max(-1) > eos if last else np.zeros_like(offered),
            )
            pool = Ended(*(np.concatenate(each, 1) for each in zip(ended, offers, strict=True)))
            order = best(pool.rank, width)[1]
            ended = Ended(*(np.take_along_axis(x, order, 1) for x in pool))
            if last:
                _keep(kept, ended, images)
                break

            row = [np.zeros((batch, width), x.dtype) for x in (parent, next_word, log_prob)]
            for target, value in zip(row, (parent, next_word, log_prob), strict=True):
                target[images] = value
            trail.append(row)
            alive, word = total, next_word

            # No unfinished caption can rank above its log-probability spread over the longest allowed length.
            bound = alive.max(1) / np.float32((self.max_length + 1) ** alpha)
            going = (bound > ended.rank[:, -1]).nonzero()[0]
            if len(going) < len(images):
                _keep(kept, ended, images)
                images, parent, word, alive, history = (x[going] for x in (images, parent, word, alive, history))
                ended = Ended(*(x[going] for x in ended))
                state, memory = [x[going] for x in state], [x[going] for x in memory]
                if not len(images):
                    break
            rows = np.arange(len(images))[:, None]
            state = [x[rows, parent] for x in state]
            if self.no_repeat_ngram or self.phrases:
                history = np.concatenate([history[rows, parent], word[..., None]], -1)
        return _trace(kept, trail, looks)


def best(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The greatest along the last axis and their places, greatest first."""
    if count < values.shape[-1]:
        places = np.argpartition(values, -count, -1)[..., -count:]
        values = np.take_along_axis(values, places, -1)
    else:
        places = np.broadcast_to(np.arange(values.shape[-1]), values.shape)
    order = np.argsort(-values, -1, kind="stable")
    return np.take_along_axis(values, order, -1), np.take_along_axis(places, order, -1)


def _continued(alive: np.ndarray, log_probs: np.ndarray, width: int) -> Arrays:
    """The `width` likeliest ways to go on from beams (A, Q) by their next words (A, Q, V): their log-probability, the
    beam that goes on, the word and its own log-probability, (A, width) each."""
    likely, words = best(log_probs, width)
    likely = likely.clip(min=FLOOR)
    candidates = (alive[..., None] + likely).reshape(len(alive), -1)
    count = candidates.shape[1]
    if count < width:  # fewer words than beams
        candidates = np.pad(candidates, ((0, 0), (0, width - count)), constant_values=2 * FLOOR)
    total, chosen = best(candidates, width)
    chosen = chosen.clip(max=count - 1)
    word, log_prob = (np.take_along_axis(x.reshape(len(alive), -1), chosen, 1) for x in (words, likely))
    return [total, chosen // likely.shape[-1], word, log_prob]


def _keep(kept: Ended, ended: Ended, images: np.ndarray) -> None:
    for old, new in zip(kept, ended, strict=True):
        old[images] = new


def _trace(ended: Ended, trail: list[Arrays], looks: Arrays) -> Found:
    """Follow the back-pointers of all kept captions (B, K) at once, from their ends."""
    longest = max(int(ended.step.max()), 0) + 1
    tokens = np.full((*ended.step.shape, longest), PAD)
    log_probs = np.zeros(tokens.shape, np.float32)
    attention = np.zeros((*tokens.shape, looks[0].shape[-1]), np.float32) if looks else None
    beam = ended.beam
    for number in range(longest - 1, -1, -1):
        ends, inside = ended.step == number, ended.step > number
        if number < len(trail):
            parent, word, log_prob = (np.take_along_axis(x, beam, 1) for x in trail[number])
            tokens[..., number] = np.where(inside, word, tokens[..., number])
            log_probs[..., number] = np.where(inside, log_prob, 0)
            beam = np.where(inside, parent, beam)
        ended_itself = ends & ~ended.cut
        tokens[..., number] = np.where(ended_itself, EOS, tokens[..., number])
        log_probs[..., number] = np.where(ended_itself, ended.eos, log_probs[..., number])
        if attention is not None:
            seen = ends | inside
            look = np.take_along_axis(looks[number], (beam * seen)[..., None], 1)
            attention[:, :, number] = look * seen[..., None]
    scores = np.where(ended.step < 0, np.float32(-np.inf), ended.rank)
    finished = ~ended.cut & (ended.step >= 0)
    return Found(tokens, log_probs, scores, ended.step.clip(min=0), finished, attention)
