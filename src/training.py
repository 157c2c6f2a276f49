"""The LightningModule: a batch to a loss, and validation by generated captions, and by recall where there is a matcher.
With `src/data/module.py` this is a batch's whole way from disk to loss."""

import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from src.data.module import Batch
from src.data.tokenizer import Tokenizer
from src.data.vocabulary import PAD, Vocabulary
from src.generation.base import Search
from src.matcher import spoken
from src.metrics.captions import CaptionScorer
from src.metrics.degenerate import degenerate
from src.metrics.gather import GatheredCaptions
from src.metrics.retrieval import GatheredVectors
from src.model import TRAINING, CaptioningModel, instantiate
from src.objectives.base import Objective
from src.strategies import FullySharded

log = logging.getLogger(__name__)


class CaptioningModule(lightning.LightningModule):
    """A captioner with its objective, search, scores and optimizer.

    Args:
        model: what is trained.
        vocabulary: ids ↔ words.
        tokenizer: words ↔ sentences, and which tokenization the scores use.
        objective: `(model, batch) -> Loss`.
        generation: how validation captions are made; scores are never teacher-forced.
        optimizer: its config, a `_target_` in torch.optim.
        scheduler: its config, or None for a constant learning rate.
        references: of the validation images, by their index.
        metrics: what is scored after every validation.
        config: everything a checkpoint needs to be loaded alone, as plain values.
        seed: of dropout, together with the epoch, the step and the rank.
        control: the control tokens that validation's captions begin with, such as `<zh>`.
    """

    def __init__(
        self,
        model: CaptioningModel,
        vocabulary: Vocabulary,
        tokenizer: Tokenizer,
        objective: Objective,
        generation: Search,
        optimizer: Mapping[str, Any],
        scheduler: Mapping[str, Any] | None = None,
        references: Sequence[Sequence[str]] = (),
        metrics: Sequence[str] = ("Bleu_4", "CIDEr"),
        config: Mapping[str, Any] | None = None,
        seed: int = 0,
        control: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.vocabulary, self.tokenizer, self.generation = vocabulary, tokenizer, generation
        generation.bind(vocabulary, tokenizer)
        self.optimizer_config, self.scheduler_config = optimizer, scheduler
        self.references, self.metric_names = references, metrics
        self.config, self.seed, self.control = dict(config or {}), seed, list(control)
        self.generated = GatheredCaptions(max_length=generation.max_length + 1, pad=PAD)
        self.matched = None if model.matcher is None else GatheredVectors(model.matcher.size)
        self.scorer: tuple[list[int], CaptionScorer] | None = None
        self.captioned: dict[int, tuple[str, dict[str, float]]] = {}  # the last validation's captions and their scores
        self.beside_validation: list[Callable[[], dict[str, float]]] = []
        """What else is scored after each validation, in all processes, and logged by its full name."""
        self.fine_tuned = [p for p in model.encoder.backbone.parameters() if p.requires_grad]
        self.counted: Tensor | float = 0.0  # tokens since the last optimizer step, on this rank
        self.sums: dict[str, Tensor] = {}
        self.total_steps = float("inf")  # of the optimizer, in this run

    def on_fit_start(self) -> None:
        self.total_steps = self.trainer.estimated_stepping_batches
        if self.total_steps == float("inf") and self.objective.scheduled:
            raise ValueError("the objective's schedule needs the run's length: set trainer.max_epochs or max_steps")

    # ------------------------------------------------------------------ training

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Not at the epoch's start: Lightning leaves that hook out where a run is resumed in the middle of an epoch.
        self.model.encoder.at_epoch(self.current_epoch)
        self.objective.progress = min(1.0, self.global_step / self.total_steps)
        if self.trainer.world_size == 1:  # several processes must agree on what has gradients from first to last
            for parameter in self.fine_tuned:
                parameter.requires_grad_(not self.model.encoder.asleep)
        # Dropout is a function of (seed, epoch, step, rank), so a resumed run draws what an uninterrupted one draws.
        place = f"{self.seed} {self.current_epoch} {batch_idx} {self.global_rank}"
        torch.manual_seed(zlib.crc32(place.encode()))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.objective(self.model, batch)
        self.counted = self.counted + loss.count
        tokens = max(int(loss.count), 1)
        self.log("train/loss", loss.total.detach() / tokens, prog_bar=True, on_step=True, batch_size=tokens)
        for name, total in loss.logs.items():
            self.log(f"train/{name}", total / tokens, on_step=True, batch_size=tokens)
        return loss.total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients of sums → the gradient of the mean over all tokens of all ranks and accumulation steps."""
        count = torch.as_tensor(self.counted, dtype=torch.float32, device=self.device)
        self.counted = 0.0
        world = self.trainer.world_size
        if world > 1:
            torch.distributed.all_reduce(count)
        if self.model.encoder.asleep:
            for parameter in self.fine_tuned:
                parameter.grad = None  # the optimizer passes over it
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        # Lightning has divided each step by the accumulation and averaged over the ranks; both are undone here.
        torch._foreach_mul_(gradients, float(self.trainer.accumulate_grad_batches * world / count.clamp(min=1)))
        self.log("train/gradient_norm", torch.nn.utils.get_total_norm(gradients))  # before clipping

    def configure_optimizers(self) -> Any:
        fine_tuned = {id(p) for p in self.fine_tuned}
        rate = self.model.encoder.learning_rate
        groups = []
        for name, own in (("", {}), ("backbone_", {} if rate is None else {"lr": rate})):
            members = [p for p in self.parameters() if p.requires_grad and (id(p) in fine_tuned) == bool(name)]
            for decayed in (True, False):  # biases and norms are not decayed
                group = [p for p in members if (p.dim() > 1) == decayed]
                if group:
                    label = name + ("decayed" if decayed else "not_decayed")  # its learning rate's key in the logs
                    groups.append({"params": group, "name": label, **own, **({} if decayed else {"weight_decay": 0.0})})
        optimizer = instantiate(self.optimizer_config, TRAINING, params=groups)
        if self.scheduler_config is None:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError("a schedule needs the run's length: set trainer.max_epochs or max_steps, or ~scheduler")
        scheduler = instantiate(self.scheduler_config, TRAINING, optimizer=optimizer, total_steps=int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ---------------------------------------------------------------- validation

    def on_validation_epoch_start(self) -> None:
        self.sums = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if not self._is_mine(batch):
            return
        features = self.model.features(batch.images)  # once for both the loss and the captions
        batch = batch._replace(images=features)
        loss = self.objective(self.model, batch)
        for name, value in {"loss": loss.total, "tokens": loss.count, **loss.logs}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().cpu().double()
        control = torch.tensor([self.vocabulary.control_index[name] for name in self.control])
        prefix = control.expand(len(batch.index), -1) if self.control else None
        captions = self.generation(self.model.decoder, self.model.memory(batch.images), prefix=prefix)
        self.generated.update(batch.index, captions.tokens[:, 0])
        if self.matched is not None and self.model.matcher is not None:
            words, lengths, image = spoken(batch)
            pictures = self.model.matcher.pictures(features)
            self.matched.update(batch.index, pictures, self.model.matcher.sentences(words, lengths), image)

    def _is_mine(self, batch: Batch) -> bool:
        """Whether this process is to validate a batch: where there are fewer pictures than processes, those for which
        none is left get another's, because Lightning has every process take a batch."""
        return int(batch.index[0]) % self.trainer.world_size == self.global_rank

    def on_validation_epoch_end(self) -> None:
        names = self.trainer.strategy.broadcast(sorted(self.sums))
        sums = torch.stack([torch.as_tensor(self.sums.get(name, 0.0), dtype=torch.double) for name in names])
        if self.trainer.world_size > 1:
            sums = sums.to(self.device)  # where the processes' backend exchanges tensors
            torch.distributed.all_reduce(sums)
        values = dict(zip(names, sums.tolist(), strict=True))
        tokens = values.pop("tokens")
        for name, value in values.items():
            self.log(f"val/{name}", value / max(tokens, 1))
        index, ids = self.generated.compute()
        self.generated.reset()
        scores = self._score(index.tolist(), ids.tolist()) if self.trainer.is_global_zero else {}
        if self.matched is not None:
            scores |= self.matched.compute()
            self.matched.reset()
        scores = self.trainer.strategy.broadcast(scores)
        for name, value in scores.items():
            self.log(f"val/{name}", value, prog_bar=name in ("CIDEr", "Bleu_4"))
        for also in self.beside_validation:
            self.log_dict(also())

    def sentence(self, ids: Sequence[int]) -> str:
        """A caption's ids, which may end in EOS and padding → its sentence."""
        return self.tokenizer.join(self.vocabulary.decode(ids))

    def _score(self, index: list[int], ids: list[list[int]]) -> dict[str, float]:
        captions = {str(i): self.sentence(row) for i, row in zip(index, ids, strict=True)}
        if self.scorer is None or self.scorer[0] != index:
            references = {str(i): list(self.references[i]) for i in index}
            self.scorer = (
                index,
                CaptionScorer(references, tokenizer=self.tokenizer.evaluation, metrics=self.metric_names),
            )
        scored = self.scorer[1].score(captions)
        self.captioned = {i: (captions[str(i)], scored.per_image[str(i)]) for i in index}
        for alarm in degenerate(list(scored.tokenized.values()), self.scorer[1].references):
            log.warning("validation after epoch %d: %s", self.current_epoch + 1, alarm)
        for i in index[:2]:
            log.info("“%s”  (a reference: “%s”)", captions[str(i)], self.references[i][0])
        return {name: float(value) for name, value in scored.corpus.items() if value is not None}

    # --------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config
        checkpoint["vocabulary"] = self.vocabulary.to_dict()


class ShardedCaptioningModule(CaptioningModule):
    """The same, whose weights are shared out among the processes (`trainer=fsdp`)."""

    def configure_model(self) -> None:
        if any(isinstance(parameter, DTensor) for parameter in self.parameters()):
            return
        backbone = self.model.encoder.backbone
        self.sharing.shard(self, [module for stage in backbone.stages for module in stage.modules])
        self.fine_tuned = [p for p in backbone.parameters() if p.requires_grad]

    @property
    def sharing(self) -> FullySharded:
        """The strategy that shares them out."""
        strategy = self.trainer.strategy
        assert isinstance(strategy, FullySharded)
        return strategy

    def on_validation_start(self) -> None:
        self.sharing.put_together(self)

    def on_validation_end(self) -> None:
        self.sharing.take_apart(self)
