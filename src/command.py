"""What the Hydra commands do before Hydra: print help, and refuse a command line that cannot work in one sentence."""

import functools
import itertools
import math
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from src import help
from src.check import OPTIONAL, check, one_line, unknown
from src.config import CONF, given_fields, plain
from src.files import read_in_part
from src.initial import started
from src.model import ConfigError
from src.runs import flat
from src.terminal import escaped, guarded
from src.trials import check_sweeper, is_study

WHOLE_GRID = 16
"""A sweep of no more jobs than these is checked job by job; of a larger one, each value once."""


def command(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a `hydra.main` whose primary configuration is `name`: `--help` is our own, and what cannot be composed
    or cannot work ends the command with one sentence on stderr and exit status 1, before Hydra makes a folder.
    HYDRA_FULL_ERROR=1 shows the whole error instead."""

    def decorate(main: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(main)
        def wrapped(config: DictConfig | None = None) -> Any:
            if config is not None:
                return main(config)
            try:
                flags = _flags()
                if flags.help:
                    with read_in_part():
                        print(help.help_text(name, flags.overrides))
                    return None
                # Hydra answers these by itself; where the configurations are elsewhere, ours say nothing of them.
                if not (flags.hydra_help or flags.shell_completion or flags.experimental_rerun or flags.config_path):
                    refuse(name, flags)
                with guarded():  # what is logged holds captions and names
                    return main()
            except ValueError as error:  # Hydra's own are on flags that exclude each other
                if os.environ.get("HYDRA_FULL_ERROR") == "1":
                    raise
                sys.exit(f"error: {escaped(one_line(error))}")

        return wrapped

    return decorate


def _flags() -> Namespace:
    def refused(message: str) -> NoReturn:
        raise ConfigError(f"{message}; fields are set as FIELD=VALUE, without hyphens (--help lists them)")

    parser = get_args_parser()
    parser.error = refused  # type: ignore[method-assign]
    return parser.parse_args()


def refuse(name: str, flags: Namespace) -> None:
    """Compose what the command line asks for, every job of a sweep, and check it.

    Raises:
        ConfigError: one sentence that says what is wrong, and what there is to choose.
    """
    primary = flags.config_name or name
    if not (Path(CONF) / f"{primary}.yaml").exists():
        if flags.config_dir:
            return  # where ours say nothing of it
        raise ConfigError(
            f"--config-name {primary}: there is no {primary}.yaml in conf/; leave it out, or give --config-dir"
        )
    with _hydra(name, flags) as hydra:
        overrides = [_parsed(line, hydra) for line in flags.overrides]
        swept = [each for each in overrides if each.is_sweep_override()]
        first = [_line_of(each, next(_values(each))) if each in swept else str(each.input_line) for each in overrides]
        config = _composed(hydra, primary, first)
        if flags.cfg or flags.info:
            return
        sweep = flags.multirun or config.hydra.mode == RunMode.MULTIRUN
        if swept and not sweep:
            line = swept[0].input_line
            raise ConfigError(f"{line}: several values need -m, one run for each; a list is written as FIELD=[a,b]")
        _check_cluster(str(config.hydra.launcher.get("_target_")), bool(sweep))
        # A launcher of another machine, such as a cluster's, may find there what is missing here.
        here = not sweep or "BasicLauncher" in str(config.hydra.launcher.get("_target_"))
        more = _sweeper_values(config, hydra)
        study = sweep and is_study(config.hydra.sweeper)
        if study:
            check_sweeper(plain(config.hydra.sweeper), [*overrides, *more])
        for lines in _jobs(overrides, more, exact=study) if sweep else [first]:
            job = _resolved(_composed(hydra, primary, lines), primary)
            try:
                check(started(job, given_fields())[0] if here else job, name, here)
            except ConfigError as error:
                key, _, wrong = str(error).partition("=")
                real = [e.key_or_group for e in (*overrides, *more) if e.is_interval_sweep()] if study else []
                hint = "; int(interval(…)) draws whole numbers" if key in real and "whole number" in wrong else ""
                raise ConfigError(f"{error}{hint}") from error


def _check_cluster(launcher: str, sweep: bool) -> None:
    if "submitit" not in launcher:
        return
    if not sweep:
        raise ConfigError("hydra/launcher=slurm needs -m: without it, the training would run here, not on the cluster")
    if find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        raise ConfigError("hydra/launcher=slurm needs submitit: `pip install hydra-submitit-launcher` first")
    if launcher.endswith("SlurmLauncher") and shutil.which("srun") is None:
        raise ConfigError("hydra/launcher=slurm: there is no srun here; call it where SLURM's commands are")


@contextmanager
def _hydra(name: str, flags: Namespace) -> Iterator[Hydra]:
    path = create_config_search_path(CONF)
    if flags.config_dir:
        folder = os.path.abspath(flags.config_dir)
        if not os.path.isdir(folder):
            raise ConfigError(f"--config-dir {flags.config_dir}: no such folder")
        path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    try:
        yield Hydra.create_main_hydra2(name, path)
    finally:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None


# ------------------------------------------------------------------ sweeps


def _values(override: Override, exact: bool = False) -> Iterator[str]:
    """What is worth a look of what a sweep varies: all choices, the ends of an interval or a range; `exact`: as they
    are, else 64 for 64.0, as there are sweepers that give whole fields whole numbers."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        yield from (str(end) if exact else f"{end:g}" for end in (value.start, value.end))
        return
    values = list(override.sweep_string_iterator())
    yield from dict.fromkeys((values[0], values[-1])) if override.is_range_sweep() else values


def _line_of(override: Override, value: str) -> str:
    return f"{override.get_key_element()}={value}"


def _sweeper_values(config: DictConfig, hydra: Hydra) -> list[Override]:
    """What a sweeper's own configuration varies: `hydra.sweeper.params`, where it is written as on the command line."""
    params = plain(config.hydra.sweeper, resolve=False).get("params")
    written = params.items() if isinstance(params, Mapping) else ()
    return [_parsed(f"{key}={value}", hydra) for key, value in written if isinstance(value, str | int | float)]


def _jobs(overrides: Sequence[Override], more: Sequence[Override], exact: bool) -> list[list[str]]:
    """The command lines of a sweep's jobs; of a large one, as many as bring every value once."""
    given = {each.key_or_group for each in overrides}
    axes = [
        [_line_of(each, value) for value in _values(each, exact)]
        if each.is_sweep_override()
        else [str(each.input_line)]
        for each in (*overrides, *(each for each in more if each.key_or_group not in given))
    ]
    if math.prod(map(len, axes)) <= WHOLE_GRID:
        return [list(lines) for lines in itertools.product(*axes)]
    first = [axis[0] for axis in axes]
    return [first, *([*first[:i], line, *first[i + 1 :]] for i, axis in enumerate(axes) for line in axis[1:])]


# ------------------------------------------------------------------ composing


def _parsed(line: str, hydra: Hydra) -> Override:
    try:
        return OverridesParser.create(hydra.config_loader).parse_overrides([line])[0]
    except HydraException as error:
        raise ConfigError(
            f"{line}: not GROUP=CHOICE or FIELD=VALUE; close its brackets and quotes, and put text that holds spaces, "
            f"commas or brackets in quotes of its own: \"FIELD='a, b'\""
        ) from error


def _composed(hydra: Hydra, primary: str, lines: list[str]) -> DictConfig:
    try:
        return hydra.compose_config(primary, lines, run_mode=RunMode.RUN, with_log_configuration=False)
    except Exception as error:  # Hydra and OmegaConf raise many kinds; all mean the same to the user
        overrides = [_parsed(line, hydra) for line in lines]
        raise ConfigError(_what_is_wrong(hydra, primary, overrides) or one_line(error)) from error


def _what_is_wrong(hydra: Hydra, primary: str, overrides: list[Override]) -> str | None:
    """The sentence on the first override that cannot be, if one alone is to blame."""
    loader = hydra.config_loader
    groups, known = [group for group in loader.list_groups("") if group != "hydra"], help.groups(primary)
    fields: list[Override] = []
    chosen: list[str] = []
    for each in overrides:
        key, value = each.key_or_group, each.value()
        names = _options(hydra, key) if key in groups or "/" in key else []
        if not names or isinstance(value, dict):
            fields.append(each)
            continue
        if key in groups and key not in known:
            return unknown(key, primary)
        if value is None and not each.is_delete() and known.get(key) is None:
            return f"{key}=null: it is null already; leave {key} out of the command"
        if value is None and not each.is_delete() and key in OPTIONAL:
            return f"{key}=null: to leave {key} out, write ~{key}"
        for choice in value if isinstance(value, list) else [value]:
            if str(choice) not in names and not each.is_delete():
                return help.no_choice(key, help.shown(choice), names)
        chosen.append(str(each.input_line))
    try:
        base = hydra.compose_config(primary, chosen, run_mode=RunMode.RUN, with_log_configuration=False)
    except Exception:
        return None
    for each in fields:
        if not each.is_hydra_override() and (sentence := _wrong_field(base, each, primary)):
            return sentence
    return None


def _options(hydra: Hydra, group: str) -> list[str]:
    """A group's choices, those in folders of its own too."""
    loader = hydra.config_loader
    found = list(loader.get_group_options(group, ObjectType.CONFIG))
    for folder in loader.get_group_options(group, ObjectType.GROUP):
        found += [f"{folder}/{name}" for name in _options(hydra, f"{group}/{folder}")]
    return sorted(found)


def _wrong_field(base: DictConfig, override: Override, primary: str) -> str | None:
    """What is wrong with an override of a field, given the configuration without it."""
    *parents, last = str(override.key_or_group).split(".")
    node: Any = base
    for depth, name in enumerate([*parents, last]):
        path = ".".join([*parents, last][:depth])
        if isinstance(node, ListConfig):
            return None
        if not isinstance(node, DictConfig):
            return f"{override.key_or_group}: {path} is {help.shown(node)}, which has no fields"
        if name not in list(node):  # `in` alone is false of what must be given
            if override.is_add() or override.is_force_add():
                return None
            if not path:
                return unknown(name, primary)
            group = path.partition(".")[0]
            choice = base.hydra.runtime.choices.get(group)
            of = f"{group}={choice}" if path == group else f"{path} with {group}={choice}"
            return help.no_field(path, name, [str(key) for key in node if key != "_target_"], of)
        missing = OmegaConf.is_missing(node, name)
        node = None if missing else node._get_node(name) if OmegaConf.is_interpolation(node, name) else node[name]
    if override.is_add() and not isinstance(node, DictConfig | ListConfig) and node is not None:
        return f"{override.input_line}: it is there already; leave out the +"
    return None


def _resolved(config: DictConfig, primary: str) -> dict[str, Any]:
    """A composed configuration as plain values, without Hydra's own."""
    HydraConfig.instance().set_config(config)
    choices = {str(group): choice for group, choice in config.hydra.runtime.choices.items()}
    with open_dict(config):
        del config["hydra"]
    fields = flat(plain(config, resolve=False))
    for field in sorted(fields, key=lambda field: field.count(".")):
        try:
            OmegaConf.select(config, field, throw_on_missing=True)
        except MissingMandatoryValue as error:
            meaning = help.comment(primary, choices, field)
            raise ConfigError(f"{field} is not set: {meaning or 'it has no default'}; give {field}=VALUE") from error
        except OmegaConfBaseException as error:
            raise ConfigError(f"{field}={fields[field]}: {str(error).splitlines()[0]}") from error
    return plain(config)
