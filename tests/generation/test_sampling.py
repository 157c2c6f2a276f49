import pytest
import torch

from src.data.vocabulary import BOS, EOS, PAD, UNK
from src.generation import GreedySearch, SampleSearch
from src.model import build
from tests.conftest import random_features, tiny_config
from tests.generation.test_search import Table


def table(rows):
    """One image whose next words have these log-probabilities, whatever came before."""
    return Table(torch.tensor(rows).log().expand(1, len(rows), -1))


def shares(search, probabilities):
    """How often each word comes first, of 20,000 captions."""
    found = search(table(probabilities), torch.tensor([0]))
    return torch.bincount(found.tokens[0, :, 0], minlength=len(probabilities)) / found.tokens.size(1)


P = [1e-9, 1e-9, 0.1, 0.2, 0.4, 0.2, 0.1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 0, 0, 0, 0.4 / 0.7, 0.2 / 0.7, 0.1 / 0.7]),  # EOS is no first word, <unk> none at all
        ({"min_length": 0}, [0, 0, 0.125, 0, 0.5, 0.25, 0.125]),
        ({"min_length": 0, "allow_unknown": True}, [0, 0, 0.1, 0.2, 0.4, 0.2, 0.1]),
        ({"temperature": 0.5}, [0, 0, 0, 0, 16 / 21, 4 / 21, 1 / 21]),
        ({"top_k": 2}, [0, 0, 0, 0, 2 / 3, 1 / 3, 0]),
        ({"top_p": 0.5}, [0, 0, 0, 0, 1, 0, 0]),
        ({"top_p": 0.6}, [0, 0, 0, 0, 2 / 3, 1 / 3, 0]),
        ({"top_p": 1e-6}, [0, 0, 0, 0, 1, 0, 0]),
    ],
    ids=str,
)
def test_words_are_drawn_as_often_as_they_should_be(options, expected):
    found = shares(SampleSearch(captions=20_000, max_length=2, **options), P)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), atol=0.012, rtol=0)


@pytest.mark.parametrize("name", ["lstm", "lstm_attn", "transformer"])
def test_samples_say_their_own_log_probabilities(name, vocabulary):
    """Those of the model, whatever the temperature; ranked by their mean; attention of each caption's own words."""
    torch.manual_seed(1)
    decoder = build(tiny_config(name), vocabulary).decoder.eval()
    decoder.classifier.bias.data[EOS] = 1
    memory = decoder.prepare(random_features(4))
    search = SampleSearch(captions=6, temperature=1.5, max_length=7, allow_unknown=True)
    with torch.no_grad():
        found = search(decoder, memory, attention=True)
        given = torch.cat([torch.full((4, 6, 1), BOS), found.tokens], -1)
        output = decoder(decoder.embed(given[..., :-1]), memory)
        log_probs = decoder.logits(output.hidden).log_softmax(-1)
    real = found.tokens != PAD
    expected = log_probs.gather(-1, found.tokens.unsqueeze(-1)).squeeze(-1) * real
    torch.testing.assert_close(found.log_probs, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.scores, expected.sum(-1) / real.sum(-1))
    assert (found.scores.diff(dim=1) <= 0).all()
    assert found.lengths.unique().numel() > 2 and found.finished.any() and not found.finished.all()
    assert torch.equal(found.lengths + found.finished, real.sum(-1))
    if decoder.attends:
        torch.testing.assert_close(found.attention[real], output.attention[real], atol=1e-5, rtol=1e-4)


def test_the_seed_decides_and_a_cold_sample_is_greedy(vocabulary):
    decoder = build(tiny_config("gru_attn"), vocabulary).decoder.eval()
    memory = decoder.prepare(random_features(5))
    first, same, other = (SampleSearch(seed=seed, max_length=6)(decoder, memory).tokens for seed in (1, 1, 2))
    assert torch.equal(first, same) and not (first.shape == other.shape and torch.equal(first, other))
    cold = SampleSearch(captions=1, temperature=1e-7, max_length=6)(decoder, memory)
    assert torch.equal(cold.tokens, GreedySearch(max_length=6)(decoder, memory).tokens)


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}, {"captions": 0}], ids=str
)
def test_impossible_draws_are_refused(wrong):
    ((key, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"generation.{key}={value}"):
        SampleSearch(**wrong)


def test_control_tokens_begin_a_caption_and_are_never_said(vocabulary):
    """What a prefix makes of the captions is what teacher forcing over BOS, prefix and words says."""
    torch.manual_seed(2)
    decoder = build(tiny_config("lstm_attn"), vocabulary).decoder.eval()
    decoder.controls = [4, 5]
    memory, prefix = decoder.prepare(random_features(3)), torch.tensor([[4, 5], [5, 4], [4, 4]])
    for search in (GreedySearch(max_length=5), SampleSearch(captions=3, max_length=5)):
        found = search(decoder, memory, prefix=prefix, attention=True)
        assert not torch.isin(found.tokens, torch.tensor([4, 5, BOS, UNK])).any()
        captions = found.tokens.size(1)
        given = torch.cat(
            [torch.full((3, captions, 1), BOS), prefix.unsqueeze(1).expand(-1, captions, -1), found.tokens], -1
        )
        output = decoder(decoder.embed(given[..., :-1]), memory)
        expected = decoder.logits(output.hidden).log_softmax(-1).gather(-1, given[..., 1:, None]).squeeze(-1)[..., 2:]
        real = found.tokens != PAD
        torch.testing.assert_close(found.log_probs[real], expected[real], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.attention[real], output.attention[:, :, 2:][real], atol=1e-5, rtol=1e-4)
