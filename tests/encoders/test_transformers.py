"""Vision transformers: what each family says is what timm's own network says, whole and stage by stage."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from src.encoders import Encoder, TimmBackbone
from src.encoders.pretrained import WeightsError

SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 2}
FAMILIES = {
    "vit": ("vit_tiny_patch16_224", SMALL, 5),
    "without a class token": ("vit_base_patch16_siglip_gap_224", SMALL, 5),
    "clip, a norm before the blocks": ("vit_base_patch32_clip_224", SMALL, 5),
    "deit": ("deit_tiny_patch16_224", SMALL, 5),
    "deit, a second token": ("deit_tiny_distilled_patch16_224", SMALL, 5),
    "deit3": ("deit3_small_patch16_224", SMALL, 5),
    "dinov2": ("vit_small_patch14_dinov2", SMALL, 5),
    "dinov2, registers": ("vit_small_patch14_reg4_dinov2", SMALL, 5),
    "hybrid": ("vit_tiny_r_s16_p8_224", SMALL, 5),
    "swin": ("swin_tiny_patch4_window7_224", {"embed_dim": 12, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 3)}, 6),
    "swin v2": ("swinv2_tiny_window8_256", {"embed_dim": 12, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 3)}, 6),
    "eva": ("eva02_tiny_patch14_224", {"depth": 2}, 1),
    "beit": ("beit_base_patch16_224", SMALL, 1),
}
PIXELS = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_timms_own(family, tmp_path):
    """Weights of a network that timm built, read from a file; its tokens, and ours from every stage on."""
    name, options, stages = FAMILIES[family]
    pooling = "token" if "distilled" in name else ""
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=0, global_pool=pooling, img_size=64, **options).eval()
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, tmp_path / "weights.safetensors")
    ours = TimmBackbone(name, str(tmp_path / "weights.safetensors"), img_size=64, **options).eval()
    assert len(ours.stages) == stages
    with torch.no_grad():
        expected = theirs.forward_features((PIXELS - ours.mean) / ours.std)
        found = ours(PIXELS)
        if expected.dim() == 3:
            assert found.shape[2] * found.shape[3] == expected.size(1) - theirs.num_prefix_tokens
            expected = expected[:, theirs.num_prefix_tokens :]
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected.reshape(2, -1, ours.width))
        for cut in range(1, stages):
            torch.testing.assert_close(ours(ours(PIXELS, last=cut), cut), found)
    staged = [id(p) for stage in ours.stages for module in stage.modules for p in module.parameters()]
    assert sorted(staged) == sorted(id(p) for p in ours.parameters())


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "swin_tiny_patch4_window7_224"])
def test_fine_tuning_from_cached_tokens(name):
    """Class and register tokens are cached with the others: features and gradients are those of the pixels."""
    options = FAMILIES["dinov2, registers" if "dino" in name else "swin"][1]
    torch.manual_seed(0)
    backbone = TimmBackbone(name, "random", img_size=64, drop_path_rate=0.0, **options)
    encoder = Encoder(backbone, width=20, frozen=2).train()
    cached = encoder.frozen_regions(PIXELS)
    assert cached.shape == ((2, 4 * 4 + 5, 24) if "dino" in name else (2, 16 * 16, 12))
    outputs, gradients = [], []
    for images in (PIXELS, cached):
        encoder.zero_grad()
        features = encoder(images)
        features.grid.square().mul(torch.arange(20.0)).sum().backward()
        outputs.append(features)
        gradients.append({k: p.grad for k, p in encoder.named_parameters() if p.requires_grad})
    for fresh, kept in zip(*outputs, strict=True):
        torch.testing.assert_close(fresh, kept)
    assert all(gradient is not None for gradient in gradients[0].values())
    torch.testing.assert_close(*gradients)
    assert all(p.grad is None for m in encoder.frozen_modules for p in m.parameters())


def test_all_frozen_is_cached_as_a_grid():
    encoder = Encoder(TimmBackbone("vit_tiny_patch16_224", "random", img_size=48, **SMALL), width=20).eval()
    cached = encoder.frozen_regions(PIXELS[..., :48, :48])
    assert cached.shape == (2, 9, 24)
    for fresh, kept in zip(encoder(PIXELS[..., :48, :48]), encoder(cached), strict=True):
        torch.testing.assert_close(fresh, kept)


def test_weights_of_another_size_are_resampled(tmp_path):
    """As timm does it: position embeddings of 4 × 4 patches, seen by a network of 6 × 6."""
    torch.manual_seed(0)
    first = timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="", img_size=64, **SMALL)
    save_file(first.state_dict(), tmp_path / "w.safetensors")
    larger = TimmBackbone("vit_tiny_patch16_224", str(tmp_path / "w.safetensors"), img_size=96, **SMALL)
    expected = timm.layers.resample_abs_pos_embed(first.pos_embed, (6, 6), (4, 4), num_prefix_tokens=1)
    torch.testing.assert_close(larger.network.network.pos_embed, expected)
    torch.testing.assert_close(larger.blocks[2].mlp.fc1.weight, first.blocks[2].mlp.fc1.weight)
    with pytest.raises(WeightsError, match="does not fit"):
        TimmBackbone("vit_tiny_patch16_224", str(tmp_path / "w.safetensors"), **SMALL)


def test_pictures_of_another_size_than_it_is_built_for_are_refused():
    with pytest.raises(AssertionError, match="64.*doesn't match model"):
        TimmBackbone("vit_tiny_patch16_224", "random", **SMALL)(PIXELS)


def test_a_network_of_any_size_needs_no_size():
    with pytest.raises(ValueError, match=r"encoder.backbone.img_size=64: convnext_atto takes pictures of any size"):
        TimmBackbone("convnext_atto", "random", img_size=64)
