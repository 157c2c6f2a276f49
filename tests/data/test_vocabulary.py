import json

import pytest

from src.data.vocabulary import BOS, EOS, PAD, SPECIALS, UNK, Vocabulary

CAPTIONS = [s.split() for s in ("a dog runs", "a dog sits", "the cat sits", "a bird", "a dog a cat")]
# a 5, dog 3, cat 2, sits 2, bird 1, runs 1, the 1: 15 tokens


def test_order_counts_and_coverage_by_hand():
    vocabulary = Vocabulary.build(CAPTIONS, min_count=2)
    assert vocabulary.words == ["<pad>", "<bos>", "<eos>", "<unk>", "a", "dog", "cat", "sits"]
    assert vocabulary.counts == [0, 0, 0, 3, 5, 3, 2, 2]
    assert len(vocabulary) == 8
    assert vocabulary.coverage == pytest.approx(12 / 15)
    assert vocabulary.summary() == ("vocabulary: 4 words, 80.00% of 15 training tokens; the rarest was seen 2 times")


def test_specials_have_their_ids():
    assert (PAD, BOS, EOS, UNK) == (0, 1, 2, 3)
    assert [SPECIALS[i] for i in (PAD, BOS, EOS, UNK)] == ["<pad>", "<bos>", "<eos>", "<unk>"]


def test_the_order_of_captions_does_not_matter():
    one, two = Vocabulary.build(CAPTIONS, 1), Vocabulary.build([c[::-1] for c in CAPTIONS[::-1]], 1)
    assert one.words == two.words and one.words[-3:] == ["bird", "runs", "the"]


def test_a_maximum_size_keeps_the_most_frequent():
    vocabulary = Vocabulary.build(iter(CAPTIONS), min_count=1, max_size=3)
    assert vocabulary.words[4:] == ["a", "dog", "cat"] and vocabulary.counts[UNK] == 5


def test_encode_and_decode():
    vocabulary = Vocabulary.build(CAPTIONS, min_count=2)
    assert vocabulary.encode(["a", "zebra", "dog"]) == [BOS, 4, UNK, 5, EOS]
    assert vocabulary.encode(["a"], add_bos_eos=False) == [4]
    assert vocabulary.encode([]) == [BOS, EOS]
    assert vocabulary.decode([BOS, 4, UNK, 5, EOS, 6, PAD]) == ["a", "dog"]
    assert vocabulary.decode([]) == [] and vocabulary.decode([4, PAD, 5]) == ["a", "dog"]
    for caption in CAPTIONS[:1]:
        assert vocabulary.decode(vocabulary.encode(caption)) == ["a", "dog"]
    for wrong in (8, -1):
        with pytest.raises(ValueError, match=f"id {wrong}: .* 0 … 7"):
            vocabulary.decode([wrong])


@pytest.mark.parametrize("special", SPECIALS)
def test_a_special_written_out_in_a_caption_is_an_unknown_word(special):
    vocabulary = Vocabulary.build([["a", special]] * 5, min_count=2)
    assert vocabulary.words == [*SPECIALS, "a"]
    assert vocabulary.counts[UNK] == 5 and vocabulary.coverage == 0.5
    assert vocabulary.encode(["a", special]) == [BOS, 4, UNK, EOS]


def test_nothing_left_says_to_lower_the_minimum():
    with pytest.raises(ValueError, match=r"occurs 6 times or more \(.*'a', 5 times\): lower min_count"):
        Vocabulary.build(CAPTIONS, min_count=6)
    with pytest.raises(ValueError, match="no words: is the tokenizer"):
        Vocabulary.build([[], []])
    with pytest.raises(ValueError, match="lower min_count"):
        Vocabulary.build([["<unk>"] * 9], min_count=5)


@pytest.mark.parametrize("limits", [{"min_count": 0}, {"max_size": 0}, {"max_size": -1}])
def test_limits_below_one(limits):
    with pytest.raises(ValueError, match="1 or more"):
        Vocabulary.build(CAPTIONS, **limits)


def test_saved_and_loaded(tmp_path):
    vocabulary = Vocabulary.build([["狗", "café", '"', "狗"]], min_count=1)
    path = tmp_path / "vocabulary.json"
    vocabulary.save(path)
    vocabulary.save(path)
    for copy in (Vocabulary.load(path), Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict())))):
        assert (copy.words, copy.counts, copy.index) == (
            vocabulary.words,
            vocabulary.counts,
            vocabulary.index,
        )
    assert [p.name for p in tmp_path.iterdir()] == ["vocabulary.json"]
    assert "狗" in path.read_text(encoding="utf-8")


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "vocabulary.json"
    Vocabulary.build(CAPTIONS, 1).save(path)
    before = path.read_bytes()
    broken = Vocabulary.build(CAPTIONS, 1)
    broken.words[4] = "\ud800"  # cannot be encoded
    with pytest.raises(UnicodeEncodeError):
        broken.save(path)
    assert path.read_bytes() == before


def edited(change):
    plain = Vocabulary.build(CAPTIONS, 1).to_dict()
    plain = {key: list(value) for key, value in plain.items()}
    change(plain)
    return json.dumps(plain)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (edited(lambda p: None)[:40], "line 1 column"),  # cut off
        ("", "line 1 column 1"),
        ("[]", "not a list"),
        (edited(lambda p: p.pop("words")), "'words' is missing"),
        (edited(lambda p: p.update(counts=3)), "'counts' is missing, or no list"),
        (edited(lambda p: p["words"].pop()), "10 words, but 11 counts"),
        (edited(lambda p: p["words"].__setitem__(5, "a")), "'a' is there more than once"),
        (edited(lambda p: p["words"].__setitem__(5, "<eos>")), "'<eos>' is there more than once"),
        (edited(lambda p: p["words"].__setitem__(5, 7)), "word 5 is 7"),
        (edited(lambda p: p["words"].__setitem__(5, "")), "word 5 is ''"),
        (edited(lambda p: p["words"].__setitem__(0, "pad")), "first words are"),
        (edited(lambda p: p["counts"].__setitem__(5, -1)), "count 5 .* is -1"),
        (edited(lambda p: p["counts"].__setitem__(5, True)), "count 5 .* is True"),
        (edited(lambda p: p["counts"].__setitem__(5, 1.5)), "count 5 .* is 1.5"),
        (json.dumps({"words": list(SPECIALS), "counts": [0] * 4}), "no word but the specials"),
    ],
)
def test_a_damaged_file_is_named_with_its_fault(tmp_path, text, fault):
    path = tmp_path / "vocabulary.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"vocabulary\.json: no vocabulary: .*{fault}.*; copy or train"):
        Vocabulary.load(path)


def test_not_utf8(tmp_path):
    (tmp_path / "v.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"v\.json: no vocabulary"):
        Vocabulary.load(tmp_path / "v.json")
    with pytest.raises(FileNotFoundError):
        Vocabulary.load(tmp_path / "none.json")


def test_control_tokens_are_given_and_never_said(tmp_path):
    vocabulary = Vocabulary.build(CAPTIONS, 2, controls={"<zh>": 3, "<length=2>": 2})
    assert vocabulary.words[4:] == ["a", "dog", "cat", "sits", "<zh>", "<length=2>"]
    assert vocabulary.counts[4:] == [5, 3, 2, 2, 3, 2]
    assert vocabulary.control_index == {"<zh>": 8, "<length=2>": 9} and "<zh>" not in vocabulary.index
    assert vocabulary.coverage == pytest.approx(12 / 15), "of words"
    assert vocabulary.summary() == (
        "vocabulary: 4 words, 80.00% of 15 training tokens; the rarest was seen 2 times; 2 control tokens"
    )
    assert vocabulary.decode([BOS, 8, 9, 4, EOS]) == ["a"] and vocabulary.encode(["<zh>"]) == [BOS, UNK, EOS]
    vocabulary.save(tmp_path / "v.json")
    loaded = Vocabulary.load(tmp_path / "v.json")
    assert loaded.to_dict() == vocabulary.to_dict() and loaded.controls == ["<zh>", "<length=2>"]
    assert "controls" not in Vocabulary.build(CAPTIONS, 2).to_dict(), "as older files are"


def test_control_tokens_survive_an_extension_and_new_ones_come():
    old = Vocabulary.build(CAPTIONS, 2, controls={"<zh>": 3, "<length=2>": 2})
    for new in (True, False):
        more = old.extended([["a", "fox", "<zh>"]], 1, new=new, controls={"<length=2>": 4, "<en>": 1})
        assert more.words == [*old.words, *(["fox"] if new else []), "<en>"]
        assert more.controls == ["<zh>", "<length=2>", "<en>"]
        assert [more.counts[i] for i in more.control_index.values()] == [3, 6, 1]
        assert more.counts[UNK] == old.counts[UNK] + (1 if new else 2), "<zh> written out is an unknown word"
    assert old.extended([["fox"]], 1, max_size=5).words == [*old.words, "fox"], (
        "a limit of words, not of control tokens"
    )


@pytest.mark.parametrize(
    ("controls", "fault"), [(["<zh>"], "'<zh>' is not among the words"), ("zh", "'controls' is no list")]
)
def test_damaged_controls(tmp_path, controls, fault):
    plain = Vocabulary.build(CAPTIONS, 1).to_dict() | {"controls": controls}
    (tmp_path / "v.json").write_text(json.dumps(plain), encoding="utf-8")
    with pytest.raises(ValueError, match=fault):
        Vocabulary.load(tmp_path / "v.json")
