"""What conf/ and experiments/ offer, in their own words: all of it is read from the YAML files and their comments."""

import difflib
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from src.config import CONF, ROOT
from src.runs import flat

WIDTH = 110

FLAGS = {
    "--help GROUP": "the choices of a group",
    "--help GROUP=CHOICE": "the fields of a choice, with their defaults",
    "-m": "one run for each of several values, separated by commas",
    "--cfg job": "print the whole configuration and stop; with -p GROUP that group alone",
    "--hydra-help": "Hydra's own flags",
}


def _folder(group: str) -> Path:
    return (ROOT if group == "experiments" else Path(CONF)) / group


def _file(group: str, choice: str) -> Path:
    return _folder(group) / f"{choice}.yaml"


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def groups(command: str) -> dict[str, str | None]:
    """The groups of a command (`train`, `evaluate`) and their default choices."""
    entries = [entry for entry in _read(_file("", command))["defaults"] if isinstance(entry, dict)]
    return {str(group): choice for entry in entries for group, choice in entry.items() if " " not in group}


def fields(command: str) -> dict[str, Any]:
    """The fields of a command that are in no group, and their defaults."""
    return {key: value for key, value in _read(_file("", command)).items() if key not in ("defaults", "hydra")}


def choices(group: str) -> list[str]:
    """What a group can be, nested recipes (`flickr8k/first`) too."""
    return sorted(str(path.relative_to(_folder(group)).with_suffix("")) for path in _folder(group).rglob("*.yaml"))


def choice_fields(group: str, choice: str) -> dict[str, Any]:
    """The fields that a choice sets, as nested mappings, those of the choice that it builds upon included."""
    given = _read(_file(group, choice))
    own = {key: value for key, value in given.items() if key != "defaults"}
    merged = OmegaConf.merge(*(choice_fields(group, name) for name in _upon(group, given)), own)
    return OmegaConf.to_container(merged)  # type: ignore[return-value]


def _upon(group: str, given: dict[str, Any]) -> list[str]:
    """The choices of the same group that one builds upon: by their names in it, or by full ones."""
    names = [name for name in given.get("defaults", []) if isinstance(name, str) and name != "_self_"]
    return [name.removeprefix(f"/{group}/") for name in names]


def about(path: Path) -> list[str]:
    """The lines of the comment that a file begins with."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line[2:])
    return lines


def summary(group: str, choice: str) -> str:
    """The first sentence of what a choice's file says of itself."""
    prose = " ".join(line for line in about(_file(group, choice)) if not line.startswith(" "))
    return re.split(r"(?<=\.) ", prose)[0]


def comments(path: Path) -> dict[str, str]:
    """Dotted fields of a YAML file (`backbone.kernel`, `defaults.data`) → the comments behind them."""
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []  # the mappings that a line is in, with their indentation
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"( *)(?:- )?([\w/]+):(.*)", line):
            indentation, key, rest = len(match[1]), match[2], match[3]
            above = [(i, name) for i, name in above if i < indentation]
            above.append((indentation, key))
            found[".".join(name for _, name in above)] = rest.partition(" # ")[2].strip()
    return found


def choice_comments(group: str, choice: str) -> dict[str, str]:
    """As `comments`, those of the choice that it builds upon included."""
    path = _file(group, choice)
    merged: dict[str, str] = {}
    for name in _upon(group, _read(path)):
        merged |= choice_comments(group, name)
    return merged | {key: text for key, text in comments(path).items() if text}


def comment(command: str, choice_of: Mapping[str, str | None], field: str) -> str:
    """What the files say of a dotted field (`data.root`, `seed`) under these choices; empty if nothing."""
    group, _, rest = field.partition(".")
    if (choice := choice_of.get(group)) and rest:
        return choice_comments(group, choice).get(rest, "")
    return comments(_file("", command)).get(field, "")


def shown(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {shown(each)}' for key, each in value.items())}}}"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return str(value) if value != "" else "''"


def meant(word: str, names: Iterable[str]) -> str:
    """` (did you mean NAME?)`, or nothing where none of the names is close."""
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    return f" (did you mean {lower[close[0]]}?)" if close else ""


def _table(rows: dict[str, str], indent: int) -> list[str]:
    """Names and what they mean in two columns of at most WIDTH characters."""
    column = indent + max((len(name) for name in rows if len(name) < 40), default=0) + 2
    lines = []
    for name, text in rows.items():
        first = (" " * indent + name).ljust(column)
        if len(first) > column:  # too long for the column: what it means starts on the next line
            lines.append(first)
            first = " " * column
        lines += textwrap.wrap(
            text, WIDTH, initial_indent=first, subsequent_indent=" " * column, break_on_hyphens=False
        ) or [first.rstrip()]
    return lines


def _choices(group: str, default: str | None) -> dict[str, str]:
    mark = {True: "* ", False: "  "}
    return {mark[choice == default] + choice: summary(group, choice) for choice in choices(group)}


def help_text(command: str, wanted: list[str]) -> str:
    """What `--help` prints: of a whole command, or of the groups and choices `wanted` (`decoder`, `decoder=lstm`).

    Raises:
        ValueError: there is no such group or choice.
    """
    known = groups(command)
    if wanted:
        return "\n\n".join("\n".join(_help_on(command, *word.partition("=")[::2])) for word in wanted)
    prose = [line for line in about(_file("", command)) if not line.startswith(" ")]
    examples = [line for line in about(_file("", command)) if line.startswith(" ")]
    meaning = comments(_file("", command))
    lines = [f"usage: python -m src.{command} [GROUP=CHOICE …] [FIELD=VALUE …] [FLAG …]", ""]
    lines += [*textwrap.wrap(" ".join(prose), WIDTH), "", "Examples:", *examples, ""]
    lines += ["Groups and their choices, * the default:"]
    for group, default in known.items():
        lines += ["", *_table({group: meaning.get(f"defaults.{group}", "")}, 2)]
        lines += _table(_choices(group, default), 4)
    lines += ["", "Fields in no group, with their defaults:"]
    lines += _table(
        {
            f"{key}={shown(value)}": meaning.get(key, "") + " (must be given)" * (value == "???")
            for key, value in fields(command).items()
        },
        2,
    )
    return "\n".join([*lines, "", "Flags:", *_table(FLAGS, 2)])


def _help_on(command: str, group: str, choice: str) -> list[str]:
    known = groups(command)
    if group not in known:
        raise ValueError(f"{group}: no such group; there are {', '.join(known)}{meant(group, known)}")
    if not choice:
        meaning = comments(_file("", command)).get(f"defaults.{group}", "")
        return [f"{group}: {meaning}", *_table(_choices(group, known[group]), 2)]
    if choice not in choices(group):
        raise ValueError(no_choice(group, choice, choices(group)))
    path, given = _file(group, choice), flat(choice_fields(group, choice))
    if group == "experiments":  # a recipe sets choices and fields of all groups
        entries = [entry for entry in _read(path).get("defaults", []) if isinstance(entry, dict)]
        chosen = {key.split("/", 1)[-1]: name for entry in entries for key, name in entry.items()}
        rows = {f"{key}={name}": summary(key, name) for key, name in chosen.items()}
        rows |= {f"{field}={shown(value)}": comment(command, known | chosen, field) for field, value in given.items()}
    else:
        said = choice_comments(group, choice)
        rows = {
            f"{group}.{field}={shown(value)}": said.get(field, "") + " (must be given)" * (value == "???")
            for field, value in given.items()
            if not field.endswith("_target_")
        }
    prose = [f"{group}={choice}:", *(line for line in about(path) if not line.startswith(" "))]
    examples = [line for line in about(path) if line.startswith(" ")]
    return [*textwrap.wrap(" ".join(prose), WIDTH), *examples, "", *(_table(rows, 2) or ["  (no fields)"])]


def no_choice(group: str, choice: str, names: list[str]) -> str:
    """The sentence on a choice that is not there."""
    return f"{group}={choice}: no such choice; {group} is one of {', '.join(names)}{meant(choice, names)}"


def no_field(group: str, field: str, names: Iterable[str], of: str = "") -> str:
    """The sentence on a field that a group (`encoder.backbone`) does not have."""
    names = list(names)
    guess = meant(field, names).replace("did you mean ", f"did you mean {group}.")
    return f"{group}.{field} is no field of {of or group}; it has {', '.join(names) or 'none'}{guess}"
