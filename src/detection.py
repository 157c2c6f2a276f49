"""How far a picture lies from those that a captioner learned from, and how firmly its caption stands."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor
from torch.nn import functional as F

from src.captions import Caption
from src.data.vocabulary import BOS, EOS, UNK
from src.defences import BlurDefence, JpegDefence
from src.encoders.precomputed import RegionEncoder
from src.files import whole

if TYPE_CHECKING:
    from src.captioner import Captioner

AXES = 128
"""Directions in which features vary most, and whose variances are kept one by one."""
LEAST = 20
"""Pictures that tell their variances, at least; half as many axes as pictures are kept at most."""
LEAST_VARIANCE = 1e-9
"""Of features that do not vary at all."""
BLOCK = 4096
"""Rows of features in float64 at a time."""
DEVIATIONS = 1.959964
"""Of a normal distribution, either side, that hold 95 % of it."""


class Detector(NamedTuple):
    """The training pictures' pooled features as a normal distribution, and how far held-out pictures lie from its mean.

    The distance is Mahalanobis' (Lee et al., 2018, https://arxiv.org/abs/1807.03888; here of one class) under the
    covariance of probabilistic PCA: the largest AXES variances as they are, all others as their mean (Tipping and
    Bishop, 1999, https://doi.org/10.1111/1467-9868.00196).
    """

    mean: np.ndarray
    """(D,) float16."""
    axes: np.ndarray
    """(K, D) float16, of unit length."""
    variances: np.ndarray
    """(K + 1,) float32: along each axis, and the mean along all others."""
    distances: np.ndarray
    """(N,) float32, ascending: those of the held-out pictures."""
    pictures: int
    """From how many it was fitted."""

    @classmethod
    def fit(cls, training: np.ndarray, held_out: np.ndarray) -> "Detector":
        """Pooled features (M, D) of training pictures and (N, D) of others like them.

        Raises:
            ValueError: too few pictures.
        """
        if len(training) < LEAST or not len(held_out):
            raise ValueError(
                f"{len(training)} training and {len(held_out)} held-out pictures: {LEAST} of the first and one of the "
                "second are wanted at least"
            )
        mean = training.mean(0, dtype=np.float64)
        scatter = np.zeros((training.shape[1],) * 2)
        for start in range(0, len(training), BLOCK):
            part = training[start : start + BLOCK] - mean
            scatter += part.T @ part
        values, vectors = np.linalg.eigh(scatter / (len(training) - 1))
        variances, axes = values[::-1], vectors.T[::-1]
        count = min(AXES, len(training) // 2, training.shape[1] - 1)
        rest = variances[count:].sum() / max(training.shape[1] - count, 1)
        kept = np.append(variances[:count], rest).clip(LEAST_VARIANCE).astype(np.float32)
        found = cls(
            mean.astype(np.float16), axes[:count].astype(np.float16, order="C"), kept, np.empty(0), len(training)
        )
        return found._replace(distances=np.sort(found.distance(held_out)))

    def distance(self, pooled: np.ndarray) -> np.ndarray:
        """Pooled features (B, D) → squared distances (B,), float32."""
        x = pooled.astype(np.float64) - self.mean
        along = x @ self.axes.T.astype(np.float64)
        rest = np.maximum((x**2).sum(1) - (along**2).sum(1), 0)
        return ((along**2 / self.variances[:-1]).sum(1) + rest / self.variances[-1]).astype(np.float32)

    def __call__(self, pooled: np.ndarray) -> list[float]:
        """Pooled features (B, D) → `unfamiliar` of each, in [0, 1]: the share of held-out pictures that lie nearer to
        the training pictures; 1: all of them."""
        return (np.searchsorted(self.distances, self.distance(pooled)) / len(self.distances)).tolist()

    def save(self, path: Path) -> None:
        """Write a safetensors file; it appears whole or not at all."""
        arrays = {name: getattr(self, name) for name in self._fields[:-1]}
        with whole(path) as partial:
            save_file(arrays, partial, {"pictures": str(self.pictures)})

    @classmethod
    def load(cls, path: Path) -> "Detector":
        """Read what `save` wrote.

        Raises:
            ValueError: the file is damaged; names it.
        """
        try:
            with safe_open(path, "np") as file:
                mean, axes, variances, distances = (file.get_tensor(name) for name in cls._fields[:-1])
                found = cls(mean, axes, variances, distances, int(file.metadata()["pictures"]))
            found._check()
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:  # numpy has no bfloat16
            raise ValueError(
                f"{path}: no detector ({error}); delete it, or `python -m src.detect fit` again"
            ) from error
        return found

    def _check(self) -> None:
        """Raises ValueError: what cannot have been fitted."""
        arrays = {name: getattr(self, name) for name in self._fields[:-1]}
        for name, array in arrays.items():
            if array.dtype.kind != "f" or array.ndim != (2 if name == "axes" else 1) or not np.isfinite(array).all():
                raise ValueError(f"{name} are no finite numbers, or of {array.ndim} dimensions")
        if self.axes.shape != (len(self.variances) - 1, len(self.mean)) or not len(self.distances):
            raise ValueError("its parts do not fit each other")
        if (self.variances <= 0).any() or (np.diff(self.distances) < 0).any():
            raise ValueError("a variance that is none, or distances out of order")


# ---------------------------------------------------------------- how firmly a caption stands


def varied(pixels: Tensor) -> dict[str, Tensor]:
    """Pictures (B, 3, H, W), uint8 or floats in [0, 1], changed by what should change no caption: mirrored, moved by a
    fiftieth, the middle 96 % enlarged, saved as JPEG, blurred a little."""
    x = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
    height, width = x.shape[2:]
    down, right = max(1, round(height / 50)), max(1, round(width / 50))
    edge_y, edge_x = round(height / 50), round(width / 50)
    middle = x[..., edge_y : height - edge_y, edge_x : width - edge_x]
    return {
        "mirrored": x.flip(-1),
        "moved": F.pad(x, [right, 0, down, 0], mode="replicate")[..., :height, :width],
        "enlarged": F.interpolate(middle, (height, width), mode="bilinear", align_corners=False),
        "saved": JpegDefence(75)(x),
        "blurred": BlurDefence(1.0)(x),
    }


def stabilities(captioner: "Captioner", pixels: Any, captions: Sequence[Caption], prefixes: Any = None) -> list[float]:
    """How firmly captions stand, each in (0, 1]: how much of its words' probability, a geometric mean, stays when the
    picture is changed by what should change no caption (`varied`). Attacked pictures' captions rest on what such
    changes destroy: feature squeezing, Xu et al., 2018 (https://arxiv.org/abs/1704.01155).

    Each change costs a pass of the encoder, and one of the decoder, which is told the caption.

    Args:
        captioner: of pictures, alone.
        pixels: (B, 3, H, W), as `Captioner.stacked` gives them.
        captions: of these pictures.
        prefixes: each caption's own control tokens, by name; None: those that the captioner is asked for.

    Raises:
        ValueError: an ensemble, or a captioner of regions computed beforehand.
    """
    from src.matching import Said, log_likelihoods  # which needs the captioner

    check_alone(captioner)
    index, known = captioner.vocabulary.index, captioner.vocabulary.control_index
    sentences = []
    for number, caption in enumerate(captions):
        names = captioner.control if prefixes is None else prefixes[number]
        given = [BOS, *(known[name] for name in names)]
        words = [index.get(word, UNK) for word in caption.words]
        end = [EOS] if len(caption.log_probs) > len(caption.words) or not words else []
        sentences.append([Said([*given, *words, *end], len(given))])

    def likelihoods(x: Tensor) -> np.ndarray:
        return np.concatenate(log_likelihoods(captioner, captioner.features(x), sentences))

    before = likelihoods(pixels)
    drops = [np.minimum(likelihoods(x) - before, 0) for x in varied(pixels).values()]
    return np.exp(np.mean(drops, axis=0)).tolist()


def check_alone(captioner: "Captioner") -> None:
    """Raises ValueError where a captioner's pictures cannot be flagged: of an ensemble, or of regions."""
    if len(captioner.members) > 1:
        raise ValueError("pictures are flagged by one captioner alone, not by an ensemble: name one")
    if isinstance(captioner.model.encoder, RegionEncoder):
        raise ValueError("this captioner reads regions computed beforehand, and pictures it has not seen: not flagged")


def detector_of(captioner: "Captioner") -> Detector:
    """A captioner's detector.

    Raises:
        ValueError: it has none.
    """
    check_alone(captioner)
    if captioner.detector is None:
        raise ValueError(
            "this captioner has no detector of unfamiliar pictures: `python -m src.detect fit BUNDLE --root DIR --data "
            "train.tsv --val val.tsv` adds one"
        )
    return captioner.detector


# ---------------------------------------------------------------- how well a score tells two sets of pictures apart


def auroc(known: np.ndarray, unknown: np.ndarray) -> float:
    """The area under the receiver operating characteristic, in [0, 1]: the probability that a score is higher of one of
    `unknown` (N,) than of one of `known` (M,), ties counting half (Hanley and McNeil, 1982,
    https://doi.org/10.1148/radiology.143.1.7063747)."""
    below, up_to = (np.searchsorted(np.sort(known), unknown, side) for side in ("left", "right"))
    return float((below + up_to).sum() / (2 * len(known) * len(unknown)))


def interval(area: float, known: int, unknown: int) -> tuple[float, float]:
    """The 95 % interval of an area over so many scores of each kind, by Newcombe's method 5 (2006,
    https://doi.org/10.1002/sim.2324): the areas from which this one is 1.96 of their own standard errors away. It says
    how much an area of 1 of few pictures is worth, which a bootstrap does not."""

    def near(true: float) -> bool:
        others = ((known + unknown) / 2 - 1) * ((1 - true) / (2 - true) + true / (1 + true))
        return (area - true) ** 2 <= DEVIATIONS**2 * true * (1 - true) * (1 + others) / (known * unknown)

    def end(far: float) -> float:
        inside = area
        for _ in range(50):
            middle = (inside + far) / 2
            inside, far = (middle, far) if near(middle) else (inside, middle)
        return inside

    return end(0.0), end(1.0)


def curve(known: np.ndarray, unknown: np.ndarray) -> list[tuple[float, float]]:
    """The receiver operating characteristic from (0, 0) to (1, 1): at each threshold, the share of `known` and that of
    `unknown` whose score is at least as high."""
    thresholds = np.unique(np.concatenate([known, unknown]))[::-1]
    shares = [1 - np.searchsorted(np.sort(each), thresholds) / len(each) for each in (known, unknown)]
    return [(0.0, 0.0), *zip(*(share.tolist() for share in shares), strict=True)]
