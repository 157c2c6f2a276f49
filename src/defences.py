"""Transformations of pictures before the encoder, against pictures that somebody made to deceive it."""

import io
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from src.ranges import at_least


class Defence(nn.Module):
    """Pixels (B, 3, H, W) in [0, 1] → as many in [0, 1], computed in float32 whatever the model's precision is.

    Gradients pass, so that an attack can be told of the defence: one that it is not told of proves nothing (Athalye et
    al., 2018, https://arxiv.org/abs/1802.00420).
    """

    random = False
    """Whether it draws: an attack then follows the mean gradient over several draws."""

    def forward(self, pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, enabled=False):
            return self.transformed(pixels.float()).to(pixels.dtype)

    def transformed(self, pixels: Tensor) -> Tensor:
        """What `forward` gives, float32 for float32."""
        raise NotImplementedError

    @contextmanager
    def drawing_anew(self) -> Iterator[None]:
        """In a `with` block, what is random draws anew at every call, from torch's own generator."""
        yield


class StraightThrough(torch.autograd.Function):
    """The second of two tensors, with the gradient of the first: backward pass differentiable approximation by the
    identity, of Athalye et al."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, changed: Tensor) -> Tensor:
        return changed.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


def _within(pixels: Tensor) -> Tensor:
    """Means of pixels without what rounding has put beyond [0, 1]; a clamp would also end the gradients of white."""
    return StraightThrough.apply(pixels, pixels.detach().clamp(0, 1))


class JpegDefence(Defence):
    """Pictures that were saved as JPEG and read again, colours at half the resolution: what little was added to them is
    rounded away. Das et al., 2018 (https://arxiv.org/abs/1802.06816); Guo et al., 2018
    (https://arxiv.org/abs/1711.00117). Gradients pass as if it did nothing.

    Args:
        quality: JPEG's, 1 to 95; lower rounds away more.

    Raises:
        ValueError: another quality.
    """

    def __init__(self, quality: int = 75) -> None:
        super().__init__()
        if not 1 <= quality <= 95:
            raise ValueError(f"defence.quality={quality}: 1 to 95")
        self.quality = quality

    def extra_repr(self) -> str:
        return f"quality={self.quality}"

    def transformed(self, pixels: Tensor) -> Tensor:
        whole = (pixels.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        again = torch.from_numpy(np.stack([self._again(picture) for picture in whole])).to(pixels.device)
        return StraightThrough.apply(pixels, again.permute(0, 3, 1, 2).float() / 255)

    def _again(self, picture: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=self.quality, subsampling="4:2:0")
        return np.asarray(Image.open(file))


class BitDepthDefence(Defence):
    """Fewer bits a colour channel: feature squeezing, Xu et al., 2018 (https://arxiv.org/abs/1704.01155). Gradients
    pass as if it did nothing.

    Args:
        bits: of each channel, 1 to 8.

    Raises:
        ValueError: another number of bits.
    """

    def __init__(self, bits: int = 5) -> None:
        super().__init__()
        if not 1 <= bits <= 8:
            raise ValueError(f"defence.bits={bits}: 1 to 8")
        self.bits = bits

    def extra_repr(self) -> str:
        return f"bits={self.bits}"

    def transformed(self, pixels: Tensor) -> Tensor:
        levels = 2**self.bits - 1
        return StraightThrough.apply(pixels, (pixels.detach().clamp(0, 1) * levels).round() / levels)


class BlurDefence(Defence):
    """A Gaussian blur: the local smoothing of Xu et al., 2018, but linear, with gradients of its own. Beyond the edges
    pictures go on as their last pixels.

    Args:
        sigma: its standard deviation in pixels, more than 0.

    Raises:
        ValueError: another sigma.
    """

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        if not 0 < sigma < math.inf:
            raise ValueError(f"defence.sigma={sigma}: pixels, more than 0")
        self.sigma, self.radius = float(sigma), math.ceil(3 * sigma)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}"

    def transformed(self, pixels: Tensor) -> Tensor:
        at = torch.arange(-self.radius, self.radius + 1, device=pixels.device, dtype=pixels.dtype)
        weights = torch.softmax(-(at**2) / (2 * self.sigma**2), 0)
        across = weights.expand(3, 1, 1, -1)
        x = F.pad(pixels, [self.radius] * 4, mode="replicate")
        return _within(F.conv2d(F.conv2d(x, across, groups=3), across.transpose(2, 3), groups=3))


class RandomResizeDefence(Defence):
    """Pictures at a size that is drawn, smaller ones somewhere on grey, of larger ones some part: Xie et al., 2018
    (https://arxiv.org/abs/1711.01991). Each picture has its own draw.

    While a captioner learns, and where an attack has called `drawing_anew`, draws come from torch's generator. Else
    they depend on `seed` and the picture alone: the same picture has the same caption, whatever is in its batch.

    Args:
        least, most: between which the share of the picture's size is drawn, above 0.
        seed: of the draws.

    Raises:
        ValueError: shares that are none, or in the wrong order.
    """

    random = True

    def __init__(self, least: float = 0.8, most: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        if not 0 < least <= most < math.inf:
            raise ValueError(f"defence.least={least} and defence.most={most}: above 0, the first up to the second")
        at_least(0, "defence", seed=seed)
        self.least, self.most, self.seed = least, most, seed
        self.draw_anew = False

    def extra_repr(self) -> str:
        return f"least={self.least}, most={self.most}, seed={self.seed}"

    @contextmanager
    def drawing_anew(self) -> Iterator[None]:
        before, self.draw_anew = self.draw_anew, True
        try:
            yield
        finally:
            self.draw_anew = before

    def transformed(self, pixels: Tensor) -> Tensor:
        return torch.cat([self._placed(picture, self._draw(picture)) for picture in pixels.split(1)])

    def _draw(self, picture: Tensor) -> list[float]:
        """Three numbers in [0, 1): size, place across and down."""
        if self.training or self.draw_anew:
            return torch.rand(3).tolist()
        content = (picture.detach() * 255).round().to(torch.uint8).cpu().numpy().tobytes()
        generator = torch.Generator().manual_seed(zlib.crc32(content, self.seed))  # which reads 32 bits
        return torch.rand(3, generator=generator).tolist()

    def _placed(self, picture: Tensor, draw: list[float]) -> Tensor:
        share, across, down = draw
        height, width = picture.shape[2:]
        scale = self.least + (self.most - self.least) * share
        size = max(1, round(height * scale)), max(1, round(width * scale))
        x = F.interpolate(picture, size, mode="bilinear", align_corners=False, antialias=scale < 1)
        top, left = (
            math.floor(place * (abs(room) + 1)) for place, room in ((down, height - size[0]), (across, width - size[1]))
        )
        if scale > 1:
            x = x[..., top : top + height, left : left + width]
        else:
            x = F.pad(x, [left, width - size[1] - left, top, height - size[0] - top], value=0.5)
        return _within(x)
