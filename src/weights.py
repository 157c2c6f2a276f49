"""How a bundle's weights lie on disk: in full, as halves, or as eight bits with a scale a row."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

Storage = Literal["float32", "float16", "int8"]
STORAGES = get_args(Storage)
SCALE = ":scale"
"""Ends the name of a tensor's scales: no parameter's name has a colon."""


def stored(state: Mapping[str, Tensor], storage: Storage) -> dict[str, Tensor]:
    """A state dict as it is to be stored. Matrices and kernels are reduced, vectors (biases, norms, statistics), which
    are few, stay as they are. `int8`: each row w (of a kernel: each output channel) as round(w / s) in −127 … 127 with
    its own s = max |w| / 127, the symmetric scheme of Krishnamoorthi, 2018 (https://arxiv.org/abs/1806.08342)."""
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        few = tensor.dim() < 2 or len(tensor) == 1 or not tensor.numel()  # tables of places, too, have one row
        if few or not tensor.is_floating_point() or storage == "float32":
            result[name] = tensor
        elif storage == "float16":
            result[name] = tensor.half()
        else:
            most = tensor.detach().float().flatten(1).abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny * 127)
            scale = (most / 127).bfloat16()
            rows = tensor.detach().float() / scale.float().view(-1, *[1] * (tensor.dim() - 1))
            result[name], result[name + SCALE] = rows.round().clamp(-127, 127).to(torch.int8), scale
    return result


def restored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `stored` gave → a state dict in float32, whatever the storage was.

    Raises:
        ValueError: scales that fit no tensor, or are missing.
    """
    result = {}
    for name, tensor in state.items():
        if name.endswith(SCALE):
            if name.removesuffix(SCALE) not in state:
                raise ValueError(f"{name}: scales of nothing")
        elif tensor.dtype == torch.int8:
            scale = state.get(name + SCALE)
            if scale is None or scale.shape != tensor.shape[:1]:
                raise ValueError(f"{name}: {len(tensor)} rows in eight bits, and not as many scales")
            result[name] = tensor.float() * scale.float().view(-1, *[1] * (tensor.dim() - 1))
        else:
            result[name] = tensor.float() if tensor.dtype == torch.float16 else tensor
    return result
