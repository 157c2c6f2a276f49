"""`src.evaluate`: of captioners, of anybody's captions, of baselines."""

import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from src import evaluate
from src.bundle import Bundle, bundle_config, load_bundle, save_bundle
from src.captioner import Captioner
from src.check import check
from src.compare import check_same
from src.confidence import assess, mean_log_prob
from src.data.images import Pictures
from src.generation import SampleSearch
from src.metrics.captions import CaptionScorer
from src.metrics.diversity import diversity
from src.metrics.retrieval import RETRIEVAL
from src.model import ConfigError, build
from src.prepare.shards import write_shards
from src.report import main as report
from src.results import read_results
from src.scoring import Scorer, Scoring
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


@pytest.fixture(scope="module")
def shards(shapes, tmp_path_factory):
    """The shapes as shards with a manifest, at an address, and as tars that others packed; each data's root."""
    pytest.importorskip("webdataset")
    folder = tmp_path_factory.mktemp("shards")
    write_shards(shapes / "train.tsv", folder / "train", images=5)
    (folder / "others/train").mkdir(parents=True)
    for tar in (folder / "train").glob("*.tar"):
        shutil.copy(tar, folder / "others/train")
    handler = type("Handler", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"manifest": folder, "address": f"http://127.0.0.1:{server.server_port}", "others": folder / "others"}
    server.shutdown()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    from tests.metrics.test_clip_score import save_clip  # skips the test where transformers is not there

    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


@pytest.mark.parametrize("kind", ["manifest", "address", "others"])
def test_pictures_in_shards(run, clip, shards, tmp_path, caplog, kind):
    files = run(f"clip={clip}", "pictures=4", "metrics=[Bleu_1]")
    assert files["CLIPScore"] > 0
    shutil.rmtree(tmp_path / "eval")
    found = run(
        f"clip={clip}",
        "pictures=4",
        "metrics=[Bleu_1]",
        "data=shards",
        f"data.root={shards[kind]}",
        "data.train=null",
        "data.val=train",
    )
    assert found == files
    page = tmp_path / "eval/report.html"
    assert page.read_text().count("data:image/jpeg") == 4
    caplog.clear()
    assert report([str(tmp_path / "eval"), "--pictures", "4"]) == 0
    shown = 4 if kind == "manifest" else 0
    assert page.read_text().count("data:image/jpeg") == shown
    place = {"address": f"{shards[kind]}/train", "others": f"{shards[kind]}/train/000000.tar"}.get(kind)
    why = "no folder of pictures, or of shards and their manifest: the report shows none"
    assert caplog.messages == ([] if shown else [f"{place}: {why}"])


def test_without_pictures_clipscore_is_not_computed(clip):
    scored = Scorer({"a": ["a dog"]}, Scoring(metrics=["Bleu_1"], clip=clip), Pictures("", lambda image: None))
    found = scored.score({"a": "a dog"})
    assert found.corpus["CLIPScore"] is None and "no pictures" in found.not_computed["CLIPScore"]


SAMPLED = ["generation=sample", "generation.captions=4", "generation.max_length=6"]


def test_diversity(run, model, shapes, tmp_path):
    plain = run(*SAMPLED)
    found = run(*SAMPLED, "diversity=3", "data.train=train.tsv")
    first = {name: value for name, value in plain.items() if name != "vocabulary_share"}
    assert {name: found[name] for name in first} == first, "the first caption is scored as before"
    assert set(found) - set(plain) == {"Div_1", "Div_2", "self_bleu", "CIDEr_oracle", "CIDEr_mean", "novel_share"}
    assert found["vocabulary_share"] >= plain["vocabulary_share"]
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
    known = {" ".join(captioner.tokenizer.tokens(text)) for group in references.values() for text in group}
    novel = [text not in known for group in samples.values() for text in group]
    assert found["novel_share"] == pytest.approx(np.mean(novel))
    words = {word for c in said for each in (c, *c.alternatives) for word in each.words}
    assert found["vocabulary_share"] == pytest.approx(len(words) / len(captioner.vocabulary.index))
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


def test_a_matchers_recall_is_scored(run, shapes, tmp_path, vocabulary, capsys):
    config = bundle_config(tiny_config(), {"encoder_weights": "random"})
    config["matcher"] = {"_target_": "src.matcher.JointMatcher", "size": 8, "words": 6, "hidden": 5, "heads": 2}
    save_bundle(tmp_path / "matched", Bundle(build(config, vocabulary).eval(), vocabulary, config))
    scores = run(f"model={tmp_path / 'matched'}", "rerank=3")
    assert set(RETRIEVAL) | {f"reranked_{name}" for name in RETRIEVAL} <= set(scores)
    assert 0 <= scores["t2i_R@1"] <= scores["t2i_R@10"] <= 1 <= scores["t2i_median_rank"]
    printed = capsys.readouterr().out
    assert f"t2i_R@10              {100 * scores['t2i_R@10']:.1f}\n" in printed
    assert f"t2i_median_rank       {scores['t2i_median_rank']:.2f}\n" in printed
    assert not set(RETRIEVAL) & set(run())  # of one without


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


def test_scores_of_a_captioner(run, model, shapes, tmp_path):
    scores = run("data.train=train.tsv", "per_image=parquet")
    evaluation = read_results(tmp_path / "eval")
    assert (tmp_path / "eval" / "per_image.parquet").exists() and not (tmp_path / "eval" / "per_image.csv").exists()
    assert scores["perplexity"] == pytest.approx(np.exp(scores["cross_entropy"]))
    assert {"novel_share", "distinct_share", "vocabulary_share", "reference_length", "objects_recall"} <= set(scores)
    assert evaluation.looks.keys() == {name for name, caption in evaluation.captions.items() if caption}
    assert evaluation.meta["root"] == str(shapes.resolve()) and evaluation.meta["preprocess"]["size"] == 32
    look = next(iter(evaluation.looks.values()))
    assert look.weights.sum(1) == pytest.approx(1, abs=5e-3) and look.boxes.shape == (look.weights.shape[1], 4)


def evaluate_only(*overrides: str) -> None:
    evaluate.run(composed(list(overrides), "evaluate"))


@pytest.mark.parametrize("form", ["tsv", "coco"])
def test_a_predictions_file_scores_as_its_captioner_did(run, shapes, tmp_path, form):
    by_captioner = run("leave_one_out=true")
    theirs, ours = tmp_path / "theirs", tmp_path / "eval"
    predictions, references = ours / "captions.tsv", shapes / "train.tsv"
    if form == "coco":
        captions = read_results(ours).captions
        names = list(captions)
        (tmp_path / "results.json").write_text(
            json.dumps([{"image_id": i, "caption": captions[name]} for i, name in enumerate(names)])
        )
        said = [{"image_id": names.index(n), "caption": t} for n, g in read_results(ours).references.items() for t in g]
        images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
        (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": said}))
        predictions, references = tmp_path / "results.json", tmp_path / "captions.json"
    fields = [f"predictions={predictions}", f"references={references}", f"images={shapes}", f"output={theirs}"]
    evaluate_only(*fields, "metrics=[Bleu_4,CIDEr]", "leave_one_out=true", f"data.cache_dir={tmp_path / 'cache'}")
    found = read_results(theirs)
    of_captions = ["Bleu_4", "CIDEr", "exact_match", "mean_length", "distinct_share", "objects_recall"]
    assert {name: found.scores[name] for name in of_captions} == {name: by_captioner[name] for name in of_captions}
    assert found.captions == read_results(ours).captions
    check_same(found, read_results(ours))
    assert len(list((tmp_path / "cache" / "tokenized").iterdir())) == 2, "each folding's references, once"
    assert 'src="data:image/jpeg' in (theirs / "report.html").read_text(), "the pictures are in the report"


def test_predictions_of_the_datas_own_split(run, shapes, tmp_path):
    run()
    fields = [f"predictions={tmp_path / 'eval' / 'captions.tsv'}", "data=tsv", f"data.root={shapes}"]
    fields += ["data.train=train.tsv", "data.val=train.tsv", "split=val", "data.nouns=nouns.json", "pictures=0"]
    evaluate_only(*fields, f"data.cache_dir={tmp_path / 'cache'}", f"output={tmp_path / 'again'}", "metrics=[CIDEr]")
    found, first = read_results(tmp_path / "again"), read_results(tmp_path / "eval")
    check_same(found, first)
    assert found.scores["CIDEr"] == first.scores["CIDEr"] and "novel_share" in found.scores
    assert "backgrounds_named" in found.scores and found.meta["split"] == "val"


def test_several_predictions_a_picture(shapes, tmp_path):
    images = [line.split("\t")[0] for line in (shapes / "val.tsv").read_text().splitlines()]
    path = tmp_path / "samples.tsv"
    path.write_text("".join(f"{i}\ta {colour} square\n" for i in dict.fromkeys(images) for colour in ("red", "blue")))
    training = f"training={shapes / 'train.tsv'}"
    fields = [f"predictions={path}", f"references={shapes / 'val.tsv'}", "metrics=[CIDEr]", "diversity=2", training]
    evaluate_only(*fields, f"output={tmp_path / 'out'}", f"data.cache_dir={tmp_path}")
    scores = read_results(tmp_path / "out").scores
    assert scores["Div_1"] == pytest.approx(4 / 6) and scores["CIDEr_oracle"] >= scores["CIDEr"]
    assert scores["novel_share"] == 0.0, "“a red square” and “a blue square” are training captions"
    assert scores["distinct_share"] == pytest.approx(1 / 4)


def test_people_and_what_is_learned_by_heart(shapes, tmp_path):
    """Files beside the scores, sections of the report; a list of one's own; nothing left of an earlier evaluation."""
    references = {"1": ["a woman sits", "a lady"], "2": ["a man sits", "a guy"], "3": ["a dog", "the dog"]}
    rows = [f"{image}.png\t{text}\n" for image, group in references.items() for text in group]
    (tmp_path / "refs.tsv").write_text("".join(rows))
    (tmp_path / "train.tsv").write_text("x.png\ta man sits\ny.png\ta man sits\nz.png\ta cat\n")
    (tmp_path / "said.tsv").write_text("1.png\ta man sits\n2.png\ta man sits\n3.png\ta dog runs\n")
    fields = [f"predictions={tmp_path / 'said.tsv'}", f"output={tmp_path / 'out'}", f"data.cache_dir={tmp_path}"]
    fields += ["metrics=[CIDEr]", f"training={tmp_path / 'train.tsv'}", "pictures=0"]
    evaluate_only(*fields, f"references={tmp_path / 'refs.tsv'}")
    found = read_results(tmp_path / "out")
    assert found.scores["gender_error"] == 0.5 and found.meta["groups"] is None
    assert found.people["attributes"]["gender"]["table"]["women"]["men"] == 1
    assert found.memory["share"] == pytest.approx(2 / 3) == 1 - found.scores["novel_share"]
    assert found.memory["people"]["share"] == pytest.approx(1 / 6)
    assert found.memory["captions"] == [{"caption": "a man sits", "images": 2, "training": 2}]
    html = (tmp_path / "out" / "report.html").read_text()
    assert 'id="people"' in html and "描述中的人物" in html and 'id="memory"' in html and "1 / 1" in html
    (tmp_path / "own.tsv").write_text("group\tkind\tEnglish\tChinese\npet\tpets\tdog, cat\t狗\n")
    evaluate_only(*fields, f"references={tmp_path / 'refs.tsv'}", f"groups={tmp_path / 'own.tsv'}")
    found = read_results(tmp_path / "out")
    assert list(found.people["attributes"]) == ["kind"] and "gender_error" not in found.scores
    assert found.meta["groups"] == str(tmp_path / "own.tsv")
    (tmp_path / "refs.tsv").write_text("".join(f"{n}.png\ta blue square\n" for n in "123"))
    evaluate_only(*fields[:-2], f"references={tmp_path / 'refs.tsv'}", "pictures=0")
    assert read_results(tmp_path / "out").people is None and read_results(tmp_path / "out").memory is None
    html = (tmp_path / "out" / "report.html").read_text()
    assert 'id="people"' not in html and 'id="memory"' not in html


@pytest.mark.parametrize("baseline", ["typical", "random", "neighbours", "human"])
def test_baselines(shapes, tmp_path, baseline):
    fields = [f"baseline={baseline}", "data=tsv", f"data.root={shapes}", "data.train=train.tsv", "data.val=val.tsv"]
    fields += ["split=val", "data.workers=0", "device=cpu", "precision=32-true", f"output={tmp_path / 'out'}"]
    fields += ["baseline.encoder=cnn"] if baseline == "neighbours" else []
    evaluate_only(*fields, "metrics=[Bleu_1,CIDEr]", f"data.cache_dir={tmp_path / 'cache'}", "pictures=2")
    found = read_results(tmp_path / "out")
    assert found.meta["leave_one_out"] == (baseline == "human") and found.meta["baseline"]["_target_"]
    texts = (shapes / "train.tsv").read_text()
    if baseline == "human":
        assert found.captions == {image: group[0] for image, group in found.references.items()}
        assert found.scores["CIDEr"] > 0 and found.statistics["Bleu"].shape[1] == 2
    else:
        assert all(f"\t{caption}\n" in texts for caption in found.captions.values())
        assert found.scores["novel_share"] == 0.0
    assert len(set(found.captions.values())) > 1 or baseline != "random"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ([], "what is to be scored\\? Give model=RUN, predictions=FILE or baseline=CHOICE"),
        (["model=x", "predictions=y"], "model and predictions: give one of"),
        (["predictions=x", "references=y", "calibrate=true"], "calibrate=true: predictions=x has no use for it"),
        (["predictions=x", "references=y", "limit=3"], "limit=3: predictions=x has no use for it"),
        (["predictions=x", "images=."], "images=.: it goes with references=FILE"),
        (["predictions=x", "references=y", "images=nowhere"], "images=nowhere: no such folder"),
        (["predictions=x", "references=y", "spice=nowhere"], "spice=nowhere: no such folder"),
        (["predictions=x", "references=y", "groups=nowhere"], "groups=nowhere: cannot be read"),
        (["predictions=nowhere.tsv", "references=nowhere.tsv"], "nowhere.tsv: no such file"),
        (["baseline=random", "data=tsv", "data.root=ROOT", "data.val=val.tsv", "split=val"], "data.train is not set"),
        (["baseline=random", "diversity=2"], "diversity=2: baseline=.* has no use for it"),
        (["baseline=random", "references=x"], "references=x: baseline=.* has no use for it"),
        (
            ["predictions=ROOT/val.tsv", "references=ROOT/val.tsv", "diversity=2", "output=ROOT/val.tsv"],
            "val.tsv: File exists; c",
        ),
        (["baseline=neighbours", "baseline.encoder=none"], "baseline.encoder=none: no such choice"),
        (["predictions=x", "references=y", "per_image=xlsx"], "per_image=xlsx: one of csv, parquet is wanted"),
    ],
)
def test_what_goes_together(fields, sentence, shapes):
    with pytest.raises(ValueError, match=sentence):
        evaluate_only(*(field.replace("ROOT", str(shapes)) for field in fields))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["rerank=5"], "this captioner has no matcher"),
        (["rerank=0"], "rerank=0: at least 1"),
        (["calibrate=true", "leave_one_out=true"], "set leave_one_out=false"),
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
    with pytest.raises(ValueError, match=sentence):
        run(*(each.replace("MODEL", str(model)) for each in overrides))


def test_the_fields_are_checked():
    config = composed(["model=x", "data.root=x"], "evaluate")
    with pytest.raises(ConfigError, match="diversity=many: a whole number"):
        check(config | {"diversity": "many"}, "evaluate", here=False)
