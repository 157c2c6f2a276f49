import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from src.data.quality import Quality, quality


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    """Noise on several scales, as photographs have, in middle greys."""
    rng = np.random.default_rng(0)
    layers = [
        np.asarray(Image.fromarray(rng.normal(0, 1, (n, n)).astype(np.float32)).resize((300, 260), Image.BICUBIC))
        for n in (4, 16, 64, 256)
    ]
    grey = np.clip(128 + 22 * sum(layers), 5, 250).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def test_poorer_pictures_score_lower(photograph):
    original = quality(photograph).score
    assert 0.5 < original <= 1
    worse = {
        "blurred": photograph.filter(ImageFilter.GaussianBlur(3)),
        "darkened": ImageEnhance.Brightness(photograph).enhance(0.1),
        "overexposed": ImageEnhance.Brightness(photograph).enhance(4),
        "flat": ImageEnhance.Contrast(photograph).enhance(0.2),
        "tiny": photograph.resize((24, 20)),
    }
    scores = {name: quality(picture).score for name, picture in worse.items()}
    assert all(0 <= score < 0.9 * original for score in scores.values()), scores


def test_more_blur_is_never_better(photograph):
    scores = [quality(photograph.filter(ImageFilter.GaussianBlur(radius))).score for radius in range(7)]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 7


@pytest.mark.parametrize("colour", ["black", "white", "grey"])
def test_one_colour_is_nothing(colour):
    assert quality(Image.new("RGB", (300, 300), colour)).score == 0


def test_parts_by_hand():
    """A checkerboard of 64 and 192: each inner pixel's Laplacian is ± 4 · 128, at borders and corners less."""
    board = (np.indices((224, 224)).sum(0) % 2 * 128 + 64).astype(np.uint8)
    parts = quality(Image.fromarray(board))
    sizes = [512.0] * (222 * 222) + [384.0] * (4 * 222) + [256.0] * 4
    variance = float(np.mean(np.square(sizes)))
    assert parts.sharpness == pytest.approx(variance / (variance + 100), abs=1e-6)
    assert parts.exposure == pytest.approx(1 - (2 * 128 / 255 - 1) ** 4)
    assert parts.contrast == 1.0 and parts.resolution == 1.0
    assert quality(Image.fromarray(board[:112])).resolution == 0.5
    half_black = np.where(np.arange(224)[:, None] < 112, 0, board).astype(np.uint8)
    assert quality(Image.fromarray(half_black)).exposure == pytest.approx(0.5 * (1 - (128 / 255 - 1) ** 4))


def test_the_score_is_the_geometric_mean():
    assert Quality(1.0, 1.0, 1.0, 0.0625).score == pytest.approx(0.5)


def test_large_pictures_are_judged_by_what_is_shown(photograph):
    """Enlarged, it is no sharper than before, and is looked at no larger than 512 pixels."""
    large = photograph.resize((2400, 2080), Image.BICUBIC)
    assert quality(large).score == pytest.approx(quality(photograph).score, abs=0.1)
