"""An LSTM that sees the image once, at its start: Show and Tell."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from src.decoders.base import Decoder, Output
from src.embeddings.base import Embedding
from src.encoders.base import Features
from src.ranges import at_least


class LSTMMemory(NamedTuple):
    image: Tensor
    """(B, E): the pooled image as a first word."""


class LSTMState(NamedTuple):
    hidden: Tensor
    """(B, Q, L, H)."""
    cell: Tensor
    """(B, Q, L, H)."""


class LSTMDecoder(Decoder):
    """The projected image vector is the word before the first, and never shown again: Vinyals et al., 2015
    (https://arxiv.org/abs/1411.4555).

    Args:
        embedding: the word table, E wide.
        memory_width: D of the encoder's features.
        hidden: H.
        layers: L stacked LSTMs.
        dropout: on words, between layers and on the output, while training.
        tied: the output layer shares the word table.
    """

    def __init__(
        self,
        embedding: Embedding,
        memory_width: int,
        hidden: int = 512,
        layers: int = 1,
        dropout: float = 0.5,
        tied: bool = False,
    ) -> None:
        super().__init__(embedding, tied, dropout)
        at_least(1, "decoder", hidden=hidden, layers=layers)
        size = embedding.size
        self.image = nn.Linear(memory_width, size)
        self.lstm = nn.LSTM(size, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.output = nn.Linear(hidden, size)

    def prepare(self, features: Features) -> LSTMMemory:
        return LSTMMemory(self.image(features.pooled))

    def start(self, memory: LSTMMemory, condition: Any = None, generator: torch.Generator | None = None) -> LSTMState:
        _, (hidden, cell) = self.lstm(memory.image.unsqueeze(1))
        return LSTMState(hidden.transpose(0, 1).unsqueeze(1), cell.transpose(0, 1).unsqueeze(1))

    def _run(self, embedded: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """Words (B, Q, T, E) from a state → top hidden states (B, Q, T, H) and the state after them."""
        batch, captions = embedded.shape[:2]
        before = tuple(x.expand(-1, captions, -1, -1).flatten(0, 1).transpose(0, 1).contiguous() for x in state)
        top, after = self.lstm(embedded.flatten(0, 1), before)
        hidden, cell = (x.transpose(0, 1).unflatten(0, (batch, captions)) for x in after)
        return top.unflatten(0, (batch, captions)), LSTMState(hidden, cell)

    def step(self, embedded: Tensor, state: LSTMState, memory: LSTMMemory) -> tuple[Output, LSTMState]:
        top, after = self._run(embedded.unsqueeze(2), state)
        return Output(self.output(top.squeeze(2))), after

    def forward(
        self, embedded: Tensor, memory: LSTMMemory, condition: Any = None, lengths: Tensor | None = None
    ) -> Output:
        top, _ = self._run(embedded, self.start(memory, condition))
        return Output(self.output(top))
