"""How several processes train together: Lightning's strategies, as conf/trainer/ chooses them."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from pytorch_lightning.plugins import TorchSyncBatchNorm
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce

from src.model import TRAINING, instantiate


class DataParallel(DDPStrategy):
    """Every process has all the weights and its share of each batch; gradients are summed over all (PyTorch's
    DistributedDataParallel: Li et al., 2020, https://arxiv.org/abs/2006.15704). Each part of a captioner that learns
    has a gradient at every step, so none is looked for.

    Args:
        backend: nccl or gloo; None: nccl between GPUs, gloo between CPUs.
        timeout: minutes that a process waits for another before it ends with an error.

    Raises:
        ValueError: an unknown backend, or no time at all.
    """

    def __init__(self, backend: str | None = None, timeout: float = 30) -> None:
        super().__init__(process_group_backend=_known(backend), timeout=_patience(timeout))


def _known(backend: str | None) -> str | None:
    if backend not in (None, "nccl", "gloo"):
        raise ValueError(f"trainer.strategy.backend={backend}: choose nccl, gloo, or null")
    return backend


def _patience(minutes: float) -> timedelta:
    if not minutes > 0:
        raise ValueError(f"trainer.strategy.timeout={minutes:g}: minutes, above 0")
    return timedelta(minutes=minutes)


class SyncBatchNorm(nn.SyncBatchNorm):
    """PyTorch's, which computes on GPUs alone, on CPUs too: the mean and the variance are those of all processes'
    pictures, so that two processes with half the batch each train as one does."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or not self.training or not distributed.is_initialized():
            return super().forward(input)
        across = [0, *range(2, input.dim())]
        shape = (1, -1, *[1] * (input.dim() - 2))
        x = input.float()
        count = all_reduce(x.new_tensor(x.numel() / x.size(1)))
        mean = all_reduce(x.sum(across)) / count
        apart = x - mean.view(shape)
        variance = all_reduce(apart.square().sum(across)) / count
        if self.track_running_stats:
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        result = apart * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(input.dtype)


class SyncedBatchNorm(TorchSyncBatchNorm):
    """While several processes train, their batch norms are `SyncBatchNorm`; the names of the weights stay."""

    def apply(self, model: nn.Module) -> nn.Module:
        model = super().apply(model)
        for module in model.modules():
            if isinstance(module, nn.SyncBatchNorm):
                module.__class__ = SyncBatchNorm
        return model


def trainer_arguments(trainer: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """The arguments of Lightning's Trainer that a config's `trainer` stands for.

    Args:
        trainer: plain values; a `strategy` that is a part with its own `_target_` is built.
        precision: what `auto` means here.
    """
    options = {**trainer, "precision": precision}
    if isinstance(options.get("strategy"), Mapping):
        options["strategy"] = instantiate(options["strategy"], TRAINING)
    if options.pop("sync_batchnorm", False):
        options["plugins"] = [SyncedBatchNorm(), *(options.get("plugins") or [])]
    return options


def processes_to_start(trainer: Any) -> int:
    """How many processes on this machine a Trainer would start for its devices; 1 where they have been started, or one
    is enough."""
    strategy = trainer.strategy
    if not isinstance(strategy.launcher, _SubprocessScriptLauncher):
        return 1
    return 1 if strategy.launcher.cluster_environment.creates_processes_externally else trainer.num_devices
