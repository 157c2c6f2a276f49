"""How several processes train together: Lightning's strategies, as conf/trainer/ chooses them."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.plugins import LayerSync
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from timm.layers import convert_sync_batchnorm
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from src import slurm
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


class FullySharded(ModelParallelStrategy):
    """Every process keeps a share of the weights, of their gradients and of the optimizer's state (ZeRO, stage 3:
    Rajbhandari et al., 2020, https://arxiv.org/abs/1910.02054; PyTorch's `fully_shard`). Modules of the backbone are
    put together one by one, where they are used; the rest, which is small beside a large backbone, for a whole step.
    Checkpoints are whole, as those of other trainers are.

    Args:
        backend, timeout: as of `DataParallel`.

    Raises:
        ValueError: as of `DataParallel`.
    """

    def __init__(self, backend: str | None = None, timeout: float = 30) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=_known(backend),
            timeout=_patience(timeout),
        )

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def shard(self, module: lightning.LightningModule, units: Iterable[nn.Module]) -> None:
        """Share out the weights of a LightningModule; of its `units`, which are called one by one, each by itself."""
        if self._layer_sync:
            self._layer_sync.apply(module)
        mesh = self.device_mesh["data_parallel"]
        for unit in units:
            if any(True for _ in unit.parameters()):
                fully_shard(unit, mesh=mesh)
        fully_shard(module, mesh=mesh)
        for step in ("training_step", "validation_step"):  # which Lightning calls in place of `forward`
            register_fsdp_forward_method(module, step)

    # Lightning numbers an optimizer's parameters as the model orders them, where all other trainers' checkpoints have
    # the order of the optimizer's groups: so that any trainer can go on from any checkpoint, it is theirs here too.

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole of it, in the first process; nothing in the others."""
        state = optimizer.state_dict()

        def kept(value: Any) -> Any:
            if isinstance(value, DTensor):
                value = value.full_tensor()  # which asks all processes
            return value.cpu() if self.global_rank == 0 and isinstance(value, Tensor) else value

        found = {number: {name: kept(each[name]) for name in each} for number, each in state["state"].items()}
        return {**state, "state": found} if self.global_rank == 0 else {}

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint = self.checkpoint_io.load_checkpoint(self.broadcast(checkpoint_path), weights_only=weights_only)
        assert self.model is not None
        set_model_state_dict(self.model, checkpoint["state_dict"], options=StateDictOptions(full_state_dict=True))
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            saved = [number for group in state["param_groups"] for number in group["params"]]
            shared: dict[int, dict[str, Any]] = {}
            for number, parameter in zip(saved, own, strict=True):
                if number in state["state"]:
                    shared[number] = {k: _share(v, parameter) for k, v in state["state"][number].items()}
            optimizer.load_state_dict({**state, "state": shared})
        return checkpoint

    def put_together(self, module: lightning.LightningModule) -> None:
        """From now on every process has all the weights, and what it computes waits for no other: validation, where
        some have fewer pictures."""
        for each in module.modules():
            if isinstance(each, FSDPModule):
                each.set_reshard_after_forward(False, recurse=False)
                each.unshard()

    def take_apart(self, module: lightning.LightningModule) -> None:
        """The end of `put_together`."""
        for each in module.modules():
            if isinstance(each, FSDPModule):
                each.set_reshard_after_forward(each is not module, recurse=False)
                each.reshard()


def _share(value: Any, parameter: Tensor) -> Any:
    """This process's share of an optimizer's tensor of a parameter; anything else as it is."""
    if not (isinstance(value, Tensor) and isinstance(parameter, DTensor) and value.shape == parameter.shape):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def whole(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the whole of each tensor that was shared out; to be called in all processes at once."""
    return {name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in state.items()}


def _known(backend: str | None) -> str | None:
    if backend not in (None, "nccl", "gloo"):
        raise ValueError(f"trainer.strategy.backend={backend}: choose nccl, gloo, or null")
    return backend


def _patience(minutes: float) -> timedelta:
    if not minutes > 0:
        raise ValueError(f"trainer.strategy.timeout={minutes:g}: minutes, above 0")
    return timedelta(minutes=minutes)


class _SumOverProcesses(torch.autograd.Function):
    """What each process gets is the sum, so what each gives has a gradient from all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return _SumOverProcesses.forward(ctx, grad)


class CPUSyncBatchNorm(_BatchNorm):
    """Batch norm by the pictures of all processes, as `nn.SyncBatchNorm`, which computes on GPUs alone."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number."""

    def forward(self, input: Tensor) -> Tensor:
        several = self.training and distributed.is_initialized()
        result = self._across(input) if several else super().forward(input)
        for part in ("drop", "act"):  # of timm's, which end so
            result = getattr(self, part)(result) if hasattr(self, part) else result
        return result

    def _across(self, input: Tensor) -> Tensor:
        across, shape = [0, *range(2, input.dim())], (1, -1, *[1] * (input.dim() - 2))
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        count = _SumOverProcesses.apply(x.new_tensor(x.numel() / x.size(1)))
        mean = _SumOverProcesses.apply(x.sum(across)) / count
        apart = x - mean.view(shape)
        variance = _SumOverProcesses.apply(apart.square().sum(across)) / count
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * count / (count - 1), share)
        result = apart * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(input.dtype)


class SyncedBatchNorm(LayerSync):
    """While several processes train, their batch norms go by the pictures of all. The weights and their names stay, and
    so does what is computed in eval mode."""

    def apply(self, model: nn.Module) -> nn.Module:
        assert isinstance(model, lightning.LightningModule)
        if model.trainer.strategy.root_device.type != "cpu":
            return convert_sync_batchnorm(model)  # timm's: PyTorch's own loses the activations of timm's batch norms
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.__class__ = CPUSyncBatchNorm
        return model

    def revert(self, model: nn.Module) -> nn.Module:
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
    options["plugins"] = [
        *(options.get("plugins") or []),
        *slurm.plugins(),
        *([SyncedBatchNorm()] * options.pop("sync_batchnorm", False)),
    ]
    return options


def processes_to_start(trainer: Any) -> int:
    """How many processes on this machine a Trainer would start for its devices; 1 where they have been started, or one
    is enough."""
    strategy = trainer.strategy
    if not isinstance(strategy.launcher, _SubprocessScriptLauncher):
        return 1
    return 1 if strategy.launcher.cluster_environment.creates_processes_externally else trainer.num_devices
