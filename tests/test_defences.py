"""What is done to pictures before the encoder."""

import io
import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.nn import functional as F

from src import evaluate, export
from src.bundle import Bundle, bundle_config, load_bundle, save_bundle
from src.captioner import Captioner
from src.check import check
from src.data.features import features_key
from src.data.transforms import Preprocess
from src.defences import BitDepthDefence, BlurDefence, JpegDefence, RandomResizeDefence
from src.encoders import CNN, Encoder, MultiscaleEncoder
from src.ensemble import EnsembleCaptioner
from src.help import choice_fields, choices
from src.matching import digest_of
from src.model import ConfigError, build, instantiate
from src.soup import soup
from tests.conftest import tiny_config
from tests.test_bundle import make
from tests.test_configs import composed, tiny

EVERY = [JpegDefence(50), BitDepthDefence(3), BlurDefence(1.3), RandomResizeDefence(0.6, 1.4)]
PIXELS = torch.rand(3, 3, 20, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("defence", EVERY, ids=repr)
def test_shape_range_and_type_are_kept_and_gradients_pass(defence):
    for pixels in (PIXELS, PIXELS.bfloat16(), torch.ones(1, 3, 8, 8), torch.zeros(1, 3, 3, 5)):
        pixels = pixels.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            changed = defence.eval()(pixels)
        assert changed.shape == pixels.shape and changed.dtype == pixels.dtype
        assert changed.min() >= 0 and changed.max() <= 1
        changed.sum().backward()
        assert torch.isfinite(pixels.grad).all() and pixels.grad.abs().sum() > 0
    assert not torch.equal(defence(PIXELS), PIXELS)


def test_jpeg_is_pillows_round_trip():
    """Of a picture that is 8 bits deep already, by a file on its own."""
    whole = (PIXELS * 255).round()
    file = io.BytesIO()
    Image.fromarray(whole[1].byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=50)
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
    torch.testing.assert_close(JpegDefence(50)(whole / 255)[1], expected)
    errors = [(JpegDefence(quality)(PIXELS) - PIXELS).abs().mean() for quality in (95, 75, 20)]
    assert errors == sorted(errors)


def test_bits_are_levels():
    values = torch.tensor([0.0, 0.1, 0.16, 0.18, 0.5, 0.51, 0.9, 1.0]).expand(1, 3, 1, -1)
    expected = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3]) / 3  # by hand: of four levels the nearest
    found = BitDepthDefence(2)(values)[0, 0, 0]
    assert found.tolist() == pytest.approx(expected.tolist()) or found[4].item() == pytest.approx(1 / 3)
    eight = (PIXELS * 255).round() / 255
    torch.testing.assert_close(BitDepthDefence(8)(eight), eight)


@pytest.mark.parametrize("defence", EVERY[:2], ids=repr)
def test_the_gradient_of_what_rounds_is_the_identitys(defence):
    pixels, weights = PIXELS.clone().requires_grad_(), torch.randn(PIXELS.shape)
    (defence(pixels) * weights).sum().backward()
    assert torch.equal(pixels.grad, weights)


@pytest.mark.parametrize("defence", EVERY[2:], ids=repr)
def test_the_gradient_of_what_is_linear_is_that_of_differences(defence):
    """Of what is drawn, under draws that are held; away from 0 and 1, where pixels are cut off."""
    pixels = 0.2 + 0.6 * PIXELS[:1, :, :7, :7]

    def held(x):
        torch.manual_seed(1)
        with defence.drawing_anew():
            return (defence(x) * torch.arange(147).view(1, 3, 7, 7)).sum()

    given = pixels.clone().requires_grad_()
    held(given).backward()
    for place in ((0, 0, 3, 3), (0, 2, 0, 6), (0, 1, 6, 1)):
        step = torch.zeros_like(pixels)
        step[place] = 0.05
        difference = (held(pixels + step) - held(pixels - step)) / 0.1
        assert float(given.grad[place]) == pytest.approx(float(difference), rel=2e-3, abs=2e-2)


def test_blur_is_a_gaussians():
    """Of one bright pixel, by the density; it sums to 1, and a flat picture stays."""
    point = torch.zeros(1, 3, 15, 15)
    point[..., 7, 7] = 1
    found, at = BlurDefence(1.5)(point)[0, 0], torch.arange(15) - 7.0
    density = torch.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    near = (at.abs() <= 5).outer(at.abs() <= 5)
    torch.testing.assert_close(found, density * near / (density * near).sum())
    torch.testing.assert_close(BlurDefence(2.0)(torch.full((1, 3, 9, 9), 0.3)), torch.full((1, 3, 9, 9), 0.3))


def test_draws_depend_on_the_picture_alone_or_are_new():
    defence = RandomResizeDefence(0.5, 0.9, seed=3).eval()
    every = defence(PIXELS)
    assert torch.equal(every, defence(PIXELS)), "the same again"
    alone = torch.cat([defence(PIXELS[i : i + 1]) for i in (2, 0, 1)])[[1, 2, 0]]
    assert torch.equal(alone, every), "whatever is beside it"
    assert not torch.equal(RandomResizeDefence(0.5, 0.9, seed=4).eval()(PIXELS), every)
    torch.manual_seed(0)
    with defence.drawing_anew():
        first, second = defence(PIXELS), defence(PIXELS)
    assert not torch.equal(first, second) and torch.equal(defence(PIXELS), every)
    torch.manual_seed(0)
    assert torch.equal(defence.train()(PIXELS), first), "as in training"


def test_a_resized_picture_lies_on_grey_and_a_larger_one_is_cut():
    picture = torch.rand(1, 3, 16, 16)
    small = RandomResizeDefence(0.5, 0.5).eval()(picture)
    ys, xs = ((small[0] != 0.5).any(0)).nonzero().T
    inner = small[..., ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    torch.testing.assert_close(inner, F.interpolate(picture, (8, 8), mode="bilinear", antialias=True))
    large = RandomResizeDefence(2.0, 2.0).eval()(picture)
    whole = F.interpolate(picture, (32, 32), mode="bilinear")
    parts = whole.unfold(2, 16, 1).unfold(3, 16, 1)[0].permute(1, 2, 0, 3, 4)
    assert (parts - large).abs().amax((2, 3, 4)).min() < 1e-6, "some window of it"
    same = RandomResizeDefence(1.0, 1.0).eval()(picture)
    torch.testing.assert_close(same, picture)


def test_settings_that_cannot_be():
    for make_one, sentence in (
        (lambda: JpegDefence(0), "defence.quality=0: 1 to 95"),
        (lambda: BitDepthDefence(9), "defence.bits=9: 1 to 8"),
        (lambda: BlurDefence(0.0), "defence.sigma=0.0: pixels, more than 0"),
        (lambda: RandomResizeDefence(0.9, 0.8), "the first up to the second"),
        (lambda: RandomResizeDefence(seed=-1), "defence.seed=-1: at least 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            make_one()


def multiscale():
    return MultiscaleEncoder(CNN((4, 4, 8)), strides=(4, 8), sides=(None, None), width=8)


@pytest.mark.parametrize("new", [lambda: Encoder(CNN((4, 8)), width=8), multiscale], ids=["plain", "multiscale"])
def test_an_encoder_sees_what_the_defence_gives(new):
    """Whole or byte pixels, straight or by the feature cache, whose key says so."""
    torch.manual_seed(0)
    encoder, pixels = new().eval(), (torch.rand(2, 3, 32, 32) * 255).round().byte()
    config, jpeg = {"_target_": "src.encoders.CNN"}, JpegDefence(20)
    plain, key = encoder(pixels).grid, features_key(encoder, config, Preprocess(32), None)
    expected = encoder(jpeg(pixels / 255)).grid
    encoder.defend(jpeg)
    for given in (pixels, pixels / 255, encoder.frozen_regions(pixels)):
        torch.testing.assert_close(encoder(given).grid, expected)
    assert (plain - expected).abs().max() > 1e-3
    assert features_key(encoder, config, Preprocess(32), None) == {**key, "defence": "JpegDefence(quality=20)"}
    assert encoder.state_dict().keys() == new().state_dict().keys()
    encoder.defend(None)
    assert torch.equal(encoder(pixels).grid, plain)


@pytest.fixture
def pictures(shapes):
    return sorted((shapes / "images").iterdir())[:5]


def defended(vocabulary, defence, **more):
    bundle = make(vocabulary)
    bundle.model.encoder.project.weight.data *= 100
    bundle.model.encoder.defend(instantiate(defence) if defence else None)
    return bundle._replace(config={**bundle.config, "defence": defence, **more})


def probabilities(captioner, pictures, **how):
    return [caption.log_probs for caption in captioner(pictures, **how)]


@pytest.mark.parametrize("choice", choices("defence"))
def test_a_bundle_keeps_its_defence_and_one_can_be_set(choice, vocabulary, pictures, tmp_path):
    config = choice_fields("defence", choice)
    save_bundle(tmp_path / "plain", defended(vocabulary, None))
    save_bundle(tmp_path / "own", defended(vocabulary, config))
    plain, own = (Captioner.load(tmp_path / n, device_name="cpu", precision_name="32-true") for n in ("plain", "own"))
    before = probabilities(plain, pictures)
    said = probabilities(own, pictures)
    assert said == probabilities(own, pictures) and said != before
    assert sum(probabilities(own, pictures[::-1], batch_size=2)[::-1], []) == pytest.approx(sum(said, []), abs=1e-4)
    plain.defend_by(config)
    assert probabilities(plain, pictures) == said and plain.config["defence"] == config
    plain.defend_by(None)
    assert probabilities(plain, pictures) == before and plain.config["defence"] is None


def test_bundles_of_versions_without_it(vocabulary, pictures, tmp_path):
    save_bundle(tmp_path / "b", defended(vocabulary, None))
    config = yaml.safe_load((tmp_path / "b" / "config.yaml").read_text())
    del config["defence"]
    (tmp_path / "b" / "config.yaml").write_text(yaml.safe_dump(config))
    bundle = load_bundle(tmp_path / "b")
    assert bundle.config["defence"] is None and bundle.model.encoder.defence is None


def test_averages_ensembles_and_exports(vocabulary, pictures, tmp_path):
    jpeg = choice_fields("defence", "jpeg")
    for name, defence in (("plain", None), ("a", jpeg), ("b", jpeg)):
        save_bundle(tmp_path / name, defended(vocabulary, defence))
    assert isinstance(soup([tmp_path / "a", tmp_path / "b"]).model.encoder.defence, JpegDefence)
    with pytest.raises(ValueError, match="its defence is"):
        soup([tmp_path / "a", tmp_path / "plain"])
    both = EnsembleCaptioner.load_all([tmp_path / "plain", tmp_path / "a"], device_name="cpu")
    said = probabilities(both, pictures)
    both.defend_by(jpeg)
    assert probabilities(both, pictures) != said
    both.defend_by(None)
    assert [each.config["defence"] for each in both.members] == [None, None]
    if torch.__version__ >= export.LEAST_TORCH:
        with pytest.raises(export.ExportError, match="by a defence, which no export carries"):
            export.export(Captioner.load(tmp_path / "a", device_name="cpu"), tmp_path / "out", "a")


def test_an_index_is_of_one_defence(vocabulary, tmp_path):
    config = bundle_config(tiny_config(), {"encoder_weights": "random"})
    config["matcher"] = {"_target_": "src.matcher.JointMatcher", "size": 8, "words": 6, "hidden": 5, "heads": 2}
    save_bundle(tmp_path / "b", Bundle(build(config, vocabulary).eval(), vocabulary, config))
    captioner = Captioner.load(tmp_path / "b", device_name="cpu")
    first = digest_of(captioner)
    captioner.defend_by(choice_fields("defence", "blur"))
    assert digest_of(captioner) != first
    captioner.defend_by(None)
    assert digest_of(captioner) == first


def test_evaluation_is_of_defended_captions(vocabulary, shapes, tmp_path, monkeypatch):
    save_bundle(tmp_path / "b", defended(vocabulary, None))
    data = ["data=tsv", f"data.root={shapes}", "data.val=train.tsv", f"data.cache_dir={tmp_path / 'cache'}"]
    plain = ["data.workers=0", "device=cpu", "precision=32-true", "split=val", "metrics=[Bleu_1]", "pictures=0"]

    def run(*overrides):
        given = [f"model={tmp_path / 'b'}", *data, *plain, f"output={tmp_path / 'eval'}", *overrides]
        evaluate.run(composed(given, "evaluate"))
        scores, meta = (json.loads((tmp_path / "eval" / f"{name}.json").read_text()) for name in ("scores", "meta"))
        return scores["cross_entropy"], meta["defence"]

    config = {"_target_": "src.defences.BitDepthDefence", "bits": 1}
    assert run()[1] is None
    cross_entropy, recorded = run("defence=bits", "defence.bits=1")
    assert recorded == config
    save_bundle(tmp_path / "b", defended(vocabulary, config))
    assert run() == (pytest.approx(cross_entropy, rel=1e-5), config)
    assert run("defence=blur")[0] != pytest.approx(cross_entropy, rel=1e-5)
    with pytest.raises(pytest.fail.Exception):  # scores of another defence are not reused
        monkeypatch.setattr(evaluate, "evaluate", lambda *_, **__: pytest.fail("scored anew"))
        run("reuse=true")
    assert run("defence=blur", "reuse=true")[1] == choice_fields("defence", "blur")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["defence=jpeg", "defence.quality=0"], "defence.quality=0: 1 to 95"),
        (["defence=bits", "+defence.bit=3"], "defence.bit is no field of defence"),
        (["encoder=precomputed", "defence=jpeg"], "encoder=precomputed reads no pixels that could be transformed"),
        (["defence=random_resize"], "the feature cache would keep one draw of each picture: set data.cache=false"),
        (["defence=random_resize", "transform=augmented", "data.cache_views=2"], "would keep one draw"),
    ],
)
def test_configurations_that_cannot_be(overrides, sentence, shapes, tmp_path):
    given = [*tiny(shapes, tmp_path), *overrides]
    with pytest.raises(ConfigError, match=sentence.replace("(", r"\(")):
        check(composed(given))


def test_configurations_that_can_be(shapes, tmp_path):
    for overrides in (["data.cache=false"], ["encoder.frozen=false"], ["transform=augmented"]):
        check(composed([*tiny(shapes, tmp_path), "encoder=cnn", "defence=random_resize", *overrides]))
