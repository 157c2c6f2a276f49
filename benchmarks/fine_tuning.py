"""What a step of fine-tuning costs: the last blocks of EfficientNet-Lite2, forward and backward, on a batch of cached
maps, beside the same with every convolution in autocast's type."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.measuring import Row, alternate, spread
from src.config import autocast_dtype, precision
from src.encoders import Encoder, TimmBackbone
from src.encoders.depthwise import InFloat32

SIZE, FROZEN, BATCH = 260, 4, 32
"""As experiments/flickr8k/transformer has them."""


def plainly(network: nn.Module) -> None:
    """Undo `hasten_depthwise`, in place."""
    for module in network.modules():
        if isinstance(module, InFloat32):
            module.__class__ = type(module).__mro__[2]


def measure(repeats: int = 5, size: int = SIZE, batch: int = BATCH) -> dict[str, Any]:
    """Seconds of a step, each way; and the largest difference of the two gradients of a weight, as a share of it."""
    dtype = autocast_dtype(precision("auto", "cpu"))
    torch.manual_seed(0)
    ours, plain = (Encoder(TimmBackbone("tf_efficientnet_lite2", "auto"), frozen=FROZEN).train() for _ in range(2))
    plain.load_state_dict(ours.state_dict())
    plainly(plain)
    with torch.no_grad():
        maps = ours.frozen_regions(torch.rand(batch, 3, size, size)).half().contiguous()  # as the cache has them

    def step(encoder: Encoder) -> Callable[[], None]:
        def run() -> None:
            encoder.zero_grad()
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                features = encoder(maps)
            features.grid.float().square().mean().backward()

        return run

    seconds = alternate({"ours": step(ours), "plain": step(plain)}, repeats)
    pairs = [(a.grad, b.grad) for a, b in zip(ours.parameters(), plain.parameters(), strict=True)]
    apart = max(float((a - b).norm() / b.norm()) for a, b in pairs if a is not None and b is not None)
    return {"seconds": {way: spread(each) for way, each in seconds.items()}, "batch": batch, "apart": apart}


def rows(measured: dict[str, Any]) -> list[Row]:
    ours, plain = (measured["seconds"][way]["median"] for way in ("ours", "plain"))
    what = f"fine-tuning a step's {measured['batch']} pictures, beside depthwise gradients in bf16"
    return [Row(what, f"{ours:.2f} s", f"{plain:.2f} s", plain / ours)]
