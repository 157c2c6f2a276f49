"""Karpathy's splits, from miniatures."""

import json
import shutil

import pytest

from src.prepare.__main__ import main
from tests.prepare.originals import coco, flickr8k, flickr30k, karpathy, read, run_next


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_coco_whose_test_images_are_of_val(year, tmp_path, capsys):
    root = coco(tmp_path / "coco", year)
    assert main(["karpathy", str(root)]) == 0
    found = read(root, "train", "val", "test")
    assert [len(table) for table in found.values()] == [5, 1, 1]  # restval is in train
    prefix = "COCO_val2014_" if year == "2014" else ""
    assert found["test"] == {
        f"val{year}/{prefix}000000000073.jpg": [f"Said {k} of COCO_val2014_000000000073.jpg." for k in range(2)]
    }
    printed = capsys.readouterr().out
    assert "COCO in Karpathy's splits, read from dataset_coco.json" in printed
    assert run_next(printed, tmp_path) == {"train": 5, "val": 1, "test": 1}
    assert main(["karpathy", str(root), "--restval", "drop", "--overwrite"]) == 0
    assert len(read(root, "train")["train"]) == 4
    assert "left out: 1 image of restval" in capsys.readouterr().out


def test_the_file_is_found_or_chosen(tmp_path, capsys):
    root = flickr30k(flickr8k(tmp_path))
    assert main(["karpathy", str(root)]) == 0
    assert "Flickr30k in Karpathy's splits" in capsys.readouterr().out
    shutil.copy(root / "dataset_flickr30k.json", root / "dataset_flickr8k.json")
    assert main(["karpathy", str(root)]) == 1
    assert "choose one with --json FILE" in capsys.readouterr().err
    assert main(["karpathy", str(root), "--json", str(root / "dataset_flickr8k.json")]) == 0
    for path in root.glob("dataset_*.json"):
        path.unlink()
    assert main(["karpathy", str(root)]) == 1
    message = capsys.readouterr().err
    assert "dataset_coco.json (published at https://cs.stanford.edu/people/karpathy/deepimagesent/)" in message


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ({"filename": "a.jpg", "sentences": [], "split": "other"}, "images[0]: 'other'"),
        ({"filename": "a.jpg", "split": "test"}, "images[0]: 'sentences'"),
        ({"split": "test", "sentences": [{"raw": "A dog."}]}, "images[0]: 'filename'"),
        ({"filename": "a.jpg", "split": "test", "sentences": [{"raw": None}]}, "images[0]: "),
        ("a.jpg", "images[0]: "),
    ],
)
def test_another_form_is_named(image, expected, tmp_path, capsys):
    path = tmp_path / "dataset_flickr8k.json"
    path.write_text(json.dumps({"images": [image]}))
    assert main(["karpathy", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert expected in message and "split, which is one of train, val, test, restval" in message


def test_missing_images_are_said_to_be_with_their_owners(tmp_path, capsys):
    karpathy(tmp_path / "dataset_coco.json", {"val2014/COCO_val2014_000000000042.jpg": "train"})
    assert main(["karpathy", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "None of the 1 image is below" in message and "https://cocodataset.org/#download" in message
