"""Corruptions of pictures: ImageNet-C's, and what happens to pictures that are captioned. NumPy and Pillow alone.

The families noise, blur, weather and digital are ImageNet-C's (Hendrycks and Dietterich, 2019,
https://arxiv.org/abs/1903.12261) with its published constants, those of pictures of 224 pixels. What OpenCV, SciPy,
scikit-image and ImageMagick computed there is computed here by the same arithmetic. `frost` is left out: it needs six
photographs. Sizes of kernels are in pixels, so a picture is to have about the size that the captioner sees
(`src.robustness` sees to it). The family shift is this project's own.
"""

import hashlib
import io
import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SEVERITIES = (1, 2, 3, 4, 5)
FAMILIES = ("noise", "blur", "weather", "digital", "shift")
GREY = (124, 116, 104)
"""ImageNet's mean colour: nothing, after the normalisation inside the encoders."""
LUMA = np.array([0.299, 0.587, 0.114])


Corner = tuple[float, float]
"""Left and top as fractions of a picture."""


class Corruption(NamedTuple):
    """A kind of damage."""

    family: str
    change: Callable[..., np.ndarray]
    """(H, W, 3) uint8, severity, generator → the same shape."""
    attended: bool = False
    """Whether it also takes where the captioner looked."""


def corrupt(
    pixels: np.ndarray, kind: str, severity: int, rng: np.random.Generator, corner: Corner | None = None
) -> np.ndarray:
    """Damage a picture.

    Args:
        pixels: (H, W, 3) uint8; it is not changed.
        kind: one of CORRUPTIONS.
        severity: 1 … 5; 0 changes nothing.
        rng: what chance there is; see `generator`.
        corner: of kinds that need a captioner, where what is damaged begins (`most_attended`); None: in the middle.

    Raises:
        ValueError: no such kind or severity.
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f"{kind}: no such corruption; there are {', '.join(CORRUPTIONS)}")
    if severity not in (0, *SEVERITIES):
        raise ValueError(f"severity {severity}: 0 (none) to {SEVERITIES[-1]}")
    if severity == 0:
        return pixels
    corruption = CORRUPTIONS[kind]
    more = (corner,) if corruption.attended else ()
    return corruption.change(pixels, severity, rng, *more)


def generator(seed: int, picture: str, kind: str, severity: int) -> np.random.Generator:
    """The chance of one damage of one picture: of nothing but these."""
    name = hashlib.sha256(f"{picture}\0{kind}\0{severity}".encode(errors="surrogateescape")).digest()
    return np.random.default_rng([seed, *np.frombuffer(name, np.uint32).tolist()])


def _unit(pixels: np.ndarray) -> np.ndarray:
    return pixels / 255.0


def _bytes(values: np.ndarray) -> np.ndarray:
    """[0, 1] → uint8, cut off as the published set was."""
    return (np.clip(values, 0, 1) * 255).astype(np.uint8)


# ---------------------------------------------------------------- noise


def gaussian_noise(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    scale = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return _bytes(_unit(pixels) + rng.normal(size=pixels.shape, scale=scale))


def shot_noise(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return _bytes(rng.poisson(_unit(pixels) * photons) / photons)


def impulse_noise(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    hit, salt = rng.random(pixels.shape) <= share, rng.random(pixels.shape) <= 0.5
    return np.where(hit, np.where(salt, 255, 0), pixels).astype(np.uint8)


# ---------------------------------------------------------------- blur


def defocus_blur(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    radius, alias = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    return _bytes(_filtered(_unit(pixels), _disk(radius, alias)))


@lru_cache
def _disk(radius: int, alias: float) -> np.ndarray:
    """A disk whose edge is softened by a Gaussian of `alias` pixels."""
    reach, soft = (8, 1) if radius <= 8 else (radius, 2)
    along = np.arange(-reach, reach + 1)
    disk = (along**2 + along[:, None] ** 2 <= radius**2).astype(np.float64)
    bell = np.exp(-(np.arange(-soft, soft + 1) ** 2) / (2 * alias**2))
    return _filtered((disk / disk.sum())[..., None], np.outer(bell, bell) / bell.sum() ** 2)[..., 0]


def _filtered(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """(H, W, C) correlated with a symmetric kernel of odd sides; the border mirrors, its own pixels once."""
    pad = len(kernel) // 2
    height, width = image.shape[:2]
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    size = padded.shape[:2]
    spectrum = np.fft.rfft2(padded, axes=(0, 1)) * np.fft.rfft2(kernel, size)[..., None]
    whole = np.fft.irfft2(spectrum, size, axes=(0, 1))
    return whole[2 * pad : 2 * pad + height, 2 * pad : 2 * pad + width]


def glass_blur(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    sigma, most, times = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[severity - 1]
    height, width = pixels.shape[:2]
    blurred = _bytes(_gaussian(_unit(pixels), sigma, 4, "nearest"))
    rows, columns = np.arange(height - most, most, -1), np.arange(width - most, most, -1)
    at = np.tile((rows[:, None] * width + columns).ravel(), times)
    step = rng.integers(-most, most, size=(len(at), 2))
    source = list(range(height * width))
    # Meant as exchanges of neighbours; as published, each pixel is overwritten by its neighbour.
    for here, there in zip(at.tolist(), (at + step[:, 1] * width + step[:, 0]).tolist(), strict=True):
        source[here] = source[there]
    return _bytes(_gaussian(_unit(blurred.reshape(-1, 3)[source].reshape(pixels.shape)), sigma, 4, "nearest"))


def _gaussian(image: np.ndarray, sigma: float, truncate: float, border: str) -> np.ndarray:
    """(H, W) or (H, W, C), blurred."""
    down, across = (_gaussian_matrix(side, sigma, truncate, border) for side in image.shape[:2])
    return np.einsum("ij,jk...->ik...", down, np.einsum("kl,jl...->jk...", across, image, optimize=True), optimize=True)


@lru_cache(maxsize=64)
def _gaussian_matrix(side: int, sigma: float, truncate: float, border: str) -> np.ndarray:
    """(side, side): blurs a column of pixels. Borders: nearest (the last pixel goes on), reflect (it mirrors)."""
    reach = int(truncate * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    bell = np.exp(-0.5 * offsets**2 / sigma**2)
    at = np.arange(side)[:, None] + offsets
    at = at.clip(0, side - 1) if border == "nearest" else _mirrored(at, side)
    matrix = np.zeros((side, side))
    np.add.at(matrix, (np.arange(side)[:, None], at), bell / bell.sum())
    return matrix


def _mirrored(index: np.ndarray, side: int) -> np.ndarray:
    """Indices beyond the border, mirrored there with the border's own pixel twice: d c b a | a b c d."""
    index = index % (2 * side)
    return np.minimum(index, 2 * side - 1 - index)


def motion_blur(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    return _bytes(_moved(_unit(pixels), radius, sigma, rng.uniform(-45, 45)))


def _moved(image: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """ImageMagick's motion blur: half a Gaussian along a line of so many degrees."""
    height, width = image.shape[:2]
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    down, across = (np.ceil(steps * f(math.radians(angle)) - 0.5).astype(int) for f in (math.sin, math.cos))
    y, x = np.arange(height), np.arange(width)
    result = np.zeros(image.shape, np.float64)
    for weight, dy, dx in zip(weights / weights.sum(), down.tolist(), across.tolist(), strict=True):
        result += weight * image[(y + dy).clip(0, height - 1)[:, None], (x + dx).clip(0, width - 1)]
    return result


def zoom_blur(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    factors = (
        np.arange(1, 1.11, 0.01),
        np.arange(1, 1.16, 0.01),
        np.arange(1, 1.21, 0.02),
        np.arange(1, 1.26, 0.02),
        np.arange(1, 1.31, 0.03),
    )[severity - 1]
    image = _unit(pixels).astype(np.float32)
    total = image.copy()
    for factor in factors.tolist():
        total += _zoomed(image, factor)
    return _bytes(total / (len(factors) + 1))


def _zoomed(image: np.ndarray, factor: float) -> np.ndarray:
    """The middle of (H, W, …), enlarged by linear interpolation to the same size."""
    for axis in (0, 1):
        side = image.shape[axis]
        kept = math.ceil(side / factor)
        large = round(kept * factor)
        # Of what is enlarged, the middle of `large` pixels.
        places = (np.arange(side) + (large - side) // 2) * ((kept - 1) / max(large - 1, 1))
        low = np.minimum(places.astype(int), max(kept - 2, 0))
        part = (places - low).astype(image.dtype)
        part = part.reshape([-1 if i == axis else 1 for i in range(image.ndim)])
        low += (side - kept) // 2
        high = np.minimum(low + 1, side - 1)
        image = image.take(low, axis) * (1 - part) + image.take(high, axis) * part
    return image


# ---------------------------------------------------------------- weather


def snow(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    mean, spread, zoom, least, radius, sigma, kept = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    image = _unit(pixels)
    layer = _zoomed(rng.normal(size=pixels.shape[:2], loc=mean, scale=spread), zoom)
    layer = _unit(_bytes(np.where(layer < least, 0, layer)))
    layer = (np.round(_moved(layer, radius, sigma, rng.uniform(-135, -45)) * 255) / 255)[..., None]
    whiter = np.maximum(image, (image @ LUMA)[..., None] * 1.5 + 0.5)
    return _bytes(kept * image + (1 - kept) * whiter + layer + np.rot90(layer, 2))


def fog(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    thickness, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[severity - 1]
    image = _unit(pixels)
    brightest = image.max()
    height, width = pixels.shape[:2]
    side = 1 << (max(height, width, 2) - 1).bit_length()
    image = image + thickness * _plasma(side, decay, rng)[:height, :width, None]
    return _bytes(image * brightest / (brightest + thickness))


def _plasma(side: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """A plasma fractal (side, side) in [0, 1], by diamonds and squares; `side` is a power of two."""
    heights, wobble, step = np.zeros((side, side)), 100.0, side

    def wobbled(total: np.ndarray) -> np.ndarray:
        return total / 4 + wobble * rng.uniform(-wobble, wobble, total.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        pairs = corners + np.roll(corners, -1, 0)
        heights[half::step, half::step] = wobbled(pairs + np.roll(pairs, -1, 1))
        middles, corners = heights[half::step, half::step], heights[::step, ::step]
        heights[::step, half::step] = wobbled(middles + np.roll(middles, 1, 0) + corners + np.roll(corners, -1, 1))
        heights[half::step, ::step] = wobbled(middles + np.roll(middles, 1, 1) + corners + np.roll(corners, -1, 0))
        step, wobble = half, wobble / decay
    heights -= heights.min()
    return heights / heights.max()


def brightness(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    more = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    image = _unit(pixels)
    value = image.max(-1, keepdims=True)  # of HSV, whose hue and saturation stay
    brighter = np.minimum(value + more, 1)
    return _bytes(np.where(value > 0, image * (brighter / np.maximum(value, 1e-9)), brighter))


# ---------------------------------------------------------------- digital


def contrast(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    kept = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    image = _unit(pixels)
    mean = image.mean((0, 1))
    return _bytes((image - mean) * kept + mean)


def elastic_transform(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    alpha, sigma, affine = (
        (244 * 2, 244 * 0.7, 244 * 0.1),
        (244 * 2, 244 * 0.08, 244 * 0.2),
        (244 * 0.05, 244 * 0.01, 244 * 0.02),
        (244 * 0.07, 244 * 0.01, 244 * 0.02),
        (244 * 0.12, 244 * 0.01, 244 * 0.02),
    )[severity - 1]
    image = _unit(pixels)
    height, width = pixels.shape[:2]
    y, x = np.indices((height, width), dtype=np.float64)
    middle, reach = np.array([width // 2, height // 2]), min(height, width) // 3
    corners = middle + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + rng.uniform(-affine, affine, size=(3, 2))
    # (x, y, 1) of where a pixel goes → where it comes from
    back = np.linalg.lstsq(np.column_stack([moved, np.ones(3)]), corners, rcond=None)[0]
    from_x, from_y = (back[0, i] * x + back[1, i] * y + back[2, i] for i in (0, 1))
    image = _sampled(image, from_y, from_x, _mirrored_once)
    dx, dy = (_gaussian(rng.uniform(-1, 1, size=(height, width)), sigma, 3, "reflect") * alpha for _ in range(2))
    return _bytes(_sampled(image, y + dy, x + dx, _mirrored))


def _mirrored_once(index: np.ndarray, side: int) -> np.ndarray:
    """As `_mirrored`, with the border's own pixel once: d c b | a b c d."""
    period = max(2 * side - 2, 1)
    index = index % period
    return np.minimum(index, period - index)


def _sampled(
    image: np.ndarray, y: np.ndarray, x: np.ndarray, border: Callable[[np.ndarray, int], np.ndarray]
) -> np.ndarray:
    """(H, W, C) at places (H, W), by bilinear interpolation."""
    height, width = image.shape[:2]
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    down, right = (y - top)[..., None], (x - left)[..., None]
    rows, columns = ([border(first + i, side) for i in (0, 1)] for first, side in ((top, height), (left, width)))
    upper, lower = (image[row, columns[0]] * (1 - right) + image[row, columns[1]] * right for row in rows)
    return upper * (1 - down) + lower * down


def pixelate(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    kept = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    height, width = pixels.shape[:2]
    small = Image.fromarray(pixels).resize(
        (max(1, int(width * kept)), max(1, int(height * kept))), Image.Resampling.BOX
    )
    return np.asarray(small.resize((width, height), Image.Resampling.BOX))


def jpeg_compression(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    return np.asarray(Image.open(buffer).convert("RGB"))


# ---------------------------------------------------------------- shift: what happens to pictures that are captioned


def crop(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A corner or the middle, of the picture's own proportions, enlarged again; a share of the area is kept."""
    kept = math.sqrt((0.75, 0.55, 0.4, 0.25, 0.15)[severity - 1])
    height, width = pixels.shape[:2]
    left, top = ((0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.5))[rng.integers(5)]
    x, y = left * (1 - kept) * width, top * (1 - kept) * height
    box = (x, y, x + kept * width, y + kept * height)
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC, box))


OCCLUDED = (0.05, 0.1, 0.2, 0.35, 0.5)
"""Shares of the area."""


def occlusion(pixels: np.ndarray, severity: int, rng: np.random.Generator, corner: Corner | None = None) -> np.ndarray:
    """A grey rectangle of the picture's proportions, over where the captioner looked most."""
    height, width = pixels.shape[:2]
    side = math.sqrt(OCCLUDED[severity - 1])
    left, top = corner or ((1 - side) / 2, (1 - side) / 2)
    result = pixels.copy()
    rows = slice(round(top * height), round((top + side) * height))
    result[rows, round(left * width) : round((left + side) * width)] = GREY
    return result


def most_attended(weights: np.ndarray, boxes: np.ndarray, severity: int) -> Corner:
    """Where an occlusion hides most of what was looked at.

    Args:
        weights: (R,) of the regions.
        boxes: (R, 4) x1, y1, x2, y2 as fractions of the picture.
        severity: of the occlusion.

    Returns:
        Of the rectangles around the regions' middles, or as near as the picture allows, the corner of that whose
        regions (those whose middle is inside) have the most weight; of equal ones, of the nearest to its own region.
    """
    side = math.sqrt(OCCLUDED[severity - 1])
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    corners = (middles - side / 2).clip(0, 1 - side)
    from_corner = middles - corners[:, None]
    inside = ((from_corner >= 0) & (from_corner <= side)).all(-1)
    distance = np.abs(corners + side / 2 - middles).sum(-1)
    best = np.lexsort((distance, -(inside @ weights).round(9)))[0]
    return float(corners[best, 0]), float(corners[best, 1])


def rotation(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """By so many degrees, either way; the corners become grey."""
    angle = (8, 15, 30, 60, 90)[severity - 1] * rng.choice([-1, 1])
    return np.asarray(Image.fromarray(pixels).rotate(int(angle), Image.Resampling.BILINEAR, fillcolor=GREY))


def low_resolution(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Scaled down and up again, smoothly."""
    kept = (1 / 2, 1 / 3, 1 / 4, 1 / 6, 1 / 9)[severity - 1]
    height, width = pixels.shape[:2]
    small = (max(1, round(width * kept)), max(1, round(height * kept)))
    reduced = Image.fromarray(pixels).resize(small, Image.Resampling.BICUBIC)
    return np.asarray(reduced.resize((width, height), Image.Resampling.BICUBIC))


def grey(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Desaturated, at last entirely."""
    share = (0.2, 0.4, 0.6, 0.8, 1.0)[severity - 1]
    image = _unit(pixels)
    return _bytes(image * (1 - share) + (image @ LUMA)[..., None] * share)


def screenshot(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """As somebody posts it: in a window of a phone or a computer, which leaves it a falling share of the area."""
    share = (0.75, 0.6, 0.45, 0.3, 0.2)[severity - 1]
    height, width = pixels.shape[:2]
    phone, dark = rng.random() < 0.5, rng.random() < 0.5
    paper, bar, ink = (
        ((24, 26, 30), (44, 47, 53), (150, 154, 162)) if dark else ((250,) * 3, (226, 228, 232), (112,) * 3)
    )
    page = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(page)
    side = math.sqrt(share)
    inner = max(1, round(width * side)), max(1, round(height * side))
    left = (width - inner[0]) // 2
    above = round((height - inner[1]) * rng.uniform(0.3, 0.7))  # the rest is below
    strip = max(2, min(above, round(height * 0.09)))
    draw.rectangle((0, 0, width, strip), bar)
    dot = max(1, strip // 4)
    for n in range(3):  # a phone's signs on the right, a window's buttons on the left
        x = width - (n + 1) * 3 * dot if phone else (n * 3 + 1) * dot
        colour = ink if phone else ((237, 106, 94), (245, 191, 79), (98, 197, 84))[n]
        draw.ellipse((x, strip // 2 - dot, x + 2 * dot, strip // 2 + dot), colour)
    line = max(3, round(height * 0.05))

    def written(first: int, last: int) -> None:
        for y in range(first, last - line // 2, line):
            draw.rectangle((left, y, left + round(inner[0] * rng.uniform(0.4, 0.95)), y + max(1, line // 3)), ink)

    written(strip + line // 2, above - line // 2)
    written(above + inner[1] + line // 2, height - line // 2)
    page.paste(Image.fromarray(pixels).resize(inner, Image.Resampling.BICUBIC), (left, above))
    return np.asarray(page)


def watermark(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A word across the picture again and again, aslant and half transparent."""
    opacity = (0.15, 0.3, 0.45, 0.65, 0.9)[severity - 1]
    height, width = pixels.shape[:2]
    side = math.ceil(math.hypot(height, width)) + 2
    text = ("SAMPLE", "PREVIEW", "COPYRIGHT")[rng.integers(3)]
    size = max(8, round(min(height, width) * rng.uniform(0.1, 0.14)))
    font = ImageFont.load_default(size)
    layer = Image.new("L", (side, side))
    draw = ImageDraw.Draw(layer)
    long = max(1, round(draw.textlength(f"{text}  ", font)))
    for number, y in enumerate(range(0, side, round(size * 1.9))):
        for x in range(-(number % 2) * long // 2, side, long):
            draw.text((x, y), text, 255, font)
    layer = layer.rotate(rng.uniform(20, 40), Image.Resampling.BILINEAR)
    x, y = (side - width) // 2, (side - height) // 2
    alpha = _unit(np.asarray(layer.crop((x, y, x + width, y + height))))[..., None] * opacity
    return _bytes(_unit(pixels) * (1 - alpha) + alpha)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption("noise", gaussian_noise),
    "shot_noise": Corruption("noise", shot_noise),
    "impulse_noise": Corruption("noise", impulse_noise),
    "defocus_blur": Corruption("blur", defocus_blur),
    "glass_blur": Corruption("blur", glass_blur),
    "motion_blur": Corruption("blur", motion_blur),
    "zoom_blur": Corruption("blur", zoom_blur),
    "snow": Corruption("weather", snow),
    "fog": Corruption("weather", fog),
    "brightness": Corruption("weather", brightness),
    "contrast": Corruption("digital", contrast),
    "elastic_transform": Corruption("digital", elastic_transform),
    "pixelate": Corruption("digital", pixelate),
    "jpeg_compression": Corruption("digital", jpeg_compression),
    "crop": Corruption("shift", crop),
    "occlusion": Corruption("shift", occlusion, attended=True),
    "rotation": Corruption("shift", rotation),
    "low_resolution": Corruption("shift", low_resolution),
    "grey": Corruption("shift", grey),
    "screenshot": Corruption("shift", screenshot),
    "watermark": Corruption("shift", watermark),
}
KINDS = tuple(CORRUPTIONS)
UNATTENDED = tuple(name for name, each in CORRUPTIONS.items() if not each.attended)
"""Those that need no captioner: what training pictures can have."""
