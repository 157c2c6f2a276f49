"""The baseline: soft attention as textbooks and tutorials write it down, to be clear rather than fast.

The same function as `AttentionLSTMDecoder` with `AdditiveAttention` and one layer, and it takes that decoder's weights,
but in the plain way: features copied for every caption, keys projected at every step, the vocabulary product at every
step, an `nn.LSTMCell` in float32, and a beam search of one picture at a time.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.data.vocabulary import BOS, EOS, PAD, UNK
from src.decoders import AttentionLSTMDecoder


class Textbook(nn.Module):
    """Show, Attend and Tell (Xu et al., 2015, https://arxiv.org/abs/1502.03044) from R regions of D.

    Args:
        vocabulary: V.
        regions_width: D.
        hidden: width of words, LSTM and attention.
        dropout: on words and on the output, while training.
    """

    def __init__(self, vocabulary: int, regions_width: int, hidden: int = 512, dropout: float = 0.5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.key = nn.Linear(regions_width, hidden)
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)
        self.gate = nn.Linear(hidden, regions_width)
        self.initial_hidden = nn.Linear(regions_width, hidden)
        self.initial_cell = nn.Linear(regions_width, hidden)
        self.cell = nn.LSTMCell(hidden + regions_width, hidden)
        self.output = nn.Linear(hidden + regions_width, hidden)
        self.classifier = nn.Linear(hidden, vocabulary)
        self.dropout = nn.Dropout(dropout)

    def load_from(self, other: AttentionLSTMDecoder) -> None:
        """Take the weights of ours."""
        hidden = other.hidden_size
        initial_hidden, initial_cell = other.initial.weight.chunk(2)
        hidden_bias, cell_bias = other.initial.bias.chunk(2)
        words, context = other.word.weight, other.cell.recurrent.weight[:, :-hidden]
        values = {
            "embedding.weight": other.embedding.weight,
            "key.weight": other.attention.key.weight,
            "key.bias": other.attention.key.bias,
            "query.weight": other.attention.query.weight,
            "score.weight": other.attention.score.weight,
            "gate.weight": other.gate.weight,
            "gate.bias": other.gate.bias,
            "initial_hidden.weight": initial_hidden,
            "initial_hidden.bias": hidden_bias,
            "initial_cell.weight": initial_cell,
            "initial_cell.bias": cell_bias,
            "cell.weight_ih": torch.cat([words, context], 1),
            "cell.bias_ih": other.word.bias,
            "cell.weight_hh": other.cell.recurrent.weight[:, -hidden:],
            "cell.bias_hh": torch.zeros(4 * hidden),
            "output.weight": other.output.weight,
            "output.bias": other.output.bias,
            "classifier.weight": other.classifier.weight,
            "classifier.bias": other.classifier.bias,
        }
        self.load_state_dict({name: value.detach() for name, value in values.items()})

    def start(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        mean = regions.mean(1)
        return self.initial_hidden(mean).tanh(), self.initial_cell(mean)

    def step(self, words: Tensor, hidden: Tensor, cell: Tensor, regions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Words (N,), states (N, H), regions (N, R, D) → logits (N, V) and the states after them."""
        embedded = self.dropout(self.embedding(words))
        compared = torch.tanh(self.key(regions) + self.query(hidden).unsqueeze(1))
        weights = self.score(compared).squeeze(2).softmax(1)
        context = (weights.unsqueeze(2) * regions).sum(1)
        context = self.gate(hidden).sigmoid() * context
        hidden, cell = self.cell(torch.cat([embedded, context], 1), (hidden, cell))
        deep = self.output(self.dropout(torch.cat([hidden, context], 1))) + embedded
        return self.classifier(self.dropout(deep)), hidden, cell

    def forward(self, regions: Tensor, tokens: Tensor) -> Tensor:
        """Regions (N, R, D) and tokens (N, T) from BOS on → logits (N, T - 1, V)."""
        hidden, cell = self.start(regions)
        logits = []
        for t in range(tokens.size(1) - 1):
            each, hidden, cell = self.step(tokens[:, t], hidden, cell, regions)
            logits.append(each)
        return torch.stack(logits, 1)

    def loss(self, regions: Tensor, tokens: Tensor, smoothing: float) -> Tensor:
        """Mean cross-entropy of real tokens."""
        logits = self(regions, tokens)
        return F.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=PAD, label_smoothing=smoothing
        )

    @torch.no_grad()
    def caption(self, regions: Tensor, beams: int, words: int) -> list[int]:
        """Beam search of one picture (1, R, D): the likeliest caption of `words` words and EOS, by log-probability."""
        regions = regions.expand(beams, -1, -1)
        hidden, cell = self.start(regions)
        sequences = torch.full((beams, 1), BOS)
        scores = torch.zeros(beams)
        for step in range(words + 1):
            logits, hidden, cell = self.step(sequences[:, -1], hidden, cell, regions)
            log_probs = logits.log_softmax(1)
            if step == words:
                return sequences[(scores + log_probs[:, EOS]).argmax(), 1:].tolist()
            log_probs[:, [PAD, BOS, UNK, EOS]] = -torch.inf
            total = scores.unsqueeze(1) + log_probs
            total = total[0] if step == 0 else total.flatten()
            scores, best = total.topk(beams)
            parents, chosen = best // logits.size(1), best % logits.size(1)
            sequences = torch.cat([sequences[parents], chosen.unsqueeze(1)], 1)
            hidden, cell = hidden[parents], cell[parents]
        raise AssertionError
