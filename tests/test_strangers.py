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
from safetensors.torch import save_file

from src import evaluate
from src.bundle import Bundle, BundleError, bundle_config, load_bundle, read_saved, save_bundle
from src.captioner import Captioner
from src.data.regions import RegionsError, check_below
from src.data.vocabulary import Vocabulary
from src.initial import adopt
from src.model import build
from src.strangers import TooLarge, at_most, load_checkpoint, read_npy, read_npz, read_yaml
from tests.conftest import tiny_config
from tests.test_configs import composed


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
        ({"encoder__width": {"_target_": "src.loggers.ContinuedCSVLogger", "save_dir": "x"}}, "takes none such"),
        (
            {
                "encoder__backbone": {
                    "_target_": "src.encoders.TimmBackbone",
                    "name": "resnet18",
                    "act_layer": {"_target_": "src.loggers.ContinuedCSVLogger", "save_dir": "x"},
                }
            },
            "no part .* stands here",
        ),
        ({"decoder___target_": 5}, "names no class"),
        ({"decoder___target_": "src..model.X"}, "names no class"),
        ({"decoder": None}, "lacks decoder"),
        ({"decoder": [1]}, "a mapping with _target_ is wanted"),
        ({"generation__beam_size": None}, "generation.beam_size='None'"),
        ({"generation__max_length": 10**6}, "max_length=1000000: 1,000 at most"),
        ({"transform__size": 10**6}, "size=1000000: 8,192 at most"),
        ({"encoder__width": float("inf")}, "width"),
        ({"encoder__width": 10**400}, "width=…: 10,000,000 at most"),
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


def test_a_bundle_names_no_file_of_words_and_no_regions_outside_the_data(bundle, tmp_path):
    words = tmp_path / "words.txt"
    os.mkfifo(words)  # whose reader would wait without end
    with pytest.raises(BundleError, match="generation.never names a file, which is not read"):
        load_bundle(changed(bundle, generation__never=str(words)))
    load_bundle(changed(bundle, generation__never=["dog", "a cat"]))
    path = {"max_regions": 5, "dimension": 8}
    check_below({}, tmp_path)
    for inside in ("regions", "x/../regions", str(tmp_path / "regions")):
        check_below({"path": inside, **path}, tmp_path)
    for outside in ("/etc/passwd", "../x", "x/../../y", str(tmp_path) + "-other"):
        with pytest.raises(RegionsError, match="not below data.root=.*regions=PATH"):
            check_below({"path": outside, **path}, tmp_path)


def test_a_bundles_regions_are_read_by_evaluation_below_the_root_only(bundle, tmp_path):
    config = bundle_config(tiny_config(), {"encoder_weights": "none"})
    file = tmp_path / "secret.npy"
    config["encoder"] = {"_target_": "src.encoders.RegionEncoder", "path": str(file), "dimension": 8, "max_regions": 9}
    words = Vocabulary.load(bundle / "vocabulary.json")
    save_bundle(tmp_path / "r", Bundle(build(config, words).eval(), words, config))
    assert load_bundle(tmp_path / "r").config["encoder"]["path"] == str(file)  # which is not looked at
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "val.tsv").write_text("a.jpg\ta dog\n")
    root = [f"data.root={tmp_path / 'data'}", "data=tsv", "data.train=val.tsv", "data.val=val.tsv", "split=val"]
    with pytest.raises(RegionsError, match="not below data.root"):
        evaluate.run(composed([f"model={tmp_path / 'r'}", *root, f"output={tmp_path / 'out'}"], "evaluate"))
    begun = composed([f"init={tmp_path / 'r'}", *root[:-1]])
    with pytest.raises(RegionsError, match="not below data.root.*encoder.path=PATH in training"):
        adopt(begun, config, [])
    assert adopt(begun | {"encoder": {"path": str(file)}}, config, ["encoder.path"])["encoder"]["path"] == str(file)


@pytest.mark.parametrize(
    "defence, said",
    [
        ({"_target_": "src.defences.BlurDefence", "sigma": 10.0**6}, "sigma=1000000.0: 100 at most"),
        ({"_target_": "src.defences.RandomResizeDefence", "most": 10.0**4}, "most=10000.0: 10 at most"),
        ({"_target_": "src.defences.JpegDefence", "quality": 0}, "quality=0"),
        ({"_target_": "src.defences.JpegDefence", "quality": "x"}, "takes none such"),
        ({"_target_": "src.encoders.CNN", "channels": [4]}, "is no Defence"),
        ({"_target_": "src.defences.BlurDefence", "sigma": 2}, None),
        ({"_target_": "src.defences.RandomResizeDefence", "least": 0.5, "seed": 3}, None),
    ],
)
def test_defences_of_a_bundle(bundle, defence, said):
    if said is None:
        load_bundle(changed(bundle, defence=defence))
    else:
        with pytest.raises(BundleError, match=said):
            load_bundle(changed(bundle, defence=defence))


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"corruption": 0.5, "corruption_kinds": ["fog", "snow"], "corruption_severity": 5}, None),
        ({"corruption_kinds": None}, None),
        ({"corruption_kinds": "fog"}, "takes none such"),
        ({"corruption_kinds": ["/etc/passwd"]}, "corruption_kinds: /etc/passwd"),
        ({"corruption_severity": 99}, "corruption_severity=99"),
        ({"corruption": float("nan")}, "a finite number"),
    ],
)
def test_augmentations_of_a_bundle(bundle, fields, said):
    augment = {"_target_": "src.data.transforms.Augmentation", **fields}
    path = changed(bundle, transform__augment=augment)
    if said is None:
        Captioner.load(path, device_name="cpu", precision_name="32-true")
    else:
        with pytest.raises(BundleError, match=said):
            Captioner.load(path, device_name="cpu", precision_name="32-true")


DETECTOR = {
    "mean": torch.zeros(6, dtype=torch.float16),
    "axes": torch.eye(6, dtype=torch.float16)[:3],
    "variances": torch.tensor([3.0, 2.0, 1.0, 0.5]),
    "distances": torch.tensor([1.0, 2.0, 9.0]),
}


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"mean": torch.zeros(6, dtype=torch.bfloat16)}, "no detector"),
        ({"mean": torch.zeros(6, dtype=torch.int64)}, "mean are no finite numbers"),
        ({"mean": torch.tensor(1.0)}, "mean are no finite numbers, or of 0 dimensions"),
        ({"mean": torch.zeros(6, 2)}, "mean are no finite numbers, or of 2"),
        ({"mean": torch.full((6,), torch.nan)}, "mean are no finite"),
        ({"axes": torch.zeros(0, 6)}, "do not fit each other"),
        ({"axes": torch.zeros(2, 3, 6)}, "axes are no"),
        ({"variances": torch.zeros(4)}, "a variance that is none"),
        ({"distances": torch.zeros(0)}, "do not fit each other"),
        ({"distances": torch.tensor([2.0, 1.0])}, "out of order"),
        ({"mean": torch.zeros(9), "axes": torch.zeros(3, 9)}, "is of 9 features, and the encoder has"),
        ({"pictures": "many"}, "no detector"),
        ({"more": 1 << 40}, "no detector"),
    ],
)
def test_a_bundles_detector(bundle, fields, said):
    own = load_bundle(bundle).model.encoder.width
    arrays = {**DETECTOR, "mean": torch.zeros(own), "axes": torch.eye(own)[:3]} if own != 6 else {**DETECTOR}
    file = bundle / "detector.safetensors"
    save_file(arrays, file, {"pictures": "40"})
    assert load_bundle(bundle).detector.pictures == 40
    fields = dict(fields)
    about, more = {"pictures": fields.pop("pictures", "40")}, fields.pop("more", 0)
    if fields.keys() == {"axes"} and fields["axes"].dim() == 2:
        fields["axes"] = torch.zeros(0, own)
    save_file({**arrays, **fields}, file, about)
    if more:  # a header of more bytes than there are
        data = file.read_bytes()
        size = int.from_bytes(data[:8], "little")
        head = json.loads(data[8 : 8 + size])
        head["distances"] = {"dtype": "F32", "shape": [more], "data_offsets": [0, 4 * more]}
        text = json.dumps(head).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    with pytest.raises(ValueError, match=said):
        load_bundle(bundle)


def test_counting_ends_with_the_block():
    with pytest.raises(TooLarge), at_most(10, 10):
        torch.nn.Linear(10, 10)
    assert torch.nn.Linear(10, 10).weight.shape == (10, 10)


@pytest.mark.parametrize(
    "text",
    ["[" * 20_000, "[" * 500, "!!bool x", "!!int ''", "!!timestamp x", "!!float ''", "{[]: 1}", "a: *b", "x" * 200_000],
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


@pytest.mark.parametrize("more", [{"config": torch.ones(1)}, {"state_dict": [1]}, {"vocabulary": 3}])
def test_checkpoints_of_other_types(bundle, tmp_path, more):
    with pytest.raises(BundleError, match="not a checkpoint"):
        read_saved(checkpoint_of(bundle, tmp_path, **more))
    torch.save(torch.ones(1), tmp_path / "x.ckpt")
    with pytest.raises(BundleError, match="not a checkpoint"):
        read_saved(tmp_path / "x.ckpt")


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


# ---------------------------------------------------------------- shards


def manifest(tmp_path, **fields):
    shard = {"name": "a.tar", "images": 1, "bytes": 10, "sha256": None} | fields.pop("shard", {})
    content = {"shards": [shard], "sha256": {}, "features": None, "packed": None} | fields
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    return tmp_path / "manifest.json"


@pytest.mark.parametrize(
    "fields",
    [
        {"sha256": {"../../.bashrc": "0" * 64}},
        {"sha256": "captions.tsv"},
        {"features": [1]},
        {"shard": {"name": "pipe:touch ran"}},
        {"shard": {"name": "../a.tar"}},
        {"shard": {"name": "/etc/passwd"}},
        {"shard": {"name": "x'; touch ran; '.tar"}},
        {"shard": {"name": "$(touch ran).tar"}},
        {"shard": {"images": -1}},
        {"shard": {"bytes": 1 << 60}},
        {"features": {"of": {}, "shape": [1 << 40, 8], "dtype": "float16"}},
        {"features": {"of": {}, "shape": [4, 8], "dtype": "O"}},
    ],
)
def test_a_manifest_names_what_lies_beside_it_and_nothing_that_a_shell_heeds(fields, tmp_path):
    from src.data.shards import Manifest, ShardError

    assert Manifest.read(manifest(tmp_path)).shards[0].name == "a.tar"
    with pytest.raises(ShardError, match="no manifest of shards"):
        Manifest.read(manifest(tmp_path, **fields))


def test_an_address_that_a_shell_would_heed_is_not_opened(tmp_path):
    from src.data.shards import ShardError, fetch

    with pytest.raises(ShardError, match="a character in it that no address has"):
        fetch(f"gs://bucket/x'; touch {tmp_path / 'ran'}; '.tar", tmp_path / "cache" / "x.tar")
    assert not (tmp_path / "ran").exists()


def test_tars_lead_nowhere_and_unpack_to_nothing(tmp_path):
    from fuzz.targets import sparse, tar
    from src.data.shards import ShardError, read_tar

    file = tmp_path / "a.tar"
    file.write_bytes(
        tar(
            ("../../c.jpg", b"x", None),
            ("../../c.txt", b"out", None),
            ("/etc/d.jpg", b"y", None),
            ("/etc/d.txt", b"z", None),
        )
    )
    assert read_tar(file, "a/").names == ["a/c", "a/etc/d"]
    file.write_bytes(sparse(1 << 40))
    with pytest.raises(ShardError, match="sparse file"):
        read_tar(file)
    file.write_bytes(tar(("a.jpg", b"x", None), ("a.txt", b"x" * (1 << 20) + b"y", None)))
    with pytest.raises(ShardError, match="bytes of text"):
        read_tar(file)
    file.write_bytes(tar(("a.jpg", b"x", None), ("a.json", b"[" * 100_000, None)))
    with pytest.raises(ShardError, match="nested too deeply"):
        read_tar(file)
    broken = bytearray(tar(("a.jpg", b"x", {"pax_headers": {"path": "é"}})))
    broken[124:136] = b"\x80" + b"\xff" * 11  # the extended header's size
    broken[148:156] = b" " * 8
    broken[148:156] = b"%06o\0 " % sum(broken[:512])
    file.write_bytes(broken)
    with pytest.raises(ShardError, match="damaged"):
        read_tar(file)


def test_places_outside_a_shard_take_no_memory(tmp_path):
    from src.data.shards import Manifest, ShardError, Shards

    (tmp_path / "a.tar").write_bytes(bytes(10))
    found = Manifest.read(manifest(tmp_path, shard={"images": 3}))
    shards = Shards(str(tmp_path), found, np.array([[0, 1 << 40], [-5, 2], [2, 3]]), tmp_path)
    for number in (0, 1):
        with pytest.raises(ShardError, match="ends before its image"):
            shards.read(number)
    assert shards.read(2) == bytes(3)


# ---------------------------------------------------------------- regions, vectors, indexes, predictions


def test_regions_of_other_files_texts_and_bombs(tmp_path):
    h5py = pytest.importorskip("h5py")
    from src.data.regions import RegionFiles, RegionsError

    good = np.ones((2, 8), np.float32)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = good
    (tmp_path / "raw").write_bytes(good.tobytes())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["good"] = good
        file["link"] = h5py.ExternalLink("other.h5", "x")
        file.create_dataset("raw", (2, 8), "<f4", external=[(str(tmp_path / "raw"), 0, 64)])
        file.create_dataset("bomb", (1 << 30, 8), "<f4", chunks=(1 << 10, 8), compression="gzip")
        file["text"] = np.array([b"a", b"b"])
    files = RegionFiles(tmp_path / "a.h5", 8, 5)
    assert len(files.read("good").features) == 2
    for name in ("link", "raw", "bomb", "text"):
        with pytest.raises(RegionsError, match="damaged, or no arrays of numbers"):
            files.read(name)
    np.savez(tmp_path / "b.npz", features=np.array([["a"] * 8]))
    np.savez_compressed(tmp_path / "c.npz", features=good)
    data = bytearray((tmp_path / "c.npz").read_bytes())
    data[60:70] = bytes(10)
    (tmp_path / "c.npz").write_bytes(data)
    for name in ("b", "c"):
        with pytest.raises(RegionsError):
            RegionFiles(tmp_path, 8, 5).read(name)


@pytest.mark.parametrize(
    "name, data",
    [
        ("v.txt", b"2 20000\na 1 2\n"),
        ("v.bin", b"1 999999999\na " + bytes(100)),
        ("v.bin", b"9 0\na b c"),
        ("v.bin", b"5 3\n" + b"x" * (3 << 20)),
        ("v.txt", b"2 2\na 1 " + b"1" * (2 << 20)),
    ],
)
def test_word_vectors_of_any_width_or_length(name, data, tmp_path):
    from src.embeddings.vectors import VectorsError, open_vectors

    (tmp_path / name).write_bytes(data)
    with pytest.raises(VectorsError):
        open_vectors(str(tmp_path / name)).read({"a"})


def test_a_damaged_index_is_said_so_whatever_is_damaged(tmp_path):
    pytest.importorskip("faiss")
    from src.segments import IndexFault, Row, new_manifest, read_state, write_manifest, write_segment

    rows = [Row(f"/x/{name}.jpg", 10, 20, f"a {name}") for name in ("dog", "cat")]
    files = write_segment(tmp_path / "segment-0", rows, np.eye(2, 4, dtype=np.float32))
    entry = {"name": "segment-0", "files": files, "removed": None}
    blank = new_manifest({"digest": "x", "size": 4}, ["en"])
    write_manifest(tmp_path, {**blank, "segments": [entry]})
    assert len(read_state(tmp_path).segments[0]) == 2
    for file in sorted((tmp_path / "segment-0").iterdir()):
        whole = file.read_bytes()
        file.write_bytes(b"\xff" * len(whole))
        with pytest.raises(IndexFault):
            read_state(tmp_path)
        file.write_bytes(whole)
    for name in ("../segment-0", "/x"):
        write_manifest(tmp_path, {**blank, "segments": [{**entry, "name": name}]})
        with pytest.raises(IndexFault, match="a name in the index's folder"):
            read_state(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"\xff")
    with pytest.raises(IndexFault, match="damaged"):
        read_state(tmp_path)


def test_json_nested_too_deeply_is_a_clear_error(tmp_path):
    from src.confidence import Calibration
    from src.predictions import PredictionsError, read_references
    from src.prepare.coco import read_annotations

    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(PredictionsError, match="nested too deeply"):
        read_references(tmp_path / "x.json")
    with pytest.raises(ValueError, match="x.json"):
        read_annotations(tmp_path / "x.json", "train2017")
    with pytest.raises(ValueError, match="x.json"):
        Calibration.load(tmp_path / "x.json")


def test_where_nothing_is_audited_nothing_has_passed(capsys):
    import importlib.util

    from src.config import ROOT

    spec = importlib.util.spec_from_file_location("lock", ROOT / "scripts" / "lock.py")
    lock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lock)
    assert lock.told([{"name": "a", "skip_reason": "not found"}]) == 3
    assert "not checked" in capsys.readouterr().out
    hole = {"id": "CVE-1", "fix_versions": ["2"]}
    assert lock.told([{"name": "a", "version": "1", "vulns": [hole]}, {"name": "b", "version": "1", "vulns": []}]) == 1
    assert "a 1: CVE-1, mended in 2\n2 packages checked, 1 known holes" in capsys.readouterr().out
    text = (ROOT / "requirements.lock").read_text()
    assert text.count("--hash=sha256:") == text.count("==") > 100 and "://" not in text
