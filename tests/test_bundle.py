import json
import shutil

import pytest
import torch
import yaml
from PIL import Image

from src.bundle import Bundle, BundleError, bundle_config, load_bundle, save_bundle
from src.captioner import Captioner
from src.data.tokenizer import EnglishTokenizer
from src.data.transforms import Preprocess
from src.generation import BeamSearch, GreedySearch
from src.model import build
from tests.conftest import tiny_config


@pytest.fixture
def pictures(shapes):
    return sorted((shapes / "images").iterdir())[:6]


def make(vocabulary, **overrides):
    torch.manual_seed(2)
    config = bundle_config(tiny_config(**overrides), {"encoder_weights": "random", "seed": 0})
    model = build(config, vocabulary).eval()
    model.decoder.classifier.weight.data *= 5
    return Bundle(model, vocabulary, config)


def captions_of(bundle, pictures):
    captioner = Captioner(
        bundle.model,
        bundle.vocabulary,
        EnglishTokenizer(),
        Preprocess(32),
        BeamSearch(3, max_length=8),
        "cpu",
        "32-true",
    )
    return list(captioner(pictures, attention=True))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("decoder", ["lstm", "lstm_attn"])
def test_saved_and_loaded_it_says_the_same(decoder, tied, vocabulary, pictures, tmp_path):
    bundle = make(vocabulary, decoder=decoder, decoder__tied=tied)
    before = captions_of(bundle, pictures)
    save_bundle(tmp_path / "bundle", bundle, {"CIDEr": 0.5})
    loaded = Captioner.load(tmp_path / "bundle", device_name="cpu", precision_name="32-true")
    after = list(loaded(pictures, attention=True))
    assert [(c.text, c.log_probs) for c in before] == [(c.text, c.log_probs) for c in after]
    assert len({tuple(c.log_probs) for c in after}) > 1, "the pictures differ"
    assert sorted(p.name for p in (tmp_path / "bundle").iterdir()) == [
        "README.md",
        "config.yaml",
        "model.safetensors",
        "vocabulary.json",
    ]
    assert "| CIDEr | 0.5 |" in (tmp_path / "bundle" / "README.md").read_text()
    assert loaded.model.encoder.backbone.weights_used == "random"


def test_tied_weights_are_saved_once(vocabulary, tmp_path):
    sizes = []
    for tied in (False, True):
        save_bundle(tmp_path / str(tied), make(vocabulary, decoder__tied=tied))
        sizes.append((tmp_path / str(tied) / "model.safetensors").stat().st_size)
    assert sizes[0] - sizes[1] >= 12 * 12 * 4  # one table of 12 words, 12 wide, in float32
    model = load_bundle(tmp_path / "True").model
    assert model.decoder.classifier.weight is model.decoder.embedding.table.weight


def test_pictures_of_any_kind_and_alternatives(vocabulary, pictures, tmp_path):
    save_bundle(tmp_path / "b", make(vocabulary))
    captioner = Captioner.load(tmp_path / "b", BeamSearch(4, max_length=6), "cpu", "32-true")
    from_files = list(captioner(pictures, batch_size=4, alternatives=3))
    from_images = list(captioner([Image.open(p) for p in pictures], batch_size=2))
    assert [c.text for c in from_files] == [c.text for c in from_images]
    best = from_files[0]
    assert len(best.alternatives) == 3
    assert best.score >= best.alternatives[0].score >= best.alternatives[2].score
    assert len({best.text, *(c.text for c in best.alternatives)}) == 4
    assert len(best.log_probs) in (len(best.words), len(best.words) + 1)


def test_attention_covers_the_words(vocabulary, pictures):
    caption = captions_of(make(vocabulary), pictures)[0]
    assert caption.attention.shape == (len(caption.words), 16) and caption.boxes.shape == (16, 4)
    assert caption.attention.sum(-1) == pytest.approx(1, abs=1e-4)


def test_attention_over_several_grids_has_their_boxes(vocabulary, pictures):
    caption = captions_of(make(vocabulary, encoder__grids=[2]), pictures)[0]
    assert caption.attention.shape == (len(caption.words), 20) and caption.boxes.shape == (20, 4)
    assert caption.boxes[16].tolist() == [0, 0, 0.5, 0.5]


def test_another_search(vocabulary, tmp_path, pictures):
    save_bundle(tmp_path / "b", make(vocabulary))
    captioner = Captioner.load(tmp_path / "b", GreedySearch(max_length=2), "cpu")
    assert all(len(c.words) <= 2 for c in captioner(pictures))


def test_a_new_bundle_replaces_the_old_whole(vocabulary, tmp_path):
    save_bundle(tmp_path / "b", make(vocabulary))
    (tmp_path / "b" / "stale").touch()
    save_bundle(tmp_path / "b", make(vocabulary))
    assert not (tmp_path / "b" / "stale").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("name", ["config.yaml", "vocabulary.json", "model.safetensors"])
def test_what_is_missing_is_named(name, vocabulary, tmp_path):
    save_bundle(tmp_path / "b", make(vocabulary))
    (tmp_path / "b" / name).unlink()
    with pytest.raises(BundleError, match=name):
        load_bundle(tmp_path / "b")


@pytest.mark.parametrize("name", ["config.yaml", "vocabulary.json", "model.safetensors"])
def test_damage_is_a_clear_error(name, vocabulary, tmp_path):
    save_bundle(tmp_path / "b", make(vocabulary))
    (tmp_path / "b" / name).write_bytes(b"\x00\x01 : [ {")
    with pytest.raises(ValueError, match=str(tmp_path / "b")):
        load_bundle(tmp_path / "b")


def test_weights_of_another_model_are_refused(vocabulary, tmp_path):
    save_bundle(tmp_path / "b", make(vocabulary))
    save_bundle(tmp_path / "c", make(vocabulary, decoder="lstm"))
    shutil.copy(tmp_path / "c" / "model.safetensors", tmp_path / "b")
    with pytest.raises(BundleError, match="do not fit"):
        load_bundle(tmp_path / "b")


def test_a_strangers_bundle_runs_nothing_of_its_own(vocabulary, tmp_path):
    save_bundle(tmp_path / "b", make(vocabulary))
    path = tmp_path / "b" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["decoder"]["_target_"] = "os.system"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="os.system is not allowed"):
        load_bundle(tmp_path / "b")
    path.write_text(path.read_text().replace("os.system", "!!python/object/apply:os.system ['touch ran']"))
    with pytest.raises(ValueError, match="damaged|_target_"):
        load_bundle(tmp_path / "b")


def test_neither_a_bundle_nor_a_checkpoint(tmp_path):
    with pytest.raises(BundleError, match="no such file or directory"):
        load_bundle(tmp_path / "none")
    (tmp_path / "x.ckpt").write_text("hello")
    with pytest.raises(BundleError, match="not a checkpoint of this project"):
        load_bundle(tmp_path / "x.ckpt")
    with pytest.raises(BundleError, match=r"config.yaml is missing"):
        load_bundle(tmp_path)


def test_the_vocabulary_travels_with_the_model(vocabulary, tmp_path):
    save_bundle(tmp_path / "b", make(vocabulary))
    assert load_bundle(tmp_path / "b").vocabulary.words == vocabulary.words
    assert json.loads((tmp_path / "b" / "vocabulary.json").read_text())
