"""Regions computed beforehand, such as the objects that a detector found: one `.npz` or `.npy` file a picture in a
folder, or one HDF5 file of all pictures → padded batches."""

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch

from src.encoders.base import grid_boxes
from src.encoders.precomputed import Regions
from src.ranges import at_least
from src.strangers import MOST_ARRAY, read_npy, read_npz

FEATURES = ("features", "feat", "feats", "x")
BOXES = ("boxes", "bbox", "bboxes")
WIDTH = ("image_w", "image_width", "img_w", "width")
HEIGHT = ("image_h", "image_height", "img_h", "height")
"""The names that arrays go by, in a `.npz` file or an HDF5 group; the first that is there is taken."""
WANTED = frozenset((*FEATURES, *BOXES, *WIDTH, *HEIGHT))
HDF5 = (".h5", ".hdf5")


class RegionsError(ValueError):
    """Regions that are not there or cannot be used; the message names the file and says how to mend it."""


class ReadRegions(NamedTuple):
    """One picture's regions."""

    features: np.ndarray
    """(R, D) float32."""
    boxes: np.ndarray
    """(R, 4) float32: x1, y1, x2, y2 as fractions of the picture, in [0, 1]."""


class RegionFiles:
    """The regions of a data set's pictures, read one picture at a time.

    A picture `photos/001.jpg` is found as `photos/001` or `001`, with or without `.jpg`: a file of that name with
    `.npz` or `.npy` behind it, or a group or dataset of an HDF5 file. A `.npz` file or a group holds `features` (R, D)
    or (h, w, D) and `boxes` (R, 4), in pixels beside `image_w` and `image_h` or in [0, 1]; a `.npy` file or a dataset
    is the features alone. A grid (h, w, D) has the boxes of its cells; other features without boxes have the whole
    picture's.

    Args:
        path: a folder, or an HDF5 file.
        dimension: D.
        max_regions: of a picture; of more, those listed first are taken.

    Raises:
        RegionsError: there is no such folder or file, or h5py is missing.
    """

    def __init__(self, path: str | os.PathLike[str], dimension: int, max_regions: int) -> None:
        at_least(1, "encoder", dimension=dimension, max_regions=max_regions)
        self.path, self.dimension, self.max_regions = Path(path), dimension, max_regions
        self.hdf5 = self.path.suffix.lower() in HDF5
        self._opened: tuple[int, Any] | None = None
        if not (self.path.is_file() if self.hdf5 else self.path.is_dir()):
            raise RegionsError(
                f"{self.path}: no such {'file' if self.hdf5 else 'folder'}; regions computed beforehand are looked for "
                "there: a folder of .npz or .npy files, or an HDF5 file (.h5, .hdf5)"
            )
        if self.hdf5 and importlib.util.find_spec("h5py") is None:
            raise RegionsError(f"{self.path}: HDF5 needs h5py: `pip install h5py` first")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}  # an open file goes into no other process

    def read(self, image: str) -> ReadRegions:
        """A picture's regions, by its path.

        Raises:
            RegionsError: there are none, or they do not fit.
        """
        try:
            place = self._find(image)
        except RegionsError:
            raise
        except Exception as error:  # h5py raises many kinds on damaged files
            raise RegionsError(f"{self.path}: damaged ({error}): copy or compute it again") from error
        if place is None:
            tried = [f"{name}{'' if self.hdf5 else '.npz'}" for name in _names(image)]
            raise RegionsError(f"{self.path}: no regions of {image}; looked for are {', '.join(dict.fromkeys(tried))}")
        name = f"{self.path}:{place}" if self.hdf5 else str(place)
        try:
            return self._fitted(name, self._hdf5(place) if self.hdf5 else _numpy(place))
        except RegionsError:
            raise
        except Exception as error:
            raise RegionsError(f"{name}: damaged, or no arrays of numbers ({error}): compute it again") from error

    def problems(self, images: Sequence[str], decode: bool) -> dict[str, tuple[str, str]]:
        """Image → (kind, reason), of those without regions or (with `decode`) with regions that cannot be used."""
        found = {}
        for image in images:
            if decode or self._find(image) is None:
                try:
                    self.read(image)
                except RegionsError as error:
                    found[image] = (
                        "missing regions" if self._find(image) is None else "unreadable regions",
                        str(error),
                    )
        return found

    def _find(self, image: str) -> Any:
        if self.hdf5:
            return next((name for name in _names(image) if name in self._file()), None)
        files = (self.path / f"{name}{suffix}" for name in _names(image) for suffix in (".npz", ".npy"))
        return next((file for file in files if file.is_file()), None)

    def _file(self) -> Any:
        if self._opened is None or self._opened[0] != os.getpid():  # a forked process opens its own
            import h5py

            try:
                self._opened = os.getpid(), h5py.File(self.path, "r")
            except OSError as error:
                raise RegionsError(f"{self.path}: not an HDF5 file, or a damaged one ({error})") from error
        return self._opened[1]

    def _hdf5(self, name: str) -> dict[str, Any]:
        node = self._file()[name]
        if hasattr(node, "shape"):
            return {FEATURES[0]: self._array(node)}
        arrays = {key: self._array(node[key]) if key in WANTED else None for key in node}
        return {**{key: node.attrs[key] if key in WANTED else None for key in node.attrs}, **arrays}

    def _array(self, dataset: Any) -> np.ndarray:
        """A dataset's numbers; ValueError where they are in another file, none, or too many."""
        elsewhere = dataset.external or dataset.is_virtual or not os.path.samefile(dataset.file.filename, self.path)
        if elsewhere:
            raise ValueError(f"{dataset.name} is in another file")
        if dataset.dtype.kind not in "biuf" or dataset.nbytes > MOST_ARRAY:
            raise ValueError(f"{dataset.name}: {_shape(dataset)} of {dataset.dtype}")
        return dataset[()]

    def _fitted(self, name: str, arrays: Mapping[str, Any]) -> ReadRegions:
        features = _first(arrays, FEATURES)
        if features is None:
            there = ", ".join(arrays) or "nothing"
            raise RegionsError(f"{name}: no features; looked for are {', '.join(FEATURES)}, and there is {there}")
        if features.ndim not in (2, 3) or features.shape[-1] != self.dimension:
            raise RegionsError(
                f"{name}: features are {_shape(features)}, and (R, {self.dimension}) or (h, w, {self.dimension}) is "
                "wanted: set encoder.dimension to the last number, or compute them again"
            )
        boxes = _first(arrays, BOXES)
        if features.ndim == 3:
            rows, columns = features.shape[:2]
            if rows * columns > self.max_regions:
                raise RegionsError(
                    f"{name}: a grid of {rows} × {columns}, more than encoder.max_regions={self.max_regions}: raise it "
                    f"to {rows * columns}"
                )
            boxes = grid_boxes(rows, columns).numpy() if boxes is None else boxes
            features = features.reshape(rows * columns, -1)
        elif boxes is None:
            boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (len(features), 1))
        if not len(features):
            raise RegionsError(
                f"{name}: no regions: compute it again, or leave the picture out (data.verify=decode "
                "data.on_bad_row=skip)"
            )
        if boxes.shape != (len(features), 4):
            raise RegionsError(f"{name}: boxes are {_shape(boxes)}, and ({len(features)}, 4) is wanted, one a region")
        features = features[: self.max_regions].astype(np.float32)
        boxes = self._fractions(name, boxes[: self.max_regions].astype(np.float32), arrays)
        if not np.isfinite(features).all():
            raise RegionsError(f"{name}: features that are no finite numbers: compute it again")
        return ReadRegions(features, boxes)

    @staticmethod
    def _fractions(name: str, boxes: np.ndarray, arrays: Mapping[str, Any]) -> np.ndarray:
        if not np.isfinite(boxes).all() or (boxes[:, 2:] < boxes[:, :2]).any():
            raise RegionsError(f"{name}: boxes that are not x1, y1, x2, y2 with x1 ≤ x2 and y1 ≤ y2")
        if boxes.max() > 1.001:  # more than what rounding makes of 1: pixels
            size = [_first(arrays, names) for names in (WIDTH, HEIGHT)]
            if any(each is None or each.size != 1 or float(each.reshape(())) < 1 for each in size):
                raise RegionsError(f"{name}: boxes in pixels need {WIDTH[0]} and {HEIGHT[0]} beside them")
            boxes = boxes / np.tile([float(each.reshape(())) for each in size if each is not None], 2)
        return boxes.clip(0, 1).astype(np.float32)


def _names(image: str) -> Iterator[str]:
    """The names that a picture's regions may have, its whole path first, its stem last."""
    parts = [part for part in PurePosixPath(image).parts if part not in ("/", "..")]
    for i in range(len(parts)):
        end = PurePosixPath(*parts[i:])
        yield str(end.with_suffix(""))
        yield str(end)


def _numpy(file: Path) -> dict[str, Any]:
    """The arrays of a `.npz` or `.npy` file; pickled ones are refused."""
    with file.open("rb") as opened:
        if opened.read(2) == b"PK":
            return read_npz(file, WANTED.__contains__)
        opened.seek(0)
        return {FEATURES[0]: read_npy(opened, file.stat().st_size)}


def _first(arrays: Mapping[str, Any], names: Sequence[str]) -> np.ndarray | None:
    return next((np.asarray(arrays[name]) for name in names if arrays.get(name) is not None), None)


def _shape(array: Any) -> str:
    return f"({', '.join(map(str, array.shape))})"


def padded(read: Sequence[ReadRegions]) -> Regions:
    """Several pictures' regions as one batch."""
    most = max(len(each.features) for each in read)
    mask = np.arange(most) < np.array([[len(each.features)] for each in read])
    features = np.zeros((*mask.shape, read[0].features.shape[1]), np.float32)
    boxes = np.zeros((*mask.shape, 4), np.float32)
    for b, each in enumerate(read):
        features[b, : len(each.features)], boxes[b, : len(each.boxes)] = each
    return Regions(torch.from_numpy(features), torch.from_numpy(boxes), torch.from_numpy(mask))


def check_below(encoder: Mapping[str, Any], root: Path) -> None:
    """Refuse a captioner's own `path` outside the folder that it is relative to: a stranger's may name any file.

    Raises:
        RegionsError: it is.
    """
    if "max_regions" not in encoder:
        return
    below, found = os.path.abspath(root), os.path.abspath(root / encoder["path"])
    if os.path.commonpath([below, found]) != below:
        raise RegionsError(
            f"the captioner's regions were in {encoder['path']}, which is not below data.root={root}, and is not read "
            "unasked: name where they are, regions=PATH in evaluation, encoder.path=PATH in training"
        )


def region_files(encoder: Mapping[str, Any], root: Path, path: str | Path | None = None) -> RegionFiles | None:
    """The regions that an encoder's config names; None for an encoder of pixels.

    Args:
        encoder: the config.
        root: the folder that its `path` is relative to.
        path: where they are instead.

    Raises:
        RegionsError: they are not there, or a path was given for an encoder of pixels.
    """
    if "max_regions" not in encoder:
        if path is not None:
            raise RegionsError(f"{path}: this captioner looks at the pictures themselves: give it no regions")
        return None
    return RegionFiles(path or root / encoder["path"], encoder["dimension"], encoder["max_regions"])
