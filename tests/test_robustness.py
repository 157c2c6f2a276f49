"""`src.robustness`: captions of damaged pictures, resumed, scored, shown."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from src import evaluate, robustness
from src.bundle import Bundle, bundle_config, save_bundle
from src.captioner import Captioner
from src.check import check
from src.corruptions import CORRUPTIONS, KINDS, corrupt, generator
from src.data.transforms import Preprocess
from src.model import ConfigError, build
from src.robustness import damage, relative_errors, shrunk
from tests.browsing import marks
from tests.conftest import tiny_config
from tests.test_configs import composed


def save(path, vocabulary, seed, decoder="lstm_attn", **overrides):
    torch.manual_seed(seed)
    config = bundle_config(tiny_config(decoder, **overrides), {"encoder_weights": "random"})
    made = build(config, vocabulary).eval()
    made.decoder.classifier.weight.data *= 10
    made.encoder.project.weight.data *= 100
    save_bundle(path, Bundle(made, vocabulary, config))
    return str(path)


@pytest.fixture(autouse=True)
def _no_java(monkeypatch):
    """The Python tokenizer: of the real one's half seconds there would be a hundred."""
    monkeypatch.setattr("src.metrics.captions.find_java", lambda: None)


@pytest.fixture
def model(tmp_path, vocabulary):
    return save(tmp_path / "first", vocabulary, 2)


@pytest.fixture
def other(tmp_path, vocabulary):
    """Of the same input size; it does not say where it looks."""
    return save(tmp_path / "other", vocabulary, 3, "lstm", encoder__pool=True)


@pytest.fixture
def run(shapes, tmp_path, capsys):
    def run(*overrides, command=robustness):
        data = ["data=tsv", f"data.root={shapes}", "data.val=train.tsv", f"data.cache_dir={tmp_path / 'cache'}"]
        plain = ["device=cpu", "precision=32-true", "split=val", "limit=6", "metrics=[ROUGE_L,CIDEr]"]
        name = command.__name__.removeprefix("src.")
        output = [] if any(each.startswith("output=") for each in overrides) else [f"output={tmp_path / name}"]
        capsys.readouterr()
        return command.run(composed([*data, *plain, *output, *overrides], name))

    return run


FEW = ["kinds=[occlusion,crop,fog]", "severities=[3,1]"]


@pytest.fixture
def searches(monkeypatch):
    """Of every search, how many pictures; raising KeyboardInterrupt after `searches.most`."""

    class Searches(list):
        most = None

    counted, own = Searches(), Captioner.search

    def search(self, images, *rest, **more):
        if counted.most is not None and len(counted) >= counted.most:
            raise KeyboardInterrupt
        counted.append(len(images.grid))
        return own(self, images, *rest, **more)

    monkeypatch.setattr(Captioner, "search", search)
    return counted


def test_what_it_leaves(run, model, tmp_path, capsys):
    report = run(f"model={model}", *FEW, "pictures=5")
    printed = capsys.readouterr().out
    assert json.loads((tmp_path / "robustness/robustness.json").read_text()) == report
    (mine,) = report["captioners"]
    clean = run(f"model={model}", "data.cache=false", command=evaluate)
    assert mine["clean"] == {name: clean[name] for name in ("ROUGE_L", "CIDEr")}, "as src.evaluate scores it"
    assert report["kinds"] == {"fog": "weather", "crop": "shift", "occlusion": "shift"}, "in the house's order"
    assert report["severities"] == [1, 3] and report["images"] == 6 and mine["attends"]
    rows = list(csv.DictReader((tmp_path / "robustness/robustness.csv").open()))
    assert [(row["kind"], row["severity"]) for row in rows[:3]] == [("clean", "0"), ("fog", "1"), ("fog", "3")]
    cider = {(row["kind"], int(row["severity"])): float(row["CIDEr"]) for row in rows}
    assert len(cider) == 7 and len(set(cider.values())) > 3, "damage changes captions"
    by_kind = {kind: (cider[kind, 1] + cider[kind, 3]) / 2 for kind in report["kinds"]}
    assert mine["by_kind"] == pytest.approx(by_kind) and mine["mean"] == pytest.approx(sum(by_kind.values()) / 3)
    assert mine["by_family"] == pytest.approx(
        {"weather": by_kind["fog"], "shift": (by_kind["crop"] + by_kind["occlusion"]) / 2}
    )
    assert mine["worst"] == sorted(by_kind, key=by_kind.get)
    low, high = mine["interval"]
    assert low < mine["mean"] < high
    assert mine["mCE"] == 1 and mine["relative_mCE"] in (1, None), "beside itself"
    for kind, family in report["kinds"].items():
        numbers = [f"{100 * cider[kind, s]:.1f}" for s in (1, 3)]
        assert any(line.split()[:4] == [kind, family, *numbers] for line in printed.splitlines())
    page = (tmp_path / "robustness/report.html").read_text()
    assert page.count("data:image/jpeg") == 10 and "http:" not in page.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize("held", [2, 2000])
def test_captions_are_of_the_damaged_pictures(held, run, model, shapes, tmp_path, monkeypatch):
    """Also where not all pictures are kept decoded."""
    monkeypatch.setattr(robustness, "HELD", held)
    run(f"model={model}", *FEW, "seed=5")
    captioner = Captioner.load(model, device_name="cpu", precision_name="32-true")
    for path in (tmp_path / "robustness/cells").glob("*.json"):
        found = json.loads(path.read_text())
        kind, severity = found["identity"]["kind"], found["identity"]["severity"]
        if kind == "occlusion":
            continue
        for name, text in found["captions"].items():
            pixels = shrunk(Image.open(shapes / name).convert("RGB"), 32)
            assert pixels.shape == (38, 32, 3)
            chance = generator(5, name, kind, severity)
            image = Image.open(shapes / name)
            if kind != "clean":
                image = Image.fromarray(corrupt(pixels, kind, severity, chance))
            assert captioner(image)[0].text == text


def test_it_goes_on_where_it_stopped(run, model, searches, tmp_path, monkeypatch):
    whole = run(f"model={model}", *FEW, f"output={tmp_path / 'whole'}")
    count = len(searches)
    assert sum(searches) == 7 * 6
    searches.clear()
    searches.most = count // 2
    with pytest.raises(KeyboardInterrupt):
        run(f"model={model}", *FEW)
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "robustness/cells").iterdir()}
    assert 2 <= len(finished) <= 4 and not (tmp_path / "robustness/robustness.json").exists()
    damaged = sorted(finished)[0]
    damaged.write_text(damaged.read_text()[:50])  # half a file
    searches.most = None
    searches.clear()
    report = run(f"model={model}", *FEW)
    assert sum(searches) == (7 - len(finished) + 1) * 6, "what was finished is taken up, the damaged file is not"
    assert {**report, "date": ""} == {**whole, "date": ""}
    kept = {path: path.stat().st_mtime_ns for path in finished if path != damaged}
    assert kept == {path: time for path, time in finished.items() if path != damaged}
    searches.clear()
    again = run(f"model={model}", *FEW, "metrics=[ROUGE_L,CIDEr,Bleu_1]", "measure=Bleu_1")
    assert not searches, "other metrics need no captions"
    (mine,) = again["captioners"]
    assert mine["clean"]["Bleu_1"] > 0 and mine["clean"]["CIDEr"] == report["captioners"][0]["clean"]["CIDEr"]
    assert mine["interval"] is None, "no mean over pictures"
    run(f"model={model}", *FEW, "seed=1")
    assert sum(searches) == 6 * 6, "another seed is other damage, of the same clean pictures"
    searches.clear()
    run(f"model={model}", *FEW, "seed=1", "generation=greedy")
    assert sum(searches) == 7 * 6, "another search is another captioner"
    searches.clear()
    monkeypatch.setattr(robustness, "_code", lambda: "another version")
    run(f"model={model}", *FEW)
    assert sum(searches) == 6 * 6, "of another version, pictures may be damaged otherwise"


def test_two_captioners(run, model, other, monkeypatch, capsys):
    opened, own = [], Preprocess.decode
    monkeypatch.setattr(Preprocess, "decode", lambda self, path: opened.append(path) or own(self, path))
    report = run(f"model=[{model},{other}]", f"relative_to={other}", *FEW, "pictures=0")
    assert len(opened) == len(set(opened)) == 6, "a picture is decoded once"
    printed = capsys.readouterr().out
    assert "it does not say where it looks, so the middle of the pictures is hidden" in printed
    first, second = report["captioners"]
    assert first["attends"] and not second["attends"] and second["mCE"] == 1

    def errors(each, kind, of):
        return sum(of(each, each["scores"][kind][str(severity)]) for severity in (1, 3))

    by_rouge = [errors(first, k, lambda _, s: 1 - s["ROUGE_L"]) / errors(second, k, lambda _, s: 1 - s["ROUGE_L"])
                for k in report["kinds"]]  # fmt: skip
    assert first["mCE"] == pytest.approx(sum(by_rouge) / 3)
    lost = {k: [errors(each, k, lambda e, s: e["clean"]["CIDEr"] - s["CIDEr"]) for each in (first, second)]
            for k in report["kinds"]}  # fmt: skip
    expected = [a / b for a, b in lost.values() if b > 0]
    assert first["relative_mCE"] == (pytest.approx(np.mean(expected)) if expected else None)


def test_corruption_errors_by_hand():
    own = {"fog": [0.2, 0.4], "snow": [0.3, 0.3], "crop": [0.1, 0.1]}
    base = {"fog": [0.1, 0.2], "snow": [0.4, 0.8], "crop": [0.1, -0.1]}
    found = relative_errors(own, base)
    assert found == {"fog": pytest.approx(2), "snow": pytest.approx(0.5), "crop": None}
    assert robustness.mean(found.values()) == pytest.approx(1.25) and robustness.mean([None]) is None


def test_large_pictures_are_damaged_at_the_size_that_is_seen():
    assert shrunk(Image.new("RGB", (500, 400)), 40).shape == (40, 50, 3)
    assert shrunk(Image.new("RGB", (50, 40)), 224).shape == (40, 50, 3), "small ones are not enlarged"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_of_its_own_chance(kind):
    picture = np.asarray(Image.radial_gradient("L").convert("RGB").resize((48, 40)))
    corners = {"a": [(0.1, 0.2)] * 5} if CORRUPTIONS[kind].attended else {}
    found = damage(picture, "a", (kind, 4), 3, corners)
    assert np.array_equal(found, damage(picture, "a", (kind, 4), 3, corners)) and not np.array_equal(found, picture)


def test_what_was_looked_at_is_hidden(run, model, tmp_path):
    run(f"model={model}", "kinds=[occlusion]", "severities=[2]", "pictures=1")
    (path,) = (tmp_path / "robustness/cells").glob("clean-*.json")
    corners = json.loads(path.read_text())["corners"]
    assert len(corners) == 6 and all(len(each) == 5 for each in corners.values())
    assert all(0 <= at <= 1 for each in corners.values() for corner in each for at in corner)
    assert len({json.dumps(each) for each in corners.values()}) > 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["kinds=[fog,mist]"], "kinds=.*mist.*: a list, each item one of gaussian_noise, .*null is wanted"),
        (["kinds=[]"], r"kinds=\[\]: give at least one"),
        (["severities=[0,1]"], "severities=.*: a list, each item one of 1, 2, 3, 4, 5"),
        (["measure=METEOR"], r"measure=METEOR: add it to metrics, which are \[Bleu_4, ROUGE_L, CIDEr\]"),
        (["measure=cider"], "measure=cider: one of .* is wanted .did you mean CIDEr"),
        (["relative_to=runs/b"], "relative_to=runs/b: one of model is wanted, flickr8k-bilingual"),
        (["model=nowhere"], "model=nowhere: no such file, directory or captioner"),
        (["model=[flickr8k-bilingual,flickr8k-bilingual]"], "model: flickr8k-bilingual is named twice"),
        (["limit=0"], "limit=0: at least 1"),
        (["data=tsv", "data.root=x", "data.val=y"], "no such folder"),
    ],
)
def test_refusals(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check(composed(overrides, "robustness"), "robustness")


def test_captioners_that_are_scored_otherwise_are_refused(run, model, tmp_path, vocabulary):
    chinese = vocabulary.extended([], controls={"<zh>": 1})
    config = bundle_config(tiny_config(), {"encoder_weights": "random"})
    config["tokenizer"] = {"_target_": "src.data.tokenizer.CharacterTokenizer"}
    save_bundle(tmp_path / "zh", Bundle(build(config, chinese).eval(), chinese, config))
    with pytest.raises(ConfigError, match="are not scored by the same references: set tags"):
        run(f"model=[{model},{tmp_path / 'zh'}]", *FEW)


def test_tokenization_by_script_is_that_of_the_references(run, model, tmp_path, vocabulary):
    config = bundle_config(tiny_config(), {"encoder_weights": "random"})
    config["tokenizer"] = {"_target_": "src.data.tokenizer.MixedTokenizer"}
    save_bundle(tmp_path / "mixed", Bundle(build(config, vocabulary).eval(), vocabulary, config))
    report = run(f"model=[{model},{tmp_path / 'mixed'}]", "kinds=[grey]", "severities=[5]")
    assert len(report["captioners"]) == 2


class TestPage:
    pytestmark = marks

    def test_page(self, run, model, other, tmp_path, browser):
        run(f"model=[{model},{other}]", *FEW, "pictures=3")
        page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark", locale="zh-CN")
        asked, wrong = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto((tmp_path / "robustness/report.html").as_uri())
        assert not wrong and all(url.startswith(("file:", "data:")) for url in asked)
        assert page.locator("h1").inner_text() == "受损图片的描述" and "遮挡" in page.locator(".map").first.inner_text()
        assert page.locator(".map td").count() == 2 * 3 * 3 and page.locator(".card img").count() == 6
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing sticks out on a phone"
        page.locator("#language").click()
        assert page.locator("h1").inner_text() == "Captions of damaged pictures"
        assert page.locator("figure svg").first.locator("text", has_text="severity").count() == 1
        page.close()
