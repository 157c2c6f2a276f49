"""Beam search over images × beams in one batch."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from src.data.vocabulary import BOS, EOS, PAD
from src.decoders.base import Decoder, first_tensor, select_beams, select_images
from src.generation.base import Hypotheses, Search
from src.ranges import at_least

FLOOR = -1e9
"""Stands for −∞ where scores are compared, so that sums stay finite."""
IMPROBABLE = -100.0
"""The log-probability of an end token that had to be forced, at least: the words before it still decide the ranking."""


class Ended(NamedTuple):
    """The K best captions that have ended so far, (B, K) each."""

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
        self.beam_size = beam_size
        self.length_penalty = length_penalty

    def __call__(self, decoder: Decoder, memory: Any, *, attention: bool = False) -> Hypotheses:
        width, alpha = self.beam_size, self.length_penalty
        state = decoder.start(memory)
        first = first_tensor(state)
        batch, device = first.size(0), first.device
        # alive: log-probabilities (A, Q) of the unfinished captions of the A images still searched; Q is 1, then K
        alive = torch.zeros(batch, 1, device=device)
        word = torch.full((batch, 1), BOS, device=device)
        history = word.new_empty(batch, 1, 0)
        images = torch.arange(batch, device=device)
        none = torch.full((batch, width), -1, device=device)
        floor = torch.full((batch, width), 2 * FLOOR, device=device)
        ended = Ended(floor, none, none.clamp(min=0), torch.zeros_like(floor), none > 0)
        kept = Ended(*(x.clone() for x in ended))
        trail: list[tuple[Tensor, Tensor, Tensor]] = []  # per step, (B, K): the parent, the word, its log-probability
        looks: list[Tensor] = []  # per step, (B, K, R), by the beam that looked

        for step in range(self.max_length + 1):
            output, state = decoder.step(decoder.embed(word), state, memory)
            if attention and output.attention is not None:
                look = output.attention.new_zeros(batch, width, output.attention.size(-1))
                look[images, : alive.size(1)] = output.attention
                looks.append(look)
            log_probs = self.next_words(decoder.logits(output.hidden), step, history)

            eos = log_probs[..., EOS].clamp(min=FLOOR)
            log_probs[..., EOS] = -torch.inf
            # The best of each beam first: sums, and the choice between beams, are of few words then.
            likely, words = log_probs.topk(min(width, log_probs.size(-1)), -1)
            likely = likely.clamp(min=FLOOR)
            candidates = (alive.unsqueeze(-1) + likely).flatten(1)
            if candidates.size(1) < width:  # fewer words than beams
                candidates = pad(candidates, (0, width - candidates.size(1)), value=2 * FLOOR)
            continued, chosen = candidates.topk(width, 1)

            last = step == self.max_length
            total = alive + (eos.clamp(min=IMPROBABLE) if last else eos)
            likeliest = torch.cat([total, continued], 1).topk(width, 1).values[:, -1:]
            offered = (total > FLOOR / 2) & (last | (total >= likeliest)) & (step >= self.min_length)
            pool = Ended(
                torch.cat([ended.rank, (total / (step + 1) ** alpha).masked_fill(~offered, 2 * FLOOR)], 1),
                torch.cat([ended.step, torch.full_like(chosen[:, :1], step).where(offered, -1)], 1),
                torch.cat([ended.beam, torch.arange(alive.size(1), device=device).expand(alive.shape)], 1),
                torch.cat([ended.eos, eos], 1),
                torch.cat([ended.cut, (likely[..., 0] > eos) & last], 1),
            )
            best = pool.rank.topk(width, 1).indices
            ended = Ended(*(x.gather(1, best) for x in pool))
            if last:
                kept = self._keep(kept, ended, images)
                break

            alive, chosen = continued, chosen.clamp(max=likely[0].numel() - 1)
            parent = torch.div(chosen, likely.size(-1), rounding_mode="floor")
            word = words.flatten(1).gather(1, chosen)
            row = [none.clone(), none.clone(), torch.zeros_like(floor)]
            for target, value in zip(row, (parent, word, likely.flatten(1).gather(1, chosen)), strict=True):
                target[images] = value
            trail.append((row[0], row[1], row[2]))

            # No unfinished caption can rank above its log-probability spread over the longest allowed length.
            bound = alive[:, 0] / (self.max_length + 1) ** alpha
            going = (bound > ended.rank[:, -1]).nonzero().squeeze(1)
            if going.numel() < images.numel():
                kept = self._keep(kept, ended, images)
                images, parent, word = images[going], parent[going], word[going]
                alive, history = alive[going], history[going]
                ended, memory, state = (select_images(x, going) for x in (ended, memory, state))
                if images.numel() == 0:
                    break
            state = select_beams(state, parent)
            if self.no_repeat_ngram:
                history = torch.cat([select_beams(history, parent), word.unsqueeze(-1)], -1)
        return self._trace(kept, trail, looks)

    @staticmethod
    def _keep(kept: Ended, ended: Ended, images: Tensor) -> Ended:
        return Ended(*(old.index_copy(0, images, new) for old, new in zip(kept, ended, strict=True)))

    def _trace(self, ended: Ended, trail: list[tuple[Tensor, Tensor, Tensor]], looks: list[Tensor]) -> Hypotheses:
        """Follow the back-pointers of all kept captions at once, from their ends."""
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
                look = looks[step].gather(1, beam.unsqueeze(-1).expand(-1, -1, looks[step].size(-1)))
                attention[:, :, step] = look * (ends | inside).unsqueeze(-1)
        scores = ended.rank.masked_fill(ended.step < 0, -torch.inf)
        finished = ~ended.cut & (ended.step >= 0)
        return Hypotheses(tokens, log_probs, scores, ended.step.clamp(min=0), finished, attention)
