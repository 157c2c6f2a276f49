"""Cross-entropy on pictures that were changed against the captioner."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from src.attacks.budget import LEVELS, Budget, Norm
from src.objectives.base import Loss
from src.objectives.cross_entropy import CrossEntropy
from src.objectives.self_critical import undropped
from src.ranges import at_least

if TYPE_CHECKING:
    from src.data.module import Batch
    from src.model import CaptioningModel


class AdversarialTraining(CrossEntropy):
    """Before each step, a share of the batch's pictures is changed so that the loss rises, by projected gradient
    descent from a random start within a budget (Madry et al., 2018, https://arxiv.org/abs/1706.06083; with one step,
    Wong et al., 2020, https://arxiv.org/abs/2001.03994); the others stay as they are, which keeps the scores on clean
    pictures (Goodfellow et al., 2015, https://arxiv.org/abs/1412.6572, section 6). Dropout is off while pictures are
    changed. Validation is by clean pictures.

    Args:
        budget: of the changes: L∞ in 255ths, L2 of values in [0, 1].
        norm: linf or l2.
        steps: of the descent.
        step: size of one, a share of the budget.
        changed: share of the pictures that are changed, in (0, 1].
        **cross_entropy: see `CrossEntropy`.
    """

    def __init__(
        self,
        budget: float = 1.0,
        norm: Norm = "linf",
        steps: int = 1,
        step: float = 1.25,
        changed: float = 0.5,
        **cross_entropy: Any,
    ) -> None:
        super().__init__(**cross_entropy)
        at_least(1, "objective", steps=steps)
        for name, value in (("budget", budget), ("step", step)):
            if not value > 0:
                raise ValueError(f"objective.{name}={value}: above 0")
        if norm not in ("linf", "l2"):
            raise ValueError(f"objective.norm={norm}: choose linf or l2")
        if not 0 < changed <= 1:
            raise ValueError(f"objective.changed={changed}: a share in (0, 1]")
        self.budget = Budget(norm, budget / LEVELS if norm == "linf" else budget)
        self.steps, self.step, self.changed = steps, step, changed

    def forward(self, model: "CaptioningModel", batch: "Batch") -> Loss:
        if not self.training:
            return super().forward(model, batch)
        images = batch.images
        if not isinstance(images, Tensor) or images.dim() != 4:
            raise ValueError(
                "objective: it changes pixels, and these are features: set data.cache=false, or pack pictures"
            )
        images = model.encoder.scaled(images)
        count = max(1, round(self.changed * len(images)))  # as many in every batch of one size
        rows = torch.randperm(len(images))[:count].to(images.device)
        images = images.index_copy(0, rows, self.against(model, batch, images, rows))
        return super().forward(model, batch._replace(images=images))

    def against(self, model: "CaptioningModel", batch: "Batch", images: Tensor, rows: Tensor) -> Tensor:
        """Some rows of a batch's pixels (B, 3, H, W) in [0, 1], changed so that their loss is larger."""
        clean, seed = images[rows], int(torch.randint(2**31, ()))
        some = batch._replace(tokens=batch.tokens[rows], mask=batch.mask[rows], prefix=batch.prefix[rows])
        change = self.budget.start(clean, torch.Generator().manual_seed(seed))
        defence = model.encoder.defence
        model.encoder.eval()
        with undropped(model.decoder), nullcontext() if defence is None else defence.drawing_anew():
            for _ in range(self.steps):
                pixels = (clean + change).requires_grad_()
                loss = super().forward(model, some._replace(images=pixels)).total
                (gradient,) = torch.autograd.grad(loss, pixels)
                step = self.step * self.budget.size * self.budget.steepest(gradient)
                change = self.budget.project(change + step, clean)
        model.encoder.train()
        return clean + change
