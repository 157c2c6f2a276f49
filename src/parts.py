"""Lines on many items, written as they are found, by one process or several, and joined in order at the end. What a
stopped call has found is taken up by the same call again."""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from src.distributed import Place, barrier


class Parts:
    """A text file in the making: beside it each process keeps a part of its own, a JSON line an item.

    Args:
        output: the file; its folder is made.
        key: what the lines depend on, in a word without dots; parts of another key are not taken up.
        items: how many there are.
        here: which of the processes this is.
    """

    def __init__(self, output: Path, key: str, items: int, here: Place) -> None:
        self.output, self.here, self.key = output, here, key
        output.parent.mkdir(parents=True, exist_ok=True)
        done = dict(self._found())
        self.done = len(done)
        """Items that an earlier call has lines on."""
        self.share = [item for item in range(items) if item not in done][here.rank :: here.world]
        """Items that are for this process to do."""
        barrier()  # none writes before all have read
        path = output.with_name(f"{output.name}.{key}.{here.rank}.part")
        path.touch()
        self.file = path.open("r+b")
        self.file.truncate(self.file.read().rfind(b"\n") + 1)  # an earlier call may have ended within a line
        self.file.seek(0, os.SEEK_END)

    def _all(self) -> dict[Path, str]:
        """The parts of any call and process, and their keys."""
        named = re.compile(rf"{re.escape(self.output.name)}\.([^.]+)\.\d+\.part")
        return {p: found[1] for p in sorted(self.output.parent.iterdir()) if (found := named.fullmatch(p.name))}

    def _found(self) -> Iterator[tuple[int, list[str]]]:
        for path in (path for path, key in self._all().items() if key == self.key):
            for line in path.read_bytes().split(b"\n")[:-1]:  # an earlier call may have ended within a character
                item, lines = json.loads(line)
                yield item, lines

    def add(self, item: int, lines: Sequence[str]) -> None:
        """The lines on an item; after `flush` they outlast this process."""
        self.file.write(json.dumps([item, list(lines)], ensure_ascii=False).encode() + b"\n")

    def flush(self) -> None:
        self.file.flush()

    def join(self, pieces: Callable[[Iterator[str]], Iterable[str]] | None = None) -> int:
        """When all processes are done, have the first write the file and remove the parts. Returns how many items have
        lines.

        Args:
            pieces: all lines → what the file consists of; by default each ends in a line break.

        Raises:
            RuntimeError: another process has died.
        """
        self.file.close()
        barrier()
        if self.here.rank:
            return 0
        found = dict(self._found())
        if not found:  # what an earlier call has written is not lost to one that could read nothing
            self._forget()
            return 0
        partial = self.output.with_name(self.output.name + ".partial")
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            lines = (line for item in sorted(found) for line in found[item])
            file.writelines((f"{line}\n" for line in lines) if pieces is None else pieces(lines))
        os.replace(partial, self.output)
        self._forget()
        return len(found)

    def _forget(self) -> None:
        for path in self._all():
            path.unlink()
