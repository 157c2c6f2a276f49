"""Words and phrases that no search says."""

import pytest
import torch
import yaml

from src.bundle import Bundle, bundle_config, read_saved, save_bundle
from src.captioner import Captioner
from src.data.tokenizer import CharacterTokenizer, EnglishTokenizer
from src.data.transforms import Preprocess
from src.data.vocabulary import UNK, Vocabulary
from src.generation import (
    BeamSearch,
    ConsensusSearch,
    ConstrainedBeamSearch,
    DiverseBeamSearch,
    GreedySearch,
    SampleSearch,
)
from src.generation.base import read_never, self_contained
from src.model import build
from src.train import train
from tests.conftest import random_features, tiny_config
from tests.generation.test_search import every_caption
from tests.test_configs import composed, tiny

SEARCHES = {
    "greedy": lambda **limits: GreedySearch(**limits),
    "beam": lambda **limits: BeamSearch(4, **limits),
    "diverse": lambda **limits: DiverseBeamSearch(6, 3, **limits),
    "sample": lambda **limits: SampleSearch(6, **limits),
    "consensus": lambda **limits: ConsensusSearch(4, samples=6, **limits),
    "constrained": lambda **limits: ConstrainedBeamSearch(["red"], beam_size=4, **limits),
}


def decoder_of(vocabulary, seed=0):
    torch.manual_seed(seed)
    decoder = build(tiny_config(), vocabulary).decoder.eval()
    decoder.classifier.weight.data *= 4
    return decoder


def said(found, vocabulary):
    return [" ".join(vocabulary.decode(row)) for rows in found.tokens.tolist() for row in rows]


@pytest.mark.parametrize("name", SEARCHES)
def test_no_search_says_a_word_or_a_phrase(name, vocabulary):
    decoder, features = decoder_of(vocabulary), random_features(5, seed=2)

    def captions(never):
        search = SEARCHES[name](max_length=6, min_length=4, never=never)
        search.bind(vocabulary, EnglishTokenizer())
        with torch.no_grad():
            return said(search(decoder, decoder.prepare(features)), vocabulary)

    plain = captions([])
    words = plain[0].split()
    word, phrase = words[0], " ".join(words[1:3])
    assert sum(word in each.split() for each in plain) and sum(phrase in each for each in plain)
    if name == "constrained" and "red" in words[:3]:
        word, phrase = next(w for w in words if w != "red"), " ".join(words[1:3])
    left = captions([word, f"  {phrase.upper()} ", "unheard of"])
    assert not [each for each in left if word in each.split() or f" {phrase} " in f" {each} "]
    assert all(len(each.split()) >= 4 for each in left)


def test_the_widest_beam_says_the_best_that_is_left(vocabulary):
    """By brute force over all captions; probabilities stay the captioner's own."""
    decoder, features = decoder_of(vocabulary, 3), random_features(1, seed=5)
    memory = decoder.prepare(features)
    search = BeamSearch(600, length_penalty=0.0, max_length=3, never=["red circle", "blue", "a a a"])
    search.bind(vocabulary, EnglishTokenizer())
    with torch.no_grad():
        found = search(decoder, memory)
    red, circle, blue, a = (vocabulary.index[word] for word in ("red", "circle", "blue", "a"))
    every = every_caption(decoder, memory, range(UNK + 1, len(vocabulary)), 3, 1)
    left = {
        words: total
        for words, total in every.items()
        if blue not in words and words != (a, a, a) and (red, circle) not in zip(words, words[1:], strict=False)
    }
    ranked = sorted(left.items(), key=lambda each: -each[1])
    assert len(left) < len(every)
    for k, (words, total) in enumerate(ranked[:20]):
        assert tuple(found.tokens[0, k, : found.lengths[0, k]].tolist()) == words
        assert float(found.scores[0, k]) == pytest.approx(total, abs=1e-4)
    assert int((found.scores > -torch.inf).sum()) == len(left)


def test_chinese_words_are_phrases_of_characters():
    vocabulary = Vocabulary.build([list("一个男人和一个女人在玩")], min_count=1)
    search = GreedySearch(never=["女人", "狗", "玩"])
    search.bind(vocabulary, CharacterTokenizer())
    assert search.phrases == [tuple(vocabulary.index[c] for c in "女人")]
    assert vocabulary.index["玩"] in search.banned and len(search.banned) == 4


def test_a_file_of_words_is_kept_as_words(tmp_path, shapes):
    (tmp_path / "never.txt").write_text("\ufeffgreen\n\n a red \n", encoding="utf-8")
    path = str(tmp_path / "never.txt")
    assert read_never(path) == ["green", "a red"] == self_contained({"never": path})["never"]
    with pytest.raises(ValueError, match="generation.never=nowhere.txt: cannot be read"):
        GreedySearch(never="nowhere.txt")
    whole = ["trainer.fast_dev_run=false", "trainer.max_epochs=1", "evaluate_splits=[]", "logger=csv"]
    parts = ["encoder=cnn", "encoder.backbone.channels=[8,16]", "decoder.hidden=16", "generation=greedy"]
    train(composed([*tiny(shapes, tmp_path), *whole, *parts, f"generation.never={path}"]))
    config = yaml.safe_load((tmp_path / "run" / "bundle" / "config.yaml").read_text())
    assert config["generation"]["never"] == ["green", "a red"]
    (tmp_path / "never.txt").unlink()
    captioner = Captioner.load(tmp_path / "run")
    assert captioner.vocabulary.index["green"] in captioner.generation.banned
    captioner.search_by({"_target_": "src.generation.BeamSearch", "never": ["blue"]})
    assert captioner.vocabulary.index["blue"] in captioner.generation.banned


def test_a_bundle_of_before_says_anything(tmp_path, vocabulary):
    config = {**bundle_config(tiny_config(), {}), "generation": {"_target_": "src.generation.GreedySearch"}}
    save_bundle(tmp_path / "old", Bundle(build(tiny_config(), vocabulary), vocabulary, config))
    assert "never" not in read_saved(tmp_path / "old").config["generation"]
    captioner = Captioner.load(tmp_path / "old")
    assert captioner.generation.never == [] and captioner.preprocess.size == Preprocess(32).size


def test_more_than_a_bundle_keeps_are_refused(tmp_path):
    file = tmp_path / "never.txt"
    file.write_text("".join(f"word{i}\n" for i in range(2001)))
    for never in (str(file), ["x" * 50_000]):
        with pytest.raises(ValueError, match="at most 2,000 of 40,000 are kept in a bundle"):
            read_never(never)
