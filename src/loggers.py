"""Lightning's loggers, where they lose something or need a network."""

import csv
import io
import logging
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from src.files import DiskFull, write_atomically
from src.interruption import is_first

log = logging.getLogger(__name__)

WANDB_ID = "wandb_id.txt"
"""In a run's folder: its id in W&B."""


class Rows:
    """What is logged, as a file that is whole at every moment: all rows are written anew, and take the file's place.

    Args:
        path: the file, whose rows are gone on with where it is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.metrics = list(csv.DictReader(file))

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Not kept: config.yaml has them."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """A row; one that says of the same step what the last row says, and perhaps more, takes its place."""
        row = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        row["step"] = step
        if self.metrics and self.metrics[-1]["step"] == step and self.metrics[-1].keys() <= row.keys():
            self.metrics.pop()
        self.metrics.append(row)

    def save(self) -> None:
        if not self.metrics:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, sorted(set().union(*self.metrics)))
        writer.writeheader()
        writer.writerows(self.metrics)
        write_atomically(self.path, text.getvalue())


class ContinuedCSVLogger(CSVLogger):
    """Lightning's CSVLogger, which begins metrics.csv anew in every process; this one goes on with what is there, so
    that a resumed run keeps its history."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, with the rows of an earlier process."""
        if self._experiment is None:
            self._experiment: Any = Rows(Path(self.log_dir) / "metrics.csv")
        return self._experiment

    @property
    def rows(self) -> int:
        """How many there are, of all processes that wrote them; 0 on all ranks but the first."""
        return len(self.experiment.metrics) if is_first() else 0

    @rank_zero_only
    def keep(self, rows: int) -> None:
        """Leave out all rows but the first so many."""
        del self.experiment.metrics[rows:]
        self.experiment.save()

    def finalize(self, status: str) -> None:
        """Where a training failed, no second failure: of a full disk's, the first is what is to be told."""
        with suppress(DiskFull) if status == "failed" else nullcontext():
            super().finalize(status)


class WandbOrOffline(WandbLogger):
    """Lightning's WandbLogger; offline unless WANDB_API_KEY, a netrc entry or WANDB_MODE says otherwise. One training
    is one run of W&B, also where a process trains several, or several processes one after the other: its id is kept in
    `save_dir`/wandb_id.txt. Offline, each process leaves a folder of that id, and `wandb sync` makes one run of them.

    Args:
        save_dir: where W&B's own folder `wandb/` is made.
        id: the run's, instead of the one that is kept.
        log_bundle: whether `finish` keeps the bundle as an artifact.
        log_checkpoints: whether it keeps the checkpoints as one.
        options: WandbLogger's, and wandb.init's.

    Raises:
        ValueError: wandb is not installed.
    """

    package = "wandb"
    """What must be installed, asked before any work."""

    def __init__(
        self,
        save_dir: str,
        log_bundle: bool = True,
        log_checkpoints: bool = True,
        id: str | None = None,
        **options: Any,
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError("logger=wandb: `pip install wandb` first, or choose logger=default") from error
        if wandb.run is not None:
            wandb.finish(exit_code=1)  # of a training of this process that failed: Lightning would write on in it
        self.log_bundle, self.log_checkpoints = log_bundle, log_checkpoints
        offline = "WANDB_MODE" not in os.environ and not wandb.api.api_key
        if offline:
            options["mode"] = "offline"  # Lightning's own switch still asks for a key
            log.warning("no W&B key here: logging offline to %s; `wandb sync` sends it later", save_dir)
        Path(save_dir).mkdir(parents=True, exist_ok=True)
        kept = Path(save_dir) / WANDB_ID
        if id is None:
            id = kept.read_text(encoding="utf-8").strip() if kept.exists() else secrets.token_hex(4)
        if is_first():  # whose alone becomes a run
            write_atomically(kept, f"{id}\n")
        super().__init__(save_dir=save_dir, offline=offline, id=id, **options)

    def finish(self, scores: Mapping[str, float], bundle: Path | None = None, checkpoints: Sequence[Path] = ()) -> None:
        """Keep a bundle as the run's model artifact, and checkpoints as another, with the scores beside them; close the
        run."""
        if self.log_bundle and bundle is not None:
            self._keep("captioner", "model", [bundle], scores, ["best"])
        if self.log_checkpoints and checkpoints:
            self._keep("checkpoints", "checkpoint", checkpoints, scores)
        self.experiment.finish()
        self._experiment = None

    def _keep(
        self, name: str, kind: str, paths: Sequence[Path], scores: Mapping[str, float], aliases: Sequence[str] = ()
    ) -> None:
        import wandb

        run = self.experiment
        name = re.sub(r"[^\w.-]+", "-", f"{name}-{run.name or run.id}")[:128]
        artifact = wandb.Artifact(name, type=kind, metadata=dict(scores))
        for path in paths:
            # Not copied into the user's home first: what is logged offline is sent from the run's folder.
            if path.is_dir():
                artifact.add_dir(str(path.resolve()), policy="immutable")
            else:
                artifact.add_file(str(path.resolve()), policy="immutable")
        run.log_artifact(artifact, aliases=list(aliases))
