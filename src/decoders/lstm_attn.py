"""An LSTM that looks at the image before every word: Show, Attend and Tell."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.attention.soft import Attention, AttentionMemory
from src.decoders.base import Decoder, Output, first_images, rectangles
from src.embeddings.base import Embedding
from src.encoders.base import Features
from src.ranges import at_least


class AttentionLSTMMemory(NamedTuple):
    attended: AttentionMemory
    pooled: Tensor
    """(B, D)."""


class AttentionLSTMState(NamedTuple):
    hidden: Tensor
    """(B, Q, L, H)."""
    cell: Tensor
    """(B, Q, L, H)."""


class LSTMCell(nn.Module):
    """One LSTM step whose input product is given: gates = input part + W h."""

    def __init__(self, recurrent: int, hidden: int) -> None:
        super().__init__()
        self.recurrent = nn.Linear(recurrent, 4 * hidden, bias=False)

    def forward(self, given: Tensor, recurrent: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """given (…, 4H): the input's part of the gates; recurrent (…, ·): context and hidden state; cell (…, H)."""
        i, f, g, o = (given + self.recurrent(recurrent)).chunk(4, dim=-1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell


class AttentionLSTMDecoder(Decoder):
    """Soft attention with gating and a deep output layer: Xu et al., 2015 (https://arxiv.org/abs/1502.03044). The first
    layer attends; further layers read it.

    Args:
        embedding: the word table, E wide.
        attention: any `Attention`; the decoder does not know which.
        memory_width: D of the encoder's regions.
        hidden: H.
        layers: L stacked LSTMs.
        dropout: on words, between layers and on the output, while training.
        tied: the output layer shares the word table.
    """

    attends = True

    def __init__(
        self,
        embedding: Embedding,
        attention: Attention,
        memory_width: int,
        hidden: int = 512,
        layers: int = 1,
        dropout: float = 0.5,
        tied: bool = False,
    ) -> None:
        super().__init__(embedding, tied, dropout)
        at_least(1, "decoder", hidden=hidden, layers=layers)
        size = embedding.size
        self.attention = attention
        self.layers, self.hidden_size = layers, hidden
        self.initial = nn.Linear(memory_width, 2 * layers * hidden)
        self.gate = nn.Linear(hidden, memory_width)
        self.word = nn.Linear(size, 4 * hidden)
        self.cell = LSTMCell(memory_width + hidden, hidden)
        self.upper_inputs = nn.ModuleList(nn.Linear(hidden, 4 * hidden) for _ in range(layers - 1))
        self.upper_cells = nn.ModuleList(LSTMCell(hidden, hidden) for _ in range(layers - 1))
        self.output = nn.Linear(hidden + memory_width, size)
        for gates in (self.word, *self.upper_inputs):
            nn.init.zeros_(gates.bias)
            nn.init.ones_(gates.bias[hidden : 2 * hidden])  # remember by default: Jozefowicz et al., 2015

    def prepare(self, features: Features) -> AttentionLSTMMemory:
        return AttentionLSTMMemory(self.attention.prepare(features), features.pooled)

    def start(
        self, memory: AttentionLSTMMemory, condition: Any = None, generator: torch.Generator | None = None
    ) -> AttentionLSTMState:
        hidden, cell = self.initial(memory.pooled).unflatten(-1, (1, 2, self.layers, self.hidden_size)).unbind(2)
        return AttentionLSTMState(hidden.tanh(), cell)

    def _recur(
        self, embedded: Tensor, given: Tensor, state: AttentionLSTMState, memory: AttentionLSTMMemory
    ) -> tuple[Tensor, Tensor, AttentionLSTMState]:
        """The part of a step that depends on the one before: (B, Q, ·) in, top state with context, weights, state."""
        top = state.hidden[:, :, -1]
        attended = self.attention(top, embedded, state.cell[:, :, -1], memory.attended)
        context = self.gate(top).sigmoid() * attended.context
        hidden, cell = self.cell(
            given, torch.cat([context, state.hidden[:, :, 0].to(context.dtype)], -1), state.cell[:, :, 0]
        )
        if self.layers == 1:
            after = AttentionLSTMState(hidden.unsqueeze(2), cell.unsqueeze(2))
        else:
            hiddens, cells = [hidden], [cell]
            for layer, (inputs, upper) in enumerate(zip(self.upper_inputs, self.upper_cells, strict=True), start=1):
                hidden, cell = upper(inputs(self.dropout(hidden)), state.hidden[:, :, layer], state.cell[:, :, layer])
                hiddens.append(hidden)
                cells.append(cell)
            after = AttentionLSTMState(torch.stack(hiddens, 2), torch.stack(cells, 2))
        return torch.cat([hidden, context.to(hidden.dtype)], -1), attended.weights, after

    def _deep_output(self, seen: Tensor, embedded: Tensor) -> Tensor:
        return self.output(self.dropout(seen)) + embedded

    def step(
        self, embedded: Tensor, state: AttentionLSTMState, memory: AttentionLSTMMemory
    ) -> tuple[Output, AttentionLSTMState]:
        captions = embedded.size(1)
        state = AttentionLSTMState(*(x.expand(-1, captions, -1, -1) for x in state))
        seen, weights, after = self._recur(embedded, self.word(embedded), state, memory)
        return Output(self._deep_output(seen, embedded), weights), after

    def forward(
        self, embedded: Tensor, memory: AttentionLSTMMemory, condition: Any = None, lengths: Tensor | None = None
    ) -> Output:
        batch, captions, words, _ = embedded.shape
        state = self.start(memory)
        state = AttentionLSTMState(*(x.expand(-1, captions, -1, -1) for x in state))
        active = [(batch, captions)] * words if lengths is None else rectangles(lengths, words)
        seen: list[Tensor] = []
        weights: list[Tensor] = []
        for word, (images, columns) in zip(embedded.unbind(2), active, strict=True):
            if not images:
                break
            word = word[:images, :columns]
            if word.shape[:2] != state.hidden.shape[:2]:
                state = AttentionLSTMState(*(x[:images, :columns] for x in state))
                memory = first_images(memory, images)
            top, look, state = self._recur(word, self.word(word), state, memory)
            seen.append(top)
            weights.append(look)
        # One product for all steps; then every step as wide as the first.
        deep = self.output(self.dropout(torch.cat([x.flatten(0, 1) for x in seen])))
        hidden = _stacked(deep.split([x.size(0) * x.size(1) for x in seen]), active, embedded.shape)
        return Output(hidden + embedded, _stacked([x.flatten(0, 1) for x in weights], active, embedded.shape))


def _stacked(rows: Sequence[Tensor], active: Sequence[tuple[int, int]], shape: Sequence[int]) -> Tensor:
    """The rows (b·q, ·) of each step's rectangle → (B, Q, T, ·), zero elsewhere; shape begins with B, Q, T."""
    batch, captions, words = shape[:3]
    steps = [
        F.pad(x.unflatten(0, size), (0, 0, 0, captions - size[1], 0, batch - size[0]))
        for x, size in zip(rows, active, strict=False)
    ]
    whole = torch.stack(steps, 2)
    return F.pad(whole, (0, 0, 0, words - len(steps)))
