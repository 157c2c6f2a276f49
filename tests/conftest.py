"""What tests share: tiny models and a tiny data set of pictures drawn on the spot."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw

from src.config import ROOT
from src.data.vocabulary import Vocabulary
from src.encoders.base import Features, grid_boxes
from src.model import CaptioningModel, build

COLOURS = {"red": (220, 30, 30), "green": (30, 170, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}
SHAPES = ("square", "circle")
CHINESE = {"red": "红", "green": "绿", "blue": "蓝", "yellow": "黄", "square": "方块", "circle": "圆"}


TINY = {"hidden": 14, "layers": 1, "dropout": 0.1, "tied": False, "heads": 2, "width": 10, "feedforward": 20}


def tiny_choice(group: str, choice: str) -> dict:
    """A choice of conf/ at sizes that run in milliseconds."""
    fields = yaml.safe_load((ROOT / "conf" / group / f"{choice}.yaml").read_text(encoding="utf-8"))
    return fields | {name: size for name, size in TINY.items() if name in fields}


def tiny_config(decoder: str = "lstm_attn", attention: str = "additive", **overrides: object) -> dict:
    """The builder's input at sizes that run in milliseconds."""
    config = {
        "transform": {"_target_": "src.data.transforms.Preprocess", "size": 32, "fit": "squash"},
        "tokenizer": {"_target_": "src.data.tokenizer.EnglishTokenizer"},
        "encoder": {
            "_target_": "src.encoders.Encoder",
            "backbone": {"_target_": "src.encoders.CNN", "channels": [8, 16, 16]},
            "width": 16,
            "frozen": False,
        },
        "embedding": {"_target_": "src.embeddings.LearnedEmbedding", "size": 12},
        "attention": tiny_choice("attention", attention),
        "decoder": tiny_choice("decoder", decoder),
        "generation": {"_target_": "src.generation.BeamSearch", "beam_size": 3, "max_length": 8},
        "provenance": {"encoder_weights": "random"},
    }
    for key, value in overrides.items():
        part, name = key.split("__")
        config[part][name] = value
    return config


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """What a test logs of file names that are no UTF-8 can't be sent between the suite's processes as it is."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture
def vocabulary() -> Vocabulary:
    words = ["a", "red", "green", "blue", "square", "circle", "on", "grey"]
    return Vocabulary.build([[w] * (len(words) - i) for i, w in enumerate(words)], min_count=1)


@pytest.fixture
def tiny_model(vocabulary: Vocabulary) -> CaptioningModel:
    torch.manual_seed(0)
    return build(tiny_config(), vocabulary).eval()


def random_features(batch: int = 3, side: int = 2, width: int = 16, seed: int = 0) -> Features:
    grid = torch.randn(batch, side * side, width, generator=torch.Generator().manual_seed(seed))
    boxes = grid_boxes(side, side).expand(batch, -1, -1)
    return Features(grid, grid.mean(1), boxes, torch.ones(batch, side * side, dtype=torch.bool))


def write_regions(file: Path, count: int, width: int = 2048, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A .npz file of random regions of a picture of 40 × 48 pixels; returns what it says: features, boxes in [0, 1]."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((count, width)).astype(np.float16)
    boxes = np.sort(rng.integers(0, 41, (count, 2, 2)), axis=1).reshape(count, 4).astype(np.float32)
    np.savez(file, features=features, boxes=boxes, image_w=40, image_h=48)
    return features, boxes / [40, 48, 40, 48]


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 24 coloured shapes with two captions each: images/, train.tsv, val.tsv, test.tsv, nouns.json;
    tagged.tsv, with one caption of each tagged `en` and one `zh`; and regions/, two to five random ones a picture."""
    import json

    root = tmp_path_factory.mktemp("shapes")
    (root / "images").mkdir()
    (root / "regions" / "images").mkdir(parents=True)
    rng = random.Random(0)
    rows, nouns, tagged = [], {}, []
    for number in range(24):
        colour, shape = list(COLOURS)[number % 4], SHAPES[number // 4 % 2]
        image = Image.new("RGB", (40, 48), (128, 128, 128))
        x, y = rng.randrange(4, 16), rng.randrange(4, 16)
        draw = ImageDraw.Draw(image)
        (draw.rectangle if shape == "square" else draw.ellipse)((x, y, x + 18, y + 18), fill=COLOURS[colour])
        name = f"images/{number:02d}.png"
        image.save(root / name)
        write_regions(root / "regions" / "images" / f"{number:02d}.npz", 2 + number % 4, seed=number)
        rows.append([f"{name}\tA {colour} {shape}.", f"{name}\tThere is a {colour} {shape} on grey."])
        chinese = f"一个{CHINESE[colour]}色的{CHINESE[shape]}"
        tagged += [f"{name}\tA {colour} {shape}.\ten", f"{name}\t{chinese}。\tzh"]
        nouns[name] = {"objects": [[shape, shape + "s"]], "backgrounds": [["grey"]]}
    for split, part in (("train", rows[:16]), ("val", rows[16:20]), ("test", rows[20:])):
        (root / f"{split}.tsv").write_text("\n".join(line for row in part for line in row) + "\n", encoding="utf-8")
    (root / "tagged.tsv").write_text("\n".join(tagged) + "\n", encoding="utf-8")
    (root / "nouns.json").write_text(json.dumps(nouns))
    return root


@pytest.fixture(scope="module")  # two at a time are refused
def browser() -> Iterator["playwright.Browser"]:  # noqa: F821
    from tests.browsing import CHROMIUM, FLAGS, playwright

    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield found
        found.close()
