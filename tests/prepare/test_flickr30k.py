"""Flickr30k, from miniatures in the owners' form and in Kaggle's."""

import pytest

from src.prepare.__main__ import main
from tests.prepare.originals import FLICKR30K, FLICKR30K_LISTS, english, flickr30k, read, run_next, write


@pytest.fixture
def root(tmp_path):
    return flickr30k(tmp_path / "flickr30k")


def test_splits_of_entities(root, tmp_path, capsys):
    assert main(["flickr30k", str(root)]) == 0
    for split, captions in read(root, "train", "val", "test").items():
        assert captions == {
            f"flickr30k-images/{name}": [english(name, k) for k in range(5)] for name in FLICKR30K_LISTS[split]
        }
    assert run_next(capsys.readouterr().out, tmp_path) == {"train": 3, "val": 3, "test": 1}


def test_splits_of_karpathy(root, capsys):
    assert main(["flickr30k", str(root), "--karpathy", str(root / "dataset_flickr30k.json")]) == 0
    assert list(read(root, "test")["test"]) == [f"flickr30k-images/{FLICKR30K[0]}"]
    assert len(read(root, "train")["train"]) == len(FLICKR30K) - 1
    assert not (root / "val.tsv").exists()
    assert "data.val" not in capsys.readouterr().out
    assert main(["flickr30k", str(root), "--karpathy", str(root / "nothing.json")]) == 1
    assert "nothing.json" in capsys.readouterr().err


@pytest.mark.parametrize("header", ["image_name| comment_number| comment", "age_name| comment_number| comment", None])
def test_kaggle_with_the_row_that_lacks_a_separator(root, header):
    (root / "results_20130124.token").unlink()
    rows = [f"{name}| {k}| {english(name, k)}" for name in FLICKR30K for k in range(5)]
    rows[-1] = "2199200615.jpg| 4   A dog runs across the grass ."
    write(root / "flickr30k_images" / "results.csv", *([header] if header else []), *rows)
    assert main(["flickr30k", str(root)]) == 0
    found = read(root, "val")["val"]["flickr30k-images/2199200615.jpg"]
    assert found == [english("2199200615.jpg", k) for k in range(4)] + ["A dog runs across the grass ."]


def test_kaggle_with_commas(root):
    (root / "results_20130124.token").unlink()
    rows = [f'{name},0,"One , two of {name} ."' for name in FLICKR30K]
    write(root / "captions.txt", "image_name,comment_number,comment", *rows)
    assert main(["flickr30k", str(root)]) == 0
    assert read(root, "test")["test"] == {f"flickr30k-images/{FLICKR30K[5]}": [f"One , two of {FLICKR30K[5]} ."]}


def test_missing_lists_are_named_with_where_they_are_published(root, capsys):
    (root / "flickr30k_entities" / "val.txt").unlink()
    assert main(["flickr30k", str(root)]) == 1
    message = capsys.readouterr().err
    assert "lack val.txt (published at https://github.com/BryanPlummer/flickr30k_entities)" in message
    assert "train.txt" not in message
