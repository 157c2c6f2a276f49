"""CBOW and skip-gram of the training captions, and their cache."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from src.bundle import load_bundle
from src.config import ROOT
from src.data.vocabulary import SPECIALS, UNK, Vocabulary
from src.embeddings import CBOWEmbedding, cbow
from src.train import train
from tests.test_configs import composed, tiny

pytest.importorskip("gensim")

ANIMALS, VEHICLES = ["dog", "cat", "horse", "狗"], ["car", "bus", "train", "车"]


def corpus(count: int = 600) -> list[list[str]]:
    """Animals eat and sleep, vehicles drive and park; the words in between are the same."""
    rng = random.Random(0)
    captions = []
    for _ in range(count):
        names, does, where = rng.choice(
            [
                (ANIMALS, ["eats", "sleeps", "barks"], ["grass", "hay"]),
                (VEHICLES, ["drives", "parks"], ["road", "rail"]),
            ]
        )
        captions.append([rng.choice(["a", "the"]), rng.choice(names), rng.choice(does), "on", rng.choice(where)])
    return captions


@pytest.mark.parametrize("skip_gram", [False, True])
def test_words_of_like_use_are_neighbours(skip_gram, tmp_path):
    captions = corpus()
    vocabulary = Vocabulary.build(captions, min_count=1)
    embedding = CBOWEmbedding(vocabulary, 16, window=3, epochs=30, skip_gram=skip_gram)
    random_start = embedding.weight.detach().clone()
    embedding.fit(captions, tmp_path)
    assert embedding.weight.shape == (len(vocabulary), 16) and not torch.equal(embedding.weight, random_start)
    unit = torch.nn.functional.normalize(embedding.weight.detach(), dim=1)
    for kind in (ANIMALS, VEHICLES):
        for word in kind:
            similarity = unit @ unit[vocabulary.index[word]]
            others = [w for w in (*ANIMALS, *VEHICLES) if w != word]
            nearest = sorted(others, key=lambda w: -similarity[vocabulary.index[w]])[:3]
            assert set(nearest) == set(kind) - {word}


def test_the_cache_is_read_where_it_fits_and_nothing_is_trained_twice(tmp_path, monkeypatch):
    captions = corpus(60)
    vocabulary = Vocabulary.build(captions, min_count=1)
    trained = []
    original = cbow.trained_vectors
    monkeypatch.setattr(cbow, "trained_vectors", lambda *given: trained.append(given) or original(*given))

    def fitted(captions=captions, **settings):
        embedding = CBOWEmbedding(vocabulary, 8, **settings)
        embedding.fit(iter(captions), tmp_path / "embeddings")
        return embedding.weight[len(SPECIALS) :].tolist()

    first = fitted()
    assert fitted() == first and len(trained) == 1
    kept = sorted(p.suffix for p in (tmp_path / "embeddings").iterdir() if p.suffix != ".lock")
    assert kept == [".json", ".npy"], "no pickle, nothing half-written"
    np.load(next((tmp_path / "embeddings").glob("*.npy")), allow_pickle=False)
    for other in ({"window": 2}, {"epochs": 3}, {"negative": 2}, {"skip_gram": True}, {"seed": 1}):
        assert fitted(**other) != first
    assert fitted(captions=captions[1:]) != first
    assert len(trained) == 7
    assert fitted(frozen=True) == first and len(trained) == 7, "whether they learn later is another matter"


def test_rare_words_are_unknown_and_unknown_has_a_vector(tmp_path, monkeypatch):
    captions = [*corpus(60), ["a", "zebra", "eats", "on", "grass"]]
    vocabulary = Vocabulary.build(captions, min_count=2)
    assert "zebra" not in vocabulary.index
    seen = []
    monkeypatch.setattr(
        cbow, "trained_vectors", lambda captions, _: seen.extend(captions) or (["a", "<unk>"], np.ones((2, 4)))
    )
    embedding = CBOWEmbedding(vocabulary, 4)
    embedding.fit(captions, tmp_path)
    assert seen[-1] == ["a", "<unk>", "eats", "on", "grass"] and seen[:-1] == captions[:-1]
    assert embedding.weight[UNK].tolist() == embedding.weight[vocabulary.index["a"]].tolist() == [1, 1, 1, 1]
    assert embedding.weight[0].tolist() != [1, 1, 1, 1]


def test_two_processes_train_the_same_vectors(tmp_path):
    """Also where Python hashes strings otherwise."""
    captions = corpus(80)
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    program = (
        "import json, pathlib, sys\n"
        "from src.embeddings.cbow import CBOWEmbedding, Vocabulary\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "captions = json.loads((folder.parent / 'captions.json').read_text())\n"
        "embedding = CBOWEmbedding(Vocabulary.build(captions, min_count=1), 8)\n"
        "embedding.fit(captions, folder)\n"
        "print(hash('dog'), embedding.weight[4:].tolist())"
    )
    said = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        call = [sys.executable, "-c", program, str(tmp_path / seed)]
        done = subprocess.run(call, env=environment, capture_output=True, text=True, cwd=ROOT, check=True)
        said.append(done.stdout.split(maxsplit=1))
    assert said[0][0] != said[1][0] and said[0][1] == said[1][1]


def test_without_gensim_the_command_is_named(tmp_path, monkeypatch):
    def missing(name):
        raise cbow.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(cbow.importlib.metadata, "version", missing)
    with pytest.raises(ImportError, match="embedding=cbow needs gensim: `pip install gensim` first"):
        CBOWEmbedding(Vocabulary.build([["a"]], 1), 4).fit([["a"]], tmp_path)


def test_only_a_fresh_run_fits(shapes, tmp_path, monkeypatch):
    """On the training captions, which the frozen vectors in its bundle are of; resumed or started from another: not."""
    fitted = []
    original = CBOWEmbedding.fit
    monkeypatch.setattr(
        CBOWEmbedding,
        "fit",
        lambda self, captions, cache: fitted.append(read := list(captions)) or original(self, read, cache),
    )
    run = ["embedding=cbow", "embedding.size=8", "embedding.frozen=true", "decoder.hidden=16", "evaluate_splits=[]"]
    run += ["encoder=cnn", "encoder.backbone.channels=[4,8,8]", "encoder.width=16", "generation=greedy", "logger=csv"]
    run += [*tiny(shapes, tmp_path), "data.test=null", "data.nouns=null", "trainer.fast_dev_run=false"]
    train(composed([*run, "trainer.max_epochs=1"]))
    assert len(fitted) == 1 and len(fitted[0]) == 32 and fitted[0][0] == ["a", "red", "square"]
    bundle = load_bundle(tmp_path / "run")
    settings = bundle.model.decoder.embedding.settings
    vectors = cbow.cached_vectors(fitted[0], settings, tmp_path / "cache" / "embeddings")
    table = bundle.model.decoder.embedding.weight
    for word in ("red", "circle"):
        assert table[bundle.vocabulary.index[word]].tolist() == vectors[word].tolist()
    train(composed([*run, "trainer.max_epochs=2", "ckpt=last"]))
    assert len(fitted) == 1 and torch.equal(load_bundle(tmp_path / "run").model.decoder.embedding.weight, table)
    started = [*run, "trainer.max_epochs=1", f"init={tmp_path / 'run'}", f"run_dir={tmp_path / 'second'}"]
    train(composed(started), {"init"})
    assert len(fitted) == 1 and torch.equal(load_bundle(tmp_path / "second").model.decoder.embedding.weight, table)
