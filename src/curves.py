"""What metrics.csv in a run's folder says of its training, by epoch."""

import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

Curve = Sequence[tuple[int, float]]
"""Epochs, counted from 1, and the score after each."""


class Gap(NamedTuple):
    """The loss of training beside that of validation."""

    measure: str
    """The columns' name after train/ and val/: cross_entropy, or loss where there is no other."""
    training: Curve
    """The mean over each epoch's logged steps."""
    validation: Curve

    @property
    def gap(self) -> Curve:
        """Validation above training, of the epochs that have both."""
        training = dict(self.training)
        return [(epoch, value - training[epoch]) for epoch, value in self.validation if epoch in training]


class Sampled(NamedTuple):
    """CIDEr-D of the captions of a few training pictures beside that of validation (src/overfitting.py)."""

    training: Curve
    validation: Curve
    warned: int | None
    """The epoch of the warning."""


def _read(run: Path) -> list[dict[str, str]]:
    path = run / "metrics.csv"
    if not path.exists():
        raise ValueError(f"{path}: no such file: this run has no curve (logger=csv writes it)")
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row.get("epoch")]


def _by_epoch(rows: Sequence[dict[str, str]], column: str) -> dict[int, list[float]]:
    """All values of a column that are numbers."""
    values = defaultdict(list)
    for row in rows:
        if row.get(column) and math.isfinite(value := float(row[column])):
            values[int(row["epoch"]) + 1].append(value)
    return dict(sorted(values.items()))


def read_curve(run: Path, score: str) -> Curve:
    """A validation score by epoch.

    Raises:
        ValueError: there is no metrics.csv, or it never has this score; the message names those it has.
    """
    rows = _read(run)
    values = _by_epoch(rows, f"val/{score}")
    if not values:
        names = sorted({key.removeprefix("val/") for row in rows for key in row if key and key.startswith("val/")})
        raise ValueError(f"{run / 'metrics.csv'} has no val/{score}; it has {', '.join(names) or 'no validation yet'}")
    return [(epoch, found[-1]) for epoch, found in values.items()]


def read_gap(run: Path) -> Gap | None:
    """Cross-entropy, or else the loss, of training and validation by epoch; None where they measure different things,
    as in training on a reward, or where one of them was never logged.

    Raises:
        ValueError: there is no metrics.csv, or it is damaged.
    """
    rows = _read(run)
    for measure in ("cross_entropy", "loss"):
        training, validation = (_by_epoch(rows, f"{of}/{measure}") for of in ("train", "val"))
        if training and validation:
            means = [(epoch, sum(found) / len(found)) for epoch, found in training.items()]
            return Gap(measure, means, [(epoch, found[-1]) for epoch, found in validation.items()])
        if validation:  # training was measured otherwise
            return None
    return None


def read_sampled(run: Path) -> Sampled | None:
    """What callbacks.overfitting logged; None where it was off.

    Raises:
        ValueError: there is no metrics.csv, or it is damaged.
    """
    rows = _read(run)
    training, validation, warned = (
        _by_epoch(rows, column) for column in ("train_sample/CIDEr", "val/CIDEr", "gap/warning")
    )
    if not training:
        return None
    return Sampled(
        [(epoch, found[-1]) for epoch, found in training.items()],
        [(epoch, found[-1]) for epoch, found in validation.items()],
        next(iter(warned), None),
    )
