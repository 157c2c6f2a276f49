"""Self-critical sequence training: captions of the model's own are rewarded by the scores they get."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from src.attention import HardAttention
from src.data.vocabulary import BOS, EOS, PAD, Vocabulary
from src.decoders.base import Decoder, first_tensor, map_tensors, select_images
from src.decoders.latent import GaussianLatent
from src.generation import GreedySearch, SampleSearch
from src.generation.base import Hypotheses
from src.metrics.bleu import bleu
from src.metrics.cider import CiderD, DocumentFrequencies
from src.objectives.base import Loss, Objective
from src.objectives.cross_entropy import CrossEntropy, linear_cross_entropy
from src.ranges import at_least

if TYPE_CHECKING:
    from src.data.module import Batch, CaptionData, CaptionedImages
    from src.model import CaptioningModel

END = "<eos>"
"""The end token as a word of candidates and references: without it captions lose their ends (Rennie et al., 2017)."""


@contextmanager
def undropped(decoder: Decoder) -> Iterator[None]:
    """A decoder in eval mode, but for recurrent layers, whose gradients cuDNN gives in training mode only: theirs is
    without dropout instead."""
    recurrent = [module for module in decoder.modules() if isinstance(module, nn.RNNBase)]
    kept, training = [module.dropout for module in recurrent], decoder.training
    decoder.eval()
    for module in recurrent:
        module.train(training)
        module.dropout = 0.0
    try:
        yield
    finally:
        for module, share in zip(recurrent, kept, strict=True):
            module.dropout = share
        decoder.train(training)


def learns_what_it_draws(decoder: Decoder, objective: str) -> None:
    """Refuse decoders whose captions depend on more that is drawn than their words: `policy_gradient` reads words only.

    Raises:
        ValueError: a latent variable, or looks that are drawn.
    """
    if isinstance(decoder, GaussianLatent):
        raise ValueError(f"objective={objective} learns from drawn words, not from a drawn latent: set latent=null")
    if any(isinstance(module, HardAttention) for module in decoder.modules()):
        raise ValueError(
            f"objective={objective} learns from drawn words, not from drawn looks: choose another attention than hard"
        )


def policy_gradient(
    decoder: Decoder, memory: Any, tokens: Tensor, advantages: Tensor, prefix: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """REINFORCE (Williams, 1992, https://doi.org/10.1007/BF00992696) on captions that the decoder has drawn: minus the
    sum over their words of advantage · log-probability, whose gradient is the estimate, and the number of words.

    Args:
        decoder, memory: as the captions were drawn from.
        tokens: (B, K, T) ids without BOS; EOS where they end, then padding.
        advantages: (B, K) how much better each is than was to be expected.
        prefix: (B, P) the control tokens that they were drawn behind.
    """
    real = tokens != PAD
    lengths = real.sum(-1)
    order = lengths.argsort(dim=1, descending=True)  # decoders leave out what has ended: the longest first

    def longest_first(x: Tensor) -> Tensor:
        return x.gather(1, order.view(*order.shape, *[1] * (x.dim() - 2)).expand(x.shape))

    real, tokens, lengths = (longest_first(x) for x in (real, tokens, lengths))
    first = torch.full_like(tokens[..., :1], BOS)
    if prefix is not None:
        first = torch.cat([first, prefix.unsqueeze(1).expand(-1, tokens.size(1), -1)], -1)
    given = torch.cat([first, tokens[..., :-1].masked_fill(~real[..., 1:], PAD)], -1)
    before = first.size(-1) - 1
    hidden = decoder(decoder.embed(given), memory, lengths=lengths + before).hidden[..., before:, :]
    weights = longest_first(advantages).unsqueeze(-1).expand(tokens.shape)
    total, _, _ = linear_cross_entropy(
        decoder.dropout(hidden[real]), decoder.classifier, tokens[real], weights=weights[real].float()
    )
    return total, real.sum()


Request = tuple[int, ...]
"""The control tokens that a caption is asked for by, as ids; none where there is nothing to ask for."""


def requests(split: "CaptionedImages") -> list[dict[Request, list[int]]]:
    """Of each image of a split, what its captions are asked for by, and which of them are so."""
    known: dict[str, Request] = {}
    found = []
    for first, last in itertools.pairwise(split.first_caption.tolist()):
        own: dict[Request, list[int]] = {}
        for place, label in enumerate(split.labels[row] for row in range(first, last)):
            if label not in known:
                names = split.control.tokens(label, 0) if split.control else []
                known[label] = tuple(split.control_index[name] for name in names if name in split.control_index)
            own.setdefault(known[label], []).append(place)
        found.append(own)
    return found


class SelfCritical(Objective):
    """Self-critical sequence training: Rennie et al., 2017 (https://arxiv.org/abs/1612.00563). Captions are drawn from
    the model; those that score better than a baseline become likelier, the others less likely. The score is a weighted
    mix of CIDEr-D, by the document frequencies of the training captions, and BLEU-4 of the single caption; the end
    token is a word in it. Unless `dropout` says otherwise, the decoder's dropout is off, in drawing and in learning:
    what is improved is what captions.

    Where captions have tags (`control=tags`), each image is asked for by one of its captions' control tokens, drawn at
    random (a language, say); its references are then its captions of the same. A share, `control.dropout`, is asked for
    nothing, and has all references. Document frequencies are of all captions.

    In eval mode it is the cross-entropy of the references, without label smoothing.

    Args:
        samples: captions drawn an image, K.
        baseline: `greedy`, the score of the greedy caption, or `mean`, of the image's other samples (Luo, 2020,
            https://arxiv.org/abs/2003.09971).
        cider: weight of CIDEr-D, which is in [0, 10].
        bleu: weight of BLEU-4, which is in [0, 1].
        max_length: most words of a caption drawn.
        dropout: the decoder's dropout is on, in drawing and in learning, each with a mask of its own.
        from_random: allow a start from random weights, which learns next to nothing.
    """

    follows = ("tags",)

    def __init__(
        self,
        samples: int = 5,
        baseline: str = "mean",
        cider: float = 1.0,
        bleu: float = 0.0,
        max_length: int = 24,
        dropout: bool = False,
        from_random: bool = False,
    ) -> None:
        super().__init__()
        at_least(1, "objective", samples=samples, max_length=max_length)
        at_least(0, "objective", cider=cider, bleu=bleu)
        if baseline not in ("greedy", "mean"):
            raise ValueError(f"objective.baseline={baseline}: choose greedy or mean")
        if baseline == "mean" and samples < 2:
            raise ValueError("objective.samples=1: the mean of the other samples needs 2 or more, or baseline=greedy")
        if not cider + bleu:
            raise ValueError("objective.cider=0 and objective.bleu=0: nothing is rewarded; give one of them a weight")
        self.samples, self.baseline, self.weights = samples, baseline, (cider, bleu)
        self.dropout, self.needs_start = dropout, not from_random
        limits: dict[str, Any] = {"max_length": max_length, "min_length": 0, "allow_unknown": True}
        self.sampling, self.greedy = SampleSearch(samples, **limits), GreedySearch(**limits)
        self.likelihood = CrossEntropy(label_smoothing=0.0)
        self.vocabulary: Vocabulary | None = None
        self.requests: list[dict[Request, list[int]]] | None = None  # where there is nothing to ask for
        self.unasked = 0.0  # share of images that are asked for nothing

    def check(self, model: "CaptioningModel") -> None:
        learns_what_it_draws(model.decoder, "self_critical")

    def begin(self, model: "CaptioningModel", data: "CaptionData") -> None:
        self.vocabulary, self.tokenizer = data.vocabulary, data.tokenizer
        split = data.images("train")
        if data.control is not None:
            self.requests, self.unasked = requests(split), data.control.dropout
        groups = [self._words(texts) for texts in split.captions]
        self.scorer = CiderD({}, DocumentFrequencies.cached(groups, data.cache_dir / "document_frequencies"))

    def _words(self, captions: Sequence[str]) -> list[str]:
        return [" ".join([*self.tokenizer.tokens(caption), END]) for caption in captions]

    def reward(self, tokens: Tensor, references: Sequence[Sequence[str]]) -> Tensor:
        """The score of captions (B, K, T), as ids with EOS where they end, against their images' references: (B, K)."""
        assert self.vocabulary is not None, "begin(model, data) first"
        words = [*self.vocabulary.words]
        words[EOS] = END
        scores = []
        for rows, group in zip(tokens.tolist(), references, strict=True):
            captions = [" ".join(words[i] for i in row if i != PAD) for row in rows]
            wanted = self._words(group)
            total = [0.0] * len(captions)
            if self.weights[0]:
                total = [self.weights[0] * score for score in self.scorer.score_samples(wanted, captions)]
            if self.weights[1]:
                numbered = {str(k): [caption] for k, caption in enumerate(captions)}
                found = bleu(dict.fromkeys(numbered, wanted), numbered)[1][-1]
                total = [a + self.weights[1] * float(b) for a, b in zip(total, found, strict=True)]
            scores.append(total)
        return torch.tensor(scores, device=tokens.device)

    def forward(self, model: "CaptioningModel", batch: "Batch") -> Loss:
        if not self.training:
            return self.likelihood(model, batch)
        memory = model.memory(batch.images)
        asked, references = self._asked(batch)
        parts: list[Loss] = []
        for size in sorted(set(map(len, asked))):  # of the control tokens
            rows = [place for place, request in enumerate(asked) if len(request) == size]
            where = torch.tensor(rows, device=batch.index.device)
            its = memory if len(rows) == len(asked) else select_images(memory, where)
            parts.append(self._learned(model.decoder, its, [asked[b] for b in rows], [references[b] for b in rows]))
        logs = {name: torch.stack([part.logs[name] for part in parts]).sum() for name in parts[0].logs}
        total, count = (torch.stack(each).sum() for each in zip(*(part[:2] for part in parts), strict=True))
        return Loss(total, count, logs)

    def _asked(self, batch: "Batch") -> tuple[list[Request], list[list[str]]]:
        """What each image of a batch is asked for by, and its references then."""
        if self.requests is None:
            return [()] * len(batch.index), batch.references
        asked, references = [], []
        chances = torch.rand(len(batch.index), 2).tolist()
        for image, texts, (chance, coin) in zip(batch.index.tolist(), batch.references, chances, strict=True):
            own = list(self.requests[image].items())
            request, places = own[int(chance * len(own))] if coin >= self.unasked else ((), range(len(texts)))
            asked.append(request)
            references.append([texts[place] for place in places])
        return asked, references

    def _learned(
        self, decoder: Decoder, memory: Any, asked: Sequence[Request], references: Sequence[Sequence[str]]
    ) -> Loss:
        """What is learned from images that are asked for by equally many control tokens."""
        self.sampling.seed = int(torch.randint(2**31, ()))
        device = first_tensor(memory).device
        prefix = torch.tensor(asked, device=device) if asked[0] else None
        with nullcontext() if self.dropout else undropped(decoder):
            with torch.no_grad():
                seen = map_tensors(Tensor.detach, memory)
                drawn = self.sampling(decoder, seen, prefix=prefix)
                rewards = self.reward(drawn.tokens, references)
                baseline = self._baseline(rewards, decoder, seen, references, prefix)
            torch.clear_autocast_cache()  # casts made without gradients: torch before 2.10 would use them again
            total, count = policy_gradient(decoder, memory, drawn.tokens, rewards - baseline, prefix)
        return Loss(total, count, self._logs(drawn, rewards, baseline))

    def _baseline(
        self,
        rewards: Tensor,
        decoder: Decoder,
        memory: Any,
        references: Sequence[Sequence[str]],
        prefix: Tensor | None = None,
    ) -> Tensor:
        if self.baseline == "mean":
            return (rewards.sum(1, keepdim=True) - rewards) / (self.samples - 1)
        return self.reward(self.greedy(decoder, memory, prefix=prefix).tokens, references)

    def _logs(self, drawn: Hypotheses, rewards: Tensor, baseline: Tensor) -> dict[str, Tensor]:
        words = (drawn.tokens != PAD).sum(-1)  # each caption counts by its words, as all sums do
        return {"reward": (rewards * words).sum(), "baseline": (baseline * words).sum()}
