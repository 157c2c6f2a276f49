"""What a training logged, read back: metrics.csv, TensorBoard's events, W&B's offline folder."""

import csv
import io
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as lightning
import torch
from PIL import Image, ImageOps
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.captioner import Captioner
from src.dashboards import Gauges, Histogram, Histograms, Pictures
from src.data.module import CaptionData
from src.generation import GreedySearch
from src.model import build
from src.objectives import CrossEntropy
from src.prepare.shards import write_shards
from src.runs import read_run
from src.train import train
from src.training import CaptioningModule
from tests.conftest import tiny_config
from tests.test_configs import composed, tiny
from tests.test_training import assert_equal, fit, make, weights

STEPS = 8
"""Of the run below: 16 pictures in batches of 4, twice."""


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory) -> Path:
    """Two epochs with all three loggers, and a test evaluation."""
    folder = tmp_path_factory.mktemp("dashboards")
    small = ["encoder=cnn", "encoder.backbone.channels=[16,32]", "encoder.width=32", "embedding.size=24"]
    small += ["attention.width=16", "decoder.hidden=48", "optimizer.lr=0.01", "data.batch_size=4"]
    logs = ["logger=[default,wandb]", "logger.wandb.tags=[tiny]", "trainer.log_every_n_steps=1", "name=a+b"]
    whole = ["trainer.fast_dev_run=false", "trainer.max_epochs=2", "trainer.precision=32-true"]
    overrides = [*small, *tiny(shapes, folder), *logs, *whole, "evaluate_splits=[val,test]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_DATA_DIR", str(folder / "staged"))
        train(composed(overrides))
    return folder / "run"


def rows_of(path: Path) -> list[dict[str, float]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def events_of(folder: Path) -> EventAccumulator:
    events = EventAccumulator(
        str(folder), size_guidance=dict.fromkeys(("images", "scalars", "tensors", "histograms"), 0)
    )
    return events.Reload()


def said_in(events: EventAccumulator) -> list[tuple[int, str]]:
    """(step, table) of the logged captions."""
    found = events.Tensors("val/captions/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in found]


def own_captions(run: Path, shapes: Path) -> list:
    """Of the last weights, by the object that a user holds."""
    captioner = Captioner.load(run / "checkpoints" / "last.ckpt", device_name="cpu", precision_name="32-true")
    return list(captioner([shapes / f"images/{i}.png" for i in range(16, 20)], attention=True))


def test_metrics_csv_holds_every_key(run):
    rows = rows_of(run / "metrics.csv")
    assert all(math.isfinite(value) for row in rows for value in row.values())
    training = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in training] == list(range(STEPS))
    named = {"loss", "cross_entropy", "token_accuracy", "gradient_norm", "captions_per_second", "images_per_second"}
    rates = {f"learning_rate/{name}decayed" for name in ("", "not_", "backbone_", "backbone_not_")}
    named = {f"train/{name}" for name in [*named, "data_wait"]} | rates
    for row in training:
        assert set(row) == named | {"step", "epoch"} | ({"train/gpu_memory_gib"} & set(row))
        assert row["train/gradient_norm"] > 0 and 0 <= row["train/data_wait"] < 1
        assert row["train/captions_per_second"] == pytest.approx(2 * row["train/images_per_second"], rel=1e-5) != 0
    # the cosine, after a warm-up that is shorter than a step
    decay = [row["learning_rate/decayed"] for row in training]
    assert decay[0] == pytest.approx(0.01) and sorted(decay, reverse=True) == decay and decay[-1] < 0.001
    validations = [row for row in rows if "val/loss" in row]
    assert [row["step"] for row in validations] == [3, 7]
    scores = {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr", "exact_match", "distinct_words"}
    scores = {f"val/{name}" for name in [*scores, "mean_length", "loss", "cross_entropy", "token_accuracy"]}
    scores |= {"train_sample/CIDEr", "gap/CIDEr"}
    assert all(set(row) == scores | {"step", "epoch"} for row in validations)


def test_the_final_scores_are_logged(run):
    last = rows_of(run / "metrics.csv")[-1]
    for split in ("val", "test"):
        for name, value in json.loads((run / "eval" / split / "scores.json").read_text()).items():
            if not isinstance(value, str | None):
                assert last[f"eval/{split}/{name}"] == pytest.approx(value), name
    assert last["step"] == STEPS and "eval/val/METEOR" in last
    assert last["best/val/CIDEr"] == max(row.get("val/CIDEr", 0) for row in rows_of(run / "metrics.csv"))


def test_tensorboard_has_the_same_scalars(run):
    events = events_of(run / "tensorboard")
    expected: dict[str, dict[int, float]] = {}
    for row in rows_of(run / "metrics.csv"):
        for key, value in row.items():
            if key not in ("step", "epoch"):
                expected.setdefault(key, {})[int(row["step"])] = value
    assert set(events.Tags()["scalars"]) == {*expected, "epoch"}, "hp_metric is not among them"
    for key, values in expected.items():
        assert {event.step: event.value for event in events.Scalars(key)} == pytest.approx(values, rel=1e-6), key


def test_tensorboard_has_the_hyperparameters_beside_the_final_scores(run):
    events = events_of(run / "tensorboard")
    held = events.PluginTagToContent("hparams")
    assert set(held) == {f"_hparams_/{name}" for name in ("experiment", "session_start_info", "session_end_info")}
    assert b"eval/val/CIDEr" in held["_hparams_/experiment"]
    assert b"decoder.hidden" in held["_hparams_/session_start_info"]
    assert b"code_version" in held["_hparams_/session_start_info"]


def fingerprint(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())["fingerprint"]


def test_a_run_records_its_machine_and_its_data(run, shapes):
    held = events_of(run / "tensorboard").PluginTagToContent("hparams")["_hparams_/session_start_info"]
    status = json.loads((run / "status.json").read_text())
    assert torch.__version__.startswith(status["environment"]["torch"]) and status["environment"]["processes"] == 1
    for name in ("environment.system", "environment.cores", "fingerprint.test.pictures"):
        assert name.encode() in held
    assert status["fingerprint"]["train"].keys() == {"images", "captions", "sha256", "pictures"}
    assert (status["fingerprint"]["train"]["images"], status["fingerprint"]["train"]["captions"]) == (16, 32)
    row = read_run(run, "run", "val", config=True)
    assert row["environment.python"] == status["environment"]["python"] and row["fingerprint.val.images"] == 4
    assert not {"environment", "fingerprint"} & set(read_run(run, "run", "val"))


def histogram(run: Path, name: str) -> list:
    return [(event.step, event.histogram_value) for event in events_of(run / "tensorboard").Histograms(name)]


def test_tensorboard_has_histograms(run):
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    tags = events_of(run / "tensorboard").Tags()["histograms"]
    assert {f"weights/{name.removeprefix('model.')}" for name in saved if "weight" in name} <= set(tags)
    assert {name.partition("/")[2] for name in tags if name.startswith("weights/")} == {
        name.partition("/")[2] for name in tags if name.startswith("gradients/")
    }
    (step, weights), *more = histogram(run, "weights/decoder.initial.weight")
    assert step == 0 and not more and weights.num == saved["model.decoder.initial.weight"].numel()
    per_epoch = histogram(run, "val/CIDEr_of_pictures")
    rows = [row for row in rows_of(run / "metrics.csv") if "val/CIDEr" in row]
    assert [(step, h.sum / h.num) for step, h in per_epoch] == [
        (int(row["step"]), pytest.approx(row["val/CIDEr"], rel=1e-5)) for row in rows
    ]
    lengths = histogram(run, "val/caption_lengths")
    assert [h.sum / h.num for _, h in lengths] == pytest.approx([row["val/mean_length"] for row in rows])


@pytest.mark.parametrize("values", [torch.randn(1000), torch.tensor([3.0]), torch.arange(7), torch.full((5,), -2.0)])
def test_a_histogram_is_numpys(values):
    found = Histogram.of(values.reshape(1, -1))
    counts, edges = np.histogram(values.numpy(), 64)
    np.testing.assert_allclose(found.edges, edges, atol=1e-5)
    assert found.counts.sum() == len(values) and np.abs(found.counts - counts).sum() <= 4, "at a bin's edge it rounds"
    assert found.total == pytest.approx(float(values.sum()), abs=1e-3)
    assert found.squares == pytest.approx(float(values.float().square().sum()), rel=1e-5)


def test_a_histogram_is_of_what_is_finite():
    assert Histogram.of(torch.tensor([math.nan, math.inf])) is None and Histogram.of(torch.zeros(0)) is None
    assert Histogram.of(torch.tensor([math.nan, 1.0, -math.inf, 2.0])).counts.sum() == 2


def test_gradients_are_looked_at_every_n_steps_and_change_nothing(shapes, tmp_path):
    results = []
    for callbacks in ((), (Histograms(2),)):
        module, data = make(shapes, batch_size=8)
        folder = tmp_path / str(len(results))
        logger = [TensorBoardLogger(folder, name="", version=""), CSVLogger(folder, name="", version="")]
        options = {"max_epochs": 3, "enable_checkpointing": False, "log_every_n_steps": 1, "gradient_clip_val": 1e6}
        fit(module, data, tmp_path, callbacks=callbacks, logger=logger, **options)
        results.append(weights(module))
    assert_equal(*results)
    assert not events_of(tmp_path / "0").Tags()["histograms"]
    events = events_of(tmp_path / "1")
    assert [event.step for event in events.Histograms("gradients/decoder.initial.bias")] == [0, 2, 4]
    names = [name for name in events.Tags()["histograms"] if name.startswith("gradients/")]
    squares = sum(np.array([h.histogram_value.sum_squares for h in events.Histograms(name)]) for name in names)
    norms = [row["train/gradient_norm"] for row in rows_of(tmp_path / "1" / "metrics.csv") if "train/loss" in row]
    assert squares**0.5 == pytest.approx(norms[::2], rel=1e-4), "of the very gradients that the norm is of"


def test_of_frozen_weights_no_histogram_is_drawn(shapes, tmp_path):
    module, data = make(shapes, frozen=True)
    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit(module, data, tmp_path, callbacks=[Histograms()], logger=logger, max_epochs=1, enable_checkpointing=False)
    tags = events_of(tmp_path).Tags()["histograms"]
    assert tags and not [name for name in tags if "backbone" in name]


def test_tensorboard_has_pictures_with_attention_and_captions(run, shapes):
    events = events_of(run / "tensorboard")
    assert events.Tags()["images"] == [f"val/pictures/{i}" for i in range(4)], "all four that there are"
    (first, _), (last, table) = said_in(events)
    assert (first, last) == (3, 7)
    rows = table.splitlines()[2:]
    for i, caption in enumerate(own_captions(run, shapes)):
        file = shapes / f"images/{16 + i}.png"
        assert f"| {file.name} | {caption.text} |" in rows[i] and "There is a" in rows[i]
        logged = [
            (event.step, Image.open(io.BytesIO(event.encoded_image_string)))
            for event in events.Images(f"val/pictures/{i}")
        ]
        assert [step for step, _ in logged] == [3, 7]
        sheet = logged[-1][1]
        plain = ImageOps.contain(Image.open(file), (128, 128), Image.Resampling.LANCZOS)
        tiles = len(caption.words) + 1
        columns = math.ceil(tiles / math.ceil(tiles / 6))
        assert sheet.width == columns * (plain.width + 6) + 6
        assert sheet.height == math.ceil(tiles / columns) * (plain.height + 2 * 12 + 6)
        shown = np.asarray(sheet.crop((6, 6, 6 + plain.width, 6 + plain.height)), float)
        assert np.abs(shown - np.asarray(plain, float)).max() <= 1
        beside = np.asarray(sheet.crop((12 + plain.width, 6, 12 + 2 * plain.width, 6 + plain.height)), float)
        assert np.abs(beside - shown).mean() > 5, "its first word's attention"


def test_wandb_has_tables_pictures_config_and_the_bundle(run, shapes):
    import wandb

    assert wandb.run is None, "the run is closed"
    (folder,) = (run / "wandb").glob("offline-run-*")
    tables = sorted((folder / "files/media/table/val").glob("captions_*.json"), key=lambda p: int(p.name.split("_")[1]))
    assert len(tables) == 2
    table = json.loads(tables[-1].read_text(encoding="utf-8"))
    assert table["columns"] == ["file", "picture", "caption", "CIDEr", "references", "attention"]
    for i, (row, caption) in enumerate(zip(table["data"], own_captions(run, shapes), strict=True)):
        score = per_image(run).get((f"images/{16 + i}.png", caption.text), row[3])  # the best weights' evaluation
        assert [row[0], row[2]] == [f"{16 + i}.png", caption.text] and row[3] == pytest.approx(score, abs=1e-5)
        assert row[4].startswith("A ") and "\nThere is a " in row[4]
    pictures = [Image.open(path) for path in (folder / "files/media/images/val/pictures").glob("*.jpg")]
    assert len(pictures) == 8 and all(picture.height > 128 for picture in pictures)
    record = next(folder.glob("*.wandb")).read_bytes()
    for name in ("val/CIDEr", "eval/test/METEOR", "train/gradient_norm", "learning_rate/decayed", "val/pictures/3"):
        assert name.encode() in record, name
    for name in ("code_version", "environment.torch", "decoder.hidden", "tiny", "captioner-a-b", "best"):
        assert name.encode() in record, name
    for name in ("model.safetensors", "checkpoints-a-b", "best.ckpt", "last.ckpt", "weights/decoder.initial.weight"):
        assert name.encode() in record, name
    assert fingerprint(run)["train"]["sha256"].encode() in record
    for path in ("bundle/vocabulary.json", "checkpoints/last.ckpt"):
        assert str((run / path).resolve()).encode() in record, "where `wandb sync` finds it"


def per_image(run: Path) -> dict[tuple[str, str], float]:
    with (run / "eval/val/per_image.csv").open(newline="", encoding="utf-8") as file:
        return {(row["image"], row["caption"]): float(row["CIDEr"]) for row in csv.DictReader(file)}


def test_a_run_of_wandb_is_not_shared_by_two_trainings(tmp_path, monkeypatch):
    """As in a sweep in one process whose first training failed."""
    from src.loggers import WandbOrOffline

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "last.ckpt").write_bytes(b"weights")
    first = WandbOrOffline(str(tmp_path), project="p")
    names = [first.experiment.id]
    second = WandbOrOffline(str(tmp_path / "second"), project="p", log_bundle=False, log_checkpoints=False)
    names.append(second.experiment.id)
    second.finish({}, tmp_path / "bundle", [tmp_path / "last.ckpt"])
    third = WandbOrOffline(str(tmp_path / "third"), project="p")
    names.append(third.experiment.id)
    third.finish({})  # a pruned run, which has none
    assert len(set(names)) == 3
    for name, folder in zip(names[1:], ("second", "third"), strict=True):
        (record,) = (tmp_path / folder / "wandb").glob(f"offline-run-*/run-{name}.wandb")
        assert not any(kind in record.read_bytes() for kind in (b"captioner-", b"checkpoints-"))


class Drawn(GreedySearch):
    """A search that draws numbers."""

    def __call__(self, decoder, memory, **options):
        torch.rand(7)
        np.random.rand(3)
        return super().__call__(decoder, memory, **options)


def test_pictures_change_nothing(shapes, tmp_path):
    """Neither weights nor random numbers nor training mode."""
    seen = []

    class Probe(lightning.Callback):
        def on_validation_epoch_end(self, trainer, module):
            self.before = torch.get_rng_state(), np.random.get_state()[1].copy(), module.model.training

        def on_validation_end(self, trainer, module):
            seen.append(torch.equal(self.before[0], torch.get_rng_state()))
            seen.append(bool((self.before[1] == np.random.get_state()[1]).all()))
            seen.append(self.before[2] == module.model.training)

        def on_train_batch_end(self, trainer, module, *_):
            seen.append(module.model.training)

    results = []
    for callbacks in ((), (Pictures(3), Probe())):
        module, data = make(shapes, batch_size=8)
        module.generation = Drawn(max_length=8)
        logger = TensorBoardLogger(tmp_path, name=str(len(results)), version="")
        fit(module, data, tmp_path, callbacks=callbacks, logger=logger, enable_checkpointing=False)
        results.append(weights(module))
    assert_equal(*results)
    assert all(seen) and len(seen) == 3 * 3 + 3 * 2
    assert not events_of(tmp_path / "0").Tags()["images"]
    assert len(events_of(tmp_path / "1").Tags()["images"]) == 3


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_gradient_norm_is_of_the_mean_before_clipping(shapes, tmp_path, accumulate):
    rate = {"_target_": "torch.optim.SGD", "lr": 0.1}
    module, data = make(shapes, batch_size=8, dropout=0.0, frozen=True, optimizer=rate, scheduler=None)
    model = build(tiny_config(decoder__dropout=0.0, encoder__frozen=True), data.vocabulary)
    model.load_state_dict(module.model.state_dict())
    batches = list(data.train_dataloader())[:accumulate]
    losses = [CrossEntropy(0.1)(model.train(), batch) for batch in batches]
    (sum(loss.total for loss in losses) / sum(loss.count for loss in losses)).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    logger = CSVLogger(tmp_path, name="", version="")
    options = {"max_epochs": 1, "log_every_n_steps": 1, "enable_checkpointing": False, "gradient_clip_val": 1e-3}
    fit(module, data, tmp_path, callbacks=[Gauges()], logger=logger, accumulate_grad_batches=accumulate, **options)
    rows = [row for row in rows_of(tmp_path / "metrics.csv") if "train/gradient_norm" in row]
    assert len(rows) == 2 // accumulate
    assert rows[0]["train/gradient_norm"] == pytest.approx(float(expected), rel=1e-4)
    assert rows[0]["learning_rate/decayed"] == pytest.approx(0.1), "also without a schedule"
    assert rows[0]["train/images_per_second"] > 0


def test_speed_leaves_validation_out_and_counts_what_was_waited_for(shapes, tmp_path, monkeypatch):
    """On a clock that goes on a second whenever it is read; validation takes an hour."""
    now = [0.0]

    def clock() -> float:
        now[0] += 1
        return now[0]

    class Slow(lightning.Callback):
        def on_validation_epoch_end(self, trainer, module):
            now[0] += 3600

    monkeypatch.setattr("src.dashboards.time.perf_counter", clock)
    module, data = make(shapes, batch_size=4)
    logger = CSVLogger(tmp_path, name="", version="")
    options = {"max_epochs": 2, "log_every_n_steps": 2, "enable_checkpointing": False}
    fit(module, data, tmp_path, callbacks=[Gauges(), Slow()], logger=logger, **options)
    rows = [row for row in rows_of(tmp_path / "metrics.csv") if "train/images_per_second" in row]
    assert [row["step"] for row in rows] == [1, 3, 5, 7]
    for row in rows:  # two batches: a second of waiting and one of work each
        assert row["train/images_per_second"] == pytest.approx(2) and row["train/captions_per_second"] == 4
        assert row["train/data_wait"] == pytest.approx(0.5)


def test_a_captioner_that_does_not_attend_shows_pictures_and_captions(shapes, tmp_path):
    _, data = make(shapes)
    parts = (data.vocabulary, data.tokenizer, CrossEntropy(), GreedySearch(max_length=8))
    module = CaptioningModule(
        build(tiny_config("lstm"), data.vocabulary),
        *parts,
        {"_target_": "torch.optim.SGD"},
        None,
        data.images("val").captions,
    )
    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit(module, data, tmp_path, callbacks=[Pictures(2)], logger=logger, max_epochs=1, enable_checkpointing=False)
    events = events_of(tmp_path)
    for i, number in enumerate((16, 19)):
        (event,) = events.Images(f"val/pictures/{i}")
        assert (event.width, event.height) == (107, 128)
        assert f"| {number}.png |" in said_in(events)[0][1].splitlines()[2 + i]


def test_pictures_in_shards_that_others_packed(shapes, tmp_path, caplog):
    """Tars without a manifest; then one is gone, of which only the cached features are needed."""
    pytest.importorskip("webdataset")
    for split in ("train", "val"):
        write_shards(shapes / f"{split}.tsv", tmp_path / split, images=2)
        for file in ("manifest.json", "captions.tsv", "index.npy"):
            (tmp_path / split / file).unlink()
    _, tsv = make(shapes)
    options = {"form": "shards", "vocabulary": tsv.vocabulary, "cache_dir": tmp_path / "cache", "batch_size": 4}
    data = CaptionData(tmp_path, tsv.preprocess, tsv.tokenizer, "train", "val", **options)
    module, _ = make(shapes, frozen=True)
    backbone = tiny_config()["encoder"]["backbone"]
    for gone in (False, True):
        logger = TensorBoardLogger(tmp_path / f"gone {gone}", name="", version="")
        if gone:
            data.cache_features(module.model.encoder, backbone, ["train", "val"], workers=0, progress=False)
            (tmp_path / "val/000001.tar").unlink()
            data.shards["val"] = pickle.loads(pickle.dumps(data.shards["val"]))  # as another process opens them
        fit(module, data, tmp_path, callbacks=[Pictures(4)], logger=logger, max_epochs=1, enable_checkpointing=False)
        images = events_of(tmp_path / f"gone {gone}").Tags()["images"]
        assert [f"val/pictures/{i}" in images for i in range(4)] == [True, True, not gone, not gone]
        assert caplog.text.count("not among the logged pictures") == 2 * gone


def test_pictures_that_are_gone_and_no_loggers_stop_nothing(shapes, tmp_path, caplog):
    module, data = make(shapes, frozen=True)
    config = tiny_config()["encoder"]["backbone"]
    data.cache_dir = tmp_path
    data.cache_features(module.model.encoder, config, ["train", "val"], workers=0, progress=False)
    data.root = tmp_path / "gone"
    logger = TensorBoardLogger(tmp_path, name="", version="")
    for chosen in (logger, False):
        callbacks = [Pictures(), Gauges()]
        fit(module, data, tmp_path, callbacks=callbacks, logger=chosen, max_epochs=1, enable_checkpointing=False)
    assert caplog.text.count("not among the logged pictures") == 4
    assert not events_of(tmp_path).Tags()["images"]
