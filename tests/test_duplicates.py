"""Near-duplicates: what was made of a picture is found beside it, and other pictures are not."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from src import duplicates
from src.duplicates import LARGE, SIDE, Look, Pair, groups, pairs
from tests.test_retrieval import bundles  # noqa: F401


def drawing(seed: int, side: int = 160) -> Image.Image:
    """Coarse noise, coloured: no two alike."""
    noise = np.random.default_rng(seed).integers(0, 256, (10, 10, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def compressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=25)
    return Image.open(buffer).convert("RGB")


MADE = {
    "smaller": lambda image: image.resize((70, 70)),
    "compressed": compressed,
    "cropped": lambda image: image.crop((10, 10, 150, 150)),
    "mirrored": ImageOps.mirror,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


def look_of(image: Image.Image) -> Look:
    grey = np.asarray(image.convert("L").resize((LARGE, LARGE), Image.Resampling.BOX))
    return Look(np.array([1, 0], np.float16), grey, image.width * image.height)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.parametrize("how", MADE)
def test_what_was_made_of_a_picture_is_like_it(how):
    images = [drawing(seed) for seed in range(4)]
    looks = [look_of(image) for image in [*images, MADE[how](images[2])]]
    found = list(pairs(looks, 0.85))
    assert {frozenset(pair[:2]) for pair in found} == {frozenset((2, 4))}
    assert all(0.85 <= pair.similarity <= 1.001 for pair in found)


def test_similarity_is_the_correlation_of_pixels():
    images = [drawing(seed) for seed in range(6)]
    looks = [look_of(image) for image in images]
    small = [np.asarray(Image.fromarray(each.grey).resize((SIDE, SIDE), Image.Resampling.BOX)) for each in looks]
    found = {pair[:2]: pair.similarity for pair in pairs(looks, 1e-6)}
    for i in range(6):
        for j in range(6):
            if i != j:
                least = max(correlation(small[i], small[j]), correlation(small[i], small[j][:, ::-1]))
                assert found.get((i, j), 0) >= least - 0.01, "at least that of the whole pictures"
    assert max(found.values()) < 0.85, "and never that of one and the same"
    apart = [look._replace(features=np.eye(6, dtype=np.float16)[n]) for n, look in enumerate([looks[0]] * 6)]
    assert not list(pairs(apart, 0.5)), "what the features keep apart is not compared"


def test_groups_are_what_pairs_connect():
    chain = [Pair(0, 3, 0.9), Pair(5, 3, 0.9), Pair(1, 2, 0.9), Pair(2, 1, 0.9)]
    assert groups(7, chain) == [[0, 3, 5], [1, 2]] and groups(3, []) == []


def test_the_command_groups_files_and_goes_on(bundles, tmp_path, capsys):  # noqa: F811
    folder = tmp_path / "pictures"
    folder.mkdir()
    drawing(0, 200).save(folder / "a.png")
    compressed(drawing(0, 90)).save(folder / "b.png")
    for seed in (1, 2):
        drawing(seed).save(folder / f"other{seed}.png")
    ImageOps.mirror(drawing(2, 300)).save(folder / "c.png")
    (folder / "broken.png").write_bytes(b"")
    output = tmp_path / "groups.tsv"
    line = ["--model", str(bundles["plain"]), "--device", "cpu", str(folder), "--batch-size", "2"]
    assert duplicates.main([*line, "-o", str(output)]) == 1
    said = capsys.readouterr()
    assert "4 of 5 pictures are nearly the same as another, in 2 groups" in said.err and "1 of 6 pictures" in said.err
    rows = [row.split("\t") for row in output.read_text().splitlines()]
    assert [(row[0], row[1].rsplit("/", 1)[1]) for row in rows] == [
        ("1", "a.png"),
        ("1", "b.png"),
        ("2", "c.png"),
        ("2", "other2.png"),
    ], "the largest first"
    assert all(0.85 <= float(row[2]) <= 1 for row in rows)
    (folder / "broken.png").unlink()
    assert duplicates.main(line) == 0 and capsys.readouterr().out == output.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["groups.tsv", "pictures"]


def test_a_stopped_call_is_taken_up(bundles, tmp_path, monkeypatch, capsys):  # noqa: F811
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(6):
        drawing(seed % 5).save(folder / f"{seed}.png")
    line = ["--model", str(bundles["plain"]), "--device", "cpu", str(folder), "--batch-size", "2"]
    line += ["-o", str(tmp_path / "groups.tsv")]
    real, calls = duplicates.look, []

    def stops(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(duplicates, "look", stops)
    assert duplicates.main(line) == 130
    assert capsys.readouterr().err.endswith("interrupted; the same call goes on\n")
    assert not (tmp_path / "groups.tsv").exists()
    assert duplicates.main(line) == 0 and len(calls) == 4
    assert "4 of 6 are looked at already" in capsys.readouterr().err
    assert [row.split("\t")[1][-5:] for row in (tmp_path / "groups.tsv").read_text().splitlines()] == ["0.png", "5.png"]


def test_across_splits_only_pairs_of_different_ones_count(bundles, tmp_path, capsys):  # noqa: F811
    (tmp_path / "images").mkdir()
    for name, image in (
        ("a", drawing(0)),
        ("a2", compressed(drawing(0))),  # of the same split
        ("b", drawing(1)),
        ("c", drawing(2)),
        ("b_val", ImageOps.mirror(drawing(1, 200))),
        ("d", drawing(3)),
        ("a_test", compressed(drawing(0, 90))),
    ):
        image.save(tmp_path / "images" / f"{name}.png")
    for split, names in (("train", ["a", "a2", "b", "c"]), ("val", ["b_val", "d"]), ("test", ["a_test", "c"])):
        (tmp_path / f"{split}.tsv").write_text("".join(f"images/{name}.png\tsome words\n" for name in names))
    tables = [str(tmp_path / f"{split}.tsv") for split in ("train", "val", "test")]
    line = ["--model", str(bundles["plain"]), "--device", "cpu", "--across", *tables, "--root", str(tmp_path)]
    output = tmp_path / "pairs.tsv"
    assert duplicates.main([*line, "-o", str(output)]) == 0
    assert "4 pairs of nearly the same picture in different splits, of 8 pictures" in capsys.readouterr().err
    rows = [row.split("\t") for row in output.read_text().splitlines()]
    assert rows[0] == ["train", "images/c.png", "test", "images/c.png", "1.000"], "the same file, in two"
    assert {(a, x[7:-4], b, y[7:-4]) for a, x, b, y, _ in rows} == {
        ("train", "c", "test", "c"),
        ("train", "b", "val", "b_val"),
        ("train", "a", "test", "a_test"),
        ("train", "a2", "test", "a_test"),
    }
    values = [float(row[4]) for row in rows]
    assert values == sorted(values, reverse=True) and min(values) >= 0.9
    assert duplicates.main([*line, "--fail"]) == 1 and capsys.readouterr().out == output.read_text()
    (tmp_path / "test.tsv").write_text("images/d.png\twords\n")
    line[line.index(tables[1])] = tables[2]
    del line[line.index(tables[2]) + 1]
    assert duplicates.main([*line, "--fail"]) == 0 and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "flags",
    [["--across", "train.tsv"], ["--across", "a.tsv", "b.tsv", "--", "photo.png"], ["photo.png", "--fail"], []],
)
def test_what_does_not_go_together_is_refused(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        duplicates.main(flags)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--similarity", "0"], "--similarity 0: a number above 0"),
        (["--batch-size", "0"], "--batch-size 0: 1 or more"),
        (["nowhere.png"], "nowhere.png: no such file or folder"),
    ],
)
def test_wrong_flags_are_one_sentence(flags, sentence, shapes, capsys):
    assert duplicates.main([str(shapes / "images" / "00.png"), *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and sentence in said and said.count("\n") == 1
    with pytest.raises(SystemExit):
        duplicates.main([])


def header_of(side: int) -> bytes:
    """A PNG that says it is so large."""
    made = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")):
        made += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return made


def test_what_cannot_be_looked_at_is_said_and_flat_copies_are_found(bundles, tmp_path, capsys):  # noqa: F811
    folder = tmp_path / "pictures"
    folder.mkdir()
    flat = Image.new("RGB", (64, 64), (9, 9, 9))
    for name in (b"one.png", b"caf\xe9.png"):
        flat.save(os.fsdecode(os.path.join(os.fsencode(folder), name)))
    Image.new("RGB", (64, 64), (200, 200, 200)).save(folder / "light.png")
    (folder / "huge.png").write_bytes(header_of(30000))
    (folder / "page.png").write_text("<html></html>")
    line = ["--model", str(bundles["plain"]), "--device", "cpu", str(folder)]
    assert duplicates.main(line) == 1
    out, err = capsys.readouterr()
    rows = [row.split("\t") for row in out.splitlines()]
    assert {row[1].rsplit("/", 1)[1] for row in rows} == {"one.png", "caf\\udce9.png"}
    assert {row[2] for row in rows} == {"1.000"}
    assert "huge.png: too many pixels" in err and "page.png: a web page, not a picture" in err and "2 of 5" in err
    (folder / "tab\t.png").write_bytes((folder / "light.png").read_bytes())
    assert duplicates.main(line) == 2 and "a tab or line break in its name" in capsys.readouterr().err
    before = (folder / "one.png").read_bytes()
    assert duplicates.main([*line[:-1], str(folder / "one.png"), "-o", str(folder / "one.png")]) == 2
    assert "never written over" in capsys.readouterr().err and (folder / "one.png").read_bytes() == before
