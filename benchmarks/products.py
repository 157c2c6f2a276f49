"""The matrix products of a piece of code, recorded, and played again alone: what its time could come down to."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
PRODUCTS = {
    *(aten.mm, aten.addmm, aten.addmm_, aten._addmm_activation, aten.bmm, aten.baddbmm, aten.baddbmm_),
    *(aten.addbmm, aten.addbmm_, aten.mv, aten.addmv, aten.addmv_, aten.dot),
}


class Products(TorchDispatchMode):
    """Records each product as it is called below autograd and autocast, forward and backward, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in PRODUCTS:
            # The tensors are held, so that none takes the place of an earlier one, and place tells them apart.
            self.calls.append((func, args, dict(kwargs or {})))
        return func(*args, **(kwargs or {}))

    @property
    def flops(self) -> int:
        """Multiplications and additions, 2 · m · k · n of each product."""
        total = 0
        for _, args, _ in self.calls:
            left, right = [x for x in args if isinstance(x, Tensor)][-2:]
            total += 2 * left.numel() * (right.size(-1) if right.dim() > 1 else 1)
        return total

    def replay(self) -> Callable[[], None]:
        """The same products in the same order, on fresh tensors of the same shapes, types and strides; tensors that
        were one are one. Forgets the recorded ones."""
        fresh: dict[tuple[Any, ...], Tensor] = {}

        def copy(x: Tensor) -> Tensor:
            key = (x.data_ptr(), x.dtype, x.shape, x.stride())
            if key not in fresh:
                reach = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
                fresh[key] = torch.randn(max(reach, 1)).to(x.dtype).as_strided(x.shape, x.stride())
            return fresh[key]

        calls = [(f, *tree_map_only(Tensor, copy, (args, kwargs))) for f, args, kwargs in self.calls]
        self.calls = []

        @torch.no_grad()
        def play() -> None:
            for func, args, kwargs in calls:
                func(*args, **kwargs)

        return play


def record(run: Callable[[], Any]) -> Products:
    """The products of a call."""
    products = Products()
    with products:
        run()
    return products
