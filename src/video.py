"""Videos → scenes: where the picture changes, and one frame of each."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

SAMPLES = 8.0
"""Frames a second that are looked at, at most."""
SMALL = (64, 36)
"""Width and height at which frames are compared."""
CHANGE = 0.33
"""Of `difference`, from which a scene is another one."""
SHORTEST = 0.5
"""Seconds that a scene lasts, at least: flashes and cross-fades are no scenes."""
KEPT = 32
"""Frames of a scene that are remembered, at most twice as many: its middle one is among them, or near."""


class VideoError(ValueError):
    """A video that cannot be used; the message names it and says how to mend it."""


class Frame(NamedTuple):
    time: float
    """Seconds from the video's beginning."""
    image: Image.Image


class Scene(NamedTuple):
    start: float
    """Seconds from the video's beginning."""
    end: float
    frame: Frame
    """Its middle one, or near it."""


def frames(video: str | Path, rate: float = SAMPLES, side: int | None = None) -> Iterator[Frame]:
    """A video's frames, upright, in order, no more than `rate` a second.

    Args:
        video: a file, or what else FFmpeg opens, such as a camera's address.
        rate: frames a second, at most.
        side: frames are scaled so that their shorter side has about so many pixels, where it has more.

    Raises:
        VideoError: it cannot be read, has no pictures, or PyAV is missing.
    """
    with _opened(video) as container:
        if not container.streams.video:
            raise VideoError(f"{video}: no pictures in it, only sound or text")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        first = due = None
        for frame in container.decode(stream):
            if frame.time is None:
                continue
            first = frame.time if first is None else first
            time = frame.time - first
            if due is not None and time < due - 1e-6:
                continue
            # Samples lie on a grid of times: a rate that does not divide the video's own is met on average.
            due = (np.floor(time * rate + 1e-6) + 1) / rate
            yield Frame(float(time), _upright(frame, side))
        if first is None:
            raise VideoError(f"{video}: no picture in it can be decoded: copy it again")


def duration(video: str | Path) -> float | None:
    """Seconds, where the video says so.

    Raises:
        VideoError: as `frames`.
    """
    with _opened(video) as container:
        return None if container.duration is None else container.duration / 1e6  # AV_TIME_BASE


@contextmanager
def _opened(video: str | Path) -> Iterator[Any]:
    """What PyAV opens; what goes wrong with it, until it is closed, is a VideoError."""
    try:
        import av
    except ImportError as error:
        raise VideoError(f"{video}: videos need PyAV: `pip install av` first") from error
    # A whole path, as FFmpeg takes the beginning of 12:30.mp4 for a protocol.
    place = str(video) if "://" in str(video) else str(Path(video).absolute())
    try:
        with av.open(place, metadata_errors="replace") as container:
            yield container
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(_diagnosis(video, error)) from error


def scenes(video: str | Path, change: float = CHANGE, every: float | None = None) -> Iterator[Scene]:
    """A video's scenes, in order, each as it ends.

    A scene ends where a frame differs by `change` from the one before, or from the scene's first frame, to which fades
    and pans lead away slowly. One that is `every` seconds long ends, too.

    Args:
        video: as in `frames`.
        change: from which `difference` on, in (0, 1].
        every: seconds; None: as long as the picture stays.

    Raises:
        VideoError: as `frames`.
    """
    remembered: list[Frame] = []
    stride = count = 0
    start = last = 0.0
    first: np.ndarray | None = None
    before = np.zeros(0)
    gap = 1 / SAMPLES
    for frame in frames(video, side=512):
        look = _small(frame.image)
        if first is not None:
            gap = frame.time - last
        age = frame.time - start
        changed = first is not None and max(difference(before, look), difference(first, look)) >= change
        if first is None or (changed and age >= SHORTEST) or (every is not None and age >= every):
            if first is not None:
                yield Scene(start, frame.time, remembered[len(remembered) // 2])
            remembered, stride, count, start, first = [], 1, 0, frame.time, look
        elif age < SHORTEST:  # in its first moments, as of a cross-fade, a scene has not settled yet
            first = look
            if changed:
                remembered, stride, count = [], 1, 0
        if count % stride == 0:
            remembered.append(frame)
            if len(remembered) == 2 * KEPT:
                remembered, stride = remembered[::2], 2 * stride
        count, before, last = count + 1, look, frame.time
    yield Scene(start, last + gap, remembered[len(remembered) // 2])


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """How much two small frames (h, w, 3) in [0, 1] differ, in [0, 1]: the geometric mean of how much their colours
    do, wherever they are (half the L1 distance of histograms of 4 × 4 × 4 colours), and how much they do place by
    place (the mean absolute difference over a half). What moves through a picture keeps its colours, and a change of
    light keeps its places; a cut keeps neither."""
    colours = [np.bincount(_bins(each), minlength=64) / each[..., 0].size for each in (a, b)]
    return float(np.sqrt(np.abs(colours[0] - colours[1]).sum() / 2 * min(1.0, 2 * np.abs(a - b).mean())))


def _bins(frame: np.ndarray) -> np.ndarray:
    return ((frame * 3.999).astype(np.int64) @ (16, 4, 1)).ravel()


def _small(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize(SMALL, Image.Resampling.BOX), dtype=np.float32) / 255


def _upright(frame: Any, side: int | None) -> Image.Image:
    """A decoded frame as RGB, turned as the camera was held."""
    scale = 1.0 if side is None else min(1.0, side / min(frame.width, frame.height))
    image = frame.to_image(width=max(1, round(frame.width * scale)), height=max(1, round(frame.height * scale)))
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _diagnosis(video: str | Path, error: Exception) -> str:
    why = getattr(error, "strerror", None) or str(error)
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return f"{video}: {why}"
    return f"{video}: no video, or a damaged one ({why}): copy it again"
