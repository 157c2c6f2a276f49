import numpy as np
import pytest
import torch

from src.attacks.budget import Budget, distortion, ssim

NORMS = ["linf", "l2"]


def pictures(count=4, side=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, side, side), generator=generator) / 255


def size_of(norm, change):
    flat = change.flatten(1).double()
    return flat.abs().amax(1) if norm == "linf" else flat.square().sum(1).sqrt()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [1 / 255, 8 / 255, 0.5, 3.0])
def test_no_change_leaves_the_budget_or_the_range(norm, size):
    images, budget = pictures(), Budget(norm, size)
    wild = torch.randn(images.shape, generator=torch.Generator().manual_seed(1)) * 2
    for change in (
        budget.project(wild, images),
        budget.start(images, torch.Generator().manual_seed(2)),
        budget.eight_bit(budget.project(wild, images), images),
        budget.eight_bit(budget.project(0.01 * wild, images), images),
    ):
        assert (size_of(norm, change) <= size * (1 + 1e-5)).all()
        assert float((images + change).min()) >= -1e-6 and float((images + change).max()) <= 1 + 1e-6


@pytest.mark.parametrize("norm", NORMS)
def test_eight_bits_are_whole_levels_nearest_to_the_change(norm):
    images = pictures()
    change = 0.004 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    free = Budget(norm, 100.0)
    change = free.project(change, images)
    levels = (images + free.eight_bit(change, images)) * 255
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert float((levels - (images + change) * 255).abs().max()) <= 0.5 + 1e-3


def test_what_rounding_makes_too_long_loses_its_smallest_parts():
    """By hand: of 3 levels and 2.6, 2.6 → 3, 3, 3 of length 5.2, a budget of 4.9 keeps the two largest changes."""
    images = torch.full((1, 3, 1, 1), 100 / 255)
    change = torch.tensor([2.6, 3.0, 2.7]).view(1, 3, 1, 1) / 255
    kept = Budget("l2", 4.9 / 255).eight_bit(change, images)
    assert (kept * 255).round().flatten().tolist() == [0, 3, 3]


def test_the_nearest_point_of_a_ball_by_hand():
    images = torch.full((1, 3, 1, 1), 0.5)
    change = Budget("l2", 0.1).project(torch.tensor([0.3, 0.4, 0.0]).view(1, 3, 1, 1), images)
    assert change.flatten().tolist() == pytest.approx([0.06, 0.08, 0.0], abs=1e-6)
    assert Budget("l2", 1).steepest(change).flatten().tolist() == pytest.approx([0.6, 0.8, 0.0], abs=1e-6)
    assert Budget("linf", 1).steepest(change).flatten().tolist() == [1, 1, 0]


def test_a_start_is_anywhere_and_of_its_seed():
    images = torch.full((64, 3, 4, 4), 0.5)
    for norm in NORMS:
        budget = Budget(norm, 0.2)
        one, same, other = (budget.start(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
        assert torch.equal(one, same) and not torch.equal(one, other)
    assert 0.05 < float(one.flatten(1).norm(dim=1).min()) + 0.05 < 0.1 < float(one.flatten(1).norm(dim=1).max()) <= 0.2


def test_structural_similarity_is_scikit_images():
    skimage = pytest.importorskip("skimage.metrics")
    images = pictures(3, 24)
    noisy = (images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    theirs = [
        skimage.structural_similarity(
            one.permute(1, 2, 0).double().numpy(),
            other.permute(1, 2, 0).double().numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=2,
        )
        for one, other in zip(images, noisy, strict=True)
    ]
    np.testing.assert_allclose(ssim(images, noisy).numpy(), theirs, atol=2e-5)
    assert ssim(images, images).tolist() == pytest.approx([1, 1, 1])
    with pytest.raises(ValueError, match="11 × 11"):
        ssim(images[..., :8], images[..., :8])


def test_distances_by_hand():
    images = torch.zeros(1, 3, 16, 16)
    changed = images.clone()
    changed[0, 0, 0, 0], changed[0, 1, 3, 3] = 3 / 255, 4 / 255
    far = distortion(images, changed)
    assert far.linf.tolist() == [4.0]
    assert far.l2.tolist() == pytest.approx([5 / 255])
    assert 0.99 < float(far.ssim) < 1
