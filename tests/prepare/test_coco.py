"""COCO Captions, from a miniature, and from the user's copy where COCO names its folder."""

import json
import os
from pathlib import Path

import pytest

from src.prepare.__main__ import main
from tests.prepare.originals import coco, read, run_next


@pytest.mark.parametrize("year", ["2017", "2014"])
@pytest.mark.parametrize("folder", [None, "images"], ids=["train and val", "one folder"])
def test_official_splits(year, folder, tmp_path, capsys):
    root = coco(tmp_path / "coco", year, folder)
    assert main(["coco", str(root)]) == 0
    found = read(root, "train", "val")
    assert [len(table) for table in found.values()] == [4, 3]
    name = "COCO_val2014_000000000042.jpg" if year == "2014" else "000000000042.jpg"
    assert found["val"][f"{folder or 'val' + year}/{name}"] == [f"A boat {k} on the sea of 42." for k in range(5)]
    printed = capsys.readouterr().out
    assert f"COCO {year}, read from annotations/captions_train{year}.json" in printed
    assert "left out: the test images, whose captions are not public" in printed
    assert not (root / "test.tsv").exists()
    assert run_next(printed, tmp_path) == {"train": 4, "val": 3}


def test_a_year_is_chosen(tmp_path, capsys):
    root = coco(coco(tmp_path, "2014"), "2017")
    assert main(["coco", str(root)]) == 0
    assert "train2017/000000000009.jpg" in read(root, "train")["train"]
    assert main(["coco", str(root), "--year", "2014", "--overwrite"]) == 0
    assert "train2014/COCO_train2014_000000000009.jpg" in read(root, "train")["train"]
    (root / "annotations" / "captions_val2017.json").unlink()
    capsys.readouterr()
    assert main(["coco", str(root)]) == 1
    message = capsys.readouterr().err
    assert "lack captions_val2017.json (published at https://cocodataset.org/#download)" in message


def test_annotations_of_2014_with_images_of_2017(tmp_path):
    root = coco(tmp_path, "2017")
    for path in (root / "annotations").iterdir():
        path.unlink()
    annotations = coco(tmp_path / "other", "2014") / "annotations"
    for path in annotations.iterdir():
        path.rename(root / "annotations" / path.name)
    (tmp_path / "other").rename(tmp_path.with_name(f"{tmp_path.name} elsewhere"))
    assert main(["coco", str(root)]) == 0
    assert "train2017/000000000009.jpg" in read(root, "train")["train"]


def test_annotations_in_another_form_are_named(tmp_path, capsys):
    root = coco(tmp_path)
    path = root / "annotations" / "captions_train2017.json"
    whole = path.read_text()
    no_caption = json.loads(whole)
    del no_caption["annotations"][0]["caption"]
    for text, expected in (
        (whole[:100], "not JSON"),
        ("[]", "no 'images' in it"),
        ('{"images": []}', "no 'annotations' in it"),
        (json.dumps(no_caption), "'caption': expected images with id and file_name"),
        (whole.replace('"image_id": 9,', '"image_id": 10,'), "10: expected images with id"),
    ):
        path.write_text(text)
        assert main(["coco", str(root)]) == 1
        message = capsys.readouterr().err
        assert f"{path}: " in message and expected in message


@pytest.mark.skipif(not os.environ.get("COCO"), reason="COCO is not set")
def test_a_users_own_copy(tmp_path, capsys):
    """`COCO=<its folder>`: nothing is written there."""
    root = Path(os.environ["COCO"])
    assert main(["coco", str(root), "--output", str(tmp_path), "--allow-missing"]) == 0
    found = read(root, "train", "val", folder=tmp_path)
    assert all(len(captions) >= 5 for table in found.values() for captions in table.values())
    assert run_next(capsys.readouterr().out, tmp_path) == {name: len(table) for name, table in found.items()}
