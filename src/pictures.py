"""What people name as pictures: files, folders, patterns, addresses, and pictures in memory."""

import glob
import io
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
from PIL import Image
from torch import Tensor

from src.addresses import opened
from src.bundle import looks_saved
from src.data.images import ImageError, picture_files
from src.data.regions import ReadRegions

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp", ".ogv")
"""Endings of files that are taken for videos."""
MAX_BYTES = 100_000_000
"""Of a picture behind an address."""
PATIENCE = 30
"""Seconds that an address may say nothing."""
ENDS = 300
"""Seconds in which a picture must have come."""

Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Tensor | ReadRegions
"""A path, an address, a file's bytes, a picture in memory (see `as_image`), or its regions computed beforehand."""


def is_address(name: Any) -> bool:
    """Whether it is a picture's address (http, https) rather than its path."""
    return isinstance(name, str) and name.lower().startswith(("http://", "https://"))


def is_video(name: str | os.PathLike[str]) -> bool:
    """Whether a file's name is a video's."""
    return str(name).lower().endswith(VIDEOS)


def find_pictures(
    arguments: Sequence[str], names: bool = False, urls: bool = False, videos: bool = False
) -> list[Path | str]:
    """Files as given, pictures below folders (sorted), what globs match, and addresses (strings), each once.

    Args:
        arguments: what the user named.
        names: whether an argument that names nothing is a picture of which there are only regions.
        urls: whether there may be addresses.
        videos: whether there may be videos, which are in no folder, but named, or match a pattern.

    Raises:
        ValueError: an argument that names nothing, a captioner, a folder without pictures, or what may not be there.
    """
    found: dict[Path | str, None] = {}
    for argument in arguments:
        if not argument:
            raise ValueError("a name that is empty: name a file, a folder or a pattern; . is this folder")
        path = Path(argument)
        inside: list[Path | str]
        if is_address(argument):
            if not urls:
                raise ValueError(
                    f"{argument}: an address, and nothing is fetched unless asked for: --urls of "
                    "`python -m src.caption`, urls=True of a Captioner"
                )
            inside = [argument]
        elif looks_saved(path):
            raise ValueError(f"{argument}: a captioner, no picture; write --model before it")
        elif path.is_dir():
            inside = [each for each in picture_files(path) if not is_video(each)]
            if not inside:
                clips = next((each for each in sorted(path.rglob("*")) if is_video(each)), None)
                hint = f"; videos are named one by one, or as a pattern: '{path}/*{clips.suffix}'" if clips else ""
                raise ValueError(f"{argument}: no pictures in this folder{hint}")
        elif path.is_file():
            inside = [path]
        else:
            inside = sorted(Path(p) for p in glob.glob(argument, recursive=True) if Path(p).is_file())
            if not inside and names:
                inside = [path]
            if not inside:
                raise ValueError(f"{argument}: no such file or folder, and no file matches it as a pattern")
        if not videos and (clip := next((each for each in inside if is_video(each)), None)):
            raise ValueError(f"{clip}: a video, not a picture; `python -m src.caption {clip}` captions its scenes")
        found |= dict.fromkeys(inside)
    return list(found)


def each_picture(pictures: Picture | Iterable[Any], names: bool = False, urls: bool = False) -> Iterator[Picture]:
    """One picture, or any number, nested as they may be: folders and patterns become their files, batches (B, …) of
    arrays and tensors their pictures, files that are open (in binary) their bytes.

    Args:
        pictures: what there is.
        names, urls: as in `find_pictures`.

    Raises:
        ValueError: as `find_pictures`.
        TypeError: something that is no picture.
    """
    if isinstance(pictures, np.ndarray | Tensor):
        if pictures.ndim == 4:
            yield from pictures
        else:
            yield pictures
    elif isinstance(pictures, bytes | Image.Image | ReadRegions):
        yield pictures
    elif isinstance(pictures, io.IOBase):
        yield pictures.read()
    elif isinstance(pictures, str | os.PathLike):
        yield from find_pictures([os.fspath(pictures)], names, urls)
    elif isinstance(pictures, Iterable):
        each: Any
        for each in pictures:
            yield from each_picture(each, names, urls)
    else:
        raise TypeError(
            f"{type(pictures).__name__}: no picture; a path, an address, a PIL image, an array (H, W, 3), a tensor "
            "(3, H, W) or several of them are"
        )


def as_image(pixels: np.ndarray | Tensor) -> Image.Image:
    """A picture in memory as a PIL image.

    Args:
        pixels: an array (H, W, C) or (H, W), or a tensor (C, H, W) or (H, W), of grey, RGB or RGBA (C 1, 3, 4): uint8,
            or floats in [0, 1].

    Raises:
        ImageError: another shape, type or range.
    """
    kind = "a tensor (C, H, W)" if isinstance(pixels, Tensor) else "an array (H, W, C)"
    array = pixels.detach().cpu().float().numpy() if isinstance(pixels, Tensor) and pixels.is_floating_point() else None
    if array is None:
        array = np.asarray(pixels.detach().cpu() if isinstance(pixels, Tensor) else pixels)
    shape = tuple(array.shape)
    if isinstance(pixels, Tensor) and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or not array.size:
        raise ImageError(f"a picture of shape {shape}: {kind} with 1, 3 or 4 channels is wanted")
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ImageError(
                f"a picture of floats from {array.min():g} to {array.max():g}: give them in [0, 1], or uint8"
            )
        array = (array * 255 + 0.5).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ImageError(f"a picture of {array.dtype}: uint8, or floats in [0, 1], are wanted")
    return Image.fromarray(np.ascontiguousarray(array))


@contextmanager
def naming(picture: Any) -> Iterator[None]:
    """What is wrong, for a `with` block, with the bytes behind an address is an error that names the address."""
    try:
        yield
    except ImageError as error:
        if not is_address(picture):
            raise
        raise ImageError(f"{picture}: {str(error).partition(': ')[2]}") from error


def fetch(address: str, most: int = MAX_BYTES) -> bytes:
    """The file behind an address (http, https).

    Raises:
        ImageError: it cannot be had, or is larger than `most` bytes; the message names it.
    """
    try:
        parts, size, until = [], 0, time.monotonic() + ENDS
        with opened(address, PATIENCE) as answer:
            while size <= most and (part := answer.read1(1 << 16)):
                parts.append(part)
                size += len(part)
                if time.monotonic() > until:
                    raise TimeoutError(f"it did not come within {ENDS} s")
            if size <= most and answer.length:  # what was announced and did not come
                raise IncompleteRead(b"", answer.length)
        data = b"".join(parts)
    except (OSError, ValueError, HTTPException) as error:
        plain = isinstance(error, HTTPError) or not getattr(error, "reason", None)
        why = str(error) if plain else str(error.reason)  # type: ignore[union-attr]
        raise ImageError(f"{address}: {why or type(error).__name__}") from error
    if len(data) > most:
        raise ImageError(f"{address}: more than {most / 1e6:.0f} MB: download it and scale it down")
    return data
