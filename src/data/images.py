"""Any picture file → upright 8-bit RGB, or an error that names the file and says how to mend it.

What a format leaves open is settled here, once for training, evaluation and captioning:

============================  =====================================================================
truncated, zero bytes         `ImageError`
not a picture, SVG, EPS       `ImageError`
more than `max_pixels`        `ImageError`, from the header, before anything is decoded
CMYK, YCCK                    converted without a colour profile
16-bit grey                   scaled to 8 bits (Pillow's own conversion clips at 255)
32-bit integer, float grey    its darkest to its brightest pixel become 0 to 255: no white is stated
palette, grey, 1 bit          converted
transparency of any kind      composited on white
animation, several pages      the first frame
EXIF orientation              applied; damaged EXIF counts as none
============================  =====================================================================
"""

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000
"""Larger pictures count as decompression bombs. So do those above twice `PIL.Image.MAX_IMAGE_PIXELS`."""

ORIENTATION = 0x0112
SIGNATURES = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF")
LEAVE_OUT = "leave it out (in training: data.verify=decode data.on_bad_row=skip, of shards on_bad_shard)"
AGAIN = f"download or copy it again, or {LEAVE_OUT}"


class ImageError(ValueError):
    """A picture that cannot be used; the message names it and says how to mend it."""


class Pictures(NamedTuple):
    """Pictures to be looked at, each found by its image's name as it is asked for."""

    place: str
    """Where they are, for the record: a folder, an address."""
    find: Callable[[str], Path | bytes | None]
    """A picture's file, or its bytes; None where there need be none: of features computed beforehand."""


def load_image(
    source: str | os.PathLike[str] | bytes | BinaryIO | Image.Image,
    draft: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Decode a picture to RGB, 8 bits a channel, upright; the module's table says how.

    Args:
        source: a path, a file's bytes, an open binary file, or a PIL image (not copied where nothing is to
            do).
        draft: JPEGs may be decoded at 1/2, 1/4 or 1/8 of their size, as long as the shorter side keeps at
            least this many pixels (DCT scaling: two to four times faster). Other sources ignore it.
        max_pixels: width × height above which a file is refused.

    Raises:
        ImageError: there is no such file, or it cannot be decoded.
    """
    if isinstance(source, Image.Image):
        try:
            return _upright_rgb(source)
        except Exception as error:
            name = getattr(source, "filename", "") or "image"
            raise ImageError(f"{name}: damaged or truncated ({error}): {AGAIN}") from error
    name = _name(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.width * image.height > max_pixels:
                raise ImageError(_too_large(name, f"{image.width} × {image.height}", max_pixels))
            if image.format == "EPS":  # Pillow would start Ghostscript on it
                raise ImageError(f"{name}: a drawing (EPS): render it to PNG first")
            if draft:
                image.draft(None, (draft, draft))
            return _upright_rgb(image)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        limit = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise ImageError(_too_large(name, "too many", limit)) from error
    except Exception as error:  # decoders raise nearly every kind on damaged files
        raise ImageError(_diagnosis(source, name, error)) from error


def picture_files(folder: Path) -> list[Path]:
    """The files in a folder, and in those within, whose names end as those of pictures do, sorted."""
    Image.init()
    known = {extension for extension, kind in Image.EXTENSION.items() if kind in Image.OPEN}
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file())


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    orientation = 1
    with contextlib.suppress(Exception):
        orientation = image.getexif().get(ORIENTATION, 1)
    if orientation != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.float32) / 65535)
    if image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0, neginf=0)
        if image.mode == "I" and values.min() >= 0 and values.max() <= 65535:  # as PGM's 16 bits arrive
            return _grey(values / 65535)
        low, high = values.min(), values.max()
        return _grey((values - low) / (high - low or 1))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(values: np.ndarray) -> Image.Image:
    """(H, W) in [0, 1] → RGB."""
    return Image.fromarray((values * 255 + 0.5).astype(np.uint8)).convert("RGB")


def _name(source: str | os.PathLike[str] | bytes | BinaryIO) -> str:
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    return str(source if isinstance(source, str | os.PathLike) else getattr(source, "name", "<file>"))


def _too_large(name: str, size: str, limit: int) -> str:
    return f"{name}: {size} pixels, and the limit is {limit / 1e6:.0f} million: scale it down, or {LEAVE_OUT}"


def _diagnosis(source: str | os.PathLike[str] | bytes | BinaryIO, name: str, error: Exception) -> str:
    """What is wrong with a file that Pillow failed on, and what helps."""
    if isinstance(error, FileNotFoundError):
        return f"{name}: no such file"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{name}: {error.strerror}"
    head = _head(source)
    if head == b"":
        return f"{name}: empty (0 bytes): {AGAIN}"
    if isinstance(error, UnidentifiedImageError) and head and not head.startswith(SIGNATURES):
        text = head.lower()
        if b"<svg" in text:
            return f"{name}: a drawing (SVG): render it to PNG first"
        if b"<html" in text or b"<!doctype html" in text:
            return f"{name}: a web page, not a picture: download it again"
        if text.startswith(b"version https://git-lfs"):
            return f"{name}: a Git LFS pointer, not the picture itself: run `git lfs pull`"
        return f"{name}: no picture in a format that Pillow {PIL.__version__} reads: convert it to JPEG or PNG"
    return f"{name}: damaged or truncated ({error}): {AGAIN}"


def _head(source: str | os.PathLike[str] | bytes | BinaryIO) -> bytes | None:
    """A file's beginning; None where it cannot be had again."""
    if isinstance(source, bytes):
        return source[:1024]
    try:
        if isinstance(source, str | os.PathLike):
            with open(source, "rb") as file:
                return file.read(1024)
        source.seek(0)
        return source.read(1024)
    except OSError:
        return None
