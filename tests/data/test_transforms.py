import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from src.corruptions import UNATTENDED, corrupt
from src.data.images import ImageError
from src.data.transforms import GREY, Augmentation, Damage, Preprocess, Variation


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


def test_resize_is_imagenets_recipe():
    image = photo(1024, 512)
    resized = v2.functional.resize(image, [64], v2.InterpolationMode.BICUBIC)
    expected = v2.functional.pil_to_tensor(v2.functional.center_crop(resized, [56, 56])).int()
    difference = (Preprocess(56, "crop", resize=64)(image).int() - expected).abs()
    assert difference[:, 2:-2, 2:-2].max() <= 1  # at the cut, the pixels outside are not looked at
    assert torch.equal(Preprocess(56, "crop", resize=56)(image), Preprocess(56, "crop")(image))


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


def test_augmentation_is_no_part_of_what_evaluation_sees():
    plain, varied = Preprocess(32), Preprocess(32, augment=Augmentation(flip=1, crop=0.3, rotation=90, erasing=1))
    assert varied.to_dict() == plain.to_dict(), "the feature cache's key"
    assert torch.equal(varied(photo(50, 40)), plain(photo(50, 40)))
    assert Preprocess(32, "crop", resize=40).to_dict() != Preprocess(32, "crop").to_dict()


def test_augmentation_is_off_by_default():
    for seed in range(20):
        assert Augmentation().draw(seed) == Variation()


def test_a_draw_depends_on_its_seed_alone():
    augment = Augmentation(0.5, "swap", 0.5, 10, 0.2, 0.2, 0.2, 0.1, 0.5, 0.3)
    drawn = [augment.draw(seed) for seed in range(50)]
    np.random.seed(1)
    torch.manual_seed(1)
    assert [augment.draw(seed) for seed in range(50)] == drawn
    assert len({variation[1:] for variation in drawn}) == 50
    assert {variation.flip for variation in drawn} == {True, False}


def test_draws_stay_in_their_ranges_and_reach_them():
    augment = Augmentation(0.3, "swap", 0.4, 20, 0.1, 0.2, 0.3, 0.05, 0.6, 0.25)
    drawn = [augment.draw(seed) for seed in range(3000)]
    for name, low, high in [
        ("angle", -20, 20),
        ("brightness", 0.9, 1.1),
        ("contrast", 0.8, 1.2),
        ("saturation", 0.7, 1.3),
        ("hue", -0.05, 0.05),
    ]:
        values = [getattr(variation, name) for variation in drawn]
        assert low <= min(values) < low + 0.02 * (high - low) and high - 0.02 * (high - low) < max(values) <= high
    for name, least, most, ratio in [("box", 0.4, 1, 4 / 3), ("erased", 0.02, 0.25, 1 / 0.3)]:
        kept = np.array([r for variation in drawn if (r := getattr(variation, name)) is not None])
        left, top, width, height = kept.T
        area = width * height
        assert least - 1e-9 <= area.min() < least + 0.02 and most - 0.02 < area.max() <= most + 1e-9
        assert area.mean() == pytest.approx((least + most) / 2, abs=0.02), "uniform"
        assert (width / height).max() <= ratio + 1e-9 and (height / width).max() <= ratio + 1e-9
        assert (width / height).max() > 0.9 * ratio and (height / width).max() > 0.9 * ratio
        assert min(left.min(), top.min()) >= 0 and max((left + width).max(), (top + height).max()) <= 1 + 1e-9
        assert np.corrcoef(left, width)[0, 1] < 0 and left.max() > 0.2
    assert np.mean([variation.flip for variation in drawn]) == pytest.approx(0.3, abs=0.03)
    assert np.mean([variation.erased is not None for variation in drawn]) == pytest.approx(0.6, abs=0.03)


@pytest.mark.parametrize("fit", ["squash", "crop", "letterbox"])
def test_flip_mirrors_all_that_is_seen(fit):
    image = photo(50, 33)
    preprocess = Preprocess(31, fit)
    assert torch.equal(preprocess(image, Variation(flip=True)), preprocess(image).flip(-1))
    everything = Variation(False, (0.1, 0.2, 0.7, 0.6), 12, 1.1, 0.9, 1.2, 0.03, (0.1, 0.1, 0.4, 0.2))
    assert torch.equal(preprocess(image, everything._replace(flip=True)), preprocess(image, everything).flip(-1))


@pytest.mark.parametrize("fit", ["squash", "crop", "letterbox"])
def test_the_box_is_cut_before_the_fit(fit):
    image = photo(200, 100)
    cut = image.crop((20, 30, 140, 80))
    difference = Preprocess(32, fit)(image, Variation(box=(0.1, 0.3, 0.6, 0.5))).int() - Preprocess(32, fit)(cut).int()
    assert difference.abs().max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (2000, 1), (3, 900), (7, 5)])
@pytest.mark.parametrize("fit", ["squash", "crop", "letterbox"])
def test_any_shape_can_be_varied(fit, shape):
    augment = Augmentation(0.5, "swap", 0.01, 180, 1, 1, 1, 0.5, 1, 1)
    image = photo(*shape)
    for seed in range(100):
        pixels = Preprocess(16, fit)(image, augment.draw(seed))
        assert pixels.shape == (3, 16, 16) and pixels.dtype == torch.uint8 and pixels.is_contiguous()


def test_rotation_is_counter_clockwise_with_grey_corners():
    image = Image.new("RGB", (40, 40), (255, 0, 0))
    image.paste((0, 0, 255), (20, 0, 40, 20))  # above, to the right
    plain = Preprocess(40)(image)
    assert torch.equal(Preprocess(40)(image, Variation(angle=90)), plain.rot90(1, (1, 2)))
    turned = Preprocess(40)(image, Variation(angle=45))
    assert turned[:, 0, 0].tolist() == list(GREY) and turned[:, -1, -1].tolist() == list(GREY)
    assert turned[:, 8, 20].tolist() == [0, 0, 255], "the corner above to the right is on top now"
    assert turned[:, 20, 8].tolist() == turned[:, 32, 20].tolist() == [255, 0, 0]


def one_colour(colour, **variation):
    return Preprocess(2)(Image.new("RGB", (2, 2), colour), Variation(**variation))[:, 0, 0].tolist()


def test_colours_by_hand():
    assert one_colour((100, 50, 200), brightness=1.2) == [120, 60, 240]
    assert one_colour((100, 50, 200), brightness=1.5) == [150, 75, 255]
    grey = round(0.299 * 100 + 0.587 * 50 + 0.114 * 200)  # ITU-R 601 luma
    assert one_colour((100, 50, 200), saturation=0) == pytest.approx([grey] * 3, abs=1)
    assert one_colour((100, 50, 200), saturation=0.5) == pytest.approx([(c + grey) / 2 for c in (100, 50, 200)], abs=1)
    assert one_colour((255, 0, 0), hue=0.5) == pytest.approx([0, 255, 255], abs=6)  # 8-bit hue
    assert one_colour((255, 0, 0), hue=1 / 3) == pytest.approx([0, 255, 0], abs=6)
    image = Image.new("RGB", (2, 2), (50, 50, 50))
    image.paste((150, 150, 150), (0, 0, 2, 1))
    pixels = Preprocess(2)(image, Variation(contrast=0.5))  # around the mean, 100
    assert pixels[:, :, 0].tolist() == [[125, 75]] * 3


def test_colours_are_torchvisions():
    image = photo(32, 32)
    expected = v2.functional.adjust_brightness(image, 1.1)
    expected = v2.functional.adjust_saturation(v2.functional.adjust_contrast(expected, 0.9), 1.3)
    expected = v2.functional.pil_to_tensor(v2.functional.adjust_hue(expected, -0.1))
    assert torch.equal(Preprocess(32)(image, Variation(False, (0, 0, 1, 1), 0, 1.1, 0.9, 1.3, -0.1)), expected)


def test_bars_and_corners_stay_grey_whatever_the_colours():
    variation = Variation(angle=10, brightness=1.5, hue=0.3)
    pixels = Preprocess(40, "letterbox")(Image.new("RGB", (80, 40), (90, 0, 0)), variation)
    assert pixels[:, 0, 20].tolist() == pixels[:, 0, 0].tolist() == list(GREY)


def test_erasing_greys_the_rectangle_and_nothing_else():
    plain = Preprocess(40)(photo(60, 50))
    erased = Preprocess(40)(photo(60, 50), Variation(erased=(0.25, 0.5, 0.5, 0.1)))
    expected = plain.clone()
    expected[:, 20:24, 10:30] = torch.tensor(GREY)[:, None, None]
    assert torch.equal(erased, expected)


def test_corruption_is_of_the_scaled_picture_before_bars_and_mirroring():
    image = photo(200, 100)
    damage = Damage("fog", 4, 5)
    plain = np.asarray(image.resize((32, 16), Image.Resampling.BICUBIC))
    expected = torch.from_numpy(corrupt(plain, "fog", 4, np.random.default_rng(5)).copy()).permute(2, 0, 1)
    pixels = Preprocess(32, "letterbox")(image, Variation(damage=damage))
    assert torch.equal(pixels[:, 8:24], expected) and pixels[:, 0, 0].tolist() == list(GREY)
    assert not torch.equal(expected, torch.from_numpy(plain.copy()).permute(2, 0, 1))
    mirrored = Preprocess(32, "letterbox")(image, Variation(damage=damage, flip=True))
    assert torch.equal(mirrored, pixels.flip(-1))


def test_corruptions_are_drawn_as_asked_for_and_change_no_other_draw():
    everything = Augmentation(0.3, "swap", 0.2, 30, 0.1, 0.2, 0.3, 0.1, 0.6, 0.4)
    corrupting = replace(everything, corruption=0.4, corruption_kinds=["fog", "crop", "snow"], corruption_severity=4)
    drawn = [corrupting.draw(seed) for seed in range(2000)]
    assert [each._replace(damage=None) for each in drawn] == [everything.draw(seed) for seed in range(2000)]
    assert drawn[:50] == [corrupting.draw(seed) for seed in range(50)], "of the seed alone"
    damages = [each.damage for each in drawn if each.damage]
    assert len(damages) / 2000 == pytest.approx(0.4, abs=0.03)
    for count, of in ((3, [d.kind for d in damages]), (4, [d.severity for d in damages])):
        shares = np.unique(of, return_counts=True)[1] / len(of)
        assert len(shares) == count and shares == pytest.approx(1 / count, abs=0.05)
    assert {d.kind for d in damages} == {"fog", "crop", "snow"} and {d.severity for d in damages} == {1, 2, 3, 4}
    assert len({d.seed for d in damages}) == len(damages)
    every = {d.kind for seed in range(2000) if (d := Augmentation(corruption=1).draw(seed).damage)}
    assert every == set(UNATTENDED), "null: all that need no captioner"


def test_an_earlier_version_drew_this():
    """Numbers that the code printed before there were corruptions."""
    earlier = [False, 0.042504048287803305, 0.05265483970167251, 0.7342753975485062, 0.8781049996768824]
    earlier += [0.017284715028504927, 1.1971306361121643, 0.9225524975331849, 0.9303416120097776, 0.0]
    earlier += [0.6999865086431737, 0.7480229566949924, 0.2282625772606066, 0.11567042109024163]
    drawn = Augmentation(0.5, "swap", 0.6, 5, 0.2, 0.2, 0.2, 0, 0.5).draw([7, 1])
    found = [drawn.flip, *drawn.box, *drawn[2:7], *(drawn.erased or ())]
    assert found == pytest.approx(earlier) and drawn.damage is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flip": 1.5}, "transform.augment.flip=1.5: give a number from 0 to 1"),
        ({"flip_captions": "drop"}, "transform.augment.flip_captions=drop: choose swap, leave"),
        ({"crop": 0}, "transform.augment.crop=0: give a number from 0.01 to 1"),
        ({"rotation": -5}, "transform.augment.rotation=-5: give a number from 0 to 180"),
        ({"brightness": -0.1}, "transform.augment.brightness=-0.1"),
        ({"hue": 0.6}, "transform.augment.hue=0.6: give a number from 0 to 0.5"),
        ({"erasing_area": 0}, "transform.augment.erasing_area=0: give a number from 0.02 to 1"),
        ({"corruption": 2}, "transform.augment.corruption=2: give a number from 0 to 1"),
        ({"corruption_severity": 6}, "transform.augment.corruption_severity=6: give a number from 1 to 5"),
        (
            {"corruption_kinds": ["fog", "mist"]},
            "transform.augment.corruption_kinds: mist: null, or choose gaussian_no",
        ),
        ({"corruption_kinds": ["occlusion"]}, "transform.augment.corruption_kinds: occlusion: null, or choose"),
        ({"corruption_kinds": []}, r"transform.augment.corruption_kinds: \[\]: null, or choose"),
    ],
)
def test_wrong_augmentations(arguments, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fit": "stretch"}, "transform.fit=stretch: choose squash, crop, letterbox"),
        ({"interpolation": "nearest"}, "transform.interpolation=nearest: choose bicubic, bilinear"),
        ({"size": 0}, "transform.size=0"),
        ({"draft": -1}, "draft=-1"),
        ({"resize": 256}, r"transform.resize=256: null, or with fit=crop at least size \(224\); fit is squash"),
        ({"resize": 200, "fit": "crop"}, "transform.resize=200: null, or with fit=crop at least size"),
        ({"augment": {"flip": 0.5}}, "null, or begin with transform=augmented"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(**arguments)
