"""Captions in flat form, held against plain lists."""

import pickle
import random
import sys
from collections import Counter

import numpy as np
import pytest

from benchmarks.scaling import make_table, started
from src.data import table as table_module
from src.data import tsv
from src.data.module import CaptionData
from src.data.table import Groups, Strings, joined, words_of
from src.data.tokenizer import CharacterTokenizer, EnglishTokenizer
from src.data.transforms import Preprocess
from src.data.tsv import TsvError, read_tsv, split_by_image
from src.data.vocabulary import Vocabulary

TEXTS = ["a dog", "", "两只狗 🐕", "\ud800", "x" * 1000, "café"]


def test_strings_are_the_list_that_they_came_from():
    strings = Strings.of(TEXTS)
    assert strings == TEXTS and list(strings) == TEXTS and len(strings) == 6 and strings[-1] == "café"
    assert strings[1:4] == TEXTS[1:4] and strings[::-2] == TEXTS[::-2] and strings != TEXTS[:-1] + ["cafe"]
    with pytest.raises(IndexError):
        strings[6]
    places = np.array([5, 0, 0])
    assert (
        strings.take(places) == ["café", "a dog", "a dog"] and strings.take(places).take(np.array([2, 0]))[1] == "café"
    )
    assert strings.gathered(places) == ["café", "a dog", "a dog"] and strings.block(2, 5) == TEXTS[2:5]
    assert joined([strings, Strings.of([]), strings.block(0, 1)]) == [*TEXTS, "a dog"]
    assert pickle.loads(pickle.dumps(strings.take(places))) == ["café", "a dog", "a dog"]


def test_a_digest_is_of_the_texts_however_they_are_kept(monkeypatch):
    strings = Strings.of(TEXTS)
    digest = strings.digest()
    assert digest == strings.take(np.arange(6)).digest() == strings.gathered(np.arange(6)).digest()
    assert strings.take(np.array([5, 0])).digest() == Strings.of(["café", "a dog"]).digest()
    monkeypatch.setattr(table_module, "BLOCK", 2)
    assert digest == strings.digest() == strings.take(np.arange(6)).digest()
    others = [TEXTS[:-1], TEXTS[::-1], ["a ", "dog", *TEXTS[1:]], ["a do", "g", *TEXTS[2:]]]
    assert len({digest, *(Strings.of(other).digest() for other in others), Strings.of([]).digest()}) == 6


def test_groups_are_nested_lists():
    groups = Groups(Strings.of("abcdef"), np.array([0, 2, 2, 6]))
    assert groups == [["a", "b"], [], ["c", "d", "e", "f"]] == list(groups)
    assert groups[-1] == ["c", "d", "e", "f"] and groups[1:] == [[], ["c", "d", "e", "f"]]


def random_rows(count=500, images=60, seed=0):
    """Rows of pictures in any order, with tags, and what the table is to be: {image: [(caption, tags)]}."""
    rng = random.Random(seed)
    words = ["a", "dog", "left", "of", "the", "狗", "runs", "naïve", "isn't"]
    rows, expected = [], {}
    for _ in range(count):
        image, tags = f"{rng.randrange(images):03}.jpg", rng.choice(["", "en", "zh, domain=news"])
        caption = " ".join(rng.choices(words, k=rng.randrange(1, 9)))
        rows.append("\t".join([image, caption, tags] if tags else [image, caption]))
        expected.setdefault(image, []).append((caption, tags))
    return rows, expected


@pytest.fixture
def pieces(monkeypatch):
    """Reading and tokenizing in many small pieces, as large tables are, in this process."""
    monkeypatch.setattr(tsv, "_PIECE", 300)
    monkeypatch.setattr(table_module, "BLOCK", 7)
    monkeypatch.setattr(table_module, "cpu_count", lambda: 1)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("small", [False, True])
def test_a_table_is_what_it_says(tmp_path, cached, small, request):
    if small:
        request.getfixturevalue("pieces")
    rows, expected = random_rows()
    path = tmp_path / "t.tsv"
    path.write_text("\n".join(rows), encoding="utf-8")
    for _ in range(2):  # built, then found
        found = read_tsv(path, tmp_path, verify="none", cache_dir=tmp_path / "cache" if cached else None)
        assert found.images == list(expected) and (found.folder is not None) == cached
        assert found.captions == [[caption for caption, _ in each] for each in expected.values()]
        assert found.tags == [[tags for _, tags in each] for each in expected.values()]
        said = [
            f"{image}\t{caption}"
            for image, texts in zip(found.images, found.captions, strict=True)
            for caption in texts
        ]
        for line, row in zip(found.lines.tolist(), said, strict=True):
            assert rows[line - 1].startswith(row)
    words = words_of(found, EnglishTokenizer())
    tokens = [EnglishTokenizer().tokens(text) for texts in found.captions for text in texts]
    assert list(words) == tokens and words.counts() == Counter(word for each in tokens for word in each)
    assert words.spans()[1].tolist() == list(map(len, tokens))
    left = np.array([word == "left" for word in words.types])
    assert words.rows_with(left).tolist() == [row for row, each in enumerate(tokens) if "left" in each]
    part = split_by_image(found, [0.6, 0.4], seed=0)[1]
    its = words_of(part, EnglishTokenizer())
    expected_words = [EnglishTokenizer().tokens(text) for texts in part.captions for text in texts]
    assert list(its) == expected_words and its.spans()[1].tolist() == list(map(len, expected_words))
    assert its.counts() == Counter(word for each in expected_words for word in each)
    assert its.spans(np.array([3, 0]))[1].tolist() == [len(expected_words[3]), len(expected_words[0])]
    assert pickle.loads(pickle.dumps(part)) == part and list(pickle.loads(pickle.dumps(its))) == expected_words


def test_a_table_is_read_once_and_by_its_content(tmp_path, monkeypatch):
    path, cache = tmp_path / "t.tsv", tmp_path / "cache"
    path.write_text("a.jpg\ta dog\nb.jpg\n", encoding="utf-8")
    first = read_tsv(path, tmp_path, verify="none", on_bad_row="skip", cache_dir=cache)
    words_of(first, EnglishTokenizer())

    def never(*_):
        raise AssertionError("read again")

    with monkeypatch.context() as patched:
        patched.setattr(tsv, "_parse", never)
        patched.setattr(table_module, "_tokenized", never)
        (tmp_path / "copy.tsv").write_bytes(path.read_bytes())
        again = read_tsv(tmp_path / "copy.tsv", tmp_path, verify="none", on_bad_row="skip", cache_dir=cache)
        assert again == first and list(words_of(again, EnglishTokenizer())) == [["a", "dog"]]
        with pytest.raises(TsvError, match=r"copy\.tsv:2: one column"):
            read_tsv(tmp_path / "copy.tsv", tmp_path, verify="none", cache_dir=cache)
    path.write_text("a.jpg\ta cat\n", encoding="utf-8")  # as long, and perhaps within the clock's tick
    assert read_tsv(path, tmp_path, verify="none", cache_dir=cache).captions == [["a cat"]]
    assert list(words_of(again, CharacterTokenizer())) == [["a", "dog"]]
    assert len(list((cache / "tables").glob("*/words-*/stream.npy"))) == 2, "one a tokenizer"


def test_a_bad_line_from_the_cache_names_the_table_that_was_asked_for(tmp_path):
    for name in ("one.tsv", "two.tsv"):
        (tmp_path / name).write_bytes("a.jpg\tcafé\nb.jpg\ta dog\n".encode("latin-1"))
        with pytest.raises(TsvError, match=rf"{name}:1: .*iconv -f WINDOWS-1252 -t UTF-8 '.*{name}'"):
            read_tsv(tmp_path / name, tmp_path, verify="none", cache_dir=tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "t.tsv").write_text("a.jpg\ta dog\n")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OSError, match=r"cache/tables: .*set data.cache_dir"):
        read_tsv(tmp_path / "t.tsv", tmp_path, verify="none", cache_dir=tmp_path / "cache")


def test_a_build_that_was_killed_is_made_again(tmp_path):
    (tmp_path / "t.tsv").write_text("a.jpg\ta dog\n")
    folder = read_tsv(tmp_path / "t.tsv", tmp_path, verify="none", cache_dir=tmp_path).folder
    folder.rename(folder.with_name(f"{folder.name}.partial"))
    (folder.with_name(f"{folder.name}.partial") / "texts.npy").write_bytes(b"half")
    assert read_tsv(tmp_path / "t.tsv", tmp_path, verify="none", cache_dir=tmp_path).captions == [["a dog"]]


def test_several_processes_read_what_one_reads(tmp_path, monkeypatch):
    """Real worker processes, in pieces as large tables are read."""
    rows, _ = random_rows(4000, 900)
    (tmp_path / "t.tsv").write_text("\n".join(rows), encoding="utf-8")
    alone = read_tsv(tmp_path / "t.tsv", tmp_path, verify="none")
    words = words_of(alone, EnglishTokenizer())
    monkeypatch.setattr(tsv, "_PIECE", 20_000)
    monkeypatch.setattr(table_module, "BLOCK", 1000)
    monkeypatch.setattr(table_module, "cpu_count", lambda: 2)
    many = read_tsv(tmp_path / "t.tsv", tmp_path, verify="none")
    assert many == alone and np.array_equal(many.lines, alone.lines)
    theirs = words_of(many, EnglishTokenizer())
    assert theirs.types == words.types and np.array_equal(theirs.stream, words.stream)


def test_the_vocabulary_is_that_of_the_token_lists(tmp_path):
    rows, expected = random_rows()
    (tmp_path / "t.tsv").write_text("\n".join(rows), encoding="utf-8")
    data = CaptionData(
        tmp_path, Preprocess(8), EnglishTokenizer(), "t.tsv", min_count=3, verify="none", cache_dir=tmp_path / "c"
    )
    lists = [EnglishTokenizer().tokens(caption) for each in expected.values() for caption, _ in each]
    assert data.vocabulary.to_dict() == Vocabulary.build(lists, 3).to_dict()
    assert list(data.training_tokens()) == lists


# ---------------------------------------------------------------- memory and time


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_further_worker_holds_no_captions_of_its_own(tmp_path):
    """What two further loading processes add to the memory of all (PSS: a page that n share counts as 1/n in each)
    is the same for a thousand rows and a hundred thousand, whose captions are ten megabytes as bytes, more as
    strings."""
    added = {}
    for rows in (1000, 100_000):
        folder = tmp_path / str(rows)
        make_table(folder, rows)
        read_tsv(folder / "t.tsv", folder, verify="none", cache_dir=folder / "cache")
        one, three = (started(folder, workers) for workers in (1, 3))
        assert (one["workers"], three["workers"]) == (1, 3) and one["first"] == three["first"]
        added[rows] = (three["pss"] - one["pss"]) / 2
    assert added[100_000] < added[1000] + 8, added


@pytest.mark.slow
def test_ten_million_rows(tmp_path, monkeypatch):
    """Read and tokenized once, and the captions are those of the file; then none is looked at to begin."""
    folder = tmp_path / "large"
    make_table(folder, 10_000_000)
    table = read_tsv(folder / "t.tsv", folder, verify="none", cache_dir=folder / "cache")
    words = words_of(table, EnglishTokenizer())
    assert len(table) == 2_000_000 and len(table.texts) == 10_000_000
    for row in (0, 4_999_999, 9_999_999):
        said = f"a dog number {row % 977} runs over the {row % 1009} th hill"
        assert table.texts[row] == said and table.captions[row // 5][row % 5] == said
        begin, count = (int(each[0]) for each in words.spans(np.array([row])))
        assert [words.types[id_] for id_ in words.stream[begin : begin + count]] == EnglishTokenizer().tokens(said)
    monkeypatch.setattr(tsv, "_parse", None)
    monkeypatch.setattr(table_module, "_tokenized", None)
    found = read_tsv(folder / "t.tsv", folder, verify="none", cache_dir=folder / "cache")
    assert words_of(found, EnglishTokenizer()).counts()["dog"] == 10_000_000
    assert found.images[-1] == "1/9/9/9/9/9/9/picture.png"
