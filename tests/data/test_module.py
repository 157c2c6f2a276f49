import multiprocessing
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from src.data.module import CaptionData, EvaluationOrder, Item, TrainingOrder
from src.data.tokenizer import EnglishTokenizer
from src.data.transforms import Preprocess
from src.data.vocabulary import BOS, EOS, PAD, UNK


@pytest.fixture
def data(shapes, tmp_path):
    return CaptionData(
        shapes,
        Preprocess(32),
        EnglishTokenizer(),
        train="train.tsv",
        val="val.tsv",
        test="test.tsv",
        min_count=1,
        batch_size=4,
        cache_dir=tmp_path,
    )


def test_batch(data):
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (4, 3, 32, 32) and batch.images.dtype == torch.uint8
    assert batch.tokens.shape[:2] == (4, 2)
    train = data.images("train")
    for b, image in enumerate(batch.index.tolist()):
        assert torch.equal(batch.images[b], data.preprocess.open(data.root / train.images[image]))
        said = set()
        for q in range(2):
            ids = batch.tokens[b, q]
            length = int(batch.mask[b, q].sum())
            assert ids[0] == BOS and ids[length - 1] == EOS and (ids[length:] == PAD).all()
            said.add(tuple(data.vocabulary.decode(ids.tolist())))
        assert said == {tuple(data.tokenizer.tokens(c)) for c in train.captions[image]}
        assert batch.references[b] == train.captions[image]
    assert (batch.prefix == 1).all()


def test_the_vocabulary_comes_from_training_captions_only(shapes, tmp_path):
    (tmp_path / "images").symlink_to(shapes / "images")
    (tmp_path / "train.tsv").write_text("images/00.png\ta red square\n")
    (tmp_path / "val.tsv").write_text("images/01.png\ta purple hexagon\n")
    data = CaptionData(tmp_path, Preprocess(8), EnglishTokenizer(), train="train.tsv", val="val.tsv", min_count=1)
    assert data.vocabulary.words[4:] == ["a", "red", "square"]
    batch = next(iter(data.val_dataloader()[0]))
    assert data.vocabulary.decode(batch.tokens[0, 0].tolist()) == ["a"]
    assert batch.tokens[0, 0].tolist() == [BOS, 4, UNK, UNK, EOS]


def test_a_fingerprint_tells_data_apart(shapes, tmp_path):
    def fingerprint(root, **more):
        return CaptionData(
            root, Preprocess(32), EnglishTokenizer(), train="train.tsv", val="val.tsv", **more
        ).fingerprint()

    first = fingerprint(shapes)
    assert (first["train"]["images"], first["train"]["captions"], list(first)) == (16, 32, ["train", "val"])
    moved = tmp_path / "moved"
    shutil.copytree(shapes, moved)
    rows = (moved / "train.tsv").read_text().splitlines()
    (moved / "train.tsv").write_text("\r\n".join(rows))
    assert fingerprint(moved) == first == fingerprint(moved, cache_dir=tmp_path / "cache")
    (moved / "train.tsv").write_text("\n".join([rows[0] + " here", *rows[1:]]))
    other = fingerprint(moved)
    assert other["train"]["sha256"] != first["train"]["sha256"] and other["val"] == first["val"]
    picture = moved / rows[0].split("\t")[0]
    Image.new("RGB", (8, 8)).save(picture)
    assert fingerprint(moved)["train"]["pictures"] != first["train"]["pictures"] == other["train"]["pictures"]


def test_ragged_captions_are_padded_and_masked(shapes, tmp_path):
    (tmp_path / "images").symlink_to(shapes / "images")
    (tmp_path / "t.tsv").write_text("images/00.png\ta b c\nimages/01.png\ta\nimages/01.png\ta b\n")
    data = CaptionData(tmp_path, Preprocess(8), EnglishTokenizer(), train="t.tsv", min_count=1, batch_size=2)
    batch = data.images("train")[[Item(0, [0]), Item(1, [1, 0])]]
    assert batch.mask.sum(-1).tolist() == [[5, 0], [4, 3]]
    assert (batch.tokens[0, 1] == PAD).all()


def ordered(lengths, *arguments, **options):
    """The order of captions whose lengths are given image by image."""
    return TrainingOrder(np.concatenate(lengths), np.cumsum([0, *map(len, lengths)]), *arguments, **options)


@pytest.mark.parametrize("together", [1, 2, 5])
def test_every_caption_once_an_epoch(together):
    captions = [5, 3, 1, 4, 5, 5, 2]
    order = ordered([[7] * count for count in captions], batch_size=3, captions_per_image=together, seed=0)
    seen = Counter((item.image, c) for step in order for item in step for c in item.captions)
    assert seen == Counter({(image, c): 1 for image, count in enumerate(captions) for c in range(count)})
    assert len(list(order)) == len(order)


LENGTHS = np.random.default_rng(0).integers(4, 20, (20, 3)).tolist()


def test_a_batch_has_captions_of_like_length_and_the_longest_first():
    lengths = np.random.default_rng(0).integers(4, 40, (400, 5)).tolist()
    order = ordered(lengths, batch_size=8, captions_per_image=2, seed=0)
    longest = [[max(lengths[item.image][c] for c in item.captions) for item in step] for step in order]
    assert all(each == sorted(each, reverse=True) for each in longest)
    padded = sum(len(each) * each[0] for each in longest)
    assert padded < 1.15 * sum(map(sum, longest)), "without buckets it is 1.3 times"
    first = [each[0] for each in longest]
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.3, "batches of one length do not follow one another"


def test_an_images_longest_caption_comes_first(data):
    for batch in data.evaluation_dataloader("train"):
        lengths = batch.mask.sum(-1)
        assert (lengths[:, :-1] >= lengths[:, 1:]).all()
        assert batch.index.tolist() == sorted(batch.index.tolist())


def test_order_is_a_function_of_seed_epoch_step_and_rank():
    def epoch(seed=0, number=0, start=0, rank=0, world=1):
        order = ordered(LENGTHS, 4, 1, seed, rank, world)
        order.set_epoch(number)
        order.start = start
        return list(order)

    assert epoch() == epoch()
    assert epoch() != epoch(seed=1) != epoch(number=1) != epoch()
    assert epoch(start=5) == epoch()[5:], "resumed in the middle"
    ranks = [epoch(rank=r, world=2) for r in range(2)]
    assert len(ranks[0]) == len(ranks[1])
    for mine, theirs, whole in zip(*ranks, ordered(LENGTHS, 8, 1, 0), strict=True):
        assert sorted(mine + theirs) == sorted(whole), "two ranks see what one with both batches sees"


def test_what_ranks_leave_out_is_not_always_the_longest():
    """41 captions of 1 to 41 words: one is left over where two ranks take 4 each."""
    left_out = set()
    for number in range(20):
        seen = set()
        for rank in range(2):
            order = ordered([[words] for words in range(1, 42)], 4, 1, 0, rank, 2)
            order.set_epoch(number)
            seen |= {item.image for batch in order for item in batch}
        left_out |= set(range(41)) - seen
        assert len(seen) == 40
    assert len(left_out) > 10


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_every_image_once(world):
    seen = [item for rank in range(world) for step in EvaluationOrder(np.arange(11), 4, rank, world) for item in step]
    assert sorted(item.image for item in seen) == list(range(10))
    assert {item.draw for item in seen} == {None}


def test_one_file_split_by_image(shapes, tmp_path):
    data = CaptionData(
        shapes, Preprocess(8), EnglishTokenizer(), train="train.tsv", split=[0.5, 0.25, 0.25], min_count=1, split_seed=3
    )
    parts = [set(data.images(name).images) for name in ("train", "val", "test")]
    assert [len(p) for p in parts] == [8, 4, 4]
    assert len(set.union(*parts)) == 16
    again = CaptionData(
        shapes,
        Preprocess(8),
        EnglishTokenizer(),
        train="train.tsv",
        split=[0.5, 0.25, 0.25],
        min_count=1,
        split_seed=3,
        seed=9,
    )
    assert [set(again.images(name).images) for name in ("train", "val", "test")] == parts


def test_workers_give_the_same_batches(data):
    alone = list(data.train_dataloader())
    data.workers = 2
    for first, second in zip(alone, data.train_dataloader(), strict=True):
        assert torch.equal(first.images, second.images) and torch.equal(first.tokens, second.tokens)


def test_workers_of_evaluation_end_with_it(data):
    """Forked in the midst of training, they would hold on to its memory."""
    before = set(multiprocessing.active_children())
    data.workers = 1
    (validation,), training = data.val_dataloader(), data.train_dataloader()
    list(validation)
    assert set(multiprocessing.active_children()) == before
    list(training)
    assert len(set(multiprocessing.active_children()) - before) == 1, "those of training stay"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no TSV given"),
        ({"val": "val.tsv"}, "data.train is not set"),
        ({"train": "train.tsv", "split": [0.25] * 4}, "fractions of train, val and perhaps test"),
        ({"train": "train.tsv", "val": "val.tsv", "split": [0.9, 0.1]}, "give data.train alone"),
    ],
)
def test_what_cannot_be_is_refused(options, message, shapes):
    with pytest.raises(ValueError, match=message):
        CaptionData(shapes, Preprocess(8), EnglishTokenizer(), **options)


def test_an_unknown_split_is_refused(data):
    data.tables.pop("test")
    with pytest.raises(ValueError, match="split=test: this data has train, val"):
        data.images("test")


def test_bad_rows_are_skipped_counted_and_listed(shapes, tmp_path):
    (tmp_path / "images").symlink_to(shapes / "images")
    (tmp_path / "t.tsv").write_text("images/00.png\ta red square\nimages/none.png\tnothing\nimages/01.png\n")
    with pytest.raises(ValueError, match=r"t.tsv:2"):
        CaptionData(tmp_path, Preprocess(8), EnglishTokenizer(), train="t.tsv", min_count=1)
    data = CaptionData(
        tmp_path,
        Preprocess(8),
        EnglishTokenizer(),
        train="t.tsv",
        min_count=1,
        on_bad_row="skip",
        cache_dir=tmp_path / "c",
    )
    assert data.images("train").images == ["images/00.png"]
    listed = (tmp_path / "c" / f"{tmp_path.name}.t.skipped.tsv").read_text()
    assert "images/none.png" in listed and len(listed.splitlines()) >= 2


def test_long_captions_are_cut(shapes, tmp_path):
    (tmp_path / "images").symlink_to(shapes / "images")
    (tmp_path / "t.tsv").write_text("images/00.png\t" + "a " * 100 + "\n")
    data = CaptionData(tmp_path, Preprocess(8), EnglishTokenizer(), train="t.tsv", min_count=1, max_tokens=7)
    tokens = data.images("train")[[Item(0, [0])]].tokens[0, 0]
    assert tokens.tolist() == [BOS, *[4] * 7, EOS]
