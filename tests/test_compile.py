"""compile=true: the same training, faster or slower."""

import shutil

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from src.averaging import MovingAverage
from src.check import check
from src.model import CaptioningModel, ConfigError, build
from src.objectives import CrossEntropy
from src.train import train
from tests.conftest import tiny_config
from tests.test_configs import composed, tiny
from tests.test_training import fit, make, weights

compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler, and there is no g++")


@compiler
@pytest.mark.parametrize("decoder", [pytest.param("lstm_attn", marks=pytest.mark.slow), "transformer"])
def test_losses_and_gradients_are_those_of_the_plain_model(decoder, shapes):
    """In training mode, for two batches of other lengths, and in eval mode; the weights keep their names."""
    torch._dynamo.reset()
    _, data = make(shapes)
    models = []
    for compiled in (False, True):
        torch.manual_seed(0)
        models.append(build(tiny_config(decoder, decoder__dropout=0.0, encoder__frozen=1), data.vocabulary))
        if compiled:
            models[1].compile_parts()
    plain, fast = models
    assert plain.state_dict().keys() == fast.state_dict().keys()
    for training, batch in zip((True, True, False), data.train_dataloader(), strict=False):
        losses = [CrossEntropy(0.1)(model.train(training), batch).total for model in models]
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
        for loss in losses:
            loss.backward()
        for (name, a), b in zip(plain.named_parameters(), fast.parameters(), strict=True):
            if a.grad is not None:
                torch.testing.assert_close(
                    a.grad, b.grad, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
                )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "something was compiled"


@compiler
@pytest.mark.slow
def test_a_compiled_training_is_averaged_and_saved_as_any(shapes, tmp_path):
    ends = []
    for compiled in (False, True):
        module, data = make(shapes, dropout=0.0, frozen=True, optimizer={"_target_": "torch.optim.SGD", "lr": 0.1})
        if compiled:
            module.model.compile_parts()
        callbacks: list[Callback] = [MovingAverage(0.5, 1)]
        trainer = fit(module, data, tmp_path, max_epochs=1, callbacks=callbacks, enable_checkpointing=False)
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        kept = torch.load(tmp_path / "end.ckpt", weights_only=True)["state_dict"]
        ends.append((weights(module), kept, float(trainer.callback_metrics["val/loss"])))
    for first, second in zip(ends[0][:2], ends[1][:2], strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            torch.testing.assert_close(value, second[name], atol=1e-5, rtol=1e-3)
    assert ends[0][2] == pytest.approx(ends[1][2], rel=1e-4)


def test_without_a_compiler_it_is_refused(shapes, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    tables = ["data=tsv", f"data.root={shapes}", "data.train=train.tsv", "data.val=val.tsv", "encoder=cnn"]
    check(composed(tables))
    with pytest.raises(ConfigError, match="compile=true needs a C\\+\\+ compiler, and there is no g\\+\\+"):
        check(composed([*tables, "compile=true"]))


def test_with_weights_that_are_shared_out_it_is_refused(shapes):
    tables = ["data=tsv", f"data.root={shapes}", "data.train=train.tsv", "data.val=val.tsv", "encoder=cnn"]
    with pytest.raises(ConfigError, match="compile=true with trainer=fsdp: not tried together"):
        check(composed([*tables, "compile=true", "trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]))


def test_the_choice_is_read(shapes, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(CaptioningModel, "compile_parts", lambda model: compiled.append(model))
    plainly = ["encoder=cnn", "encoder.width=32", "generation=greedy", "evaluate_splits=[]", *tiny(shapes, tmp_path)]
    train(composed([*plainly, "compile=true"]))
    assert len(compiled) == 1
    train(composed(plainly))
    assert len(compiled) == 1
