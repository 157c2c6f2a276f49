"""Each target of `python -m fuzz` briefly, with the same inputs every time; and text by hypothesis' own grammar."""

import json
import random
import resource
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.__main__ import HEAD, died, main, table
from fuzz.engine import Run
from fuzz.names import GUIDED, NAMES, OTHERS
from fuzz.targets import TARGETS
from src.data.tokenizer import CharacterTokenizer, EnglishTokenizer, MixedTokenizer
from src.data.tsv import read_rows
from src.data.vocabulary import Vocabulary

BRIEFLY = settings(
    max_examples=60,
    derandomize=True,  # the same in every run
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SEVERAL = {"bundle": 20, "service": 30, "schema": 0, "images": 60, "checkpoint": 20}
"""Inputs of those that take long; of the others 150. schemathesis draws its own for minutes: `make fuzz`."""


@pytest.mark.parametrize("name", [name for name in NAMES if SEVERAL.get(name, 1)])
def test_damaged_inputs_have_clear_answers(name, tmp_path):
    target, rng = TARGETS[name](), random.Random(1)
    run = Run(target, tmp_path, limits=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in target.seeds:
        run.feed(data)
    for _ in range(SEVERAL.get(name, 150)):
        run.feed(target.mutate(rng, target.seeds))
    assert not run.findings, run.findings
    assert run.accepted, "no seed is right"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 << 20, "KiB"


def test_what_goes_wrong_is_kept_with_how_to_give_it_again(tmp_path):
    class Wrong:
        name, rightly = "wrong", (ValueError,)

        @staticmethod
        def run(data: bytes) -> bool:
            if data == b"3":
                raise ValueError("its right answer")
            return bool(1 // (len(data) - 2))

    run = Run(Wrong, tmp_path, limits=False)
    for data in (b"", b"3", b"ab", b"cd", b"a long one"):
        run.feed(data)
    (found,) = run.findings.values()
    assert found["what"].startswith("ZeroDivisionError at ") and found["times"] == 2
    file = found["replay"].split()[-1]
    assert Path(file).read_bytes() == b"ab" and "--replay" in found["replay"]
    note = run.note("mutation", 0, 6)
    assert (note["inputs"], note["accepted"]) == (5, 1)
    assert "| wrong | mutation | 5 of 6 | 1 |" in table([{**note, "edges": None}])

    file, log = tmp_path / "note.json", tmp_path / "wrong.log"  # and then libFuzzer ends its process
    file.write_text(json.dumps(note))
    log.write_text("#1 cov: 3\n==12== ERROR: libFuzzer: fuzz target exited\nSUMMARY: x\n")
    died(file, 77, log)
    told = json.loads(file.read_text())["findings"]
    assert [each["what"] for each in told] == [found["what"], "its process ended with 77"]
    assert "ERROR: libFuzzer: fuzz target exited" in told[1]["says"] and str(log) in told[1]["says"]
    assert Path(told[1]["replay"].split()[-1]).read_bytes() == b"a long one"


def test_the_command(tmp_path, capsys):
    assert {*GUIDED, *OTHERS} == TARGETS.keys() == {*NAMES}
    with pytest.raises(SystemExit):
        main(["nothing"])
    assert "there are tsv, captions" in capsys.readouterr().err
    assert main(["--table", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "record.json").exists()
    assert capsys.readouterr().out.splitlines()[0] == HEAD
    told = Path("docs/security.md").read_text(encoding="utf-8").split(f"{HEAD}\n")[1].splitlines()[1:]
    assert [row.split(" | ")[0] for row in told[: len(NAMES)]] == [f"| {name}" for name in NAMES], "make fuzz anew"


CELLS = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\t\r\n"), min_size=1, max_size=20)
WORDS = st.lists(st.sampled_from(["a", "dog", "'s", "n't", "'ll", "狗", "5:30", "u.s.", "t-shirt", "ü", "x_y", "の"]))


@BRIEFLY
@given(rows=st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=5), end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_each_line_of_a_table_is_a_row_a_bad_one_or_blank(rows, end, tmp_path):
    file = tmp_path / "a.tsv"
    file.write_text("".join("\t".join(row) + end for row in rows), encoding="utf-8", newline="")
    read, bad = read_rows(file)
    blank = sum(not "\t".join(row).removeprefix("\ufeff").strip() for row in rows)
    assert len(read) + len(bad) + blank == len(rows)


@pytest.mark.parametrize("tokenizer", [EnglishTokenizer(), CharacterTokenizer(), MixedTokenizer()])
@BRIEFLY
@given(text=st.one_of(st.text(max_size=40), WORDS.map(" ".join), WORDS.map("".join)))
def test_joined_and_divided_again_captions_are_the_same(tokenizer, text):
    tokens = tokenizer.tokens(text)
    assert tokenizer.tokens(tokenizer.join(tokens)) == tokens
    assert tokens or not set(text.lower()) & set(string.ascii_lowercase + string.digits)


@pytest.mark.parametrize(
    "text, words",
    [
        ("a men's_ room", "a men 's room"),
        ("'s_x", "'s x"),
        ("the dog'sn't", "the dog 's n't"),
        ("isn'tn't", "is n't n't"),
        ("u.s. n't", "u.s. n't"),
        ("o'clock's", "o'clock 's"),
        ("n'tx rock'n'roll", "n'tx rock'n'roll"),
    ],
)
def test_clitics_beside_anything_are_divided_as_they_are_when_joined(text, words):
    for tokenizer in (EnglishTokenizer(), MixedTokenizer()):
        tokens = tokenizer.tokens(text)
        assert tokens == words.split() and tokenizer.tokens(tokenizer.join(tokens)) == tokens


def test_nt_is_glued_to_no_other_clitic():
    english = EnglishTokenizer()
    tokens = english.tokens("the dog isn't n't")
    assert tokens == ["the", "dog", "is", "n't", "n't"] and english.tokens(english.join(tokens)) == tokens
    assert english.join(["they", "'ll", "'ve"]) == "they'll've"


@pytest.mark.parametrize("image", ["\ufeff", " \ufeffa.jpg", "./ a.jpg", "x/.. /a.jpg /"])
def test_a_name_that_would_be_read_otherwise_when_written_is_a_bad_row(image, tmp_path):
    file = tmp_path / "a.tsv"
    file.write_text(f"first.jpg\tx\n{image}\ta dog\n", encoding="utf-8")
    rows, bad = read_rows(file)
    again = tmp_path / "b.tsv"
    again.write_text("".join(f"{row[1]}\t{row[2]}\n" for row in rows), encoding="utf-8")
    assert [row[1:] for row in read_rows(again)[0]] == [row[1:] for row in rows]
    assert len(rows) + len(bad) == 2


@BRIEFLY
@given(words=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=8, unique=True), controls=st.booleans())
def test_a_vocabulary_decodes_what_it_encodes(words, controls):
    found = Vocabulary.build([words, ["a"]], min_count=1, controls={"<zh>": 1} if controls else None)
    known = [word for word in words if word in found.index]
    assert found.decode(found.encode(words)) == known
    assert Vocabulary.from_dict(found.to_dict()).to_dict() == found.to_dict()
