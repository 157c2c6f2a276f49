"""`src.strategies`, as far as one process shows it; tests/test_distributed.py has two."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as lightning
import torch
from pytorch_lightning.plugins import MixedPrecision
from timm.layers import BatchNormAct2d
from torch import nn

from src.attention import HardAttention
from src.check import check
from src.model import ConfigError, build, instantiate
from src.objectives import Adversarial, CrossEntropy, SelfCritical, Variational
from src.strategies import CPUSyncBatchNorm, DataParallel, FullySharded, SyncedBatchNorm, trainer_arguments
from tests.conftest import tiny_config
from tests.test_configs import ENCODERS, composed
from tests.test_training import PLAIN, fit, make, weights


def network(kind: str) -> lightning.LightningModule:
    module = lightning.LightningModule()
    module.net = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    module.net[3].eval()  # a frozen one
    module._trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(kind)))
    return module


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_batch_norms_are_made_to_go_by_all_processes(kind):
    """Names, weights and what they compute alone stay: also the activations of timm's batch norms, which PyTorch's own
    conversion loses."""
    torch.manual_seed(0)
    module = network(kind)
    images = torch.randn(5, 3, 8, 8)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    expected = module.eval().net(images)
    for part in module.net[:3]:
        part.train()
    module = SyncedBatchNorm().apply(module)
    found = [type(module.net[i]) for i in (1, 3)]
    assert all(issubclass(each, CPUSyncBatchNorm if kind == "cpu" else nn.SyncBatchNorm) for each in found)
    assert module.net[1].training and not module.net[3].training
    assert before.keys() == module.state_dict().keys()
    assert torch.equal(module.eval().net(images), expected)
    assert SyncedBatchNorm().revert(module) is module


def test_alone_it_trains_as_any_batch_norm():
    torch.manual_seed(0)
    plain, images = network("cpu"), torch.randn(5, 3, 8, 8)
    synced = SyncedBatchNorm().apply(network("cpu"))
    synced.load_state_dict(plain.state_dict())
    assert torch.allclose(plain.net(images), synced.net(images), atol=1e-6)


def test_what_a_trainer_takes():
    given = {
        "strategy": {"_target_": "src.strategies.DataParallel", "timeout": 2},
        "sync_batchnorm": True,
        "devices": 2,
    }
    found = trainer_arguments(given, "32-true")
    assert isinstance(found["strategy"], DataParallel) and found["strategy"]._timeout.total_seconds() == 120
    assert isinstance(found["plugins"][0], SyncedBatchNorm) and "sync_batchnorm" not in found
    assert trainer_arguments({"strategy": "ddp", "sync_batchnorm": False}, "bf16-mixed") == {
        "strategy": "ddp",
        "precision": "bf16-mixed",
        "plugins": [],
    }


@pytest.mark.parametrize("kind", [DataParallel, FullySharded])
def test_numbers_out_of_range_are_refused(kind):
    with pytest.raises(ValueError, match="trainer.strategy.timeout=0: minutes, above 0"):
        kind(timeout=0)
    with pytest.raises(ValueError, match="trainer.strategy.backend=mpi: choose nccl, gloo, or null"):
        kind("mpi")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["trainer=ddp_cpu", "trainer.num_nodes=2"], "trainer.num_nodes=2: start this command on every node, by srun"),
        (["trainer=ddp_cpu", "trainer.strategy.timeout=soon"], "trainer.strategy.timeout=soon: a number"),
        (["trainer=ddp_cpu", "trainer.strategy.timeout=-1"], "trainer.strategy.timeout=-1: minutes, above 0"),
        (["trainer=ddp_cpu", "trainer.strategy.backend=mpi"], "backend=mpi: choose nccl, gloo, or null"),
        (["trainer=ddp", "trainer.strategy.timeouts=1"], "timeouts is no field of trainer.strategy"),
        (
            ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "callbacks=averaged"],
            "callbacks.averaging w",
        ),
    ],
)
def test_what_cannot_work_is_refused(overrides, sentence, shapes):
    tables = ["data=tsv", f"data.root={shapes}", "data.train=train.tsv", "data.val=val.tsv", "encoder=cnn"]
    plus = [("+" if each.startswith("trainer.strategy.timeouts") else "") + each for each in overrides]
    with pytest.raises(ConfigError, match=sentence):
        check(composed([*tables, *plus]))


# ---------------------------------------------------------------- what a step's gradients are


@pytest.mark.parametrize("attention", ["additive", "dot", "multihead", "hard", "adaptive"])
@pytest.mark.parametrize("decoder", ["lstm_attn", "gru_attn", "updown", "transformer", "lstm", "gru"])
def test_all_that_learns_has_a_gradient_at_every_step(shapes, decoder, attention):
    """Which is why processes need not look for what has none (DDP's `find_unused_parameters`)."""
    if attention != "additive" and decoder in ("transformer", "lstm", "gru"):
        pytest.skip("it does not take an attention")
    objectives = [CrossEntropy(0.1), CrossEntropy(scheduled_sampling=0.5), SelfCritical(3, from_random=True)]
    objectives += [Adversarial(hidden=8, from_random=True), Adversarial("policy", hidden=8, from_random=True)]
    objectives += [Variational(hidden=8)]
    _, data = make(shapes)
    batch = next(iter(data.train_dataloader()))
    for objective in objectives:
        config = tiny_config(decoder, attention)
        if isinstance(objective, Variational):
            config["latent"] = {"_target_": "src.decoders.latent.GaussianLatent", "size": 4, "hidden": 8}
        model = build(config, data.vocabulary)
        try:
            objective.check(model)
        except ValueError:
            assert attention == "hard" and any(isinstance(module, HardAttention) for module in model.modules())
            continue
        objective.begin(model, data)
        objective.progress = 0.5
        objective(model, batch).total.backward()
        parts = [*model.named_parameters(), *objective.named_parameters()]
        silent = [name for name, weight in parts if weight.requires_grad and weight.grad is None]
        assert not silent, f"{type(objective).__name__}: no gradient for {silent}"


@pytest.mark.parametrize("encoder", [name for name in ENCODERS if name != "precomputed"])
def test_all_of_an_encoder_has_a_gradient(encoder):
    made = instantiate(
        composed([f"encoder={encoder}", "encoder.backbone.weights=random", "encoder.frozen=false"])["encoder"]
    )
    size = made.backbone.img_size or 64
    seen = made.train()(torch.rand(2, 3, size, size))
    (seen.grid.square().sum() + seen.pooled.sum()).backward()
    assert [name for name, weight in made.named_parameters() if weight.requires_grad and weight.grad is None] == []


class Float32Scaled(MixedPrecision):
    """Gradients scaled as fp16's are, but computed in float32, so that nothing but the scaling can differ."""

    def __init__(self) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4096.0))

    def autocast_context_manager(self):
        return torch.autocast("cpu", enabled=False)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_scaled_loss_trains_as_an_unscaled_one(shapes, tmp_path, accumulate):
    """fp16's scaler has given the gradients back before they are divided by the tokens, measured and clipped."""
    ends, norms = [], []
    for scaled in (False, True):
        module, data = make(shapes, **PLAIN)
        seen = []

        class Watch(lightning.Callback):
            def on_before_zero_grad(self, trainer, module, optimizer, seen=seen):
                found = trainer.callback_metrics.get("train/gradient_norm")
                seen.append(None if found is None else float(found))

        plugin = Float32Scaled()
        options = {"plugins": [plugin]} if scaled else {}
        options |= {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.05, "max_epochs": 1}
        fit(module, data, tmp_path, callbacks=[Watch()], enable_checkpointing=False, limit_val_batches=0, **options)
        assert bool(plugin.state_dict()["_growth_tracker"]) == scaled, "the scaler took its steps"
        ends.append(weights(module))
        norms.append([each for each in seen if each is not None])
    assert norms[0] and norms[0] == pytest.approx(norms[1], rel=1e-4) and min(norms[0]) > 0.05, "they are clipped"
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], atol=1e-6, rtol=1e-5)
