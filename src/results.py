"""An evaluation's folder: what scoring leaves there, and what comparisons and reports read of it.

Nothing here imports torch, so that a table of results is there at once.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zipfile import BadZipFile

import numpy as np

from src.files import write_atomically
from src.metrics.mistakes import Mistake
from src.scoring import Scored, measured
from src.significance import Measured

PerImage = Literal["csv", "parquet"]
"""What the scores of single images are kept as."""
META = "meta.json"
"""Written last: it never stands beside older results."""
GROUPS, MEMORY = "groups.json", "memory.json"
"""Captions by groups of people, and how much of them stands in training, where there is such."""


class Looks(NamedTuple):
    """Where each word of a picture's caption looked. R regions."""

    words: list[str]
    weights: np.ndarray
    """(words, R)."""
    boxes: np.ndarray
    """(R, 4): x1, y1, x2, y2 in [0, 1] of the picture as the model saw it."""


def references_digest(references: Mapping[str, Sequence[str]]) -> str:
    """A digest of images, in order, and their references."""
    rows = [[image, list(group)] for image, group in references.items()]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode(errors="surrogatepass")).hexdigest()[:16]


def make_folder(folder: Path) -> None:
    """Make the folder of results, before any long work.

    Raises:
        ValueError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output={folder}: {error.strerror}; choose another folder") from error


def write_results(
    folder: Path,
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    scored: Scored,
    scores: Mapping[str, Any],
    meta: Mapping[str, Any],
    looks: Mapping[str, Looks] | None = None,
    per_image: PerImage = "csv",
    beside: Mapping[str, Mapping[str, Any] | None] | None = None,
) -> None:
    """Write scores.json, captions.tsv, references.tsv, per_image.csv (or .parquet), statistics.npz, mistakes.json,
    attention.npz where there is any, what stands `beside` them by its file's name, and meta.json; what an earlier
    evaluation left is replaced."""
    make_folder(folder)
    for name in (META, "per_image.csv", "per_image.parquet", "attention.npz", GROUPS, MEMORY):
        (folder / name).unlink(missing_ok=True)
    for name, found in (beside or {}).items():
        if found is not None:
            write_atomically(folder / name, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_atomically(folder / "scores.json", json.dumps(scores, indent=2, ensure_ascii=False) + "\n")
    write_atomically(folder / "captions.tsv", "".join(f"{name}\t{text}\n" for name, text in captions.items()))
    rows = [f"{name}\t{' '.join(text.split())}\n" for name, group in references.items() for text in group]
    write_atomically(folder / "references.tsv", "".join(rows))
    _write_table(folder / f"per_image.{per_image}", captions, scored.per_image)
    _write_arrays(folder / "statistics.npz", scored.statistics)
    mistakes = {"wrong": scored.wrong, "missed": scored.missed}
    write_atomically(folder / "mistakes.json", json.dumps(mistakes, ensure_ascii=False) + "\n")
    if looks:
        _write_arrays(folder / "attention.npz", _packed(looks))
    record = json.dumps({**meta, "alarms": scored.alarms}, indent=2, ensure_ascii=False, default=str) + "\n"
    write_atomically(folder / META, record)


def _write_table(path: Path, captions: Mapping[str, str], scores: Mapping[str, Mapping[str, float]]) -> None:
    columns = list(next(iter(scores.values())))
    if path.suffix == ".csv":
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["image", "caption", *columns])
        writer.writerows([name, said, *(scores[name][c] for c in columns)] for name, said in captions.items())
        return write_atomically(path, text.getvalue())
    pyarrow, parquet = _arrow()
    table: dict[str, list[Any]] = {"image": list(captions), "caption": list(captions.values())}
    table |= {column: [scores[name][column] for name in captions] for column in columns}
    partial = path.with_name(path.name + ".partial")
    parquet.write_table(pyarrow.table(table), partial)
    os.replace(partial, path)


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError("per_image=parquet needs pyarrow: `pip install pyarrow`, or choose per_image=csv") from error
    return pyarrow, parquet


def check_per_image(kind: PerImage) -> None:
    """Raises ValueError where what this kind of table needs is not installed."""
    if kind == "parquet":
        _arrow()


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    os.replace(partial, path)


def _packed(looks: Mapping[str, Looks]) -> dict[str, np.ndarray]:
    """Looks end to end, and how many words and regions each has: thousands of small arrays would be slow to read."""
    every = list(looks.values())
    return {
        "images": np.array(list(looks)),
        "words": np.array([word for each in every for word in each.words]),
        "word_counts": np.array([len(each.words) for each in every]),
        "region_counts": np.array([each.weights.shape[1] for each in every]),
        "weights": np.concatenate([each.weights.ravel() for each in every]).astype(np.float16),
        "boxes": np.concatenate([each.boxes for each in every]).astype(np.float32),
    }


# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation's folder holds."""

    folder: Path
    name: str
    meta: dict[str, Any]
    scores: dict[str, Any]
    captions: dict[str, str]
    columns: dict[str, np.ndarray]
    """(images,) of each score of single images, in the captions' order."""
    statistics: dict[str, np.ndarray]

    def measured(self, score: str) -> Measured:
        """What a corpus score is computed from.

        Raises:
            ValueError: these results lack it; names what there is.
        """
        found = measured(score, self.statistics, self.columns.get(score))
        if found is None:
            has = [name for name in self.scores if measured(name, self.statistics, self.columns.get(name))]
            raise ValueError(f"{self.folder}: no {score} of single pictures; there are {', '.join(has)}")
        if not np.isfinite(found.statistics).all():
            raise ValueError(f"{self.folder}: {score} of some picture is no number; evaluate anew")
        return found

    @cached_property
    def references(self) -> dict[str, list[str]]:
        """Of each image, raw."""
        found: dict[str, list[str]] = {image: [] for image in self.captions}
        for line in _lines(self.folder / "references.tsv"):
            image, _, text = line.partition("\t")
            found.setdefault(image, []).append(text)
        return found

    @cached_property
    def mistakes(self) -> dict[str, list[Mistake]]:
        """Words said `wrong`ly, and words `missed`."""
        table = _json(self.folder / "mistakes.json")
        return {kind: [Mistake(*row) for row in rows] for kind, rows in table.items()}

    @cached_property
    def people(self) -> dict[str, Any] | None:
        """Captions by groups of people (src/metrics/groups.py), where references name any."""
        return _json(self.folder / GROUPS) if (self.folder / GROUPS).exists() else None

    @cached_property
    def memory(self) -> dict[str, Any] | None:
        """How much of the captions stands in training (src/metrics/memory.py), where that was known."""
        return _json(self.folder / MEMORY) if (self.folder / MEMORY).exists() else None

    @cached_property
    def looks(self) -> dict[str, Looks]:
        """Where the words of a picture's caption looked, of the pictures of which that was kept."""
        path = self.folder / "attention.npz"
        if not path.exists():
            return {}
        arrays = _read_arrays(path)
        found = {}
        word = region = weight = 0
        for image, words, regions in zip(*(arrays[n] for n in ("images", "word_counts", "region_counts")), strict=True):
            weights = arrays["weights"][weight : weight + words * regions].reshape(words, regions).astype(np.float64)
            said = arrays["words"][word : word + words].tolist()
            found[str(image)] = Looks(said, weights, arrays["boxes"][region : region + regions])
            word, region, weight = word + words, region + regions, weight + words * regions
        return found


def results_folder(path: Path, split: str) -> Path:
    """The folder of results itself, or a run's of its evaluation of a split.

    Raises:
        ValueError: there is none.
    """
    folder = path if (path / META).exists() else path / "eval" / split
    if not (folder / META).exists():
        raise ValueError(
            f"{folder}: no evaluation there: python -m src.evaluate model={path} … output={folder} makes one"
        )
    return folder


def read_results(path: Path, split: str = "val", name: str | None = None) -> Evaluation:
    """What the folder of an evaluation holds, or of a run's evaluation of `split`.

    Raises:
        ValueError: there is none, an earlier version's, or a damaged one; names the file.
    """
    folder = results_folder(path, split)
    meta, scores = _json(folder / META), _json(folder / "scores.json")
    captions, columns = _read_table(folder)
    statistics = folder / "statistics.npz"
    if not statistics.exists():
        raise ValueError(f"{folder}: evaluated by an earlier version: evaluate anew")
    return Evaluation(folder, name or str(path), meta, scores, captions, columns, _read_arrays(statistics))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as kept:
            return {key: kept[key] for key in kept.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise ValueError(f"{path}: damaged ({error}); evaluate anew") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; evaluate anew") from None
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); evaluate anew") from error


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; evaluate anew") from None


def _read_table(folder: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    path = next((folder / n for n in ("per_image.csv", "per_image.parquet") if (folder / n).exists()), None)
    if path is None:
        raise ValueError(f"{folder / 'per_image.csv'}: no such file; evaluate anew")
    try:
        if path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.reader(file)
                names, *rows = list(reader)
            table = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}
        else:
            table = _arrow()[1].read_table(path).to_pydict()
        if not table:
            raise ValueError("empty")
        captions = dict(zip(table.pop("image"), table.pop("caption"), strict=True))
        return captions, {name: np.array(values, dtype=np.float64) for name, values in table.items()}
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path}: {error}; evaluate anew") from error
