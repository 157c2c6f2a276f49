"""Each of these was found by fuzzing or by reading what reads strangers' files, and failed before it was mended."""

import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
import yaml

from src.bundle import Bundle, BundleError, bundle_config, load_bundle, read_saved, save_bundle
from src.captioner import Captioner
from src.data.vocabulary import Vocabulary
from src.model import build
from src.strangers import TooLarge, at_most, load_checkpoint, read_npy, read_npz, read_yaml
from tests.conftest import tiny_config


@pytest.fixture
def bundle(vocabulary, tmp_path):
    config = bundle_config(tiny_config(), {"encoder_weights": "random"})
    save_bundle(tmp_path / "b", Bundle(build(config, vocabulary).eval(), vocabulary, config))
    return tmp_path / "b"


def changed(bundle, **fields):
    """The bundle with other values, by place: `encoder__backbone__weights`."""
    path = bundle / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for place, value in fields.items():
        *parts, last = place.split("__")
        node = config
        for part in parts:
            node = node[part]
        node[last] = value
    path.write_text(yaml.safe_dump(config))
    return bundle


# ---------------------------------------------------------------- configs


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"tokenizer": {"_target_": "src.loggers.ContinuedCSVLogger", "save_dir": "x"}}, "tokenizer: .* is no"),
        ({"decoder___target_": "src.data.regions.RegionFiles"}, "is no Decoder"),
        ({"encoder__width": {"_target_": "src.loggers.ContinuedCSVLogger", "save_dir": "x"}}, "no part .* stands here"),
        ({"decoder___target_": 5}, "names no class"),
        ({"decoder___target_": "src..model.X"}, "names no class"),
        ({"decoder": None}, "lacks decoder"),
        ({"decoder": [1]}, "a mapping with _target_ is wanted"),
        ({"generation__beam_size": None}, "generation.beam_size='None'"),
        ({"generation__max_length": 10**6}, "max_length=1000000: 1,000 at most"),
        ({"transform__size": 10**6}, "size=1000000: 8,192 at most"),
        ({"encoder__width": float("inf")}, "width"),
        ({"provenance": 3}, "provenance is no mapping"),
    ],
)
def test_a_config_that_no_bundle_has_is_refused_before_anything_is_built(bundle, fields, said):
    with pytest.raises(BundleError, match=said):
        load_bundle(changed(bundle, **fields))


@pytest.mark.parametrize("fields", [{"decoder__hidden": 10**7}, {"decoder__layers": 10**6}, {"encoder__width": 10**6}])
def test_a_model_much_larger_than_its_weights_takes_no_memory(bundle, fields):
    with pytest.raises(BundleError, match="much larger than its weights|do not fit"):
        load_bundle(changed(bundle, **fields))


def test_weights_of_other_shapes_are_refused_before_memory_is_taken(bundle):
    with pytest.raises(BundleError, match="do not fit its config"):
        load_bundle(changed(bundle, decoder__hidden=15))


def test_a_bundle_reads_no_file_that_it_names(bundle, tmp_path):
    secret = tmp_path / "secret.pth"
    torch.save({"x": torch.zeros(1)}, secret)
    load_bundle(changed(bundle, encoder__backbone__weights=str(secret)))  # the bundle brings its weights
    backbone = {"_target_": "src.encoders.TimmBackbone", "name": "resnet18", "checkpoint_path": str(secret)}
    with pytest.raises(BundleError, match="checkpoint_path: timm would read files by it"):
        load_bundle(changed(bundle, encoder__backbone=backbone))


def test_counting_ends_with_the_block():
    with pytest.raises(TooLarge), at_most(10, 10):
        torch.nn.Linear(10, 10)
    assert torch.nn.Linear(10, 10).weight.shape == (10, 10)


@pytest.mark.parametrize(
    "text",
    ["[" * 5000, "!!bool x", "!!int ''", "!!timestamp x", "!!float ''", "{[]: 1}", "a: *b", "x" * 200_000],
)
def test_yaml_of_any_kind_is_a_clear_error(text):
    with pytest.raises(ValueError):
        read_yaml(text)


def test_aliases_of_aliases_are_counted(bundle):
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 12))
    path = bundle / "config.yaml"
    text = path.read_text().replace("allow_unknown", "x")
    path.write_text(f"l0: &l0 [x]\n{levels}" + text.replace("fit: squash", "fit: squash\n  fits: *l11"))
    with pytest.raises(BundleError, match="more values"):
        load_bundle(bundle)


def test_other_damage_of_a_bundle_names_it(bundle):
    path = bundle / "vocabulary.json"
    whole = path.read_bytes()
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="vocabulary.json: no vocabulary"):
        load_bundle(bundle)
    path.write_bytes(whole)
    with pytest.raises(BundleError, match=str(bundle)):
        Captioner.load(changed(bundle, transform__fit="inside out"), device_name="cpu")


# ---------------------------------------------------------------- checkpoints


class Evil:
    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


def checkpoint_of(bundle, tmp_path, **more):
    saved = read_saved(bundle)
    state = {f"model.{name}": tensor for name, tensor in saved.state.items()}
    content = {"config": saved.config, "vocabulary": saved.vocabulary.to_dict(), "state_dict": state, **more}
    torch.save(content, tmp_path / "x.ckpt")
    return tmp_path / "x.ckpt"


def test_a_checkpoint_is_what_was_saved(bundle, tmp_path):
    found, wanted = read_saved(checkpoint_of(bundle, tmp_path)), read_saved(bundle)
    assert found.config == wanted.config and found.vocabulary.words == wanted.vocabulary.words
    assert all(torch.equal(found.state[name], tensor) for name, tensor in wanted.state.items())
    parameter = torch.nn.Parameter(torch.arange(3.0))
    torch.save({"a": parameter, "b": torch.ones(2, dtype=torch.bfloat16)[:1]}, tmp_path / "y.ckpt")
    assert torch.equal(load_checkpoint(tmp_path / "y.ckpt")["a"], parameter)


@pytest.mark.parametrize(
    "evil",
    [
        lambda path: Evil(os.system, f"touch {path}"),
        lambda path: Evil(eval, f"open({str(path)!r}, 'w')"),
        lambda path: Evil(bytearray, 1 << 33),
        lambda path: Evil(torch.FloatStorage, 1 << 31),
        lambda path: torch.zeros(1).expand(1 << 16, 1 << 16),
    ],
    ids=["system", "eval", "bytearray", "storage", "expanded"],
)
def test_a_checkpoint_executes_nothing_and_takes_no_memory_by_itself(bundle, tmp_path, evil):
    path = checkpoint_of(bundle, tmp_path, x=evil(tmp_path / "ran"))
    with pytest.raises(BundleError, match="not a checkpoint of this project"):
        read_saved(path)
    assert not (tmp_path / "ran").exists()


def test_checkpoints_that_are_bombs_or_old(bundle, tmp_path):
    path = checkpoint_of(bundle, tmp_path)
    packed = tmp_path / "packed.ckpt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(BundleError, match="compressed"):
        read_saved(packed)
    far = tmp_path / "far.ckpt"  # the unpickler's table of what is remembered has as many places as it is told
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(far, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, b"\x80\x02}r\xff\xff\xff\x3f." if name.endswith("data.pkl") else data)
    with pytest.raises(BundleError, match="LONG_BINPUT"):
        read_saved(far)
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Evil(os.system, f"touch {tmp_path / 'ran'}")))
    with pytest.raises(BundleError):
        read_saved(tmp_path / "plain.ckpt")
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------- arrays


def npy(header: bytes, data: bytes = b"") -> io.BytesIO:
    return io.BytesIO(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n" + data)


@pytest.mark.parametrize(
    "header, said",
    [
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000, 8), }", "more than the file"),
        (b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "not of numbers"),
        (b"{'descr': '<U5', 'fortran_order': False, 'shape': (1,), }", "not of numbers"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4), }", "more than the file|no array"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (((((((", "no array"),
    ],
)
def test_an_array_is_as_large_as_its_file_says(header, said):
    with pytest.raises(ValueError, match=said):
        read_npy(npy(header), 1000)


def test_arrays_are_read_as_they_were_written(tmp_path):
    wanted = np.arange(12, dtype=np.float16).reshape(3, 4)
    for array in (wanted, np.asfortranarray(wanted), wanted[:0], np.float64(3)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        buffer.seek(0)
        assert np.array_equal(read_npy(buffer, len(buffer.getvalue())), array)
    np.savez_compressed(tmp_path / "a.npz", x=wanted, y=np.array([{}], object))
    found = read_npz(tmp_path / "a.npz", lambda name: name == "x")
    assert np.array_equal(found["x"], wanted) and found["y"] is None
    with pytest.raises(ValueError, match="not of numbers"):
        read_npz(tmp_path / "a.npz", lambda name: True)


def test_a_vocabulary_nested_too_deeply(tmp_path):
    (tmp_path / "v.json").write_text(json.dumps({"words": [], "counts": []})[:-1] + ', "x": ' + "[" * 100_000)
    with pytest.raises(ValueError, match="v.json"):
        Vocabulary.load(tmp_path / "v.json")
