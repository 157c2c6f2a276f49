"""Control tokens from training to captions and scores: one small captioner of two languages and five lengths."""

import json
from pathlib import Path

import pytest
import torch

from src import caption, evaluate
from src.bundle import Bundle, bundle_config, load_bundle, save_bundle
from src.captioner import Captioner
from src.data.control import ControlError
from src.data.vocabulary import Vocabulary
from src.decoders.ensemble import EnsembleDecoder
from src.ensemble import EnsembleCaptioner
from src.generation import GreedySearch
from src.model import build
from src.train import train
from tests.conftest import CHINESE, COLOURS, tiny_config
from tests.test_configs import composed, tiny

COUNTS = range(2, 7)


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory) -> Path:
    """A captioner that says a picture's colour as often as it is asked to, in the language that it is asked for."""
    folder = tmp_path_factory.mktemp("control")
    (folder / "images").symlink_to(shapes / "images")
    rows = []
    for number in range(24):
        colour = list(COLOURS)[number % 4]
        # Chinese ones of another number of words, and one picture without, so that references tell them apart
        rows += [f"images/{number:02d}.png\t{' '.join([colour] * n)}\ten" for n in COUNTS]
        rows += [f"images/{number:02d}.png\t{CHINESE[colour] * n}\tzh" for n in COUNTS if number != 23]
    (folder / "all.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    overrides = [
        *tiny(folder, folder),
        *("data.train=all.tsv", "data.val=all.tsv", "data.test=all.tsv", "data.nouns=null", "data.batch_size=8"),
        *("data.captions_per_image=10", "control=length_tags", "control.validate=zh", "control.dropout=0.1"),
        *("tokenizer=mixed", "encoder=cnn", "encoder.backbone.channels=[8,16]", "encoder.width=32"),
        *("transform.size=32", "decoder=gru", "decoder.hidden=64", "decoder.dropout=0.0", "embedding.size=32"),
        *("objective.label_smoothing=0.0", "optimizer.lr=0.01", "generation=greedy", "generation.max_length=4"),
        *("trainer.fast_dev_run=false", "trainer.max_epochs=30", "trainer.check_val_every_n_epoch=30"),
        *("logger=csv", "callbacks.pictures=null", "callbacks.early_stopping=null", "trainer.precision=32-true"),
    ]
    train(composed(overrides))
    return folder / "run"


@pytest.fixture
def captioner(run):
    return Captioner.load(run, device_name="cpu", precision_name="32-true")


def test_it_writes_as_many_words_as_it_is_asked_for(captioner, shapes):
    pictures = [shapes / "images" / f"{number:02d}.png" for number in range(4)]
    for tag, names in [("en", list(COLOURS)), ("zh", [CHINESE[colour] for colour in COLOURS])]:
        for count in COUNTS:  # beyond the search's max_length of 4, too
            captioner.ask(count, tag)
            assert [c.words for c in captioner(pictures)] == [[name] * count for name in names]
    for name, count in [("short", 2), ("medium", 4), ("long", 6)]:
        captioner.ask(name, language="zh")
        assert {len(c.words) for c in captioner(pictures)} == {count}
    captioner.ask(tags="zh")
    assert all(set(c.text) <= set("".join(CHINESE.values())) for c in captioner(pictures)), "a language alone"
    captioner.ask()
    assert captioner.generation.max_length == 4, "the search's own limit holds again"
    assert all(c.words and "<" not in c.text for c in captioner(pictures)), "and nothing"


def test_nothing_asked_for_is_the_captioners_default(run, tmp_path, shapes):
    pictures = [shapes / "images" / f"{number:02d}.png" for number in range(4)]
    bundle = load_bundle(run)
    control = {**bundle.config["control"], "default": "zh"}
    save_bundle(tmp_path / "zh", bundle._replace(config={**bundle.config, "control": control}))
    one = Captioner.load(tmp_path / "zh", device_name="cpu", precision_name="32-true")
    two = EnsembleCaptioner.load_all([tmp_path / "zh", run], device_name="cpu", precision_name="32-true")
    for captioner in (one, two):
        said = [c.text for c in captioner(pictures)]
        assert captioner.control == ["<zh>"] and all(set(text) <= set("".join(CHINESE.values())) for text in said)
        captioner.ask(length=2)
        assert captioner.control == ["<zh>", "<length=2>"]
        captioner.ask(language="en")
        assert captioner.control == ["<en>"] and [c.words[0] for c in captioner(pictures)] == list(COLOURS)
        captioner.ask()
        assert [c.text for c in captioner(pictures)] == said
    config = composed([f"model={tmp_path / 'zh'}", "data=tsv", f"data.root={run.parent}", "data.workers=0",
        f"data.cache_dir={run.parent / 'cache'}", "precision=32-true", "metrics=[Bleu_1]", "device=cpu",
        "data.test=all.tsv", f"output={tmp_path / 'scored'}"], "evaluate")  # fmt: skip
    assert evaluate.run(config)["images"] == 23, "it is scored against the rows of its default"
    (run.parent / "plain.tsv").write_text("images/00.png\t红红\n", encoding="utf-8")
    config["data"]["test"], config["output"] = "plain.tsv", str(tmp_path / "plain")
    assert evaluate.run(config)["images"] == 1, "or against rows without tags"


def test_validation_was_of_one_language_and_scored_as_such(run):
    scores, meta = (json.loads((run / "eval" / "val" / f"{n}.json").read_text("utf-8")) for n in ("scores", "meta"))
    assert scores["images"] == 23 and meta["control"] == ["<zh>"] and meta["tokenization"] == "character"
    assert scores["METEOR"] is None and "no Chinese" in meta["not_computed"]["METEOR"]
    said = dict(line.split("\t") for line in (run / "eval" / "val" / "captions.tsv").read_text("utf-8").splitlines())
    assert len(said) == 23 and all(set(text) <= set("".join(CHINESE.values())) for text in said.values())


def score(run: Path, output: Path, *overrides: str) -> tuple[dict, dict]:
    config = composed([f"model={run}", "data=tsv", f"data.root={run.parent}", "data.test=all.tsv", "data.workers=0",
        f"data.cache_dir={run.parent / 'cache'}", f"output={output}", "precision=32-true", "metrics=[Bleu_1,METEOR]",
        "device=cpu", *overrides], "evaluate")  # fmt: skip
    return evaluate.run(config), json.loads((output / "meta.json").read_text("utf-8"))


def test_a_language_is_scored_against_its_own_references(run, tmp_path):
    scores, meta = score(run, tmp_path / "zh", "tags=zh", "length=3")
    assert (scores["images"], scores["length_within_1"], scores["exact_match"]) == (23, 1.0, 1.0)
    assert scores["METEOR"] is None and meta["tokenization"] == "character"
    assert (meta["control"], meta["length"]) == (["<zh>", "<length=3>"], 3)
    scores, meta = score(run, tmp_path / "en", "tags=[en]", "length=long")
    assert (scores["images"], scores["exact_match"], scores["mean_length"]) == (24, 1.0, 6.0)
    assert meta["tokenization"].startswith("ptb") and meta["control"] == ["<en>", "<length=6>"]
    scores, _ = score(run, tmp_path / "all")
    assert scores["images"] == 24 and "length_within_1" not in scores


def test_each_picture_is_asked_for_its_own_references_length(run, tmp_path):
    """Of the tiny data's own table every first reference has two words; of another, one, two, … nine."""
    rows = [f"images/{number:02d}.png\t{'红' * (number + 1)}\tzh" for number in range(9)]
    (run.parent / "lengths.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    options = ["data.test=lengths.tsv", "tags=zh", "length=reference", "data.eval_batch_size=4"]
    scores, meta = score(run, tmp_path / "own", *options)
    said = [line.split("\t")[1] for line in (tmp_path / "own" / "captions.tsv").read_text("utf-8").splitlines()]
    assert [len(text) for text in said] == [2, 2, 3, 4, 5, 6, 6, 6, 6], "the nearest that it knows"
    assert scores["length_within_1"] == 1.0 and meta["length"] == "reference" and meta["control"] == ["<zh>"]
    assert score(run, tmp_path / "few", *options, "limit=5")[0]["images"] == 5


def test_length_within_1_counts(run, tmp_path, monkeypatch):
    """A captioner that always writes four words, asked for the lengths two to six of its references."""
    rows = [f"images/{number:02d}.png\t{'红' * count}\tzh" for number, count in enumerate(COUNTS)]
    (run.parent / "five.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    always = Captioner.search

    def four(self, images, attention=False, prefix=None):
        prefix = torch.full_like(prefix[:, -1:], self.vocabulary.control_index["<length=4>"])
        return always(self, images, attention, prefix)

    monkeypatch.setattr(Captioner, "search", four)
    scores, _ = score(run, tmp_path / "x", "data.test=five.tsv", "tags=zh", "length=reference")
    assert scores["mean_length"] == 4.0 and scores["length_within_1"] == 3 / 5


def test_scores_are_reused_for_the_same_request_only(run, tmp_path):
    def stamp(*overrides: str) -> int:
        score(run, tmp_path / "r", "reuse=true", "limit=3", *overrides)
        return (tmp_path / "r" / "meta.json").stat().st_mtime_ns

    first = stamp("length=3")
    assert stamp("length=3") == first
    assert (second := stamp("length=reference")) > first
    assert (third := stamp("length=3", "tags=en")) > second
    assert stamp("length=3", "tags=en") == third and stamp() > third


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tags=fr"], "fr: this captioner knows the tags en, zh"),
        (["length=99"], r"length 99: this captioner knows the lengths 2-6, short \(2\), medium \(4\), long \(6\)"),
        (["length=shrot"], "length shrot: this captioner knows"),
        (["tags=eos"], "a word or key=word is wanted"),
        (["length=[3]"], r"length=\[3\]: a whole number \(int\) or text"),
    ],
)
def test_evaluations_that_cannot_be(run, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        score(run, tmp_path, *overrides)


def test_the_command_lines_flags(run, shapes, capsys):
    model = ["--model", str(run), "--device", "cpu", str(shapes / "images" / "00.png")]

    def said(*flags: str) -> str:
        assert caption.main([*model, *flags]) == 0
        return capsys.readouterr().out.rstrip("\n").split("\t")[1]

    assert said("--language", "zh", "--length", "3") == "红红红"
    assert said("--tags", "en", "--length", "long") == "red red red red red red"
    assert said("--tags", "en", "--length", "5", "--beam", "2") == "red red red red red"
    for flags, message in [
        (["--language", "fr"], "error: fr: this captioner knows the tags en, zh"),
        (["--length", "tiny"], "error: length tiny: this captioner knows the lengths 2-6"),
    ]:
        assert caption.main([*model, *flags]) == 2
        assert capsys.readouterr().err.startswith(message)


def test_a_captioner_of_no_controls_refuses_flags(vocabulary, shapes, tmp_path, capsys):
    config = bundle_config(tiny_config(), {"encoder_weights": "random"})
    save_bundle(tmp_path / "b", Bundle(build(config, vocabulary), vocabulary, config))
    picture = str(shapes / "images" / "00.png")
    assert caption.main(["--model", str(tmp_path / "b"), picture, "--length", "short"]) == 2
    assert "this captioner knows no lengths" in capsys.readouterr().err
    assert caption.main(["--model", str(tmp_path / "b"), picture, "--language", "zh"]) == 2
    assert "this captioner knows no tags" in capsys.readouterr().err
    with pytest.raises(ControlError, match="knows no lengths"):
        score(tmp_path / "b", tmp_path / "out", f"data.root={shapes}", "data.test=test.tsv", "length=reference")


def test_a_bundle_keeps_controls_and_one_without_them_loads(run, vocabulary, tmp_path):
    bundle = load_bundle(run)
    assert bundle.config["control"]["length"] and bundle.vocabulary.controls[:2] == ["<en>", "<zh>"]
    save_bundle(tmp_path / "copy", bundle)
    again = load_bundle(tmp_path / "copy")
    assert again.vocabulary.to_dict() == bundle.vocabulary.to_dict()
    assert again.model.decoder.controls == list(bundle.vocabulary.control_index.values())
    config = bundle_config(tiny_config(), {"encoder_weights": "random"})
    del config["control"]  # as older versions wrote it
    save_bundle(tmp_path / "old", Bundle(build(config, vocabulary), vocabulary, config))
    assert load_bundle(tmp_path / "old").config["control"] is None


def test_a_start_with_controls_goes_on_with_them_and_with_new_ones(run, tmp_path):
    (run.parent / "more.tsv").write_text("images/00.png\tred red\ten\nimages/01.png\tvert vert vert\tfr\n", "utf-8")
    common = [*tiny(run.parent, tmp_path), "data.train=more.tsv", "data.test=null", "data.nouns=null", f"init={run}"]
    old = load_bundle(run).vocabulary

    def trained(overrides, given=()):
        train(composed([*common, *overrides]), given)
        return load_bundle(tmp_path / "run.fast_dev_run")

    bundle = trained(["data.val=all.tsv"])
    assert bundle.config["control"]["validate"] == "zh", "the start's own control"
    assert bundle.vocabulary.controls == [*old.controls, "<fr>"] and bundle.vocabulary.words[: len(old)] == old.words
    assert "vert" in bundle.vocabulary.index
    bundle = trained(["data.val=more.tsv", "control=tags", "control.validate=fr"], {"control", "control.validate"})
    assert (bundle.config["control"]["validate"], bundle.config["control"]["length"]) == ("fr", False)
    bundle = trained(["data.val=more.tsv", "init_vocabulary=keep"], {"control"})
    assert bundle.config["control"] is None and bundle.vocabulary.controls == old.controls
    with pytest.raises(ValueError, match="split val: no row carries zh: the tags there are en, fr"):
        trained(["data.val=more.tsv"])


def test_no_search_says_a_control_token(vocabulary, shapes):
    """Whatever the decoder thinks of them, a latent variable and an ensemble included."""
    known: Vocabulary = vocabulary.extended([], controls={"<zh>": 1, "<length=3>": 1})
    for latent in (None, {"_target_": "src.decoders.GaussianLatent", "size": 4, "hidden": 8}):
        model = build({**tiny_config(), "latent": latent}, known).eval()
        with torch.no_grad():
            model.decoder.classifier.bias[list(known.control_index.values())] = 50.0
            memory = model.memory(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
        ensemble = EnsembleDecoder([model.decoder])
        for decoder, its in ((model.decoder, memory), (ensemble, (memory,))):
            with torch.no_grad():
                found = GreedySearch(max_length=5)(decoder, its, prefix=torch.tensor([[12, 13]] * 2))
            assert known.control_index == {"<zh>": 12, "<length=3>": 13}
            assert not torch.isin(found.tokens, torch.tensor([12, 13])).any()


@pytest.mark.parametrize(
    ("objective", "control", "field"),
    [
        ("self_critical", "length", "length"),
        ("self_critical", "length_tags", "length"),
        ("adversarial", "tags", "tags"),
        ("adversarial", "length", "length"),
    ],
)
def test_objectives_that_draw_captions_are_refused(objective, control, field, shapes, tmp_path):
    with pytest.raises(ValueError, match=f"drawn without control tokens of control.{field}.*add control=null"):
        train(
            composed(
                [f"objective={objective}", "objective.from_random=true", f"control={control}", *tiny(shapes, tmp_path)]
            )
        )


def test_a_default_that_training_lacks_is_refused(shapes, tmp_path):
    tagged = ["data.train=tagged.tsv", "data.val=tagged.tsv", "control=tags", "tokenizer=mixed", "encoder=cnn"]
    with pytest.raises(ValueError, match="fr: this captioner knows the tags en, zh"):
        train(composed([*tiny(shapes, tmp_path), *tagged, "control.default=fr"]))


def test_validation_tags_that_training_lacks_are_refused(shapes, tmp_path):
    tagged = ["data.train=tagged.tsv", "data.val=tagged.tsv", "control=tags", "tokenizer=mixed", "encoder=cnn"]
    with pytest.raises(ValueError, match="fr: this captioner knows the tags en, zh"):
        train(composed([*tiny(shapes, tmp_path), *tagged, "control.validate=fr"]))
