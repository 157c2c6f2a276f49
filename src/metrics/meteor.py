"""METEOR 1.5 (Denkowski and Lavie, WMT 2014), as pycocoevalcap runs it, from one Java process."""

import contextlib
import os
import re
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO

import numpy as np

from src.metrics.java import java_environment, pycocoevalcap_folder, require_java

STATISTICS = 23
"""Numbers that METEOR is computed from, an image: lengths and function words of caption and reference, matched content
and function words of both by each of four matchers, chunks, matched words of both."""
_CHUNKS = 20
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75  # METEOR 1.5's for English
_MATCHERS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase

_SEPARATOR = " ||| "
_NORMALIZED = {"en", "cz", "de", "es", "fr"}  # the languages that METEOR has a normalizer for


class MeteorError(RuntimeError):
    """METEOR's process ended or answered something else than scores; says what it printed."""


def meteor_of(statistics: np.ndarray) -> np.ndarray:
    """Sums of images' statistics (…, STATISTICS), as `Meteor.score` gives them → METEOR (…), as its Java computes it
    for English: where a sum is drawn thousands of times, asking Java would take hours."""
    length, other, function, other_function = (statistics[..., i] for i in range(4))
    matched = statistics[..., 4:_CHUNKS].reshape(*statistics.shape[:-1], len(_MATCHERS), 4)
    own = (_DELTA * matched[..., 0] + (1 - _DELTA) * matched[..., 2]) @ _MATCHERS
    theirs = (_DELTA * matched[..., 1] + (1 - _DELTA) * matched[..., 3]) @ _MATCHERS
    chunks, words, other_words = (statistics[..., _CHUNKS + i] for i in range(3))
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = own / (_DELTA * (length - function) + (1 - _DELTA) * function)
        recall = theirs / (_DELTA * (other - other_function) + (1 - _DELTA) * other_function)
        mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        fragmentation = chunks / ((words + other_words) / 2)
        return np.nan_to_num(mean * (1 - _GAMMA * fragmentation**_BETA))


class Meteor:
    """METEOR from one process, started on first use, kept until `close`, the end of a `with` or of Python.

    Loading the paraphrase table takes seconds and some 750 MB, scoring a thousand images about one second:
    share an instance (`shared_meteor`). Threads may share it too; their calls wait for one another.
    `language` is METEOR's `-l`; pycocoevalcap has no paraphrases but English ones, so that `cz`, `de`, `es`
    and `fr`, which METEOR won't score without, raise MeteorError.
    """

    def __init__(self, language: str = "en") -> None:
        self.language = language
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._stop: weakref.finalize | None = None

    @property
    def pid(self) -> int | None:
        """The Java process's id; None before it starts and after `close`."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Starts the process and returns at once: it loads its tables while the caller does something else.

        Raises JavaNotFound without a Java.
        """
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            self.close()
            folder = pycocoevalcap_folder("meteor")
            # A heap of 1 GB holds it (pycocoevalcap asks for 2); one that needn't grow loads a little sooner.
            # METEOR looks for its paraphrases by the quoted URL of its jar, which fails where the path has a
            # space, so it's told the place, relative to its folder.
            command = [
                require_java("METEOR"),
                "-Xms1G",
                "-Xmx1G",
                "-XX:+UseParallelGC",
                "-Dfile.encoding=UTF-8",
            ]
            command += ["-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", self.language]
            command += ["-norm"] if self.language in _NORMALIZED else []
            paraphrases = f"data/paraphrase-{self.language}.gz"
            if (folder / paraphrases).exists():
                command += ["-a", paraphrases]
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (a pipe that nobody reads could block)
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=java_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
            )
            # Unlike __del__, a finalizer also runs at exit, while everything it needs is still there.
            self._stop = weakref.finalize(self, _stop, self._process, self._errors, os.getpid())

    def score(
        self, references: Mapping[str, Sequence[str]], candidates: Mapping[str, Sequence[str]]
    ) -> tuple[float, list[float], np.ndarray]:
        """Corpus METEOR in [0, 1], from summed statistics, each image's, in the candidates' order, and those statistics
        (images, STATISTICS), which `meteor_of` takes.

        Captions are space-joined tokens, one candidate an image. Raises JavaNotFound, or MeteorError when the
        process fails; the next call then starts a fresh one.
        """
        lines = [_score_line(references[image], caption) for image, (caption,) in candidates.items()]
        with self._lock:
            self.start()
            try:
                statistics = self._ask(lines, len(lines))
                scores = self._ask([_SEPARATOR.join(["EVAL", *statistics])], len(lines) + 1)
                values = [float(score) for score in scores]
                counts = np.array([row.split() for row in statistics], dtype=np.float64).reshape(-1, STATISTICS)
            except MeteorError:
                self.close()
                raise
            except ValueError as error:
                self.close()
                raise MeteorError(f"METEOR answered something else than scores: {error}") from error
            except BaseException:  # interrupted: answers are still under way that would be taken for the next call's
                self.close()
                raise
        perfect = (counts[:, _CHUNKS] == 1) & (counts[:, -2:] == counts[:, :2]).all(1)
        counts[perfect, _CHUNKS] = 0  # as METEOR itself adds captions up that equal their reference
        return values[-1], values[:-1], counts

    def _ask(self, lines: Sequence[str], answers: int) -> list[str]:
        """Sends all lines at once, so that METEOR needn't wait for us in between, and reads answers."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        writer = threading.Thread(target=_write, args=(process.stdin, lines), daemon=True)
        writer.start()
        read: list[str] = []
        for _ in range(answers):
            answer = process.stdout.readline().decode("utf-8", errors="replace")
            if not answer or answer.startswith("Error"):
                raise MeteorError(f"METEOR stopped after {len(read)} of {answers} answers. {answer}{self._printed()}")
            read.append(answer.strip())
        writer.join()
        return read

    def _printed(self) -> str:
        assert self._errors is not None and self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)
        self._errors.seek(0)
        return self._errors.read().decode("utf-8", errors="replace").strip()[-1000:]

    def close(self) -> None:
        """Ends the process, if there is one; the next `score` starts another."""
        with self._lock:
            if self._stop is not None:
                self._stop()
            self._process = self._errors = self._stop = None

    def __enter__(self) -> "Meteor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _score_line(references: Sequence[str], candidate: str) -> str:
    # The double-space replacement is pycocoevalcap's. Line ends and bars would be read as METEOR's own
    # protocol.
    candidate = candidate.replace("|||", "").replace("  ", " ")
    cleaned = [reference.replace("|||", "") for reference in references]
    return re.sub(r"[\r\n]+", " ", _SEPARATOR.join(["SCORE", *cleaned, candidate]))


def _write(stream: IO[bytes], lines: Sequence[str]) -> None:
    with contextlib.suppress(OSError, ValueError):  # the process ended: the reader sees that, and says why
        stream.write("".join(line + "\n" for line in lines).encode("utf-8", errors="replace"))
        stream.flush()


def _stop(process: subprocess.Popen[bytes], errors: IO[bytes], owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked child has no say over its parent's METEOR
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, errors):
        with contextlib.suppress(OSError):
            if stream is not None:
                stream.close()


_shared: dict[str, Meteor] = {}
_shared_lock = threading.Lock()


def shared_meteor(language: str = "en") -> Meteor:
    """The one Meteor of this Python process, not yet started when first asked for."""
    with _shared_lock:
        return _shared.setdefault(language, Meteor(language))
