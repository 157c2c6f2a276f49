"""Minimum Bayes risk over a beam: against the choice made by hand with pycocoevalcap's likeness."""

import pytest
import torch

from src.data.vocabulary import EOS, PAD
from src.decoders.ensemble import EnsembleDecoder
from src.generation import BeamSearch, ConsensusSearch, SampleSearch
from src.model import build
from tests.conftest import random_features, tiny_config


def decoder_of(name, vocabulary):
    torch.manual_seed(3)
    decoder = build(tiny_config(name), vocabulary).decoder.eval()
    decoder.classifier.weight.data *= 4
    return decoder


def texts(rows):
    return [" ".join(str(i) for i in row if i != PAD) for row in rows.tolist()]


def likeness(captions, others):
    """CIDEr-D by pycocoevalcap's scorer: with no document frequencies of several images, n-grams are of one weight."""
    scorer = pytest.importorskip("pycocoevalcap.cider.cider_scorer").CiderScorer()
    for caption in captions:
        scorer += (caption, others)
    return torch.tensor(scorer.compute_cider())


@pytest.mark.parametrize("name", ["lstm_attn", "transformer"])
def test_of_the_beams_captions_the_likest_to_the_drawn_comes_first(name, vocabulary):
    decoder = decoder_of(name, vocabulary)
    memory = decoder.prepare(random_features(6))
    limits = {"max_length": 7, "no_repeat_ngram": 2}
    search = ConsensusSearch(4, samples=9, temperature=1.5, seed=5, length_penalty=0.8, **limits)
    with torch.no_grad():
        found = search(decoder, memory, attention=True)
        beam = BeamSearch(4, length_penalty=0.8, **limits)(decoder, memory, attention=True)
        drawn = SampleSearch(9, temperature=1.5, seed=5, **limits)(decoder, memory)
    moved = False
    for b in range(6):
        others, own = texts(drawn.tokens[b]), texts(beam.tokens[b])
        scores = likeness(own, others)
        order = scores.argsort(descending=True, stable=True)
        moved = moved or bool(order[0] != 0)
        torch.testing.assert_close(found.scores[b], scores[order].to(found.scores.dtype), atol=1e-5, rtol=1e-5)
        for part in ("tokens", "log_probs", "lengths", "finished", "attention"):
            assert torch.equal(getattr(found, part)[b], getattr(beam, part)[b][order])
    assert moved


def test_the_same_again_and_nothing_where_there_is_no_caption(vocabulary):
    """Draws are seeded; rows that the beam could not fill stay last; a longer limit is the draws' too."""
    decoder = decoder_of("lstm_attn", vocabulary)
    memory = decoder.prepare(random_features(3))
    search = ConsensusSearch(len(vocabulary) + 5, samples=3, max_length=1)
    one, two = search(decoder, memory), search(decoder, memory)
    assert all(torch.equal(a, b) for a, b in zip(one[:5], two[:5], strict=True))
    assert one.scores.isneginf().any()
    assert (one.scores.diff(dim=1).nan_to_num(0) <= 0).all()
    search.max_length = 6
    assert search(decoder, memory).tokens.size(-1) > 2 and search.drawing.max_length == 6


def test_an_ensemble_agrees_with_itself(vocabulary):
    decoder = EnsembleDecoder([decoder_of("lstm_attn", vocabulary), decoder_of("transformer", vocabulary)])
    features = random_features(2)
    memory = tuple(member.prepare(features) for member in decoder.members)
    found = ConsensusSearch(3, samples=4, max_length=5)(decoder, memory)
    assert (found.scores >= 0).all() and (found.tokens == EOS).any()


def test_no_draws_are_refused():
    with pytest.raises(ValueError, match="generation.samples=0: at least 1"):
        ConsensusSearch(samples=0)
