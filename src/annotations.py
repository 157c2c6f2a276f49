"""What a class or function takes, by its annotations, and whether a plain value can be that."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from os import PathLike
from types import NoneType
from typing import Any, Literal, Union, get_args, get_origin

from src.model import TRAINING, locate


def parameters(target: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """What a class or function takes: names with their annotations, and whether it takes further ones (`**options`);
    where a class passes those on, the names that its base takes are among them."""
    found: dict[str, Any] = {}
    functions = [target]
    if isinstance(target, type):
        functions = [k.__dict__["__init__"] for k in target.__mro__ if "__init__" in k.__dict__ and k is not object]
    open_ended = []
    for function in functions:
        signature = inspect.signature(function).parameters.values()
        for p in signature:
            if p.name != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
                found.setdefault(p.name, _annotation(function, p))
        open_ended.append(any(p.kind is p.VAR_KEYWORD for p in signature))
        if not open_ended[-1]:
            break
    return found, bool(open_ended) and open_ended[0]


def _annotation(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    if parameter.annotation is parameter.empty:
        return Any
    alone = types.SimpleNamespace(__annotations__={"it": parameter.annotation})
    try:
        found = typing.get_type_hints(alone, inspect.unwrap(function).__globals__)["it"]
    except (NameError, AttributeError, TypeError):  # names that only a type checker imports
        return Any
    return found | None if parameter.default is None else found


def fits(value: Any, kind: Any) -> bool:
    """Whether a plain value can be what an annotation says. Whole numbers are numbers, true and false are not; what
    cannot be told fits."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in inner)
    if kind in (None, NoneType):
        return value is None
    if kind is float:
        return type(value) in (int, float)
    if kind in (int, bool, str):
        return type(value) is kind
    kind = origin or kind
    if kind in (Any, object) or not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return True
    if issubclass(kind, PathLike) or kind is PathLike:
        return isinstance(value, str)
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping)
    if kind in (tuple, list) or issubclass(list, kind):
        if not isinstance(value, list):
            return False
        if kind is tuple and inner and inner[-1] is not ...:
            return len(value) == len(inner) and all(map(fits, value, inner))
        return not inner or all(fits(each, inner[0]) for each in value)
    if isinstance(value, Mapping) and "_target_" in value:
        return issubclass(locate(value["_target_"], TRAINING), kind)
    return isinstance(value, kind) or issubclass(kind, Enum)
