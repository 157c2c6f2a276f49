"""`src.evaluate` with several captions a picture, and calibrated."""

import json

import numpy as np
import pytest
import torch

from src import evaluate
from src.bundle import Bundle, bundle_config, load_bundle, save_bundle
from src.captioner import Captioner
from src.check import check
from src.confidence import assess, mean_log_prob
from src.generation import SampleSearch
from src.metrics.captions import CaptionScorer
from src.metrics.diversity import diversity
from src.model import ConfigError, build
from tests.conftest import tiny_config
from tests.test_configs import composed


@pytest.fixture
def model(tmp_path, vocabulary):
    torch.manual_seed(2)
    config = bundle_config(tiny_config(), {"encoder_weights": "random"})
    made = build(config, vocabulary).eval()
    made.decoder.classifier.weight.data *= 10
    made.encoder.project.weight.data *= 100
    save_bundle(tmp_path / "bundle", Bundle(made, vocabulary, config))
    return tmp_path / "bundle"


@pytest.fixture
def run(model, shapes, tmp_path):
    def run(*overrides: str) -> dict:
        data = ["data=tsv", f"data.root={shapes}", "data.val=train.tsv", f"data.cache_dir={tmp_path / 'cache'}"]
        plain = ["data.workers=0", "device=cpu", "precision=32-true", "split=val", f"output={tmp_path / 'eval'}"]
        metrics = ["metrics=[Bleu_4,CIDEr]"] if not any("metrics" in each for each in overrides) else []
        evaluate.run(composed([f"model={model}", *data, *plain, *metrics, *overrides], "evaluate"))
        return json.loads((tmp_path / "eval" / "scores.json").read_text())

    return run


SAMPLED = ["generation=sample", "generation.captions=4", "generation.max_length=6"]


def test_diversity(run, model, shapes, tmp_path):
    plain = run(*SAMPLED)
    found = run(*SAMPLED, "diversity=3", "data.train=train.tsv")
    assert {name: found[name] for name in plain} == plain, "the first caption is scored as before"
    more = set(found) - set(plain)
    assert more == {
        *("Div_1", "Div_2", "self_bleu", "CIDEr_oracle", "CIDEr_mean", "vocabulary_share", "novel_share"),
    }
    assert found["CIDEr_oracle"] >= max(found["CIDEr"], found["CIDEr_mean"])
    table = [line.split("\t") for line in (shapes / "train.tsv").read_text().splitlines()]
    references = {name: [text for n, text in table if n == name] for name, _ in table}
    captioner = Captioner.load(model, SampleSearch(4, max_length=6), "cpu", "32-true")
    images = torch.stack([captioner.preprocess.open(shapes / name) for name in references])
    said = captioner.captions(captioner.search(images), alternatives=2, distinct=False)
    samples = {n: [c.text, *(a.text for a in c.alternatives)] for n, c in zip(references, said, strict=True)}
    assert all(len(group) == 3 for group in samples.values())
    expected = diversity(samples, CaptionScorer(references, metrics=["CIDEr"]))
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    meta = json.loads((tmp_path / "eval" / "meta.json").read_text())
    assert meta["diversity"] == 3
    assert meta["parameters"] == sum(weight.numel() for weight in captioner.model.parameters())
    assert meta["images_per_second"] > 0


def test_reuse_respects_diversity(run, monkeypatch):
    run(*SAMPLED, "diversity=3")
    monkeypatch.setattr(evaluate, "evaluate", lambda *_, **__: pytest.fail("scored anew"))
    run(*SAMPLED, "diversity=3", "reuse=true")
    with pytest.raises(pytest.fail.Exception):
        run(*SAMPLED, "diversity=2", "reuse=true")


def test_calibration_is_kept_in_the_bundle(run, model, shapes, tmp_path):
    scores = run("calibrate=true")
    kept = load_bundle(model).calibration
    table = [line.split("\t")[0] for line in (shapes / "train.tsv").read_text().splitlines()]
    names = list(dict.fromkeys(table))
    said = list(Captioner.load(model, None, "cpu", "32-true")([shapes / name for name in names]))
    rows = (tmp_path / "eval" / "per_image.csv").read_text().splitlines()
    ciders = [float(row.split(",")[rows[0].split(",").index("CIDEr")]) for row in rows[1:]]
    expected = assess([mean_log_prob(c.log_probs) for c in said], ciders)
    assert np.allclose(kept, expected.calibration, rtol=1e-3) and kept.pictures == 16
    assert all(0 < c.confidence < 1 for c in said)
    assert 0 <= scores["confidence_ece"] <= 1 and -1 <= scores["confidence_spearman"] <= 1
    assert (tmp_path / "eval" / "calibration.json").exists()
    with pytest.raises(ConfigError, match="needs 10 pictures or more"):
        run("calibrate=true", "limit=5")
    assert load_bundle(model).calibration == kept and not (tmp_path / "eval" / "calibration.json").exists()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["calibrate=true", "split=test", "data.test=test.tsv"], "calibrate=true with split=test"),
        (["calibrate=true", "metrics=[Bleu_4]"], "confidence is calibrated to CIDEr; add it to metrics"),
        (["calibrate=true", "model=[MODEL,MODEL]"], "so model is to be one"),
        (["diversity=1"], "diversity=1: at least 2"),
        (["diversity=4"], "diversity=4: the search gives at most 3 captions a picture; choose generation=sample"),
        (["model=[]"], "model=\\[\\]: name a captioner"),
        (["model=[MODEL,nowhere]"], "model=nowhere: no such file"),
        (["model=3"], "model=3: "),
    ],
)
def test_what_cannot_be_is_refused(run, model, overrides, sentence):
    with pytest.raises(ConfigError, match=sentence):
        run(*(each.replace("MODEL", str(model)) for each in overrides))


def test_the_fields_are_checked():
    config = composed(["model=x", "data.root=x"], "evaluate")
    with pytest.raises(ConfigError, match="diversity=many: a whole number"):
        check(config | {"diversity": "many"}, "evaluate", here=False)
