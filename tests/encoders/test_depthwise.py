import copy
import pickle

import pytest
import torch

from src.encoders import Encoder, TimmBackbone, TorchvisionBackbone
from src.encoders.depthwise import InFloat32, hasten_depthwise

PIXELS = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def encoder():
    return Encoder(TimmBackbone("tf_efficientnet_lite0", weights="imagenet"), frozen=4)


def depthwise(encoder):
    return [m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1]


def gradients(encoder, pixels=PIXELS):
    encoder.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        encoder(pixels).grid.float().square().sum().backward()
    return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


def test_every_depthwise_convolution_is_one_and_no_other(encoder):
    assert len(depthwise(encoder)) == 16
    assert all(isinstance(module, InFloat32) for module in depthwise(encoder))
    assert sum(isinstance(module, InFloat32) for module in encoder.modules()) == 16
    kinds = {type(module).__name__ for module in depthwise(encoder)}
    assert kinds == {"Conv2d", "Conv2dSame"}, "timm's own, which pads as TensorFlow does, keeps its padding"
    names = list(encoder.state_dict())
    hasten_depthwise(encoder.backbone)
    assert list(encoder.state_dict()) == names
    assert all(type(module).__mro__[1] is InFloat32 for module in depthwise(encoder)), "once, however often it is asked"
    other = Encoder(TorchvisionBackbone("mobilenet_v2", weights="random"))
    assert depthwise(other) and all(isinstance(module, InFloat32) for module in depthwise(other))


def test_it_can_be_copied_and_pickled(encoder):
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert [type(m) for m in depthwise(other)] == [type(m) for m in depthwise(encoder)]
        assert not {id(p) for p in other.parameters()} & {id(p) for p in encoder.parameters()}
        assert torch.equal(other.eval()(PIXELS).grid, encoder.eval()(PIXELS).grid)


def test_what_learns_is_computed_in_float32_and_nothing_else_is(encoder):
    """A kernel's gradient has no bfloat16 in it: it is that of float32 on the same input and the same slope."""
    learning = copy.deepcopy(encoder).train()
    seen = {}

    def keep(module, given, output):
        output.register_hook(lambda slope: seen.update({module: (given[0], slope)}))

    learns = [m for m in depthwise(learning) if m.weight.requires_grad]
    assert 0 < len(learns) < 16
    hooks = [module.register_forward_hook(keep) for module in learns]
    gradients(learning)
    for hook in hooks:
        hook.remove()
    for module, (given, slope) in seen.items():
        assert given.dtype == slope.dtype == torch.bfloat16
        weight = module.weight.detach().requires_grad_()
        plain = type(module).__mro__[2]
        twin = copy.copy(module)
        twin.__class__ = plain
        twin._parameters = {**module._parameters, "weight": weight}
        twin(given.detach().float()).backward(slope.float())
        torch.testing.assert_close(module.weight.grad, weight.grad)
    assert set(seen) == set(learns)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert all(module(given.detach()).dtype == torch.bfloat16 for module, (given, _) in seen.items())


def test_without_gradients_it_is_what_it_was(encoder):
    plain = copy.deepcopy(encoder).eval()
    for module in depthwise(plain):
        module.__class__ = type(module).__mro__[2]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.eval()(PIXELS).grid, plain(PIXELS).grid)
    assert torch.equal(encoder(PIXELS).grid, plain(PIXELS).grid), "and without autocast"
    found, expected = gradients(encoder), gradients(plain)
    assert found.keys() == expected.keys()
    norm = sum(float((found[name] - expected[name]).norm() ** 2) for name in found) ** 0.5
    assert 0 < norm < 0.05 * sum(float(each.norm() ** 2) for each in expected.values()) ** 0.5
