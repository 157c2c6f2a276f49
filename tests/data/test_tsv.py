import logging
import os
import shutil
import subprocess
import time

import numpy as np
import pytest
from PIL import Image

from src.data.tsv import BadRow, Captions, TsvError, read_tsv, split_by_image, write_skipped


@pytest.fixture
def root(tmp_path):
    """A folder with pictures a.jpg, b.jpg, c.jpg and sub/d.jpg."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("a.jpg", "b.jpg", "c.jpg", "sub/d.jpg"):
        Image.fromarray(noise).save(root / name)
    return root


@pytest.fixture
def table(tmp_path):
    """Writes a table, returns its path."""

    def write(content):
        path = tmp_path / "table.tsv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


EXPECTED = (["a.jpg", "b.jpg"], [["a dog", "one dog"], ["a cat"]])


# --- what is well formed ---


@pytest.mark.parametrize(
    "content",
    [
        "a.jpg\ta dog\na.jpg\tone dog\nb.jpg\ta cat\n",
        "a.jpg\ta dog\nb.jpg\ta cat\na.jpg\tone dog",  # rows of an image apart, no end of line
        "\ufeffa.jpg\ta dog\r\na.jpg\tone dog\r\nb.jpg\ta cat\r\n",  # BOM, CRLF
        "a.jpg\ta dog\ra.jpg\tone dog\rb.jpg\ta cat\r",
        "\n\na.jpg\ta dog\n \t \n\r\na.jpg\tone dog\n\t\nb.jpg\ta cat\n\n",  # blank lines
        " a.jpg \t a dog \na.jpg\tone dog\n\ufeffb.jpg\ta cat\n",  # spaces; a BOM from `cat`
        "./a.jpg\ta dog\na.jpg\tone dog\nsub/../b.jpg\ta cat\n",
        ".\\a.jpg\ta dog\na.jpg\tone dog\nsub\\..\\b.jpg\ta cat\n",
    ],
)
def test_rows(root, table, content):
    found = read_tsv(table(content), root)
    assert (found.images, found.captions) == EXPECTED
    assert found.tags == [["", ""], [""]] and found.skipped == [] and len(found) == 2


def test_order_of_first_appearance_and_subfolders(root, table):
    found = read_tsv(table("sub/d.jpg\tone\nb.jpg\ttwo\nsub\\d.jpg\tthree\na.jpg\tfour\n"), root)
    assert found.images == ["sub/d.jpg", "b.jpg", "a.jpg"] and found.captions[0] == ["one", "three"]


def test_a_third_column_is_tags_and_may_be_missing(root, table):
    found = read_tsv(table("a.jpg\ta dog\tdog,grass\na.jpg\tone dog\nb.jpg\ta cat\t\nb.jpg\tcats\t cat \n"), root)
    assert found.tags == [["dog,grass", ""], ["", "cat"]]
    assert found.captions == [["a dog", "one dog"], ["a cat", "cats"]]


def test_unicode_stays_and_only_line_feeds_end_rows(root, table):
    found = read_tsv(table("a.jpg\t一只狗\u2028在\x85跑\x0b\x1c。\nb.jpg\tune\u00a0idée “ici”\n"), root)
    assert found.captions == [["一只狗\u2028在\x85跑\x0b\x1c。"], ["une\u00a0idée “ici”"]]


def test_quotes_and_commas_and_backslashes_in_captions_stay(root, table):
    found = read_tsv(table('a.jpg\t"A dog, running" \\t fast\n'), root)
    assert found.captions == [['"A dog, running" \\t fast']]


def test_the_same_row_twice_is_kept_twice(root, table):
    assert read_tsv(table("a.jpg\tx\na.jpg\tx\n"), root).captions == [["x", "x"]]


# --- what is not ---

BAD_ROWS = [
    ("columns", "a.jpg a dog", "one column: put a tab"),
    ("columns", "a.jpg\ta dog\ttag\tmore", "4 columns: .*remove tabs"),
    ("backslash-t", "a.jpg\\ta dog", "backslash and a t where a tab.*sed"),
    ("commas", "a.jpg,a dog", "commas where tabs.*python3"),
    ("commas", '"sub/d.jpg","a dog, running"', "commas where tabs"),
    ("commas", "image,caption", "commas where tabs"),
    ("header", "img_path\tcaption", r"a header \('img_path'\): remove it"),
    ("header", "image\tcaption", "a header"),
    ("header", "Filename\tCaption\tTags", "a header"),
    ("header", "# Image Path\tcaption", "a header"),
    ("header", "file_name\tcomment", "a header"),
    ("empty caption", "a.jpg\t", "no caption for a.jpg: write one, or remove"),
    ("empty caption", "a.jpg\t  \ttag", "no caption for a.jpg"),
    ("path", "\ta dog", "no image path before the tab"),
    ("path", "../a.jpg\ta dog", r"\.\./a\.jpg leaves the root: move"),
    ("path", "sub/../../a.jpg\ta dog", "leaves the root"),
    ("path", "sub\\..\\..\\a.jpg\ta dog", "leaves the root"),
    ("path", "sub/..\ta dog", "leaves the root"),
    ("path", "/etc/passwd\ta dog", "/etc/passwd is absolute: write it relative"),
    ("path", "C:\\pictures\\a.jpg\ta dog", "is absolute"),
    ("path", "\\\\server\\a.jpg\ta dog", "is absolute"),
    ("path", "https://example.org/a.jpg\ta dog", "is an address: download"),
    ("missing image", "none.jpg\ta dog", r"no file none\.jpg in the root .*root: add it, or set"),
    ("missing image", "sub\ta dog", "sub is not a file"),
    ("missing image", "a.jpg\0\ta dog", "no file"),
    ("unreadable image", "empty.jpg\ta dog", r"empty\.jpg: empty \(0 bytes\)"),
]


@pytest.mark.parametrize(("kind", "row", "reason"), BAD_ROWS)
def test_a_bad_row_is_an_error_with_its_line_or_skipped(root, table, caplog, kind, row, reason):
    (root / "empty.jpg").touch()
    path = table(f"\na.jpg\ta dog\n{row}\nb.jpg\ta cat\n")
    with pytest.raises(TsvError, match=rf"table\.tsv:3: .*{reason}"):
        read_tsv(path, root)
    with caplog.at_level(logging.WARNING):
        found = read_tsv(path, root, on_bad_row="skip")
    assert (found.images, found.captions) == (["a.jpg", "b.jpg"], [["a dog"], ["a cat"]])
    (bad,) = found.skipped
    assert (bad.line, bad.kind, bad.row) == (3, kind, row)
    assert f"1 of 3 rows skipped: 1 {kind}" in caplog.text


def test_a_header_is_found_on_the_first_line_too_but_a_picture_may_be_called_so(root, table):
    with pytest.raises(TsvError, match=r"table\.tsv:1: a header"):
        read_tsv(table("\ufeffimg_path\tcaption\na.jpg\ta dog\n"), root)
    shutil.copy(root / "a.jpg", root / "image.jpg")
    assert read_tsv(table("image.jpg\tcaption\n"), root).captions == [["caption"]]


def test_the_first_bad_row_is_reported_and_the_others_are_counted(root, table):
    content = "a.jpg\tx\nnone.jpg\tx\na.jpg\t\nnone.jpg\ty\none column\na.jpg\t\n"
    with pytest.raises(TsvError) as error:
        read_tsv(table(content), root)
    assert "table.tsv:2: no file none.jpg" in str(error.value)
    assert "(2 empty caption, 1 missing image, 1 columns besides; on_bad_row=skip" in str(error.value)
    found = read_tsv(table(content), root, on_bad_row="skip")
    assert [(bad.line, bad.kind) for bad in found.skipped] == [
        (2, "missing image"),
        (3, "empty caption"),
        (4, "missing image"),
        (5, "columns"),
        (6, "empty caption"),
    ]


@pytest.mark.parametrize("content", ["", "\n\r\n \n", "\ufeff"])
def test_an_empty_table(root, table, content):
    for mode in ("error", "skip"):
        with pytest.raises(TsvError, match=r"table\.tsv:1: no rows: expected rows img_path<TAB>caption"):
            read_tsv(table(content), root, on_bad_row=mode)


def test_nothing_left(root, table):
    with pytest.raises(TsvError, match="no row is left; skipped were 2 missing image, 1 columns. no file x.jpg"):
        read_tsv(table("x.jpg\ta\ny.jpg\tb\nz\n"), root, on_bad_row="skip")


def test_no_table_a_folder_and_no_root(root, table, tmp_path):
    with pytest.raises(TsvError, match=r"none\.tsv: no such file"):
        read_tsv(tmp_path / "none.tsv", root)
    with pytest.raises(TsvError, match="Is a directory"):
        read_tsv(root, root)
    with pytest.raises(TsvError, match=r"its root .*elsewhere is no folder: set"):
        read_tsv(table("a.jpg\ta\n"), tmp_path / "elsewhere")


def test_images_beside_the_table_rather_than_below_the_root(root, table, tmp_path):
    shutil.copy(root / "a.jpg", tmp_path / "e.jpg")
    with pytest.raises(TsvError, match=f"no file e.jpg in the root .*it is in {tmp_path}, set that as the root"):
        read_tsv(table("e.jpg\ta dog\n"), root)


def test_symbolic_links_inside_the_root_are_followed(root, table, tmp_path):
    outside = tmp_path / "outside.jpg"
    shutil.copy(root / "a.jpg", outside)
    (root / "link.jpg").symlink_to(outside)
    assert read_tsv(table("link.jpg\ta dog\n"), root, verify="decode").images == ["link.jpg"]


@pytest.mark.parametrize("option", ["on_bad_row", "verify"])
def test_choices(root, table, option):
    with pytest.raises(ValueError, match=f"{option}=maybe: choose"):
        read_tsv(table("a.jpg\ta dog\n"), root, **{option: "maybe"})


# --- encodings ---


@pytest.mark.parametrize(
    ("text", "encoding", "name"),
    [
        ("a.jpg\t一只狗在雪地里跑。\n", "gb18030", "GB18030"),
        ("a.jpg\t两个人 and 一只dog\n", "gb18030", "GB18030"),
        ("a.jpg\tun café à la plage\n", "latin-1", "WINDOWS-1252"),
        ("a.jpg\tnaïve, “quoted”\n", "cp1252", "WINDOWS-1252"),
        ("a.jpg\ta dog and 一只狗\n", "utf-16", "UTF-16"),
        ("a.jpg\ta dog runs in the snow\n", "utf-16-le", "UTF-16"),
    ],
)
def test_another_encoding_is_named_with_the_command_that_mends_it(root, table, tmp_path, text, encoding, name):
    path = table(text.encode(encoding))
    with pytest.raises(
        TsvError, match=rf"table\.tsv:1: .*byte.*iconv -f {name} -t UTF-8 '.*table\.tsv' > out"
    ) as error:
        read_tsv(path, root)
    if shutil.which("iconv") and encoding != "utf-16-le":
        command = str(error.value).split("convert it with ")[1]
        subprocess.run(command, shell=True, check=True, cwd=tmp_path)
        assert read_tsv(tmp_path / "out.tsv", root).captions == [[text.strip().split("\t")[1]]]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_line_and_byte_of_a_single_bad_line(root, table, bom):
    content = bom + "a.jpg\tun café\r\nb.jpg\tune idée\r\n".encode() + b"c.jpg\tcaf\xe9\n" + "a.jpg\t狗\n".encode()
    path = table(content)
    offset = content.index(b"\xe9\n")
    with pytest.raises(TsvError, match=rf"tsv:3: byte 0xe9 at offset {offset} of the file, 9 of the line.* write the"):
        read_tsv(path, root)
    found = read_tsv(path, root, on_bad_row="skip")
    assert found.images == ["a.jpg", "b.jpg"]
    (bad,) = found.skipped
    assert (bad.line, bad.kind, bad.row) == (3, "encoding", "c.jpg\tcaf\\xe9")


def test_a_whole_file_in_another_encoding_is_reported_in_linear_time(root, table):
    path = table(("a.jpg\t一只狗\n" * 30_000).encode("gb18030"))
    start = time.perf_counter()
    with pytest.raises(TsvError, match=r"tsv:1: .*GB18030.*29999 encoding besides"):
        read_tsv(path, root)
    assert time.perf_counter() - start < 5


# --- the commands in the messages ---


@pytest.mark.parametrize("content", ["a.jpg\\ta dog\nb.jpg\\ta cat\n", 'a.jpg,"a dog, fast"\nb.jpg,a cat\n'])
def test_the_commands_that_messages_give_work(root, table, tmp_path, content):
    path = table(content)
    with pytest.raises(TsvError) as error:
        read_tsv(path, root)
    command = str(error.value).split("for example with ")[1].split(" > out")[0]
    shutil.copy(path, tmp_path / "in")
    if not command.endswith("< in") and not command.endswith(" in"):
        pytest.fail(command)
    fixed = subprocess.run(command, shell=True, check=True, capture_output=True, cwd=tmp_path).stdout
    found = read_tsv(table(fixed), root)
    assert found.images == ["a.jpg", "b.jpg"] and found.captions[1] == ["a cat"]


# --- looking at images ---


def spoil(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_verify(root, table):
    spoil(root / "b.jpg")
    (root / "c.jpg").write_text("no picture")
    path = table("a.jpg\tx\nb.jpg\tx\nc.jpg\tx\nb.jpg\ty\nnone.jpg\tx\n")
    assert read_tsv(path, root, verify="none").images == ["a.jpg", "b.jpg", "c.jpg", "none.jpg"]
    assert read_tsv(path, root, verify="exists", on_bad_row="skip").images == ["a.jpg", "b.jpg", "c.jpg"]
    found = read_tsv(path, root, verify="decode", on_bad_row="skip")
    assert found.images == ["a.jpg"]
    assert [(bad.line, bad.kind) for bad in found.skipped] == [
        (2, "unreadable image"),
        (3, "unreadable image"),
        (4, "unreadable image"),
        (5, "missing image"),
    ]
    with pytest.raises(TsvError, match=r"table\.tsv:2: .*b\.jpg: damaged or truncated .*download"):
        read_tsv(path, root, verify="decode")


@pytest.fixture
def decoded(monkeypatch):
    """Names of the images that were decoded, as they are."""
    import src.data.tsv as tsv

    names, load = [], tsv.load_image

    def watched(path, **options):
        names.append(path.name)
        return load(path, **options)

    monkeypatch.setattr(tsv, "load_image", watched)
    return names


def test_each_image_is_decoded_once_and_remembered(root, table, tmp_path, decoded):
    path, cache = table("a.jpg\tx\nb.jpg\tx\na.jpg\ty\n"), tmp_path / "cache"
    options = {"verify": "decode", "cache_dir": cache}
    read_tsv(path, root, **options)
    assert sorted(decoded) == ["a.jpg", "b.jpg"]
    read_tsv(path, root, **options)
    assert len(decoded) == 2, "a second call decodes nothing"
    read_tsv(table("a.jpg\tx\nc.jpg\tx\n"), root, **options)
    assert decoded[2:] == ["c.jpg"], "another table of the same root shares what is known"
    read_tsv(path, root, **options)
    assert len(decoded) == 3
    os.utime(root / "a.jpg", (1, 1))
    read_tsv(path, root, **options)
    assert decoded[3:] == ["a.jpg"], "a changed file is looked at again"
    read_tsv(path, root, verify="decode")
    assert len(decoded) == 6, "no cache_dir, nothing remembered"
    assert [file.suffix for file in (cache / "verified").iterdir()] == [".json"]


def test_a_bad_image_is_tried_again(root, table, tmp_path, decoded):
    good = (root / "a.jpg").read_bytes()
    spoil(root / "a.jpg")
    path, options = table("a.jpg\tx\nb.jpg\tx\n"), {"verify": "decode", "cache_dir": tmp_path / "cache"}
    for _ in range(2):
        with pytest.raises(TsvError, match="damaged"):
            read_tsv(path, root, **options)
    (root / "a.jpg").write_bytes(good)
    assert read_tsv(path, root, **options).images == ["a.jpg", "b.jpg"]
    assert decoded.count("a.jpg") == 3 and decoded.count("b.jpg") == 1


def test_what_was_decoded_before_an_interruption_is_remembered(root, table, tmp_path, monkeypatch, decoded):
    import src.data.tsv as tsv

    watched = tsv.load_image

    def interrupted(path, **options):
        if path.name == "c.jpg":
            raise KeyboardInterrupt
        return watched(path, **options)

    path, options = (
        table("a.jpg\tx\nb.jpg\tx\nc.jpg\tx\n"),
        {"verify": "decode", "cache_dir": tmp_path / "cache"},
    )
    with monkeypatch.context() as patch:
        patch.setattr(tsv, "load_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            read_tsv(path, root, **options)
    decoded.clear()
    read_tsv(path, root, **options)
    assert decoded == ["c.jpg"]


@pytest.mark.parametrize("damage", ["{", "[]", "\x00"])
def test_a_damaged_cache_is_made_again(root, table, tmp_path, caplog, decoded, damage):
    path, options = table("a.jpg\tx\n"), {"verify": "decode", "cache_dir": tmp_path / "cache"}
    read_tsv(path, root, **options)
    (file,) = (tmp_path / "cache" / "verified").iterdir()
    file.write_text(damage)
    for _ in range(2):
        assert read_tsv(path, root, **options).images == ["a.jpg"]
    assert len(decoded) == 2 and "is damaged" in caplog.text


# --- skipped.tsv ---


def test_skipped_rows_are_written_with_line_kind_reason_and_the_row(root, table, tmp_path):
    found = read_tsv(table("a.jpg\tx\na.jpg\tx\ty\tz\nnone.jpg\t狗\r\n"), root, on_bad_row="skip")
    path = tmp_path / "new" / "skipped.tsv"
    write_skipped(path, found.skipped)
    write_skipped(path, found.skipped)
    lines = [line.split("\t", 3) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(number, kind, row) for number, kind, _, row in lines] == [
        ("2", "columns", "a.jpg\tx\ty\tz"),
        ("3", "missing image", "none.jpg\t狗"),
    ]
    assert [reason for _, _, reason, _ in lines] == [bad.reason for bad in found.skipped]
    assert [file.name for file in path.parent.iterdir()] == ["skipped.tsv"]


def test_every_reason_fits_its_column(root, table):
    (root / "empty.jpg").touch()
    content = "a.jpg\tx\n" + "".join(row + "\n" for _, row, _ in BAD_ROWS)
    skipped = read_tsv(table(content), root, on_bad_row="skip").skipped
    assert [bad.kind for bad in skipped] == [kind for kind, _, _ in BAD_ROWS]
    assert not any("\t" in bad.reason or "\n" in bad.reason for bad in skipped)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "skipped.tsv"
    write_skipped(path, [BadRow(1, "columns", "reason", "row")])
    with pytest.raises(UnicodeEncodeError):
        write_skipped(path, [BadRow(2, "columns", "reason", "\ud800")])
    assert path.read_text() == "1\tcolumns\treason\trow\n"


# --- splits ---


def captions(names):
    return Captions.of([*names], [[f"{n} one", f"{n} two"] for n in names], [["", n] for n in names])


def test_split_by_image():
    names = [f"{i}.jpg" for i in range(1000)]
    whole = captions(names)
    parts = split_by_image(whole, [0.8, 0.15, 0.05], seed=0)
    assert [len(part) for part in parts] == [800, 150, 50]
    assert sorted(name for part in parts for name in part.images) == sorted(names)
    for part in parts:
        assert part.captions == [[f"{n} one", f"{n} two"] for n in part.images]
        assert part.tags == [["", n] for n in part.images] and part.skipped == []
        assert part.images == [n for n in names if n in set(part.images)], "in the table's order"
    in_test = np.array([int(name[:-4]) for name in parts[2].images])
    assert 350 < in_test.mean() < 650, "taken from all of the table"


def test_a_split_depends_on_names_and_seed_and_not_on_the_order_of_rows():
    names = [f"{i}.jpg" for i in range(100)]
    one = split_by_image(captions(names), [0.7, 0.3], seed=3)
    two = split_by_image(captions(names[::-1]), [0.7, 0.3], seed=3)
    other = split_by_image(captions(names), [0.7, 0.3], seed=4)
    assert [set(p.images) for p in one] == [set(p.images) for p in two]
    assert set(one[0].images) != set(other[0].images)
    # The rule, written out once more, so that no release changes anybody's split.
    from hashlib import sha256

    order = sorted(names, key=lambda name: sha256(b"3\0" + name.encode()).digest())
    assert set(one[0].images) == set(order[:70])


@pytest.mark.parametrize(
    ("count", "fractions", "sizes"),
    [
        (10, [0.9, 0.05, 0.05], [8, 1, 1]),
        (10, [0.8, 0.1, 0.1], [8, 1, 1]),
        (3, [0.98, 0.01, 0.01], [1, 1, 1]),
        (7, [0.5, 0.5], [4, 3]),
        (5, [1.0, 0.0], [5, 0]),
        (10, [1 / 3, 1 / 3, 1 / 3], [4, 3, 3]),
        (10, [0.7, 0.2, 0.1], [7, 2, 1]),
        (1000, [0.1] * 10, [100] * 10),
    ],
)
def test_sizes_of_a_split(count, fractions, sizes):
    names = [f"{i}.jpg" for i in range(count)]
    assert [len(part) for part in split_by_image(captions(names), fractions, seed=0)] == sizes


@pytest.mark.parametrize(
    ("count", "fractions", "message"),
    [
        (10, [0.5, 0.4], "sum to 1"),
        (10, [1.5, -0.5], r"in \[0, 1\]"),
        (10, [], "sum to 1"),
        (10, [float("nan"), 1.0], r"in \[0, 1\]"),
        (2, [0.8, 0.1, 0.1], "2 images cannot be divided into 3 parts"),
    ],
)
def test_splits_that_cannot_be(count, fractions, message):
    with pytest.raises(ValueError, match=message):
        split_by_image(captions([f"{i}.jpg" for i in range(count)]), fractions, seed=0)


# --- speed ---


def test_a_hundred_thousand_rows_are_read_in_a_moment(table, tmp_path):
    rows = (f"images/{i // 5:06}.jpg\tA dog number {i} runs through the tall grass .\n" for i in range(100_000))
    path = table("".join(rows))
    start = time.perf_counter()
    found = read_tsv(path, tmp_path, verify="none")
    assert time.perf_counter() - start < 3, "a tenth of this on an idle machine"
    assert len(found) == 20_000 and all(len(texts) == 5 for texts in found.captions)
