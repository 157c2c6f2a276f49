"""Refuse a configuration that cannot work before any work: no data read, no folder made, no feature computed."""

import copy
import importlib.util
import inspect
import os
import re
import shutil
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Union, get_args, get_origin

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback, WeightAveraging
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from src import help
from src.annotations import fits, parameters
from src.bundle import SHIPPED, bundle_folder, looks_saved, without_vectors
from src.config import device, precision, quiet
from src.corruptions import KINDS, SEVERITIES
from src.data.control import tag_tokens
from src.data.module import SPLITS, CaptionData, check_fields
from src.data.regions import region_files
from src.data.shards import is_address
from src.data.transforms import Preprocess
from src.data.vocabulary import Vocabulary
from src.distributed import place
from src.encoders.pretrained import PretrainedBackbone
from src.help import no_field, shown
from src.initial import VOCABULARIES, freeze
from src.metrics.captions import METRICS
from src.metrics.groups import GroupWords
from src.metrics.java import INSTALL_JAVA, find_java
from src.metrics.retrieval import RETRIEVAL
from src.model import TRAINING, ConfigError, build, instantiate, locate
from src.objectives import AdversarialTraining, Distillation, Objective
from src.prepare.scenes import make_scenes
from src.ranges import at_least
from src.results import PerImage, check_per_image
from src.runs import last_checkpoint, run_folder
from src.slurm import on_cluster
from src.strategies import FullySharded, trainer_arguments

FUNCTIONS: dict[str, Callable[..., Any]] = {"data.make": make_scenes, "trainer": lightning.Trainer}
"""What takes the fields of parts that name no class."""
TRAINER_GIVEN = ("callbacks", "logger", "default_root_dir", "use_distributed_sampler", "num_sanity_val_steps")
"""The Trainer's arguments that a run sets itself."""
OPTIONAL = ("attention", "latent", "matcher", "scheduler", "callbacks", "logger")
"""Groups that can be left out, besides those that are null by default."""
NO_VALIDATION = (
    "there are no validation pictures, and their captions choose the best checkpoint: set data.val=FILE, or "
    "data.split=[0.9,0.05,0.05] to divide data.train by picture"
)
LOGGED = (
    "loss",
    "cross_entropy",
    "token_accuracy",
    "attention_penalty",
    "exact_match",
    "distinct_words",
    "mean_length",
)
"""What validation logs besides the metrics; an objective may log more."""

REFUSALS = (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException)
"""What constructors raise of arguments that they do not take."""

Choice: Any = Literal  # of names that are known at run time only
PRECISION = Literal["auto"] | typing.get_type_hints(lightning.Trainer.__init__)["precision"]
FIELDS: dict[str, Any] = {
    "model": str | list[str] | None,
    "predictions": str | None,
    "references": str | None,
    "images": str | None,
    "training": str | None,
    "spice": str | None,
    "clip": str | None,
    "groups": str | None,
    "per_image": PerImage,
    "diversity": int | None,
    "rerank": int | None,
    "transfer": list[str],
    "budgets": list[float] | None,
    "ckpt": str | None,
    "init": str | None,
    "init_vocabulary": Choice[VOCABULARIES],
    "freeze": list[str],
    "output": str | None,
    "regions": str | None,
    "limit": int | None,
    "length": int | str | None,
    "tags": str | list[str] | None,
    "device": str | None,
    "precision": PRECISION,
    "split": Choice[SPLITS],
    "evaluate_splits": list[Choice[SPLITS]] | None,
    "metrics": list[Choice[METRICS]],
    "validation_metrics": list[Choice[METRICS]],
    "measure": Choice[METRICS],
    "kinds": list[Choice[KINDS]] | None,
    "severities": list[Choice[SEVERITIES]],
    "relative_to": str | None,
    "data.cache_workers": int | None,
}
"""Kinds of fields that no class takes, where their default does not tell."""


def check(config: Mapping[str, Any], command: str = "train", here: bool = True) -> None:
    """Refuse unknown fields, values of the wrong kind, and parts that cannot work together.

    Args:
        config: composed and resolved, as plain values.
        command: whose primary configuration it is, one of CHECKS.
        here: this is the machine that will do the work: its files, devices and packages are looked at too.

    Raises:
        ConfigError: one sentence that names the field, and what can be chosen.
    """
    _check_names(config, command)
    for name, value in config.items():
        if isinstance(value, Mapping):
            _check_part(name, value)
    try:
        CHECKS[command](config, here)
    except ValueError as error:  # of the parts' own constructors too
        message = one_line(error)
        for path, target in _targets(config):
            message = message.replace(f"{target}:", f"{path}:")  # a user knows the part by its place
        raise ConfigError(message) from error


def _targets(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            if "_target_" in value:
                yield prefix + name, value["_target_"]
            yield from _targets(value, f"{prefix}{name}.")


# ------------------------------------------------------------------ names and kinds


def _check_names(config: Mapping[str, Any], command: str) -> None:
    """The groups and fields at the top: all of them there, none besides, each of its default's kind."""
    groups, fields = help.groups(command), help.fields(command)
    known = [*groups, *fields]
    for name in config:
        if name not in known:
            raise ConfigError(unknown(name, command))
    for name in known:
        if name not in config and not (name in groups and (name in OPTIONAL or groups[name] is None)):
            choices = f"choose one of {', '.join(help.choices(name))}" if name in groups else "give it a value"
            raise ConfigError(f"{name} is missing: {choices}")
    for name, default in fields.items():
        _check_value(name, config[name], FIELDS.get(name, _kind_of(default)))


def unknown(name: str, command: str) -> str:
    """The sentence on a name that is neither a group nor a field."""
    known = [*help.groups(command), *help.fields(command)]
    guess = help.meant(name, known).strip(" ()")
    return f"{name}: no such group or field; {guess or 'there are ' + ', '.join(known)}"


def _check_part(path: str, node: Mapping[str, Any]) -> None:
    """The fields of one part of the configuration, and the parts within it, against what takes them."""
    try:
        target = locate(node["_target_"], TRAINING) if "_target_" in node else FUNCTIONS.get(path)
    except ConfigError as error:
        raise ConfigError(f"{path}.{error}") from error
    known, open_ended = parameters(target) if target else _plain_fields(path)
    if path == "trainer":
        known = {name: kind for name, kind in known.items() if name not in TRAINER_GIVEN} | {"precision": PRECISION}
    for name, value in node.items():
        if name == "_target_":
            continue
        if name not in known and not open_ended:
            raise ConfigError(no_field(path, name, _listed(target, node, name)))
        inside = f"{path}.{name}"
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping) and ("_target_" in each or inside in FUNCTIONS):
                _check_part(inside, each)
        _check_value(inside, value, known.get(name, Any))


def _plain_fields(group: str) -> tuple[dict[str, Any], bool]:
    """As `parameters`, of a group that names no class: what its files in conf/ set."""
    written: dict[str, list[Any]] = {}
    for choice in help.choices(group):
        for name, value in help.choice_fields(group, choice).items():
            written.setdefault(name, []).append(value)
    if all(isinstance(value, dict) and "_target_" in value for values in written.values() for value in values):
        return {}, True  # a collection of parts, such as callbacks, by any names; or no group of conf/ at all
    taken = parameters(CaptionData)[0] if group == "data" else {}
    kinds = {name: FIELDS.get(f"{group}.{name}", _kind_of(*defaults)) for name, defaults in written.items()}
    return {name: taken.get(name, kind) for name, kind in kinds.items()}, False


def _listed(target: Callable[..., Any] | None, node: Mapping[str, Any], but: str) -> list[str]:
    """The fields to choose from in a part: those that it has, and what its class has defaults for."""
    names = [name for name in node if name not in ("_target_", but)]
    if target is not None and target is not make_scenes:
        given = inspect.signature(target).parameters.values()
        names += [p.name for p in given if p.default is not p.empty and p.name not in (*names, *TRAINER_GIVEN)]
    return names


def _kind_of(*defaults: Any) -> Any:
    """The kind of a field from its defaults in conf/; one that is null in all of them could be anything."""
    kinds = [types.GenericAlias(list, _kind_of(*each)) if isinstance(each, list) else type(each) for each in defaults]
    return Any if set(kinds) <= {NoneType} else Union[tuple(kinds)]  # noqa: UP007


def _check_value(path: str, value: Any, kind: Any) -> None:
    if not fits(value, kind):
        names = [shown(name) for name in _literals(kind)]
        wrong = [each for each in (value if isinstance(value, list) else [value]) if shown(each) not in names]
        guess = help.meant(str(wrong[0]), names) if wrong else ""
        if not names and fits(str(value), kind) and not isinstance(value, list | Mapping | None):
            guess = f"; in a shell, \"{path}='{value}'\""
        raise ConfigError(f"{path}={shown(value)}: {_described(kind)} is wanted{guess}")


def _literals(kind: Any) -> list[Any]:
    inner = get_args(kind)
    return list(inner) if get_origin(kind) is Literal else [name for each in inner for name in _literals(each)]


WORDS = {int: "a whole number (int)", float: "a number (float)", bool: "true or false (bool)", str: "text (str)"}


def _described(kind: Any) -> str:
    """What a field takes, in words."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    names = dict.fromkeys(shown(name) for each in kinds if get_origin(each) is Literal for name in get_args(each))
    said = [f"one of {', '.join(names)}"] if names else []
    for each in kinds:
        origin, inner = get_origin(each), get_args(each)
        each = origin or each
        if each in WORDS:
            said.append(WORDS[each])
        elif not isinstance(each, type) or each is NoneType:
            continue
        elif issubclass(each, PathLike) or each is PathLike:
            said.append(WORDS[str])
        elif issubclass(each, Mapping):
            said.append("a mapping")
        elif each in (tuple, list) or issubclass(list, each):
            of = f" of {len(inner)}" if each is tuple and inner[-1:] != (...,) else ""
            said.append(f"a list{of}, each item {_described(inner[0])}," if inner else "a list")
        elif each.__module__.startswith("src."):
            said.append(f"a part with its own _target_, a {each.__name__},")
    if NoneType in kinds or None in kinds:
        said.append("null")
    return " or ".join(dict.fromkeys(said)) or "another value"


# ------------------------------------------------------------------ parts that work together


def _check_data(data: Mapping[str, Any], here: bool) -> None:
    if missing := [name for name in _plain_fields("data")[0] if name not in data]:
        raise ConfigError(f"data.{missing[0]} is missing: give it a value, or null")
    check_fields(data)
    at_least(0, "data", cache_workers=data["cache_workers"])
    at_least(1, "data", cache_views=data["cache_views"])
    if here and not data["make"]:  # what is made on first use need not be there
        root = Path(data["root"])
        if data["form"] == "shards" and is_address(data["root"]):
            return
        if not root.is_dir():
            raise ConfigError(
                f"data.root={root}: no such folder; give the one that image paths and TSVs are relative to"
            )
        for name in (*SPLITS, "nouns"):
            if data["form"] == "shards" and name in SPLITS:
                continue  # patterns too, which are looked at as they are read
            if data[name] and not (root / data[name]).is_file():
                raise ConfigError(f"data.{name}={data[name]}: no such file; {root / data[name]} is looked for")


def _check_training(config: Mapping[str, Any], here: bool) -> None:
    at_least(0, "", seed=config["seed"])
    _check_data(config["data"], here)
    if not config["data"]["train"]:
        raise ConfigError("data.train is not set: the vocabulary is built from the training captions")
    if not config["data"]["val"] and config["data"]["split"] is None:
        raise ConfigError(NO_VALIDATION)
    if here:
        _check_package("tokenizer", config["tokenizer"], "tokenizer=character")
    tokenizer, preprocess = instantiate(config["tokenizer"]), instantiate(config["transform"])
    _check_views(config, preprocess.augment is not None)
    _check_regions(config, preprocess, here)
    _check_defence(config, preprocess.augment is not None)
    make = config["data"]["make"]
    if make and make.get("language") == "zh" and tokenizer.evaluation == "ptb":
        raise ConfigError("data.make.language=zh: Chinese has no spaces between words; choose tokenizer=character")
    objective, _ = (_construct(part, config[part]) for part in ("objective", "generation"))
    for path in objective.paths if here and isinstance(objective, Distillation) else ():
        if not (Path(path).exists() and looks_saved(Path(path))):
            raise ConfigError(f"objective.teachers: {path}: no captioner there; give a bundle/, a run or a .ckpt")
    if isinstance(objective, AdversarialTraining):
        if "max_regions" in config["encoder"]:
            raise ConfigError("objective changes pixels, and encoder reads regions computed beforehand: choose another")
        if config["data"]["cache"] and config["encoder"].get("frozen", True):
            raise ConfigError("objective changes pixels, and data.cache keeps features: set data.cache=false")
    if config.get("control"):
        _construct("control", config["control"])
        for field in ("length", "tags"):
            if config["control"].get(field) and field not in objective.follows:
                raise ConfigError(
                    f"objective: it learns from captions that are drawn without control tokens of control.{field}, and "
                    "would not learn to follow them: add control=null, or choose objective=cross_entropy or variational"
                    + (" (self_critical follows tags)" if field == "tags" else "")
                )
    _check_model(config, objective, here)
    resumed = config["ckpt"] and (config["ckpt"] != "last" or last_checkpoint(run_folder(config)).exists())
    if objective.needs_start and not config["init"] and not resumed:
        raise ConfigError(
            "objective: it goes on from a captioner that speaks already: give init=RUN, one trained with "
            "objective=cross_entropy, or objective.from_random=true"
        )
    last, unfreeze = config["trainer"].get("max_epochs"), config["encoder"].get("unfreeze_epoch") or 0
    if isinstance(last, int) and 0 < last <= unfreeze:
        raise ConfigError(
            f"encoder.unfreeze_epoch={unfreeze}: trainer.max_epochs={last} ends before; give one from 0 to {last - 1}"
        )
    optimizer = _construct("optimizer", config["optimizer"], params=[nn.Parameter(torch.zeros(1))])
    if config.get("scheduler"):
        _construct("scheduler", config["scheduler"], optimizer=optimizer, total_steps=10)
    for name, part in (config.get("callbacks") or {}).items():
        if part:
            _check_kind(f"callbacks.{name}", part, Callback)
            _construct(f"callbacks.{name}", part)
            _check_monitor(f"callbacks.{name}", part, config, here)
    for name, part in (config.get("logger") or {}).items():
        if part:  # not constructed: a logger may begin to write
            _check_kind(f"logger.{name}", part, Logger)
            if here:
                _check_package(f"logger.{name}", part, "logger=default")
    if config["ckpt"] not in (None, "last") and here and not Path(config["ckpt"]).exists():
        raise ConfigError(f"ckpt={config['ckpt']}: no such file; give `last` or a checkpoint's path")
    if here:
        if config["compile"] and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
            raise ConfigError(
                "compile=true needs a C++ compiler, and there is no g++: install one, or set compile=false"
            )
        _check_trainer(config)


def _check_views(config: Mapping[str, Any], augmented: bool) -> None:
    """Several views of the training pictures are cached: there is something to vary, and something to cache."""
    views = f"data.cache_views={config['data']['cache_views']}"
    if config["data"]["cache_views"] == 1:
        return
    if not augmented:
        raise ConfigError(f"{views}: nothing varies the pictures; add transform=augmented, or set data.cache_views=1")
    if not config["data"]["cache"]:
        raise ConfigError(f"{views}: data.cache=false keeps no features; set data.cache=true, or data.cache_views=1")
    if not (frozen := config["encoder"].get("frozen", True)):
        raise ConfigError(
            f"{views}: encoder.frozen={shown(frozen)} leaves nothing to cache; set encoder.frozen=true or a number of "
            "stages, or data.cache_views=1"
        )


def _check_regions(config: Mapping[str, Any], preprocess: Preprocess, here: bool) -> None:
    """Regions computed beforehand are there, and nothing is asked of pixels, which are not read."""
    if "max_regions" not in config["encoder"]:
        return
    if preprocess.fit != "squash" or preprocess.augment is not None:
        raise ConfigError(
            "transform: regions computed beforehand are of whole pictures as they are, whose pixels are not read: "
            "choose transform=squash"
        )
    if here:
        region_files(config["encoder"], Path(config["data"]["root"]))


def _check_defence(config: Mapping[str, Any], augmented: bool) -> None:
    """There are pixels to transform, and what is drawn anew for every picture is not kept in a cache."""
    if not config.get("defence"):
        return
    defence = _construct("defence", config["defence"])
    if "max_regions" in config["encoder"]:
        raise ConfigError(
            "defence: encoder=precomputed reads no pixels that could be transformed: leave defence out, or choose "
            "another encoder"
        )
    cached = config["data"]["cache"] and config["encoder"].get("frozen", True)
    if defence.random and cached and (not augmented or config["data"]["cache_views"] > 1):
        raise ConfigError(
            "defence: it is random, and the feature cache would keep one draw of each picture: set data.cache=false, "
            "or choose defence=jpeg, bits or blur"
        )


def check_search(node: Mapping[str, Any]) -> None:
    """Refuse a search's config whose fields or values it does not take.

    Raises:
        ConfigError: one sentence that names the field, and what can be chosen.
    """
    _check_part("generation", node)
    _construct("generation", node)


OF_MODELS = ("generation", "defence", "regions", "length", "tags", "calibrate", "reuse", "rerank")
"""Fields of an evaluation that captions which are there already have no use for."""
OF_PREDICTIONS = ("references", "images", "training")


def evaluated(config: Mapping[str, Any]) -> str:
    """Which of `model`, `predictions`, `baseline` an evaluation is of.

    Raises:
        ConfigError: of none, or of several.
    """
    given = [name for name in ("model", "predictions", "baseline") if config.get(name) not in (None, "")]
    if len(given) == 1:
        return given[0]
    wanted = "model=RUN, predictions=FILE or baseline=CHOICE"
    raise ConfigError(
        f"{' and '.join(given)}: give one of {wanted}" if given else f"what is to be scored? Give {wanted}"
    )


def _check_evaluation(config: Mapping[str, Any], here: bool) -> None:
    at_least(0, "", pictures=config["pictures"])
    at_least(1, "", limit=config["limit"])
    at_least(2, "", diversity=config["diversity"])
    at_least(1, "", rerank=config["rerank"])
    at_least(1, "", devices=config["devices"])
    check_per_image(config["per_image"])
    source = evaluated(config)
    unused = {"model": OF_PREDICTIONS, "predictions": (*OF_MODELS, "limit"), "baseline": (*OF_MODELS, *OF_PREDICTIONS)}
    for name in (*unused[source], *(["diversity"] if source == "baseline" else [])):
        if config.get(name):
            raise ConfigError(f"{name}={shown(config[name])}: {source}={shown(config[source])} has no use for it")
    if source != "model" and config["devices"] > 1:
        raise ConfigError(f"devices={config['devices']}: {source}={shown(config[source])} has no use for it")
    for name in ("spice", "clip", "images"):
        if here and config[name] and not Path(config[name]).is_dir():
            raise ConfigError(f"{name}={config[name]}: no such folder")
    if here and config["groups"]:
        GroupWords.load(Path(config["groups"]))
    if source == "model":
        _check_model_evaluation(config, here)
    _check_devices(config["device"], config["devices"], here)
    if source == "predictions" and config["references"]:
        return  # which need no data
    for name in ("images", "training"):
        if config[name]:
            raise ConfigError(f"{name}={config[name]}: it goes with references=FILE; the data has its own")
    _check_split(config, here)
    if source == "baseline":
        _construct("baseline", config["baseline"])
        if not config["data"]["train"]:
            raise ConfigError("data.train is not set: a baseline's captions are the training captions")


def _check_robustness(config: Mapping[str, Any], here: bool) -> None:
    at_least(0, "", pictures=config["pictures"], seed=config["seed"])
    at_least(1, "", limit=config["limit"])
    for name in ("kinds", "severities", "model"):
        if config[name] == []:
            raise ConfigError(f"{name}=[]: give at least one")
    if config["measure"] not in config["metrics"]:
        raise ConfigError(f"measure={config['measure']}: add it to metrics, which are {shown(config['metrics'])}")
    models = named_models(config["model"] or SHIPPED.name)
    if twice := [name for name in models if models.count(name) > 1]:
        raise ConfigError(f"model: {twice[0]} is named twice")
    if config["relative_to"] not in (None, *models):
        raise ConfigError(f"relative_to={config['relative_to']}: one of model is wanted, {', '.join(models)}")
    for model in models:
        if here and not bundle_folder(Path(model)).exists():
            raise ConfigError(
                f"model={model}: no such file, directory or captioner; give a bundle/ directory, a run or a .ckpt file"
            )
    for part in ("generation", "defence"):
        if config.get(part):
            _construct(part, config[part])
    tag_tokens(config["tags"] or "")
    _check_devices(config["device"], 1, here)
    _check_split(config, here)


def _check_model_evaluation(config: Mapping[str, Any], here: bool) -> None:
    models = named_models(config["model"])
    if not models:
        raise ConfigError("model=[]: name a captioner, or several of one vocabulary")
    for model in models:
        if here and not Path(model).exists():
            raise ConfigError(f"model={model}: no such file or directory; give a bundle/ directory or a .ckpt file")
    if config["calibrate"]:
        _check_calibration(config, models)
    for part in ("generation", "defence"):
        if config.get(part):
            _construct(part, config[part])
    tag_tokens(config["tags"] or "")


def attack_sizes(config: Mapping[str, Any]) -> list[float]:
    """The budgets of an attack, in its norm's units, ascending; 0, the pictures as they are, is always among them.

    Raises:
        ConfigError: one that no 8-bit picture can use.
    """
    norm = config["attack"].get("norm", "linf")
    at_least(0, "", budgets=config["budgets"])
    sizes = config["budgets"] or ([1, 2, 4, 8] if norm == "linf" else [0.5, 1, 2, 4, 8])
    if norm == "linf" and (odd := [size for size in sizes if size not in range(256)]):
        raise ConfigError(f"budgets={sizes}: pixels change by whole 255ths: {odd[0]:g} is none of 0 to 255")
    return sorted({0.0, *map(float, sizes)})


def _check_attack(config: Mapping[str, Any], here: bool) -> None:
    at_least(0, "", pictures=config["pictures"])
    at_least(1, "", limit=config["limit"], samples=config["samples"], batch_size=config["batch_size"])
    for part in ("attack", "goal", "generation", "defence"):
        if config.get(part):
            _construct(part, config[part])
    attack_sizes(config)
    if not config["metrics"]:
        raise ConfigError(f"metrics=[]: choose one or more of {', '.join(METRICS)}")
    if isinstance(config["model"], list):
        raise ConfigError(f"model={shown(config['model'])}: one captioner is attacked; name others with transfer")
    names = [config["model"] or str(SHIPPED), *config["transfer"]]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"transfer: {twice[0]} is there twice; the attacked one is shown its pictures anyhow")
    for name in names:
        if here and not looks_saved(Path(name)):
            raise ConfigError(f"{name}: no captioner there; give a bundle/, a run's folder or name, or a .ckpt")
    _check_devices(config["device"], 1, here)
    tag_tokens(config["tags"] or "")
    _check_split(config, here)


def _check_split(config: Mapping[str, Any], here: bool) -> None:
    data, split = config["data"], config["split"]
    _check_data(data, here)
    if data["split"] is None and not data[split]:
        given = ", ".join(name for name in SPLITS if data[name])
        raise ConfigError(f"split={split}: this data has {given}; set data.{split}=FILE")


def _check_devices(name: str | None, processes: int, here: bool) -> None:
    kind, _, number = (name or device()).partition(":")
    gpus = torch.cuda.device_count()
    there = {"cpu": True, "cuda": gpus > 0, "mps": torch.backends.mps.is_available()}
    if kind not in there or (here and not there[kind]):
        raise ConfigError(f"device={name}: choose one of {', '.join(k for k in there if there[k])}, or null")
    if here and kind != "cpu" and processes > (gpus if kind == "cuda" and not number else 1):
        raise ConfigError(f"devices={processes}: more than there are of {name or kind}; set device=cpu, or fewer")


def named_models(model: str | list[str]) -> list[str]:
    """The captioners that `model` names: one, or an ensemble's."""
    return [model] if isinstance(model, str) else list(model)


def _check_calibration(config: Mapping[str, Any], models: list[str]) -> None:
    if config["split"] != "val":
        raise ConfigError(
            f"calibrate=true with split={config['split']}: a captioner is calibrated on validation pictures; set "
            "split=val"
        )
    if len(models) > 1 or not looks_saved(Path(models[0])) or models[0].endswith(".ckpt"):
        raise ConfigError("calibrate=true: it is kept in a bundle/ directory, so model is to be one")
    if "CIDEr" not in config["metrics"]:
        raise ConfigError("calibrate=true: confidence is calibrated to CIDEr; add it to metrics")
    if config["leave_one_out"]:
        raise ConfigError("calibrate=true: confidence is calibrated to all references; set leave_one_out=false")


def _check_kind(path: str, node: Any, kind: type) -> None:
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(f"{path}={shown(node)}: a part with its own _target_, a {kind.__name__}, or null is wanted")
    if not issubclass(locate(node["_target_"], TRAINING), kind):
        raise ConfigError(f"{path}._target_={node['_target_']}: a {kind.__name__} is wanted")


def _check_package(path: str, node: Mapping[str, Any], instead: str) -> None:
    package = getattr(locate(node["_target_"], TRAINING), "package", None)
    if package and importlib.util.find_spec(package) is None:
        raise ConfigError(f"{path} needs {package}: `pip install {package}` first, or choose {instead}")


def _check_model(config: Mapping[str, Any], objective: Objective, here: bool) -> None:
    """Build the model and show it a picture, both without memory or weights, on the `meta` device, where there are no
    pixels that a defence could transform."""
    embedding = config["embedding"]
    if config["init"] or not here:
        embedding = without_vectors(embedding)
    else:  # whose vectors are looked at, not read
        _check_package("embedding", embedding, "embedding=learned")
    encoder = copy.deepcopy(config["encoder"])
    _without_weights("encoder", encoder, here)
    size = config["transform"].get("size", 224)
    try:
        with torch.device("meta"), torch.no_grad(), quiet():
            model = build(
                {**config, "encoder": encoder, "embedding": embedding, "defence": None},
                Vocabulary.build([["word"]], min_count=1),
            ).eval()
            model.memory(model.encoder.blank(size))
            freeze(model, config["freeze"])
            objective.check(model)
    except TypeError as error:
        raise ConfigError(_keyed("encoder.backbone", config["encoder"].get("backbone", {}), error)) from error
    except (AssertionError, RuntimeError) as error:
        if "meta" in str(error).lower():  # a network that cannot be built without memory: its turn comes later
            return
        raise ConfigError(f"encoder with transform.size={size}: {one_line(error)}") from error


def _without_weights(path: str, node: dict[str, Any], here: bool) -> None:
    """Let no backbone in a part of the configuration read its weights; a file must be there."""
    weights = node.get("weights")
    if isinstance(weights, str) and weights not in ("auto", "imagenet", "random"):
        is_path = "/" in weights or Path(weights).suffix in (".pth", ".pt", ".bin", ".safetensors")
        if here and is_path and not Path(weights).is_file():
            raise ConfigError(
                f"{path}.weights={weights}: no such file; give a state dict's path, or auto, imagenet or random"
            )
        node["weights"] = "random"
    elif weights and "_target_" in node and issubclass(locate(node["_target_"]), PretrainedBackbone):
        node["weights"] = "random"
    for name, value in node.items():
        if isinstance(value, dict):
            _without_weights(f"{path}.{name}", value, here)


def _check_monitor(path: str, node: Mapping[str, Any], config: Mapping[str, Any], here: bool) -> None:
    """A callback waits for a score under the name that validation gives it, and for one that is computed."""
    monitor, metrics = node.get("monitor"), config["validation_metrics"]
    if monitor is None:
        return
    scores, logged = [f"val/{name}" for name in metrics], [f"val/{name}" for name in LOGGED]
    if config.get("matcher"):
        logged += [f"val/{name}" for name in RETRIEVAL]
    elif monitor.removeprefix("val/") in RETRIEVAL:
        raise ConfigError(f"{path}.monitor={monitor}: it is a matcher's, and there is none; add objective=contrastive")
    choices = ", ".join([*scores, "val/loss"])
    if monitor not in (*scores, *logged):
        if monitor.removeprefix("val/") in METRICS and monitor.startswith("val/"):
            raise ConfigError(
                f"{path}.monitor={monitor}: validation_metrics={shown(metrics)} does not compute it; add it there, or "
                f"choose one of {choices}"
            )
        name = monitor if "/" in monitor else f"val/{monitor}"
        if guess := help.meant(name, [*scores, *(f"val/{metric}" for metric in METRICS)]):
            raise ConfigError(f"{path}.monitor={monitor}: no such score; choose one of {choices}{guess}")
    if monitor.endswith(("loss", "cross_entropy", "median_rank")) and node.get("mode", "min") == "max":
        raise ConfigError(f"{path}.mode=max: {monitor} is better where it is lower; set {path}.mode=min")
    if monitor == "val/METEOR" and here and find_java() is None:
        raise ConfigError(f"{path}.monitor=val/METEOR needs Java, and none was found; {INSTALL_JAVA}")


def _check_trainer(config: Mapping[str, Any]) -> None:
    """Make Lightning's Trainer once, for what it refuses: devices that are not there, strategies, limits."""
    at_least(
        1, "trainer", accumulate_grad_batches=config["trainer"].get("accumulate_grad_batches")
    )  # Lightning takes 0
    # `deterministic` and `benchmark` would change this whole process, the later jobs of a sweep too.
    options = {
        name: value
        for name, value in on_cluster(config["trainer"]).items()
        if name not in ("deterministic", "benchmark")
    }
    _check_processes(options)

    def make(**given: Any) -> lightning.Trainer:
        # `auto` can always be had; to ask the GPU for it would take memory there.
        given = trainer_arguments(given, precision(given.get("precision", "auto"), ""))
        return lightning.Trainer(**given, logger=False, use_distributed_sampler=False, num_sanity_val_steps=0)

    with quiet():
        try:
            trainer = make(**options)
        except REFUSALS as error:
            message = _keyed("trainer", options, error, make)
            if message.startswith("trainer.accelerator="):
                message += f" (choose {', '.join(dict.fromkeys(['auto', 'cpu', device().replace('cuda', 'gpu')]))})"
            raise ConfigError(message) from error
    if isinstance(trainer.strategy, FullySharded):
        _check_sharded(config, trainer.world_size)
    if config.get("scheduler") and trainer.max_epochs == trainer.max_steps == -1:
        raise ConfigError("a schedule needs the run's length: set trainer.max_epochs or max_steps, or ~scheduler")


def _check_processes(trainer: Mapping[str, Any]) -> None:
    """Several machines need somebody to start the processes of each."""
    if (trainer.get("num_nodes") or 1) > 1 and place().world == 1 and "NODE_RANK" not in os.environ:
        raise ConfigError(
            f"trainer.num_nodes={trainer['num_nodes']}: start this command on every node, by srun or by torchrun "
            "(docs/distributed.md); on this machine alone, set trainer.num_nodes=1"
        )


def _check_sharded(config: Mapping[str, Any], processes: int) -> None:
    """No process has all the weights while it trains."""
    if processes == 1:
        raise ConfigError(
            "trainer=fsdp: there is one device here, and none to share the weights with: choose trainer=default, or "
            "trainer=ddp_cpu for two processes without a GPU"
        )
    if issubclass(locate(config["objective"]["_target_"]), AdversarialTraining):
        raise ConfigError("objective with trainer=fsdp: not tried together: choose trainer=ddp")
    if config["compile"]:
        raise ConfigError(
            "compile=true with trainer=fsdp: not tried together: set compile=false, or choose trainer=ddp"
        )
    for name, part in (config.get("callbacks") or {}).items():
        if part and issubclass(locate(part["_target_"], TRAINING), WeightAveraging):
            raise ConfigError(
                f"callbacks.{name} with trainer=fsdp: an average needs all the weights in one place: choose "
                "callbacks=default, or trainer=ddp"
            )


CHECKS = {
    "train": _check_training,
    "evaluate": _check_evaluation,
    "attack": _check_attack,
    "robustness": _check_robustness,
}
"""Of each command."""


# ------------------------------------------------------------------ what a constructor says


def _construct(path: str, node: Mapping[str, Any], **given: Any) -> Any:
    def make(**fields: Any) -> Any:
        return instantiate({"_target_": node["_target_"], **fields}, TRAINING, **given)

    options = {name: value for name, value in node.items() if name != "_target_"}
    try:
        return make(**options)
    except REFUSALS as error:
        raise ConfigError(_keyed(path, node, error, make)) from error


def _keyed(path: str, node: Mapping[str, Any], error: Exception, make: Callable[..., Any] | None = None) -> str:
    """What a constructor refused, with the field that it is about: the one without which there is no complaint."""
    message = one_line(error)
    if found := re.search(r"unexpected keyword argument '(\w+)'", message):
        target = locate(node["_target_"], TRAINING) if "_target_" in node else None
        return no_field(path, found[1], _listed(target, node, found[1]))
    if f"{path}." in message or isinstance(error, ConfigError):
        return message
    options = {name: value for name, value in node.items() if name != "_target_"}
    for name in options if make else ():
        try:
            make(**{key: value for key, value in options.items() if key != name})  # type: ignore[misc]
        except Exception:
            continue
        return f"{path}.{name}={shown(options[name])}: {message}"
    return f"{path}: {message}"


def one_line(error: BaseException) -> str:
    """An error's message on one line."""
    text = f"{error}: {error.__cause__}" if error.__cause__ and not str(error) else str(error)
    return " ".join(text.split())
