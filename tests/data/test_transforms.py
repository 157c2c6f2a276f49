import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from src.data.images import ImageError
from src.data.transforms import GREY, Preprocess


def photo(width, height):
    """Smooth colours with some detail, as in a photograph."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    red = 127 + 100 * np.sin(x / 17) * np.cos(y / 23)
    green = 255 * x / width
    blue = 255 * y / height + 0 * x
    return Image.fromarray(np.stack([red, green, blue], -1).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("fit", ["squash", "crop", "letterbox"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(1, 1), (300, 200), (200, 300), (32, 32), (2000, 1), (3, 900), (7, 5)])
def test_any_shape_becomes_a_square_of_bytes(fit, interpolation, shape):
    preprocess = Preprocess(32, fit, interpolation)
    pixels = preprocess(photo(*shape))
    assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.uint8 and pixels.is_contiguous()
    assert torch.equal(pixels, preprocess(photo(*shape)))


@pytest.mark.parametrize(
    ("name", "mode"), [("bicubic", v2.InterpolationMode.BICUBIC), ("bilinear", v2.InterpolationMode.BILINEAR)]
)
def test_squash_is_torchvisions_resize(name, mode):
    expected = v2.functional.pil_to_tensor(v2.functional.resize(photo(500, 333), [64, 64], mode))
    assert torch.equal(Preprocess(64, "squash", name)(photo(500, 333)), expected)


@pytest.mark.parametrize("shape", [(512, 256), (256, 384), (256, 256)])
def test_crop_is_torchvisions_resize_and_centre_crop(shape):
    # Shapes for which torchvision's rounding to whole pixels changes nothing.
    image = photo(*shape)
    resized = v2.functional.resize(image, [64], v2.InterpolationMode.BICUBIC)
    expected = v2.functional.pil_to_tensor(v2.functional.center_crop(resized, [64, 64])).int()
    difference = (Preprocess(64, "crop")(image).int() - expected).abs()
    assert difference[:, 2:-2, 2:-2].max() <= 1  # at the cut, the pixels outside are not looked at


def test_crop_takes_the_centre():
    image = Image.new("RGB", (90, 30), (255, 0, 0))
    image.paste((0, 0, 255), (30, 0, 60, 30))
    pixels = Preprocess(30, "crop")(image)
    assert pixels[2].min() == 255 and pixels[0].max() == 0
    pixels = Preprocess(30, "crop")(image.rotate(90, expand=True))
    assert pixels[2].min() == 255 and pixels[0].max() == 0


def test_letterbox_keeps_proportions_between_grey_bars():
    image = Image.new("RGB", (80, 40), (255, 0, 0))
    pixels = Preprocess(40, "letterbox")(image)
    grey, red = torch.tensor(GREY)[:, None, None], torch.tensor([255, 0, 0])[:, None, None]
    assert (pixels[:, :10] == grey).all() and (pixels[:, 30:] == grey).all()
    assert (pixels[:, 10:30] == red).all()
    pixels = Preprocess(40, "letterbox")(image.rotate(90, expand=True))
    assert (pixels[:, :, :10] == grey).all() and (pixels[:, :, 10:30] == red).all()
    assert torch.tensor(GREY) / 255 == pytest.approx([0.485, 0.456, 0.406], abs=0.003)  # ImageNet's mean


def test_values_stay_as_bytes_and_channels_in_order():
    pixels = Preprocess(2)(Image.new("RGB", (9, 5), (255, 7, 0)))
    assert pixels.flatten(1).tolist() == [[255] * 4, [7] * 4, [0] * 4]


def test_open_decodes_reduced_but_not_too_far(tmp_path):
    path = tmp_path / "a.jpg"
    photo(1280, 960).save(path, quality=95)
    reduced, full = Preprocess(112).open(path), Preprocess(112, draft=0).open(path)
    assert reduced.shape == (3, 112, 112)
    difference = (reduced.int() - full.int()).abs()
    assert difference.max() > 0, "nothing was reduced"
    assert difference.float().mean() < 1.5
    assert torch.equal(full, Preprocess(112)(Image.open(path)))
    assert torch.equal(Preprocess(480).open(path), Preprocess(480, draft=0).open(path))  # no smaller than twice
    with pytest.raises(ImageError, match=r"none\.jpg"):
        Preprocess(112).open(tmp_path / "none.jpg")


def test_open_of_a_turned_palette_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    image = Image.new("RGB", (8, 8), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 8, 4))
    image.quantize(4).save(tmp_path / "a.png", exif=exif)
    pixels = Preprocess(8).open(tmp_path / "a.png")
    assert pixels[0, :4].min() == 255 and pixels[2, 4:].min() == 255  # red is above now


def test_it_is_plain_data():
    preprocess = Preprocess(240, "crop", "bilinear")
    plain = json.loads(json.dumps(preprocess.to_dict()))
    assert plain == {"size": 240, "fit": "crop", "interpolation": "bilinear", "draft": 2}
    assert Preprocess(**plain) == preprocess and hash(preprocess) == hash(Preprocess(**plain))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fit": "stretch"}, "transform.fit=stretch: choose squash, crop, letterbox"),
        ({"interpolation": "nearest"}, "transform.interpolation=nearest: choose bicubic, bilinear"),
        ({"size": 0}, "transform.size=0"),
        ({"draft": -1}, "draft=-1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(**arguments)
