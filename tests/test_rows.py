"""How captions are written."""

import json
from pathlib import Path

import pytest

from src.captioner import Caption
from src.distributed import Place
from src.rows import FORMATS, Columns, Row, Sidecars, check_output, clock, format_of, fragment

BEST = Caption("a dog", ["a", "dog"], [-0.25, -0.5, -0.125], -0.3, confidence=0.75)
OTHER = Caption("a cat", ["a", "cat"], [-1.0, -2.0], -1.5, confidence=0.25)
ALL = Columns(score=True, confidence=True, quality=True)
FIRST = Row("a.mp4", [BEST, OTHER], 0.5, (0.0, 1.5))
SECOND = Row("a.mp4", [OTHER], 0.25, (1.5, 62.0049))


PLAIN = Columns()


def whole(name, rows, columns=PLAIN):
    return "".join(FORMATS[name].pieces(FORMATS[name].entries(rows, columns)))


def test_tsv():
    assert whole("tsv", [Row("p.jpg", [BEST])]) == "p.jpg\ta dog\n"
    assert whole("tsv", [Row("p.jpg", [])]) == "p.jpg\t\n" and whole("tsv", []) == ""
    rows = [Row("p.jpg", [BEST, OTHER], 0.5), Row("q.jpg", [], 0.125)]
    assert whole("tsv", rows, ALL) == (
        "p.jpg\ta dog\t-0.3000\t0.750\t0.500\np.jpg\ta cat\t-1.5000\t0.250\t0.500\nq.jpg\t\t\t\t0.125\n"
    )
    assert whole("tsv", [FIRST, SECOND]) == "a.mp4#t=0,1.5\ta dog\na.mp4#t=0,1.5\ta cat\na.mp4#t=1.5,62.005\ta cat\n"
    assert fragment(Row("a b.mp4", [], None, (36000.1234, 36010))) == "a b.mp4#t=36000.123,36010"


def test_json_is_read_back():
    rows = [Row("p.jpg", [BEST, OTHER], 0.5), Row("狗.jpg", []), SECOND]
    lines = whole("jsonl", rows, ALL).splitlines()
    found = [json.loads(line) for line in lines]
    assert found == json.loads(whole("json", rows, ALL)) and "狗" in lines[1]
    assert found[0] == {
        "img_path": "p.jpg",
        "caption": "a dog",
        "score": -0.3,
        "confidence": 0.75,
        "words": ["a", "dog"],
        "log_probs": [-0.25, -0.5, -0.125],
        "alternatives": [{"caption": "a cat", "score": -1.5, "confidence": 0.25}],
        "quality": 0.5,
    }
    assert found[1] == {"img_path": "狗.jpg", "caption": ""}
    assert list(found[2].items())[:4] == [("video", "a.mp4"), ("start", 1.5), ("end", 62.005), ("caption", "a cat")]
    assert json.loads(whole("json", [])) == [] and whole("jsonl", []) == ""
    assert "confidence" not in whole("jsonl", rows)


def test_subtitles():
    left_out = Row("a.mp4", [], None, (62.005, 63.0))
    assert whole("srt", [FIRST, left_out, SECOND]) == (
        "1\n00:00:00,000 --> 00:00:01,500\na dog\na cat\n\n2\n00:00:01,500 --> 00:01:02,005\na cat\n\n"
    )
    assert whole("vtt", [SECOND]) == "WEBVTT\n\n1\n00:00:01.500 --> 00:01:02.005\na cat\n\n"
    assert whole("srt", []) == "" and whole("vtt", []) == "WEBVTT\n\n\n"
    assert clock(3661.9996) == "01:01:02.000" and clock(0.0004, ",") == "00:00:00,000"
    assert clock(360_000) == "100:00:00.000"


def test_the_kind_of_a_file_is_its_ending():
    endings = {"a.tsv": "tsv", "a.txt": "tsv", "a": "tsv", "a.JSONL": "jsonl", "a.json": "json", "a.srt": "srt"}
    assert {name: format_of(Path(name)).name for name in endings} == endings


def test_nothing_is_written_over_a_picture_or_an_input(tmp_path):
    check_output(tmp_path / "a.tsv", [tmp_path / "b.tsv"])
    for name in ("a.jpg", "b.PNG", "c.mp4", "b.tsv"):
        with pytest.raises(ValueError, match=f"{name}: a picture, a video or an input"):
            check_output(tmp_path / name, [tmp_path / "x" / ".." / "b.tsv"])


def test_a_sidecar_that_could_not_be_written_anew_is_no_success(tmp_path):
    (tmp_path / "a.jpg.txt").write_text("old")
    files = Sidecars([tmp_path / "a.jpg", tmp_path / "b.jpg"], FORMATS["txt"], True, Place())
    files.add(1, ["new"])
    assert files.join() == 1 and (tmp_path / "a.jpg.txt").read_text() == "old"


def test_sidecars(tmp_path):
    items = [tmp_path / name for name in ("a.jpg", "a.png", "b.mp4")]
    (tmp_path / "a.png.json").write_text("mine")
    files = Sidecars(items, FORMATS["json"], False, Place())
    assert files.done == 1 and files.share == [0, 2]
    files.add(0, FORMATS["json"].entries([Row("a.jpg", [BEST])], Columns()))
    files.add(2, FORMATS["json"].entries([FIRST], Columns()))
    assert json.loads((tmp_path / "a.jpg.json").read_text())["caption"] == "a dog"
    assert [scene["end"] for scene in json.loads((tmp_path / "b.mp4.json").read_text())] == [1.5]
    assert files.join() == 3 and (tmp_path / "a.png.json").read_text() == "mine"
    again = Sidecars(items, FORMATS["txt"], True, Place(1, 2))
    assert again.done == 0 and again.share == [1], "every second one is this process's"
    again.add(1, FORMATS["txt"].entries([Row("a.png", [BEST, OTHER])], Columns()))
    assert (tmp_path / "a.png.txt").read_text() == "a dog\na cat\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jpg.json", "a.png.json", "a.png.txt", "b.mp4.json"]


def test_names_that_are_no_utf8():
    row = Row("\udcff.jpg", [BEST])
    assert whole("tsv", [row]) == "\\udcff.jpg\ta dog\n"
    assert json.loads(whole("jsonl", [row]))["img_path"] == row.name
