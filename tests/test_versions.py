"""The versions tried are those that pyproject.toml speaks of: its lower bounds, and newer ones in its ranges."""

import tomllib

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from src.config import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LISTS = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
RANGES = {r.name: r.specifier for part in LISTS for r in map(Requirement, part)}


def pins(file: str) -> dict[str, Version]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pairs = (line.split("#")[0].strip().split("==") for line in lines if not line.startswith("#"))
    return {name: Version(version) for name, version in pairs}


def test_the_oldest_versions_are_the_lower_bounds():
    bounds = {name: Version(s.version) for name, allowed in RANGES.items() for s in allowed if s.operator == ">="}
    assert bounds.keys() == RANGES.keys(), "every range has a lower bound"
    assert pins("constraints-oldest.txt") == bounds


def test_the_newest_versions_are_in_the_ranges():
    newest = pins("constraints.txt")
    assert not {name: str(v) for name, v in newest.items() if v not in RANGES.get(name, SpecifierSet())}
