"""Checkpoints that outlive what happens to a training: whole or not there at all, the one before kept, and taken often
enough."""

import io
import logging
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.callbacks.early_stopping import EarlyStopping
from pytorch_lightning.loops.loop import _Loop
from torch import Tensor

from src.averaging import MovingAverage
from src.files import room_for, whole
from src.interruption import Interruption
from src.loggers import ContinuedCSVLogger
from src.ranges import at_least
from src.runs import BEFORE, LAST, checkpoints

log = logging.getLogger(__name__)

NEEDED = ("state_dict", "loops", "optimizer_states", "config", "vocabulary")
"""What a checkpoint that a training can go on from holds, among others."""

# ---------------------------------------------------------------- files


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's way to files, but for two things. A file takes its name when it is whole and on the disk; Lightning's
    is written in the system's folder for temporary files, and moved, which from one disk to another is copying. And of
    last.ckpt the one before is kept, as before.ckpt."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        buffer = io.BytesIO()  # from which a full disk is an error of ours; torch's own writing can end the process
        torch.save(checkpoint, buffer)
        with room_for(path, buffer.tell(), "go on with ckpt=last"), whole(path) as partial:
            with partial.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())  # before the one before is given up
            if path.name == LAST:
                keep_before(path)


def keep_before(path: Path) -> None:
    """Give what `path` holds the name before.ckpt too, or instead where the file system has no second names."""
    before = path.with_name(BEFORE)
    if not path.exists():
        return
    try:
        second = before.with_name(f"{BEFORE}.partial")
        second.unlink(missing_ok=True)
        second.hardlink_to(path)
        second.replace(before)
    except OSError:
        path.replace(before)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None where a training can go on from it."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch's reader leaves the sums unchecked
            if (broken := archive.testzip()) is not None:
                return f"{broken} in it is not what was written"
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch, zip and pickle raise many kinds
        return str(error).splitlines()[0] or type(error).__name__
    missing = [name for name in NEEDED if name not in found] if isinstance(found, dict) else NEEDED
    return f"it lacks {', '.join(missing)}" if missing else None


def newest(run: Path) -> Path | None:
    """The last checkpoint of a run that is whole; None where there is none at all.

    Raises:
        ValueError: all are damaged.
    """
    wrong = {}
    for path in checkpoints(run):
        if (problem := damage(path)) is None:
            return path
        wrong[path] = problem
        log.warning("%s is damaged (%s)", path, problem)
    if wrong:
        raise ValueError(
            f"{' and '.join(map(str, wrong))}: damaged, and there is no other to go on from; overwrite=true begins anew"
        )
    return None


# ---------------------------------------------------------------- when


class LastCheckpoint(Checkpoint):
    """Keeps last.ckpt, from which `ckpt=last` goes on as if nothing had been: after every epoch, within epochs by time
    and by steps, and where a signal ends the training, which all processes then leave together.

    It is saved between optimizer steps, never between the batches of one. Where a validation follows, the one who goes
    on from it begins with that.

    Args:
        dirpath: the folder.
        minutes: of training from one to the next; None: none by time.
        steps: of the optimizer from one to the next; None: none by steps.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(self, dirpath: str | Path, minutes: float | None = 10, steps: int | None = None) -> None:
        at_least(0, "callbacks.last", minutes=minutes)
        at_least(1, "callbacks.last", steps=steps)
        self.path, self.minutes, self.steps = Path(dirpath) / LAST, minutes, steps
        self.interruption: Interruption | None = None
        self.saved = time.monotonic()
        self.point = ""  # of the training that is being saved: "", "validation" (before one) or "cut" (in an epoch)
        self.metrics: dict[str, Tensor] = {}  # of the last validation, which early stopping may look at once more
        self.validated = 0  # batches that every process validates

    # ------------------------------------------------------------ hooks

    def on_fit_start(self, trainer: Any, pl_module: lightning.LightningModule) -> None:
        trainer._logger_connector._callback_metrics.update(self.metrics)
        for callback in trainer.callbacks:  # which in an earlier process ended the training
            if isinstance(callback, EarlyStopping) and callback.stopped_epoch:
                trainer.should_stop |= callback.wait_count >= callback.patience

    def on_train_start(self, trainer: Any, pl_module: lightning.LightningModule) -> None:
        at = trainer.strategy.broadcast(trainer.global_step)
        if at != trainer.global_step:
            raise ValueError(
                f"{self.path}: the first process goes on from step {at}, this one from {trainer.global_step}: they see "
                "different files; wait until the network's file system shows the same everywhere"
            )
        loop = trainer.fit_loop
        if loop.restarted_on_epoch_end:  # Lightning, where max_steps is set, would end that epoch once more
            _Loop.restarting.fset(loop, False)  # type: ignore[attr-defined]
            loop.reset_restart_stage()
            loop.epoch_progress.increment_completed()
        steps = loop.epoch_loop
        if loop.restarted_mid_epoch and steps.restarted_on_train_batch_end and steps.batch_progress.is_last_batch:
            loop.reset_restart_stage()  # Lightning has counted that epoch, and would not count that the next begins
        self.saved = time.monotonic()
        if self.interruption is not None and not trainer.fast_dev_run:
            self.interruption.listen()
            self.interruption.waits = True

    def on_train_batch_end(
        self, trainer: Any, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop = trainer.fit_loop
        if trainer.fast_dev_run or loop._should_accumulate():
            return
        due = self.minutes is not None and time.monotonic() - self.saved >= 60 * self.minutes
        due |= self.steps is not None and trainer.global_step % self.steps == 0
        signal, due = self._agreed(trainer, due)
        if signal or (due and not trainer.should_stop):  # which ends the epoch at once
            assert loop._data_fetcher is not None
            self._save(trainer, "validation" if loop.epoch_loop._should_check_val_fx(loop._data_fetcher) else "")
        if signal:
            self._end(signal)

    def on_validation_start(self, trainer: Any, pl_module: lightning.LightningModule) -> None:
        batches = torch.tensor(sum(trainer.fit_loop.epoch_loop.val_loop.max_batches), device=pl_module.device)
        self.validated = int(_over_ranks(trainer, batches, "MIN"))

    def on_validation_batch_end(
        self,
        trainer: Any,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A validation may be longer than a cluster waits."""
        if trainer.fast_dev_run or batch_idx >= self.validated:
            return
        signal, _ = self._agreed(trainer)
        if signal:
            for callback in trainer.callbacks:
                if isinstance(callback, MovingAverage):
                    callback.put_back(pl_module)
            self._save(trainer, "validation")
            self._end(signal)

    def on_train_epoch_end(self, trainer: Any, pl_module: lightning.LightningModule) -> None:
        if trainer.fast_dev_run:
            return
        self._save(trainer, "" if trainer.fit_loop.epoch_loop._num_ready_batches_reached() else "cut")
        signal, _ = self._agreed(trainer)
        if signal:
            self._end(signal)

    def on_fit_end(self, trainer: Any, pl_module: lightning.LightningModule) -> None:
        if self.interruption is not None and self.interruption.waits:
            self.interruption.waits = False
            if self.interruption.received:  # since the last epoch's end
                self._end(self.interruption.received)

    # ------------------------------------------------------------ saving

    def _agreed(self, trainer: Any, due: bool = False) -> tuple[int, bool]:
        """The signal that any process received, or 0, and whether any is due to save: clocks differ, and a signal may
        reach one process alone."""
        received = self.interruption.received if self.interruption is not None else 0
        if trainer.world_size == 1:
            return received, due
        both = torch.tensor([received, int(due)], device=trainer.strategy.root_device)
        received, any_due = _over_ranks(trainer, both, "MAX").tolist()
        return received, bool(any_due)

    def _end(self, signal: int) -> None:
        log.warning("ended by a signal; %s is saved, and the same command with ckpt=last goes on from it", self.path)
        assert self.interruption is not None
        self.interruption.received = signal  # by which the others were told
        raise self.interruption.end()

    def _save(self, trainer: Any, point: str) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, ContinuedCSVLogger):
                self._log_now(trainer, logger)
            logger.save()
        self.point = point
        try:
            trainer.save_checkpoint(self.path, weights_only=False)
        finally:
            self.point = ""
        self.saved = time.monotonic()

    def _log_now(self, trainer: Any, logger: ContinuedCSVLogger) -> None:
        """Lightning logs a step's row after the callbacks' hooks; a process that is killed in between would lose it."""
        connector = trainer._logger_connector
        if trainer.training and connector._first_loop_iter is not None and connector.should_update_logs:
            metrics = {name: float(value) for name, value in connector.metrics["log"].items()}
            if metrics:
                step = trainer.fit_loop.epoch_loop._batches_that_stepped
                logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, step)

    # ------------------------------------------------------------ what is in it

    def on_load_checkpoint(
        self, trainer: Any, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        state = checkpoint["callbacks"].get(self.state_key, {})
        self.metrics = state.get("metrics", {})
        if state.get("folder") == self._folder() and state["rows"] is not None:
            for logger in trainer.loggers:
                if isinstance(logger, ContinuedCSVLogger):
                    logger.keep(state["rows"])  # what came after the checkpoint comes again

    def _folder(self) -> str:
        return str(self.path.parent.resolve())

    def on_save_checkpoint(
        self, trainer: Any, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Of every checkpoint, best.ckpt too: how far the logs are. Of last.ckpt, where in the training it is, in
        Lightning's own counts: as they stand, a checkpoint of an epoch's last step would be taken for one after
        validation, and one of an epoch that was cut for one of a whole epoch."""
        checkpoint["callbacks"][self.state_key] = {
            "folder": self._folder(),
            "rows": next((logger.rows for logger in trainer.loggers if isinstance(logger, ContinuedCSVLogger)), None),
            "metrics": {k: v for k, v in trainer.callback_metrics.items() if k.startswith("val/")},
        }
        loops = checkpoint["loops"]["fit_loop"]
        if self.point == "validation":
            for count in (loops["epoch_loop.batch_progress"][which] for which in ("total", "current")):
                count["completed"] = count["processed"]
            for which in ("total", "current"):  # its first batch has begun
                count = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
                loops["epoch_loop.val_loop.batch_progress"][which] = count
        elif self.point == "cut":
            for which in ("total", "current"):
                loops["epoch_progress"][which]["processed"] -= 1
            # Where this step was validated, the one who goes on skips that, and counts the step once more.
            loop, stops = trainer.fit_loop.epoch_loop, trainer.should_stop
            trainer.should_stop = False  # as it will be then
            if loop._should_check_val_fx(trainer.fit_loop._data_fetcher) and not loop._should_accumulate():
                loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
            trainer.should_stop = stops


def _over_ranks(trainer: Any, value: Tensor, how: str) -> Tensor:
    if trainer.world_size > 1:
        torch.distributed.all_reduce(value, getattr(torch.distributed.ReduceOp, how))
    return value
