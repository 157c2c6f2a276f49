"""Augmentation from the TSV to the batch: which pictures vary, and what the captions of mirrored ones say."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from src.data.module import CaptionData, Item
from src.data.tokenizer import CharacterTokenizer, EnglishTokenizer
from src.data.transforms import Augmentation, Preprocess
from src.encoders import CNN, Encoder

STANDARD = Augmentation(0.5, "swap", 0.6, 10, 0.2, 0.2, 0.2, 0.05, 0.5, 0.2)


@pytest.fixture
def make(shapes, tmp_path):
    def made(augment=STANDARD, **options):
        return CaptionData(
            shapes,
            Preprocess(24, augment=augment),
            EnglishTokenizer(),
            **{
                **{"train": "train.tsv", "val": "val.tsv", "min_count": 1, "batch_size": 4, "captions_per_image": 1},
                **{"cache_dir": tmp_path / "cache", **options},
            },
        )

    return made


def epoch(data, number=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def same(first, second):
    return all(
        torch.equal(a.images, b.images) and torch.equal(a.tokens, b.tokens) for a, b in zip(first, second, strict=True)
    )


def test_training_pictures_are_a_function_of_seed_epoch_and_item(make):
    alone = epoch(make())
    torch.manual_seed(5)
    np.random.seed(5)
    assert same(alone, epoch(make())), "no global random state"
    assert same(alone, epoch(make(workers=2))), "any number of workers"
    other_epoch, other_seed = epoch(make(), 1), epoch(make(seed=1))
    seen = [{p.numpy().tobytes() for batch in run for p in batch.images} for run in (alone, other_epoch, other_seed)]
    assert [len(pictures) for pictures in seen] == [32] * 3, "a picture is another one for each of its captions"
    for first, second in itertools.combinations(seen, 2):
        assert not first & second


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_in_an_epoch_sees_the_same_pictures(make, workers):
    data = make()
    whole = epoch(data, 3)
    resumed = make(workers=workers)
    resumed.load_state_dict({"done": 3})
    rest = epoch(resumed, 3)
    assert len(rest) == len(whole) - 3 and same(rest, whole[3:])


def test_evaluation_sees_plain_pictures(make):
    for name in ("train", "val"):
        plain, varied = (list(make(augment).evaluation_dataloader(name)) for augment in (None, STANDARD))
        assert same(plain, varied) and [a.references for a in plain] == [b.references for b in varied]


def test_order_and_captions_are_those_without_augmentation(make):
    for plain, varied in zip(epoch(make(None)), epoch(make()), strict=True):
        assert torch.equal(plain.index, varied.index) and torch.equal(plain.tokens, varied.tokens)
        assert not torch.equal(plain.images, varied.images)


def test_cached_features_of_evaluation_are_shared_with_and_without(make, encoder, tmp_path):
    for augment in (None, STANDARD):
        data = make(augment)
        data.cache_features(encoder, {}, ["val"], workers=0, progress=False)
        assert next(iter(data.val_dataloader()[0])).images.dim() == 3
        assert next(iter(data.train_dataloader())).images.dim() == 4
    assert len(list((tmp_path / "cache" / "features").glob("*/regions.npy"))) == 1


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder(CNN([4, 8]), frozen=True)


def with_views(data, encoder, views):
    data.cache_features(encoder, {}, list(data.tables), views, workers=1, progress=False)
    return data


def test_each_training_item_takes_one_of_the_cached_views(make, encoder):
    data = with_views(make(), encoder, 3)
    views = data.images("train").features
    assert all(isinstance(view, np.memmap) and view.mode == "r" for view in views) and len(views) == 3
    taken = {image: set() for image in range(16)}
    for number in range(12):
        for batch in epoch(data, number):
            for image, regions in zip(batch.index.tolist(), batch.images.numpy(), strict=True):
                (view,) = (v for v in range(3) if np.array_equal(views[v][image], regions))
                taken[image].add(view)
    assert all(each == {0, 1, 2} for each in taken.values())
    pictures = torch.stack(
        [
            data.preprocess.open(data.root / name, STANDARD.draw([i, 2]))
            for i, name in enumerate(data.images("train").images)
        ]
    )
    with torch.no_grad():
        torch.testing.assert_close(
            torch.tensor(views[2]).float(), encoder.eval().frozen_regions(pictures), atol=2e-3, rtol=2e-3
        )


def test_views_are_those_of_any_run_and_their_order_is_a_function_of_seed_and_epoch(make, encoder, tmp_path):
    whole = epoch(with_views(make(), encoder, 2), 3)
    assert same(whole, epoch(with_views(make(), encoder, 2), 3))
    resumed = with_views(make(), encoder, 2)
    resumed.load_state_dict({"done": 3})
    assert same(whole[3:], epoch(resumed, 3))
    files = set((tmp_path / "cache" / "features").glob("*/regions.npy"))
    assert len(files) == 3, "two views of training, one of validation"
    other = epoch(with_views(make(seed=1), encoder, 2), 3)
    assert not all(torch.equal(a.images, b.images) for a, b in zip(whole, other, strict=True))
    assert set((tmp_path / "cache" / "features").glob("*/regions.npy")) == files, "runs of any seed share them"


def test_more_views_compute_the_new_ones_alone(make, encoder, tmp_path):
    plain = make(None)
    with_views(plain, encoder, 1)
    pictures = []
    encoder.backbone.register_forward_hook(lambda module, given, output: pictures.append(len(output)))
    first = with_views(make(), encoder, 2).images("train").features
    assert sum(pictures) == 16 and first[0].filename == plain.images("train").features[0].filename
    more = with_views(make(), encoder, 4).images("train").features
    assert sum(pictures) == 48 and [view.filename for view in more[:2]] == [view.filename for view in first]
    with_views(make(Augmentation(flip=1)), encoder, 2)
    assert sum(pictures) == 64, "other fields, other views"


def test_evaluation_sees_the_plain_view(make, encoder):
    plain, varied = with_views(make(None), encoder, 1), with_views(make(), encoder, 3)
    for name in ("train", "val"):
        assert same(plain.evaluation_dataloader(name), varied.evaluation_dataloader(name))


@pytest.fixture
def written(tmp_path):
    """Data of one picture, red on its left and blue on its right, with these captions."""

    def made(captions, augment, tokenizer=None, more=()):
        for name in ("a.png", "b.png"):
            image = Image.new("RGB", (16, 16), (0, 0, 255))
            image.paste((255, 0, 0), (0, 0, 8, 16))
            image.save(tmp_path / name)
        rows = [f"a.png\t{c}" for c in captions] + [f"b.png\t{c}" for c in more]
        (tmp_path / "t.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        return CaptionData(
            tmp_path,
            Preprocess(8, augment=augment),
            tokenizer or EnglishTokenizer(),
            train="t.tsv",
            min_count=1,
            cache_dir=tmp_path / "cache",
        )

    return made


def seen(data, image=0, captions=(0,)):
    """Whether the picture was mirrored, what its ids say, and its references."""
    batch = data.images("train")[[Item(image, captions, draw=1)]]
    said = [" ".join(data.vocabulary.decode(ids.tolist())) for ids in batch.tokens[0]]
    return bool(batch.images[0, 2, 0, 0] == 255), said, batch.references[0]


def test_a_mirrored_picture_has_mirrored_captions(written):
    captions = ["Red is LEFT of blue.", "The right-hand side is blue", "A bright flag"]
    data = written(captions, Augmentation(flip=1), more=["The right left-hand side"])
    flipped, said, references = seen(data, captions=(1, 0, 2))
    assert flipped and said == ["the left-hand side is blue", "red is right of blue", "a bright flag"]
    assert references == ["Red is RIGHT of blue.", "The left-hand side is blue", "A bright flag"]
    plain = data.images("train")[[Item(0, (0,))]]
    assert plain.references == [captions] and plain.images[0, 0, 0, 0] == 255
    assert data.vocabulary.decode(plain.tokens[0, 0].tolist()) == ["red", "is", "left", "of", "blue"]


def test_chinese_captions_too(written):
    data = written(["红色在左边", "左右两色"], Augmentation(flip=1), CharacterTokenizer(), more=["右"])
    flipped, said, references = seen(data, captions=(0, 1))
    assert flipped and said == ["红 色 在 右 边", "左 右 两 色"] and references == ["红色在右边", "左右两色"]


def test_cut_captions_and_their_padding(written):
    data = written(["a b c d left", "left a"], Augmentation(flip=1), more=["right"])
    data.max_tokens = 4
    flipped, said, _ = seen(data, captions=(0, 1))
    assert flipped and said == ["a b c d", "right a"]
    batch = data.images("train")[[Item(0, (0, 1), draw=1)]]
    assert batch.mask.sum(-1).tolist() == [[6, 4]]


def test_a_picture_stays_where_the_counterpart_is_no_known_word(written):
    captions = ["red is left", "a flag"]
    for chosen in ((0,), (1,)):
        flipped, _, references = seen(written(captions, Augmentation(flip=1)), captions=chosen)
        assert not flipped and references == captions
    assert seen(written(captions, Augmentation(flip=1), more=["a flag"]), image=1)[0], "the others do not"
    assert seen(written(captions, Augmentation(flip=1), more=["right"]))[0], "now it is known"


def test_or_where_captions_are_left_alone(written):
    captions = ["red is left", "blue is right"]
    data = written(captions, Augmentation(flip=1, flip_captions="leave"), more=["a bright flag"])
    assert seen(data) == (False, ["red is left"], captions)
    assert seen(data, image=1) == (True, ["a bright flag"], ["a bright flag"])


@pytest.mark.parametrize("flip_captions", ["swap", "leave"])
def test_a_cached_mirror_image_has_mirrored_captions(written, encoder, flip_captions):
    """View 1 is the mirror image with its captions, view 0 the picture; one that is never mirrored stays in both."""
    captions = ["red is left", "a flag"]
    data = with_views(written(captions, Augmentation(1, flip_captions), more=["a right sign"]), encoder, 2)
    split = data.images("train")
    mirrored = flip_captions == "swap"
    for draw in (6, 7):
        batch = split[[Item(0, (0, 1), draw), Item(1, (0,), draw)]]
        assert np.array_equal(batch.images[0], split.features[draw % 2][0])
        other = mirrored and draw == 7
        assert batch.references == [
            ["red is right" if other else "red is left", "a flag"],
            ["a left sign" if other else "a right sign"],
        ]
        assert data.vocabulary.decode(batch.tokens[0, 0].tolist())[-1] == ("right" if other else "left")
    assert np.array_equal(split.features[0], split.features[1]) != mirrored


def test_a_picture_that_becomes_mirrorable_is_not_read_from_a_view_in_which_it_was_not(written, encoder):
    """Whether a picture is mirrored depends on the vocabulary too."""
    still = with_views(written(["red is left", "a flag"], Augmentation(1)), encoder, 2).images("train")
    assert np.array_equal(*still.features)
    known = with_views(written(["red is left", "a flag", "right"], Augmentation(1)), encoder, 2).images("train")
    assert not np.array_equal(*known.features)
