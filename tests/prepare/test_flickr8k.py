"""Flickr8k and Flickr8k-CN, from miniatures in the owners' forms and in Kaggle's."""

import shutil

import pytest

from src.prepare.__main__ import main
from tests.prepare.originals import FLICKR8K, FLICKR8K_LISTS, chinese, english, flickr8k, read, run_next, write


@pytest.fixture
def root(tmp_path):
    return flickr8k(tmp_path / "flickr8k")


def test_official_splits(root, tmp_path, capsys):
    assert main(["flickr8k", str(root)]) == 0
    printed = capsys.readouterr().out
    for split, captions in read(root, "train", "val", "test").items():
        assert captions == {
            f"Flicker8k_Dataset/{name}": [english(name, number) for number in range(5)]
            for name in FLICKR8K_LISTS[split]
        }
    assert "left out: 5 captions of 2258277193_586949ec62.jpg.1, which is no image's name" in printed
    assert "left out: 10 captions of 2 images in no split's list" in printed
    assert f"train         4 images        20 captions  {root / 'train.tsv'}" in printed
    assert run_next(printed, tmp_path) == {"train": 4, "val": 2, "test": 2}


def test_chinese_beside_english(root, tmp_path, capsys):
    assert main(["flickr8k", str(root)]) == 0
    assert main(["flickr8k", str(root), "--language", "zh"]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("data.test=test_zh.tsv tokenizer=character\n")
    found = read(root, "train", "train_zh", "val_zh", "test_zh")
    assert found["train"].keys() == found["train_zh"].keys()
    for split, names in FLICKR8K_LISTS.items():
        expected = {f"Flicker8k_Dataset/{name}": [chinese(name, number) for number in range(5)] for name in names}
        assert found[f"{split}_zh"] == expected
    assert run_next(printed, tmp_path) == {"train": 4, "val": 2, "test": 2}


def test_other_chinese_texts(root, capsys):
    assert main(["flickr8k", str(root), "--language", "zh", "--text", "baidu"]) == 0
    assert read(root, "train_zh_baidu")["train_zh_baidu"][f"Flicker8k_Dataset/{FLICKR8K[0]}"][0].startswith("机器")
    assert main(["flickr8k", str(root), "--language", "zh", "--text", "translated"]) == 0
    assert len(read(root, "test_zh_translated")["test_zh_translated"]) == 2
    assert not (root / "train_zh_translated.tsv").exists()
    printed = capsys.readouterr().out.splitlines()[-1]
    assert printed.startswith("  python -m src.evaluate model=FOLDER") and printed.endswith("split=test")
    assert main(["flickr8k", str(root), "--language", "zh", "--text", "google"]) == 1
    assert "lack flickr8kzhg.caption.txt (published at https://github.com/li-xirong" in capsys.readouterr().err
    assert main(["flickr8k", str(root), "--text", "baidu"]) == 1
    assert "add --language zh" in capsys.readouterr().err


@pytest.mark.parametrize("row", ["{stem}#zhc#0\t{text}", "{stem}.jpg#zhc#0\t{text}", "{stem}#zhc#0 {text}"])
def test_spellings_of_chinese_rows(root, row):
    rows = [row.format(stem=name.removesuffix(".jpg"), text=chinese(name, 0)) for name in FLICKR8K]
    write(root / "flickr8kcn" / "data" / "flickr8kzhc.caption.txt", *rows, end="\r\n")
    assert main(["flickr8k", str(root), "--language", "zh"]) == 0
    assert read(root, "test_zh")["test_zh"] == {f"Flicker8k_Dataset/{n}": [chinese(n, 0)] for n in FLICKR8K[6:8]}


def test_lists_of_flickr8k_cn_are_as_good(root):
    for split, file in (("train", "train"), ("val", "dev"), ("test", "test")):
        (root / "Flickr8k_text" / f"Flickr_8k.{file}Images.txt").unlink()
        stems = [name.removesuffix(".jpg") for name in FLICKR8K_LISTS[split]]
        write(root / "flickr8kcn" / "data" / f"flickr8k{split}.txt", *stems)
    assert main(["flickr8k", str(root)]) == 0
    assert [len(table) for table in read(root, "train", "val", "test").values()] == [4, 2, 2]


def test_kaggle(root, capsys):
    shutil.move(root / "Flicker8k_Dataset", root / "Images")
    (root / "Flickr8k_text" / "Flickr8k.token.txt").unlink()
    rows = [f'{name},"A ""big"" dog , number {i} ."' for i, name in enumerate(FLICKR8K)]
    rows += [f"{name},Two dogs , unquoted ." for name in FLICKR8K]
    write(root / "captions.txt", "image,caption", *rows, end="\r\n")
    assert main(["flickr8k", str(root)]) == 0
    assert read(root, "val")["val"][f"Images/{FLICKR8K[4]}"] == ['A "big" dog , number 4 .', "Two dogs , unquoted ."]
    shutil.rmtree(root / "Flickr8k_text")
    capsys.readouterr()
    assert main(["flickr8k", str(root)]) == 1
    message = capsys.readouterr().err
    for file in ("Flickr_8k.trainImages.txt", "Flickr_8k.devImages.txt or flickr8kval.txt", "Flickr_8k.testImages.txt"):
        assert file in message
    assert "https://hockenmaier.cs.illinois.edu/8k-pictures.html" in message


def test_a_folder_without_anything_names_all_texts(tmp_path, capsys):
    assert main(["flickr8k", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "Flickr8k.token.txt" in message and "Flickr_8k.testImages.txt" in message and message.count("\n") == 1


def test_rows_in_another_form_are_named(root, capsys):
    text = root / "Flickr8k_text" / "Flickr8k.token.txt"
    text.write_text(text.read_text().replace("#3\t", "#3;", 1))
    assert main(["flickr8k", str(root)]) == 1
    assert f"{text}:4: expected IMAGE.jpg#0<TAB>caption" in capsys.readouterr().err
    write(text, "image;caption", "a.jpg;a dog")
    assert main(["flickr8k", str(root)]) == 1
    assert f"{text}:1: expected" in capsys.readouterr().err
    text.write_bytes(f"{FLICKR8K[0]}#0\tA dog\n{FLICKR8K[0]}#1\tA caf\xe9 .\n".encode("latin-1"))
    assert main(["flickr8k", str(root)]) == 1
    assert f"{text}:2: byte 0xe9 is not UTF-8" in capsys.readouterr().err
    text.write_text("")
    assert main(["flickr8k", str(root)]) == 1
    assert "no caption of a listed image" in capsys.readouterr().err


def test_odd_white_space_and_empty_captions(root, capsys):
    name = FLICKR8K[0]
    rows = [f"{n}#0\tFine ." for n in FLICKR8K[1:]]
    write(
        root / "Flickr8k_text" / "Flickr8k.token.txt",
        f"\ufeff{name}#0\t A\tdog \u2028 runs\x0b. ",
        f"{name}#1\t ",
        *rows,
    )
    write(root / "Flickr8k_text" / "Flickr_8k.testImages.txt", FLICKR8K[6], "", "2258277193_586949ec62.jpg")
    assert main(["flickr8k", str(root)]) == 0
    printed = capsys.readouterr().out
    assert read(root, "train")["train"][f"Flicker8k_Dataset/{name}"] == ["A dog runs ."]
    assert "left out: 1 empty caption\n" in printed and "left out: 1 listed image without a caption" in printed


def test_an_image_in_two_lists_and_an_empty_list_are_refused(root, capsys):
    lists = root / "Flickr8k_text"
    write(lists / "Flickr_8k.testImages.txt", *FLICKR8K[6:8], FLICKR8K[0])
    assert main(["flickr8k", str(root)]) == 1
    assert f"{FLICKR8K[0]} is in train and in test" in capsys.readouterr().err
    write(lists / "Flickr_8k.testImages.txt", "", " ")
    assert main(["flickr8k", str(root)]) == 1
    assert "Flickr_8k.testImages.txt is empty" in capsys.readouterr().err
