"""An LSTM or GRU that sees the image once, at its start: Show and Tell."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from src.decoders.base import Decoder, Output
from src.decoders.recurrent_attn import GRUCell, LSTMCell
from src.embeddings.base import Embedding
from src.encoders.base import Features
from src.ranges import at_least


class RecurrentMemory(NamedTuple):
    image: Tensor
    """(B, E): the pooled image as a first word."""


class RecurrentState(NamedTuple):
    hidden: Tensor
    """(B, Q, L, H)."""
    cell: Tensor | None
    """(B, Q, L, H); a GRU has none."""


class LSTMDecoder(Decoder):
    """The projected image vector is the word before the first, and never shown again: Vinyals et al., 2015
    (https://arxiv.org/abs/1411.4555). It is normalised (Ba et al., 2016, https://arxiv.org/abs/1607.06450), and the
    forget gates start at 1 (`LSTMCell.remember`): what is seen once must neither saturate the gates nor fade in a few
    words.

    Args:
        embedding: the word table, E wide.
        memory_width: D of the encoder's features.
        hidden: H.
        layers: L stacked LSTMs.
        dropout: on words, between layers and on the output, while training.
        tied: the output layer shares the word table.
    """

    network: type[nn.LSTM] | type[nn.GRU] = nn.LSTM
    cell: type[LSTMCell] | type[GRUCell] = LSTMCell

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
        self.image = nn.Sequential(nn.Linear(memory_width, size), nn.LayerNorm(size))
        self.recurrent = self.network(size, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.output = nn.Linear(hidden, size)
        for layer in range(layers):
            self.cell.remember(getattr(self.recurrent, f"bias_ih_l{layer}"))

    def prepare(self, features: Features) -> RecurrentMemory:
        return RecurrentMemory(self.image(features.pooled))

    def first_state(self, memory: RecurrentMemory) -> RecurrentState:
        return self._run(memory.image[:, None, None], None)[1]

    def _run(self, embedded: Tensor, state: RecurrentState | None) -> tuple[Tensor, RecurrentState]:
        """Words (B, Q, T, E) from a state, or from zeros → top hidden states (B, Q, T, H) and the state after them."""
        batch, captions = embedded.shape[:2]
        before: Any = None
        if state is not None:
            before = [
                x.expand(-1, captions, -1, -1).flatten(0, 1).transpose(0, 1).contiguous()
                for x in state
                if x is not None
            ]
            before = tuple(before) if len(before) > 1 else before[0]
        top, after = self.recurrent(embedded.flatten(0, 1), before)
        hidden, cell = after if isinstance(after, tuple) else (after, None)

        def outside(x: Tensor) -> Tensor:
            return x.transpose(0, 1).unflatten(0, (batch, captions))

        return top.unflatten(0, (batch, captions)), RecurrentState(
            outside(hidden), None if cell is None else outside(cell)
        )

    def step(self, embedded: Tensor, state: RecurrentState, memory: RecurrentMemory) -> tuple[Output, RecurrentState]:
        top, after = self._run(embedded.unsqueeze(2), state)
        return Output(self.output(top.squeeze(2))), after

    def read(self, embedded: Tensor, memory: RecurrentMemory, lengths: Tensor | None = None) -> Output:
        top, _ = self._run(embedded, self.first_state(memory))
        return Output(self.output(top))


class GRUDecoder(LSTMDecoder):
    """The same with gated recurrent units, which keep no cell: Cho et al., 2014 (https://arxiv.org/abs/1406.1078)."""

    network = nn.GRU
    cell = GRUCell
