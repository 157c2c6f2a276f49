"""Writing files."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file or none of it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)
