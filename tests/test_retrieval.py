import pytest
import torch

from src.bundle import Bundle, bundle_config, save_bundle
from src.captioner import Captioner
from src.model import build
from src.retrieval import Index
from tests.conftest import tiny_config

SIZE = 8


def matcher_config(**fields):
    return {"_target_": "src.matcher.JointMatcher", "size": SIZE, "words": 6, "hidden": 5, "heads": 2, **fields}


@pytest.fixture
def bundle(tmp_path, vocabulary):
    def saved(name="bundle", seed=0, matcher=True):
        torch.manual_seed(seed)
        config = bundle_config(tiny_config(), {"encoder_weights": "random"})
        config["matcher"] = matcher_config() if matcher else None
        save_bundle(tmp_path / name, Bundle(build(config, vocabulary).eval(), vocabulary, config))
        return tmp_path / name

    return saved


@pytest.fixture
def captioner(bundle):
    return Captioner.load(bundle(), device_name="cpu")


def paths_of(shapes, first=0, last=24):
    return [shapes / "images" / f"{number:02d}.png" for number in range(first, last)]


def test_smoke(captioner, shapes, tmp_path):
    index = Index.create(tmp_path / "index", captioner)
    assert index.add(captioner, paths_of(shapes)) == (24, 0, [])
    found = index.by_sentence(captioner, "a red square", 5, rerank=3)
    print(found)
    print(index.by_picture(captioner, paths_of(shapes)[0], 3))
    print(index.by_words(found[0].caption or "a"))
    assert index.remove([paths_of(shapes)[0]]) == 1
    assert len(index) == 23
