"""Another search on a command line: `--search sample --set temperature=0.7`, `--beam 3`, `--include dog`."""

import argparse
import inspect
from collections.abc import Mapping
from typing import Any

import yaml

from src import help
from src.generation import BeamSearch, Search
from src.generation.base import read_never
from src.model import ConfigError, locate

LIMITS = [name for name in inspect.signature(Search.__init__).parameters if name != "self"]
"""Fields that every search has: what a captioner was validated with stays."""


def add_search_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `chosen_search` reads."""
    parser.add_argument(
        "--search", metavar="CHOICE", help=f"instead of the captioner's own: {', '.join(help.choices('generation'))}"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the search, such as temperature=0.7 (conf/generation/CHOICE.yaml lists them); repeatable",
    )
    for name, text in (("include", "that every caption must say"), ("exclude", "that no caption may say")):
        parser.add_argument(
            f"--{name}", action="append", default=[], metavar="WORD", help=f"a word or phrase {text}; repeatable"
        )
    parser.add_argument(
        "--never",
        action="append",
        default=[],
        metavar="WORD",
        help="a word or phrase that no caption says, in any search; one that the captioner has no word for is passed "
        "over; repeatable",
    )
    parser.add_argument("--never-from", metavar="FILE", help="such words and phrases, one a line")
    parser.add_argument("--beam", type=int, help="beam size, instead of the captioner's own")


def chosen_search(options: argparse.Namespace, own: Mapping[str, Any]) -> dict[str, Any] | None:
    """The search's config that the flags ask for, or None where they ask for none.

    Args:
        options: parsed flags of `add_search_flags`.
        own: the captioner's own search.

    Raises:
        ConfigError: a choice or a field that is not there, a value of the wrong kind, flags that exclude each other.
    """
    words = {name: getattr(options, name) for name in ("include", "exclude") if getattr(options, name)}
    never = [*options.never, *(read_never(options.never_from) if options.never_from else [])]
    if not (options.search or options.set or words or never or options.beam is not None):
        return None
    from src.check import check_search  # which is slow to import

    choice = options.search
    if words:
        if choice not in (None, "constrained"):
            raise ConfigError(f"--search {choice}: --include and --exclude are of --search constrained")
        choice = "constrained"
    elif choice is None and options.beam is not None and not issubclass(locate(own["_target_"]), BeamSearch):
        choice = "beam"
    if choice is None:
        fields = dict(own)
    elif choice in help.choices("generation"):
        fields = help.choice_fields("generation", choice) | {name: own[name] for name in LIMITS if name in own}
    else:
        raise ConfigError(f"--search {help.no_choice('generation', choice, help.choices('generation'))}")
    given: dict[str, Any] = dict(words)
    if never:  # besides those that it was made with
        given["never"] = [*read_never(own.get("never", ())), *never]
    if options.beam is not None:
        given["beam_size"] = options.beam
    for setting in options.set:
        field, equals, value = setting.partition("=")
        try:
            given[field] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals or not field:
            raise ConfigError(f"--set {setting}: FIELD=VALUE is wanted, such as max_length=12")
    fields |= given
    check_search(fields)
    return fields
