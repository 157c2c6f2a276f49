"""What is sent as a picture → a picture, or a refusal with the fitting status; and the thumbnails that go back."""

import contextlib
import hmac
import io
import os
import re
import secrets
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError, features

from src.data.images import ORIENTATION, ImageError, load_image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", *(["AVIF"] if "avif" in features.get_supported() else []))
"""Pillow's names; of its many decoders no others see what strangers send. JPEG's takes cameras' MPO, too."""
READ = ", ".join(FORMATS).replace("WEBP", "WebP")
SCANS = 100
"""Of a JPEG, at most. Programs write ten; each goes over all pixels, though it be of a few bytes."""
MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
"""Of a JPEG's segments, those that have a length, or end it; FF 00 is a byte of a scan's data."""


class Refused(Exception):
    """A request that is not answered as it asks.

    Args:
        status: HTTP's.
        reason: one sentence, for whoever sent it.
        headers: of the answer.
    """

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, dict(headers or {})


class Limits(NamedTuple):
    """Of one request."""

    bytes: int = 20_000_000
    """Of its body."""
    pixels: int = 50_000_000
    """Of each picture, by its header."""
    pictures: int = 32
    seconds: float = 30.0
    """For its body to arrive, and from then on for its answer."""


def scans(data: bytes) -> int:
    """Of a JPEG file the scans of its picture, or of the first of several, counted up to one above SCANS; what is in
    other segments (thumbnails), or behind its end (a phone's film), does not count."""
    count, at = 0, 0
    while count <= SCANS and (found := MARKER.search(data, at)) and found[1] != b"\xd9":
        count += found[1] == b"\xda"
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    return count


def opened(data: bytes, name: str, limits: Limits, draft: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """A file's bytes → RGB, upright, of an animation the first frame (see `src.data.images`), and the width and height
    that it has in full.

    Args:
        data: the file.
        name: what the sender calls it.
        limits: `pixels` is held before anything is decoded, and so is SCANS.
        draft: as `load_image`: JPEGs may be decoded smaller.

    Raises:
        Refused: 400 empty, damaged or a JPEG of more than SCANS, 413 too many pixels, 415 no picture in FORMATS.
    """
    if not data:
        raise Refused(400, f"{name}: empty (0 bytes): choose a picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is the limit
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        with image:
            if image.width * image.height > limits.pixels:
                raise Refused(
                    413,
                    f"{name}: {image.width} × {image.height} pixels, and the limit is {limits.pixels / 1e6:g} million: "
                    "scale it down",
                )
            if image.format in ("JPEG", "MPO") and scans(data) > SCANS:
                raise Refused(400, f"{name}: a JPEG of more than {SCANS} scans: save it anew")
            full = image.size
            if draft:
                image.draft(None, (draft, draft))
            turned = False
            with contextlib.suppress(Exception):  # damaged EXIF counts as none
                turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
            return load_image(image), full[::-1] if turned else full
    except Refused:
        raise
    except Image.DecompressionBombError as error:
        limit = f"{limits.pixels / 1e6:g} million"
        raise Refused(413, f"{name}: too many pixels, and the limit is {limit}: scale it down") from error
    except UnidentifiedImageError as error:
        raise Refused(415, f"{name}: not a picture in a format that is read here ({READ}): convert it") from error
    except Exception as error:  # decoders raise nearly every kind on damaged files
        raise Refused(400, f"{name}: damaged or truncated: save or copy it again") from error


def jpeg(image: Image.Image, side: int) -> bytes:
    """An RGB picture as a JPEG, `side` pixels at most on its longer side, without any metadata."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    Image.frombytes("RGB", small.size, small.tobytes()).save(buffer, "JPEG", quality=85, optimize=True)
    return buffer.getvalue()


class Shown:
    """Names of pictures that searches found. Nothing else has one, and nobody can make one up: they depend on a secret
    that ends with the service."""

    MOST = 100_000
    """The longest ago forgotten first."""
    KEPT, KEPT_BYTES = 256, 32_000_000
    """Thumbnails."""

    def __init__(self) -> None:
        self.secret = secrets.token_bytes(32)
        self.paths: OrderedDict[str, str] = OrderedDict()
        self.made: OrderedDict[tuple[str, int, int], bytes] = OrderedDict()
        """By path, side and the file's time."""

    def name(self, path: str) -> str:
        """Of a picture, its name from now on."""
        name = hmac.new(self.secret, os.fsencode(path), "sha256").hexdigest()[:32]
        self.paths[name] = path
        self.paths.move_to_end(name)
        if len(self.paths) > self.MOST:
            self.paths.popitem(last=False)
        return name

    def thumbnail(self, name: str, side: int, limits: Limits) -> bytes:
        """A picture as a JPEG, made anew; Refused, 404, where it has no such name or cannot be read. For one thread."""
        path = self.paths.get(name)
        if path is None:
            raise Refused(404, "no such picture: search anew")
        try:
            key = path, side, os.stat(path).st_mtime_ns
            if key not in self.made:
                self.made[key] = jpeg(load_image(path, draft=side, max_pixels=limits.pixels), side)
        except (ImageError, OSError) as error:
            raise Refused(404, "this picture's file cannot be read any more") from error
        self.made.move_to_end(key)
        made = self.made[key]
        while len(self.made) > self.KEPT or sum(map(len, self.made.values())) > self.KEPT_BYTES:
            self.made.popitem(last=False)
        return made
