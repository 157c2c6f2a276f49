"""Several decoders that speak together."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from src.decoders.base import Decoder, Output


class EnsembleDecoder(Decoder):
    """The mean of the members' probabilities, word by word. Its Memory and State are tuples of theirs; what is said of
    words is their log-probabilities, so `logits` has nothing left to do. It is searched, not trained.

    Args:
        members: decoders of one vocabulary.
    """

    def __init__(self, members: Sequence[Decoder]) -> None:
        nn.Module.__init__(self)
        self.members: Sequence[Decoder] = nn.ModuleList(members)  # type: ignore[assignment]
        self.attends = all(member.attends for member in members)
        self.controls = members[0].controls

    def start(
        self,
        memory: Any,
        condition: Any = None,
        generator: torch.Generator | None = None,
        captions: int = 1,
    ) -> Any:
        states = zip(self.members, memory, strict=True)
        return tuple(member.start(own, condition, generator, captions) for member, own in states)

    def embed(self, words: Tensor) -> Tensor:
        """Ids stay ids: each member embeds them itself."""
        return words

    def step(self, embedded: Tensor, state: Any, memory: Any) -> tuple[Output, Any]:
        outputs, after, log_probs = [], [], []
        for member, own, mine in zip(self.members, state, memory, strict=True):
            output, new = member.step(member.embed(embedded), own, mine)
            outputs.append(output)
            after.append(new)
            log_probs.append(member.logits(output.hidden).float().log_softmax(-1))
        together = torch.stack(log_probs).logsumexp(0) - torch.tensor(float(len(outputs))).log()
        looks = [output.attention for output in outputs]
        alike = all(look is not None and look.shape == looks[0].shape for look in looks)  # type: ignore[union-attr]
        attention = torch.stack(looks).mean(0) if alike else None  # type: ignore[arg-type]
        return Output(together, attention), tuple(after)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden
