import pytest

from src.data.tsv import read_tsv
from src.prepare import __main__ as prepare


@pytest.fixture
def tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "en.tsv").write_text("a.jpg\tA dog.\nb.jpg\tA cat.\tfunny\na.jpg\tIt runs.\n", encoding="utf-8")
    (tmp_path / "zh.tsv").write_text("a.jpg\t一只狗。\n", encoding="utf-8")
    return tmp_path


def test_tables_follow_one_another_with_their_tags(tables, capsys):
    assert prepare.main(["tagged", "both.tsv", "en=en.tsv", "language=zh=zh.tsv"]) == 0
    assert (tables / "both.tsv").read_text(encoding="utf-8") == (
        "a.jpg\tA dog.\ten\na.jpg\tIt runs.\ten\nb.jpg\tA cat.\ten,funny\na.jpg\t一只狗。\tlanguage=zh\n"
    )
    read = read_tsv(tables / "both.tsv", tables, verify="none")
    assert read.images == ["a.jpg", "b.jpg"] and read.tags == [["en", "en", "language=zh"], ["en,funny"]]
    said = capsys.readouterr().out
    assert "both.tsv: 4 captions" in said and "2 images" in said


def test_another_table_is_replaced_on_request_only(tables, capsys):
    call = ["tagged", "both.tsv", "en=en.tsv"]
    assert prepare.main(call) == prepare.main(call) == 0
    kept = (tables / "both.tsv").read_bytes()
    assert prepare.main(["tagged", "both.tsv", "zh=zh.tsv"]) == 1
    assert "both.tsv is there with other rows" in capsys.readouterr().err and (tables / "both.tsv").read_bytes() == kept
    assert prepare.main(["tagged", "both.tsv", "zh=zh.tsv", "--overwrite"]) == 0
    assert (tables / "both.tsv").read_bytes() != kept


@pytest.mark.parametrize(
    ("tables_given", "message"),
    [
        (["en.tsv"], "en.tsv: TAG=FILE.tsv is wanted"),
        (["eos=en.tsv"], "the tag 'eos'"),
        (["en=none.tsv"], "none.tsv: no such file"),
        (["en=bad.tsv"], "bad.tsv:2: one column"),
    ],
)
def test_what_cannot_be_is_named(tables, capsys, tables_given, message):
    (tables / "bad.tsv").write_text("a.jpg\tA dog.\nnothing\n", encoding="utf-8")
    assert prepare.main(["tagged", "both.tsv", *tables_given]) == 1
    assert message in capsys.readouterr().err and not (tables / "both.tsv").exists()
