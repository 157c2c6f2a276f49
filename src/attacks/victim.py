"""A captioner as an attack sees it: from pixels to words, with gradients all the way back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from src.captioner import Caption, Captioner
from src.data.vocabulary import BOS, EOS, PAD, UNK
from src.decoders.base import Decoder
from src.encoders.base import Features
from src.encoders.precomputed import RegionEncoder
from src.generation import GreedySearch
from src.generation.base import Hypotheses


class AttackError(ValueError):
    """A captioner or a goal that no attack can work on; the message says why."""


class Read(NamedTuple):
    """What a decoder says of given captions. B pictures, Q captions each, T tokens."""

    logits: Tensor
    """(B, Q, T, V) of the word in each place, in float32 at least."""
    words: Tensor
    """(B, Q, T): the words that stand there."""
    real: Tensor
    """(B, Q, T): True where one does."""


class Victim:
    """A captioner whose weights stay, and whose pixels have gradients. Attacks look at the captions of greedy search;
    what counts in the end is what the captioner itself says.

    Args:
        captioner: of pictures.
        samples: draws of a random defence over which gradients are averaged (expectation over transformations, Athalye
            et al., 2018, https://arxiv.org/abs/1707.07397); None: 8, or 1 where nothing is drawn.

    Raises:
        AttackError: it reads regions, is an ensemble, or lets no gradient through.
    """

    def __init__(self, captioner: Captioner, samples: int | None = None) -> None:
        if len(captioner.members) > 1:
            raise AttackError("an ensemble: attack one of its captioners, and see what it does to the others: transfer")
        if isinstance(captioner.model.encoder, RegionEncoder):
            raise AttackError("this captioner reads regions computed beforehand: there are no pixels to change")
        self.captioner = captioner
        self.model, self.vocabulary = captioner.model, captioner.vocabulary
        self.defence = self.model.encoder.defence
        self.samples = samples or (8 if self.defence is not None and self.defence.random else 1)
        self.model.requires_grad_(False).eval()
        self.model.encoder.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.recurrent = any(isinstance(module, nn.RNNBase) for module in self.model.decoder.modules())
        """cuDNN gives recurrent layers gradients in training only."""
        self.greedy = GreedySearch(
            max_length=captioner.generation.max_length,
            min_length=captioner.generation.min_length,
            allow_unknown=UNK not in captioner.generation.banned,
            never=captioner.generation.never,
        )
        self.greedy.bind(captioner.vocabulary, captioner.tokenizer)
        self.prefix = [self.vocabulary.control_index[name] for name in captioner.control]

    @property
    def decoder(self) -> Decoder:
        return self.model.decoder

    @property
    def never(self) -> list[int]:
        """Ids that no caption says."""
        return [*self.greedy.banned, *self.decoder.controls]

    @contextmanager
    def gradients(self) -> Iterator[None]:
        """With gradients, in the captioner's precision, and what is random drawn anew."""
        device, dtype = self.captioner.device, self.captioner.dtype
        with (
            torch.enable_grad(),
            nullcontext() if self.defence is None else self.defence.drawing_anew(),
            torch.autocast(device.type, dtype, enabled=dtype is not None),
            torch.backends.cudnn.flags(enabled=not self.recurrent),
        ):
            yield

    def check(self, images: Tensor) -> None:
        """Try it on a picture (1, 3, H, W).

        Raises:
            AttackError: no gradient reaches its pixels.
        """
        pixels = images[:1].clone().requires_grad_()
        with self.gradients():
            said = self.ids(self.said(self.seen(pixels))[0])
            read = self.read(self.seen(pixels), [[said]])
            chosen = read.logits.log_softmax(-1).gather(-1, read.words.unsqueeze(-1)).squeeze(-1)
            total = (chosen * read.real).sum()
        gradient = torch.autograd.grad(total, pixels, allow_unused=True)[0] if total.requires_grad else None
        if gradient is None or not bool(gradient.any()):
            raise AttackError("no gradient reaches the pixels of this captioner: only transfer can attack it")

    def ids(self, words: Sequence[str]) -> list[int]:
        """Words as their ids, those that it does not know as <unk>, with the end token."""
        return [*(self.vocabulary.index.get(word, UNK) for word in words), EOS]

    def seen(self, images: Tensor) -> Features:
        """Pixels (B, 3, H, W) in [0, 1] → Features."""
        return self.model.features(images)

    def read(self, seen: Features, captions: Sequence[Sequence[Sequence[int]]]) -> Read:
        """What the decoder says of each picture's captions, ids that end in the end token, the true words before
        given; every picture has as many."""
        longest = max(len(ids) for group in captions for ids in group)
        rows = [[[*ids, *[PAD] * (longest - len(ids))] for ids in group] for group in captions]
        words = torch.tensor(rows, device=seen.grid.device)
        before = torch.tensor([BOS, *self.prefix], device=words.device).expand(*words.shape[:2], -1)
        given = torch.cat([before, words[..., :-1]], -1)
        output = self.decoder(self.decoder.embed(given), self.decoder.prepare(seen))
        logits = self.decoder.logits(output.hidden[:, :, len(self.prefix) :])
        return Read(logits.to(torch.promote_types(logits.dtype, torch.float32)), words, words != PAD)

    def said(self, seen: Features) -> list[list[str]]:
        """What greedy search says of Features, in words."""
        with torch.no_grad():
            seen = Features(*(x.detach() for x in seen))
            memory = self.decoder.prepare(seen)
            prefix = torch.tensor(self.prefix, dtype=torch.long).expand(len(seen.grid), -1) if self.prefix else None
            found: Hypotheses = self.greedy(self.decoder, memory, prefix=prefix)
        tokens, many = found.tokens[:, 0].tolist(), found.lengths[:, 0].tolist()
        return [[self.vocabulary.words[i] for i in row[:n]] for row, n in zip(tokens, many, strict=True)]

    def words(self, images: Tensor) -> list[list[str]]:
        """What greedy search says of pixels."""
        with self.captioner.computing():
            return self.said(self.seen(images))

    def captions(self, images: Tensor) -> list[Caption]:
        """What the captioner says of pixels, by its own search."""
        seen = self.captioner.features(images)
        return self.captioner.captions(self.captioner.search(seen))
