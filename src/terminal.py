"""What is printed to a terminal: file names and captions may hold what a terminal takes for commands."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_COMMANDS = re.compile(
    r"\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters, but for tab and the ends of lines, none of which is a carriage return alone; those that turn the
direction of text; and what of a name is no UTF-8, which cannot be printed."""
_UP = re.compile(r"\n*(\x1b\[A)+|\x1b\[K|\x1b\[\?25[hl]")
"""tqdm's own."""


def escaped(text: str) -> str:
    """The same, with what a terminal would obey written out: `\\x1b`."""
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Guarded:
    """A stream to a terminal, to which nothing is written that it would obey."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, escaped."""
        start = "\r" if text.startswith("\r") else ""  # tqdm's own, too
        self._stream.write(text if _UP.fullmatch(text) else start + escaped(text.removeprefix(start)))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)


@contextmanager
def guarded() -> Iterator[None]:
    """In a `with` block, stdout and stderr are guarded where they are terminals. What is piped or written stays as it
    is."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Guarded(each) if each is not None and each.isatty() else each for each in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
