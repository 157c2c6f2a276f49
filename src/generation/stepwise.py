"""Searches that choose one word at a time and never look back: the likeliest, or a drawn one."""

from typing import Any

import torch
from torch import Tensor

from src.data.vocabulary import EOS, PAD
from src.decoders.base import Decoder, first_tensor, select_images
from src.generation.base import Hypotheses, Search
from src.ranges import at_least


class StepwiseSearch(Search):
    """K captions an image, each a word at a time until the end token or `max_length`. Images of which all captions are
    done leave the batch."""

    def choose(self, log_probs: Tensor, generator: torch.Generator | None) -> Tensor:
        """Log-probabilities (B, K, V), some of them −∞ → a word each (B, K)."""
        raise NotImplementedError

    def generator(self, device: torch.device) -> torch.Generator | None:
        """What draws; None where nothing is drawn."""
        return None

    def score(self, log_probs: Tensor, lengths: Tensor) -> Tensor:
        """What captions are ranked by: their words' log-probabilities (B, K, T) and their lengths with EOS (B, K)."""
        return log_probs.sum(-1)

    def __call__(
        self, decoder: Decoder, memory: Any, *, prefix: Tensor | None = None, attention: bool = False
    ) -> Hypotheses:
        generator = self.generator(first_tensor(memory).device)
        state, word = self.begin(decoder, memory, prefix, generator, self.captions)
        batch, device = len(word), word.device
        tokens = torch.full((batch, self.captions, self.max_length + 1), PAD, device=device)
        log_probs = torch.zeros(tokens.shape, device=device)
        looks: Tensor | None = None
        active = torch.arange(batch, device=device)
        ended = torch.zeros(word.shape, dtype=torch.bool, device=device)
        for step in range(self.max_length + 1):
            output, state = decoder.step(decoder.embed(word), state, memory)
            possible = self.next_words(decoder, output.hidden, step, tokens[active, :, :step])
            word = self.choose(possible, generator)
            log_prob = possible.gather(-1, word.unsqueeze(-1)).squeeze(-1)
            if step == self.max_length:  # it may end here, but no longer go on
                ended = ended | (word != EOS)
            word, log_prob = word.masked_fill(ended, PAD), log_prob.masked_fill(ended, 0.0)
            tokens[active, :, step], log_probs[active, :, step] = word, log_prob
            if attention and output.attention is not None:
                if looks is None:
                    looks = output.attention.new_zeros(*tokens.shape, output.attention.size(-1))
                looks[active, :, step] = output.attention * ~ended.unsqueeze(-1)
            ended = ended | (word == EOS)
            going = (~ended.all(1)).nonzero().squeeze(1)
            if going.numel() == 0:
                break
            if going.numel() < active.numel():
                active, word, ended = active[going], word[going], ended[going]
                state, memory = select_images(state, going), select_images(memory, going)
        finished = (tokens == EOS).any(-1)
        size = (tokens != PAD).sum(-1)
        longest = max(int(size.max()), 1)
        tokens, log_probs = tokens[..., :longest], log_probs[..., :longest]
        looks = None if looks is None else looks[:, :, :longest]
        scores = self.score(log_probs, size)
        return Hypotheses(tokens, log_probs, scores, size - finished.long(), finished, looks).ranked(scores)


class GreedySearch(StepwiseSearch):
    """Takes the likeliest next word; one caption an image (K = 1)."""

    def choose(self, log_probs: Tensor, generator: torch.Generator | None) -> Tensor:
        return log_probs.argmax(-1)


class SampleSearch(StepwiseSearch):
    """Draws every word: ancestral sampling, tempered, from the likeliest `top_k` words (Fan et al., 2018,
    https://arxiv.org/abs/1805.04833) or from the fewest that hold the share `top_p` of probability (nucleus sampling:
    Holtzman et al., 2020, https://arxiv.org/abs/1904.09751). The captions of an image are ranked by mean
    log-probability a word, EOS counted. The same pictures in the same batch give the same captions.

    Args:
        captions: K, drawn an image.
        temperature: that log-probabilities are divided by before drawing: below 1 likelier, above 1 more varied.
        top_k: of so many words; 0: of all.
        top_p: of the fewest likeliest words with this much probability in all, in (0, 1]; 1: of all.
        seed: of the draws.
        **limits: see `Search`.
    """

    def __init__(
        self,
        captions: int = 5,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        **limits: Any,
    ) -> None:
        super().__init__(**limits)
        at_least(1, "generation", captions=captions)
        at_least(0, "generation", top_k=top_k, seed=seed)
        if not temperature > 0:
            raise ValueError(f"generation.temperature={temperature}: above 0 (generation=greedy is the limit at 0)")
        if not 0 < top_p <= 1:
            raise ValueError(f"generation.top_p={top_p}: a share in (0, 1]")
        self.captions, self.temperature = captions, temperature
        self.top_k, self.top_p, self.seed = top_k, top_p, seed

    def generator(self, device: torch.device) -> torch.Generator:
        return torch.Generator(device).manual_seed(self.seed)

    def score(self, log_probs: Tensor, lengths: Tensor) -> Tensor:
        return log_probs.sum(-1) / lengths.clamp(min=1)

    def probabilities(self, log_probs: Tensor) -> Tensor:
        """What is drawn from (…, V), summing to 1."""
        tempered = log_probs / self.temperature
        if 0 < self.top_k < tempered.size(-1):
            least = tempered.topk(self.top_k, -1).values[..., -1:]
            tempered = tempered.masked_fill(tempered < least, -torch.inf)
        probabilities = tempered.softmax(-1)
        if self.top_p < 1:
            ranked, order = probabilities.sort(-1, descending=True)
            kept = ranked.cumsum(-1) - ranked < self.top_p  # what is before it does not hold the share yet
            probabilities = torch.zeros_like(ranked).scatter(-1, order, ranked * kept)
            probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        return probabilities

    def choose(self, log_probs: Tensor, generator: torch.Generator | None) -> Tensor:
        drawn = torch.multinomial(self.probabilities(log_probs).flatten(0, 1), 1, generator=generator)
        return drawn.view(log_probs.shape[:2])
