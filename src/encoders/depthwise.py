"""Depthwise convolutions that learn on a CPU."""

from typing import Any

import torch
from torch import Tensor, nn


class InFloat32:
    """Of a convolution: its arithmetic is float32 where it learns under autocast on a CPU, and what it gives has
    autocast's type as ever. There the gradients of depthwise kernels in bfloat16, of 5 × 5 and of stride 2 above all,
    take as long as all the rest of a step (`python -m benchmarks --only fine_tuning`). Where only pixels have
    gradients, as in an attack, it is those of stride 2."""

    weight: Tensor
    stride: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        plain = super().forward  # type: ignore[misc]
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return plain(x)
        strided = self.stride != (1, 1) and x.requires_grad
        if not (torch.is_grad_enabled() and (self.weight.requires_grad or strided)):
            return plain(x)
        with torch.autocast("cpu", enabled=False):
            return plain(x.float()).to(torch.get_autocast_dtype("cpu"))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Its class is made here, where no copy or pickle would find it: the plain one goes, and is changed again."""
        kind: Any = type(self).__mro__[2]
        plain = kind.__new__(kind)
        plain.__dict__ = self.__dict__
        return in_float32, (plain,)


_KINDS: dict[type, Any] = {}


def in_float32(convolution: nn.Module) -> nn.Module:
    """The convolution, now `InFloat32`."""
    kind = type(convolution)
    convolution.__class__ = _KINDS.setdefault(kind, type(kind.__name__, (InFloat32, kind), {}))
    return convolution


def hasten_depthwise(network: nn.Module) -> None:
    """Make all depthwise convolutions of a network `InFloat32`, in place; weights and their names stay."""
    for module in network.modules():
        alone = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
        if alone and not isinstance(module, InFloat32):
            in_float32(module)
