"""Lightning's loggers, where they lose something or need a network."""

import csv
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment

log = logging.getLogger(__name__)


class ContinuedCSVLogger(CSVLogger):
    """Lightning's CSVLogger, which begins metrics.csv anew in every process; this one goes on with what is there, so
    that a resumed run keeps its history."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, with the rows of an earlier process."""
        if self._experiment is not None:
            return self._experiment
        path, rows = Path(self.log_dir) / "metrics.csv", []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        writer: Any = super().experiment
        if rows:
            writer.metrics = rows
            writer.save()
        return writer


class WandbOrOffline(WandbLogger):
    """Lightning's WandbLogger; offline unless WANDB_API_KEY, a netrc entry or WANDB_MODE says otherwise. One training
    is one run of W&B, also where a process trains several.

    Args:
        save_dir: where W&B's own folder `wandb/` is made.
        log_bundle: whether `finish` keeps the bundle as an artifact.
        options: WandbLogger's, and wandb.init's.

    Raises:
        ValueError: wandb is not installed.
    """

    package = "wandb"
    """What must be installed, asked before any work."""

    def __init__(self, save_dir: str, log_bundle: bool = True, **options: Any) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError("logger=wandb: `pip install wandb` first, or choose logger=default") from error
        if wandb.run is not None:
            wandb.finish(exit_code=1)  # of a training of this process that failed: Lightning would write on in it
        self.log_bundle = log_bundle
        offline = "WANDB_MODE" not in os.environ and not wandb.api.api_key
        if offline:
            options["mode"] = "offline"  # Lightning's own switch still asks for a key
            log.warning("no W&B key here: logging offline to %s; `wandb sync` sends it later", save_dir)
        Path(save_dir).mkdir(parents=True, exist_ok=True)
        super().__init__(save_dir=save_dir, offline=offline, **options)

    def finish(self, bundle: Path | None, scores: Mapping[str, float]) -> None:
        """Keep a bundle, if there is one, as the run's model artifact, with its scores beside it; close the run."""
        import wandb

        run = self.experiment
        if self.log_bundle and bundle is not None:
            name = re.sub(r"[^\w.-]+", "-", f"captioner-{run.name or run.id}")[:128]
            artifact = wandb.Artifact(name, type="model", metadata=dict(scores))
            # Not copied into the user's home first: what is logged offline is sent from the run's folder.
            artifact.add_dir(str(bundle.resolve()), policy="immutable")
            run.log_artifact(artifact, aliases=["best"])
        run.finish()
        self._experiment = None
