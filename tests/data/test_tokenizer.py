import json
import os
import sys
from pathlib import Path

import pytest

from src.data.tokenizer import CharacterTokenizer, EnglishTokenizer, MixedTokenizer, RJiebaTokenizer
from src.metrics.java import find_java
from src.metrics.tokenize import character_tokenize, ptb_tokenize

ENGLISH, CHARACTER = EnglishTokenizer(), CharacterTokenizer()
FIXTURE = Path(__file__).parent / "captions_fixture.json"
FLICKR8K = Path(os.environ.get("FLICKR8K", "no such folder"))
PLAIN = [
    "A black dog is running after a white dog in the snow .",
    "The dog's owner isn't here; she's at the boys' school!",
    "A man (in red), and a woman: both smiling...",
    "He says \"hello\" - they've waved, I'd have too; we're sure you'll see, won't you?",
    "At 5:30 a.m. a U.S. flag costs $1,000 or 1/2 & 50 % more",
    "A t-shirt from the man/woman store, 3 o'clock",
    "Mr. Smith's dog can't swim",
    "# 7 jumps",
]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A Dog", "a dog"),
        ("the dog's ball", "the dog 's ball"),
        ("it isn't, they can't, we won't", "it is n't they ca n't we wo n't"),
        ("I'm sure they've said he'd say she'll", "i 'm sure they 've said he 'd say she 'll"),
        ("the dogs' toys", "the dogs toys"),
        ("the dog 's ball is n't red", "the dog 's ball is n't red"),  # tokenized already
        ("a ‘curly’ “quote”: it’s", "a curly quote it 's"),
        ('Hi! (a cat?) - [yes]; well... no — {x} "y" `z`', "hi a cat yes well no x y z"),
        ("t-shirt man/woman o'clock", "t-shirt man/woman o'clock"),
        ("1,000 at 5:30, 1/2 or 2.5.", "1,000 at 5:30 1/2 or 2.5"),
        ("in the U.S. at 5 a.m. with Mr. X.", "in the u.s. at 5 a.m. with mr. x"),
        ("$5 & 50%", "$ 5 & 50 %"),
        ("１２ ＡＢ ﬁve cafe\u0301", "12 ab five café"),  # full-width, ligature, decomposed accent
        ("a 🐶 dog", "a dog"),
        ("<unk> <eos>", "unk eos"),
        ("  \n ...  ", ""),
    ],
)
def test_english_words(text, words):
    assert ENGLISH.tokens(text) == words.split()


def test_english_sentences():
    assert ENGLISH.join(["the", "dog", "'s", "ball", "is", "n't", "red"]) == "the dog's ball isn't red"
    assert ENGLISH.join(["n't"]) == "n't" and ENGLISH.join([]) == ""
    assert ENGLISH.join(["they", "'ll", "'ve"]) == "they'll've"
    assert ENGLISH.join(["a", "'snow"]) == "a 'snow"


def fixture_captions():
    sets = json.loads(FIXTURE.read_text(encoding="utf-8"))
    return [text for entry in sets.values() for text in (entry["candidate"], *entry["references"])]


def test_words_survive_their_sentence():
    captions = fixture_captions() + PLAIN
    assert len(captions) > 100
    for text in captions:
        for tokenizer in (ENGLISH, CHARACTER):
            tokens = tokenizer.tokens(text)
            assert tokenizer.tokens(tokenizer.join(tokens)) == tokens


@pytest.mark.skipif(find_java() is None, reason="no Java")
def test_plain_english_is_what_evaluation_makes_of_it():
    (scored,) = ptb_tokenize({"x": PLAIN}).values()
    for text, expected in zip(PLAIN, scored, strict=True):
        kept = [word for word in expected.split() if word not in ("-lrb-", "-rrb-")]
        assert ENGLISH.tokens(text) == kept


@pytest.mark.flickr8k
@pytest.mark.skipif(find_java() is None or not FLICKR8K.is_dir(), reason="no Java, or no FLICKR8K")
def test_agreement_with_evaluation_on_flickr8k():
    captions = [line.split("\t")[1] for line in (FLICKR8K / "val.tsv").read_text("utf-8").splitlines()]
    (scored,) = ptb_tokenize({"x": captions}).values()
    different = [a for a, b in zip(captions, scored, strict=True) if " ".join(ENGLISH.tokens(a)) != b]
    assert len(captions) == 5000 and len(different) <= 10, different


@pytest.mark.parametrize(
    ("text", "words", "sentence"),
    [
        ("一只狗在雪地里跑。", "一 只 狗 在 雪 地 里 跑", "一只狗在雪地里跑"),
        ("穿T恤的男人，看iPhone 15！", "穿 t 恤 的 男 人 看 iphone 15", "穿t恤的男人看iphone 15"),
        ("两个ＡＢＣ　１２", "两 个 abc 12", "两个abc 12"),
        ("3只狗和1,000人", "3 只 狗 和 1,000 人", "3只狗和1,000人"),
        ("a big dog", "a big dog", "a big dog"),
        ("t-shirt it’s", "t-shirt it's", "t-shirt it's"),
        ("「犬」が々〇", "犬 が 々 〇", "犬が々〇"),
        ("𠀀是字", "𠀀 是 字", "𠀀是字"),  # beyond the basic plane
        ("。，！ 🐶", "", ""),
    ],
)
def test_characters(text, words, sentence):
    tokens = CHARACTER.tokens(text)
    assert tokens == words.split()
    assert CHARACTER.join(tokens) == sentence
    assert CHARACTER.tokens(sentence) == tokens


def test_characters_are_what_evaluation_makes_of_them():
    captions = ["一只Dog，跑了3.5米！", "两个ＡＢＣ　１２", "t-shirt 恤", *fixture_captions()]
    (scored,) = character_tokenize({"x": captions}).values()
    assert [" ".join(CHARACTER.tokens(text)) for text in captions] == [s.replace("’", "'") for s in scored]


def test_names():
    assert (ENGLISH.name, ENGLISH.evaluation) == ("english", "ptb")
    assert (CHARACTER.name, CHARACTER.evaluation) == ("character", "character")
    assert (MIXED.name, MIXED.evaluation) == ("mixed", "script")
    assert (RJIEBA.name, RJIEBA.evaluation) == ("rjieba", "character")


MIXED, RJIEBA = MixedTokenizer(), RJiebaTokenizer()
CHINESE = ["一只狗在雪地里跑。", "两个孩子，在操场上玩！", "「犬」が々〇", "𠀀是字"]


def test_mixed_is_english_on_english_and_character_on_chinese():
    for text in PLAIN:
        assert MIXED.tokens(text) == ENGLISH.tokens(text)
        assert MIXED.join(MIXED.tokens(text)) == ENGLISH.join(ENGLISH.tokens(text))
    for text in CHINESE:
        assert MIXED.tokens(text) == CHARACTER.tokens(text)
        assert MIXED.join(MIXED.tokens(text)) == CHARACTER.join(CHARACTER.tokens(text))


@pytest.mark.parametrize(
    ("text", "words", "sentence"),
    [
        ("穿T恤的男人，看iPhone 15！", "穿 t 恤 的 男 人 看 iphone 15", "穿t恤的男人看iphone 15"),
        ("The dog's name is 旺财, isn't it?", "the dog 's name is 旺 财 is n't it", "the dog's name is旺财isn't it"),
        ("3只狗 at 5:30 a.m.在跑", "3 只 狗 at 5:30 a.m. 在 跑", "3只狗at 5:30 a.m.在跑"),
        ("狗's t-shirt", "狗 's t-shirt", "狗's t-shirt"),
    ],
)
def test_mixed_sentences(text, words, sentence):
    assert MIXED.tokens(text) == words.split()
    assert MIXED.join(words.split()) == sentence


def test_mixed_words_survive_their_sentence():
    captions = [*fixture_captions(), *PLAIN, *CHINESE]
    captions += [a + b for a in PLAIN for b in CHINESE] + [b + a for a in PLAIN for b in CHINESE]
    for text in captions:
        tokens = MIXED.tokens(text)
        assert MIXED.tokens(MIXED.join(tokens)) == tokens


def test_rjieba_divides_words_of_the_same_characters():
    assert " ".join(RJIEBA.tokens("一只棕色的狗，在雪地里奔跑。")) == "一只 棕色 的 狗 在 雪地 里 奔跑"
    for text in [*CHINESE, *fixture_captions(), "穿T恤的男人，看iPhone 15！"]:
        words = RJIEBA.tokens(text)
        assert CHARACTER.tokens(RJIEBA.join(words)) == CHARACTER.tokens(text), "and so the same scores"
        assert RJIEBA.join(RJIEBA.tokens(RJIEBA.join(words))) == RJIEBA.join(words)
    assert RJIEBA.tokens("a dog is here") == ["a", "dog", "is", "here"]


def test_rjieba_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rjieba", None)
    with pytest.raises(ImportError, match="pip install rjieba"):
        RJiebaTokenizer().tokens("狗")
