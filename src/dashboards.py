"""What a training shows while it runs: pictures with their captions, histograms, learning rates, speed and memory; and
what every logger gets at its beginning and end. docs/dashboards.md lists the keys."""

import logging
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as lightning
import torch
from joblib import cpu_count
from PIL import Image, ImageOps
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.seed import isolate_rng
from torch.distributed.tensor import DTensor
from torchvision.transforms.functional import pil_to_tensor

from src.captioner import Captioner
from src.data.images import ImageError
from src.data.module import Batch, CaptionData, Item
from src.data.shards import ShardError
from src.figures import attention_figure, nothing
from src.loggers import WandbOrOffline
from src.ranges import at_least
from src.runs import flat
from src.training import CaptioningModule

log = logging.getLogger(__name__)

SCORE = "CIDEr"
"""What stands beside each picture, where validation computes it."""


class Pictures(lightning.Callback):
    """After each validation, the same pictures of it with their captions, to TensorBoard and W&B, where one of them is
    a logger. Training is the same with and without.

    Args:
        count: how many, evenly spread over the validation split.
        tile: pixels of a picture's longer side.
    """

    def __init__(self, count: int = 8, tile: int = 128) -> None:
        self.count, self.tile = count, tile

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        data = getattr(trainer, "datamodule", None)
        boards = _boards(trainer)
        if not (boards and self.count and isinstance(data, CaptionData) and isinstance(module, CaptioningModule)):
            return
        with isolate_rng():  # a search may draw words
            # On every rank: where the weights are sharded, a forward pass needs them all. Only drawing is the first's.
            examples = captioned(module, data, self.count, str(trainer.precision))
        if not trainer.is_global_zero:
            return
        figures = []
        for example in examples:
            try:
                shown = data.picture("val", example.row)
                picture = nothing() if shown is None else data.preprocess.decode(shown)
            except (ImageError, ShardError) as error:  # a file that has gone since is no reason to end a training
                log.warning("not among the logged pictures: %s", error)
                continue
            figure = small = ImageOps.contain(picture, (self.tile, self.tile), Image.Resampling.LANCZOS)
            if example.attention is not None and example.words:
                figure = attention_figure(
                    picture,
                    example.words,
                    example.attention,
                    example.boxes,
                    tile=self.tile,
                    preprocess=data.preprocess,
                )
            figures.append((example, small, figure))
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # as Lightning counts for the scores beside them
        for board in boards:
            if isinstance(board, TensorBoardLogger):
                for i, (_, _, figure) in enumerate(figures):
                    board.experiment.add_image(f"val/pictures/{i}", pil_to_tensor(figure), step)
                board.experiment.add_text("val/captions", _markdown([example for example, _, _ in figures]), step)
            else:
                board.log_metrics(_for_wandb(figures), step)


class Histogram(NamedTuple):
    """How often values fall between these edges. B bins."""

    counts: np.ndarray
    """(B,)."""
    edges: np.ndarray
    """(B + 1,) rising."""
    total: float
    """The values' sum, and that of their squares."""
    squares: float

    @classmethod
    def of(cls, values: torch.Tensor, bins: int = 64) -> "Histogram | None":
        """Of all finite values; None where there is none."""
        values = values.detach().flatten().float().cpu()  # CUDA's histc has no deterministic form
        values = values[values.isfinite()]
        if not len(values):
            return None
        low, high = (float(end) for end in values.aminmax())
        if low == high:
            low, high = low - 0.5, high + 0.5
        counts = torch.histc(values, bins, low, high).numpy()
        return cls(counts, np.linspace(low, high, bins + 1), float(values.sum()), float(values.square().sum()))


class Histograms(lightning.Callback):
    """Weights and gradients of all that learns, and after each validation its captions' lengths and scores, to
    TensorBoard and W&B, where one of them is a logger.

    Args:
        every_n_steps: optimizer steps from one look at the weights and gradients to the next, from the first step on.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(self, every_n_steps: int = 500) -> None:
        at_least(1, "callbacks.histograms", every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """The gradients are still those of the step: the mean of all ranks' and accumulated batches', clipped."""
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        if step % self.every_n_steps or trainer.fit_loop._should_accumulate() or not _boards(trainer):
            return
        found = {}
        for name, weights in module.named_parameters():
            if weights.grad is not None:
                for kind, values in (("weights", weights), ("gradients", weights.grad)):
                    # Sharded ones are put together one by one, to which every rank gives its part.
                    values = values.full_tensor() if isinstance(values, DTensor) else values
                    if trainer.is_global_zero:
                        found[f"{kind}/{name.removeprefix('model.')}"] = Histogram.of(values)
        self._log(trainer, found)

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if isinstance(module, CaptioningModule) and module.captioned and trainer.is_global_zero:
            captions, scores = zip(*module.captioned.values(), strict=True)
            lengths = torch.tensor([len(module.tokenizer.tokens(caption)) for caption in captions])
            found = {"val/caption_lengths": Histogram.of(lengths)}
            for name in scores[0]:
                found[f"val/{name}_of_pictures"] = Histogram.of(torch.tensor([score[name] for score in scores]))
            self._log(trainer, found)

    def _log(self, trainer: lightning.Trainer, found: Mapping[str, Histogram | None]) -> None:
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # as Lightning counts for the scores beside them
        histograms = {name: histogram for name, histogram in found.items() if histogram}
        if not histograms:
            return
        for board in _boards(trainer):
            if isinstance(board, TensorBoardLogger):
                for name, (counts, edges, total, squares) in histograms.items():
                    board.experiment.add_histogram_raw(
                        name, edges[0], edges[-1], counts.sum(), total, squares, edges[1:], counts, step
                    )
            else:
                import wandb

                board.log_metrics(
                    {name: wandb.Histogram(np_histogram=(h.counts, h.edges)) for name, h in histograms.items()}, step
                )


class Gauges(lightning.Callback):
    """Learning rates, speed and memory, once in `trainer.log_every_n_steps`. Times are the first process's, validation
    not among them; counts are of all processes."""

    def __init__(self) -> None:
        self._begin(None)

    def _begin(self, idle_since: float | None) -> None:
        """A new span, from one row of the logs to the next."""
        self.images, self.captions = 0, torch.zeros(())
        self.working = self.waiting = self.started = 0.0
        self.idle_since = idle_since

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.idle_since = time.perf_counter()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self.started = time.perf_counter()
        if self.idle_since is not None:
            self.waiting += self.started - self.idle_since

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        # Here, because the schedule has gone on to the next step's by the batch's end.
        if trainer._logger_connector.should_update_logs:
            for i, group in enumerate(optimizer.param_groups):
                module.log(f"learning_rate/{group.get('name', i)}", group["lr"])

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        self.images += len(batch.index)
        self.captions = self.captions + batch.mask.any(-1).sum()  # read once a row: reading waits for the GPU
        due = trainer._logger_connector.should_update_logs and not trainer.fit_loop._should_accumulate()
        captions = float(self.captions) * trainer.world_size if due else 0.0
        now = time.perf_counter()
        self.working += now - self.started
        self.idle_since = now
        if not due:
            return
        seconds = self.working + self.waiting
        module.log("train/captions_per_second", captions / seconds)
        module.log("train/images_per_second", self.images * trainer.world_size / seconds)
        module.log("train/data_wait", self.waiting / seconds)
        if module.device.type == "cuda":
            module.log("train/gpu_memory_gib", torch.cuda.max_memory_allocated(module.device) / 2**30)
        self._begin(now)

    def on_validation_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.idle_since = None


def _boards(trainer: lightning.Trainer) -> list[Any]:
    """The loggers that show more than numbers."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger | WandbLogger)]


def environment(trainer: lightning.Trainer) -> dict[str, Any]:
    """What a training runs in: Python, system, processors, processes, and the versions that numbers hang on."""
    kind = trainer.strategy.root_device.type
    cuda = torch.cuda.get_device_name(trainer.strategy.root_device) if kind == "cuda" else None
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": cuda or (platform.machine() if kind == "cpu" else kind),
        "cores": cpu_count(),
        "processes": trainer.world_size,
        "nodes": trainer.num_nodes,
        "precision": str(trainer.precision),
        **{name: version(name) for name in ("torch", "torchvision", "pytorch-lightning", "numpy", "pillow")},
        **({"cuda": torch.version.cuda} if cuda else {}),
    }


def begin(loggers: Sequence[Logger], config: dict[str, Any], **known: Any) -> None:
    """Give every logger the config, and what else is `known` of the run, flat."""
    for logger in loggers:
        logger.log_hyperparams(flat({**config, **known}))


def end(loggers: Sequence[Logger], scores: Mapping[str, Any], step: int, **kept: Any) -> None:
    """Give every logger the final scores, those that are numbers; TensorBoard its row of hyperparameters and scores;
    W&B what is `kept` (`WandbOrOffline.finish`). Closes W&B's run."""
    numbers = {name: float(value) for name, value in scores.items() if isinstance(value, int | float)}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(logger.hparams, numbers, step)
        elif numbers:
            logger.log_metrics(numbers, step)
        logger.finalize("success")
        if isinstance(logger, WandbOrOffline):
            logger.finish(numbers, **kept)


class Example(NamedTuple):
    """A captioned picture. R regions."""

    row: int
    """The picture's, in its split."""
    image: Path
    """Its file, by the table."""
    caption: str
    words: list[str]
    """The generated words in order, without EOS."""
    attention: np.ndarray | None
    """(len(words), R) weights; a row sums to 1, or less where a sentinel took the rest."""
    boxes: np.ndarray | None
    """(R, 4): x1, y1, x2, y2 in [0, 1] of the picture as the model saw it (`preprocess`). None: a square grid."""
    references: list[str]
    scores: dict[str, float]
    """The picture's own, e.g. {"CIDEr": 0.8}: fractions."""


def evenly(total: int, count: int) -> list[int]:
    """Up to `count` of the numbers below `total`, evenly spread from the first to the last."""
    count = min(count, total)
    return sorted({round(i * (total - 1) / max(1, count - 1)) for i in range(count)})


def captioner_of(module: CaptioningModule, data: CaptionData, precision: str) -> Captioner:
    """A module's own captioner, of its weights as they are and in its own search."""
    return Captioner(
        module.model,
        module.vocabulary,
        module.tokenizer,
        data.preprocess,
        module.generation,
        str(module.device),
        precision,
        module.control,
    )


def captioned(module: CaptioningModule, data: CaptionData, count: int, precision: str) -> list[Example]:
    """`count` pictures of the validation split with the captions that the module's own search gives them now, and with
    the score of the last validation that said the same of them."""
    split = data.images("val")
    rows = evenly(len(split), count)
    batch = split[[Item(row, range(len(split.captions[row]))) for row in rows]]
    captioner = captioner_of(module, data, precision)
    examples = []
    seen = captioner.features(batch.images)
    captions = captioner.captions(captioner.search(seen, attention=True), seen=seen)
    for row, caption in zip(rows, captions, strict=True):
        said, scores = module.captioned.get(row, ("", {}))
        examples.append(
            Example(
                row,
                data.root / split.images[row],
                caption.text,
                caption.words,
                caption.attention,
                caption.boxes,
                split.captions[row],
                scores if said == caption.text else {},  # in bf16 another batch may round to another word
            )
        )
    return examples


def _markdown(examples: Sequence[Example]) -> str:
    """The captions as a table for TensorBoard."""
    lines = [f"| | picture | caption | {SCORE} | references |", "| --- | --- | --- | --- | --- |"]
    for i, example in enumerate(examples):
        score = f"{example.scores[SCORE]:.3f}" if SCORE in example.scores else ""
        cells = [str(i), example.image.name, example.caption, score, " · ".join(example.references)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _for_wandb(figures: Sequence[tuple[Example, Image.Image, Image.Image]]) -> dict[str, Any]:
    """(example, picture, attention) as pictures to leaf through by step, and as a table."""
    import wandb

    sheets = [wandb.Image(figure, caption=example.caption, file_type="jpg") for example, _, figure in figures]
    table = wandb.Table(columns=["file", "picture", "caption", SCORE, "references", "attention"])
    for (example, picture, _), sheet in zip(figures, sheets, strict=True):
        table.add_data(
            example.image.name,
            wandb.Image(picture, file_type="jpg"),
            example.caption,
            example.scores.get(SCORE),
            "\n".join(example.references),
            None if example.attention is None else sheet,
        )
    return {**{f"val/pictures/{i}": sheet for i, sheet in enumerate(sheets)}, "val/captions": table}
