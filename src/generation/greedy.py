"""The likeliest word at every step."""

from typing import Any

import torch
from torch import Tensor

from src.data.vocabulary import BOS, EOS, PAD
from src.decoders.base import Decoder, first_tensor, select_images
from src.generation.base import Hypotheses, Search


class GreedySearch(Search):
    """Takes the likeliest next word until the end token or `max_length`; one caption an image (K = 1). Images that are
    done leave the batch."""

    def __call__(self, decoder: Decoder, memory: Any, *, attention: bool = False) -> Hypotheses:
        state = decoder.start(memory)
        first = first_tensor(state)
        batch, device = first.size(0), first.device
        tokens = torch.full((batch, self.max_length + 1), PAD, device=device)
        log_probs = torch.zeros(batch, self.max_length + 1, device=device)
        looks: Tensor | None = None
        active = torch.arange(batch, device=device)
        word = torch.full((batch, 1), BOS, device=device)
        for step in range(self.max_length + 1):
            output, state = decoder.step(decoder.embed(word), state, memory)
            history = tokens[active, :step].unsqueeze(1)
            log_prob, word = self.next_words(decoder.logits(output.hidden), step, history).max(-1)
            if step == self.max_length:  # it may end here, but no longer go on
                word, log_prob = word.where(word == EOS, PAD), log_prob.where(word == EOS, 0.0)
            tokens[active, step], log_probs[active, step] = word.squeeze(1), log_prob.squeeze(1)
            if attention and output.attention is not None:
                if looks is None:
                    looks = output.attention.new_zeros(batch, self.max_length + 1, output.attention.size(-1))
                looks[active, step] = output.attention.squeeze(1)
            going = (word.squeeze(1) != EOS).nonzero().squeeze(1)
            if going.numel() == 0:
                break
            if going.numel() < active.numel():
                active, word = active[going], word[going]
                state, memory = select_images(state, going), select_images(memory, going)
        finished = (tokens == EOS).any(-1)
        lengths = (tokens != PAD).sum(-1) - finished.long()
        longest = max(int((tokens != PAD).sum(-1).max()), 1)
        return Hypotheses(
            tokens[:, None, :longest],
            log_probs[:, None, :longest],
            log_probs.sum(-1, keepdim=True),
            lengths.unsqueeze(1),
            finished.unsqueeze(1),
            None if looks is None else looks[:, None, :longest],
        )
