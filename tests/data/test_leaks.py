import shutil

import pytest

from src.data.leaks import Leak, exact_leaks
from src.data.module import CaptionData
from src.data.tokenizer import EnglishTokenizer
from src.data.transforms import Preprocess
from src.train import train
from tests.test_configs import composed, tiny


@pytest.fixture
def leaking(shapes, tmp_path):
    """The shapes, with a training picture copied into validation under another name, and one that test names too."""
    root = tmp_path / "leaking"
    shutil.copytree(shapes / "images", root / "images")
    for split in ("train", "val", "test"):
        shutil.copy(shapes / f"{split}.tsv", root)
    shutil.copy(root / "images" / "03.png", root / "images" / "copy.png")
    (root / "val.tsv").write_text((root / "val.tsv").read_text() + "images/copy.png\ta yellow square\n")
    (root / "test.tsv").write_text((root / "test.tsv").read_text() + "images/05.png\ta green circle\n")
    changed = bytearray((root / "images" / "07.png").read_bytes())  # as large, and another
    changed[-20] ^= 1
    (root / "images" / "like.png").write_bytes(bytes(changed))
    (root / "test.tsv").write_text((root / "test.tsv").read_text() + "images/like.png\ta green circle\n")
    return root


EXPECTED = [
    Leak("val", "images/copy.png", "train", "images/03.png"),
    Leak("test", "images/05.png", "train", "images/05.png"),
]


def data_of(root, cache, **options):
    return CaptionData(
        root,
        Preprocess(16),
        EnglishTokenizer(),
        "train.tsv",
        "val.tsv",
        "test.tsv",
        min_count=1,
        cache_dir=cache,
        **options,
    )


def test_copies_are_found_and_listed(leaking, tmp_path, caplog):
    data_of(leaking, tmp_path / "cache").check_leaks()
    (message,) = [r.getMessage() for r in caplog.records]
    assert "1 of val in train, 1 of test in train, such as images/copy.png (val) and images/03.png (train)" in message
    listed = tmp_path / "cache" / "leaking.leaks.tsv"
    assert str(listed) in message and "src.duplicates --across" in message
    assert [Leak(*row.split("\t")) for row in listed.read_text().splitlines()] == EXPECTED
    for split in ("val", "test"):
        rows = (leaking / f"{split}.tsv").read_text().splitlines()
        (leaking / f"{split}.tsv").write_text("\n".join(r for r in rows if "copy" not in r and "/05" not in r) + "\n")
    caplog.clear()
    data_of(leaking, tmp_path / "cache").check_leaks()
    assert not caplog.records and not listed.exists(), "an earlier list is no longer true"


def test_they_are_an_error_or_nothing_where_that_is_asked_for(leaking, tmp_path, caplog):
    with pytest.raises(ValueError, match="data.leaks=error: pictures stand in two splits"):
        data_of(leaking, tmp_path / "cache", leaks="error").check_leaks()
    assert (tmp_path / "cache" / "leaking.leaks.tsv").exists()
    data_of(leaking, tmp_path / "none", leaks="off").check_leaks()
    assert not caplog.records and not (tmp_path / "none" / "leaking.leaks.tsv").exists()


def test_a_training_asks_before_any_work(leaking, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(ValueError, match="data.leaks=error"):
        train(composed([*tiny(leaking, tmp_path), "data.nouns=null", "data.leaks=error"]))
    assert not list(run.rglob("*.ckpt"))


def test_missing_files_and_copies_within_a_split_are_no_leaks(leaking):
    splits = {"train": ["images/03.png", "images/copy.png", "gone.png"], "val": ["gone.png", "images/04.png"]}
    assert exact_leaks(splits, leaking) == []
    splits["val"].append("images/copy.png")
    assert exact_leaks(splits, leaking) == [Leak("val", "images/copy.png", "train", "images/03.png")]


def test_where_no_split_has_pictures_of_its_own_there_are_none(tmp_path):
    """As of shards alone."""
    assert exact_leaks({}, tmp_path) == exact_leaks({"train": [], "val": []}, tmp_path) == []
