"""Maps of several stages as regions: against pooling and projecting by hand, and pyramids added up by hand."""

import re

import pytest
import torch
from torch.nn import functional as F

from src.data.features import cached_features
from src.data.transforms import Preprocess
from src.encoders import CNN, MultiscaleEncoder, TimmBackbone, TorchvisionBackbone
from src.encoders.base import grid_boxes

PIXELS = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
CHANNELS = (4, 6, 8, 10)
"""Of maps of strides 2, 4, 8 and 16: 32, 16, 8 and 4 cells a side."""


def make(channels=CHANNELS, **options) -> MultiscaleEncoder:
    torch.manual_seed(0)
    return MultiscaleEncoder(
        CNN(channels=channels), **{"strides": (4, 8, 16), "sides": (8, 5, 9), "width": 12} | options
    )


def by_hand(encoder: MultiscaleEncoder, stages=(2, 3, 4), sides=(8, 5, 4)) -> list[torch.Tensor]:
    """The maps from whole runs of the backbone, averaged."""
    return [F.adaptive_avg_pool2d(encoder.backbone(PIXELS, 0, n), side) for n, side in zip(stages, sides, strict=True)]


def test_regions_are_each_map_averaged_and_projected():
    encoder = make(position=False).eval()
    levels = [
        x.flatten(2).transpose(1, 2) @ layer.weight.T + layer.bias + encoder.scale.weight[i]
        for i, (x, layer) in enumerate(zip(by_hand(encoder), encoder.project, strict=True))
    ]
    grid = F.layer_norm(torch.cat(levels, 1), (12,))
    features = encoder(PIXELS)
    torch.testing.assert_close(features.grid, grid)
    torch.testing.assert_close(features.pooled, grid.mean(1))
    assert features.grid.shape == (2, 64 + 25 + 16, 12) and features.mask.all()


def test_a_pyramid_adds_coarser_maps_to_finer_ones():
    encoder = make(position=False, merge="pyramid").eval()
    state = encoder.project.state_dict()
    inner, above = [], None
    for i, x in reversed(list(enumerate(by_hand(encoder)))):
        lateral = F.conv2d(x, state[f"inner_blocks.{i}.0.weight"], state[f"inner_blocks.{i}.0.bias"])
        if above is not None:
            lateral = lateral + F.interpolate(above, size=lateral.shape[2:], mode="nearest")
        above = lateral
        inner.insert(0, lateral)
    levels = [
        F.conv2d(x, state[f"layer_blocks.{i}.0.weight"], state[f"layer_blocks.{i}.0.bias"], padding=1)
        for i, x in enumerate(inner)
    ]
    rows = [x.flatten(2).transpose(1, 2) + encoder.scale.weight[i] for i, x in enumerate(levels)]
    torch.testing.assert_close(encoder(PIXELS).grid, F.layer_norm(torch.cat(rows, 1), (12,)))


def test_boxes_are_those_of_each_map_in_turn():
    for sides, found in (((8, 5, 9), (8, 5, 4)), ((None, None, None), (16, 8, 4)), ((7, 7, 7), (7, 7, 4))):
        encoder = make(sides=sides).eval()
        features = encoder(PIXELS)
        expected = torch.cat([grid_boxes(side, side) for side in found])
        torch.testing.assert_close(features.boxes, expected.expand(2, -1, -1))


@pytest.mark.parametrize("size", [224, 240, 250, 260])
def test_boxes_where_a_stride_does_not_divide_the_picture(size):
    encoder = MultiscaleEncoder(TimmBackbone("tf_efficientnet_lite0", "random"), sides=(None, 14, None)).eval()
    with torch.no_grad():
        features = encoder(torch.rand(1, 3, size, size))
    sides = [-(-size // stride) for stride in (8, 16, 32)]
    sides[1] = 14
    assert features.grid.size(1) == sum(side * side for side in sides)
    torch.testing.assert_close(features.boxes[0], torch.cat([grid_boxes(side, side) for side in sides]))


def test_regions_know_where_and_of_which_size_they_are():
    """A uniform picture: regions of one map differ by their place, of one place by their map."""
    encoder = make(sides=(4, 4, 4)).eval()
    grid = encoder(torch.full((1, 3, 64, 64), 0.5)).grid[0]
    distances = torch.cdist(grid, grid) + torch.eye(len(grid))
    assert distances.min() > 1e-3


def test_which_maps_of_known_networks_are_taken():
    """The issue's own sizes: lite0's are 28² of 40, 14² of 112, 7² of 1280 at 224 pixels; ResNet's layers 2 to 4."""
    lite0 = MultiscaleEncoder(TimmBackbone("tf_efficientnet_lite0", "random"), sides=(None, None, None)).eval()
    with torch.no_grad():
        shapes = [tuple(x.shape[1:]) for x in lite0.maps(torch.rand(1, 3, 224, 224))]
    assert shapes == [(40, 28, 28), (112, 14, 14), (1280, 7, 7)]
    resnet = MultiscaleEncoder(TorchvisionBackbone("resnet18", "random"))
    assert [resnet.backbone.stages[tap].name for tap in resnet.taps] == ["layer2", "layer3", "layer4"]
    swin = TimmBackbone("swin_tiny_patch4_window7_224", "random", 64, embed_dim=12, depths=(1,) * 4, num_heads=(1,) * 4)
    assert [layer.in_features for layer in MultiscaleEncoder(swin).project] == [24, 48, 96]


def test_looking_for_the_maps_changes_nothing():
    torch.manual_seed(0)
    backbone = CNN(channels=CHANNELS)
    before, drawn = {k: v.clone() for k, v in backbone.state_dict().items()}, torch.get_rng_state()
    MultiscaleEncoder(backbone, (4, 8), (4, 4), frozen=False)
    assert backbone.training and all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    with torch.device("meta"):
        assert MultiscaleEncoder(CNN(channels=CHANNELS), (4, 8), (4, 4)).scale.weight.is_meta
    assert not torch.equal(drawn, torch.get_rng_state()), "the neck's own layers"


@pytest.mark.parametrize("merge", ["regions", "pyramid"])
@pytest.mark.parametrize("frozen", [True, 1, 2, 3])
def test_the_cache_gives_what_the_pixels_give(frozen, merge):
    """Features and gradients; the maps that are taken are kept averaged, the one to go on from as it is."""
    encoder = make(frozen=frozen, merge=merge, batch_norm="keep").train()
    cached = encoder.frozen_regions(PIXELS)
    size = {"1": 1 + 4 * 32**2, "2": 2 + 6 * (8**2 + 16**2), "3": 3 + 6 * 8**2 + 8 * (5**2 + 8**2)}
    assert cached.shape == (2, 1, size.get(str(frozen), 3 + 6 * 8**2 + 8 * 5**2 + 10 * 4**2))
    outputs, gradients = [], []
    for images in (PIXELS, cached):
        encoder.zero_grad()
        features = encoder(images)
        features.grid.square().mul(torch.arange(12.0)).sum().backward()
        outputs.append(features)
        gradients.append({k: p.grad for k, p in encoder.named_parameters() if p.requires_grad})
    for fresh, kept in zip(*outputs, strict=True):
        torch.testing.assert_close(fresh, kept)
    assert all(gradient is not None for gradient in gradients[0].values())
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
    assert all(p.grad is None for m in encoder.frozen_modules for p in m.parameters())


def test_stages_behind_the_last_map_are_left_alone():
    encoder = make(strides=(4, 8), sides=(4, 4), frozen=2).train()
    calls = []
    encoder.backbone.layers[12].register_forward_hook(lambda *_: calls.append(1))
    encoder(PIXELS).grid.sum().backward()
    learning = {name for name, p in encoder.backbone.named_parameters() if p.requires_grad}
    assert not calls and learning == {"layers.8.weight", "layers.9.weight", "layers.9.bias"}
    assert make(strides=(4, 8), sides=(4, 4), frozen=True).frozen_stages == 3


def test_the_cache_distinguishes_strides_and_sides(shapes, tmp_path):
    images = [f"images/{i:02d}.png" for i in range(4)]
    pixels = torch.stack([Preprocess(32).open(shapes / image) for image in images])

    def rows(**options):
        encoder = make(**options).eval()
        found = cached_features(encoder, {}, shapes, images, Preprocess(32), tmp_path, workers=0, progress=False)
        for fresh, kept in zip(encoder(pixels), encoder(torch.from_numpy(found.copy())), strict=True):
            torch.testing.assert_close(fresh, kept, atol=0.02, rtol=0.02)
        return len(list(tmp_path.glob("*/regions.npy")))

    assert [rows(), rows(merge="pyramid"), rows(sides=(8, 5, 1)), rows(frozen=2), rows(frozen=2)] == [1, 1, 2, 3, 3]
    assert rows(strides=(2, 8, 16)) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"strides": (4, 32), "sides": (7, 7)},
            "strides=[4, 32]: the stages of this backbone give maps of strides 2, 4, 8",
        ),
        ({"strides": (8, 4), "sides": (7, 7)}, "encoder.strides=[8, 4]: give two or more, finest first"),
        ({"strides": (8,), "sides": (7,)}, "for one map choose an encoder without _multiscale"),
        ({"sides": (7, 7)}, "encoder.sides=[7, 7]: give one for each of encoder.strides=[4, 8, 16]"),
        ({"sides": (7, 7, 0)}, "encoder.sides=[7, 7, 0]: at least 1"),
        ({"merge": "sum"}, "encoder.merge=sum: choose regions or pyramid"),
        ({"frozen": 5}, "encoder.frozen=5: this backbone has 4 stages"),
        ({"frozen": 4, "learning_rate": 0.1}, "leaves none"),
        ({"strides": (4, 8), "sides": (7, 7), "frozen": 3, "learning_rate": 0.1}, "a number below 3"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**options)


def test_a_backbone_of_one_map_is_refused():
    vit = TimmBackbone("vit_tiny_patch16_224", "random", img_size=64, embed_dim=24, depth=2, num_heads=2)
    with pytest.raises(ValueError, match="this backbone gives a single map: choose one in stages"):
        MultiscaleEncoder(vit)
    with pytest.raises(ValueError, match="this backbone gives a single map"):
        MultiscaleEncoder(TimmBackbone("densenet121", "random"))
