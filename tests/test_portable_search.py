"""The NumPy searches beside the torch ones: word for word, over random small captioners and random settings."""

import random

import numpy as np
import pytest
import torch

from src.captions import Found
from src.data.tokenizer import EnglishTokenizer
from src.data.vocabulary import BOS, EOS, UNK
from src.decoders.base import map_tensors
from src.generation import BeamSearch, GreedySearch
from src.model import build
from src.portable_search import PortableBeam, PortableGreedy, PortableSearch, Said, best
from tests.conftest import random_features, tiny_choice, tiny_config

MEMBERS = ["lstm", "gru", "lstm_attn", "gru_attn", "updown", "transformer"]
ATTENTION = ["additive", "dot", "multihead", "adaptive", "hard"]


class Eager:
    """A torch decoder as the step of a NumPy search: the trees stay what they are, in one object array."""

    def __init__(self, decoder):
        self.decoder = decoder

    def first(self, memory):
        return arrays(self.decoder.start(memory)), arrays(memory)

    def __call__(self, words, state, memory):
        like_state, like_memory = self.trees
        state, memory = rebuilt(like_state, state), rebuilt(like_memory, memory)
        output, after = self.decoder.step(self.decoder.embed(torch.from_numpy(words)), state, memory)
        log_probs = self.decoder.logits(output.hidden).float().log_softmax(-1).numpy()
        return Said(log_probs, None if output.attention is None else output.attention.numpy(), arrays(after))


def arrays(tree):
    found = []
    map_tensors(lambda x: found.append(x.numpy()) or x, tree)
    return found


def rebuilt(tree, values):
    each = iter(values)
    return map_tensors(lambda _: torch.from_numpy(next(each)), tree)


def held_equal(ours, theirs):
    """Of captions whose scores are the same number, neither search says which is first."""
    ours, theirs = (settled(*(None if x is None else np.asarray(x) for x in found)) for found in (ours, theirs))
    for name, mine, other in zip(Found._fields, ours, theirs, strict=True):
        assert (mine is None) == (other is None), name
        if mine is not None and mine.dtype.kind == "f":
            np.testing.assert_allclose(mine, other, atol=1e-4, err_msg=name)
        elif mine is not None:
            assert np.array_equal(mine, other), name


def settled(*found):
    found = Found(*found)
    order = [
        sorted(range(len(rows)), key=lambda k: (-scores[k], rows[k]))
        for rows, scores in zip(found.tokens.tolist(), found.scores.tolist(), strict=True)
    ]
    return Found(*(None if x is None else np.stack([x[b][k] for b, k in enumerate(order)]) for x in found))


def drawn_settings(rng):
    longest = rng.choice([1, 2, 4, 9])
    limits = {
        "max_length": longest,
        "min_length": rng.randint(0, min(longest, 3)),
        "no_repeat_ngram": rng.choice([0, 0, 1, 2, 3]),
        "allow_unknown": rng.random() < 0.3,
    }
    # More beams than words, too.
    return limits, {"beam_size": rng.choice([1, 2, 3, 5, 11, 30]), "length_penalty": rng.choice([0, 0.7, 1.0, 1.3])}


@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize("name", MEMBERS)
def test_searches_equal_the_torch_ones(name, latent, vocabulary):
    """Thirty random captioners and settings a member: peaked and flat ones, with control tokens or not."""
    vocabulary = vocabulary.extended([], controls={"<zh>": 1, "<x>": 1})
    compared = set()
    for seed in range(30):
        rng = random.Random(f"{name} {latent} {seed}")
        torch.manual_seed(seed)
        config = tiny_config(name, ATTENTION[seed % len(ATTENTION)])
        if latent:
            config["latent"] = tiny_choice("latent", "gaussian")
        decoder = build(config, vocabulary).decoder.eval()
        decoder.classifier.weight.data *= rng.choice([1, 3, 9])
        decoder.classifier.bias.data[EOS] += rng.choice([-1, 0, 1])
        limits, beam = drawn_settings(rng)
        controls = list(vocabulary.control_index.values())
        words = list(vocabulary.words)[UNK + 1 : UNK + 9]
        never = [" ".join(rng.sample(words, rng.choice([1, 2, 2, 3]))) for _ in range(rng.choice([0, 0, 2]))]
        banned = {"never": [[vocabulary.index[word] for word in phrase.split()] for phrase in never]}
        prefix = rng.sample(controls, rng.choice([0, 0, 1, 2]))
        step = Eager(decoder)
        with torch.no_grad():
            memory = decoder.prepare(random_features(rng.choice([1, 4]), seed=seed))
            state, regions = step.first(memory)
            step.trees = decoder.start(memory), memory
            given = torch.tensor(prefix).expand(len(state[0]), -1) if prefix else None
            for torch_search, ours in (
                (GreedySearch(**limits, never=never), PortableGreedy(**limits, **banned, controls=controls)),
                (
                    BeamSearch(**beam, **limits, never=never),
                    PortableBeam(**beam, **limits, **banned, controls=controls),
                ),
            ):
                torch_search.bind(vocabulary, EnglishTokenizer())
                found = ours(step, state, regions, prefix, attention=True)
                held_equal(found, torch_search(decoder, memory, prefix=given, attention=True))
                assert ours(step, state, regions, prefix).attention is None
                compared.add((found.tokens.shape, bool(found.finished.all())))
    assert len(compared) > 10 and {ended for _, ended in compared} == {True, False}


def test_forbidden_words_by_hand():
    search = PortableSearch(no_repeat_ngram=2, controls=[7])
    log_probs = np.full((1, 1, 8), -2.0, np.float32)
    said = search.allowed(log_probs, 4, np.array([[[5, 6, 4, 5]]]))[0, 0]
    assert np.isneginf(said).nonzero()[0].tolist() == [0, BOS, UNK, 6, 7]  # after 5 came 6 already


def test_the_best_are_the_greatest_in_order():
    values = np.random.default_rng(0).standard_normal((3, 2, 50)).astype(np.float32)
    for count in (1, 5, 50, 60):
        found, places = best(values, count)
        assert np.array_equal(found, -np.sort(-values)[..., :count])
        assert np.array_equal(np.take_along_axis(values, places, -1), found)
