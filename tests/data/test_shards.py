"""Shards: packed, read back, streamed by order, damaged; held against the TSV that they were packed from."""

import errno
import io
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import tarfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from src.data.images import ImageError
from src.data.module import CaptionData, TrainingOrder
from src.data.shards import Content, Manifest, ShardError, Shards, found_shards, picture_of, sha256_of
from src.data.tokenizer import EnglishTokenizer
from src.data.transforms import Augmentation, Preprocess
from src.files import DiskFull
from src.prepare.__main__ import main as prepare
from src.prepare.shards import write_shards

webdataset = pytest.importorskip("webdataset")


@pytest.fixture(scope="module")
def packed(shapes, tmp_path_factory):
    """The shapes' three splits in shards of five images."""
    folder = tmp_path_factory.mktemp("packed")
    for split in ("train", "val", "test"):
        assert prepare(["shards", str(shapes / f"{split}.tsv"), str(folder / split), "--images", "5"]) == 0
    return folder


def data_of(root, cache, form="shards", suffix="", **options):
    given = {"train": f"train{suffix}", "val": f"val{suffix}", "min_count": 1, "batch_size": 3, "seed": 1, **options}
    preprocess = given.pop("preprocess", Preprocess(16))
    return CaptionData(root, preprocess, EnglishTokenizer(), form=form, cache_dir=cache, **given)


def epoch(data, number=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def same(first, second):
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        assert one.references == two.references
        for a, b in zip(one[:5], two[:5], strict=True):
            assert torch.equal(a, b)


def test_what_is_packed_is_what_was_there(shapes, packed, tmp_path):
    tsv, shards = data_of(shapes, tmp_path, "tsv", ".tsv"), data_of(packed, tmp_path)
    assert shards.tables["train"] == tsv.tables["train"] and shards.vocabulary.words == tsv.vocabulary.words
    same(list(tsv.evaluation_dataloader("val")), list(shards.evaluation_dataloader("val")))
    for image in shards.tables["val"].images:
        assert picture_of(packed / "val", image) == (shapes / image).read_bytes()
    assert picture_of(shapes, "images/00.png") == shapes / "images/00.png"


def test_webdataset_itself_reads_them(shapes, packed):
    """The form is its own: samples of picture and JSON, in the table's order."""
    files = sorted(str(file) for file in (packed / "train").glob("*.tar"))
    assert len(files) == 4
    samples = list(webdataset.WebDataset(files, shardshuffle=False))
    found = [json.loads(sample["json"]) for sample in samples]
    assert [each["image"] for each in found] == [f"images/{i:02d}.png" for i in range(16)]
    assert found[1]["captions"] == ["A green square.", "There is a green square on grey."]
    assert all(
        sample["png"] == (shapes / each["image"]).read_bytes() for sample, each in zip(samples, found, strict=True)
    )


def test_the_manifest_has_sizes_and_checksums(packed):
    manifest = Manifest.read(packed / "train" / "manifest.json")
    assert [shard.images for shard in manifest.shards] == [5, 5, 5, 1]
    for shard in manifest.shards:
        file = packed / "train" / shard.name
        assert shard.bytes == file.stat().st_size and shard.sha256 == sha256_of(file)
    assert {path.name for path in (packed / "train").iterdir()} == {
        *("000000.tar", "000001.tar", "000002.tar", "000003.tar", "manifest.json", "captions.tsv", "index.npy", ".lock")
    }


# ---------------------------------------------------------------- order


@pytest.mark.parametrize("workers", [0, 2])
def test_every_caption_once_an_epoch_in_an_order_of_its_own(packed, tmp_path, workers):
    data = data_of(packed, tmp_path, workers=workers, shuffle_shards=2)
    first, again, next_one = epoch(data), epoch(data), epoch(data, 1)
    same(first, again)
    seen = Counter(image for batch in first for image in batch.index.tolist())
    assert seen == Counter(range(16)) and [b.index.tolist() for b in first] != [b.index.tolist() for b in next_one]


def test_few_shards_are_read_at_a_time():
    """Of 40 shards, 4 together: each batch has images of at most two windows of 4, and shards mix within a window."""
    images, blocks = 20_000, np.repeat(np.arange(40), 500)
    lengths = np.random.default_rng(0).integers(5, 30, images)
    order = TrainingOrder(lengths, np.arange(images + 1), 32, 1, seed=0)
    order.blocks, order.together = blocks, 4
    steps = [[item.image for item in step] for step in order]
    assert sorted(image for step in steps for image in step) == list(range(images))
    shards = [set(blocks[step].tolist()) for step in steps]
    assert max(map(len, shards)) <= 8 and np.mean([len(each) for each in shards]) > 3.5
    first = {shard: next(i for i, each in enumerate(shards) if shard in each) for shard in range(40)}
    last = {shard: max(i for i, each in enumerate(shards) if shard in each) for shard in range(40)}
    assert max(last[s] - first[s] for s in range(40)) < 66, "a shard is done with after its window's 63 steps"
    order.set_epoch(1)
    assert [blocks[[i.image for i in step]].tolist() for step in order][:5] != [blocks[s].tolist() for s in steps][:5]


def test_ranks_together_see_what_one_sees_and_a_resumed_epoch_goes_on(packed, tmp_path):
    data = data_of(packed, tmp_path, batch_size=4, shuffle_shards=1)
    data._world = lambda: (0, 1)
    whole = [sorted(b.index.tolist()) for b in epoch(data)]
    ranks = []
    for rank in range(2):
        half = data_of(packed, tmp_path, batch_size=2, shuffle_shards=1)
        half._world = lambda rank=rank: (rank, 2)
        ranks.append([b.index.tolist() for b in epoch(half)])
    assert [sorted(a + b) for a, b in zip(*ranks, strict=True)] == whole
    seen = [[b.index.tolist() for b in data.evaluation_dataloader("val", rank, 3)] for rank in range(3)]
    assert sorted(i for rank in seen for batch in rank for i in batch) == list(range(4)), "each once"
    resumed = data_of(packed, tmp_path, batch_size=4, shuffle_shards=1)
    resumed._world = lambda: (0, 1)
    resumed.load_state_dict({"done": 2})
    assert [sorted(b.index.tolist()) for b in resumed.train_dataloader()] == whole[2:]


# ---------------------------------------------------------------- packing


def test_a_stopped_call_goes_on_and_other_data_are_refused(shapes, packed, tmp_path, capsys, monkeypatch):
    output, table = tmp_path / "train", shapes / "train.tsv"
    from src.prepare import shards as module

    real, packed_now = module.pack, []

    def stop_after_two(output, number, *rest):
        if len(packed_now) == 2:
            raise KeyboardInterrupt
        packed_now.append(number)
        return real(output, number, *rest)

    monkeypatch.setattr(module, "pack", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        write_shards(table, output, images=5, workers=1)
    assert not (output / "manifest.json").exists() and packed_now == [0, 1]
    (output / "000002.tar.partial").write_bytes(b"half")
    packed_now.clear()
    monkeypatch.setattr(module, "pack", lambda output, n, *rest: packed_now.append(n) or real(output, n, *rest))
    write_shards(table, output, images=5, workers=1)
    assert packed_now == [2, 3]
    for file in sorted((packed / "train").iterdir()):
        assert (output / file.name).read_bytes() == file.read_bytes(), "the same bytes as packed at once"
    packed_now.clear()
    write_shards(table, output, images=5)
    assert packed_now == []
    assert prepare(["shards", str(table), str(output), "--images", "6"]) == 1
    assert "holds shards of other data or settings: give another folder, or --overwrite" in capsys.readouterr().err
    assert prepare(["shards", str(shapes / "val.tsv"), str(output), "--overwrite"]) == 0
    assert sorted(file.name for file in output.glob("*.tar")) == ["000000.tar"]
    assert "4 images, 8 captions in 1 shard" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "anew"),
    [
        (lambda folder: (folder / "000001.tar").unlink(), [1]),
        (lambda folder: cut(folder / "000002.tar"), [2]),
        (lambda folder: (folder / "captions.tsv").unlink(), []),
        (lambda folder: cut(folder / "index.npy"), [0, 1, 2, 3]),
    ],
    ids=["missing", "cut", "table", "index"],
)
def test_what_is_gone_is_packed_anew(shapes, packed, copy, monkeypatch, damage, anew):
    from src.prepare import shards as module

    output, real, packed_now = copy / "train", module.pack, []

    def note(output, number, *rest):
        packed_now.append(number)
        return real(output, number, *rest)

    monkeypatch.setattr(module, "pack", note)

    def call(**options):
        packed_now.clear()
        write_shards(shapes / "train.tsv", output, images=5, workers=1, **options)
        for file in sorted((packed / "train").iterdir()):
            assert (output / file.name).read_bytes() == file.read_bytes()
        assert {file.name for file in output.iterdir()} == {file.name for file in (packed / "train").iterdir()}
        return packed_now

    damage(output)
    assert call() == anew
    assert call() == []
    damage(output)
    assert call(overwrite=True) == [0, 1, 2, 3]


def test_a_tar_that_is_gone_before_all_are_packed_is_packed_anew(shapes, packed, tmp_path, monkeypatch):
    from src.prepare import shards as module

    real = module.pack

    def stop(output, number, *rest):
        if number == 2:
            raise KeyboardInterrupt
        return real(output, number, *rest)

    monkeypatch.setattr(module, "pack", stop)
    with pytest.raises(KeyboardInterrupt):
        write_shards(shapes / "train.tsv", tmp_path, images=5, workers=1)
    cut(tmp_path / "000000.tar")
    monkeypatch.setattr(module, "pack", real)
    write_shards(shapes / "train.tsv", tmp_path, images=5, workers=1)
    for file in (packed / "train").iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_of_two_calls_at_the_same_time_one_packs(shapes, packed, tmp_path, monkeypatch):
    from src.prepare import shards as module

    real, packed_now = module.pack, []
    second = threading.Thread(
        target=write_shards, args=(shapes / "train.tsv", tmp_path / "train"), kwargs={"images": 5, "workers": 1}
    )

    def note(output, number, *rest):
        packed_now.append(number)
        if len(packed_now) == 1:
            second.start()
            second.join(0.5)  # time to do the same, were it let
            assert second.is_alive()
        return real(output, number, *rest)

    monkeypatch.setattr(module, "pack", note)
    write_shards(shapes / "train.tsv", tmp_path / "train", images=5, workers=1)
    second.join(20)
    assert packed_now == [0, 1, 2, 3]
    for file in (packed / "train").iterdir():
        assert (tmp_path / "train" / file.name).read_bytes() == file.read_bytes()


def test_pictures_that_were_replaced_are_other_data(shapes, tmp_path):
    shutil.copytree(shapes, tmp_path / "data")
    write_shards(tmp_path / "data" / "val.tsv", tmp_path / "packed")
    picture = tmp_path / "data" / "images" / "17.png"
    picture.write_bytes((tmp_path / "data" / "images" / "01.png").read_bytes() + b"more")
    with pytest.raises(ValueError, match="holds shards of other data"):
        write_shards(tmp_path / "data" / "val.tsv", tmp_path / "packed")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files")
def test_pictures_to_show_leave_no_files_open(shapes, packed):
    counts = []
    for _ in range(3):
        for number in range(16, 20):
            picture_of(packed / "val", f"images/{number}.png")
        counts.append(len(list(Path("/proc/self/fd").iterdir())))
    assert len(set(counts[1:])) == 1


def test_several_processes_pack_the_same(shapes, packed, tmp_path):
    write_shards(shapes / "train.tsv", tmp_path / "train", images=5, workers=2)
    for file in (packed / "train").iterdir():
        assert (tmp_path / "train" / file.name).read_bytes() == file.read_bytes()


def test_wrong_calls_are_one_sentence(shapes, tmp_path, capsys):
    table = tmp_path / "t.tsv"
    table.write_text("images/none.png\ta dog\n")
    assert prepare(["shards", str(table), str(tmp_path / "o"), "--root", str(shapes)]) == 1
    assert "t.tsv:1: no file images/none.png" in capsys.readouterr().err
    assert prepare(["shards", str(shapes / "val.tsv"), str(tmp_path / "o"), "--images", "0"]) == 1
    assert "--images 0" in capsys.readouterr().err
    assert prepare(["shards", str(shapes / "val.tsv"), str(tmp_path / "o"), "--features", "encoder=cnn"]) == 1
    assert "no stage of this encoder is frozen" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.tar"))


def test_tags_and_pictures_without_a_suffix(shapes, tmp_path):
    (tmp_path / "images").mkdir()
    shutil.copy(shapes / "images/00.png", tmp_path / "images/plain")
    (tmp_path / "t.tsv").write_text("images/plain\ta dog\ten\nimages/plain\t一只狗\tzh, domain=x\n", encoding="utf-8")
    write_shards(tmp_path / "t.tsv", tmp_path / "packed")
    table, shards = found_shards(str(tmp_path), "packed", tmp_path / "cache")
    assert table.tags == [["en", "zh, domain=x"]] and table.captions == [["a dog", "一只狗"]]
    with tarfile.open(tmp_path / "packed/000000.tar") as tar:
        assert "000000000.png" in tar.getnames()
    assert shards.read(0) == (shapes / "images/00.png").read_bytes()


# ---------------------------------------------------------------- damage


@pytest.fixture
def copy(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "copy")
    return tmp_path / "copy"


def cut(file, share=0.5):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])


def flip(file):
    """Other bytes of the same number, in the middle of a picture."""
    data = bytearray(file.read_bytes())
    begin = int(np.load(file.parent / "index.npy")[5, 0]) + 40
    data[begin : begin + 50] = bytes(50)
    file.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "verify", "reason"),
    [
        (lambda file: file.unlink(), "exists", "No such file or directory"),
        (cut, "exists", "bytes, and the manifest says"),
        (flip, "decode", "another content than the manifest says"),
    ],
)
def test_a_bad_shard_is_named_or_left_out_and_counted(copy, tmp_path, caplog, damage, verify, reason):
    damage(copy / "train/000001.tar")
    cache = tmp_path / "cache"
    with pytest.raises(ShardError, match=rf"train/000001\.tar: .*{reason}.*on_bad_shard=skip"):
        data_of(copy, cache, verify=verify)
    data = data_of(copy, cache, verify=verify, on_bad_shard="skip")
    assert "left out are 1 of 4 shards, 5 of 16 images" in caplog.text and "000001.tar" in caplog.text
    assert data.tables["train"].images == [f"images/{i:02d}.png" for i in (*range(5), *range(10, 16))]
    numbers = [image for batch in epoch(data) for image in batch.index.tolist()]
    assert sorted(numbers) == list(range(11))
    batch = next(iter(data.evaluation_dataloader("train")))
    picture = data.preprocess.open(picture_of(copy / "train", "images/10.png"))
    assert torch.equal(batch.images[5], picture), "numbers go on to mean the same images"


def test_whole_shards_are_read_once_to_be_verified(packed, tmp_path, monkeypatch):
    from src.data import shards as module

    looked, real = [], module.sha256_of
    monkeypatch.setattr(module, "sha256_of", lambda file: looked.append(file.name) or real(file))
    for _ in range(2):
        data_of(packed, tmp_path, verify="decode")
    assert Counter(looked)["000003.tar"] == 1 and Counter(looked)["captions.tsv"] == 4


def test_of_several_processes_one_reads_the_shards_to_verify_them(packed, tmp_path, monkeypatch):
    from src.data import shards as module

    _, shards = found_shards(str(packed), "train", tmp_path)
    looked, real, found = [], module.sha256_of, []
    second = threading.Thread(target=lambda: found.append(shards.damaged(range(4))))

    def note(file):
        looked.append(file.name)
        if len(looked) == 1:
            second.start()
            second.join(0.5)  # time to read them too, were it let
        return real(file)

    monkeypatch.setattr(module, "sha256_of", note)
    assert shards.damaged(range(4)) == ({}, {})
    second.join(20)
    assert found == [({}, {})] and looked == [f"{number:06d}.tar" for number in range(4)]


def test_pictures_that_cannot_be_decoded_are_named_or_left_out(shapes, served, tmp_path, caplog):
    """One of 16, packed as it is: the cache of features, too, is of the others."""
    shutil.copytree(shapes, tmp_path / "data")
    cut(tmp_path / "data/images/06.png")
    write_shards(tmp_path / "data/train.tsv", tmp_path / "bad/train", images=5)
    cache, options = tmp_path / "cache", {"val": None, "preprocess": Preprocess(32)}
    with pytest.raises(ImageError, match=r"000001\.tar: its image images/06.png.*verify=decode.*on_bad_shard"):
        data_of(tmp_path / "bad", cache, on_bad_shard="skip", **options).cache_features(*encoder_of(), ["train"])
    with pytest.raises(ShardError, match=r"000001\.tar: its image 1: .*on_bad_shard=skip leaves its images out"):
        data_of(tmp_path / "bad", cache, verify="decode", **options)
    for _ in range(2):
        caplog.clear()
        data = data_of(tmp_path / "bad", cache, verify="decode", on_bad_shard="skip", **options)
        assert "left out are 0 of 4 shards, 1 of 16 images" in caplog.text
    data.cache_features(*encoder_of(), ["train"])
    assert sorted(i for b in epoch(data) for i in b.index.tolist()) == list(range(15))
    assert list(data.tables["train"].images) == [f"images/{i:02d}.png" for i in range(16) if i != 6]
    address, folder, _ = served
    shutil.copytree(tmp_path / "bad/train", folder / "bad")
    data = data_of(address, cache, train="bad", verify="decode", on_bad_shard="skip", **options)
    assert len(data.tables["train"]) == 15, "and of an address"


def test_damage_that_shows_while_it_trains(copy, tmp_path, caplog):
    """An image that cannot be decoded, in a shard of the right size: an error with its shard; with skip, left out."""
    flip(copy / "train/000001.tar")
    with pytest.raises(ImageError, match=r"train/000001\.tar: its image images/05.png"):
        epoch(data_of(copy, tmp_path))
    data = data_of(copy, tmp_path, on_bad_shard="skip")
    with caplog.at_level(logging.WARNING):
        batches = epoch(data)
    assert sorted(i for b in batches for i in b.index.tolist()) == [i for i in range(16) if i != 5]
    assert all(len(b.tokens) == len(b.images) == len(b.references) == len(b.index) for b in batches)
    assert "a training image left out (the 1. of this process)" in caplog.text
    with pytest.raises(ImageError, match=r"000001\.tar"):
        list(data.evaluation_dataloader("train"))  # scores are of all images or none


def test_nothing_left(copy, tmp_path):
    for file in (copy / "train").glob("*.tar"):
        cut(file)
    with pytest.raises(ShardError, match="no shard is left"):
        data_of(copy, tmp_path, on_bad_shard="skip")


def test_files_that_do_not_belong_together(copy, tmp_path):
    shutil.copy(copy / "val/captions.tsv", copy / "train/captions.tsv")
    with pytest.raises(ShardError, match=r"captions\.tsv: another content than manifest\.json says"):
        data_of(copy, tmp_path, verify="decode")
    with pytest.raises(ShardError, match=r"captions.tsv has 4 images, index.npy 16"):
        data_of(copy, tmp_path)
    (copy / "train/manifest.json").write_text("{}")
    with pytest.raises(ShardError, match="no manifest of shards"):
        data_of(copy, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "none"}, "no manifest.json and no .tar in it"),
        ({"train": "train/9*.tar"}, "no file matches this pattern"),
        ({"shuffle_shards": 0}, "shuffle_shards=0"),
        ({"shard_cache_gb": 0}, "shard_cache_gb=0"),
        ({"on_bad_shard": "ignore"}, "choose error, skip"),
    ],
)
def test_what_cannot_be(packed, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        data_of(packed, tmp_path, **options)


# ---------------------------------------------------------------- where shards are


TWO = ["train/000001.tar", "train/000002.tar"]


@pytest.mark.parametrize("where", ["train/00000[12].tar", "train/{000001,000002}.tar", TWO], ids=str)
def test_some_of_the_shards(packed, tmp_path, where):
    data = data_of(packed, tmp_path, train=where)
    assert data.tables["train"].images == [f"images/{i:02d}.png" for i in range(5, 15)]
    assert len(epoch(data)) == len(data.train_dataloader()) == 4


def foreign(folder, number, samples):
    """A tar as others pack it: files of one name, in any order."""
    with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
        for name, content in samples:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_tars_that_others_packed(shapes, tmp_path, caplog):
    pictures = [(shapes / f"images/{i:02d}.png").read_bytes() for i in range(4)]
    (tmp_path / "train").mkdir()
    foreign(
        tmp_path / "train",
        0,
        [
            ("000.txt", b"a  red\nsquare\n"),
            ("000.png", pictures[0]),
            ("000.json", b'{"caption": "from json", "key": "000"}'),
            ("./sub/001.PNG", pictures[1]),
            ("./sub/001.json", '{"captions": ["ein", "zwei 狗"], "tags": ["de", ""]}'.encode()),
            ("002.png", pictures[2]),
        ],
    )
    foreign(tmp_path / "train", 1, [("003.seg.png", pictures[3]), ("003.txt", b"a circle")])
    for _ in range(2):
        table, shards = found_shards(str(tmp_path), "train", tmp_path / "cache")
        assert table.images == ["00000/000", "00000/sub/001", "00001/003"]
        assert table.captions == [["from json"], ["ein", "zwei 狗"], ["a circle"]] and table.tags[1] == ["de", ""]
        assert [shards.read(i) for i in range(3)] == [pictures[0], pictures[1], pictures[3]]
    (tmp_path / "train/00002.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(ShardError, match=r"00002\.tar: damaged, or no tar"):
        found_shards(str(tmp_path), "train", tmp_path / "cache")
    tars = [f"train/{i:05d}.tar" for i in range(4)]
    for _ in range(2):
        caplog.clear()
        table, _ = found_shards(str(tmp_path), tars, tmp_path / "cache", on_bad_shard="skip")
        assert len(table) == 3 and "00002.tar: damaged" in caplog.text and "00003.tar" in caplog.text, "in every call"
    foreign(tmp_path / "train", 2, [("4.png", pictures[3]), ("4.txt", b"a circle")])
    foreign(tmp_path / "train", 3, [("5.png", pictures[3]), ("5.txt", b"a circle")])
    table, _ = found_shards(str(tmp_path), tars, tmp_path / "cache")
    assert table.images[-2:] == ["00002/4", "00003/5"]


@pytest.mark.parametrize(
    ("about", "captions", "tags", "name"),
    [
        ({"captions": "a dog", "tags": "en"}, ["a dog"], ["en"], "00000/a"),
        ({"captions": ["one", None, "three"], "tags": ["x", "y", "z\nz"]}, ["one", "three"], ["x", "z z"], "00000/a"),
        ({"captions": ["one", "two"], "tags": "zh"}, ["one", "two"], ["zh", "zh"], "00000/a"),
        ({"captions": [], "caption": "a dog", "image": "https://place/a.png"}, ["a dog"], [""], "00000/a"),
        ({"caption": "a dog", "image": "/whole/a.png"}, ["a dog"], [""], "00000/a"),
        ({"caption": "a dog", "image": "two\nlines"}, ["a dog"], [""], "00000/a"),
        ({"caption": "a dog", "image": "./x//a.png"}, ["a dog"], [""], "x/a.png"),
    ],
    ids=str,
)
def test_what_others_write_beside_a_picture(shapes, tmp_path, about, captions, tags, name):
    picture = (shapes / "images/00.png").read_bytes()
    foreign(tmp_path, 0, [("a.png", picture), ("a.json", json.dumps(about).encode())])
    table, shards = found_shards(str(tmp_path), "00000.tar", tmp_path / "cache")
    assert table.captions == [captions] and list(table.images) == [name] and shards.read(0) == picture
    assert (table.tags or [[""] * len(captions)]) == [tags]


def test_tars_of_one_name_and_images_of_one_name(shapes, tmp_path):
    picture = (shapes / "images/00.png").read_bytes()
    for folder in "ab":
        (tmp_path / folder).mkdir()
        foreign(tmp_path / folder, 0, [("x.png", picture), ("x.txt", folder.encode())])
    tars = ["a/00000.tar", "b/00000.tar"]
    table, _ = found_shards(str(tmp_path), tars, tmp_path / "cache")
    assert dict(zip(table.images, table.captions, strict=True)) == {"a/00000/x": ["a"], "b/00000/x": ["b"]}
    for folder in "ab":
        foreign(tmp_path / folder, 0, [("x.png", picture), ("x.json", b'{"caption": "a", "image": "one"}')])
    with pytest.raises(ShardError, match=r"b/00000\.tar: its image one is in .*a/00000\.tar, too"):
        found_shards(str(tmp_path), tars, tmp_path / "cache")
    foreign(tmp_path, 0, [("x.png", picture), ("x.json", b"[]")])
    with pytest.raises(ShardError, match="the JSON of its sample x is no object"):
        found_shards(str(tmp_path), "00000.tar", tmp_path / "cache")
    with pytest.raises(ShardError, match="an empty list"):
        found_shards(str(tmp_path), [], tmp_path / "cache")


def test_a_tar_that_was_exchanged_is_other_content(shapes, tmp_path):
    """Of the same size: what was computed of its pictures is not what is computed of these."""
    picture, digests = bytearray((shapes / "images/00.png").read_bytes()), []
    for second in (1, 2):
        picture[-20] ^= second
        foreign(tmp_path, 0, [("x.png", bytes(picture)), ("x.txt", b"a")])
        os.utime(tmp_path / "00000.tar", (second, second))
        digests.append(found_shards(str(tmp_path), "00000.tar", tmp_path / "cache")[1].digest())
    assert digests[0] != digests[1]


class Handler(SimpleHTTPRequestHandler):
    """Some paths it answers with an error, or half of what it announces, so many times."""

    asked: ClassVar[list[str]] = []
    failing: ClassVar[dict[str, int]] = {}
    halved: ClassVar[dict[str, int]] = {}

    def log_message(self, *arguments):
        self.asked.append(self.path)

    def do_GET(self):
        if self.failing.get(self.path):
            self.failing[self.path] -= 1
            self.send_error(503)
        else:
            super().do_GET()

    def copyfile(self, source, outputfile):
        if self.halved.get(self.path):
            self.halved[self.path] -= 1
            outputfile.write(source.read()[: os.fstat(source.fileno()).st_size // 2])
        else:
            super().copyfile(source, outputfile)


@pytest.fixture
def served(packed, tmp_path, monkeypatch):
    """The packed shards at an address, and what was asked of it."""
    for each in (Handler.asked, Handler.failing, Handler.halved):
        each.clear()
    monkeypatch.setattr("src.data.shards.time.sleep", lambda seconds: None)
    shutil.copytree(packed, tmp_path / "served")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "served")))
    threading.Thread(target=partial(server.serve_forever, 0.05), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", tmp_path / "served", Handler.asked
    server.shutdown()


def test_shards_that_have_an_address(shapes, served, tmp_path):
    address, _, asked = served
    local = data_of(shapes, tmp_path / "a", "tsv", ".tsv")
    data = data_of(address, tmp_path / "b")
    assert not any(path.endswith(".tar") for path in asked), "nothing is fetched before it is read"
    same(list(local.evaluation_dataloader("val")), list(data.evaluation_dataloader("val")))
    first = epoch(data)
    same(first, epoch(data_of(address, tmp_path / "b")))
    assert Counter(asked)["/train/000002.tar"] == 1 and Counter(asked)["/train/captions.tsv"] == 1
    some = data_of(address, tmp_path / "c", train="train/{000000..000001}.tar")
    assert len(some.tables["train"]) == 10


def test_a_bad_shard_of_an_address(served, tmp_path, caplog):
    address, folder, _ = served
    flip(folder / "train/000001.tar")
    (folder / "train/000003.tar").unlink()
    with pytest.raises(ShardError, match=r"http.*/train/00000[13]\.tar: (damaged|it could not be fetched)"):
        epoch(data_of(address, tmp_path))
    data = data_of(address, tmp_path, on_bad_shard="skip", batch_size=8)
    assert sorted(i for b in epoch(data) for i in b.index.tolist()) == [*range(5), *range(10, 15)]
    assert not list(tmp_path.glob("**/*.partial"))
    with pytest.raises(ShardError, match="could not be fetched"):
        data_of(f"{address}/none", tmp_path)


def test_what_is_packed_anew_at_an_address_is_fetched_anew(served, shapes, tmp_path):
    address, folder, _ = served
    for change in (b"", b"changed"):
        if change:
            shutil.rmtree(folder / "val")
            shutil.copytree(shapes, tmp_path / "other")
            with (tmp_path / "other" / "images" / "17.png").open("ab") as picture:
                picture.write(change)
            write_shards(tmp_path / "other" / "val.tsv", folder / "val")
        table, shards = found_shards(address, "val", tmp_path / "cache")
        assert shards.read(list(table.images).index("images/17.png")).endswith(change or b"\x82")


def test_fetched_shards_make_room(served, tmp_path, caplog):
    address, folder, asked = served
    most = 1.5 * (folder / "train/000000.tar").stat().st_size
    data = data_of(address, tmp_path, shard_cache_gb=most / 1e9)
    assert sorted(i for b in epoch(data) for i in b.index.tolist()) == list(range(16))
    kept = sum(file.stat().st_size for file in (tmp_path / "shards").glob("*.tar"))
    assert kept <= most and "keeps fewer shards than are read at a time" in caplog.text
    assert len(data.images("train").shards.shards._open) == 1, "those that made room take none of the disk"


def test_a_shard_that_another_process_removes_is_fetched_again(served, packed, tmp_path, monkeypatch):
    address, _, asked = served
    removed = []

    def remove_one(cache, newest, most):
        removed.append(newest)
        if len(removed) == 1:
            newest.unlink()

    monkeypatch.setattr("src.data.shards.make_room", remove_one)
    _, shards = found_shards(address, "val", tmp_path / "cache", most=1)
    assert shards.read(0) == picture_of(packed / "val", "images/16.png")
    assert len(removed) == 2 and Counter(asked)["/val/000000.tar"] == 2


@pytest.mark.parametrize("manifest", [True, False])
def test_what_fails_for_a_moment_is_fetched_again(served, tmp_path, caplog, manifest):
    address, folder, asked = served
    if not manifest:
        (folder / "val/manifest.json").unlink()
    Handler.failing["/val/manifest.json"] = 2
    Handler.halved["/val/000000.tar"] = 2
    table, shards = found_shards(address, "val/000000.tar", tmp_path / "cache")
    assert (
        len(table) == 4
        and shards.read(0)
        == (folder.parent / "served").joinpath("val/000000.tar").read_bytes()[slice(*np.cumsum(shards.index[0]))]
    )
    assert Counter(asked)["/val/000000.tar"] == 3 and "cut off" in caplog.text and "503" in caplog.text
    Handler.failing["/train/manifest.json"] = 9
    with pytest.raises(ShardError, match="train/manifest.json: it could not be fetched .*503"):
        found_shards(address, "train/000000.tar", tmp_path / "cache")


def test_tars_of_others_that_are_not_there_now(served, packed, tmp_path, caplog, monkeypatch):
    """One stays away, one is no tar: named in every call, and found as soon as they are there."""
    address, folder, _ = served
    (folder / "val/manifest.json").unlink()
    (folder / "val/000001.tar").write_bytes(b"none")
    Handler.failing["/val/000000.tar"] = 3
    arguments = (address, "val/{000000..000001}.tar", tmp_path / "cache")
    with pytest.raises(ShardError, match="no pictures with captions in the 2 shards"):
        found_shards(*arguments, on_bad_shard="skip")
    assert "val/000000.tar: it could not be fetched" in caplog.text and "val/000001.tar: damaged" in caplog.text
    monkeypatch.setattr("src.data.shards.STARTED", time.time())
    assert len(found_shards(*arguments, on_bad_shard="skip")[0]) == 4
    shutil.copy(packed / "train/000003.tar", folder / "val/000001.tar")
    assert len(found_shards(*arguments)[0]) == 5


@pytest.mark.parametrize("manifest", [True, False])
def test_what_did_not_come_for_one_process_is_not_tried_by_the_others_that_began_with_it(
    served, tmp_path, monkeypatch, manifest
):
    """They leave out the same; what is called later tries anew."""
    address, folder, _ = served
    if not manifest:
        (folder / "train/manifest.json").unlink()
    Handler.failing["/train/000001.tar"] = 3
    arguments = (address, "train/{000000..000003}.tar", tmp_path / "cache")
    tables = [found_shards(*arguments, on_bad_shard="skip", verify="decode")[0] for _ in range(2)]
    assert [len(table) for table in tables] == [11, 11] and not Handler.failing["/train/000001.tar"]
    monkeypatch.setattr("src.data.shards.STARTED", time.time())
    assert len(found_shards(*arguments, on_bad_shard="skip", verify="decode")[0]) == 16


def test_a_pipe_that_fails_for_a_moment_is_opened_again(packed, tmp_path, monkeypatch):
    monkeypatch.setattr("src.data.shards.time.sleep", lambda seconds: None)
    mark, tar = tmp_path / "mark", packed / "val/000000.tar"
    table, _ = found_shards("", [f"pipe:test -e {mark} && cat {tar} || (touch {mark}; exit 1)"], tmp_path / "cache")
    assert len(table) == 4
    with pytest.raises(ShardError, match="it could not be fetched"):
        found_shards("", ["pipe:exit 1"], tmp_path / "cache")


def test_a_tar_of_others_that_another_process_removes_is_fetched_again(served, tmp_path, monkeypatch):
    address, folder, asked = served
    (folder / "val/manifest.json").unlink()
    removed = []
    monkeypatch.setattr(
        "src.data.shards.make_room", lambda c, file, m: removed.append(file) or removed[1:] or file.unlink()
    )
    assert len(found_shards(address, "val/000000.tar", tmp_path / "cache", most=1)[0]) == 4
    assert Counter(asked)["/val/000000.tar"] == 2


def test_features_of_an_address_and_files_that_cannot_be_read_are_looked_at(features, copy, tmp_path, monkeypatch):
    _, shards = found_shards(str(features), "val", tmp_path / "a")
    monkeypatch.setattr("src.data.shards.time.sleep", lambda seconds: None)
    gone = Shards("http://127.0.0.1:9", shards.manifest, shards.index, tmp_path / "b")
    assert "127.0.0.1:9/000000.tar: it could not be fetched" in gone.damaged([0])[0][0]

    def broken(file):
        raise OSError(errno.EIO, "Input/output error")

    _, shards = found_shards(str(copy), "train", tmp_path / "c")
    monkeypatch.setattr("src.data.shards.sha256_of", broken)
    assert shards.damaged([2]) == ({2: f"{copy}/train/000002.tar: Input/output error: copy it again"}, {})


def test_a_shard_that_does_not_come_is_not_asked_for_by_each_of_its_images(served, tmp_path):
    address, folder, asked = served
    (folder / "train/000001.tar").unlink()
    data = data_of(address, tmp_path, on_bad_shard="skip", batch_size=8)
    epoch(data)
    assert Counter(asked)["/train/000001.tar"] <= 2  # a line of the log when it is asked, one of the error


def test_a_full_disk_is_no_bad_shard(served, tmp_path, monkeypatch):
    address, _, _ = served
    data = data_of(address, tmp_path, on_bad_shard="skip")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("src.data.shards.os.replace", full)
    with pytest.raises(DiskFull, match="there is no room for it"):
        epoch(data)
    assert not list(tmp_path.glob("shards/*.partial"))


@pytest.mark.parametrize(
    ("most", "numbers", "opened"),
    [(6, [0, 5, 10, 15] * 2, 4), (2, [0, 5, 1, 10, 2], 3), (1, [0, 5, 1], 3)],
)
def test_so_many_shards_are_open_those_used_last(packed, tmp_path, monkeypatch, most, numbers, opened):
    from src.data import shards as module

    made = []
    monkeypatch.setattr(module, "Content", lambda path: made.append(path) or Content(path))
    monkeypatch.setattr(module, "OPEN", most)
    _, shards = found_shards(str(packed), "train", tmp_path)
    for number in numbers:
        shards.read(number)
    assert len(made) == opened


def test_threads_read_at_once(packed, tmp_path, monkeypatch):
    """One shard open at a time: what a thread reads from is not closed under it."""
    monkeypatch.setattr("src.data.shards.OPEN", 1)
    _, shards = found_shards(str(packed), "train", tmp_path)
    alone = [shards.read(i) for i in range(16)]
    numbers = np.random.default_rng(0).integers(16, size=2000).tolist()
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(shards.read, numbers)) == [alone[i] for i in numbers]


def test_tars_of_others_that_have_an_address(shapes, tmp_path, served):
    address, folder, asked = served
    (folder / "foreign").mkdir()
    foreign(folder / "foreign", 0, [("a.png", (shapes / "images/00.png").read_bytes()), ("a.txt", b"a red square")])
    data = data_of(f"{address}/foreign", tmp_path, train="{00000..00000}.tar", val="00000.tar")
    assert data.tables["train"].captions == [["a red square"]]
    (batch,) = epoch(data)
    assert batch.images.shape == (1, 3, 16, 16) and Counter(asked)["/foreign/00000.tar"] == 1
    most = (folder / "foreign/00000.tar").stat().st_size
    foreign(folder / "foreign", 1, [("b.png", (shapes / "images/00.png").read_bytes()), ("b.txt", b"a red square")])
    both = data_of(f"{address}/foreign", tmp_path, train="{00000..00001}.tar", val=None, shard_cache_gb=most / 1e9)
    assert len(both.tables["train"]) == 2
    assert len(list((tmp_path / "shards").glob("*.tar"))) == 1, "also while they are looked through"


def test_pictures_to_show_are_found_in_all_kinds_of_shards(shapes, served, copy, tmp_path):
    address, folder, _ = served
    (copy / "train/000001.tar").unlink()
    for file in ("manifest.json", "captions.tsv", "index.npy"):
        (copy / "val" / file).unlink()
    of_others = data_of(copy, tmp_path / "a", on_bad_shard="skip")
    fetched = data_of(address, tmp_path / "b", train="train/{000000..000001}.tar")
    for data in (of_others, fetched):
        for split in ("train", "val"):
            pictures = data.pictures(split)
            for row, image in enumerate(data.tables[split].images):
                assert pictures.find(image) == data.picture(split, row) == (shapes / image).read_bytes()
    assert of_others.place("train") == str(copy / "train") and of_others.place("val") == str(copy / "val/000000.tar")
    assert fetched.place("train") == f"{address}/train" and fetched.place("val") == f"{address}/val"
    plain = data_of(shapes, tmp_path, "tsv", ".tsv").pictures("val")
    assert plain.place == str(shapes) and plain.find("images/16.png") == shapes / "images/16.png"


def test_other_processes_open_files_of_their_own(packed, tmp_path):
    data = data_of(packed, tmp_path)
    split = data.images("val")
    before = split.shards.shards.read(0)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(Shards.read, (split.shards.shards, 0)) == before
    assert pickle.loads(pickle.dumps(split.shards)).shards.read(0) == before


# ---------------------------------------------------------------- features


FEATURES_OF = [
    "encoder=resnet18",
    "encoder.backbone.weights=random",
    "transform.size=32",
    "trainer.precision=32-true",
]


@pytest.fixture(scope="module")
def features(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    for split in ("train", "val"):
        torch.manual_seed(0)
        write_shards(shapes / f"{split}.tsv", folder / split, images=5, features=FEATURES_OF)
    return folder


def encoder_of(seed=0):
    from src.model import instantiate
    from tests.test_configs import composed

    config = composed(["encoder=resnet18", "encoder.backbone.weights=random"])["encoder"]
    torch.manual_seed(seed)
    return instantiate(config), config["backbone"]


def test_features_are_those_of_the_cache(shapes, features, tmp_path):
    encoder, backbone = encoder_of()
    tsv = data_of(shapes, tmp_path, "tsv", ".tsv", preprocess=Preprocess(32))
    shards = data_of(features, tmp_path, preprocess=Preprocess(32))
    for data in (tsv, shards):
        data.cache_features(encoder, backbone, ["train", "val"], progress=False)
    for mine, theirs in zip(shards.evaluation_dataloader("train"), tsv.evaluation_dataloader("train"), strict=True):
        assert mine.images.dtype == torch.float16 and mine.images.shape == theirs.images.shape
        torch.testing.assert_close(mine.images, theirs.images, atol=2e-3, rtol=2e-3)  # batches of another size
    assert shards.picture("val", 0) is None and shards.pictures("train").find("images/00.png") is None
    (batch, *_) = epoch(shards)
    assert batch.images.shape[1:] == (1, 512)


def test_features_that_are_gone_are_packed_anew(shapes, features, tmp_path):
    shutil.copytree(features / "train", tmp_path / "train")
    cut(tmp_path / "train/000002.tar")
    torch.manual_seed(0)
    write_shards(shapes / "train.tsv", tmp_path / "train", images=5, features=FEATURES_OF)
    for file in (features / "train").iterdir():
        assert (tmp_path / "train" / file.name).read_bytes() == file.read_bytes()


def test_features_of_another_encoder_are_refused(features, tmp_path):
    encoder, backbone = encoder_of(seed=1)
    data = data_of(features, tmp_path, preprocess=Preprocess(32))
    with pytest.raises(ShardError, match="their weights is"):
        data.cache_features(encoder, backbone, ["val"])
    data = data_of(features, tmp_path, preprocess=Preprocess(16))
    with pytest.raises(ShardError, match="their preprocess is"):
        data.cache_features(*encoder_of(), ["val"])
    with pytest.raises(ValueError, match="transform.augment varies pictures"):
        data_of(features, tmp_path, preprocess=Preprocess(32, augment=Augmentation(flip=0.5)))


def test_features_that_are_cut_off(features, tmp_path):
    shutil.copytree(features, tmp_path / "f")
    cut(tmp_path / "f/train/000002.tar")
    data = data_of(tmp_path / "f", tmp_path, preprocess=Preprocess(32), verify="none")
    data.cache_features(*encoder_of(), ["train"])
    with pytest.raises(ShardError, match=r"000002\.tar: damaged"):
        epoch(data)
