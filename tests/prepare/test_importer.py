"""What the importers share: finding, missing images, and never losing a table."""

import shlex
import shutil
from pathlib import Path

import pytest

from src.prepare.__main__ import main
from src.prepare.importer import Folder, _override
from tests.prepare.originals import FLICKR8K, coco, flickr8k, picture, read, run_next
from tests.test_configs import composed


@pytest.fixture
def root(tmp_path):
    return flickr8k(tmp_path / "flickr8k")


def tables(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*.tsv*")}


# ---------------------------------------------------------------- finding


def test_files_at_any_depth_and_the_nearest_of_several(tmp_path):
    for name in (
        "b/c/x.jpg",
        "b/x.jpg",
        "__MACOSX/x.jpg",
        ".trash/x.jpg",
        "b/._y.jpg",
        "train2014/COCO_train2014_7.jpg",
    ):
        picture(tmp_path / name)
    folder = Folder(tmp_path)
    assert folder.image("x.jpg") == "b/x.jpg" and folder.named("x.jpg") == tmp_path / "b/x.jpg"
    assert folder.image("c/x.jpg") == "b/c/x.jpg"
    assert folder.image("val2014/COCO_val2014_7.jpg") == folder.image("7.jpg") == "train2014/COCO_train2014_7.jpg"
    assert folder.image("._y.jpg") is folder.image("z.jpg") is folder.named("7.jpg") is None


def test_links_are_followed_and_circles_end(tmp_path):
    picture(tmp_path / "disk" / "x.jpg")
    (tmp_path / "disk" / "round").symlink_to(tmp_path / "disk")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(tmp_path / "disk")
    (tmp_path / "data" / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    folder = Folder(tmp_path / "data")
    assert folder.image("x.jpg") == "images/x.jpg" and folder.image("gone.jpg") is None


def test_no_folder(tmp_path, capsys):
    assert main(["coco", str(tmp_path / "nowhere")]) == 1
    assert "nowhere is no folder" in capsys.readouterr().err


# ---------------------------------------------------------------- images that are missing


def test_missing_images_are_an_error_unless_they_are_allowed(root, capsys):
    (root / "Flicker8k_Dataset" / FLICKR8K[0]).unlink()
    (root / "Flicker8k_Dataset" / FLICKR8K[4]).write_bytes(b"")
    assert main(["flickr8k", str(root)]) == 1
    message = capsys.readouterr().err
    assert f"2 of 8 images are not below {root}, or are empty files: {FLICKR8K[0]}, {FLICKR8K[4]}." in message
    assert "--allow-missing" in message and "https://hockenmaier.cs.illinois.edu" in message
    assert not tables(root)
    assert main(["flickr8k", str(root), "--allow-missing"]) == 0
    assert [len(table) for table in read(root, "train", "val", "test").values()] == [3, 1, 2]
    assert f"left out: 2 images not there, or empty: {FLICKR8K[0]}, {FLICKR8K[4]}\n" in capsys.readouterr().out


def test_a_split_without_images_has_no_table(root, tmp_path, capsys):
    for name in FLICKR8K[6:8]:
        (root / "Flicker8k_Dataset" / name).unlink()
    assert main(["flickr8k", str(root), "--allow-missing"]) == 0
    printed = capsys.readouterr().out
    assert "left out: test as a whole: none of its 2 images is there" in printed
    assert not (root / "test.tsv").exists()
    assert run_next(printed, tmp_path) == {"train": 4, "val": 2}


def test_no_image_at_all(root, capsys):
    shutil.rmtree(root / "Flicker8k_Dataset")
    assert main(["flickr8k", str(root), "--allow-missing"]) == 1
    message = capsys.readouterr().err
    assert f"None of the 8 images is below {root}, the first being {FLICKR8K[0]}: put Flicker8k_Dataset/" in message


# ---------------------------------------------------------------- tables


def test_a_second_call_changes_nothing_and_other_rows_are_kept(root, capsys):
    assert main(["flickr8k", str(root)]) == 0
    before = tables(root)
    assert main(["flickr8k", str(root)]) == 0
    assert tables(root) == before and sorted(before) == ["test.tsv", "train.tsv", "val.tsv"]
    (root / "val.tsv").write_text("mine\tkept\n")
    (root / "train.tsv").unlink()
    capsys.readouterr()
    assert main(["flickr8k", str(root)]) == 1
    assert f"{root / 'val.tsv'} is there with other rows: replace it with --overwrite" in capsys.readouterr().err
    assert (root / "val.tsv").read_text() == "mine\tkept\n" and not (root / "train.tsv").exists()
    assert main(["flickr8k", str(root), "--overwrite"]) == 0
    assert {name: rows for name, (rows, _) in tables(root).items()} == {
        name: rows for name, (rows, _) in before.items()
    }


def test_tables_elsewhere(root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["flickr8k", "flickr8k", "--output", "my tables"]) == 0
    assert not tables(root)
    printed = capsys.readouterr().out
    assert len(read(root, "train", folder=tmp_path / "my tables")["train"]) == 4
    assert run_next(printed, tmp_path) == {"train": 4, "val": 2, "test": 2}
    (tmp_path / "file").write_text("")
    assert main(["flickr8k", "flickr8k", "--output", "file"]) == 1
    assert "file: File exists: write the tables elsewhere with --output DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    "value", ["data/x", "a b", "2017", "it's", 'a"b', "数据/x", "a,b=c", "a\\b", "a\\", '\\"', "[x]", "../x-1_2.tsv"]
)
def test_the_next_command_survives_shell_and_hydra(value):
    (word,) = shlex.split(_override("data.root", value))
    assert composed(["data=tsv", word])["data"]["root"] == value


def test_help_says_what_is_expected_and_where_it_is_published(capsys):
    for name, expected in (
        ("flickr8k", ("Flickr_8k.devImages.txt", "flickr8kzhc.caption.txt", "hockenmaier")),
        ("flickr30k", ("results_20130124.token", "flickr30k_entities", "DenotationGraph")),
        ("coco", ("captions_val2017.json", "not public", "cocodataset.org")),
        ("karpathy", ("dataset_coco.json", "deepimagesent")),
    ):
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
        printed = capsys.readouterr().out
        assert all(word in printed for word in (*expected, "--allow-missing", "--overwrite", "--output"))


def test_a_folder_with_odd_letters(tmp_path, capsys):
    root = coco(tmp_path / "我的 数据, 1")
    assert main(["coco", str(root)]) == 0
    assert run_next(capsys.readouterr().out, tmp_path) == {"train": 4, "val": 3}
