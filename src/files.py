"""Files that several processes use at once, disks that are full, and readers that have gone."""

import errno
import json
import logging
import os
import secrets
import select
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

log = logging.getLogger(__name__)


@contextmanager
def read_in_part() -> Iterator[None]:
    """Print, in a `with` block, what its reader need not read to the end (`… | head`): no error, and nothing more is
    printed by this process."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        poll = select.poll()
        poll.register(sys.stdout, 0)
        if not poll.poll(0):
            raise  # another pipe's
        # What is buffered would be an error again as the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class DiskFull(OSError):
    """There is no room for a file; the message says which, how much room there is, and what to do."""


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_full(error: BaseException) -> bool:
    """Whether it says that a disk, or the user's share of it, is full."""
    # safetensors' and torch's are no OSErrors, and say it in words
    return getattr(error, "errno", None) in FULL or "No space left on device" in str(error)


@contextmanager
def _as_disk_full(told: Callable[[Exception], str]) -> Iterator[None]:
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        raise DiskFull(told(error)) from error


def room_for(path: Path, size: int | None = None, then: str = "call it again") -> AbstractContextManager[None]:
    """Say which file there was no room for, where a `with` block finds a disk full.

    Args:
        path: what the block writes, and nothing else.
        size: bytes that it needs, where that is known.
        then: what to do when there is room.

    Raises:
        DiskFull: the disk, or the user's share of it, is full.
    """

    def told(error: Exception) -> str:
        there = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
        why = getattr(error, "strerror", None) or "No space left on device"
        needed = f"{size / 1e6:,.1f} MB are needed, " if size is not None else ""
        free = f"{shutil.disk_usage(there).free / 1e6:,.1f} MB are free"
        return (
            f"{path}: there is no room for it ({why}: {needed}{free}); what was written before is whole: make room, "
            f"and {then}"
        )

    return _as_disk_full(told)


def room_among(folders: Iterable[Path], then: str) -> AbstractContextManager[None]:
    """Say how much room there is, where a `with` block finds a disk full and does not say for what.

    Args:
        folders: that the block writes to, and libraries in it.
        then: what to do when there is room.

    Raises:
        DiskFull: a disk, or the user's share of it, is full.
    """

    def told(error: Exception) -> str:
        free = {folder: shutil.disk_usage(folder).free for folder in folders if folder.is_dir()}
        listed = ", ".join(f"{room / 1e6:,.1f} MB in {folder}" for folder, room in free.items())
        why = str(error).strip().splitlines()[-1]  # of a loading process, under its traceback
        return f"a disk is full ({why}); free are {listed}: make room, and {then}"

    return _as_disk_full(told)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block has written it and it is on the disk;
    nothing is left where the block fails. For files that one process alone writes, over what a killed one left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        onto_disk(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    onto_disk(path.parent)  # the new name, too


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new, empty folder beside `folder`, which takes its place when the block has filled it; nothing is left where
    the block fails. What lies beside it is nobody else's: the temporary names are new ones."""
    own = f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}"
    partial, old = (folder.with_name(own + ending) for ending in (".partial", ".old"))
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(partial, folder)
        except BaseException:
            if old.exists():
                os.replace(old, folder)
            raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def onto_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk itself."""
    if path.is_dir() and os.name == "nt":
        return  # where folders cannot be opened
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that have no such thing
            raise
    finally:
        os.close(number)


def read_json(text: str | bytes) -> Any:
    """A JSON text.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def encodable(text: str) -> str:
    """Bytes of a file name that are not UTF-8 as `\\udc..`, which JSON reads back as it was."""
    return text.encode(errors="backslashreplace").decode()


def check_names(paths: Iterable[Path | str], mend: str = "rename it") -> None:
    """Refuse paths that a line of a TSV cannot hold; `mend` says what helps.

    Raises:
        ValueError: one sentence that names the first.
    """
    if (split := next((str(path) for path in paths if any(c in str(path) for c in "\t\n\r")), None)) is not None:
        raise ValueError(f"{split!r}: a tab or line break in its name, which no TSV has: {mend}")


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file or none of it, and the folder that it lies in.

    Raises:
        DiskFull: there is no room; what was there is there still.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with room_for(path):
        try:
            partial.write_text(text, encoding="utf-8", newline="\n")
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def locked(path: Path, doing: str) -> AcquireReturnProxy:
    """Hold the lock file `path` for a `with` block; where another process holds it, say that `doing` is waited for."""
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process: %s", doing)
        return lock.acquire()
