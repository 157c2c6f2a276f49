"""The captioner that comes with the code: what its folder holds, and what it says of photographs."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors import safe_open

from src import caption, index, search, tags
from src.bundle import SHIPPED
from src.captioner import Captioner
from src.config import ROOT
from src.data.vocabulary import UNK, Vocabulary
from src.train import train
from tests.test_configs import composed, tiny
from tests.test_video import write_video

CARD = ROOT / "models" / f"{SHIPPED.name}.md"
PEOPLE = {"man", "woman", "person", "people", "boy", "girl", "child", "lady", "men", "women"}
CHINESE = re.compile(r"[\u4e00-\u9fff]+")


@pytest.fixture
def photograph() -> Path:
    """Eileen Collins, astronaut: a photograph of NASA's that scikit-image's wheel holds."""
    spec = importlib.util.find_spec("skimage")
    assert spec and spec.origin, "pip install '.[scenes]'"
    return Path(spec.origin).parent / "data" / "astronaut.png"


@pytest.fixture
def call(photograph, tmp_path, monkeypatch, capsys):
    """A command's line on the photograph, from another folder than the code's, without the path."""
    monkeypatch.chdir(tmp_path)

    def run(command, *flags: str) -> list[str]:
        assert command.main([str(photograph), "--device", "cpu", *flags]) == 0
        path, *columns = capsys.readouterr().out.rstrip("\n").split("\t")
        assert path == str(photograph)
        return columns

    return run


def test_the_folder_is_small_and_holds_no_captions():
    files = {path.name: path.stat().st_size for path in SHIPPED.rglob("*")}
    assert set(files) == {
        "README.md",
        "calibration.json",
        "config.yaml",
        "detector.safetensors",
        "matching.json",
        "model.safetensors",
        "vocabulary.json",
    }
    assert sum(files.values()) <= 19_000_000
    with safe_open(SHIPPED / "model.safetensors", "pt") as weights:
        assert not weights.metadata()
    words = json.loads((SHIPPED / "vocabulary.json").read_text(encoding="utf-8"))["words"]
    assert all(len(word.split()) == 1 and not CHINESE.search(word[1:]) for word in words), "words, not sentences"


def test_it_names_no_place_of_the_machine_that_made_it():
    text = "".join((SHIPPED / name).read_text(encoding="utf-8") for name in ("config.yaml", "README.md"))
    assert not re.search(r"(?:^|[\s'\"=(`])(?:~?/|[A-Z]:\\)\w", text)


def test_pictures_are_prepared_as_in_training():
    config = yaml.safe_load((SHIPPED / "config.yaml").read_text(encoding="utf-8"))
    assert (config["transform"]["fit"], config["transform"]["size"]) == ("squash", 260)
    assert config["tokenizer"] == {"_target_": "src.data.tokenizer.MixedTokenizer"}
    assert config["control"]["default"] == "en" and config["provenance"]["stored_as"] == "int8"
    preprocess = Captioner.load(SHIPPED, device_name="cpu").preprocess
    assert preprocess(Image.new("RGB", (640, 320))).shape == (3, 260, 260)
    assert preprocess.seen(640, 320) == (640, 320), "nothing is cut off"


def test_the_card_names_the_terms():
    text, more = (SHIPPED / "README.md").read_text(encoding="utf-8"), CARD.read_text(encoding="utf-8")
    assert more.rstrip() in text, f"made before {CARD.name} was changed: its last command writes it anew"
    for said in ("Flickr8k-CN", "JAIR 47", "ICMR 2016", "research and non-commercial use only", "not redistributed"):
        assert said in " ".join(more.split()), said


def test_it_captions_in_english_and_when_asked_in_chinese(call):
    vocabulary = Vocabulary.load(SHIPPED / "vocabulary.json")
    (english,) = call(caption)
    assert set(english.split()) <= vocabulary.index.keys() - {vocabulary.words[UNK]}
    assert set(english.split()) & PEOPLE, english
    assert call(caption, "--language", "en") == [english]
    (chinese,) = call(caption, "--language", "zh")
    assert CHINESE.fullmatch(chinese) and set(chinese) & set("人男女孩") and set(chinese) <= vocabulary.index.keys()


def test_it_says_how_sure_it_is(call):
    _, confidence = call(caption, "--confidence")
    assert 0 < float(confidence) < 1


def test_it_says_what_is_unlike_its_photographs(call, photograph):
    """A portrait is not, noise is."""
    _, unfamiliar, stability = call(caption, "--flag")
    assert float(unfamiliar) < 0.99 and 0.3 < float(stability) <= 1
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (260, 260, 3), np.uint8))
    assert Captioner.load(SHIPPED, device_name="cpu")(noise)[0].unfamiliar == 1


def test_it_tags(call):
    (found,) = call(tags)
    assert re.search(r"objects: .*\b(?:man|woman|person|boy|girl|child)\b", found), found


def test_sentences_find_the_photograph_among_drawings(photograph, shapes, tmp_path, capsys):
    """In both languages, before any training: by the matcher, and with the captioner's likelihoods."""
    where = ["--index", str(tmp_path / "index"), "--device", "cpu"]
    drawings = [str(path) for path in sorted((shapes / "images").iterdir())[:5]]
    assert index.main([str(photograph), *drawings, *where]) == 0
    capsys.readouterr()
    for sentence in ("a woman in an orange jacket is smiling", "一个女人在微笑"):
        for rerank in ("0", "6"):
            assert search.main([sentence, *where, "--rerank", rerank]) == 0
            found = capsys.readouterr().out.splitlines()
            assert len(found) == 6 and found[0].split("\t")[1] == str(photograph), sentence


def test_it_watches_a_video(photograph, shapes, tmp_path, capsys):
    drawing, shown = (
        Image.open(path).convert("RGB").resize((320, 320)) for path in (shapes / "images" / "00.png", photograph)
    )
    clip = write_video(tmp_path / "clip.mp4", [(drawing, 3), (shown, 3), (drawing, 3)], rate=5, size=(320, 320))
    line = [str(clip), "--alert", "a woman in an orange jacket is smiling", "--alert-confidence", "0.5"]
    assert caption.main([*line, "--device", "cpu"]) == 0
    (row,) = capsys.readouterr().out.splitlines()
    start, end = map(float, row.split("\t")[0].split("#t=")[1].split(","))
    assert start == pytest.approx(3, abs=0.6) and end == pytest.approx(6, abs=0.6)


@pytest.mark.parametrize(
    ("language", "flags"), [("en", []), ("zh", ["control=tags", "control.default=zh", "control.validate=zh"])]
)
def test_one_goes_on_from_it_with_a_table_of_two_columns(language, flags, shapes, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(shapes / "images")
    (tmp_path / "data" / "nouns.json").symlink_to(shapes / "nouns.json")
    rows = (shapes / "tagged.tsv").read_text(encoding="utf-8").splitlines()
    plain = "".join(row.removesuffix(f"\t{language}") + "\n" for row in rows if row.endswith(f"\t{language}"))
    for name in ("train.tsv", "val.tsv", "test.tsv"):
        (tmp_path / "data" / name).write_text(plain, encoding="utf-8")
    own = ["encoder.frozen=true", "encoder.learning_rate=null", *flags]
    config = composed([f"init={SHIPPED}", *tiny(tmp_path / "data", tmp_path), "evaluate_splits=[]", *own])
    train(config, {setting.partition("=")[0] for setting in own})
    captioner = Captioner.load(tmp_path / "run.fast_dev_run" / "bundle", device_name="cpu")
    assert captioner.control == [f"<{language}>"] and captioner.tokenizer.name == "mixed"
    captioner.ask(language="en" if language == "zh" else "zh")
