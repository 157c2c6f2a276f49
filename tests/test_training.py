"""Training through Lightning, as `python -m src.train` does it, at sizes that take seconds."""

import pytest
import pytorch_lightning as lightning
import torch

from src.data.module import CaptionData
from src.data.tokenizer import EnglishTokenizer
from src.data.transforms import Augmentation, Preprocess
from src.data.vocabulary import PAD
from src.generation import BeamSearch
from src.model import build
from src.objectives import CrossEntropy
from src.training import CaptioningModule
from tests.conftest import tiny_config

OPTIMIZER = {"_target_": "torch.optim.AdamW", "lr": 0.01}
# Nothing that depends on how a batch is cut: no dropout, no batch norm that learns, no normalised gradients.
PLAIN = {"dropout": 0.0, "frozen": True, "scheduler": None, "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1}}
SCHEDULE = {"_target_": "src.schedules.WarmupCosine", "warmup": 0.2}


def make(
    shapes,
    seed=0,
    scheduler=SCHEDULE,
    batch_size=4,
    dropout=0.3,
    frozen=False,
    optimizer=OPTIMIZER,
    augment=None,
    **encoder,
):
    torch.manual_seed(seed)
    data = CaptionData(
        shapes,
        Preprocess(16, augment=augment),
        EnglishTokenizer(),
        train="train.tsv",
        val="val.tsv",
        min_count=1,
        batch_size=batch_size,
        seed=seed,
    )
    encoder = {f"encoder__{key}": value for key, value in {"frozen": frozen, **encoder}.items()}
    model = build(tiny_config(decoder__dropout=dropout, **encoder), data.vocabulary)
    module = CaptioningModule(
        model,
        data.vocabulary,
        data.tokenizer,
        CrossEntropy(0.1),
        BeamSearch(2, max_length=8),
        optimizer,
        scheduler,
        data.images("val").captions,
        config=tiny_config(),
        seed=seed,
    )
    return module, data


def fit(module, data, folder, ckpt=None, callbacks=(), **options):
    options = {"max_epochs": 3, "logger": False, "enable_progress_bar": False, "gradient_clip_val": 1.0, **options}
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        callbacks=[*callbacks],
        **options,
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=True)
    return trainer


def weights(module):
    return {k: v.clone() for k, v in module.model.state_dict().items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("seed", [0, 7])
def test_the_same_seed_is_the_same_run(shapes, tmp_path, seed):
    runs = []
    for folder in ("a", "b"):
        module, data = make(shapes, seed)
        fit(module, data, tmp_path / folder, max_epochs=2, enable_checkpointing=False)
        runs.append(weights(module))
    assert_equal(*runs)
    other, data = make(shapes, seed + 1)
    fit(other, data, tmp_path / "c", max_epochs=2, enable_checkpointing=False)
    assert not torch.equal(runs[0]["decoder.word.weight"], weights(other)["decoder.word.weight"])


@pytest.mark.parametrize("stop_after", ["an epoch", "the middle of an epoch"])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(shapes, tmp_path, stop_after):
    """With dropout, a schedule, shuffling, varied pictures and Adam's state; 4 steps an epoch, stopped after 4 or 6."""
    augment = Augmentation(flip=0.5, crop=0.5, rotation=20, brightness=0.3, erasing=0.3)
    module, data = make(shapes, augment=augment)
    fit(module, data, tmp_path / "whole", enable_checkpointing=False)
    expected = weights(module)

    steps = 4 if stop_after == "an epoch" else 6
    saved = tmp_path / "saved.ckpt"

    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == steps and steps % 4:
                trainer.save_checkpoint(saved)
                trainer.should_stop = trainer.fit_loop.epoch_loop._should_stop_training = True
                raise KeyboardInterrupt

        def on_validation_end(self, trainer, module):
            if trainer.global_step == steps and not saved.exists():
                trainer.save_checkpoint(saved)

        def on_train_epoch_start(self, trainer, module):
            if trainer.global_step == steps and steps % 4 == 0:
                raise KeyboardInterrupt

    module, data = make(shapes, augment=augment)
    with pytest.raises(BaseException):  # noqa: B017 Lightning turns the interrupt into its own exit
        fit(module, data, tmp_path / "first", callbacks=[Stop()], enable_checkpointing=False)
    assert saved.exists()

    module, data = make(shapes, augment=augment)
    torch.nn.init.zeros_(module.model.decoder.word.weight)  # whatever it starts from, the checkpoint decides
    trainer = fit(module, data, tmp_path / "second", ckpt=saved, enable_checkpointing=False)
    assert trainer.global_step == 12
    assert_equal(expected, weights(module))


def test_accumulated_steps_equal_one_large_batch(shapes, tmp_path):
    """Batches of unequal token counts: dividing by the sum of counts, not averaging averages."""
    results = []
    for batch_size, accumulate in ((16, 1), (4, 4)):
        module, data = make(shapes, batch_size=batch_size, **PLAIN)
        fit(
            module,
            data,
            tmp_path,
            max_epochs=1,
            accumulate_grad_batches=accumulate,
            enable_checkpointing=False,
            limit_val_batches=0,
        )
        results.append(weights(module))
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], atol=1e-6, rtol=1e-5)


def test_validation_scores_come_from_generated_captions(shapes, tmp_path):
    """Equal to captioning and scoring by hand; a teacher-forced score would differ."""
    from src.metrics.captions import score_captions

    module, data = make(shapes)
    trainer = fit(module, data, tmp_path, max_epochs=2, enable_checkpointing=False)
    split = data.images("val")
    module.eval()
    batch = next(iter(data.evaluation_dataloader("val")))
    with torch.no_grad():
        found = module.generation(module.model.decoder, module.model.memory(batch.images))
    said = {
        str(i): data.tokenizer.join(data.vocabulary.decode(row)) for i, row in enumerate(found.tokens[:, 0].tolist())
    }
    expected = score_captions(
        said, {str(i): split.captions[i] for i in range(4)}, tokenizer="ptb", metrics=["Bleu_4", "CIDEr"]
    )
    assert float(trainer.callback_metrics["val/CIDEr"]) == pytest.approx(expected.corpus["CIDEr"], abs=1e-6)
    assert float(trainer.callback_metrics["val/Bleu_4"]) == pytest.approx(expected.corpus["Bleu_4"], abs=1e-6)
    loss = CrossEntropy(0.1)(module.model, batch)
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(float(loss.total / loss.count), rel=1e-4)


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        ([["red"]] * 4, "one caption for 4 of 4 pictures: “red”"),
        ([[], ["red"], ["green"], ["blue"]], "1 of 4 captions are empty"),
        ([["a"] * 7, ["red"], ["green"], ["blue"]], "repeat a phrase endlessly, such as “a a a a a a a”"),
    ],
)
def test_validation_warns_of_degenerate_captions(shapes, tmp_path, caplog, ids, sentence):
    module, data = make(shapes)
    found = [torch.tensor(data.vocabulary.encode(words)[1:]) for words in ids]
    rows = torch.nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=PAD)

    class Degenerate(type(module.generation)):
        def __call__(self, decoder, memory, **options):
            hypotheses = super().__call__(decoder, memory, **options)
            return hypotheses._replace(tokens=rows[:, None])

    module.generation.__class__ = Degenerate
    with caplog.at_level("WARNING"):
        fit(module, data, tmp_path, max_epochs=1, enable_checkpointing=False, limit_train_batches=1)
    (said,) = [record.getMessage() for record in caplog.records if "validation" in record.getMessage()]
    assert said.startswith("validation after epoch 1: ") and sentence in said


def test_a_frozen_backbone_stays_as_it_was(shapes, tmp_path):
    module, data = make(shapes, frozen=True)
    before = {k: v.clone() for k, v in module.model.encoder.backbone.state_dict().items()}
    fit(module, data, tmp_path, max_epochs=1, enable_checkpointing=False)
    assert_equal(before, module.model.encoder.backbone.state_dict())


def stage_weights(module):
    stages = module.model.encoder.backbone.stages
    return [[p.detach().clone() for m in stage.modules for p in m.parameters()] for stage in stages]


def changed(before, after):
    return [any(not torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in zip(before, after, strict=True)]


def test_stages_learn_from_their_epoch_on_at_their_own_rate(shapes, tmp_path):
    module, data = make(shapes, frozen=1, unfreeze_epoch=2, learning_rate=0.003)
    seen, rates = [stage_weights(module)], []

    class Watch(lightning.Callback):
        def on_train_epoch_end(self, trainer, module):
            seen.append(stage_weights(module))
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    fit(module, data, tmp_path, max_epochs=4, enable_checkpointing=False, callbacks=[Watch()])
    learned = [changed(*pair) for pair in zip(seen[:-1], seen[1:], strict=True)]
    assert learned == [[False, False, False]] * 2 + [[False, True, True]] * 2
    for decoder, plain, backbone, its_plain in rates:
        assert decoder == plain and backbone == its_plain == pytest.approx(0.3 * decoder)


def test_a_run_resumed_in_the_middle_of_a_waking_epoch_is_awake(shapes, tmp_path):
    module, data = make(shapes, frozen=1, unfreeze_epoch=1)

    class Save(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == 6:
                trainer.save_checkpoint(tmp_path / "six.ckpt")

    fit(module, data, tmp_path, max_epochs=2, enable_checkpointing=False, callbacks=[Save()])
    resumed, data = make(shapes, frozen=1, unfreeze_epoch=1)
    trainer = fit(resumed, data, tmp_path, max_epochs=2, ckpt=tmp_path / "six.ckpt", enable_checkpointing=False)
    assert trainer.global_step == 8
    assert_equal(weights(module), weights(resumed))


def test_checkpoints_hold_tensors_and_plain_values(shapes, tmp_path):
    module, data = make(shapes)
    trainer = fit(module, data, tmp_path, max_epochs=1, enable_checkpointing=False)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    checkpoint = torch.load(tmp_path / "c.ckpt", weights_only=True)
    assert checkpoint["vocabulary"]["words"] == data.vocabulary.words
    assert checkpoint["config"]["decoder"]["hidden"] == 14


def test_a_schedule_without_an_end_is_refused(tiny_model, vocabulary):
    """KL annealing and scheduled sampling follow the share of the run that is done, which a run without end lacks."""
    from types import SimpleNamespace

    module = CaptioningModule(
        tiny_model, vocabulary, EnglishTokenizer(), CrossEntropy(scheduled_sampling=0.1), BeamSearch(), {}
    )
    module._trainer = SimpleNamespace(estimated_stepping_batches=float("inf"))
    with pytest.raises(ValueError, match=r"set trainer.max_epochs or max_steps"):
        module.on_fit_start()
    module.objective = CrossEntropy()
    module.on_fit_start()


def test_an_epoch_of_fewer_batches_is_a_whole_one(shapes, tmp_path):
    """`trainer.limit_train_batches`: what goes on after it begins the next epoch at its first batch."""
    module, data = make(shapes, batch_size=4)
    fit(module, data, tmp_path, max_epochs=1, limit_train_batches=3, enable_checkpointing=False)
    assert data.state_dict() == {"done": 0}
    module, data = make(shapes, batch_size=4)
    fit(module, data, tmp_path, max_epochs=9, max_steps=2, limit_train_batches=3, enable_checkpointing=False)
    assert data.state_dict() == {"done": 2}
