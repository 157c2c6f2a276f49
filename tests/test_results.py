"""What an evaluation leaves in its folder, read back."""

import json

import numpy as np
import pytest

from src.results import Looks, read_results, references_digest, results_folder, write_results
from src.scoring import Scorer, Scoring

REFERENCES = {"a/1.jpg": ["a dog runs", "the  dog\tplays"], "2.jpg": ["两只猫", "猫"], "三.jpg": ["snow"]}
CAPTIONS = {"a/1.jpg": 'a "dog", running', "2.jpg": "", "三.jpg": "snow"}


@pytest.fixture
def scored():
    return Scorer(REFERENCES, Scoring(metrics=("Bleu_1", "CIDEr"))).score(CAPTIONS)


def looks(words, regions, seed=0):
    random = np.random.default_rng(seed)
    return Looks(words, random.dirichlet(np.ones(regions), len(words)), random.random((regions, 4)))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_what_was_written_is_read(tmp_path, scored, kind):
    seen = {"a/1.jpg": looks(["a", "dog"], 4), "三.jpg": looks(["雪"], 9, 1)}
    meta = {"references": "abc", "not_computed": {}}
    write_results(tmp_path / "eval" / "val", CAPTIONS, REFERENCES, scored, scored.corpus, meta, seen, kind)
    found = read_results(tmp_path)
    assert found.folder == tmp_path / "eval" / "val" == results_folder(tmp_path, "val")
    assert found.name == str(tmp_path)
    assert found.captions == CAPTIONS and list(found.captions) == list(CAPTIONS)
    assert found.scores == json.loads(json.dumps(scored.corpus))
    assert found.meta == {**meta, "alarms": ["1 of 3 captions are empty"]}
    assert found.references == {
        "a/1.jpg": ["a dog runs", "the dog plays"],
        "2.jpg": ["两只猫", "猫"],
        "三.jpg": ["snow"],
    }
    assert list(found.columns) == list(scored.per_image["2.jpg"])
    for name, column in found.columns.items():
        assert column.tolist() == [row[name] for row in scored.per_image.values()]
    for name, array in scored.statistics.items():
        assert np.array_equal(found.statistics[name], array)
    assert found.mistakes == {"wrong": scored.wrong, "missed": scored.missed}
    assert found.looks.keys() == seen.keys()
    for image, each in seen.items():
        assert found.looks[image].words == each.words
        assert found.looks[image].weights == pytest.approx(each.weights, abs=1e-3)
        assert found.looks[image].boxes == pytest.approx(each.boxes, abs=1e-6)


def test_another_evaluation_leaves_nothing_of_the_first(tmp_path, scored):
    write_results(tmp_path, CAPTIONS, REFERENCES, scored, {}, {}, {"2.jpg": looks(["x"], 3)})
    write_results(tmp_path, CAPTIONS, REFERENCES, scored, {}, {}, None, "parquet")
    assert not (tmp_path / "per_image.csv").exists() and read_results(tmp_path).looks == {}
    assert not list(tmp_path.glob("*.partial"))


def test_a_failure_leaves_no_meta(tmp_path, scored):
    write_results(tmp_path, CAPTIONS, REFERENCES, scored, {}, {})
    with pytest.raises(KeyError):
        write_results(tmp_path, {"other.jpg": "a dog"}, REFERENCES, scored, {}, {})
    assert not (tmp_path / "meta.json").exists(), "older results do not stand under newer names"


def test_a_digest_is_of_images_and_references_in_order():
    first = references_digest(REFERENCES)
    assert references_digest({image: tuple(group) for image, group in REFERENCES.items()}) == first
    others = [dict(reversed(REFERENCES.items())), {**REFERENCES, "2.jpg": ["猫", "两只猫"]}, {"2.jpg": ["猫"]}]
    assert len({first, *map(references_digest, others)}) == 4


@pytest.mark.parametrize("name", ["references.tsv", "mistakes.json"])
def test_what_is_missing_is_named(tmp_path, scored, name):
    write_results(tmp_path, CAPTIONS, REFERENCES, scored, {}, {})
    (tmp_path / name).unlink()
    found = read_results(tmp_path)
    with pytest.raises(ValueError, match=f"{name}: no such file; evaluate anew"):
        _ = found.references, found.mistakes
