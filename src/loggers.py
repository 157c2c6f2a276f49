"""Weights & Biases where there is a key, its offline mode where there is none."""

import logging
import os
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger

log = logging.getLogger(__name__)


class WandbOrOffline(WandbLogger):
    """Lightning's WandbLogger; offline unless WANDB_API_KEY, a netrc entry or WANDB_MODE says otherwise.

    Raises:
        ValueError: wandb is not installed.
    """

    def __init__(self, save_dir: str, **options: Any) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError("logger=wandb: `pip install wandb` first, or choose logger=default") from error
        offline = "WANDB_MODE" not in os.environ and not wandb.api.api_key
        if offline:
            log.warning("no W&B key here: logging offline to %s; `wandb sync` sends it later", save_dir)
        Path(save_dir).mkdir(parents=True, exist_ok=True)
        super().__init__(save_dir=save_dir, offline=offline, **options)
