"""A training that learns its pictures by heart is warned of, once and early; one that does not, not; and watching
changes nothing."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger

from src.captioner import Captioner
from src.check import check
from src.curves import read_sampled
from src.data.module import CaptionData
from src.data.tokenizer import EnglishTokenizer
from src.data.transforms import Augmentation, Preprocess
from src.generation import GreedySearch, SampleSearch
from src.metrics.captions import CaptionScorer
from src.metrics.cider import CiderD, DocumentFrequencies
from src.model import build
from src.objectives import CrossEntropy
from src.overfitting import OverfittingGuard
from src.training import CaptioningModule
from tests.conftest import tiny_config
from tests.test_configs import composed, tiny
from tests.test_training import assert_equal, fit, make, weights

UNIQUE = [
    f"{a} {b} near {c}"
    for a, b, c in zip(
        ("two cats", "red cars", "old boats", "big horses", "white birds", "tall trees", "some cups", "blue kites"),
        ("sleep", "wait", "float", "graze", "fly", "grow", "stand", "rise"),
        ("tables", "roads", "docks", "hills", "clouds", "rivers", "plates", "towers"),
        strict=True,
    )
]


@pytest.fixture(scope="module", autouse=True)
def _no_java():
    """Scored without starting a Java for each validation: Latin words are whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EnglishTokenizer, "evaluation", "character")
        yield


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Pictures of noise: what is said of one tells nothing of another. Of 24 training pictures 16 have the caption that
    half the 40 validation pictures have, and the others each its own."""
    root = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    common, other = "a dog runs on the grass", "a man sits in water"
    said = {
        "train": [UNIQUE[i // 3] if i % 3 == 0 else common for i in range(24)],
        "val": [common if i % 2 else other for i in range(40)],
    }
    for split, captions in said.items():
        rows = []
        for i, caption in enumerate(captions):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / f"{split}{i}.png")
            rows.append(f"{split}{i}.png\t{caption}\n")
        (root / f"{split}.tsv").write_text("".join(rows))
    return root


def by_heart(root, guard, folder, **options):
    """Train on noise until it is known by heart."""
    torch.manual_seed(0)
    data = CaptionData(root, Preprocess(16), EnglishTokenizer(), "train.tsv", "val.tsv", min_count=1, batch_size=8)
    config = tiny_config(decoder__dropout=0.0, decoder__hidden=48, encoder__frozen=False)
    module = CaptioningModule(
        build(config, data.vocabulary),
        data.vocabulary,
        data.tokenizer,
        CrossEntropy(),
        GreedySearch(max_length=8),
        {"_target_": "torch.optim.AdamW", "lr": 0.01},
        None,
        data.images("val").captions,
        ["CIDEr"],
        config,
    )
    return fit(module, data, folder, callbacks=[guard], **{"max_epochs": 32, "enable_checkpointing": False} | options)


def warnings_of(records):
    return [r.getMessage() for r in records if r.name == "src.overfitting" and r.levelno == logging.WARNING]


@pytest.fixture(scope="module")
def whole(noise, tmp_path_factory):
    """Folder, guard and log of an uninterrupted run."""
    folder, guard, records = tmp_path_factory.mktemp("whole"), OverfittingGuard(100), []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("src.overfitting").addHandler(handler)
    by_heart(noise, guard, folder, logger=CSVLogger(folder, "", ""))
    logging.getLogger("src.overfitting").removeHandler(handler)
    return folder, guard, records


def test_learning_by_heart_is_warned_of_once_and_in_time(whole):
    folder, guard, records = whole
    (warning,) = warnings_of(records)
    found = read_sampled(folder)
    validation, training = dict(found.validation), dict(found.training)
    best = max(validation, key=validation.get)
    assert guard.warned == found.warned and best < guard.warned < 32
    assert f"after epoch {guard.warned}: val/CIDEr has fallen from {validation[best]:.3f} (epoch {best})" in warning
    assert f"to {validation[guard.warned]:.3f}, more than 2" in warning and f"max_epochs={best}" in warning
    assert f"24 training pictures rose from {training[best]:.3f} to {training[guard.warned]:.3f}" in warning
    assert "dropout" in warning and "transform=augmented" in warning
    assert training[32] > validation[32] + 1, "by heart"
    assert max(validation[guard.warned - 1], validation[guard.warned]) < validation[best]


def test_a_training_that_goes_well_is_not_warned_of(shapes, tmp_path, caplog):
    module, data = make(shapes)
    guard = OverfittingGuard(16)
    fit(module, data, tmp_path, callbacks=[guard], max_epochs=8, enable_checkpointing=False)
    assert not warnings_of(caplog.records) and guard.warned is None and guard.best


class Losses(OverfittingGuard):
    """And what each step's loss was."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seen.append(outputs["loss"].item())


def test_watching_changes_nothing(shapes, tmp_path):
    """With dropout, varied pictures, and a search that draws."""
    runs = []
    for sample in (0, 7):
        module, data = make(shapes, augment=Augmentation(flip=0.5, crop=0.5, brightness=0.3))
        module.generation = SampleSearch(2, max_length=8)
        module.generation.bind(data.vocabulary, data.tokenizer)
        watched = Losses(sample)
        trainer = fit(module, data, tmp_path / str(sample), callbacks=[watched], enable_checkpointing=False)
        runs.append((watched.seen, weights(module), torch.get_rng_state(), trainer.callback_metrics))
    (plain, first, state, metrics), (guarded, second, its_state, its_metrics) = runs
    assert len(plain) == 12 and plain == guarded and torch.equal(state, its_state)
    assert_equal(first, second)
    assert its_metrics.keys() - metrics.keys() == {"train_sample/CIDEr", "gap/CIDEr"}
    assert all(torch.equal(metrics[name], its_metrics[name]) for name in metrics)


def test_the_sample_is_scored_as_if_it_were_of_validation(shapes, tmp_path):
    """Against the arithmetic from the table: clean pixels, the search's captions, the document frequencies of
    validation and the picture itself."""
    module, data = make(shapes, augment=Augmentation(flip=0.5, crop=0.5, brightness=0.3))
    guard = OverfittingGuard(6)
    trainer = fit(module, data, tmp_path, callbacks=[guard], max_epochs=6, enable_checkpointing=False)
    split = data.images("train")
    names = [split.images[row] for row in guard.rows]
    assert len(set(names)) == 6 and guard.rows == sorted(guard.rows)
    captioner = Captioner(
        module.model, data.vocabulary, data.tokenizer, Preprocess(16), module.generation, "cpu", "32-true"
    )
    said = {each.picture: each.text for each in captioner([str(shapes / name) for name in names])}
    references = dict(zip(data.tables["val"].images, data.tables["val"].captions, strict=True))
    known = CaptionScorer(references, metrics=["CIDEr"])
    scores = []
    for row, name in zip(guard.rows, names, strict=True):
        own = known.tokenize({name: list(split.captions[row])})
        frequencies = DocumentFrequencies.of([*known.references.values(), own[name]])
        alone = CiderD(own, frequencies._replace(images=len(references)))
        scores.append(alone.score(known.tokenize({name: [said[str(shapes / name)]]}))[0])
    logged = trainer.callback_metrics
    assert float(logged["train_sample/CIDEr"]) == pytest.approx(np.mean(scores)) and np.mean(scores) > 0
    assert float(logged["gap/CIDEr"]) == pytest.approx(np.mean(scores) - float(logged["val/CIDEr"]))


def test_a_resumed_run_warns_where_the_whole_one_does(noise, whole, tmp_path, caplog):
    first, second = OverfittingGuard(24), OverfittingGuard(24)
    stop = whole[1].warned - 1  # the first validation of the fall has been seen
    trainer = by_heart(noise, first, tmp_path / "part", max_epochs=stop)
    trainer.save_checkpoint(tmp_path / "part.ckpt")
    assert not warnings_of(caplog.records) and first.fallen
    by_heart(noise, second, tmp_path / "part", ckpt=tmp_path / "part.ckpt", max_epochs=stop + 2)
    assert len(warnings_of(caplog.records)) == 1 and second.warned == whole[1].warned


def test_it_is_a_part_of_the_callbacks(shapes, tmp_path):
    fields = composed(tiny(shapes, tmp_path))["callbacks"]["overfitting"]
    assert fields == {"_target_": "src.overfitting.OverfittingGuard", "sample": 100, "validations": 2}
    check(composed([*tiny(shapes, tmp_path), "callbacks.overfitting.sample=null"]))
    with pytest.raises(ValueError, match=r"callbacks\.overfitting\.sample=-1: at least 0"):
        check(composed([*tiny(shapes, tmp_path), "callbacks.overfitting.sample=-1"]))


def test_what_cannot_be_read_is_left_out(shapes, tmp_path, caplog):
    (tmp_path / "images").symlink_to(shapes / "images")
    (tmp_path / "bad.png").write_bytes(b"none")
    for split in ("train", "val"):
        (tmp_path / f"{split}.tsv").write_text((shapes / f"{split}.tsv").read_text())
    with (tmp_path / "train.tsv").open("a") as file:
        file.write("bad.png\ta red square\n")
    module, data = make(tmp_path)
    guard = OverfittingGuard(100)
    guard._choose(module, data)
    assert len(guard.rows) == 16 and "bad.png" in warnings_of(caplog.records)[0]
