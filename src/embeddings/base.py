"""What every embedding shares: a table with a vector a word, and how its rows become what a decoder reads."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from src.data.vocabulary import Vocabulary
from src.ranges import at_least

log = logging.getLogger(__name__)

MISSING_SHOWN = 5
"""How many of the words without a vector the log names."""


class Embedding(nn.Module):
    """V words → vectors of width E, which all learn.

    Args:
        vocabulary: its words, of which there are V.
        size: E.
    """

    source: str | None = None
    """What vectors were read from; None: none were."""
    package: str | None = None
    """What has to be installed for `fit`."""

    def __init__(self, vocabulary: Vocabulary, size: int) -> None:
        super().__init__()
        at_least(1, "embedding", size=size)
        self.vocabulary, self.size = vocabulary, size
        self.table = nn.Embedding(len(vocabulary), size)
        nn.init.normal_(self.table.weight, std=size**-0.5)  # unit-length rows: as good a start for tied output weights

    def fit(self, captions: Iterable[Sequence[str]], cache: Path) -> None:
        """Learn what is learned from the training captions before the captioner is: nothing, by default. A constructor
        reads no captions, so that a bundle needs none.

        Args:
            captions: the tokens of each.
            cache: a folder for what was learned, made where it is needed.
        """

    @property
    def weight(self) -> Tensor:
        """Every word's vector (V, E), for relaxed words: probabilities @ weight."""
        return self.table.weight

    def lookup(self, ids: Tensor) -> Tensor:
        """Ids (…) → vectors (…, E): rows of `weight`, of which no other is computed."""
        return self.table(ids)

    def forward(self, words: Tensor) -> Tensor:
        """Ids (…) or probabilities over the vocabulary (…, V) → vectors (…, E)."""
        return words @ self.weight if words.is_floating_point() else self.lookup(words)

    def tie(self) -> Tensor:
        """The table itself (V, E), for an output layer that shares it.

        Raises:
            ValueError: there is no table that learns and is as wide as E.
        """
        return self.table.weight


class GivenEmbedding(Embedding):
    """Vectors that come from elsewhere, `fill`ed in: fine-tuned or left as they are, as they are or projected.

    Args:
        vocabulary: V words.
        vectors: their width.
        size: E: None is the vectors' own width, a number projects them to that width. The projection has no bias, which
            every decoder adds itself, and keeps their length on average to begin with.
        frozen: the vectors do not learn; a projection does.
    """

    def __init__(self, vocabulary: Vocabulary, vectors: int, size: int | None, frozen: bool) -> None:
        at_least(1, "embedding", vectors=vectors, size=size)
        super().__init__(vocabulary, vectors)
        self.table.weight.requires_grad_(not frozen)
        self.projection = None if size is None else nn.Linear(vectors, size, bias=False)
        if self.projection is not None:
            self.size = self.projection.out_features
            nn.init.normal_(self.projection.weight, std=self.size**-0.5)

    @property
    def weight(self) -> Tensor:
        return self.table.weight if self.projection is None else self.projection(self.table.weight)

    def lookup(self, ids: Tensor) -> Tensor:
        # Projecting what was looked up: there are fewer words in a batch than in a vocabulary.
        return self.table(ids) if self.projection is None else self.projection(self.table(ids))

    def tie(self) -> Tensor:
        if self.projection is not None:
            raise ValueError(
                "decoder.tied=true: the output layer can share the word vectors, but not what embedding.size="
                f"{self.size} projects them to: set embedding.size=null, or decoder.tied=false"
            )
        if not self.table.weight.requires_grad:
            raise ValueError(
                "decoder.tied=true: the output layer has to learn, and embedding.frozen=true keeps the vectors that it "
                "would share from it: set embedding.frozen=false, or decoder.tied=false"
            )
        return super().tie()

    def fill(self, found: Mapping[str, np.ndarray], name: str) -> None:
        """Take over the vectors of the words that have one. The others, and those of the specials and control tokens,
        start at random with the mean length of these. How much of the vocabulary was found goes to the log.

        Args:
            found: vectors, each as wide as the table, of words of the vocabulary; perhaps of `<unk>` too.
            name: of their source.

        Raises:
            ValueError: no word was found.
        """
        words, counts, own = self.vocabulary.words, self.vocabulary.counts, self.vocabulary.index
        known = [i for word, i in own.items() if word in found]
        total = len(own)
        if not known:
            raise ValueError(
                f"{name} has none of the vocabulary's {total:,} words ({', '.join(list(own)[:3])} …): are "
                "its words of this language, in UTF-8?"
            )
        rows = [i for i, word in enumerate(words) if word in found and word not in self.vocabulary.control_index]
        with torch.no_grad():
            taken = torch.from_numpy(np.stack([found[words[i]] for i in rows]).astype(np.float32))
            self.table.weight.mul_(taken.norm(dim=1).mean())  # its random rows were of length 1
            self.table.weight[rows] = taken.to(self.table.weight)
        tokens = sum(counts[i] for i in known) / (sum(counts[i] for i in own.values()) or 1)
        missing = sorted((word for word in own if word not in found), key=lambda word: -counts[own[word]])
        log.log(
            logging.INFO if tokens >= 0.5 else logging.WARNING,
            "%s: %s of %s words (%.1f %%), %.1f %% of their training tokens%s",
            name,
            f"{len(known):,}",
            f"{total:,}",
            100 * len(known) / total,
            100 * tokens,
            f"; the most frequent missing: {', '.join(missing[:MISSING_SHOWN])}" if missing else "",
        )
