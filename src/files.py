"""Files that several processes use at once."""

import logging
import os
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

log = logging.getLogger(__name__)


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file or none of it, and the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)


def locked(path: Path, doing: str) -> AcquireReturnProxy:
    """Hold the lock file `path` for a `with` block; where another process holds it, say that `doing` is waited for."""
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process: %s", doing)
        return lock.acquire()
