"""Recurrent decoders that look at the image before every word: Show, Attend and Tell, and top-down attention."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.attention.soft import Attended, Attention, AttentionMemory
from src.decoders.base import Decoder, Output, first_images, map_tensors, rectangles
from src.embeddings.base import Embedding
from src.encoders.base import Features
from src.ranges import at_least


class AttendingMemory(NamedTuple):
    attended: AttentionMemory
    image: Tensor
    """(B, ·): what the decoder takes from the pooled image."""


class AttendingState(NamedTuple):
    hidden: Tensor
    """(B, Q, L, H)."""
    cell: Tensor | None
    """(B, Q, L, H); GRUs have none."""


class LSTMCell(nn.Module):
    """One LSTM step whose input product is given: gates = input part + W [context, h]."""

    gates = 4

    def __init__(self, context: int, hidden: int) -> None:
        super().__init__()
        self.recurrent = nn.Linear(context + hidden, 4 * hidden, bias=False)

    def forward(
        self, given: Tensor, context: Tensor | None, hidden: Tensor, cell: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """given (…, gates · H): the input's part of the gates; context (…, ·), part of the input too; hidden and cell
        (…, H) → the next hidden and cell."""
        assert cell is not None
        recurrent = hidden if context is None else torch.cat([context, hidden.to(context.dtype)], -1)
        i, f, g, o = (given + self.recurrent(recurrent)).chunk(4, dim=-1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell

    @staticmethod
    def remember(bias: Tensor) -> None:
        """Start with a forget gate of 1: Jozefowicz et al., 2015 (https://proceedings.mlr.press/v37/jozefowicz15.html)."""
        hidden = len(bias) // 4
        nn.init.ones_(bias[hidden : 2 * hidden])


class GRUCell(nn.Module):
    """One GRU step whose input product is given (Cho et al., 2014, https://arxiv.org/abs/1406.1078; the reset gate
    after the product, as in cuDNN and `nn.GRU`)."""

    gates = 3

    def __init__(self, context: int, hidden: int) -> None:
        super().__init__()
        self.context = nn.Linear(context, 3 * hidden, bias=False) if context else None
        self.recurrent = nn.Linear(hidden, 3 * hidden)

    def forward(
        self, given: Tensor, context: Tensor | None, hidden: Tensor, cell: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """As `LSTMCell.forward`, without a cell."""
        if self.context is not None:
            given = given + self.context(context)
        (r, z, n), (rh, zh, nh) = given.chunk(3, dim=-1), self.recurrent(hidden).chunk(3, dim=-1)
        update = (z + zh).sigmoid()
        new = (n + (r + rh).sigmoid() * nh).tanh()
        return torch.lerp(new, hidden.to(new.dtype), update), None

    @staticmethod
    def remember(bias: Tensor) -> None:
        """Nothing: the update gate starts in the middle."""


class AttendingDecoder(Decoder):
    """The loop over words of recurrent decoders that attend; subclasses say what a step is.

    Args:
        embedding: the word table, E wide.
        attention: any `Attention`; the decoder does not know which.
        memory_width: D of the encoder's regions.
        hidden: H.
        dropout: on words, between layers and on the output, while training.
        tied: the output layer shares the word table.
    """

    attends = True
    takes_attention = True
    adds_word = False
    """Whether the word that was read takes part in choosing the next one directly."""
    output: nn.Linear
    """What `recur` leaves (…, ·) → (…, E)."""

    def __init__(self, embedding: Embedding, attention: Attention, hidden: int, dropout: float, tied: bool) -> None:
        super().__init__(embedding, tied, dropout)
        at_least(1, "decoder", hidden=hidden)
        self.attention, self.hidden_size = attention, hidden

    def recur(
        self, embedded: Tensor, state: AttendingState, memory: AttendingMemory
    ) -> tuple[Tensor, Attended, AttendingState]:
        """The part of a step that depends on the one before: words (B, Q, E) → what the output reads (B, Q, ·), the
        look, the next state."""
        raise NotImplementedError

    def to_compile(self) -> list[nn.Module]:
        """What a step consists of: the loop over the words is as long as their captions, and other each time."""
        return [self.attention, *(module for module in self.modules() if isinstance(module, LSTMCell | GRUCell))]

    def _said(self, seen: Tensor, embedded: Tensor) -> Tensor:
        return seen + embedded if self.adds_word else seen

    def step(self, embedded: Tensor, state: AttendingState, memory: AttendingMemory) -> tuple[Output, AttendingState]:
        seen, look, after = self.recur(embedded, _expanded(state, embedded.size(1)), memory)
        return Output(self._said(self.output(self.dropout(seen)), embedded), look.weights, _aux(look)), after

    def read(self, embedded: Tensor, memory: AttendingMemory, lengths: Tensor | None = None) -> Output:
        batch, captions, words, _ = embedded.shape
        state = _expanded(self.first_state(memory), captions)
        active = [(batch, captions)] * words if lengths is None else rectangles(lengths, words)
        seen: list[Tensor] = []
        looks: list[Attended] = []
        for word, (images, columns) in zip(embedded.unbind(2), active, strict=True):
            if not images:
                break
            word = word[:images, :columns]
            if word.shape[:2] != state.hidden.shape[:2]:
                state = map_tensors(lambda x: x[:images, :columns], state)  # noqa: B023
                memory = first_images(memory, images)
            top, look, state = self.recur(word, state, memory)
            seen.append(top)
            looks.append(look)

        def stacked(rows: Sequence[Tensor]) -> Tensor:
            return _stacked(rows, active, embedded.shape)

        # One product for all steps; then every step as wide as the first.
        deep = self.output(self.dropout(torch.cat([x.flatten(0, 1) for x in seen])))
        hidden = stacked(deep.split([x.size(0) * x.size(1) for x in seen]))
        aux: dict[str, Tensor] = {}
        for name in _aux(looks[0]) or {}:
            aux[name] = stacked([getattr(look, name).flatten(0, 1).unsqueeze(-1) for look in looks]).squeeze(-1)
        attention = stacked([look.weights.flatten(0, 1) for look in looks])
        return Output(self._said(hidden, embedded), attention, aux or None)


def _expanded(state: AttendingState, captions: int) -> AttendingState:
    return map_tensors(lambda x: x.expand(-1, captions, -1, -1), state)


def _aux(look: Attended) -> dict[str, Tensor] | None:
    """What a look has besides its weights, by name."""
    found = {name: getattr(look, name) for name in ("log_prob", "sentinel")}
    return {name: value for name, value in found.items() if value is not None} or None


def _stacked(rows: Sequence[Tensor], active: Sequence[tuple[int, int]], shape: Sequence[int]) -> Tensor:
    """The rows (b·q, ·) of each step's rectangle → (B, Q, T, ·), zero elsewhere; shape begins with B, Q, T."""
    batch, captions, words = shape[:3]
    steps = [
        F.pad(x.unflatten(0, size), (0, 0, 0, captions - size[1], 0, batch - size[0]))
        for x, size in zip(rows, active, strict=False)
    ]
    whole = torch.stack(steps, 2)
    return F.pad(whole, (0, 0, 0, words - len(steps)))


class AttentionLSTMDecoder(AttendingDecoder):
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

    adds_word = True
    kind: type[LSTMCell] | type[GRUCell] = LSTMCell

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
        super().__init__(embedding, attention, hidden, dropout, tied)
        at_least(1, "decoder", layers=layers)
        size = embedding.size
        self.layers = layers
        self.states = 2 if self.kind is LSTMCell else 1
        self.initial = nn.Linear(memory_width, self.states * layers * hidden)
        self.gate = nn.Linear(hidden, memory_width)
        gates = self.kind.gates * hidden
        self.word = nn.Linear(size, gates)
        self.cell = self.kind(memory_width, hidden)
        self.upper_inputs = nn.ModuleList(nn.Linear(hidden, gates) for _ in range(layers - 1))
        self.upper_cells = nn.ModuleList(self.kind(0, hidden) for _ in range(layers - 1))
        self.output = nn.Linear(hidden + memory_width, size)
        for inputs in (self.word, *self.upper_inputs):
            nn.init.zeros_(inputs.bias)
            self.kind.remember(inputs.bias)

    def prepare(self, features: Features) -> AttendingMemory:
        return AttendingMemory(self.attention.prepare(features), features.pooled)

    def first_state(self, memory: AttendingMemory) -> AttendingState:
        first = self.initial(memory.image).unflatten(-1, (1, self.states, self.layers, self.hidden_size))
        hidden, *cell = first.unbind(2)
        return AttendingState(hidden.tanh(), cell[0] if cell else None)

    def recur(
        self, embedded: Tensor, state: AttendingState, memory: AttendingMemory
    ) -> tuple[Tensor, Attended, AttendingState]:
        hiddens = state.hidden.unbind(2)
        cells: Sequence[Tensor | None] = [None] * self.layers if state.cell is None else state.cell.unbind(2)
        top, known = hiddens[-1], cells[-1]
        look = self.attention(top, embedded, top if known is None else known, memory.attended)
        context = self.gate(top).sigmoid() * look.context
        hidden, cell = self.cell(self.word(embedded), context, hiddens[0], cells[0])
        after = [(hidden, cell)]
        for layer, (inputs, upper) in enumerate(zip(self.upper_inputs, self.upper_cells, strict=True), start=1):
            hidden, cell = upper(inputs(self.dropout(hidden)), None, hiddens[layer], cells[layer])
            after.append((hidden, cell))
        return torch.cat([hidden, context.to(hidden.dtype)], -1), look, _state(after)


class AttentionGRUDecoder(AttentionLSTMDecoder):
    """The same with gated recurrent units (`GRUCell`). Attention that reads the memory cell gets the hidden state."""

    kind = GRUCell


def _state(layers: Sequence[tuple[Tensor, Tensor | None]]) -> AttendingState:
    """The hidden states and cells (B, Q, H) of all layers as one state."""

    def together(parts: Any) -> Any:
        return None if parts[0] is None else parts[0].unsqueeze(2) if len(parts) == 1 else torch.stack(parts, 2)

    return AttendingState(*(together(parts) for parts in zip(*layers, strict=True)))


class UpDownDecoder(AttendingDecoder):
    """Top-down attention: one LSTM reads the word, the mean of the image and the language LSTM's last state, and
    decides where to look; the language LSTM reads what was seen: Anderson et al., 2018, section 3.2
    (https://arxiv.org/abs/1707.07998).

    Args:
        embedding: the word table, E wide.
        attention: any `Attention`.
        memory_width: D of the encoder's regions.
        hidden: H of both LSTMs.
        dropout: on words and on the output, while training.
        tied: the output layer shares the word table.
    """

    def __init__(
        self,
        embedding: Embedding,
        attention: Attention,
        memory_width: int,
        hidden: int = 512,
        dropout: float = 0.5,
        tied: bool = False,
    ) -> None:
        super().__init__(embedding, attention, hidden, dropout, tied)
        size = embedding.size
        self.image = nn.Linear(memory_width, 4 * hidden, bias=False)
        self.word = nn.Linear(size, 4 * hidden)
        self.top_down = LSTMCell(hidden, hidden)
        self.seen = nn.Linear(hidden, 4 * hidden)
        self.language = LSTMCell(memory_width, hidden)
        self.output = nn.Linear(hidden, size)
        for inputs in (self.word, self.seen):
            nn.init.zeros_(inputs.bias)
            LSTMCell.remember(inputs.bias)

    def prepare(self, features: Features) -> AttendingMemory:
        """The mean image's part of the first gates is the same at every step, so it is made here."""
        return AttendingMemory(self.attention.prepare(features), self.image(features.pooled))

    def first_state(self, memory: AttendingMemory) -> AttendingState:
        zeros = memory.image.new_zeros(memory.image.size(0), 1, 2, self.hidden_size)
        return AttendingState(zeros, zeros)

    def recur(
        self, embedded: Tensor, state: AttendingState, memory: AttendingMemory
    ) -> tuple[Tensor, Attended, AttendingState]:
        assert state.cell is not None
        (first, language), (first_cell, language_cell) = state.hidden.unbind(2), state.cell.unbind(2)
        given = self.word(embedded) + memory.image.unsqueeze(1)
        first, cell = self.top_down(given, language, first, first_cell)
        assert cell is not None
        look = self.attention(first, embedded, cell, memory.attended)
        language, language_cell = self.language(self.seen(first), look.context, language, language_cell)
        return language, look, _state([(first, cell), (language, language_cell)])
