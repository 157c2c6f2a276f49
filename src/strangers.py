"""Files that a stranger may have sent: read within limits, and nothing in them is executed. docs/security.md says what
is promised."""

import io
import math
import pickle
import pickletools
import re
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from src.annotations import fits, parameters
from src.model import locate

MOST_YAML = 100_000
"""Bytes of a config.yaml."""
MOST_NODES, MOST_DEPTH = 10_000, 20
"""Of a config, each of its aliases counted as what it stands for."""
MOST_NUMBER = 10**7
"""Of a part's whole numbers."""
LIMITS = {
    "size": 8192,
    "resize": 8192,
    "img_size": 8192,
    "draft": 8192,
    "beam_size": 1000,
    "max_length": 1000,
    "samples": 1000,
    "captions": 1000,
    "groups": 1000,
    "sigma": 100,
    "least": 10,
    "most": 10,
    "seed": 2**63 - 1,
}
"""Of single fields: what a picture, a defence or the search of a caption takes memory and time by."""
MOST_ARRAY = 1 << 28
"""Bytes of an array in a `.npy`, `.npz` or HDF5 file."""

# ---------------------------------------------------------------- texts


def read_yaml(file: Path | str) -> Any:
    """A YAML file, or text, of plain values.

    Raises:
        ValueError: it is none, or larger than MOST_YAML.
        OSError: it cannot be read.
    """
    if isinstance(file, Path):
        with file.open("rb") as opened:
            text = opened.read(MOST_YAML + 1).decode("utf-8")
    else:
        text = file
    if len(text) > MOST_YAML:
        raise ValueError(f"more than {MOST_YAML:,} bytes")
    if sum(map(text.count, "[{-")) > MOST_NODES:  # PyYAML's time grows with the square of the depth
        raise ValueError("nested too deeply, or too long a list")
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except Exception as error:  # PyYAML raises several kinds for `!!bool x`, `!!int ''`, `!!timestamp x`
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


# ---------------------------------------------------------------- configs


def check_config(config: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> None:
    """Refuse a bundle's parts that no bundle has.

    Args:
        config: of each part, by name, its mapping, or None.
        kinds: which classes a `_target_` may name, by its place: `encoder`, `encoder.backbone`.

    Raises:
        ValueError: names the place: a class or value that does not belong there, more or deeper nested values than
            MOST_NODES and MOST_DEPTH, or a number above its limit.
    """
    left = MOST_NODES

    def look(place: str, value: Any, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0 or depth > MOST_DEPTH:
            raise ValueError(f"{place}: more values, or deeper nested ones, than a config has")
        if isinstance(value, Mapping):
            if "_target_" in value:
                if place not in kinds:
                    raise ValueError(f"{place}: no part that is built stands here (_target_: {value['_target_']})")
                target = locate(value["_target_"])
                if not issubclass(target, kinds[place]):
                    names = " or ".join(kind.__name__ for kind in kinds[place])
                    raise ValueError(f"{place}: {value['_target_']} is no {names}")
                taken, _ = parameters(target)
                for key, inner in value.items():
                    if not fits(inner, taken.get(key, Any)):
                        raise ValueError(f"{place}.{key}={str(inner)[:60]!r}: {value['_target_']} takes none such")
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise ValueError(f"{place}: the key {key!r} is no name")
                look(f"{place}.{key}", inner, depth + 1)
        elif isinstance(value, list | tuple):
            for inner in value:
                look(place, inner, depth + 1)
        elif isinstance(value, int | float):
            field = place.rpartition(".")[2]
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{place}={value}: a finite number is wanted")
            if abs(value) > (most := LIMITS.get(field, MOST_NUMBER)):
                said = value if abs(value) < 10**30 else "…"  # an int can have more digits than Python writes
                raise ValueError(f"{place}={said}: {most:,} at most")

    for part, value in config.items():
        if value is not None and (not isinstance(value, Mapping) or "_target_" not in value):
            raise ValueError(f"{part}: a mapping with _target_ is wanted, or null, not {str(value)[:60]!r}")
        look(part, value, 0)


class TooLarge(Exception):
    """A module has more than it may have."""


@contextmanager
def at_most(numbers: int, tensors: int) -> Iterator[None]:
    """In a `with` block, modules get at most so many parameters and buffers, and numbers in them; of this thread.

    Raises:
        TooLarge: one more.
    """
    thread, left, room = threading.get_ident(), tensors, numbers

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal left, room
        if tensor is not None and threading.get_ident() == thread:
            left, room = left - 1, room - tensor.numel()
            if left < 0 or room < 0:
                raise TooLarge

    hooks = [
        torch_module.register_module_parameter_registration_hook(count),
        torch_module.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_size(build: Callable[[], nn.Module], state: Mapping[str, Tensor]) -> None:
    """Build a model without memory, and refuse one that is much larger than the weights that are there, or of other
    shapes.

    Raises:
        ValueError: says so.
    """
    numbers = sum(tensor.numel() for tensor in state.values())
    try:  # what is tied is counted twice, and some is built that is thrown away
        with torch.device("meta"), at_most(4 * numbers + 10_000_000, 4 * len(state) + 1000):
            own = build().state_dict()
    except TooLarge:
        raise ValueError(f"its config wants a model much larger than its weights, {numbers:,} numbers") from None
    except NotImplementedError as error:
        if "meta" not in str(error).lower():
            raise
        return  # a network that cannot be built without memory
    for name, tensor in state.items():
        if name in own and own[name].shape != tensor.shape:
            raise ValueError(f"weights do not fit its config ({name}: {[*tensor.shape]}, not {[*own[name].shape]})")


# ---------------------------------------------------------------- checkpoints

_STORAGE = re.compile(r"[A-Z]\w+Storage")


class _Storage:
    """What stands for a storage: nothing can be made of it."""

    def __init__(self, numbers: int) -> None:
        self.numbers = numbers


class _Dry(pickle.Unpickler):
    """Goes through a checkpoint's pickle, with what stands for tensors in their place: the few names that PyTorch's own
    writing needs, and no other. PyTorch's `weights_only` takes more, such as `bytearray`, which takes any amount of
    memory."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return _checked_tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda data, *_: data
        if module in ("torch", "torch.storage") and _STORAGE.fullmatch(name):
            return name  # a text cannot be called
        raise ValueError(f"{module}.{name} in it is not what weights are made of")

    def persistent_load(self, pid: Any) -> _Storage:
        return _Storage(pid[4])


def _checked_tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> list[Any]:
    if not isinstance(storage, _Storage) or math.prod(size) > storage.numbers:
        raise ValueError("a tensor in it has more numbers than are stored")
    return []


def load_checkpoint(path: Path) -> Any:
    """What `torch.save` wrote: plain values and tensors, on the CPU.

    Raises:
        ValueError: something else, or damaged; says what.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError("it is compressed, as torch.save writes none")
            (name,) = [name for name in archive.namelist() if name.endswith("data.pkl") and name.count("/") == 1]
            data = archive.read(name)
        for code, argument, _ in pickletools.genops(data):  # the unpickler makes a table as long as it is told
            if code.name.endswith("PUT") and isinstance(argument, int) and argument > len(data):
                raise ValueError(f"{code.name} {argument}")
        _Dry(io.BytesIO(data)).load()
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zip and pickle raise many kinds
        raise ValueError(" ".join(str(error).split())[:300] or type(error).__name__) from error


# ---------------------------------------------------------------- arrays


def read_npy(file: IO[bytes], size: int) -> np.ndarray:
    """An array of numbers in the form of `.npy`.

    Args:
        file: at its beginning.
        size: its bytes.

    Raises:
        ValueError: another form, objects or texts in it, cut off, or larger than MOST_ARRAY.
    """
    try:
        version = np.lib.format.read_magic(file)
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, kind = headers[version](file)
    except Exception as error:  # its header is a Python literal, and fails in as many ways
        raise ValueError(f"no array ({error})") from error
    if kind.kind not in "biuf":
        raise ValueError(f"an array of {kind}, and not of numbers")
    needed = math.prod(shape) * kind.itemsize
    if needed > min(MOST_ARRAY, size) or any(side < 0 for side in shape):
        raise ValueError(f"an array of {[*shape]}, which is more than the file's {size:,} bytes, or {MOST_ARRAY:,}")
    data = file.read(needed)
    if len(data) < needed:
        raise ValueError("it ends early")
    return np.frombuffer(data, kind).reshape(shape, order="F" if fortran else "C")


def read_npz(file: Path, wanted: Callable[[str], bool]) -> dict[str, np.ndarray | None]:
    """The arrays of a `.npz` file by name, None for those that are not wanted.

    Raises:
        ValueError: as `read_npy`, or no archive.
        OSError: it cannot be read.
    """
    found: dict[str, np.ndarray | None] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                found[name] = None
                if wanted(name):
                    if info.file_size > MOST_ARRAY:
                        raise ValueError(f"{name}: {info.file_size:,} bytes, and {MOST_ARRAY:,} at most are read")
                    with archive.open(info) as opened:
                        found[name] = read_npy(opened, info.file_size)
    except (OSError, ValueError):
        raise
    except Exception as error:  # zip and its decompressors raise many kinds
        raise ValueError(f"damaged ({error})") from error
    return found
