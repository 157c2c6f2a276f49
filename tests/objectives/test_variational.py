import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from src.data.vocabulary import BOS, EOS, PAD, UNK
from src.decoders.latent import Gaussian
from src.generation import BeamSearch, SampleSearch
from src.model import build
from src.objectives import Variational
from tests.conftest import random_features, tiny_config
from tests.objectives.test_cross_entropy import ROWS, batch_of


def latent_model(vocabulary, decoder="lstm_attn", **overrides):
    torch.manual_seed(0)
    config = tiny_config(decoder, **overrides)
    config["latent"] = {"_target_": "src.decoders.GaussianLatent", "size": 5, "hidden": 11}
    return build(config, vocabulary).eval()


def test_the_divergence_is_the_closed_form_and_the_mean_of_draws():
    torch.manual_seed(0)
    first, second = (Gaussian(torch.randn(4), 0.4 * torch.randn(4)) for _ in range(2))
    theirs = kl_divergence(Normal(first.mean, first.log_std.exp()), Normal(second.mean, second.log_std.exp()))
    torch.testing.assert_close(first.divergence(second), theirs)
    assert float(first.divergence(first).abs().max()) < 1e-6
    by_hand = Gaussian(torch.tensor([1.0]), torch.tensor([0.0])).divergence(Gaussian(torch.zeros(1), torch.zeros(1)))
    assert float(by_hand) == pytest.approx(0.5)  # (1 + 1) / 2 − 1 / 2
    many = Gaussian(*(x.expand(200_000, 4) for x in first)).sample()

    def log_density(gaussian, x):
        return Normal(gaussian.mean, gaussian.log_std.exp()).log_prob(x)

    drawn = (log_density(first, many) - log_density(second, many)).mean(0)
    torch.testing.assert_close(drawn, theirs, atol=0.02, rtol=0.02)


def test_the_bound_by_hand(vocabulary):
    """In eval mode: the words' cross-entropy under the posterior's mean, plus the KL of the captions that are there."""
    model = latent_model(vocabulary)
    objective = Variational(free_bits=0.0, hidden=7)
    objective.begin(model)
    batch, decoder = batch_of(ROWS), model.decoder
    loss = objective.eval()(model, batch)
    features = model.features(batch.images)
    total = kl = 0.0
    for b, q in [(0, 0), (0, 1), (1, 0)]:
        words = torch.tensor([[[t for t in ROWS[b][q] if t != PAD]]])
        own = type(features)(*(x[b : b + 1] for x in features))
        memory = decoder.prepare(own)
        lengths = torch.tensor([[words.size(-1) - 1]])
        posterior = objective.posterior(decoder.embed(words[..., 1:]), lengths, own.pooled)
        hidden = decoder(decoder.embed(words[..., :-1]), memory, posterior.mean).hidden
        total += float(F.cross_entropy(decoder.logits(hidden)[0, 0], words[0, 0, 1:], reduction="sum"))
        kl += float(posterior.divergence(Gaussian(*(x.unsqueeze(1) for x in memory.prior))).sum())
    assert int(loss.count) == 7
    assert float(loss.logs["kl"]) == pytest.approx(kl, rel=1e-3)
    assert float(loss.total) == pytest.approx(total + kl, rel=1e-4)


def test_annealing_and_free_bits(vocabulary):
    model = latent_model(vocabulary, decoder__dropout=0.0)
    batch = batch_of(ROWS)

    def loss(progress, **options):
        objective = Variational(word_dropout=0.0, hidden=7, **options)
        torch.manual_seed(3)
        objective.begin(model)
        objective.progress = progress
        torch.manual_seed(4)
        found = objective.train()(model.train(), batch)
        return float(found.total - found.logs["cross_entropy"]), float(found.logs["kl"]), objective.beta

    cost, kl, beta = loss(0.1, annealing=0.4, kl_weight=2.0, free_bits=0.0)
    assert beta == pytest.approx(0.5) and cost == pytest.approx(0.5 * kl, rel=1e-3)
    assert loss(0.0, annealing=0.4)[0] == pytest.approx(0.0, abs=1e-4)
    assert loss(0.9, annealing=0.4)[2] == loss(0.0, annealing=0.0)[2] == 1.0
    cost, kl, _ = loss(1.0, free_bits=50.0)
    assert cost == pytest.approx(3 * 5 * 50.0) and kl < cost  # three captions, five dimensions


def test_dropped_words_are_unknown_but_bos_and_targets_stay(vocabulary, monkeypatch):
    model = latent_model(vocabulary)
    objective = Variational(word_dropout=0.999999, hidden=7)
    objective.begin(model)
    read = []
    original = type(model.decoder).embed
    monkeypatch.setattr(type(model.decoder), "embed", lambda self, w: read.append(w) or original(self, w))
    objective.train()(model.train(), batch_of(ROWS))
    targets, given = read
    assert targets[0, 0].tolist() == [4, 5, EOS]
    assert given[0].tolist() == [[BOS, UNK, UNK], [BOS, UNK, UNK]]
    assert given[1].tolist() == [[BOS, UNK, UNK], [PAD] * 3]


@pytest.mark.parametrize("name", ["lstm", "gru_attn", "updown", "transformer"])
def test_steps_equal_forward_and_the_latent_matters(name, vocabulary):
    model = latent_model(vocabulary, name)
    decoder, memory = model.decoder, model.decoder.prepare(random_features())
    words, latent = torch.randint(4, len(vocabulary), (3, 2, 5)), torch.randn(3, 2, 5)
    whole = decoder(decoder.embed(words), memory, latent)
    state = decoder.start(memory, latent)
    for t in range(5):
        output, state = decoder.step(decoder.embed(words[:, :, t]), state, memory)
        torch.testing.assert_close(output.hidden, whole.hidden[:, :, t], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(whole.hidden, decoder(decoder.embed(words), memory).hidden, atol=1e-3)


def test_a_search_that_draws_draws_a_latent_a_caption(vocabulary):
    """With words that are nearly certain given the latent, samples differ by their latents, beams do not."""
    model = latent_model(vocabulary)
    decoder = model.decoder
    with torch.no_grad():
        decoder.project.weight.mul_(20)
    memory = decoder.prepare(random_features(2))
    state = decoder.start(memory, generator=torch.Generator().manual_seed(0), captions=4)
    assert state.latent.shape == (2, 4, 5) and state.latent.std(1).min() > 0
    torch.testing.assert_close(decoder.start(memory).latent.squeeze(1), memory.prior.mean)
    cold = SampleSearch(captions=6, temperature=1e-6, max_length=5)(decoder, memory)
    assert all(len({tuple(row) for row in rows}) > 1 for rows in cold.tokens.tolist())
    with torch.no_grad():
        decoder.project.weight.zero_()
    cold = SampleSearch(captions=6, temperature=1e-6, max_length=5)(decoder, memory)
    assert all(len({tuple(row) for row in rows}) == 1 for rows in cold.tokens.tolist())
    first, second = (
        BeamSearch(2, max_length=5)(d, m).tokens for d, m in ((decoder, memory), (decoder.inner, memory.inner))
    )
    assert torch.equal(first, second)


def test_a_captioner_without_a_latent_is_refused(tiny_model):
    with pytest.raises(ValueError, match="add latent=gaussian"):
        Variational().check(tiny_model)
