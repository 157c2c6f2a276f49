"""The search index: what is found is what looking at everything finds, and whatever happens it is whole."""

import html
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from src import index as index_command
from src import retrieval, segments
from src import search as search_command
from src.bundle import Bundle, bundle_config, save_bundle
from src.captioner import Captioner
from src.config import ROOT
from src.data.tokenizer import MixedTokenizer
from src.data.vocabulary import BOS, EOS, Vocabulary
from src.matching import Said, log_likelihoods, picture_vectors, said, sentence_vectors
from src.model import build
from src.retrieval import Index
from src.segments import IndexFault, Row, read_manifest
from tests.conftest import tiny_config

SIZE = 8
MATCHER = {"_target_": "src.matcher.JointMatcher", "size": SIZE, "words": 6, "hidden": 5, "heads": 2}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Tiny captioners with a matcher, by the seed of their weights; `plain` has none."""
    words = ["a", "red", "green", "blue", "square", "circle", "on", "grey", "一", "个", "红", "色"]
    vocabulary = Vocabulary.build([[w] * (len(words) - i) for i, w in enumerate(words)], min_count=1)
    vocabulary = vocabulary.extended([], controls={"<en>": 1, "<zh>": 1})
    found = {}
    for name in (0, 1, "plain"):
        torch.manual_seed(int(name != 0))
        config = bundle_config(tiny_config(), {"encoder_weights": "random"})
        config["tokenizer"] = {"_target_": "src.data.tokenizer.MixedTokenizer"}
        config["matcher"] = None if name == "plain" else MATCHER
        found[name] = tmp_path_factory.mktemp("bundles") / str(name)
        save_bundle(found[name], Bundle(build(config, vocabulary).eval(), vocabulary, config))
    return found


@pytest.fixture
def captioner(bundles):
    return Captioner.load(bundles[0], device_name="cpu")


@pytest.fixture
def pictures(shapes, tmp_path):
    """A folder of one's own: a/00.png … a/11.png, b/c/12.png …; with the captions of no importance."""
    for number in range(24):
        folder = tmp_path / "pictures" / ("a" if number < 12 else "b/c")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(shapes / "images" / f"{number:02d}.png", folder)
    return tmp_path / "pictures"


def files(pictures: Path) -> list[Path]:
    return sorted(pictures.rglob("*.png"))


def built(captioner, pictures, directory, **options) -> Index:
    index = Index.create(directory, captioner, **options)
    index.add(captioner, files(pictures), 5)
    return index


def drawn(count, seed=0, size=SIZE):
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, size)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rows_of(count, first=0, caption="a dog", folder="/pictures"):
    return [Row(f"{folder}/{number % 3}/{number:05d}.jpg", number, number, caption) for number in range(first, count)]


# ---------------------------------------------------------------- what is found


def test_by_sentence_by_picture_by_words_it_is_what_brute_force_finds(captioner, pictures, tmp_path):
    index = built(captioner, pictures, tmp_path / "index")
    every = files(pictures)
    opened = captioner.stacked([captioner.open(path) for path in every])
    vectors = picture_vectors(captioner, captioner.features(opened))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)

    (sentence,) = sentence_vectors(captioner, ["a red square"])
    found = index.by_sentence(captioner, "A red square!", 24)
    np.testing.assert_allclose([each.score for each in found], np.sort(vectors @ sentence)[::-1], atol=1e-3)
    assert {each.path for each in found} == {str(path) for path in every}

    like = index.by_picture(captioner, every[5], 23)
    products = dict(zip(map(str, every), vectors @ vectors[5], strict=True))
    assert [each.score for each in like] == sorted((each.score for each in like), reverse=True)
    assert str(every[5]) not in {each.path for each in like} and len(like) == 23
    for each in like:
        assert each.score == pytest.approx(products[each.path], abs=1e-3)
    with Image.open(every[5]) as image:
        assert index.by_picture(captioner, image, 1)[0].score == pytest.approx(1, abs=1e-3)

    captions = {str(path): caption.text for path, caption in zip(every, captioner(every), strict=True)}
    assert {row.path: row.caption for row in index.rows()} == captions
    words = {path: MixedTokenizer().tokens(text) for path, text in captions.items()}
    word = words[str(every[0])][0]
    holding = {path for path, own in words.items() if word in own}
    assert {each.path for each in index.by_words(f"{word} zebra", 24)} == holding


def test_likelihood_ranks_the_first_again(captioner, pictures, tmp_path, monkeypatch):
    """The mean log-probability is that of the words one by one; what is not looked at, or gone, counts as the least
    likely."""
    index = built(captioner, pictures, tmp_path / "index", languages=[])
    first = index.by_sentence(captioner, "a red square", 6)
    again = index.by_sentence(captioner, "a red square", 6, rerank=6)
    model, known = captioner.model, captioner.vocabulary
    ids = [BOS, known.control_index["<en>"], *(known.index[word] for word in ("a", "red", "square")), EOS]
    assert said(captioner, "a red square") == Said(ids, 2)
    assert said(captioner, "一个红色").tokens[1] == known.control_index["<zh>"]
    expected = {}
    for each in first:
        seen = captioner.features(captioner.stacked([captioner.open(each.path)]))
        with captioner.computing():
            hidden = model.decoder(model.decoder.embed(torch.tensor([[ids[:-1]]])), model.memory(seen)).hidden
            nats = F.cross_entropy(model.decoder.logits(hidden)[0, 0, 1:].float(), torch.tensor(ids[2:]))
        expected[each.path] = each.score - model.matcher.likelihood * float(nats)
        ragged = log_likelihoods(captioner, seen, [[Said(ids, 2), Said([BOS, 5, EOS], 1)]])
        assert ragged[0][0] == pytest.approx(-float(nats), rel=1e-2)  # bf16 where the hardware has it
    assert {each.path: each.score for each in again} == pytest.approx(expected, abs=5e-3)
    assert [each.score for each in again] == sorted((each.score for each in again), reverse=True)
    monkeypatch.setattr(retrieval, "AT_ONCE", 2)
    some = index.by_sentence(captioner, "a red square", 6, rerank=3)
    added = {each.path: expected[each.path] - each.score for each in first}
    least = min(added[each.path] for each in first[:3])
    wanted = {each.path: expected[each.path] if n < 3 else each.score + least for n, each in enumerate(first)}
    assert {each.path: each.score for each in some} == pytest.approx(wanted, abs=5e-3)
    assert [each.path for each in some[3:]] == [each.path for each in first[3:]]
    os.remove(first[0].path)
    left = {each.path: each.score for each in index.by_sentence(captioner, "a red square", 6, rerank=6)}
    assert left[first[0].path] == pytest.approx(first[0].score + min(added[each.path] for each in first[1:]), abs=5e-3)
    for each in first:
        Path(each.path).unlink(missing_ok=True)
    assert index.by_sentence(captioner, "a red square", 6, rerank=6) == first


def test_many_sentences_are_scored_as_few(captioner, pictures, monkeypatch):
    seen = captioner.features(captioner.stacked([captioner.open(path) for path in files(pictures)[:5]]))
    texts = ["a red square", "blue", "一个红色", "a green circle on grey", "grey"]
    sentences = [[said(captioner, text) for text in texts[number:]] for number in (0, 4, 2, 5, 1)]
    whole = log_likelihoods(captioner, seen, sentences)
    monkeypatch.setattr("src.matching.TOGETHER", 2)
    parts = log_likelihoods(captioner, seen, sentences)
    assert [len(each) for each in parts] == [5, 1, 3, 0, 4]
    for one, other in zip(whole, parts, strict=True):
        assert other == pytest.approx(one, rel=2e-2)


def test_filters_by_folder(captioner, pictures, tmp_path, monkeypatch):
    index = built(captioner, pictures, tmp_path / "index")
    below = {str(path) for path in files(pictures / "b")}
    for folder in (pictures / "b", "b", "b/c", f"{pictures}/b/c/"):
        assert {each.path for each in index.by_sentence(captioner, "a square", 24, folder)} == below, folder
    monkeypatch.chdir(pictures)
    assert {each.path for each in index.by_sentence(captioner, "a square", 24, "b/c")} == below
    assert {each.path for each in index.by_sentence(captioner, "a square", 24, ".")} == set(map(str, files(pictures)))
    assert index.by_picture(captioner, files(pictures)[0], 5, folder="b/") and not index.by_words("a", folder="nowhere")
    assert not index.by_vector(drawn(1)[0], folder="ictures/a"), "whole parts of a path"


def test_large_segments_have_an_inverted_file_and_find_nearly_all(tmp_path, captioner, monkeypatch):
    """Clusters looked into, rows removed, folders: against all products, in float32."""
    monkeypatch.setattr(segments, "EXACT", 1000)
    index = Index.create(tmp_path / "index", captioner)
    vectors, rows = drawn(4000), rows_of(4000)
    with index.updating() as update:
        update.put(rows[:3000], vectors[:3000])
        update.put(rows[3000:], vectors[3000:])
    assert all("inverted.faiss" in each.files for each in index.state.segments if len(each) > 1000)
    assert any("inverted.faiss" in each.files for each in index.state.segments)
    gone = set(range(0, 4000, 7))
    index.remove([rows[i].path for i in sorted(gone)])
    queries = drawn(40, seed=1)
    for folder, kept in (
        (None, lambda i: True),
        ("/pictures/1", lambda i: i % 3 == 1),
        ("/pictures/none", lambda i: False),
    ):
        there = np.array([i for i in range(4000) if i not in gone and kept(i)], int)
        hits = 0
        for query in queries:
            best = {rows[i].path for i in there[np.argsort(-(vectors[there] @ query))[:10]]}
            found = index.by_vector(query, 10, folder)
            assert len(found) == min(10, len(there))
            assert {each.path for each in found} <= {rows[i].path for i in there}
            hits += len(best & {each.path for each in found})
        assert hits >= 0.95 * 10 * len(queries) or not len(there)
    few = [rows[i].path for i in range(100) if i not in gone]
    index.remove([row.path for row in rows if row.path not in few])
    assert {each.path for each in index.by_vector(queries[0], 200)} == set(few)


def test_a_folder_of_one_theme_is_found_in_by_a_sentence_of_another(tmp_path, captioner, monkeypatch):
    """Its pictures lie in clusters far from the query, into which a search without a folder never looks."""
    monkeypatch.setattr(segments, "EXACT", 1000)
    index = Index.create(tmp_path / "index", captioner)
    centres = drawn(60, seed=2)
    theme = np.random.default_rng(3).integers(len(centres), size=4000)
    vectors = centres[theme] + 0.02 * drawn(4000)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    beach = np.isin(theme, np.argsort(centres @ centres[0])[:6])
    rows = [Row(f"/{'beach' if here else 'rest'}/{n}.jpg", 1, 1) for n, here in enumerate(beach)]
    with index.updating() as update:
        update.put(rows, vectors)
    assert 0.05 < beach.mean() < 0.2
    products = np.sort(vectors[beach] @ centres[0])[::-1]
    found = index.by_vector(centres[0], 10, "/beach", probes=4)
    np.testing.assert_allclose([each.score for each in found], products[:10], atol=2e-3)
    assert len(index.by_vector(centres[0], 4000, "/beach", probes=4)) == beach.sum()


# ---------------------------------------------------------------- what is written


def test_only_what_is_new_or_changed_is_looked_at(captioner, pictures, tmp_path):
    index = built(captioner, pictures, tmp_path / "index")
    assert index.add(captioner, files(pictures)) == (0, 24, [])
    other = files(pictures)[3]
    shutil.copy(files(pictures)[0], other)
    os.utime(other, ns=(5, 5))
    assert index.add(captioner, [*files(pictures), files(pictures)[0]]) == (1, 23, [])
    assert len(index) == 24
    like = index.by_picture(captioner, files(pictures)[0], 1)
    assert like[0].path == str(other) and like[0].score == pytest.approx(1, abs=1e-3)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    added = index.add(captioner, [tmp_path / "broken.png", tmp_path / "missing.png"])
    assert added.new == 0 and len(added.failed) == 2 and "broken.png" in added.failed[0]
    assert index.remove([other]) == 1 and index.remove([other]) == 0
    assert index.remove([pictures / "b"]) == 12 and len(index) == 11
    assert str(other) not in {each.path for each in index.by_sentence(captioner, "a square", 24)}
    again = Index.open(tmp_path / "index")
    assert list(again.rows()) == list(index.rows()) and len(again) == 11
    assert again.add(captioner, [other]).new == 1, "what was removed can come back"


def test_segments_of_like_size_become_one_and_nothing_is_lost(captioner, tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval, "SMALLEST", 4)
    monkeypatch.setattr(retrieval, "FANOUT", 3)
    index = Index.create(tmp_path / "index", captioner)
    vectors, rows, most = drawn(120), rows_of(120), 0
    for start in range(0, 120, 4):
        with index.updating() as update:
            update.put(rows[start : start + 4], vectors[start : start + 4])
            update.remove([rows[start].path] if start % 3 == 0 else [])
        most = max(most, len(index.state.segments))
    assert most <= 2 * 5 + 1 and len(index) == 120
    for i in (0, 7, 119):
        best = index.by_vector(vectors[i], 1)[0]
        assert (best.path, best.score) == (rows[i].path, pytest.approx(1, abs=2e-3))
    index.remove([row.path for row in rows[::2]])
    with index.updating() as update:
        update.commit(together=True)
    assert len(index.state.segments) == 1 and sorted(index.rows()) == sorted(rows[1::2])
    named = {entry["name"] for entry in read_manifest(tmp_path / "index")["segments"]}
    assert {path.name for path in (tmp_path / "index").iterdir()} == {"lock", "manifest.json", *named}
    index.remove(["/pictures"])
    assert len(index) == 0 and index.by_vector(vectors[0]) == [] and index.by_words("dog") == []


def test_readers_go_on_while_one_writes(captioner, tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval, "FANOUT", 3)
    index = Index.create(tmp_path / "index", captioner)
    vectors, rows = drawn(300), rows_of(300)
    with index.updating() as update:
        update.put(rows[:10], vectors[:10])
    reader, seen, faults = Index.open(tmp_path / "index"), [], []

    def read():
        while len(seen) < 10_000 and not done.is_set():
            try:
                reader.refresh()
                seen.append(len(reader))
                assert reader.by_vector(vectors[3], 1)[0].path == rows[3].path
                assert reader.by_words("dog", 1)
            except Exception as error:
                faults.append(error)
                return

    done = threading.Event()
    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for start in range(10, 300, 10):
        with index.updating() as update:
            update.put(rows[start : start + 10], vectors[start : start + 10])
    done.set()
    for thread in threads:
        thread.join()
    assert not faults and {count % 10 for count in seen} == {0} and max(seen) > 10


PROGRAM = """
import sys, time
import numpy as np
from src.retrieval import Index
from src.segments import Row
index = Index.open(sys.argv[1])
vectors = np.random.default_rng(9).standard_normal((3000, 8)).astype(np.float32)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
print("begun", flush=True)
for number in range(100_000):
    with index.updating() as update:
        rows = [Row(f"/new/{number}/{i}.jpg", 1, 1, "a cat") for i in range(3000)]
        update.put(rows, vectors)
        update.commit()
"""


def test_killed_in_an_update_it_opens_with_the_last_complete_state(captioner, tmp_path):
    """A real process is killed as it writes a segment, and another as it is about to name one: 3,000 rows at a time,
    and never a part of them."""
    directory = tmp_path / "index"
    index = Index.create(directory, captioner)
    vectors, rows = drawn(10), rows_of(10)
    with index.updating() as update:
        update.put(rows, vectors)

    def killed(when) -> set[str]:
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, directory], cwd=ROOT, stdout=subprocess.PIPE)
        try:
            assert process.stdout and process.stdout.readline() == b"begun\n"
            deadline = time.monotonic() + 60
            while not (found := when()):
                assert time.monotonic() < deadline
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        return found

    def begun() -> set[str]:
        """Segments that are being written: not named, and without their last file."""
        named = {entry["name"] for entry in read_manifest(directory)["segments"]}
        there = {path for path in directory.glob("segment-*") if path.is_dir() and path.name not in named}
        return {path.name for path in there if (path / "vectors.npy").exists()}

    def written() -> set[str]:
        return {name for name in begun() if (directory / name / "terms.json").exists()}

    for when in (begun, written):
        killed(when)
        after = Index.open(directory)
        assert len(after) % 3000 == 10
        assert after.by_vector(vectors[4], 1)[0].path == rows[4].path
        assert len(after.by_words("cat", 10_000)) == min(len(after) - 10, 10_000)
        (directory / "segment-999999").mkdir()  # what a killed one may leave
        with after.updating() as update:
            update.put(rows[:1], vectors[:1])
        left = {path.name for path in directory.iterdir()} - {"lock", "manifest.json"}
        named = {each for entry in read_manifest(directory)["segments"] for each in (entry["name"], entry["removed"])}
        assert left == named - {None}
        assert len(Index.open(directory)) % 3000 == 10


# ---------------------------------------------------------------- what is refused


def test_what_cannot_be_is_said_in_a_sentence(bundles, captioner, pictures, tmp_path):
    index = built(captioner, pictures, tmp_path / "index")
    other = Captioner.load(bundles[1], device_name="cpu")
    for call in (lambda: index.by_sentence(other, "a square"), lambda: Index.create(tmp_path / "index", other)):
        with pytest.raises(IndexFault, match="built with another captioner"):
            call()
    with pytest.raises(ValueError, match="no matcher"):
        Index.create(tmp_path / "new", Captioner.load(bundles["plain"], device_name="cpu"))
    with pytest.raises(ValueError, match="“zebra zebra”: the captioner knows none"):
        index.by_sentence(captioner, "zebra zebra")
    with pytest.raises(ValueError, match="no words"):
        index.by_words("!!!")
    with pytest.raises(ValueError, match="0 pictures are asked for"):
        index.by_words("a", 0)
    with pytest.raises(ValueError, match=r"of 8 numbers is wanted, not \(3,\)"):
        index.by_vector(np.zeros(3))
    with pytest.raises(IndexFault, match=f"{tmp_path / 'none'}: no index here"):
        Index.open(tmp_path / "none")
    with pytest.raises(IndexFault, match="no index, and not empty"):
        Index.create(pictures, captioner)
    assert not (pictures / "manifest.json").exists()
    (tmp_path / "killed").mkdir()
    for left in ("lock", "manifest.json.partial"):
        (tmp_path / "killed" / left).touch()
    assert len(Index.create(tmp_path / "killed", captioner)) == 0
    silent = built(captioner, pictures, tmp_path / "silent", languages=[])
    with pytest.raises(IndexFault, match="no words to search in"):
        silent.by_words("a")
    with pytest.raises(IndexFault, match="its captions are none"):
        Index.create(tmp_path / "silent", captioner, ["zh"])


@pytest.mark.parametrize("name", ["manifest.json", "vectors.npy", "keys.npy", "postings_rows.npy"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_index_is_named(name, damage, captioner, pictures, tmp_path):
    built(captioner, pictures, tmp_path / "index")
    (file,) = (tmp_path / "index").rglob(name)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-7])
    else:
        file.unlink()
    with pytest.raises(IndexFault, match="no index here" if (name, damage) == ("manifest.json", "gone") else str(file)):
        Index.open(tmp_path / "index")


def test_a_manifest_that_was_edited_is_refused(captioner, tmp_path):
    Index.create(tmp_path / "index", captioner)
    manifest = tmp_path / "index" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"next": 0', '"next": 1'))
    with pytest.raises(IndexFault, match="not what was written"):
        Index.open(tmp_path / "index")


# ---------------------------------------------------------------- the commands


def test_the_commands(bundles, pictures, tmp_path, capsys, monkeypatch):
    model = ["--model", str(bundles[0]), "--device", "cpu"]
    where = ["--index", str(tmp_path / "index")]

    def call(command, *arguments, status=0):
        assert command.main([*arguments, *where]) == status
        return capsys.readouterr()

    said = call(index_command, str(pictures), *model, "--language", "en", "zh")
    assert "24 pictures indexed, 0 unchanged, 0 removed; it holds 24" in said.out
    found = call(search_command, "a red square", *model, "-n", "3", "--folder", "b").out.splitlines()
    assert len(found) == 3 and all(line.split("\t")[1].startswith(str(pictures / "b")) for line in found)
    assert all(" / " in line.split("\t")[2] for line in found), "a caption in each language"
    picture = str(files(pictures)[0])
    found = [json.loads(line) for line in call(search_command, "--picture", picture, *model, "--json").out.splitlines()]
    assert len(found) == 10 and set(found[0]) == {"path", "score", "caption"}
    word = found[0]["caption"].split()[0]
    assert call(search_command, word, "--words").out
    said = call(search_command, "zebra", "--words")
    assert said.out == "" and said.err == "nothing was found\n"
    page = tmp_path / "pages" / "found.html"
    call(search_command, "a <b>", "--html", str(page), *model)
    text = page.read_text(encoding="utf-8")
    assert "a &lt;b&gt;" in text and text.count("<img") == 10
    first = text.split('<img src="')[1].split('"')[0]
    assert (page.parent / first).is_file()

    (pictures / "a" / "00.png").unlink()
    (pictures / "a" / "new.png").write_bytes((pictures / "a" / "01.png").read_bytes())
    said = call(index_command, str(pictures), "--prune", "--remove", str(pictures / "b"), *model)
    assert "1 pictures indexed, 23 unchanged, 13 removed; it holds 12" in said.out
    assert "1 removed; it holds 11" in call(index_command, "--remove", str(pictures / "a" / "01.png")).out
    assert "0 removed; it holds 11" in call(index_command, "--compact").out
    (pictures / "a" / "broken.png").write_bytes(b"none")
    said = call(index_command, str(pictures / "a"), *model, status=1)
    assert "broken.png" in said.err and "1 of 13 pictures could not be read" in said.err

    for command, arguments, sentence in (
        (index_command, [str(pictures), "--model", str(bundles[1]), "--device", "cpu"], "another captioner"),
        (index_command, [str(pictures), *model, "--no-captions"], "its captions are in en, zh"),
        (index_command, [str(pictures), "--no-captions", "--language", "zh"], "leave one of the two out"),
        (index_command, ["--prune", "--compact"], "--prune: of which folders?"),
        (index_command, [str(tmp_path / "nothing")], "no such file or folder"),
        (index_command, [str(pictures), "--batch-size", "0"], "--batch-size 0: 1 or more"),
        (search_command, ["zebra", *model], "the captioner knows none of these words"),
        (search_command, ["--words", "--picture", picture], "leave one out"),
        (search_command, ["a", "--rerank", "-1"], "--rerank -1: 0 or more"),
        (search_command, ["a", "-n", "0", "--words"], "0 pictures are asked for"),
        (search_command, ["--picture", str(tmp_path / "none.png"), *model], "none.png"),
    ):
        said = call(command, *arguments, status=2)
        assert said.err.startswith("error: ") and sentence in said.err and said.err.count("\n") == 1, said.err
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert "pip install faiss-cpu" in call(search_command, "a", "--words", status=2).err


def test_emptied_folders_odd_names_and_words_that_are_not_known(bundles, pictures, tmp_path, capsys, monkeypatch):
    model = ["--model", str(bundles[0]), "--device", "cpu"]
    where = ["--index", str(tmp_path / "index")]
    folder = tmp_path / "some"
    folder.mkdir()
    for name in (b"caf\xe9.png", b"100% #1.png", b"a\tb.png"):
        shutil.copy(files(pictures)[len(name)], os.path.join(os.fsencode(folder), name))

    def call(command, *arguments, status=0):
        assert command.main([*arguments, *where]) == status
        return capsys.readouterr()

    said = call(index_command, str(folder), *model, "--prune", status=2)
    assert "is no index yet" in said.err and not (tmp_path / "index").exists()
    call(index_command, str(folder), *model)
    said = call(search_command, "a red zebra", *model)
    assert "not searched by: zebra\n" in said.err
    named = {line.split("\t")[1].rsplit("/", 1)[1] for line in said.out.splitlines()}
    assert named == {"caf\\udce9.png", "100% #1.png", "a\\tb.png"}
    lines = call(search_command, "a red square", *model, "--json").out.splitlines()
    assert all(os.path.exists(json.loads(line)["path"]) for line in lines)
    call(search_command, "a red square", *model, "--html", str(tmp_path / "found.html"))
    sources = (tmp_path / "found.html").read_text(encoding="utf-8").split('<img src="')[1:]
    read = {urllib.parse.unquote_to_bytes(html.unescape(text.split('"')[0])) for text in sources}
    assert {os.path.basename(name) for name in read} == {b"caf\xe9.png", b"100% #1.png", b"a\tb.png"}
    assert all(os.path.exists(os.path.join(os.fsencode(tmp_path), name)) for name in read)
    picture = files(pictures)[0]
    before = picture.read_bytes()
    said = call(search_command, "--picture", str(picture), *model, "--html", str(picture), status=2)
    assert "never written over" in said.err and picture.read_bytes() == before
    said = call(index_command, "--remove", str(folder / "typo"))
    assert "typo: nothing of that name is in the index" in said.err and "0 removed; it holds 3" in said.out
    for path in folder.iterdir():
        path.unlink()
    assert "3 removed; it holds 0" in call(index_command, str(folder), "--prune", *model).out

    for name in ("one.png", "two.png", "three.png"):
        shutil.copy(files(pictures)[0], folder / name)
    pattern = [str(folder / "*.png"), "--prune", *model]
    assert "3 pictures indexed, 0 unchanged, 0 removed" in call(index_command, *pattern).out
    (folder / "one.png").unlink()
    assert "0 pictures indexed, 2 unchanged, 1 removed" in call(index_command, *pattern).out
    (folder / "two.png").unlink()
    assert "1 removed; it holds 1" in call(index_command, str(folder / "two.png"), "--prune", *model).out
    (folder / "three.png").unlink()
    said = call(index_command, str(folder / "typo"), "--prune", *model, status=2)
    assert "typo: no such file or folder" in said.err
    assert "1 removed; it holds 0" in call(index_command, *pattern).out

    def stops(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(search_command, "find", stops)
    assert call(search_command, "a", status=130).err == "interrupted\n"
