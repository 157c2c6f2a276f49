"""Captions of any origin, and everything that can be wrong with them."""

import json

import pytest

from src.predictions import PredictionsError, read_predictions, read_references

REFERENCES = {
    "val2014/COCO_val2014_000000000042.jpg": ["A dog runs.", "the dog"],
    "val2014/COCO_val2014_000000000007.jpg": ["two cats"],
    "val2014/COCO_val2014_000000000139.jpg": ["snow"],
}


@pytest.fixture
def tsv(tmp_path):
    path = tmp_path / "val.tsv"
    path.write_text("".join(f"{image}\t{text}\n" for image, group in REFERENCES.items() for text in group))
    return path


@pytest.fixture
def coco(tmp_path):
    path = tmp_path / "captions_val2014.json"
    ids = {42: 0, 7: 1, 139: 2, 8: None}
    names = [image.split("/")[1] for image in REFERENCES] + ["COCO_val2014_000000000008.jpg"]
    images = [{"id": number, "file_name": name} for number, name in zip(ids, names, strict=True)]
    groups = dict(zip(ids, REFERENCES.values(), strict=False))
    said = [{"image_id": i, "id": 9, "caption": f" {text}\n"} for i, group in groups.items() for text in group]
    path.write_text(json.dumps({"images": images, "annotations": said}))
    return path


def results(path, *entries):
    path.write_text(json.dumps([{"image_id": image, "caption": caption} for image, caption in entries]))
    return path


def test_references_of_both_forms(tsv, coco, tmp_path):
    found = read_references(tsv)
    assert found.captions == REFERENCES and found.root == tmp_path and not found.silent
    assert read_references(tsv, tmp_path / "pictures").root == tmp_path / "pictures"
    found = read_references(coco)
    assert found.captions == {image.split("/")[1]: group for image, group in REFERENCES.items()}
    assert found.silent == {"COCO_val2014_000000000008.jpg"}


@pytest.mark.parametrize("kind", ["tsv", "coco"])
@pytest.mark.parametrize(
    "names",
    [
        ["COCO_val2014_000000000042.jpg", "COCO_val2014_000000000007.jpg", "COCO_val2014_000000000139.jpg"],
        ["COCO_val2014_000000000042", "000000000007", "139"],
        [42, 7, 139],
        ["elsewhere/COCO_val2014_000000000042.png", "./7", "val2014\\COCO_val2014_000000000139.jpg"],
    ],
)
def test_an_image_goes_by_several_names(kind, names, tsv, coco, tmp_path):
    references = read_references({"tsv": tsv, "coco": coco}[kind])
    said = ["a dog", "a cat", "white snow"]
    expected = {image: [text] for image, text in zip(references.captions, said, strict=True)}
    shuffled = list(zip(names, said, strict=True))[::-1]
    assert read_predictions(results(tmp_path / "results.json", *shuffled), references) == expected
    lines = tmp_path / "predictions.tsv"
    lines.write_text("\ufeff" + "".join(f"{name}\t{text}\r\n" for name, text in shuffled))
    found = read_predictions(lines, references)
    assert found == expected and list(found) == list(references.captions), "in the references' order"


def test_a_name_that_two_images_share_is_nobodys(tmp_path):
    path = tmp_path / "val.tsv"
    path.write_text("a/1.jpg\tone\nb/1.jpg\ttwo\n")
    references = read_references(path)
    assert references.find("a/1.jpg") == "a/1.jpg" and references.find("1.jpg") is None
    assert references.find("1") is None


def test_several_captions_an_image(tsv, tmp_path):
    references = read_references(tsv)
    path = tmp_path / "predictions.tsv"
    path.write_text("42\ta dog\n42\tdogs\n7\tcats\n7\tcats\n139\tsnow\n139\tice\n")
    images = list(REFERENCES)
    assert read_predictions(path, references, 2) == dict(
        zip(images, [["a dog", "dogs"], ["cats", "cats"], ["snow", "ice"]], strict=True)
    )
    with pytest.raises(PredictionsError, match=r"images without 3 captions \(3\)"):
        read_predictions(path, references, 3)
    with pytest.raises(
        PredictionsError, match=r"images with more than a caption \(3\): \S+42.jpg \(line 1, line 2\), "
    ):
        read_predictions(path, references)


def test_all_that_is_wrong_with_a_tsv_is_listed(tsv, tmp_path):
    path = tmp_path / "predictions.tsv"
    path.write_bytes(
        b"42\ta dog\n"
        b"COCO_val2014_000000000042.jpg\tthe dog\n"  # the same image again
        b"7\t \n"  # empty
        b"12\ta horse\n"  # unknown
        b"8\tcaf\xe9\n"  # not UTF-8
        b"one column\n"
    )
    with pytest.raises(PredictionsError) as caught:
        read_predictions(path, read_references(tsv))
    first, *lines = str(caught.value).split("\n  ")
    assert first == f"{path} cannot be scored (3 images have references):"
    assert lines[:4] == [
        "images without a caption (1): val2014/COCO_val2014_000000000139.jpg",
        "images with more than a caption (1): val2014/COCO_val2014_000000000042.jpg (line 1, line 2)",
        "captions of unknown images (1): 12 (line 4)",
        "empty captions (1): 7 (line 3)",
    ]
    assert lines[4].startswith("encoding (1): line 5: byte 0xe9") and "iconv" in lines[4]
    assert lines[5].startswith("columns (1): line 6: one column")
    assert len(lines) == 6


def test_all_that_is_wrong_with_cocos_results_is_listed(coco, tmp_path):
    references = read_references(coco)
    path = results(tmp_path / "results.json", (42, "a dog"), (42, "a dog"), (7, ""), (12, "a horse"), (8, "rain"))
    with pytest.raises(PredictionsError) as caught:
        read_predictions(path, references)
    assert str(caught.value).split("\n  ")[1:] == [
        "images without a caption (1): COCO_val2014_000000000139.jpg",
        "images with more than a caption (1): COCO_val2014_000000000042.jpg (entry 1, entry 2)",
        "captions of unknown images (1): 12 (entry 4)",
        "captions of images that have no references (1): 8 (entry 5)",
        "empty captions (1): 7 (entry 3)",
    ]
    path.write_text(json.dumps([{"image_id": 42, "caption": 3}, {"caption": "a dog"}, "a dog"]))
    with pytest.raises(PredictionsError, match=r"entries of another form .* \(3\): entry 1, entry 2, entry 3"):
        read_predictions(path, references)


def test_many_are_counted(tmp_path):
    path, predictions = tmp_path / "val.tsv", tmp_path / "predictions.tsv"
    path.write_text("".join(f"{i}.jpg\ta dog\n" for i in range(50)))
    predictions.write_text("0.jpg\ta dog\n")
    with pytest.raises(PredictionsError, match=r"images without a caption \(49\): 1.jpg, .*, 20.jpg and 29 more$"):
        read_predictions(predictions, read_references(path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{}", "no list in it"),
        (b'{"images": [], "annotations": []}', "these are COCO's references"),
        (b'[{"image_id"', "not JSON"),
        (b'[{"image_id": 42, "caption": "caf\xe9"}]', r"byte 33 \(0xe9\) is not UTF-8"),
        (None, "no such file"),
    ],
)
def test_other_json_is_refused(content, words, coco, tmp_path):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PredictionsError, match=words):
        read_predictions(path, read_references(coco))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("r.json", "[]", "no lists `images` and `annotations`"),
        ("r.json", '{"images": [{"id": 1}], "annotations": []}', "file_name"),
        ("r.json", '{"images": [], "annotations": []}', "no caption of any image"),
        (
            "r.json",
            '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 2, "caption": "a"}, '
            '{"image_id": 1, "caption": " "}]}',
            r"that `images` lacks \(1\): 2 \(annotation 1\)\n  empty captions \(1\): 1 \(annotation 2\)",
        ),
        ("r.tsv", "a.jpg\ta dog\nb.jpg\n", r"columns \(1\): line 2"),
        ("r.tsv", "\n", "it has no rows"),
    ],
)
def test_references_that_cannot_be_used(name, content, words, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(PredictionsError, match=words):
        read_references(tmp_path / name)
