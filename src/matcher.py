"""One space for pictures and sentences, in which what belongs together lies close together."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from src.data.vocabulary import UNK, Vocabulary
from src.dropout import Dropout
from src.encoders.base import Features
from src.ranges import at_least, share

if TYPE_CHECKING:
    from src.data.module import Batch


class JointMatcher(nn.Module):
    """Unit vectors of pictures and of sentences, whose inner product says how well one describes the other (after Kiros
    et al., 2014, https://arxiv.org/abs/1411.2539). `objective=contrastive` trains it.

    A picture is its pooled features and, of each head, the mean of its regions weighted by learned scores. A sentence
    is what a two-way LSTM says of its words, the largest value over the words in each dimension.

    Args:
        vocabulary: sizes the word table, which is its own.
        memory_width: D of the encoder's features.
        size: E of the space.
        words: width of the word table.
        hidden: width of each way of the LSTM.
        heads: of the pooling.
        dropout: on everything that a layer reads, while training.
        word_dropout: share of the words that are left unread (`<unk>`), while training.
        likelihood: weight of a captioner's mean log-probability of a sentence's words beside the inner product, where
            both rank.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        memory_width: int,
        size: int = 256,
        words: int = 256,
        hidden: int = 256,
        heads: int = 4,
        dropout: float = 0.2,
        word_dropout: float = 0.1,
        likelihood: float = 0.5,
    ) -> None:
        super().__init__()
        at_least(1, "matcher", size=size, words=words, hidden=hidden, heads=heads)
        at_least(0, "matcher", likelihood=likelihood)
        share("matcher", dropout=dropout, word_dropout=word_dropout)
        self.size, self.word_dropout, self.likelihood = size, word_dropout, likelihood
        self.scores = nn.Linear(memory_width, heads)
        self.picture = nn.Linear((1 + heads) * memory_width, size)
        self.words = nn.Embedding(len(vocabulary), words)
        nn.init.normal_(self.words.weight, std=0.1)
        self.reader = nn.LSTM(words, hidden, batch_first=True, bidirectional=True)
        self.sentence = nn.Linear(2 * hidden, size)
        self.dropout = Dropout(dropout)

    def pictures(self, features: Features) -> Tensor:
        """Features of B pictures → unit vectors (B, E), in float32 whatever the features are."""
        grid, pooled = features.grid.float(), features.pooled.float()
        with torch.autocast(grid.device.type, enabled=False):
            shares = self.scores(grid).masked_fill(~features.mask.unsqueeze(-1), -torch.inf).softmax(1)
            seen = torch.einsum("brh,brd->bhd", shares, grid).flatten(1)
            return F.normalize(self.picture(self.dropout(torch.cat([pooled, seen], -1))), dim=-1)

    def sentences(self, words: Tensor, lengths: Tensor) -> Tensor:
        """Words (N, T) as ids, of which the first `lengths` (N,), one or more, are a sentence's → unit vectors
        (N, E)."""
        if self.training and self.word_dropout:
            words = words.masked_fill(torch.rand(words.shape, device=words.device) < self.word_dropout, UNK)
        if not len(words):
            return self.sentence.weight.new_zeros(0, self.size)
        with torch.autocast(words.device.type, enabled=False):
            embedded = self.dropout(self.words(words))
            packed = pack_padded_sequence(embedded, lengths.cpu(), batch_first=True, enforce_sorted=False)
            read, _ = pad_packed_sequence(self.reader(packed)[0], batch_first=True, padding_value=-torch.inf)
            return F.normalize(self.sentence(self.dropout(read.amax(1))), dim=-1)


def spoken(batch: "Batch") -> tuple[Tensor, Tensor, Tensor]:
    """The sentences of a batch without BOS, control tokens and EOS, and without those that have no words: words (N, T),
    their numbers (N,) and whose they are: each one's image (N,), by its place in the batch."""
    lengths = batch.mask.sum(-1) - batch.prefix - 1
    image, caption = (lengths > 0).nonzero(as_tuple=True)
    lengths = lengths[image, caption]
    places = batch.prefix[image, caption].unsqueeze(1) + torch.arange(
        max(lengths.tolist(), default=1), device=lengths.device
    )
    words = batch.tokens[image, caption].gather(1, places.clamp(max=batch.tokens.size(-1) - 1))
    return words, lengths, image
