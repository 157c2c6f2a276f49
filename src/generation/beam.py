"""Beam searches over images × beams in one batch: plain, in diverse groups, with words that must or must not occur."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from src.data.vocabulary import EOS, PAD
from src.decoders.base import Decoder, select_beams, select_images
from src.generation.base import Hypotheses, Search
from src.ranges import at_least

if TYPE_CHECKING:
    from src.data.tokenizer import Tokenizer
    from src.data.vocabulary import Vocabulary

FLOOR = -1e9
"""Stands for −∞ where scores are compared, so that sums stay finite."""
IMPROBABLE = -100.0
"""The log-probability of an end token that had to be forced, at least: the words before it still decide the ranking."""


class Ended(NamedTuple):
    """The K best captions that have ended so far in each of G groups, (B, G, K) each."""

    rank: Tensor
    """Log-probability over length ** length_penalty."""
    step: Tensor
    """The step at which it ended, −1 where there is none yet."""
    beam: Tensor
    """The beam that it ended from."""
    eos: Tensor
    """Log-probability of its end token."""
    cut: Tensor
    """Whether it would rather have gone on when it was ended."""


class Continued(NamedTuple):
    """The K best ways to go on from some beams, best first, (A, K) each."""

    rank: Tensor
    """What decided."""
    total: Tensor
    """Log-probability of all words."""
    parent: Tensor
    """The beam that goes on."""
    word: Tensor
    log_prob: Tensor
    """Of the word alone."""


class BeamSearch(Search):
    """Keeps the `beam_size` likeliest unfinished captions an image; one whose end token is among the `beam_size`
    likeliest ways to go on is kept as ended. What is unfinished after `max_length` words is ended there. An image is
    done when no unfinished caption can beat its worst kept one any more (exact: log-probabilities only fall). Histories
    are back-pointers, read once at the end; images that are done leave the batch.

    Args:
        beam_size: K.
        length_penalty: ended captions are ranked by log-probability / length ** length_penalty (Wu et al., 2016,
            https://arxiv.org/abs/1609.08144, without its constant), EOS counted; 0 ranks by log-probability alone and
            favours short ones.
        **limits: see `Search`.
    """

    def __init__(self, beam_size: int = 5, length_penalty: float = 1.0, **limits: Any) -> None:
        super().__init__(**limits)
        at_least(1, "generation", beam_size=beam_size)
        if length_penalty < 0:
            raise ValueError(f"generation.length_penalty={length_penalty}: 0 or more, or the early stop is not exact")
        self.beam_size = self.captions = beam_size
        self.length_penalty = length_penalty
        self.groups, self.width = 1, beam_size

    # Beams lie side by side, those of a part of the search together; at the first step there is one beam in all.

    def continued(self, alive: Tensor, log_probs: Tensor) -> list[Continued]:
        """Beams of log-probability (A, Q) and their next words' (A, Q, V), EOS struck out → of each part of the search
        its new beams."""
        return [best(alive, log_probs, self.width)]

    def may_end(self, beams: int) -> list[tuple[slice, list[int]]]:
        """Of each group of ended captions, from which of so many beams they may end, and with which parts of the search
        they compete."""
        return [(slice(0, beams), [0])]

    def __call__(
        self, decoder: Decoder, memory: Any, *, prefix: Tensor | None = None, attention: bool = False
    ) -> Hypotheses:
        groups, width, alpha = self.groups, self.width, self.length_penalty
        state, word = self.begin(decoder, memory, prefix)
        batch, device = len(word), word.device
        # alive: log-probabilities (A, Q) of the unfinished captions of the A images still searched; Q is 1 at first
        alive = torch.zeros(batch, 1, device=device)
        history = word.new_empty(batch, 1, 0)
        images = torch.arange(batch, device=device)
        none = torch.full((batch, groups, width), -1, device=device)
        floor = torch.full(none.shape, 2 * FLOOR, device=device)
        ended = Ended(floor, none, none.clamp(min=0), torch.zeros_like(floor), none > 0)
        kept = Ended(*(x.clone() for x in ended))
        trail: list[
            tuple[Tensor, Tensor, Tensor]
        ] = []  # per step, (B, beams): the parent, the word, its log-probability
        looks: list[Tensor] = []  # per step, (B, beams, R), by the beam that looked

        for step in range(self.max_length + 1):
            output, state = decoder.step(decoder.embed(word), state, memory)
            if attention and output.attention is not None:
                look = output.attention.new_zeros(batch, *output.attention.shape[1:])
                look[images] = output.attention
                looks.append(look)
            log_probs = self.next_words(decoder, output.hidden, step, history)

            eos = log_probs[..., EOS].clamp(min=FLOOR)
            log_probs[..., EOS] = -torch.inf
            going_on = self.continued(alive, log_probs)

            last = step == self.max_length
            total = alive + (eos.clamp(min=IMPROBABLE) if last else eos)
            offers = []
            for beams, parts in self.may_end(alive.size(1)):
                mine = total[:, beams]
                likeliest = torch.cat([mine, *(going_on[part].rank for part in parts)], 1).topk(width, 1).values[:, -1:]
                offered = (mine > FLOOR / 2) & (last | (mine >= likeliest))
                offers.append(
                    Ended(
                        (mine / (step + 1) ** alpha).masked_fill(~offered, 2 * FLOOR),
                        torch.full_like(mine, step, dtype=torch.long).where(offered, -1),
                        torch.arange(alive.size(1), device=device)[beams].expand(mine.shape),
                        eos[:, beams],
                        log_probs[:, beams].amax(-1) > eos[:, beams] if last else torch.zeros_like(offered),
                    )
                )
            new_ends = (torch.stack(parts, 1) for parts in zip(*offers, strict=True))
            pool = Ended(*(torch.cat(each, 2) for each in zip(ended, new_ends, strict=True)))
            order = pool.rank.topk(width, 2).indices
            ended = Ended(*(x.gather(2, order) for x in pool))
            if last:
                kept = self._keep(kept, ended, images)
                break

            new = Continued(*(torch.cat(parts, 1) for parts in zip(*going_on, strict=True)))
            alive, parent, word = new.total, new.parent, new.word
            row = [x.new_zeros(batch, x.size(1)) for x in (parent, word, new.log_prob)]
            for target, value in zip(row, (parent, word, new.log_prob), strict=True):
                target[images] = value
            trail.append((row[0], row[1], row[2]))

            # No unfinished caption can rank above its log-probability spread over the longest allowed length.
            bound = alive.unflatten(1, (len(going_on), -1)).amax(2) / (self.max_length + 1) ** alpha
            bound = bound if groups > 1 else bound.amax(1, keepdim=True)
            going = (bound > ended.rank[..., -1]).any(1).nonzero().squeeze(1)
            if going.numel() < images.numel():
                kept = self._keep(kept, ended, images)
                images, parent, word = images[going], parent[going], word[going]
                alive, history = alive[going], history[going]
                ended, memory, state = (select_images(x, going) for x in (ended, memory, state))
                if images.numel() == 0:
                    break
            state = select_beams(state, parent)
            if self.remembers:
                history = torch.cat([select_beams(history, parent), word.unsqueeze(-1)], -1)
        found = self._trace(Ended(*(x.flatten(1) for x in kept)), trail, looks)
        return found.ranked(found.scores) if groups > 1 else found

    @staticmethod
    def _keep(kept: Ended, ended: Ended, images: Tensor) -> Ended:
        return Ended(*(old.index_copy(0, images, new) for old, new in zip(kept, ended, strict=True)))

    def _trace(self, ended: Ended, trail: list[tuple[Tensor, Tensor, Tensor]], looks: list[Tensor]) -> Hypotheses:
        """Follow the back-pointers of all kept captions (B, K) at once, from their ends."""
        batch, width = ended.step.shape
        longest = max(int(ended.step.max()), 0) + 1
        device = ended.step.device
        tokens = torch.full((batch, width, longest), PAD, device=device)
        log_probs = torch.zeros(batch, width, longest, device=device)
        attention = looks[0].new_zeros(batch, width, longest, looks[0].size(-1)) if looks else None
        beam = ended.beam
        for step in range(longest - 1, -1, -1):
            ends, inside = ended.step == step, ended.step > step
            if step < len(trail):
                parent, word, log_prob = (x.gather(1, beam) for x in trail[step])
                tokens[..., step] = torch.where(inside, word, tokens[..., step])
                log_probs[..., step] = torch.where(inside, log_prob, 0.0)
                beam = torch.where(inside, parent, beam)
            ended_itself = ends & ~ended.cut
            tokens[..., step] = torch.where(ended_itself, EOS, tokens[..., step])
            log_probs[..., step] = torch.where(ended_itself, ended.eos, log_probs[..., step])
            if attention is not None:
                seen = ends | inside
                look = looks[step].gather(1, (beam * seen).unsqueeze(-1).expand(-1, -1, looks[step].size(-1)))
                attention[:, :, step] = look * seen.unsqueeze(-1)
        scores = ended.rank.masked_fill(ended.step < 0, -torch.inf)
        finished = ~ended.cut & (ended.step >= 0)
        return Hypotheses(tokens, log_probs, scores, ended.step.clamp(min=0), finished, attention)


def best(alive: Tensor, log_probs: Tensor, width: int, penalty: Tensor | None = None) -> Continued:
    """The `width` likeliest ways to go on from beams (A, Q) by their next words (A, Q, V). What a penalty (A, V) takes
    from a word counts in the choice only."""
    ranks = log_probs if penalty is None else log_probs - penalty.unsqueeze(1)
    # The best of each beam first: sums, and the choice between beams, are of few words then.
    likely, words = ranks.topk(min(width, ranks.size(-1)), -1)
    likely = likely.clamp(min=FLOOR)
    candidates = (alive.unsqueeze(-1) + likely).flatten(1)
    if candidates.size(1) < width:  # fewer words than beams
        candidates = pad(candidates, (0, width - candidates.size(1)), value=2 * FLOOR)
    rank, chosen = candidates.topk(width, 1)
    chosen = chosen.clamp(max=likely[0].numel() - 1)
    parent = torch.div(chosen, likely.size(-1), rounding_mode="floor")
    word = words.flatten(1).gather(1, chosen)
    if penalty is None:
        return Continued(rank, rank, parent, word, likely.flatten(1).gather(1, chosen))
    log_prob = log_probs.flatten(1).gather(1, parent * log_probs.size(-1) + word).clamp(min=FLOOR)
    return Continued(rank, alive.gather(1, parent) + log_prob, parent, word, log_prob)


class DiverseBeamSearch(BeamSearch):
    """Beams in groups that are told apart by their words: Vijayakumar et al., 2018
    (https://arxiv.org/abs/1610.02424), with Hamming diversity. At every step the groups choose one after the other, and
    a word loses `diversity` for every beam of the groups before that has just chosen it. That counts in the choice, not
    in a caption's score; the end token is no word to be told apart by. The K captions are the groups' best, best first.

    Args:
        beam_size: K, of all groups together.
        groups: their number, which divides `beam_size`.
        diversity: λ, in nats.
        length_penalty, **limits: see `BeamSearch`.
    """

    def __init__(
        self, beam_size: int = 6, groups: int = 3, diversity: float = 0.5, length_penalty: float = 1.0, **limits: Any
    ) -> None:
        super().__init__(beam_size, length_penalty, **limits)
        at_least(1, "generation", groups=groups)
        at_least(0, "generation", diversity=diversity)
        if beam_size % groups:
            raise ValueError(f"generation.groups={groups}: does not divide generation.beam_size={beam_size}")
        self.groups, self.width, self.diversity = groups, beam_size // groups, diversity

    def _beams(self, group: int, beams: int) -> slice:
        return slice(0, 1) if beams == 1 else slice(group * self.width, (group + 1) * self.width)

    def continued(self, alive: Tensor, log_probs: Tensor) -> list[Continued]:
        chosen = torch.zeros(len(alive), log_probs.size(-1), device=alive.device)
        found = []
        for group in range(self.groups):
            beams = self._beams(group, alive.size(1))
            mine = best(alive[:, beams], log_probs[:, beams], self.width, self.diversity * chosen)
            real = (mine.total > FLOOR / 2).float()
            chosen.scatter_add_(1, mine.word, real)
            found.append(mine._replace(parent=mine.parent + beams.start))
        return found

    def may_end(self, beams: int) -> list[tuple[slice, list[int]]]:
        return [(self._beams(group, beams), [group]) for group in range(self.groups)]


class ConstrainedBeamSearch(BeamSearch):
    """Captions in which some words must, or must not, occur: the constrained beam search of Anderson et al., 2017
    (https://arxiv.org/abs/1612.00576). How far a caption has come with what must occur is a state of a finite
    automaton; each state has `beam_size` beams of its own, and only captions that have all of it may end. Without
    constraints it is `BeamSearch`.

    Args:
        include: what must occur: words or phrases, as the captioner's tokenizer divides them; of alternatives, joined
            by `|`, one (`dog|puppy`). Every phrase multiplies the beams by its length + 1.
        exclude: words or phrases that must not occur.
        beam_size, length_penalty, **limits: see `BeamSearch`.
    """

    MOST_STATES = 64

    def __init__(
        self,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        beam_size: int = 5,
        length_penalty: float = 1.0,
        **limits: Any,
    ) -> None:
        super().__init__(beam_size, length_penalty, **limits)
        self.include, self.exclude = list(include), list(exclude)
        self.table: Tensor | None = None
        self.first_accepting = 0

    def bind(self, vocabulary: "Vocabulary", tokenizer: "Tokenizer") -> None:
        super().bind(vocabulary, tokenizer)

        def ids(field: str, phrase: str) -> tuple[int, ...]:
            words = tokenizer.tokens(phrase)
            if not words:
                raise ValueError(f"generation.{field}={phrase!r}: has no word")
            if unknown := [word for word in words if word not in vocabulary.index]:
                import difflib

                near = difflib.get_close_matches(unknown[0], list(vocabulary.index), 3)
                hint = f"; it knows {', '.join(near)}" if near else ""
                raise ValueError(f"generation.{field}={phrase!r}: the captioner has no word {unknown[0]!r}{hint}")
            return tuple(vocabulary.index[word] for word in words)

        wanted = [[ids("include", phrase) for phrase in each.split("|")] for each in self.include]
        banned = [ids("exclude", phrase) for phrase in self.exclude]
        least = sum(min(map(len, each)) for each in wanted)
        if least > self.max_length:
            raise ValueError(f"generation.include: {least} words at least, and generation.max_length={self.max_length}")
        self.table, self.first_accepting = automaton(wanted, banned, len(vocabulary), self.MOST_STATES)

    def continued(self, alive: Tensor, log_probs: Tensor) -> list[Continued]:
        if self.table is None:
            raise RuntimeError("constrained search: bind(vocabulary, tokenizer) first")
        table = self.table = self.table.to(alive.device)
        size = max(1, alive.size(1) // len(table))
        leads = table[: alive.size(1) // size].repeat_interleave(size, 0)  # (Q, V): at first one beam, in state 0
        return [
            best(alive, log_probs.masked_fill(leads != state, -torch.inf), self.width) for state in range(len(table))
        ]

    def may_end(self, beams: int) -> list[tuple[slice, list[int]]]:
        assert self.table is not None
        accepting = range(self.first_accepting, len(self.table))
        if beams < len(self.table) * self.width:  # the first step's one beam, in state 0
            return [(slice(0, 0 in accepting), list(accepting))]
        return [(slice(self.first_accepting * self.width, beams), list(accepting))]


def automaton(
    wanted: Sequence[Sequence[tuple[int, ...]]], banned: Sequence[tuple[int, ...]], words: int, most: int = 64
) -> tuple[Tensor, int]:
    """A finite automaton over `words` ids that accepts captions in which of each entry of `wanted` a phrase occurs, and
    none of `banned`: the state (S, words) that each word leads to from each, −1 where a phrase of `banned` would be
    complete, and which state is the first of those that accept. It begins in state 0.

    Raises:
        ValueError: it would have more than `most` states.
    """
    # A state: for each entry None where it is done, else what of its phrases was just seen; and likewise of the banned.
    State = tuple[tuple[tuple[int, ...] | None, ...], tuple[int, ...]]

    def advance(phrases: Sequence[tuple[int, ...]], seen: tuple[int, ...]) -> tuple[int, ...] | None:
        """The longest end of what was seen that begins a phrase, or None where one is complete."""
        if any(seen[-len(phrase) :] == phrase for phrase in phrases):
            return None
        ends = (seen[i:] for i in range(len(seen) + 1))
        return next(end for end in ends if not end or any(phrase[: len(end)] == end for phrase in phrases))

    def follow(state: State, word: int) -> State | None:
        done = tuple(
            None if seen is None else advance(phrases, (*seen, word))
            for phrases, seen in zip(wanted, state[0], strict=True)
        )
        left = advance(banned, (*state[1], word))
        return None if left is None else (done, left)

    def accepts(state: State) -> bool:
        return all(seen is None for seen in state[0])

    named = sorted({word for phrase in itertools.chain(*wanted, banned) for word in phrase})
    other = -1  # stands for every word of no phrase
    states: list[State] = [(tuple(() for _ in wanted), ())]
    ways: dict[State, dict[int, State | None]] = {}
    for state in states:
        ways[state] = {word: follow(state, word) for word in [other, *named]}
        states += {reached: None for reached in ways[state].values() if reached is not None and reached not in states}
        if len(states) > most:
            raise ValueError(
                f"generation.include and generation.exclude: more than {most} ways of having said part of it, each of "
                "which has beams of its own: ask for fewer or shorter phrases"
            )
    states.sort(key=accepts)  # stable: the first stays the first, or all accept
    number: dict[State | None, int] = {state: i for i, state in enumerate(states)} | {None: -1}
    table = torch.tensor([[number[ways[state][other]]] for state in states]).repeat(1, words)
    for word in named:
        table[:, word] = torch.tensor([number[ways[state][word]] for state in states])
    return table, sum(not accepts(state) for state in states)
