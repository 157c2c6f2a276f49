"""How unfamiliar a picture is, how firmly its caption stands, and `src.detect`."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import mannwhitneyu
from torch.nn import functional as F

from src import caption, detect, detection, serve
from src.bundle import DETECTOR, Bundle, bundle_config, load_bundle, save_bundle
from src.captioner import Captioner
from src.data.vocabulary import BOS, EOS
from src.detection import Detector, auroc, curve, interval, stabilities, varied
from src.ensemble import EnsembleCaptioner
from src.help import choice_fields
from src.model import build
from src.quantize import main as quantize
from src.soup import main as soup
from tests.conftest import tiny_config, write_regions


def brute(known, unknown):
    pairs = [(u > k) + (u == k) / 2 for k in known for u in unknown]
    return sum(pairs) / len(pairs)


@pytest.mark.parametrize("seed", range(4))
def test_the_area_is_the_share_of_pairs(seed):
    """Also with ties, against all pairs, SciPy's rank test, and the area under the drawn curve."""
    rng = np.random.default_rng(seed)
    known, unknown = rng.integers(0, 8, 23) / 4, rng.integers(2, 10, 17) / 4
    found = auroc(known, unknown)
    assert found == pytest.approx(brute(known, unknown))
    points = np.array(curve(known, unknown))
    assert points[0].tolist() == [0, 0] and points[-1].tolist() == [1, 1] and (np.diff(points, axis=0) >= 0).all()
    widths, heights = np.diff(points[:, 0]), (points[1:, 1] + points[:-1, 1]) / 2
    assert widths @ heights == pytest.approx(found)
    low, high = interval(found, len(known), len(unknown))
    assert 0 < low < found < high < 1
    assert found == pytest.approx(mannwhitneyu(unknown, known).statistic / (23 * 17))


def test_the_interval_holds_what_is_true():
    """Of normal scores so many deviations apart, whose area is Φ(d / √2), in 95 % of the samples."""
    rng = np.random.default_rng(0)
    for apart, true in ((1.0, 0.7602), (3.0, 0.9831)):
        areas = [auroc(rng.normal(0, 1, 60), rng.normal(apart, 1, 40)) for _ in range(1000)]
        bounds = [interval(area, 60, 40) for area in areas]
        assert 0.93 <= np.mean([low <= true <= high for low, high in bounds]) <= 0.985
        assert 0.8 < np.mean([high - low for low, high in bounds]) / (2 * 1.96 * np.std(areas)) < 1.8  # wide near 1


def test_an_area_of_few_pictures_is_worth_little():
    low, high = interval(1.0, 4, 4)
    assert high == 1 and 0.4 < low < 0.8
    assert interval(1.0, 400, 400)[0] > 0.99
    assert interval(0.0, 4, 4) == pytest.approx((0, 1 - low))


def test_areas_by_hand():
    assert auroc(np.zeros(3), np.ones(2)) == 1 and auroc(np.ones(3), np.zeros(2)) == 0
    assert auroc(np.zeros(3), np.zeros(2)) == 0.5


def drawn(count, seed, width=100, scale=1.0):
    rng = np.random.default_rng(seed)
    return (3 + rng.normal(0, 1, (count, width)) * np.linspace(4, 0.5, width) * scale).astype(np.float32)


def test_the_distance_is_mahalanobis(monkeypatch):
    """By the inverse of the covariance: the whole where every axis is kept, else the one with equal small variances."""
    training, others = drawn(400, 0), drawn(30, 1)
    centred = training - training.mean(0)
    covariance = centred.T @ centred / 399
    values, axes = np.linalg.eigh(covariance.astype(np.float64))
    for count in (20, 90):
        monkeypatch.setattr(detection, "AXES", count)
        kept = values.copy()
        kept[: 100 - count] = kept[: 100 - count].mean()
        x = (others - training.mean(0)) @ axes
        assert Detector.fit(training, others).distance(others) == pytest.approx((x**2 / kept).sum(1), rel=0.02)


def test_unfamiliar_is_the_share_that_is_nearer(tmp_path):
    detector = Detector.fit(drawn(600, 0), drawn(200, 1))
    familiar, far = detector(drawn(500, 2)), detector(drawn(20, 3, scale=3.0))
    assert 0.42 < np.mean(familiar) < 0.58 and min(familiar) < 0.05 and far == [1.0] * 20
    middle = drawn(200, 1)[np.argsort(detector.distance(drawn(200, 1)))[100]]
    assert detector(middle[None]) == [0.5]
    detector.save(tmp_path / "d")
    again = Detector.load(tmp_path / "d")
    assert again(drawn(9, 4)) == detector(drawn(9, 4)) and again.pictures == 600
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    (tmp_path / "d").write_bytes(b"no")
    with pytest.raises(ValueError, match="no detector .* `python -m src.detect fit` again"):
        Detector.load(tmp_path / "d")
    with pytest.raises(ValueError, match="12 training and 3 held-out pictures: 20 of the first"):
        Detector.fit(drawn(12, 0), drawn(3, 0))


def test_features_that_do_not_vary():
    detector = Detector.fit(np.ones((200, 8), np.float32), np.ones((5, 8), np.float32))
    assert detector(np.ones((1, 8), np.float32)) == [0.0] and detector(np.zeros((1, 8), np.float32)) == [1.0]


# ---------------------------------------------------------------- a captioner's


def picture(seed, noise=False):
    rng = np.random.default_rng(seed)
    if noise:
        return Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    colours = rng.integers(90, 160, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((32, 32), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Soft ones for training (150) and to hold out (40), by two TSVs, others like them, and noise."""
    root = tmp_path_factory.mktemp("pictures")
    for folder, count, start in (("train", 150, 0), ("val", 40, 200), ("like", 12, 300), ("noise", 10, 400)):
        (root / folder).mkdir()
        for number in range(count):
            picture(start + number, folder == "noise").save(root / folder / f"{number:03d}.png")
        rows = [f"{folder}/{n:03d}.png\ta red square\n" for n in range(count) for _ in range(2)]
        (root / f"{folder}.tsv").write_text("".join(rows))
    return root


@pytest.fixture
def bundle(vocabulary, tmp_path):
    torch.manual_seed(2)
    config = bundle_config(tiny_config(), {"encoder_weights": "random"})
    model = build(config, vocabulary).eval()
    model.decoder.classifier.weight.data *= 10
    model.encoder.project.weight.data *= 100
    save_bundle(tmp_path / "bundle", Bundle(model, vocabulary, config))
    return tmp_path / "bundle"


@pytest.fixture
def fitted(bundle, pictures, capsys):
    call = ["fit", str(bundle), "--data", str(pictures / "train.tsv"), "--val", str(pictures / "val.tsv")]
    assert detect.main([*call, "--device", "cpu"]) == 0
    assert "of 150 pictures, 40 held out" in capsys.readouterr().out
    return bundle


def load(bundle):
    return Captioner.load(bundle, device_name="cpu", precision_name="32-true")


def test_a_captioner_says_what_is_unfamiliar(fitted, pictures):
    captioner = load(fitted)
    like, noise = ([each.unfamiliar for each in captioner(pictures / name, batch_size=5)] for name in ("like", "noise"))
    assert noise == [1.0] * 10 and np.mean(like) < 0.9
    pooled = captioner.features(captioner.stacked([captioner.open(pictures / "like" / "003.png")])).pooled
    assert captioner.detector(pooled.numpy()) == [like[3]]
    captioner.defend_by(choice_fields("defence", "jpeg"))
    assert [each.unfamiliar for each in captioner(pictures / "like")] == [None] * 12, "its features are others"


def test_without_a_detector_nothing_is_said(bundle, pictures, capsys):
    (said,) = load(bundle)([pictures / "like" / "000.png"])
    assert said.unfamiliar is None and said.stability is None
    for main, call in (
        (caption.main, [str(pictures / "like"), "--model", str(bundle), "--refuse-unfamiliar", "0.9"]),
        (serve.main, ["--model", str(bundle), "--refuse-unfamiliar", "0.9", "--port", "0"]),
    ):
        assert main(call) == 2
        assert (
            "this captioner has no detector of unfamiliar pictures: `python -m src.detect fit"
            in capsys.readouterr().err
        )


def test_a_quantized_bundle_keeps_it_and_an_average_has_none(fitted, pictures, tmp_path):
    assert quantize([str(fitted), "-o", str(tmp_path / "small")]) == 0
    assert soup([str(fitted), str(fitted), "-o", str(tmp_path / "mean")]) == 0
    one, small = load_bundle(fitted).detector, load_bundle(tmp_path / "small").detector
    assert all(np.array_equal(a, b) for a, b in zip(one, small, strict=True))
    assert load_bundle(tmp_path / "mean").detector is None
    assert {path.name for path in (tmp_path / "small").iterdir()} >= {DETECTOR, "config.yaml"}


def test_stability_by_hand(bundle, pictures):
    """What each change does to the log-probability of each word, one picture and one change at a time."""
    captioner = load(bundle)
    paths = sorted((pictures / "like").iterdir())[:4]
    said = captioner(paths, batch_size=3, stability=True)
    assert [each._replace(stability=None) for each in said] == captioner(paths, batch_size=3)
    for path, each in zip(paths, said, strict=True):
        pixels = captioner.stacked([captioner.open(path)])
        ids = [BOS, *(captioner.vocabulary.index[word] for word in each.words)]
        ids += [EOS] if len(each.log_probs) > len(each.words) else []

        def mean(x, ids=ids):
            decoder = captioner.model.decoder
            with torch.no_grad():
                hidden = decoder(decoder.embed(torch.tensor([[ids[:-1]]])), captioner.model.memory(x)).hidden
                return -float(F.cross_entropy(decoder.logits(hidden)[0, 0], torch.tensor(ids[1:])))

        assert mean(pixels) == pytest.approx(np.mean(each.log_probs), abs=1e-4)
        drops = [min(mean(x) - mean(pixels), 0) for x in varied(pixels).values()]
        assert each.stability == pytest.approx(np.exp(np.mean(drops)), abs=1e-4) and 0 < each.stability <= 1
    assert len({each.stability for each in said}) > 1


def test_what_changes_no_caption():
    pixels = (torch.rand(2, 3, 50, 50) * 255).byte()
    found = varied(pixels)
    assert all(x.shape == pixels.shape and x.min() >= 0 and x.max() <= 1 for x in found.values())
    x = pixels / 255
    assert torch.equal(found["mirrored"], x.flip(3)) and torch.equal(found["moved"][..., 1:, 1:], x[..., :-1, :-1])
    flat = torch.full((1, 3, 9, 9), 0.25)
    assert all(torch.allclose(each, flat, atol=0.01) for each in varied(flat).values())


def test_ensembles_and_regions_are_refused(bundle, pictures, vocabulary):
    both = EnsembleCaptioner.load_all([bundle, bundle], device_name="cpu")
    assert both([pictures / "like" / "000.png"])[0].unfamiliar is None
    with pytest.raises(ValueError, match="by one captioner alone"):
        both([pictures / "like" / "000.png"], stability=True)
    config = bundle_config(tiny_config(), {"encoder_weights": "none"})
    config["encoder"] = {"_target_": "src.encoders.RegionEncoder", "path": "regions", "dimension": 2048}
    config["encoder"] |= {"max_regions": 9, "width": 16}
    save_bundle(bundle.parent / "regions", Bundle(build(config, vocabulary).eval(), vocabulary, config))
    write_regions(bundle.parent / "one.npz", 3)
    with pytest.raises(ValueError, match="regions computed beforehand"):
        stabilities(load(bundle.parent / "regions"), None, [])


# ---------------------------------------------------------------- the commands


def test_scores_of_pictures(fitted, pictures, tmp_path, capsys):
    (tmp_path / "mixed").mkdir()
    for name in ("like/001.png", "noise/001.png"):
        (tmp_path / "mixed" / name.replace("/", "-")).write_bytes((pictures / name).read_bytes())
    (tmp_path / "mixed" / "z.png").write_bytes(b"no picture")
    flags = ["--model", str(fitted), "--device", "cpu", "--batch-size", "2"]
    assert detect.main(["score", str(tmp_path / "mixed"), *flags, "-o", str(tmp_path / "out.tsv")]) == 1
    assert "z.png" in capsys.readouterr().err
    header, like, noise = (line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines())
    assert header == ["img_path", "unfamiliar", "confidence", "stability"]
    said = Captioner.load(fitted, device_name="cpu")(tmp_path / "mixed" / "like-001.png", stability=True)[0]
    sure = np.exp(np.mean(said.log_probs))
    assert list(map(float, like[1:])) == pytest.approx([said.unfamiliar, sure, said.stability], abs=2e-2)
    assert noise[:2] == [str(tmp_path / "mixed" / "noise-001.png"), "1.0000"]


def test_two_sets_are_told_apart(fitted, pictures, tmp_path, capsys):
    call = ["auroc", "--model", str(fitted), "--device", "cpu", "--known", str(pictures / "val.tsv"), "--limit", "20"]
    files = ["--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html")]
    assert detect.main([*call, "--unknown", str(pictures / "noise"), "--unknown", str(pictures / "like"), *files]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"20 known and 10 unknown pictures, {pictures / 'noise'}" and len(out) == 8
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["known"] == 20 and list(found["unknown"]) == [str(pictures / "noise"), str(pictures / "like")]
    said = found["unknown"][str(pictures / "noise")]
    assert (said.pop("pictures"), list(said)) == (10, list(detect.SCORES))
    for line, (name, row) in zip(out[1:4], said.items(), strict=True):
        assert line == f"  {name:<12}AUROC {row['auroc']:.3f}  ({row['low']:.3f} to {row['high']:.3f})"
    known, unknown = (
        [each.unfamiliar for each in Captioner.load(fitted, device_name="cpu")(paths)]
        for paths in (sorted((pictures / "val").iterdir())[:20], pictures / "noise")
    )
    assert said["unfamiliar"]["auroc"] == pytest.approx(brute(known, unknown)) and min(unknown) == 1
    page = (tmp_path / "a.html").read_text()
    assert page.count("<polyline") == 8 and "noise" in page and "http:" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (["fit", "BUNDLE", "--data", "like.tsv", "--val", "val.tsv"], "12 training and 40 held-out pictures: 20 of"),
        (["fit", "nowhere", "--data", "like.tsv", "--val", "val.tsv"], "nowhere: no bundle here"),
        (["fit", "BUNDLE", "--data", "nothing.tsv", "--val", "val.tsv"], "nothing.tsv"),
        (["score", "nowhere.png", "--model", "BUNDLE"], "nowhere.png: no such file"),
        (
            ["auroc", "--known", "like", "--unknown", "noise", "--limit", "0", "--model", "BUNDLE"],
            "--limit 0: 1 or more",
        ),
        (
            ["auroc", "--known", "like", "--unknown", "noise", "--html", "like/001.png", "--model", "BUNDLE"],
            "like/001.png: a picture, a video or an input, which is never written over",
        ),
    ],
)
def test_calls_that_cannot_be(call, sentence, bundle, pictures, monkeypatch, capsys):
    monkeypatch.chdir(pictures)
    assert detect.main([str(bundle) if word == "BUNDLE" else word for word in call]) == 2
    assert sentence in capsys.readouterr().err and not (bundle / DETECTOR).exists()


def test_captions_are_flagged_and_pictures_refused(fitted, pictures, tmp_path, capsys):
    (tmp_path / "mixed").mkdir()
    for name in ("like/001.png", "noise/001.png"):
        (tmp_path / "mixed" / name.replace("/", "-")).write_bytes((pictures / name).read_bytes())
    call = [str(tmp_path / "mixed"), "--model", str(fitted), "--device", "cpu"]
    assert caption.main(call) == 0
    plain = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert caption.main([*call, "--flag"]) == 0
    flagged = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in flagged] == plain and all(len(row) == 4 for row in flagged)
    assert flagged[1][2] == "1.000" and 0 < float(flagged[1][3]) <= 1
    files = ["-o", str(tmp_path / "said.jsonl"), "--flag", "--refuse-unfamiliar", "1"]
    assert caption.main([*call, *files]) == 0
    assert (
        "noise-001.png: not captioned, it is unlike the pictures that the captioner learned" in capsys.readouterr().err
    )
    first, second = map(json.loads, (tmp_path / "said.jsonl").read_text().splitlines())
    assert first["unfamiliar"] == float(flagged[0][2]) and first["stability"] == float(flagged[0][3])
    assert second == {"img_path": str(tmp_path / "mixed" / "noise-001.png"), "caption": ""}
    assert caption.main([*call, "--refuse-unfamiliar", "2"]) == 2


def test_the_service_flags_and_refuses(fitted, pictures):
    pytest.importorskip("fastapi")
    import httpx

    from src.service.app import Settings
    from tests.service.running import running

    def ask(address, name, **options):
        data = (pictures / name).read_bytes()
        return httpx.post(f"{address}/v1/caption", params=options, files={"picture": (name, io.BytesIO(data))})

    captioner = load(fitted)
    with running(captioner, Settings(unfamiliar=1.0)) as (address, _):
        assert httpx.get(f"{address}/v1/captioner").json()["detects"] is True
        plain, flagged = ask(address, "like/001.png").json(), ask(address, "like/001.png", flags=True).json()
        expected = captioner(pictures / "like" / "001.png", stability=True)[0]
        assert plain == {**flagged, "stability": None} and plain["unfamiliar"] == expected.unfamiliar
        assert flagged["stability"] == pytest.approx(expected.stability, abs=1e-4)
        refused = ask(address, "noise/001.png")
        assert refused.status_code == 422 and "unlike the pictures that the captioner learned from" in refused.text
        both = httpx.post(
            f"{address}/v1/captions",
            files=[("pictures", (n, (pictures / n).read_bytes())) for n in ("noise/001.png", "like/001.png")],
        ).json()["captions"]
        assert "unlike the pictures" in both[0]["error"] and both[1]["caption"]["text"] == plain["text"]
