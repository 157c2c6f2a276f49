"""`src.tags`: from captions to tags, their summary, and the command."""

import csv
import json
import os
import re
import shutil
import sys

import pytest
import torch
from PIL import Image

from src import tags
from src.bundle import Bundle, bundle_config, save_bundle
from src.metrics.content import ContentWords
from src.model import build
from src.tags import Agreement, Tag, TagSummary, agreement, agreement_text, summarise, tags_of, tags_text
from tests.conftest import tiny_config

WORDS = ContentWords.load()


# ---------------------------------------------------------------- captions → tags


def test_tags_are_the_shares_of_the_captions_that_say_them():
    captions = [
        "two brown dogs run on the grass",
        "a brown dog jumps",
        "a dog runs in the grass with a unicorn",
        "unicorns trotting",
    ]
    assert tags_of(captions, WORDS) == [
        Tag("objects", "dog", 0.75),
        Tag("objects", "grass", 0.5),
        Tag("objects", "unicorn", 0.5),
        Tag("attributes", "brown", 0.5),
        Tag("actions", "run", 0.5),
        Tag("actions", "jump", 0.25),
        Tag("actions", "trotting", 0.25),
        Tag("counts", "two", 0.25),
    ]
    assert [t.name for t in tags_of(captions, WORDS, min_confidence=0.5, unlisted=False)] == [
        *("dog", "grass"),
        "brown",
        "run",
    ]
    assert tags_of([*captions, "", "", "", ""], WORDS)[0] == Tag("objects", "dog", 0.375), "an empty caption counts"
    assert tags_of(["a dog", "a dog", "a cat"], WORDS)[0].confidence == 2 / 3, "and so does a repeated one"
    assert tags_of([], WORDS) == tags_of(["a", ""], WORDS) == []


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a hot dog and a hot day", "objects: day 1.00, hot 1.00, hot dog 1.00"),  # "hot" is free once
        ("a hot dog", "objects: hot dog 1.00"),
        ("a ten year old girl", "objects: girl 1.00; counts: ten 1.00"),  # "year old" says nothing
        ("an Asian man's unicorn isn't on a string", "objects: man 1.00, string 1.00, unicorn 1.00"),
        ("<unk> with 3 hedgehogs!", "objects: hedgehogs 1.00"),
        ("a white-bearded gnome", "objects: beard 1.00, gnome 1.00; attributes: white 1.00"),
    ],
)
def test_which_english_words_are_tags(caption, expected):
    assert tags_text(tags_of([caption], WORDS)) == expected


def test_tags_beside_what_people_say():
    tags = {
        "1.jpg": [Tag("objects", "dog", 0.9), Tag("objects", "cat", 0.4), Tag("actions", "run", 0.42)],
        "2.jpg": [Tag("objects", "car", 0.4)],
    }
    people = {"1.jpg": ["a dog runs on grass", "a dog on grass", "a bird"], "2.jpg": ["a red bus"]}
    rows, recall = agreement(tags, people, WORDS)
    assert rows == [Agreement(0.4, 3, 1 / 3), Agreement(0.9, 1, 1.0)]
    assert recall == pytest.approx(1 / 3), "of dog, grass (said twice) and bus (by the only one)"
    assert agreement_text(rows, recall).splitlines() == [
        "confidence  tags  said by people",
        "       0.4     3              33",
        "       0.9     1             100",
        "50 % of 4 tags are said by people; 33 % of the objects that two people name are tags",
    ]


def test_plurals_count_as_a_singular_that_is_known():
    captions = ["two gnomes and cherries", "a gnome with axes"]
    assert tags_text(tags_of(captions, WORDS)) == ("objects: gnome 1.00, axes 0.50, cherries 0.50; counts: two 0.50")
    folded = tags_of(captions, WORDS, vocabulary={"cherry", "ax"})
    assert [t.name for t in folded] == ["gnome", "ax", "cherry", "two"]


def test_chinese(monkeypatch):
    pytest.importorskip("rjieba")
    captions = ["一只棕色的狗在草地上奔跑", "一只狗和两只螃蟹", "一条蛇在玩耍", "一只 狗 在 思考"]
    assert tags_text(tags_of(captions, WORDS)) == (
        "objects: 狗 0.75, 草 0.25, 蛇 0.25, 螃蟹 0.25; attributes: 棕 0.25; actions: 思考 0.25, 玩 0.25, 跑 0.25; "
        "counts: 两 0.25"
    )
    assert [t.name for t in tags_of(["a dog", "一只狗", "一只狗"], WORDS)] == ["狗"], "named as most captions would"
    assert [t.name for t in tags_of(["a dog", "a dog", "一只狗"], WORDS)] == ["dog"]
    monkeypatch.setitem(sys.modules, "rjieba", None)
    tags._tagger.cache_clear()
    try:
        assert tags_text(tags_of(captions, WORDS)).startswith("objects: 狗 0.75, 草 0.25; attributes")
    finally:
        tags._tagger.cache_clear()


def test_your_own_list(tmp_path):
    path = tmp_path / "words.tsv"
    path.write_text("objects\tpet\tdog, cat\t狗\nobjects\t宠物店\t-\t店\nattributes\tred\tred\t-\n", encoding="utf-8")
    mine = ContentWords.load(path)
    assert (
        tags_text(tags_of(["a red cat", "a dog runs"], mine, unlisted=False))
        == "objects: pet 1.00; attributes: red 0.50"
    )
    assert tags_text(tags_of(["狗在店里"], mine, unlisted=False)) == "objects: 宠物店 1.00, 狗 1.00"


# ---------------------------------------------------------------- the summary

TAGGED = {
    "1.jpg": [Tag("objects", "dog", 0.5), Tag("actions", "run", 1.0)],
    "2.jpg": [Tag("objects", "dog", 1.0), Tag("objects", "cat", 0.4)],
    "3.jpg": [Tag("objects", "dog", 0.6), Tag("objects", "狗", 0.4)],
    "4.jpg": [Tag("objects", "dog", 1.0), Tag("actions", "run", 0.5)],
    "5.jpg": [],
}


def test_summary():
    assert summarise(TAGGED) == [
        TagSummary("objects", "dog", 4, 0.8, pytest.approx(3.1 / 4), ["2.jpg", "4.jpg", "3.jpg"]),
        TagSummary("objects", "cat", 1, 0.2, 0.4, ["2.jpg"]),
        TagSummary("objects", "狗", 1, 0.2, 0.4, ["3.jpg"]),
        TagSummary("actions", "run", 2, 0.4, 0.75, ["1.jpg", "4.jpg"]),
    ]
    assert summarise({}) == summarise({"5.jpg": []}) == []


def test_summary_as_text_and_csv(monkeypatch):
    rows = summarise(TAGGED)
    monkeypatch.setattr(tags, "MOST_ROWS", 1)
    header, dog, run, rest = tags.summary_text(rows).splitlines()
    assert header.split() == ["part", "tag", "pictures", "share", "confidence", "examples"]
    assert dog.split() == ["objects", "dog", "4", "80.0", "0.78", "2.jpg,", "4.jpg,", "3.jpg"]
    assert (run.split()[1], rest) == ("run", "and 2 rarer tags")
    _, dog, _, dog_zh, _ = csv.reader(tags.summary_csv(rows).splitlines())
    assert dog == ["objects", "dog", "4", "0.8", "0.775", "2.jpg", "4.jpg", "3.jpg"]
    assert dog_zh == ["objects", "狗", "1", "0.2", "0.4", "3.jpg", "", ""]


def test_a_page_fetches_nothing_and_escapes_everything(tmp_path, monkeypatch):
    evil = "<script>alert(1)</script>"
    pictures = [tmp_path / f"<script>{i}&.png" for i in range(4)]
    for i, picture in enumerate(pictures):
        Image.new("RGB", (60, 40), (60 * i, 0, 0)).save(picture)
    tagged = {str(picture): [Tag("objects", f'{evil}" onload="{i}', 0.5)] for i, picture in enumerate(pictures)}
    tagged[str(tmp_path / "gone.png")] = [Tag("objects", "dog", 1.0)]
    monkeypatch.setattr(tags, "MOST_THUMBNAILS", 3)
    tags.write_page(
        tmp_path / "new" / "page.html",
        summarise(tagged),
        {picture: [f'{evil}" onerror="x'] for picture in tagged},
        model=evil,
        samples=10,
        min_confidence=0.3,
    )
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1 and "<script>alert" not in page and 'onerror="' not in page
    assert "default-src 'none'; img-src data:" in page and not re.search(r"https?://|@import|<link|<iframe", page)
    assert all(source.startswith("data:image/") for source in re.findall(r'(?:src|href)="([^#"]*)"', page) if source)
    assert page.count("data:image/jpeg") == 3 == page.count("<img")
    assert all("alt=" in image and "title=" in image for image in re.findall(r"<img[^>]*>", page))
    assert str(tmp_path) not in page and page.count('class="tag"') == 5
    for english, chinese in (("Objects", "物体"), ("Search tags", "搜索标签"), ("confidence", "置信度")):
        assert english in page and chinese in page


def test_a_page_of_nothing(tmp_path):
    tags.write_page(tmp_path / "page.html", [], {}, model="m", samples=1, min_confidence=0.3)
    assert "No tags." in (tmp_path / "page.html").read_text(encoding="utf-8")


# ---------------------------------------------------------------- the command


@pytest.fixture
def model(tmp_path, vocabulary):
    torch.manual_seed(2)
    config = bundle_config(tiny_config(), {"encoder_weights": "random"})
    made = build(config, vocabulary).eval()
    made.decoder.classifier.weight.data *= 30
    made.encoder.project.weight.data *= 100
    save_bundle(tmp_path / "bundle", Bundle(made, vocabulary, config))
    return tmp_path / "bundle"


@pytest.fixture
def call(model, shapes, capsys):
    def run(*flags: object, pictures=shapes / "images", status: int = 0) -> tuple[list[str], str]:
        arguments = ["--model", str(model), "--device", "cpu", *map(str, flags), str(pictures)]
        assert tags.main(arguments) == status
        said = capsys.readouterr()
        return said.out.splitlines(), said.err

    return run


def parsed(text: str) -> dict[str, dict[str, float]]:
    """A TSV row's tags, by the rule that docs/tags.md gives."""
    found: dict[str, dict[str, float]] = {}
    for group in text.split("; ") if text else ():
        part, _, listed = group.partition(": ")
        found[part] = {name: float(share) for name, _, share in (tag.rpartition(" ") for tag in listed.split(", "))}
    return found


def test_rows_say_what_the_captions_say(call, shapes):
    printed, table = call("--samples", 4, "--min-confidence", 0.25)
    rows = [json.loads(line) for line in call("--samples", 4, "--min-confidence", 0.25, "--json")[0]]
    assert len(rows) == len(printed) == 24 and all(len(row["captions"]) == 4 for row in rows)
    assert any(len(set(row["captions"])) < 4 for row in rows), "repeated captions are all there"
    for row, line in zip(rows, printed, strict=True):
        assert list(row) == ["img_path", "tags", "captions"] and list(row["tags"]) == list(tags.PARTS)
        expected = tags_of(row["captions"], WORDS, min_confidence=0.25)
        assert row["tags"] == {part: {t.name: t.confidence for t in expected if t.part == part} for part in tags.PARTS}
        path, _, text = line.partition("\t")
        assert path == row["img_path"] and parsed(text) == {part: said for part, said in row["tags"].items() if said}
    names = {name for row in rows for said in row["tags"].values() for name in said}
    assert names & {"red", "green", "blue", "grey"} and names >= {"plaza", "circle"}, "the list takes a square for one"
    assert table.splitlines()[0].startswith("part "), "the summary leaves the rows alone"
    listed = [json.loads(line)["tags"]["objects"] for line in call("--listed-only", "--json")[0]]
    assert {name for said in listed for name in said} == {"plaza"} and len(
        json.loads(call("--json")[0][0])["captions"]
    ) == 10


def test_without_a_model_it_is_the_one_that_comes_with_the_code(call, model, shapes, tmp_path, monkeypatch, capsys):
    rows, _ = call("--listed-only")
    monkeypatch.setattr("src.picture_flags.SHIPPED", model)
    monkeypatch.chdir(tmp_path)
    assert tags.main([str(shapes / "images"), "--listed-only", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines() == rows
    monkeypatch.setattr("src.bundle.SHIPPED", model)
    shutil.rmtree(model)
    assert tags.main([str(shapes / "images")]) == 2
    said = "the captioner that comes with the code is not there; name another one with --model"
    assert capsys.readouterr() == ("", f"error: {model}: {said}\n")


def test_other_searches_and_own_words(call, tmp_path):
    beams = [json.loads(line) for line in call("--beam", 3, "--json")[0]]
    assert all(1 <= len(row["captions"]) <= 3 for row in beams)
    assert len(json.loads(call("--search", "greedy", "--json")[0][0])["captions"]) == 1
    cold = [json.loads(line)["captions"] for line in call("--set", "temperature=0.01", "--json")[0]]
    assert {len(captions) for captions in cold} == {10} and all(len(set(captions)) == 1 for captions in cold)
    (tmp_path / "words.tsv").write_text("counts\tshape\tsquare, circle\t-\n", encoding="utf-8")
    rows = [json.loads(line) for line in call("--words", tmp_path / "words.tsv", "--listed-only", "--json")[0]]
    assert {tuple(row["tags"]["counts"]) for row in rows} >= {("shape",)} and not any(
        r["tags"]["objects"] for r in rows
    )


def test_an_interrupted_folder_goes_on(call, tmp_path, monkeypatch):
    whole, rows, partial = (
        tmp_path / "whole.jsonl",
        tmp_path / "new" / "rows.jsonl",
        tmp_path / "new" / "rows.jsonl.partial",
    )
    flags = ("--json", "--batch-size", 5, "-o")
    call(*flags, whole)
    seen, captions_of = [], tags.captions_of

    def captions_until(least: int):
        def counted(captioner, opened):
            if len(seen) >= least:
                raise KeyboardInterrupt
            seen.extend(opened)
            return captions_of(captioner, opened)

        return counted

    monkeypatch.setattr(tags, "captions_of", captions_until(10))
    _, said = call(*flags, rows, status=130)
    assert "the same call goes on, 10 pictures are there" in said and partial.exists() and not rows.exists()
    partial.write_text(partial.read_text() + '{"img_path": "cut o')
    seen.clear()
    monkeypatch.setattr(tags, "captions_of", captions_until(99))
    for other in (["--samples", 3], ["--set", "seed=1"], ["--batch-size", 7]):
        _, said = call(*flags, rows, *other, status=2)
        kind = "batch size" if "7" in map(str, other) else "search"
        assert f"rows.jsonl.partial: begun with another {kind}: call again as then" in said and said.count("\n") == 1
    assert not seen
    printed, said = call(*flags, rows, "--min-confidence", 0.3)  # tags are made of the captions at the end
    assert "going on, 10 pictures are there" in said and len(seen) == 14
    assert rows.read_bytes() == whole.read_bytes() and not partial.exists() and printed[0].startswith("part ")
    assert sorted(path.name for path in rows.parent.iterdir()) == ["rows.jsonl"]


def test_nothing_is_mixed_with_another_captioner_or_another_command(call, model, vocabulary, tmp_path, monkeypatch):
    rows = tmp_path / "rows.tsv"

    def interrupt(captioner, opened):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tags, "captions_of", interrupt)
        call("-o", rows, status=130)
    torch.manual_seed(3)
    config = bundle_config(tiny_config(), {"encoder_weights": "random"})
    shutil.rmtree(model)
    save_bundle(model, Bundle(build(config, vocabulary).eval(), vocabulary, config))
    assert "begun with another captioner" in call("-o", rows, status=2)[1]
    for text in ("a.jpg\ta dog\n", "[]\n", '{"search": 1}\n'):
        (tmp_path / "rows.tsv.partial").write_text(text)
        assert "not what this command writes there: delete it" in call("-o", rows, status=2)[1]
        assert (tmp_path / "rows.tsv.partial").read_text() == text and not rows.exists()


def test_files(call, tmp_path):
    table, page = tmp_path / "a" / "summary.csv", tmp_path / "b" / "page.html"
    printed, _ = call("-o", tmp_path / "tags.tsv", "--summary", table, "--html", page)
    rows = [line.split("\t") for line in (tmp_path / "tags.tsv").read_text().splitlines()]
    found = list(csv.DictReader(table.read_text().splitlines()))
    for row in found:
        having = [path for path, text in rows if row["tag"] in parsed(text).get(row["part"], {})]
        assert int(row["pictures"]) == len(having) and float(row["share"]) == round(len(having) / 24, 4)
        assert row["example_1"] in having
    assert len(found) >= len(printed) - 2 and "What is in 24 pictures" in page.read_text(encoding="utf-8")
    assert call("--summary", table, pictures=rows[0][0])[1] == "", "one picture needs no table"


def test_tags_are_held_against_references(call, shapes, tmp_path):
    printed, _ = call("-o", tmp_path / "tags.jsonl", "--json", "--references", shapes / "train.tsv", status=2)
    assert printed == [], "the table has no captions of the other splits' pictures"
    every = "".join((shapes / f"{split}.tsv").read_text() for split in ("train", "val", "test"))
    (shapes / "all.tsv").write_text(every)
    printed, _ = call("-o", tmp_path / "tags.jsonl", "--json", "--references", shapes / "all.tsv")
    rows = [json.loads(line) for line in (tmp_path / "tags.jsonl").read_text().splitlines()]
    people = {row["img_path"]: [] for row in rows}
    for line in every.splitlines():
        people[str(shapes / line.split("\t")[0])].append(line.split("\t")[1])
    found = {r["img_path"]: [Tag(p, n, c) for p, t in r["tags"].items() for n, c in t.items()] for r in rows}
    assert "\n".join(printed).endswith(agreement_text(*agreement(found, people, WORDS)))
    (tmp_path / "bad.tsv").write_text("a\n")
    assert "bad.tsv cannot be used as references" in call("--references", tmp_path / "bad.tsv", status=2)[1]


def test_unreadable_pictures_are_named_and_counted(call, shapes, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(shapes / "images", folder)
    (folder / "07.png").write_bytes(b"no picture")
    strange = folder / os.fsdecode(b"99_\xb9\xb7<&\xe7\x8b\x97.png")
    shutil.copy(folder / "00.png", strange)
    page, table = tmp_path / "page.html", tmp_path / "summary.csv"
    _, said = call("--json", "-o", tmp_path / "rows", "--html", page, "--summary", table, pictures=folder, status=1)
    assert said.count("07.png: no picture in a format") == 1 and "1 of 25 pictures could not be read" in said
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 24 and rows[-1]["img_path"] == str(strange)
    assert call(pictures=strange)[0][0].split("\t")[0].encode() == str(strange).encode(errors="backslashreplace")


def test_a_captioner_of_regions(vocabulary, shapes, tmp_path, capsys):
    config = bundle_config(tiny_config(), {})
    config["encoder"] = {"_target_": "src.encoders.RegionEncoder", "path": "x", "dimension": 2048, "max_regions": 9}
    save_bundle(tmp_path / "regions", Bundle(build(config, vocabulary).eval(), vocabulary, config))
    line = ["--model", str(tmp_path / "regions"), "images/00.png", "images/01.png", "--html", str(tmp_path / "p.html")]
    assert tags.main([*line, "--min-confidence", "0", "--regions", str(shapes / "regions")]) == 0
    assert capsys.readouterr().out.startswith("images/00.png\t")
    assert "data:image/jpeg" not in (tmp_path / "p.html").read_text(encoding="utf-8"), "there is nothing to show"


def test_an_ensemble_asked_for_a_length(vocabulary, shapes, tmp_path, capsys):
    models, words = [], vocabulary.extended([], controls={"<zh>": 1, "<length=5>": 1})
    for seed in range(2):
        torch.manual_seed(seed)
        config = bundle_config(tiny_config(), {"encoder_weights": "random"})
        models.append(str(tmp_path / f"bundle{seed}"))
        save_bundle(tmp_path / f"bundle{seed}", Bundle(build(config, words).eval(), words, config))
    line = ["--model", *models, str(shapes / "images" / "00.png"), "--json"]
    assert tags.main([*line, "--length", "5", "--language", "zh"]) == 0
    assert len(json.loads(capsys.readouterr().out)["captions"]) == 10
    assert tags.main([*line, "--language", "fr"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--min-confidence", "30"], "--min-confidence 30: a number from 0 to 1 is wanted"),
        (["--min-confidence", "nan"], "--min-confidence nan: a number from 0 to 1 is wanted"),
        (["--batch-size", "0"], "--batch-size 0: 1 or more"),
        (["--samples", "0"], "generation.captions=0"),
        (["--samples", "5", "--search", "beam"], "--samples 5: of --search sample; of others, --beam N gives"),
        (["--samples", "5", "--beam", "3"], "--samples 5: of --search sample"),
        (["--search", "bean"], "generation is one of beam"),
        (["--words", "nowhere.tsv"], "nowhere.tsv"),
        (["--html", "."], ".: a folder; name a file to write"),
        (["--length", "short"], "length"),
        (["nowhere/*.jpg"], "nowhere/*.jpg: no such file or folder"),
    ],
)
def test_wrong_flags_are_one_sentence(call, flags, sentence):
    rows, said = call(*flags, status=2)
    assert not rows and said.startswith("error: ") and sentence in said and said.count("\n") == 1


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        tags.main(["--help"])
    assert stopped.value.code == 0 and "examples:" in capsys.readouterr().out
