"""Knowledge distillation: one captioner learns what several say."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from src.attention import HardAttention
from src.bundle import load_bundle
from src.decoders.latent import GaussianLatent
from src.encoders.precomputed import RegionEncoder
from src.objectives.base import Loss, Objective
from src.objectives.cross_entropy import linear_cross_entropy
from src.ranges import share

if TYPE_CHECKING:
    from src.data.module import Batch, CaptionData
    from src.model import CaptioningModel


class Distillation(Objective):
    """Cross-entropy whose target is a mix of the caption's own word and what an ensemble of teachers would say there:
    Hinton et al., 2015 (https://arxiv.org/abs/1503.02531), word by word as in Kim and Rush, 2016
    (https://arxiv.org/abs/1606.07947). The teachers see the same pixels, or the same cached features, and read the
    same captions; what they say is the mean of their probabilities. They are part of no checkpoint.

    In eval mode it is the cross-entropy, without label smoothing and teachers.

    Args:
        teachers: bundles, runs' folders or checkpoints of the same vocabulary.
        weight: the teachers' share of the target, in [0, 1].
        label_smoothing: of the caption's own word, as in cross_entropy.
    """

    def __init__(self, teachers: Sequence[str], weight: float = 0.7, label_smoothing: float = 0.1) -> None:
        super().__init__()
        share("objective", label_smoothing=label_smoothing)
        if not 0 <= weight <= 1:
            raise ValueError(f"objective.weight={weight}: from 0 to 1")
        if not teachers:
            raise ValueError("objective.teachers=[]: name one captioner or more, as runs/NAME or a bundle's folder")
        self.paths, self.weight, self.label_smoothing = list(teachers), weight, label_smoothing
        self.teachers: tuple[CaptioningModel, ...] = ()  # in a tuple: no parts of this module, which is saved

    def check(self, model: "CaptioningModel") -> None:
        if isinstance(model.decoder, GaussianLatent):
            raise ValueError("objective=distillation teaches words, not a latent variable: set latent=null")
        if any(isinstance(module, HardAttention) for module in model.decoder.modules()):
            raise ValueError("objective=distillation does not teach drawn looks: choose another attention than hard")

    def begin(self, model: "CaptioningModel", data: "CaptionData") -> None:
        teachers = []
        for path in self.paths:
            bundle = load_bundle(Path(path))
            if bundle.vocabulary.words != data.vocabulary.words:
                raise ValueError(
                    f"objective.teachers: {path} knows {len(bundle.vocabulary)} words and these data have "
                    f"{len(data.vocabulary)}, not the same: teachers are trained on the same captions with the same "
                    "data.min_count, tokenizer and control"
                )
            if isinstance(bundle.model.decoder, GaussianLatent):
                raise ValueError(f"objective.teachers: {path} has a latent variable, and there is none to draw here")
            if isinstance(bundle.model.encoder, RegionEncoder) != isinstance(model.encoder, RegionEncoder):
                raise ValueError(f"objective.teachers: {path} and this captioner do not both read regions, or pictures")
            teachers.append(bundle.model)
        self.teachers = tuple(teachers)
        self.strangers = [path for path, each in zip(self.paths, teachers, strict=True) if not _same_cache(model, each)]

    def forward(self, model: "CaptioningModel", batch: "Batch") -> Loss:
        decoder = model.decoder
        memory = model.memory(batch.images)
        real = batch.mask[..., 1:].clone()
        lengths = real.sum(-1)
        steps = torch.arange(1, batch.tokens.size(-1), device=real.device)
        real &= steps >= batch.prefix.unsqueeze(-1)  # control tokens are given, never predicted
        given = batch.tokens[..., :-1]
        hidden = decoder(decoder.embed(given), memory, lengths=lengths).hidden
        taught = self.training and self.weight > 0
        said = self._said(batch, given, lengths, real) if taught else None
        total, nats, correct = linear_cross_entropy(
            decoder.dropout(hidden[real]),
            decoder.classifier,
            batch.tokens[..., 1:][real],
            self.label_smoothing if self.training else 0.0,
            taught=said,
            share=self.weight if taught else 0.0,
        )
        return Loss(total, real.sum(), {"cross_entropy": nats.sum(), "token_accuracy": correct})

    def _said(
        self, batch: "Batch", given: Tensor, lengths: Tensor, real: Tensor
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each teacher what it says of the real words: hidden (N, E), and the layer that makes it words."""
        images = batch.images
        cached = isinstance(images, Tensor) and images.dim() == 3
        if cached and self.strangers:
            raise ValueError(
                f"objective.teachers: {self.strangers[0]} cannot read the cached features, its frozen stages are other "
                "than this captioner's: set data.cache=false, or encoder.frozen as it has"
            )
        said: list[tuple[Tensor, Tensor, Tensor]] = []
        with torch.no_grad():
            for teacher in self.teachers:
                decoder = teacher.to(given.device).eval().decoder
                hidden = decoder(decoder.embed(given), teacher.memory(images), lengths=lengths).hidden
                said.append((hidden[real], decoder.classifier.weight, decoder.classifier.bias))
        torch.clear_autocast_cache()  # casts made without gradients: torch before 2.10 would use them again
        return said


def _same_cache(model: "CaptioningModel", teacher: "CaptioningModel") -> bool:
    """Whether what the model's frozen stages say is what the teacher's would."""
    own, its = model.encoder, teacher.encoder
    if own.frozen_stages != its.frozen_stages or type(own) is not type(its) or own.cache_key != its.cache_key:
        return False
    mine, theirs = (
        [tensor for part in each.frozen_modules for tensor in part.state_dict().values()] for each in (own, its)
    )
    alike = (x.shape == y.shape and torch.equal(x.cpu(), y.cpu()) for x, y in zip(mine, theirs, strict=False))
    return len(mine) == len(theirs) and all(alike)
