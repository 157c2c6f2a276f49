from collections import Counter

import numpy as np
import pytest
import torch

from src.data.control import (
    Control,
    ControlError,
    asked,
    asked_length,
    lengths,
    nearest_length,
    quantile,
    tag_tokens,
    with_tags,
)
from src.data.module import CaptionData, Item
from src.data.tokenizer import CharacterTokenizer, EnglishTokenizer, MixedTokenizer
from src.data.transforms import Augmentation, Preprocess
from src.data.tsv import Captions
from src.data.vocabulary import BOS, EOS, PAD, UNK, Vocabulary
from src.model import build
from src.objectives import CrossEntropy, Variational
from tests.conftest import random_features, tiny_config

ROWS = """images/00.png\ta red square\ten
images/00.png\ta square that is red\tdomain=news, en
images/00.png\t红\tzh
images/01.png\tblue
"""


def data_of(shapes, tmp_path, control, rows=ROWS, **options):
    if not (tmp_path / "images").exists():
        (tmp_path / "images").symlink_to(shapes / "images")
    (tmp_path / "t.tsv").write_text(rows, encoding="utf-8")
    options = {"tokenizer": MixedTokenizer(), "preprocess": Preprocess(8), **options}
    return CaptionData(tmp_path, train="t.tsv", min_count=1, control=control, **options)


def said(data, batch, b, q):
    return " ".join(data.vocabulary.words[i] for i in batch.tokens[b, q].tolist())


# ---------------------------------------------------------------- training


def test_tags_as_they_are_written():
    assert tag_tokens("zh") == ["<zh>"]
    assert (
        tag_tokens("style=funny, domain=news")
        == tag_tokens("domain=news style=funny")
        == tag_tokens(["domain=news", "style=funny", "domain=news"])
    )
    assert tag_tokens("style=funny，domain=news") == ["<domain=news>", "<style=funny>"]
    assert tag_tokens("") == tag_tokens(" , ") == []
    for wrong in ("eos", "length=3", "<zh>", "a=b=c", "=zh", "zh="):
        with pytest.raises(ControlError, match="a word or key=word is wanted"):
            tag_tokens(wrong)


@pytest.mark.parametrize("draw", [None, 5])
def test_layout_and_prefix_by_hand(shapes, tmp_path, draw):
    """Without dropout training items (which have a draw) are given what evaluation's are; tags come before the length,
    and the longest caption with its tokens is first."""
    data = data_of(shapes, tmp_path, Control(length=True, tags=True, dropout=0.0))
    assert data.vocabulary.controls == ["<domain=news>", "<en>", "<zh>", *(f"<length={n}>" for n in (1, 3, 5))]
    assert [data.vocabulary.counts[i] for i in data.vocabulary.control_index.values()] == [1, 2, 1, 2, 1, 1]
    batch = data.images("train")[[Item(0, [2, 0, 1], draw), Item(1, [0], draw)]]
    assert said(data, batch, 0, 0) == "<bos> <domain=news> <en> <length=5> a square that is red <eos>"
    assert said(data, batch, 0, 1) == "<bos> <en> <length=3> a red square <eos> <pad> <pad> <pad>"
    assert said(data, batch, 0, 2) == "<bos> <zh> <length=1> 红 <eos>" + 5 * " <pad>"
    assert said(data, batch, 1, 0) == "<bos> <length=1> blue <eos>" + 6 * " <pad>"
    assert batch.prefix.tolist() == [[4, 3, 3], [2, 1, 1]]
    assert batch.mask.sum(-1).tolist() == [[10, 7, 5], [4, 0, 0]]
    assert data.vocabulary.decode(batch.tokens[0, 1].tolist()) == ["a", "red", "square"]


def test_each_kind_alone_and_none(shapes, tmp_path):
    for control, first in [(Control(length=True), "<length=3>"), (Control(tags=True), "<en>"), (None, "a")]:
        data = data_of(shapes, tmp_path, control)
        batch = data.images("train")[[Item(0, [0])]]
        assert said(data, batch, 0, 0).split()[1] == first
        assert batch.prefix.tolist() == [[1 if control is None else 2]]


def test_the_length_is_of_the_words_that_are_left(shapes, tmp_path):
    rows = "images/00.png\t" + "a " * 20 + "\nimages/01.png\t一只dog跑\n"
    data = data_of(shapes, tmp_path, Control(length=True), rows, max_tokens=7)
    assert list(lengths(data.vocabulary)) == [4, 7]
    data = data_of(shapes, tmp_path, Control(length=True), rows, tokenizer=EnglishTokenizer())
    assert list(lengths(data.vocabulary)) == [1, 20], "as this tokenizer counts"


def test_draws_leave_out_their_share_and_repeat(shapes, tmp_path):
    control = Control(length=True, tags=True, dropout=0.2)
    split = data_of(shapes, tmp_path, control).images("train")
    items = [Item(0, [1], draw) for draw in range(2000)]
    first, again = split[items], split[items]
    assert torch.equal(first.tokens, again.tokens) and torch.equal(first.prefix, again.prefix)
    # 0.2 lose all; of another 0.2 each of three tokens stays by a coin: 1/8, 3/8, 3/8, 1/8
    shares = np.bincount(first.prefix.flatten().numpy(), minlength=5)[1:] / 2000
    assert shares == pytest.approx([0.2 + 0.2 / 8, 0.2 * 3 / 8, 0.2 * 3 / 8, 0.6 + 0.2 / 8], abs=0.03)
    words = [split.ids[word] for word in split.words.stream[slice(*split.words.offsets[1:3])]]
    for row, prefix in zip(first.tokens[:, 0], first.prefix[:, 0].tolist(), strict=True):
        kept = row.tolist()
        assert kept[0] == BOS and kept[prefix:].count(EOS) == 1
        assert kept[prefix : kept.index(EOS)] == words
        assert kept[kept.index(EOS) + 1 :] == [PAD] * (first.tokens.size(-1) - 1 - kept.index(EOS))
    assert (split[[Item(0, [1], None)] * 50].prefix == 4).all(), "nothing is left out where nothing is drawn"


def test_nearly_all_is_left_out_near_one(shapes, tmp_path):
    split = data_of(shapes, tmp_path, Control(length=True, dropout=0.999)).images("train")
    assert (split[[Item(0, [0, 1, 2], draw) for draw in range(100)]].prefix == 1).float().mean() > 0.97
    for share in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"control\.dropout"):
            Control(length=True, dropout=share)


def test_a_captions_tokens_go_with_its_mirror_image(shapes, tmp_path):
    data = data_of(
        shapes,
        tmp_path,
        Control(length=True, tags=True, dropout=0.0),
        "images/00.png\ta dog on the left\tx\nimages/01.png\ta cat on the right\ty\n",
        preprocess=Preprocess(8, augment=Augmentation(1, "swap", 1, 0, 0, 0, 0, 0)),
    )
    batch = data.images("train")[[Item(0, [0], 1)]]
    assert said(data, batch, 0, 0) == "<bos> <x> <length=5> a dog on the right <eos>"


def test_the_loss_does_not_predict_controls(shapes, tmp_path):
    data = data_of(shapes, tmp_path, Control(length=True, tags=True, dropout=0.0))
    model = build(tiny_config(), data.vocabulary).eval()
    assert model.decoder.controls == list(data.vocabulary.control_index.values())
    batch = data.images("train")[[Item(0, [0, 1, 2]), Item(1, [0])]]._replace(images=random_features(2))
    loss = CrossEntropy(label_smoothing=0.0)(model, batch)
    assert int(loss.count) == (3 + 5 + 1) + 3 + (1 + 1), "words and end tokens"
    log_probs = (
        model.decoder.logits(
            model.decoder(model.decoder.embed(batch.tokens[..., :-1]), model.memory(batch.images)).hidden
        )
        .log_softmax(-1)
        .detach()
    )
    by_hand = 0.0
    for b, q in [(0, 0), (0, 1), (0, 2), (1, 0)]:
        for t in range(int(batch.prefix[b, q]), int(batch.mask[b, q].sum())):
            by_hand -= float(log_probs[b, q, t - 1, batch.tokens[b, q, t]])
    assert float(loss.total.detach()) == pytest.approx(by_hand, rel=1e-4)


def test_a_latent_variables_loss_does_not_either(shapes, tmp_path):
    data = data_of(shapes, tmp_path, Control(length=True, tags=True, dropout=0.0))
    latent = {"_target_": "src.decoders.GaussianLatent", "size": 4, "hidden": 8}
    model, objective = build({**tiny_config(), "latent": latent}, data.vocabulary), Variational(hidden=8)
    objective.begin(model)
    batch = data.images("train")[[Item(0, [0, 1, 2]), Item(1, [0])]]._replace(images=random_features(2))
    assert int(objective(model, batch).count) == (3 + 5 + 1) + 3 + (1 + 1)


def test_control_tokens_written_out_in_captions_are_words_of_the_tokenizer():
    vocabulary = Vocabulary.build([["a", "<zh>", "<length=3>"]] * 3, 1, controls={"<zh>": 2, "<length=3>": 1})
    assert vocabulary.words[4:] == ["a", "<zh>", "<length=3>"] and vocabulary.counts[UNK] == 6
    assert vocabulary.encode(["<zh>", "a"], add_bos_eos=False) == [UNK, 4]
    for tokenizer in (EnglishTokenizer(), CharacterTokenizer(), MixedTokenizer()):
        assert not set(tokenizer.tokens("<length=12> <zh> <domain=news>")) & {"<length=12>", "<zh>", "<domain=news>"}


def test_tags_that_cannot_be_are_named_with_their_row(shapes, tmp_path):
    with pytest.raises(ControlError, match=r"t\.tsv: a row of images/01\.png: the tag 'eos'"):
        data_of(shapes, tmp_path, Control(tags=True), "images/00.png\ta\tx\nimages/01.png\tb\teos\n")
    data_of(shapes, tmp_path, Control(length=True), "images/00.png\ta\teos\n")  # where they are not read
    with pytest.raises(ControlError, match="no training caption has a tag; write them into a third column"):
        data_of(shapes, tmp_path, Control(tags=True), "images/00.png\ta\n")


def test_captions_of_a_table_without_tags_have_the_default(shapes, tmp_path):
    plain = "images/00.png\ta\nimages/00.png\tb\nimages/01.png\tc\n"
    data = data_of(shapes, tmp_path, Control(tags=True, dropout=0.0, default="en, x=y"), plain)
    assert data.vocabulary.controls == ["<en>", "<x=y>"]
    assert said(data, data.images("train")[[Item(0, [1])]], 0, 0) == "<bos> <en> <x=y> b <eos>"
    data.restrict("train", ["<en>"])
    assert len(data.tables["train"].texts) == 3
    mixed = data_of(shapes, tmp_path, Control(tags=True, dropout=0.0, default="en"), plain + "images/02.png\td\tzh\n")
    assert mixed.vocabulary.controls == ["<zh>"], "where some have tags, the others have none"
    tagged = data_of(shapes, tmp_path, Control(tags=True, default="en"), "images/02.png\td\tzh\n")
    assert tagged.vocabulary.controls == ["<zh>"], "where all have tags, they keep them"


def test_where_training_captions_have_tags_a_table_without_is_of_none(shapes, tmp_path):
    (tmp_path / "val.tsv").write_text("images/00.png\ta\n", encoding="utf-8")
    control = Control(tags=True, default="en")
    data_of(shapes, tmp_path, control, "images/00.png\ta\n", val="val.tsv").restrict("val", ["<en>"])
    data = data_of(shapes, tmp_path, control, "images/00.png\ta\ten\n", val="val.tsv")
    with pytest.raises(ControlError, match="no row carries en: no row has tags"):
        data.restrict("val", ["<en>"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "nothing is given; set one, or control=null"),
        ({"length": True, "validate": "zh"}, "control.validate=zh: control.tags=false reads none"),
        ({"length": True, "default": "zh"}, "control.default=zh: control.tags=false reads none"),
        ({"tags": True, "validate": "eos"}, "the tag 'eos'"),
    ],
)
def test_controls_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        Control(**fields)


# ---------------------------------------------------------------- rows by tag


def test_rows_that_carry_all_tags():
    table = Captions.of(["a", "b", "c"], [["1", "2"], ["3"], ["4"]], [["en", "en, zh"], ["zh"], [""]])
    assert with_tags(table, ["<zh>"]) == Captions.of(["a", "b"], [["2"], ["3"]], [["en, zh"], ["zh"]])
    assert with_tags(table, ["<en>", "<zh>"]).captions == [["2"]]
    with pytest.raises(ControlError, match="no row carries fr: the tags there are en, zh"):
        with_tags(table, ["<fr>"])
    with pytest.raises(ControlError, match="no row has tags, its third column"):
        with_tags(Captions.of(["c"], [["4"]], [[""]]), ["<fr>"])


def test_a_split_restricted_to_a_tag(shapes, tmp_path):
    data = data_of(shapes, tmp_path, Control(tags=True, dropout=0.0))
    data.images("train")
    data.restrict("train", ["<zh>"])
    assert (data.images("train").images, data.images("train").captions) == (["images/00.png"], [["红"]])
    (batch,) = data.evaluation_dataloader("train")
    assert batch.references == [["红"]] and said(data, batch, 0, 0).split()[1] == "<zh>"
    with pytest.raises(ControlError, match="split train: no row carries en"):
        data.restrict("train", ["<en>"])


# ---------------------------------------------------------------- asking


@pytest.fixture
def knowing():
    controls = {"<en>": 9, "<language=zh>": 3, "<length=4>": 2, "<length=5>": 6, "<length=6>": 1, "<length=9>": 1}
    return Vocabulary.build([["a"]], 1, controls=controls)


def test_named_lengths_are_percentiles(knowing):
    values = sorted(np.random.default_rng(0).integers(3, 30, 997).tolist())
    for share in (0.1, 0.5, 0.9):
        expected = np.percentile(values, 100 * share, method="inverted_cdf")
        assert quantile(Counter(values), share) == expected
    assert [asked_length(knowing, name) for name in ("short", "medium", "long", 4, "9")] == [4, 5, 6, 4, 9]


def test_what_is_asked_for_stands_as_in_training(knowing):
    assert asked(knowing) == []
    assert asked(knowing, 5, "en") == ["<en>", "<length=5>"]
    assert asked(knowing, "long", language="zh") == ["<language=zh>", "<length=6>"]
    assert (
        asked(knowing, tags=["en"], language="zh")
        == ["<en>", "<language=zh>"]
        == asked(knowing, None, "language=zh en")
    )
    assert [nearest_length(knowing, n) for n in (0, 5, 7, 8, 50)] == [4, 5, 6, 9, 9]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 7}, r"length 7: this captioner knows the lengths 4-6, 9, short \(4\), medium \(5\), long \(6\)"),
        ({"length": "tiny"}, "length tiny: this captioner knows the lengths 4-6, 9"),
        ({"length": "reference"}, "length reference: this captioner knows"),
        ({"length": "-5"}, "length -5"),
        ({"tags": "en, fr"}, "fr: this captioner knows the tags en, language=zh"),
        ({"language": "fr"}, "fr: this captioner knows the tags en, language=zh"),
        ({"language": ""}, "the language “”: a tag is wanted, such as zh"),
        ({"tags": "<en>"}, "a word or key=word is wanted"),
    ],
)
def test_what_it_does_not_know_is_refused_with_what_it_knows(knowing, arguments, message):
    with pytest.raises(ControlError, match=message):
        asked(knowing, **arguments)


def test_a_captioner_without_controls_says_so(vocabulary):
    with pytest.raises(ControlError, match="knows no lengths; it was trained without control=length"):
        asked(vocabulary, "short")
    with pytest.raises(ControlError, match="knows no lengths"):
        nearest_length(vocabulary, 4)
    with pytest.raises(ControlError, match="zh: this captioner knows no tags; it was trained without control=tags"):
        asked(vocabulary, language="zh")
