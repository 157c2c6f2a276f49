"""`init=`: starting from another captioner's weights."""

import logging
from pathlib import Path

import pytest
import torch

from src.bundle import Bundle, bundle_config, load_bundle, read_saved, save_bundle
from src.config import path_name
from src.data.vocabulary import SPECIALS, Vocabulary
from src.initial import adopt, freeze, initialise
from src.model import build
from src.train import train
from tests.conftest import tiny_config
from tests.test_configs import composed, tiny


def saved(folder: Path, vocabulary: Vocabulary, **overrides) -> Path:
    torch.manual_seed(1)
    config = bundle_config(tiny_config(**overrides), {"encoder_weights": "random"})
    save_bundle(folder, Bundle(build(config, vocabulary).eval(), vocabulary, config))
    return folder


@pytest.mark.parametrize("tied", [False, True])
def test_known_words_keep_their_rows_and_new_ones_start_at_their_mean(tied, vocabulary, tmp_path, caplog):
    sizes = {"decoder__tied": tied}
    path = saved(tmp_path / "bundle", vocabulary, **sizes)
    start = read_saved(path)
    old = load_bundle(path).model
    extended = vocabulary.extended([["a", "purple", "square"], ["purple", "hexagon"]], min_count=1)
    assert extended.words == [*vocabulary.words, "purple", "hexagon"]
    model = build(tiny_config(**sizes), extended)
    with caplog.at_level(logging.INFO):
        initialise(model, extended, start, "there")
    assert "8 words kept, of which 2 occur in these captions; 2 added" in caplog.text
    before, after = old.state_dict(), model.state_dict()
    for name, value in before.items():
        assert torch.equal(after[name][: len(value)] if value.dim() else after[name], value), name
    table, known = after["decoder.embedding.table.weight"], before["decoder.embedding.table.weight"][len(SPECIALS) :]
    distance = (table[-2:] - known.mean(0)).norm(dim=1)
    assert (distance < 0.5 * known.std(0).norm()).all() and not torch.equal(table[-1], table[-2])
    torch.testing.assert_close(
        after["decoder.classifier.bias"][-2:],
        before["decoder.classifier.bias"][len(SPECIALS) :].mean().expand(2),
        atol=0.1,
        rtol=0.1,
    )
    # Its captions of known words are as they were.
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        words = torch.tensor([[[1, 4, 5]], [[1, 6, 7]]])
        first = old.decoder.logits(old.decoder(old.decoder.embed(words), old.memory(pixels)).hidden)
        model.eval()
        second = model.decoder.logits(model.decoder(model.decoder.embed(words), model.memory(pixels)).hidden)
    torch.testing.assert_close(first, second[..., : len(vocabulary)])


def test_a_kept_vocabulary_only_counts(vocabulary):
    counted = vocabulary.extended([["a", "purple", "square"]], new=False)
    assert counted.words == vocabulary.words
    assert counted.counts[counted.index["square"]] == vocabulary.counts[vocabulary.index["square"]] + 1
    assert counted.counts[3] == vocabulary.counts[3] + 1


def test_extension_obeys_the_limits(vocabulary):
    captions = [["x", "y", "y", "z"], ["y", "z"]]
    assert vocabulary.extended(captions, min_count=2).words[len(vocabulary) :] == ["y", "z"]
    size = len(vocabulary) - len(SPECIALS)
    assert vocabulary.extended(captions, min_count=1, max_size=size + 1).words[len(vocabulary) :] == ["y"]
    assert vocabulary.extended(captions, min_count=1, max_size=1).words == vocabulary.words
    assert vocabulary.extended([["<eos>", "<eos>"]], min_count=1).words == vocabulary.words


def test_weights_that_do_not_fit_are_refused(vocabulary, tmp_path):
    start = read_saved(saved(tmp_path / "bundle", vocabulary))
    wider = build(tiny_config(decoder__hidden=20), vocabulary)
    with pytest.raises(ValueError, match=r"init=there: \d+ of its weights do not fit this run's settings \(first: "):
        initialise(wider, vocabulary, start, "there")
    with pytest.raises(ValueError, match="weights do not fit"):
        initialise(build(tiny_config("lstm"), vocabulary), vocabulary, start, "there")
    other = Vocabulary.build([["another", "language"]], min_count=1)
    with pytest.raises(ValueError, match="does not begin with the captioner's words"):
        initialise(build(tiny_config(), other), other, start, "there")


def test_parts_come_from_the_start_and_given_fields_from_the_user(vocabulary, tmp_path):
    start = tiny_config(encoder__frozen=2)
    own = ["init=there", "encoder=cnn", "encoder.frozen=1", "encoder.learning_rate=1e-4", "transform=letterbox"]
    config = composed(own)
    taken = adopt(config, start, {"init", "encoder.frozen", "encoder.learning_rate", "transform", "encoder"})
    assert taken["decoder"] == start["decoder"] and taken["tokenizer"] == start["tokenizer"]
    assert taken["encoder"] == {**start["encoder"], "frozen": 1, "learning_rate": 1e-4}
    assert taken["transform"]["fit"] == "letterbox", "the user's own"
    assert adopt(config, start, {"init"})["encoder"]["frozen"] == 2
    assert start["encoder"]["frozen"] == 2, "the captioner's own config is not touched"


def test_another_kind_of_part_is_refused(vocabulary):
    config = composed(["init=there", "decoder=lstm", "encoder=resnet18"])
    for group, message in (("decoder", "AttentionLSTMDecoder, and decoder= chose LSTMDecoder"), ("encoder", "CNN")):
        with pytest.raises(ValueError, match=f"init=there has {group} {message}"):
            adopt(config, tiny_config(), {group})


def test_frozen_parts_do_not_learn_and_unknown_ones_are_refused(tiny_model):
    freeze(tiny_model, ["decoder.embedding", "decoder.attention"])
    learning = {name.split(".")[1] for name, p in tiny_model.decoder.named_parameters(prefix="d") if p.requires_grad}
    assert "classifier" in learning and not learning & {"embedding", "attention"}
    with pytest.raises(ValueError, match=r"freeze=decoder.lstmm: no such part; the decoder's are decoder.embedding, "):
        freeze(tiny_model, ["decoder.lstmm"])


def test_each_start_has_a_name_of_its_own():
    paths = ("runs/a/first/bundle", "runs/a/first", "runs/b/first", "runs/a/checkpoints/best.ckpt", "runs/b/", "0.5")
    assert [path_name(p) for p in paths] == ["a-first", "a-first", "b-first", "a-best.ckpt", "b", "0.5"]


def test_loaded_statistics_of_batch_norm_stay(vocabulary, tmp_path):
    start = read_saved(saved(tmp_path / "bundle", vocabulary))
    model = build(tiny_config(encoder__frozen=1), vocabulary).train()
    norms = [m for m in model.encoder.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m.training for m in norms] == [False, True, True]
    initialise(model, vocabulary, start, "there")
    assert [m.training for m in norms] == [False, False, False]
    assert model.decoder.training


def test_an_untied_start_does_not_fit_tied_words(vocabulary, tmp_path):
    start = read_saved(saved(tmp_path / "bundle", vocabulary))
    with pytest.raises(ValueError, match="decoder.classifier.weight and .* differ, and here they are tied"):
        initialise(build(tiny_config(decoder__tied=True), vocabulary), vocabulary, start, "there")


def test_what_does_not_fit_is_refused_before_any_work(vocabulary, shapes, tmp_path):
    path = saved(tmp_path / "bundle", vocabulary)
    wider = composed([f"init={path}", "decoder.hidden=20", *tiny(shapes, tmp_path)])
    with pytest.raises(ValueError, match="of its weights do not fit this run's settings"):
        train(wider, {"decoder.hidden"})
    with pytest.raises(ValueError, match="brings the encoder's weights: leave encoder.backbone.weights out"):
        train(wider, {"encoder.backbone.weights"})
    assert not (tmp_path / "run.fast_dev_run").exists()


@pytest.mark.parametrize("vocabulary_rule", ["extend", "keep"])
def test_a_run_from_a_bundle_or_a_checkpoint(vocabulary_rule, shapes, tmp_path, caplog):
    """The whole way: a first run on shapes, a second from its bundle or checkpoint on captions with other words."""
    small = [
        "encoder=cnn",
        "encoder.backbone.channels=[4,8,8]",
        "encoder.width=32",
        "decoder.hidden=32",
        "embedding.size=24",
        "attention.width=16",
    ]
    real = ["data.test=null", "data.nouns=null", "trainer.fast_dev_run=false", "trainer.max_epochs=1", "logger=csv"]
    real += ["evaluate_splits=[]"]
    base = [*tiny(shapes, tmp_path), *real, "generation=greedy"]
    train(composed([*base, *small]))
    root = tmp_path / "other"
    root.mkdir()
    (root / "images").symlink_to(shapes / "images")
    for split in ("train", "val"):
        text = (shapes / f"{split}.tsv").read_text().replace("square", "box")
        (root / f"{split}.tsv").write_text(text)
    start = tmp_path / "run" / ("checkpoints/best.ckpt" if vocabulary_rule == "keep" else "bundle")
    first = load_bundle(start)
    own = [f"init={start}", f"init_vocabulary={vocabulary_rule}", f"data.root={root}", "freeze=[decoder.attention]"]
    given = {"init", "encoder.frozen"}
    with caplog.at_level(logging.INFO):
        train(composed([*base, *own, f"run_dir={tmp_path / 'second'}", "encoder.frozen=2"]), given)
    second = load_bundle(tmp_path / "second")
    assert ("box" in second.vocabulary.words) == (vocabulary_rule == "extend")
    assert second.vocabulary.words[: len(first.vocabulary)] == first.vocabulary.words
    assert ("1 added" if vocabulary_rule == "extend" else "0 added") in caplog.text
    assert second.config["provenance"]["init"] == path_name(str(start))
    assert second.config["encoder"]["frozen"] == 2 and second.config["decoder"]["hidden"] == 32
    before, after = first.model.state_dict(), second.model.state_dict()
    moved = {k for k, v in before.items() if not torch.equal(v, after[k][: len(v)] if v.dim() else after[k])}
    assert not any(name.startswith("decoder.attention") for name in moved)
    assert any(name.startswith("decoder.cell") for name in moved)
    stages = second.model.encoder.backbone.stages
    assert len(stages) == 3
    for number, stage in enumerate(stages):
        for module, twin in zip(stage.modules, first.model.encoder.backbone.stages[number].modules, strict=True):
            for a, b in zip(module.parameters(), twin.parameters(), strict=True):
                assert torch.equal(a, b) == (number < 2)


def test_a_start_that_is_not_there_is_named(shapes, tmp_path):
    with pytest.raises(
        ValueError,
        match="nowhere: no such file or directory; give a bundle/ directory, a run.s folder or name, or a .ckpt file",
    ):
        train(composed([f"init={tmp_path / 'nowhere'}", *tiny(shapes, tmp_path)]))


def test_a_matcher_goes_with_what_trains_it(shapes, tmp_path, caplog):
    """From a captioner without one to a matcher beside it, to further training of both, and back to a captioner: which
    stays as it is where the matcher alone learns, and leaves the matcher behind where it learns alone."""
    small = ["encoder=cnn", "encoder.frozen=true", "encoder.backbone.channels=[4,8,8]", "encoder.width=32"]
    small += ["decoder.hidden=32", "embedding.size=24", "attention.width=16"]
    real = ["data.test=null", "data.nouns=null", "trainer.fast_dev_run=false", "trainer.max_epochs=1", "logger=csv"]
    base = [*tiny(shapes, tmp_path), *real, "evaluate_splits=[]", "generation=greedy"]
    sized = "matcher.size=8"

    def trained(name: str, *settings: str):
        path = tmp_path / name
        with caplog.at_level(logging.INFO):
            train(composed([*base, *settings, f"run_dir={path}"]), {each.split("=")[0] for each in settings})
        return load_bundle(path).model.state_dict()

    plain = trained("plain", *small)
    beside = ["objective=contrastive", "objective.caption_weight=0", "callbacks.checkpoint.monitor=val/rsum", sized]
    found = trained("found", f"init={tmp_path / 'plain'}", *beside)
    assert {name for name in found if name not in plain} == {n for n in found if n.startswith("matcher.")} != set()
    assert all(torch.equal(value, found[name]) for name, value in plain.items())
    rows = (tmp_path / "found" / "metrics.csv").read_text()
    assert "val/t2i_R@1" in rows and "val/matching" in rows
    both = trained("both", f"init={tmp_path / 'found'}", "objective=contrastive")
    assert both["matcher.picture.weight"].shape[0] == 8, "its size is the start's"
    assert 0 < (both["matcher.picture.weight"] - found["matcher.picture.weight"]).abs().max() < 0.05
    assert not torch.equal(both["decoder.classifier.weight"], found["decoder.classifier.weight"])
    assert "it is left out" not in caplog.text
    alone = trained("alone", f"init={tmp_path / 'both'}")
    assert alone.keys() == plain.keys() and "its matcher does not learn here and would not fit" in caplog.text
