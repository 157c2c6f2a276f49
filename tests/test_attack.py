"""`src.attack`: the whole command on a tiny captioner."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from src import attack, attack_report
from src.attack_report import difference
from src.attacks import PGD
from src.bundle import Bundle, bundle_config, save_bundle
from src.captioner import Captioner
from src.data.vocabulary import Vocabulary
from src.model import ConfigError, build
from tests.conftest import tiny_config
from tests.test_configs import composed


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Two captioners, whose captions depend on the picture, the second of larger pictures."""
    words = ["a", "red", "green", "blue", "square", "circle", "on", "grey"]
    vocabulary = Vocabulary.build([[w] * (len(words) - i) for i, w in enumerate(words)], min_count=1)
    folder = tmp_path_factory.mktemp("bundles")
    for seed, size in ((2, 32), (3, 48)):
        torch.manual_seed(seed)
        config = bundle_config(tiny_config(transform__size=size), {"encoder_weights": "random"})
        made = build(config, vocabulary).eval()
        made.decoder.classifier.weight.data *= 5
        made.encoder.project.weight.data *= 30
        save_bundle(folder / f"of{seed}", Bundle(made, vocabulary, config))
    return folder


@pytest.fixture
def run(bundles, shapes, tmp_path):
    def run(*overrides: str) -> dict:
        data = ["data=tsv", f"data.root={shapes}", "data.val=train.tsv", f"data.cache_dir={tmp_path / 'cache'}"]
        plain = ["device=cpu", "precision=32-true", "split=val", f"output={tmp_path / 'out'}", "limit=5"]
        given = [f"model={bundles / 'of2'}", *data, *plain, "metrics=[Bleu_4,CIDEr]", "batch_size=3", *overrides]
        return attack.run(composed(given, "attack"))

    return run


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_curves_over_the_budget(run, bundles, tmp_path):
    other = str(bundles / "of3")
    result = run("budgets=[4,200]", f"transfer=[{other}]", "attack.steps=8", "pictures=2")
    out = tmp_path / "out"
    assert result == json.loads((out / "attack.json").read_text())
    mine, theirs = ([p for p in result["points"] if p["captioner"] == name] for name in (result["model"], other))
    assert [p["budget"] for p in mine] == [p["budget"] for p in theirs] == [0, 4, 200]
    assert mine[0]["success"] == mine[0]["linf"] == mine[0]["l2"] == 0 and mine[0]["ssim"] == pytest.approx(1)
    assert 0 < mine[1]["linf"] <= 4 < mine[2]["linf"] <= 200 and mine[2]["ssim"] < mine[1]["ssim"] < 1
    assert mine[2]["success"] > 0
    table = rows(out / "per_image.csv")
    assert len(table) == 2 * 3 * 5
    # what is said of the changed pictures is what anybody gets who captions the files
    captioner = Captioner.load(bundles / "of2", device_name="cpu", precision_name="32-true")
    captioner.search_by({"_target_": "src.generation.GreedySearch", "max_length": 24})
    said = [captioner(out / "pictures" / "200" / f"{i:05d}.png")[0].text for i in range(5)]
    assert said == [r["caption"] for r in table if r["captioner"] == result["model"] and r["budget"] == "200.0"]
    html = (out / "report.html").read_text()
    assert html.count('<li class="card">') == 2 and "of3" in html and html.count("<svg") >= 3
    assert 'src="http' not in html


def test_finished_pictures_are_taken_up(run, tmp_path, monkeypatch):
    first = run("budgets=[8]", "attack.steps=2")
    folder = tmp_path / "out/pictures/8"
    last = sorted(folder.iterdir())[-1]
    last.unlink()
    counted = []
    call = PGD.__call__
    monkeypatch.setattr(PGD, "__call__", lambda self, *given: counted.append(len(given[2])) or call(self, *given))
    assert run("budgets=[8]", "attack.steps=2")["points"] == first["points"]
    assert counted == [2]  # the batch that lacks one: of 3 and 2
    with pytest.raises(ValueError, match="it holds pictures of another attack"):
        run("budgets=[8]", "attack.steps=3")
    assert len(list(folder.iterdir())) == 5


def test_the_least_change_makes_a_curve(run, tmp_path):
    result = run("attack=carlini_wagner", "goal=keyword", "goal.word=grey", "attack.steps=25", "attack.rate=0.1")
    points = result["points"]
    assert result["least"] and [p["budget"] for p in points] == [0, 0.5, 1, 2, 4, 8, None]
    success = [p["success"] for p in points]
    assert success == sorted(success)
    assert all(p["l2"] <= p["budget"] for p in points[:-1])
    found = [r for r in rows(tmp_path / "out/per_image.csv") if r["budget"] == "inf"]  # whatever it took
    far = [float(r["l2"]) for r in found if r["met"] == "True"]
    assert far and points[-1]["success"] == len(far) / 5
    assert points[-1]["l2"] == pytest.approx(np.mean(far), rel=1e-4)
    assert "any" in (tmp_path / "out/report.html").read_text()


def test_the_defence_is_known_and_recorded(run):
    result = run("budgets=[32]", "attack.steps=4", "defence=blur", "defence.sigma=2")
    assert result["defence"]["sigma"] == 2
    assert result["points"][1]["linf"] > 0


def test_what_cannot_work_is_refused_before_any_work(run, shapes, bundles):
    for override, said in (
        ("budgets=[0.5]", "pixels change by whole 255ths: 0.5 is none of 0 to 255"),
        ("budgets=[inf]", "inf is none of 0 to 255"),
        (f"transfer=[{bundles / 'of2'}]", "is there twice"),
        ("goal=keyword goal.word=red generation.never=[red]", "'red' is a word that it never says"),
        ("budgets=[-1]", "budgets=[-1]: at least 0"),
        ("model=[a,b]", "one captioner is attacked"),
        ("model=nowhere", "nowhere: no captioner there"),
        ("transfer=[nowhere]", "nowhere: no captioner there"),
        ("split=test", "split=test: this data has val"),
        ("defence=jpeg defence.quality=0", "defence.quality=0"),
        ("samples=0", "samples=0: at least 1"),
        ("attack.norm=l1", "attack.norm=l1: one of linf, l2 is wanted"),
        ("metrics=[]", "metrics=[]: choose one or more"),
        ("goal=keyword goal.word=zebra", "goal.word: the captioner does not know 'zebra'"),
    ):
        with pytest.raises((ConfigError, ValueError)) as caught:
            run(*override.split(" "))
        assert said in str(caught.value)


def test_clean_scores_against_attacked_ones(run, tmp_path, capsys):
    """By hand, from what an attack writes, with other scores."""
    wrote = run("budgets=[8,64]", "attack.steps=2")

    def written(name, scores, **more):
        points = [{**point, "CIDEr": score} for point, score in zip(wrote["points"], scores, strict=True)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "attack.json").write_text(json.dumps({**wrote, **more, "points": points}))
        return str(tmp_path / name)

    plain, defended = written("plain", [0.8, 0.2, 0.1]), written("defended", [0.72, 0.42, 0.3])
    capsys.readouterr()
    assert attack_report.main([plain, defended, "-o", str(tmp_path / "a.svg")]) == 0
    rows_ = capsys.readouterr().out.splitlines()[1:3]
    assert [row.split()[1:] for row in rows_] == [
        ["80.0", "20.0", "10.0", "100.0%", "0.0%"],
        ["72.0", "42.0", "30.0", "90.0%", "50.0%"],  # it loses 30, where the first loses 60
    ]
    assert (tmp_path / "a.svg").read_text().count("<polyline") == 2
    longer = written("longer", [0.8, 0.2, 0.1], attack={**wrote["attack"], "steps": 3})
    for call, said in (
        ([plain, str(tmp_path)], "not what src.attack writes"),
        ([plain, longer], "of another attack than"),
        ([plain, "--score", "SPICE"], "no SPICE of budget 0: choose another --score"),
        ([plain, "-o", "curve.png"], "never written over"),
    ):
        assert attack_report.main(call) == 2 and said in capsys.readouterr().err


def test_the_difference_is_enlarged_to_what_can_be_seen():
    clean = Image.fromarray(np.full((4, 4, 3), 100, np.uint8))
    changed = np.array(clean)
    changed[0, 0], changed[1, 1] = 102, 99
    picture, times = difference(clean, Image.fromarray(changed))
    assert times == 63.5
    seen = np.array(picture)[..., 0]
    assert seen[0, 0] == 255 and seen[1, 1] == 64 and seen[2, 2] == 128
    assert difference(clean, clean)[0].getextrema() == ((128, 128),) * 3
