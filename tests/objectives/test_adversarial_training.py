import pytest
import torch

from src.attacks.budget import Budget
from src.defences import RandomResizeDefence
from src.model import build
from src.objectives import AdversarialTraining, CrossEntropy
from tests.conftest import tiny_config
from tests.objectives.test_cross_entropy import ROWS, batch_of


def losing(model, objective, images, batch):
    model.eval()
    with torch.no_grad():
        return float(CrossEntropy().forward(model, batch._replace(images=images)).total)


@pytest.mark.parametrize(("norm", "budget"), [("linf", 8.0), ("l2", 1.0)])
@pytest.mark.parametrize("steps", [1, 3])
def test_changed_pictures_are_worse_and_within_the_budget(norm, budget, steps, tiny_model):
    batch = batch_of(ROWS)
    objective = AdversarialTraining(budget=budget, norm=norm, steps=steps, changed=1.0).train()
    tiny_model.train()
    torch.manual_seed(0)
    changed = objective.against(tiny_model, batch, batch.images, torch.arange(2))
    assert tiny_model.training and not changed.requires_grad
    change = (changed - batch.images).flatten(1)
    far = change.abs().amax(1) * 255 if norm == "linf" else change.norm(dim=1)
    assert (far <= budget * (1 + 1e-5)).all() and float(changed.min()) >= 0 and float(changed.max()) <= 1
    torch.manual_seed(0)
    drawn = batch.images + Budget(norm, budget / 255 if norm == "linf" else budget).start(
        batch.images, torch.Generator().manual_seed(0)
    )
    clean, random, worse = (losing(tiny_model, objective, x, batch) for x in (batch.images, drawn, changed))
    assert worse > clean and worse > random


def test_the_loss_is_that_of_the_changed_pictures_and_all_learns(tiny_model):
    batch = batch_of(ROWS)
    tiny_model.train()
    for module in tiny_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    objective = AdversarialTraining(budget=16, changed=1.0, label_smoothing=0.0).train()
    seen = []
    encoder = tiny_model.encoder.forward
    tiny_model.encoder.forward = lambda images: seen.append(images) or encoder(images)
    loss = objective(tiny_model, batch)
    again = CrossEntropy(label_smoothing=0.0)(tiny_model, batch._replace(images=seen[-1]))
    assert float(loss.total) == pytest.approx(float(again.total), rel=1e-4)
    assert loss.count == again.count
    assert not torch.equal(seen[-1], batch.images)
    loss.total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tiny_model.encoder.backbone.parameters())


def test_a_share_of_the_pictures_is_changed(tiny_model):
    batch = batch_of([ROWS[0]] * 64, images=64)
    tiny_model.train()
    objective = AdversarialTraining(changed=0.25).train()
    seen = []
    encoder = tiny_model.encoder.forward
    tiny_model.encoder.forward = lambda images: seen.append(images) or encoder(images)
    torch.manual_seed(1)
    objective(tiny_model, batch)
    share = float((seen[-1] != batch.images).flatten(1).any(1).float().mean())
    assert 0.1 < share < 0.4


def test_validation_is_by_clean_pictures(tiny_model):
    batch = batch_of(ROWS)
    objective = AdversarialTraining().eval()
    tiny_model.eval()
    assert float(objective(tiny_model, batch).total) == float(CrossEntropy()(tiny_model, batch).total)


def test_features_are_refused(tiny_model):
    batch = batch_of(ROWS)._replace(images=torch.rand(2, 16, 16))
    with pytest.raises(ValueError, match=r"data\.cache=false"):
        AdversarialTraining().train()(tiny_model, batch)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": 0.0}, "objective.budget=0.0: above 0"),
        ({"norm": "l1"}, "objective.norm=l1: choose linf or l2"),
        ({"steps": 0}, "objective.steps=0: at least 1"),
        ({"changed": 0.0}, "objective.changed=0.0: a share in"),
    ],
)
def test_arguments_out_of_range(options, said):
    with pytest.raises(ValueError, match=said):
        AdversarialTraining(**options)


def test_a_defence_is_applied_once_and_known(tiny_model):
    """To the pictures that are learned from once, and once in each step against it, drawing anew."""
    batch = batch_of(ROWS)
    defence = RandomResizeDefence()
    tiny_model.encoder.defend(defence)
    tiny_model.train()
    seen = []
    plain = defence.transformed
    defence.transformed = lambda pixels: seen.append((len(pixels), defence.draw_anew)) or plain(pixels)
    AdversarialTraining(steps=2, changed=0.5).train()(tiny_model, batch)
    assert seen == [(1, True), (1, True), (2, False)]


@pytest.mark.parametrize("decoder", ["lstm", "gru"])
def test_recurrent_layers_keep_training_mode(decoder, vocabulary):
    """cuDNN gives them no gradients in eval mode."""
    model = build(tiny_config(decoder, encoder__pool=True), vocabulary).train()
    layer = next(module for module in model.decoder.modules() if isinstance(module, torch.nn.RNNBase))
    seen = []
    plain = layer.forward
    layer.forward = lambda *given: seen.append(layer.training) or plain(*given)
    AdversarialTraining(changed=1.0).train()(model, batch_of(ROWS))
    assert seen and all(seen)
    assert model.training and model.decoder.training and model.encoder.training
