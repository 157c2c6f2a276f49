"""Whether a training learns its pictures by heart: captions of training pictures, scored after each validation beside
those of validation. docs/overfitting.md."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from pytorch_lightning.utilities.seed import isolate_rng

from src.dashboards import captioner_of
from src.data.control import ControlError, with_tags
from src.data.images import ImageError
from src.data.module import CaptionData, Item
from src.data.shards import ShardError, is_address
from src.data.vocabulary import PAD
from src.metrics.gather import GatheredCaptions
from src.ranges import at_least
from src.training import CaptioningModule

log = logging.getLogger(__name__)

SCORE = "CIDEr"
NOISE = 2.0
"""Standard errors that validation must have fallen by."""


class OverfittingGuard(lightning.Callback):
    """After each validation, captions of the same few training pictures, by the same search and from pixels as they
    are. Logs `train_sample/CIDEr` and `gap/CIDEr`, how far it is above val/CIDEr; warns once, early. Training is the
    same with and without.

    CIDEr-D weighs words by how few pictures' references have them, so that scores against two sets of references cannot
    be set beside one another. Here a training picture is scored as if it were one more of validation: by the document
    frequencies of the validation references and its own, as each validation picture counts among its own. Words that
    only training knows are then as rare as words that only it has, and a captioner that has learned nothing by heart
    has a gap of 0, but for chance: about 1/√sample of the scores' spread. How many pictures either mean is of does not
    matter, so that val/CIDEr stays that of them all.

    The warning comes where val/CIDEr is below its best, in `validations` on end, by more than NOISE standard errors of
    the difference, while train_sample/CIDEr is above what it was at that best. The standard error is the bootstrap's
    over the validation pictures (Efron, 1979), paired: of a mean it is known without drawing.

    Args:
        sample: how many training pictures, drawn once, the same in every run; 0 or null: off.
        validations: that must have fallen.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(self, sample: int | None = 100, validations: int = 2) -> None:
        at_least(0, "callbacks.overfitting", sample=sample)
        at_least(1, "callbacks.overfitting", validations=validations)
        self.sample, self.validations = sample or 0, validations
        self.rows: list[int] | None = None
        """Of the training split."""
        self.references: dict[str, list[str]] = {}
        self.tokenized: dict[str, list[str]] = {}
        self.best: dict[str, Any] = {}
        """Of the best validation: its `epoch`, `pictures`' own scores, and `train`, the sample's score."""
        self.fallen = 0
        self.warned: int | None = None
        """The epoch of the warning, from 1."""

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "fallen": self.fallen, "warned": self.warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.fallen, self.warned = (state_dict[name] for name in ("best", "fallen", "warned"))

    def setup(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        data = getattr(trainer, "datamodule", None)
        if not (self.sample and isinstance(module, CaptioningModule) and isinstance(data, CaptionData)):
            return
        if SCORE not in module.metric_names:
            log.info("callbacks.overfitting: off, since validation_metrics has no %s", SCORE)
        elif "train" in data.shards and is_address(data.shards["train"].path(0)):
            log.info("callbacks.overfitting: off, since single pictures of shards with an address are slow to read")
        else:
            module.beside_validation.append(lambda: self.scores(trainer, module, data))

    def scores(self, trainer: lightning.Trainer, module: CaptioningModule, data: CaptionData) -> dict[str, float]:
        """Of this epoch, in all processes."""
        with isolate_rng():  # a search may draw words
            if self.rows is None:
                self._choose(module, data)
            if not self.rows:
                return {}
            index, ids = self._captioned(trainer, module, data, self.rows)
        found: dict[str, float] = {}
        if trainer.is_global_zero:
            said = {str(i): module.sentence(row) for i, row in zip(index, ids, strict=True)}
            found = self._judged(module, self._score(module, said))
        return trainer.strategy.broadcast(found)

    def _choose(self, module: CaptioningModule, data: CaptionData) -> None:
        split, self.rows = data.images("train"), []
        table = data.tables["train"]
        if module.control:  # only captions such as validation asks for can be compared
            try:
                table = with_tags(table, module.control)
            except ControlError as error:
                log.info("callbacks.overfitting: off, since of the training captions %s", error)
                return
        place = {name: row for row, name in enumerate(split.images)}
        drawn = np.random.default_rng(0).permutation(len(table.images))[: self.sample]
        for number in sorted(drawn.tolist()):
            row = place[table.images[number]]
            try:
                split[[Item(row, [0])]]
            except (ImageError, ShardError) as error:  # no reason to end a training
                log.warning("not among the sample of callbacks.overfitting: %s", error)
                continue
            self.rows.append(row)
            self.references[str(row)] = list(table.captions[number])

    def _captioned(
        self, trainer: lightning.Trainer, module: CaptioningModule, data: CaptionData, rows: Sequence[int]
    ) -> tuple[list[int], list[list[int]]]:
        """Rows and their captions' ids, of all processes: each captions as many, some of them twice."""
        captioner = captioner_of(module, data, str(trainer.precision))
        world = trainer.world_size
        mine = [rows[place % len(rows)] for place in range(trainer.global_rank, -(-len(rows) // world) * world, world)]
        gathered = GatheredCaptions(module.generation.max_length + 1, PAD).to(module.device)
        split = data.images("train")
        for start in range(0, len(mine), data.eval_batch_size):
            some = mine[start : start + data.eval_batch_size]
            images = split[[Item(row, [0]) for row in some]].images
            gathered.update(torch.tensor(some, device=module.device), captioner.search(images).tokens[:, 0])
        index, ids = gathered.compute()
        return index.tolist(), ids.tolist()

    def _score(self, module: CaptioningModule, said: dict[str, str]) -> float:
        assert module.scorer is not None
        scorer = module.scorer[1]
        if not self.tokenized:
            self.tokenized = scorer.tokenize(self.references)
        captions = scorer.tokenize({row: [caption] for row, caption in said.items()})
        assert scorer.cider is not None
        return float(np.mean([scorer.cider.score_newcomer(self.tokenized[row], captions[row][0]) for row in captions]))

    def _judged(self, module: CaptioningModule, train: float) -> dict[str, float]:
        """What is logged; warns where it is time."""
        now = np.array([scores[SCORE] for _, scores in module.captioned.values()])
        epoch, mean = module.current_epoch + 1, float(now.mean())
        found = {f"train_sample/{SCORE}": train, f"gap/{SCORE}": train - mean}
        best = np.array(self.best.get("pictures", []))
        if len(best) != len(now) or mean > best.mean():
            self.best, self.fallen = {"epoch": epoch, "train": train, "pictures": now.tolist()}, 0
            return found
        fall = best - now
        error = math.sqrt(np.square(fall - fall.mean()).sum()) / len(fall)
        lost = fall.mean() > NOISE * error and train > self.best["train"]
        self.fallen = self.fallen + 1 if lost else 0
        if self.fallen >= self.validations and self.warned is None:
            self.warned = epoch
            log.warning(
                "over-fitting after epoch %d: val/%s has fallen from %.3f (epoch %d) to %.3f, more than %g standard "
                "errors of %.3f, while that of %d training pictures rose from %.3f to %.3f. What helps: fewer epochs "
                "(trainer.max_epochs=%d), more dropout (decoder.dropout), transform=augmented; where val/%s chooses "
                "(callbacks.checkpoint.monitor), best.ckpt and the bundle stay those of the best epoch",
                *(epoch, SCORE, best.mean(), self.best["epoch"], mean, NOISE, error),
                *(len(self.references), self.best["train"], train, self.best["epoch"], SCORE),
            )
            found["gap/warning"] = float(epoch)
        return found
