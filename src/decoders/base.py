"""What every decoder shares: the word table, the output layer, and the contract that training and search rely on."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from src.dropout import Dropout
from src.embeddings.base import Embedding
from src.encoders.base import Features
from src.ranges import share

Tree = TypeVar("Tree")


def map_tensors(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Apply a function to every tensor of a Memory or State: nested tuples and NamedTuples, None left alone."""
    if isinstance(tree, Tensor):
        return function(tree)  # type: ignore[return-value]
    if isinstance(tree, tuple):
        values = [map_tensors(function, value) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)  # type: ignore[return-value]
    return tree


def first_tensor(tree: Any) -> Tensor:
    """One tensor of a Memory or State, which tells how many images there are, and where."""
    while not isinstance(tree, Tensor):
        tree = tree[0]
    return tree


def first_images(tree: Tree, count: int) -> Tree:
    """The first images of a Memory or State, as views."""
    return map_tensors(lambda x: x[:count], tree)


def select_images(tree: Tree, index: Tensor) -> Tree:
    """Keep (or repeat) the images named by index (B',) in a Memory or State of B images."""
    return map_tensors(lambda x: x.index_select(0, index), tree)


def select_beams(state: Tree, parents: Tensor) -> Tree:
    """The State (B, K, ·) in which beam k continues beam parents[b, k] of a State (B, Q, ·)."""
    batch, beams = parents.shape

    def pick(x: Tensor) -> Tensor:
        rows = parents + torch.arange(batch, device=parents.device).unsqueeze(1) * x.size(1)
        return x.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, (batch, beams))

    return map_tensors(pick, state)


def rectangles(lengths: Tensor, words: int) -> list[tuple[int, int]]:
    """For each of the steps 0 … words - 1 the first images and the first captions of an image among which all captions
    are that are longer (lengths (B, Q)): what a loop over words may leave out are whole rows and columns, which costs
    no copy. They are few where long captions come first."""
    steps = torch.arange(words).unsqueeze(1)

    def first(longest: Tensor) -> list[int]:
        to_come = longest.flip(0).cummax(0).values.flip(0)
        return (to_come > steps).sum(1).tolist()

    lengths = lengths.cpu()
    return list(zip(first(lengths.amax(1)), first(lengths.amax(0)), strict=True))


class Output(NamedTuple):
    """What a decoder says of one step (B, Q, ·) or of all T steps (B, Q, T, ·)."""

    hidden: Tensor
    """(…, E): goes into `logits`, which is apart so that only real tokens pay for the vocabulary."""
    attention: Tensor | None = None
    """(…, R): where it looked; None for decoders that do not attend."""
    aux: dict[str, Tensor] | None = None
    """Whatever an objective may want besides, e.g. log-probabilities of sampled looks."""


class Decoder(nn.Module):
    """B images, Q captions (or beams) an image. `Memory` is what stays the same over the steps, made once an image;
    `State` is what changes. Both are NamedTuples of batch-first tensors: (B, ·) and (B, Q, ·).

    Args:
        embedding: the word table, E wide.
        tied: the output layer shares the word table (Press and Wolf, 2017, https://arxiv.org/abs/1608.05859).
        dropout: on embedded words and on the hidden output while training.

    Raises:
        ValueError: tied, and the embedding has no table that could be shared.
    """

    attends: bool = False
    """Whether it looks at regions, and so says where."""
    takes_attention: bool = False
    """Whether the way it looks is an `Attention` of one's choice."""
    controls: Sequence[int] = ()
    """Ids that are given and never said."""

    def __init__(self, embedding: Embedding, tied: bool, dropout: float) -> None:
        super().__init__()
        share("decoder", dropout=dropout)
        self.embedding = embedding
        self.classifier = nn.Linear(embedding.size, len(embedding.vocabulary))
        nn.init.zeros_(self.classifier.bias)
        if tied:
            self.classifier.weight = embedding.tie()
        self.dropout = Dropout(dropout)

    def prepare(self, features: Features) -> Any:
        """Features → Memory."""
        raise NotImplementedError

    def first_state(self, memory: Any) -> Any:
        """Memory → the State before the first word, of one caption an image (Q = 1)."""
        raise NotImplementedError

    def start(
        self,
        memory: Any,
        condition: Any = None,
        generator: torch.Generator | None = None,
        captions: int = 1,
    ) -> Any:
        """Memory → the State before the first word, of as many captions an image as differ from the beginning: one, but
        for decoders that follow a condition (B, Q, ·) or draw one of their own, by a generator, for each of so many
        `captions`."""
        return self.first_state(memory)

    def embed(self, words: Tensor) -> Tensor:
        """Ids (…) or probabilities over the vocabulary (…, V) → (…, E): sampled and relaxed words share a path."""
        return self.dropout(self.embedding(words))

    def step(self, embedded: Tensor, state: Any, memory: Any) -> tuple[Output, Any]:
        """One word (B, Q, E) further."""
        raise NotImplementedError

    def read(self, embedded: Tensor, memory: Any, lengths: Tensor | None = None) -> Output:
        """All words (B, Q, T, E) at once, as `forward`."""
        raise NotImplementedError

    def forward(self, embedded: Tensor, memory: Any, condition: Any = None, lengths: Tensor | None = None) -> Output:
        """All words (B, Q, T, E) at once, teacher-forced; in eval mode equal to repeated `step`s to rounding. What lies
        behind a caption's first `lengths` (B, Q) words need not be computed, and means nothing. A condition is what
        `start` takes."""
        return self.read(embedded, memory, lengths)

    def to_compile(self) -> list[nn.Module]:
        """The modules that `torch.compile` can make faster; PyTorch's own recurrent layers are none."""
        return []

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, E) → unnormalised log-probabilities of the next word (…, V). Not to be overridden: objectives train
        `dropout` and `classifier` without these logits ever existing at once."""
        return self.classifier(self.dropout(hidden))
