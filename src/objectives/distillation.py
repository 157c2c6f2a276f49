"""Knowledge distillation: one captioner learns what several say."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from src.bundle import load_bundle
from src.decoders.latent import GaussianLatent
from src.encoders.precomputed import RegionEncoder
from src.objectives.cross_entropy import CrossEntropy

if TYPE_CHECKING:
    from src.data.module import Batch, CaptionData
    from src.model import CaptioningModel


class Teachers(tuple["CaptioningModel", ...]):
    """Captioners that are part of no module, and so of no checkpoint; a moving average shares them, it has no copy."""

    def __deepcopy__(self, memo: Mapping[int, Any]) -> "Teachers":
        return self


class Distillation(CrossEntropy):
    """Cross-entropy whose target is a mix of the caption's own word and what an ensemble of teachers would say there:
    Hinton et al., 2015 (https://arxiv.org/abs/1503.02531), word by word as in Kim and Rush, 2016
    (https://arxiv.org/abs/1606.07947). The teachers see the same pixels, or the same cached features, and read the
    same captions; what they say is the mean of their probabilities. In eval mode it is the cross-entropy alone.

    Args:
        teachers: bundles, runs' folders or checkpoints of the same vocabulary.
        weight: the teachers' share of the target, in [0, 1].
        label_smoothing: of the caption's own word, as in cross_entropy.
    """

    def __init__(self, teachers: Sequence[str], weight: float = 0.7, label_smoothing: float = 0.1) -> None:
        super().__init__(label_smoothing)
        if not 0 <= weight <= 1:
            raise ValueError(f"objective.weight={weight}: from 0 to 1")
        if not teachers:
            raise ValueError("objective.teachers=[]: name one captioner or more, as runs/NAME or a bundle's folder")
        self.paths, self.weight, self.teachers = list(teachers), weight, Teachers()

    def check(self, model: "CaptioningModel") -> None:
        if isinstance(model.decoder, GaussianLatent):
            raise ValueError("objective=distillation teaches words, not a latent variable: set latent=null")

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
        self.teachers = Teachers(teachers)
        self.strangers = [path for path, each in zip(self.paths, teachers, strict=True) if not _same_cache(model, each)]

    @property
    def taught_share(self) -> float:  # type: ignore[override]
        return self.weight if self.training else 0.0

    def taught(self, batch: "Batch", real: Tensor) -> Sequence[tuple[Tensor, Tensor, Tensor]]:
        if not self.taught_share:
            return ()
        images, given, lengths = batch.images, batch.tokens[..., :-1], batch.mask[..., 1:].sum(-1)
        if self.strangers and isinstance(images, Tensor) and images.dim() == 3:
            raise ValueError(
                f"objective.teachers: {self.strangers[0]} cannot read the cached features, its frozen stages are other "
                "than this captioner's: set data.cache=false, or encoder.frozen as it has"
            )
        said = []
        with torch.no_grad():
            for teacher in self.teachers:
                decoder = teacher.to(given.device).eval().decoder
                hidden = decoder(decoder.embed(given), teacher.memory(images), lengths=lengths).hidden
                said.append((hidden[real], decoder.classifier.weight.detach(), decoder.classifier.bias.detach()))
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
