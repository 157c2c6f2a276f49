"""`init=`: a run that starts from another captioner's weights."""

import copy
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.bundle import PARTS, Saved, read_saved, without_weights
from src.config import path_name
from src.data.regions import check_below
from src.data.vocabulary import SPECIALS, Vocabulary
from src.model import CaptioningModel, ConfigError, build

log = logging.getLogger(__name__)

FREE = ("transform", "generation", "control", "defence")
"""Parts without weights: a run may choose others than its start had."""

MATCHER = "matcher."
"""Begins the names of a matcher's weights: which a run need not have because its start has one, nor the start because
the run has one."""

VOCABULARIES = ("extend", "keep")


def started(config: dict[str, Any], given: Collection[str]) -> tuple[dict[str, Any], Saved | None]:
    """The config with its start's parts (`adopt`), and the start; both as they were, where `init` is null.

    Raises:
        BundleError: there is no captioner, or a damaged one.
        ConfigError: another kind of part than it has.
    """
    if not config.get("init"):
        return config, None
    start = read_saved(Path(config["init"]))
    adopted = adopt(config, start.config, given)
    if start.config["matcher"] and not adopted.get("matcher"):
        log.info(
            "init=%s: its matcher does not learn here and would not fit: it is left out", path_name(config["init"])
        )
        kept = {key: value for key, value in start.state.items() if not key.startswith(MATCHER)}
        start = start._replace(state=kept)
    check_fits(adopted, start)
    return adopted, start


def adopt(config: Mapping[str, Any], start: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """A run's config with the parts (bundle.PARTS) of the captioner that it starts from; what the user gave stays.

    Args:
        config: the composed config.
        start: the captioner's own.
        given: what the user or a recipe set: groups (`transform`) and dotted fields (`encoder.frozen`).

    A matcher is taken over where the run has one too, and there alone: one that does not learn fits no longer.

    Raises:
        ConfigError: another kind of part than the captioner has.
    """
    adopted = dict(config)
    if weights := [field for field in given if field.endswith(".weights")]:
        part = weights[0].split(".")[0]
        raise ConfigError(f"init={config['init']} brings the {part}'s weights: leave {weights[0]} out")
    for part in PARTS:
        own, its = config.get(part), start.get(part)
        if (part in given and part in FREE) or (part == "matcher" and not (own and its)):
            continue
        if part in given and _kind(own) != _kind(its):
            raise ConfigError(
                f"init={config['init']} has {part} {_kind(its)}, and {part}= chose {_kind(own)}: leave {part}= out, or "
                "train without init"
            )
        adopted[part] = copy.deepcopy(its)
        for field in given:
            if field.startswith(f"{part}.") and isinstance(adopted[part], dict):
                _copy_field(config, adopted, field.split("."))
    if "encoder.path" not in given:
        check_below(adopted["encoder"], Path(config["data"]["root"]))
    return adopted


def _kind(part: Any) -> str:
    """What a part is, in words: its class, and a backbone's name."""
    if not isinstance(part, Mapping):
        return "null"
    name = str(part.get("_target_", "")).split(".")[-1]
    backbone = part.get("backbone")
    if isinstance(backbone, Mapping):
        name = str(backbone.get("name") or _kind(backbone))
    return name


def _copy_field(source: Mapping[str, Any], target: dict[str, Any], path: list[str]) -> None:
    for key in path[:-1]:
        source = source.get(key) or {}
        below = target.get(key)
        target[key] = dict(below) if isinstance(below, Mapping) else {}
        target = target[key]
    if path[-1] in source:
        target[path[-1]] = source[path[-1]]


def initialise(model: CaptioningModel, vocabulary: Vocabulary, start: Saved, name: str) -> None:
    """Put a captioner's weights into a model of the same parts, whose vocabulary begins with the captioner's words.

    Rows of further words (of the word table and the output layer) start at the mean of the known words' rows, with a
    tenth of their spread: Hewitt, 2021 (https://nlp.stanford.edu/~johnhew/vocab-expansion.html). What does not learn
    and is counted instead (the weights of `embedding=frequency`) stays for them what the model has counted.

    Args:
        model: is changed in place.
        vocabulary: the model's.
        start: the captioner's config, vocabulary and weights.
        name: of it, for messages.

    Raises:
        ConfigError: weights that do not fit; names the first.
    """
    known, words = len(start.vocabulary), len(vocabulary)
    if vocabulary.words[:known] != start.vocabulary.words:
        raise ConfigError(f"init={name}: the vocabulary does not begin with the captioner's words")
    own, learned = model.state_dict(), {key for key, _ in model.named_parameters(remove_duplicate=False)}
    misfits = [key for key in start.state if key not in own]
    filled: dict[int, str] = {}  # tied tensors are one memory
    with torch.no_grad():
        for key, value in start.state.items():
            if key in misfits:
                continue
            target = own[key]
            first = filled.setdefault(target.data_ptr(), key)
            if first != key and not torch.equal(start.state[first], value):
                misfits.append(f"{first} and {key} differ, and here they are tied")
            elif target.shape == value.shape:
                target.copy_(value)
            elif target.shape[:1] + value.shape[:1] == (words, known) and target.shape[1:] == value.shape[1:]:
                target.copy_(_with_new_rows(value, words) if key in learned else torch.cat([value, target[known:]]))
            else:
                misfits.append(f"{key} {tuple(value.shape)} into {tuple(target.shape)}")
    new = MATCHER if start.config["matcher"] is None else ()  # one that begins at random
    misfits += [
        f"{key} is not there"
        for key, tensor in own.items()
        if tensor.data_ptr() not in filled and not key.startswith(new)
    ]
    if misfits:
        raise _misfit(name, misfits)
    first = start.config["provenance"].get("encoder_weights", "unknown")
    model.encoder.backbone.weights_used = f"init={name} ({first})"
    model.encoder.train(model.encoder.training)  # its batch norm has loaded statistics now
    old = start.vocabulary
    seen = sum(vocabulary.counts[i] > old.counts[i] for i in old.index.values())
    new_controls = len(vocabulary.controls) - len(old.controls)
    log.info(
        "init=%s: %s words kept, of which %s occur in these captions; %s added%s, which start at the mean of the "
        "others",
        name,
        f"{len(old.index):,}",
        f"{seen:,}",
        f"{len(vocabulary.index) - len(old.index):,}",
        f", with {new_controls} control tokens" if new_controls else "",
    )


def check_fits(config: Mapping[str, Any], start: Saved) -> None:
    """Refuse settings of a run that give its model other weights than its start has, before any work.

    Raises:
        ConfigError: as `initialise`.
    """
    try:
        with torch.device("meta"):
            own = build(without_weights(dict(config)), start.vocabulary).state_dict()
    except (NotImplementedError, RuntimeError):  # a network that cannot be built without memory: its turn comes later
        return
    misfits = [
        f"{key} {tuple(value.shape)}" + (f" into {tuple(own[key].shape)}" if key in own else " has no place")
        for key, value in start.state.items()
        if key not in own or own[key].shape != value.shape
    ]
    if misfits:
        raise _misfit(config["init"], misfits)


def _misfit(name: str, misfits: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"init={name}: {len(misfits)} of its weights do not fit this run's settings (first: {misfits[0]}): leave out "
        "what changes encoder, embedding, attention or decoder"
    )


def _with_new_rows(known: Tensor, count: int) -> Tensor:
    old = known[len(SPECIALS) :].float()
    spread = old.std(0, keepdim=True) * 0.1
    new = old.mean(0, keepdim=True) + spread * torch.randn(count - len(known), *known.shape[1:])
    return torch.cat([known, new.to(known.dtype)])


def freeze(model: CaptioningModel, names: Collection[str]) -> None:
    """Stop parts of a model from learning.

    Args:
        model: whose.
        names: of its modules, e.g. `decoder.embedding`.

    Raises:
        ConfigError: there is no such part; the message lists the decoder's.
    """
    parts = dict(model.named_modules())
    for name in names:
        if name == "encoder" or f"{name}.".startswith("encoder.backbone."):
            raise ConfigError(f"freeze={name}: encoder.frozen=true does that, and caches what the backbone says")
        if name not in parts or not list(parts[name].parameters()):
            choices = [f"decoder.{key}" for key, part in model.decoder.named_children() if list(part.parameters())]
            raise ConfigError(f"freeze={name}: no such part; the decoder's are {', '.join(choices)}")
        parts[name].requires_grad_(False)
