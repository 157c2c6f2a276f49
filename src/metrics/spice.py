"""SPICE (Anderson et al., ECCV 2016, https://arxiv.org/abs/1607.08822), from the jar that pycocoevalcap runs.

The jar comes with pycocoevalcap, the parser that it needs doesn't: Stanford CoreNLP 3.6.0 (half a gigabyte) is in a
folder that the user names. No other program's score is given out as SPICE.
"""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from src.metrics.java import find_java, java_environment, pycocoevalcap_folder, require_java

PARSER_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
"""What the user's folder must have."""

# The jar prints its JSON prettily by JavaScript, which Java has an engine for (Nashorn) from 8 to 14 only. The
# same engine comes as jars of its own (its pom names the asm ones), which the user's folder may have too.
_LAST_WITH_JAVASCRIPT = 14
_JAVASCRIPT = "nashorn-core-*.jar"


class SpiceError(RuntimeError):
    """SPICE can't be computed, or its process failed; says in a sentence what is missing or what Java printed."""


def missing_jars(jars: Path) -> list[str]:
    """The names of those of `PARSER_JARS` that the folder lacks; both where there is no such folder."""
    return [name for name in PARSER_JARS if not (jars / name).is_file()]


def obstacle(jars: Path) -> str | None:
    """Why SPICE can't be computed with this folder and Java, in a sentence that says what to get; None where it can.

    It takes a moment, so that a user hears of it before hours of captioning, not after.
    """
    if missing := missing_jars(jars):
        wrong = f"lacks {' and '.join(missing)}" if jars.is_dir() else "is not a directory"
        return (
            f"{jars} {wrong}: get stanford-corenlp-full-2015-12-09 (CoreNLP 3.6.0) from "
            f"https://stanfordnlp.github.io/CoreNLP/history.html and name the folder that has its {PARSER_JARS[0]} "
            f"and {PARSER_JARS[1]}"
        )
    mend = f"put a Java of 8 to {_LAST_WITH_JAVASCRIPT} first on the PATH"
    java = find_java()
    if java is None:
        return f"SPICE needs Java, and none was found: {mend}"
    version = _java_version(java)
    if version > _LAST_WITH_JAVASCRIPT and not any(jars.glob(_JAVASCRIPT)):
        return (
            f"SPICE writes its scores by Java's own JavaScript engine, which Java {version} ({java}) no longer has: "
            f"{mend}, or the jars of Nashorn 15.4 or later ({_JAVASCRIPT} and its asm-*.jar) into {jars}"
        )
    return None


def spice(
    references: Mapping[str, Sequence[str]], candidates: Mapping[str, Sequence[str]], jars: Path
) -> tuple[float, np.ndarray]:
    """Mean SPICE in [0, 1] and an array (images,) in the candidates' order, from one Java process.

    An image's score is the F1 of its caption's tuples (objects, attributes, relations; synonyms match) against
    those of all its references together. Captions are space-joined PTB tokens, one candidate an image; `jars` is
    the folder with CoreNLP's two. SPICE writes `null` for what isn't a number: that image is nan, and then, as in
    pycocoevalcap, so is the mean. (Its F1 over all tuples always is a number: 0 where a caption has no tuples.)

    It loads half a gigabyte of models and parses every caption: minutes for some thousand images. Raises
    SpiceError where `obstacle` names one, and when Java fails.
    """
    if problem := obstacle(jars):
        raise SpiceError(problem)
    with tempfile.TemporaryDirectory(prefix="spice-") as folder:
        given, written = Path(folder) / "captions.json", Path(folder) / "scores.json"
        given.write_text(_given(references, candidates), encoding="ascii")
        # 8 GB is pycocoevalcap's limit (not what is taken at once). There is no `-cache`: it would save no parse
        # within one run, and its libraries (fst, lmdbjni) fail on Java 16 and later and on ARM.
        command = [require_java("SPICE"), "-Xmx8G", "-cp", _class_path(jars), "edu.anu.spice.SpiceScorer"]
        command += [str(given), "-out", str(written), "-silent"]
        done = subprocess.run(
            command,
            cwd=folder,
            env=java_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        text = written.read_text(encoding="utf-8", errors="replace") if written.is_file() else ""
    if done.returncode or not text:
        raise SpiceError(
            f"SPICE ended with exit code {done.returncode} and without scores (where a class or model is missing, get "
            f"the jars in {jars} again); Java's last words: {_last_words(done.stderr)}"
        )
    per_image = _per_image(text, len(candidates))
    return float(per_image.mean()), per_image


@lru_cache(maxsize=8)
def _java_version(java: str) -> int:
    """8 for "1.8.0_312", 17 for "17.0.15", 0 where it isn't said."""
    said = subprocess.run([java, "-version"], capture_output=True, timeout=60).stderr
    found = re.search(rb'version "(?:1\.)?(\d+)', said)
    return int(found[1]) if found else 0


def _class_path(jars: Path) -> str:
    # SPICE's manifest brings in its own lib folder. From the user's, which may be all of CoreNLP's, only what
    # pycocoevalcap runs with: the parser would annotate more if it found the rest.
    extra = sorted([*jars.glob(_JAVASCRIPT), *jars.glob("asm-*.jar")])
    paths = [pycocoevalcap_folder("spice") / "spice-1.0.jar", *(jars / name for name in PARSER_JARS), *extra]
    return os.pathsep.join(str(path.resolve()) for path in paths)


def _given(references: Mapping[str, Sequence[str]], candidates: Mapping[str, Sequence[str]]) -> str:
    """SPICE's input. It is ASCII, and images are numbers: Java reads and writes it in whatever its charset is."""
    return json.dumps(
        [
            {"image_id": number, "test": caption, "refs": list(references[image])}
            for number, (image, (caption,)) in enumerate(candidates.items())
        ]
    )


def _per_image(text: str, images: int) -> np.ndarray:
    """(images,) from SPICE's output, `[{"image_id": 0, "scores": {"All": {"f": 0.5, …}}}, …]`."""
    try:
        scores = {entry["image_id"]: entry["scores"]["All"]["f"] for entry in json.loads(text)}
        return np.array([scores[number] for number in range(images)], dtype=np.float64)  # None becomes nan
    except (ValueError, KeyError, TypeError) as error:
        raise SpiceError(f"SPICE wrote something else than {images} images' scores: {error!r}") from error


def _last_words(printed: bytes) -> str:
    """The last lines, without the stack's."""
    lines = [line.strip() for line in printed.decode("utf-8", errors="replace").splitlines()]
    return " | ".join([line for line in lines if line and not line.startswith(("at ", "... "))][-3:])[-1000:]
