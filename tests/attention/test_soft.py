import math

import pytest
import torch

from src.attention import AdaptiveAttention, AdditiveAttention, DotAttention, HardAttention, MultiheadAttention
from tests.conftest import random_features


@pytest.mark.parametrize("kind", [AdditiveAttention, DotAttention])
def test_weights_by_hand(kind):
    torch.manual_seed(0)
    attention = kind(query_width=5, memory_width=16, width=7)
    features = random_features(2)
    memory = attention.prepare(features)
    query = torch.randn(2, 3, 5)
    with torch.no_grad():
        found = attention(query, query, query, memory)
    for b in range(2):
        for q in range(3):
            projected = attention.query(query[b, q])
            if kind is AdditiveAttention:
                scores = [float(attention.score(torch.tanh(attention.key(r) + projected))) for r in features.grid[b]]
            else:
                scores = [float(attention.key(r) @ projected) / math.sqrt(7) for r in features.grid[b]]
            weights = torch.tensor(scores).exp() / torch.tensor(scores).exp().sum()
            torch.testing.assert_close(found.weights[b, q], weights, atol=1e-5, rtol=1e-4)
            expected = sum(w * r for w, r in zip(weights, features.grid[b], strict=True))
            torch.testing.assert_close(found.context[b, q], expected, atol=1e-5, rtol=1e-4)


def test_keys_are_projected_once_an_image(monkeypatch):
    attention = AdditiveAttention(5, 16, 7)
    calls = []
    attention.key.register_forward_hook(lambda *_: calls.append(1))
    memory = attention.prepare(random_features(2))
    for _ in range(4):
        attention(torch.randn(2, 3, 5), None, None, memory)
    assert len(calls) == 1


def test_additive_scores_and_gradients_are_those_of_the_definition():
    """v · tanh(W query + U region), computed by exponentials, against torch's own tanh, in double precision."""
    torch.manual_seed(0)
    attention = AdditiveAttention(5, 6, 7).double()
    query = torch.randn(2, 3, 5, dtype=torch.double, requires_grad=True)
    grid = torch.randn(2, 4, 6, dtype=torch.double, requires_grad=True)
    weights = torch.randn(2, 3, 4, dtype=torch.double)

    def gradients(scores):
        wanted = [query, grid, *attention.parameters()]
        return torch.autograd.grad((scores.double() * weights).sum(), wanted)

    plain = attention.score(torch.tanh(attention.key(grid).unsqueeze(1) + attention.query(query).unsqueeze(2)))
    scores = attention.scores(query, attention.keys(grid))
    torch.testing.assert_close(scores.double(), plain.squeeze(-1), atol=1e-6, rtol=1e-6)
    for ours, theirs in zip(gradients(scores), gradients(plain.squeeze(-1)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_additive_attention_saturates_without_overflow(dtype):
    attention = AdditiveAttention(4, 4, 8)
    with torch.no_grad():
        for layer in (attention.key, attention.query):
            layer.weight.copy_(torch.eye(4).repeat(2, 1))
    grid = torch.tensor([[[1e4, -1e4, 30.0, -30.0], [0.0, 1e-3, -1e4, 1e4]]], requires_grad=True)
    query = torch.tensor([[[-1e4, 1e4, -29.0, 1e4]]], requires_grad=True)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        scores = attention.scores(query, attention.keys(grid))
    scores.float().sum().backward()
    for x in (scores, grid.grad, query.grad, attention.score.weight.grad):
        assert torch.isfinite(x).all()


def test_multihead_equals_torchs():
    """`nn.MultiheadAttention` with the same weights, one region masked."""
    torch.manual_seed(0)
    ours = MultiheadAttention(query_width=5, memory_width=6, width=8, heads=2)
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.eye(8).repeat(3, 1))
        theirs.out_proj.weight.copy_(torch.eye(8))
    features = random_features(3, width=6)
    mask = features.mask.clone()
    mask[1, 2] = False
    features = features._replace(mask=mask)
    query = torch.randn(3, 2, 5)
    found = ours(query, None, None, ours.prepare(features))
    parts = ours.query(query), ours.key(features.grid), ours.value(features.grid)
    context, weights = theirs(*parts, key_padding_mask=~mask)
    torch.testing.assert_close(found.context, ours.output(context))
    torch.testing.assert_close(found.weights, weights)
    assert found.weights[1, :, 2].abs().max() == 0


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="attention.heads=3: does not divide the width 8"):
        MultiheadAttention(5, 6, 8, heads=3)


def test_hard_looks_are_of_one_region():
    """In training a region is drawn as often as its weight says; else it is the likeliest."""
    torch.manual_seed(0)
    attention, features = HardAttention(5, 16, 7, expected=0.25), random_features(1)
    with torch.no_grad():
        attention.score.weight.mul_(6)
    memory, query = attention.prepare(features), torch.randn(1, 1, 5).expand(1, 4000, 5)
    with torch.no_grad():
        found = attention.train()(query, query, query, memory)
        mean = found.weights[0, 0] @ features.grid[0]
        soft = (found.context[0] - mean).abs().amax(-1) < 1e-5
        assert float(soft.float().mean()) == pytest.approx(0.25, abs=0.03)
        assert (found.log_prob[0][soft] == 0).all()
        which = torch.cdist(found.context[0][~soft], features.grid[0])
        assert which.amin(1).max() < 1e-2, "each context is a region"
        drawn = which.argmin(1)
        torch.testing.assert_close(found.log_prob[0][~soft], found.weights[0, 0, drawn].log())
        share = torch.bincount(drawn, minlength=4) / len(drawn)
        torch.testing.assert_close(share, found.weights[0, 0], atol=0.03, rtol=0)
        likeliest = attention.eval()(query, query, query, memory)
        assert torch.equal(likeliest.context[0, 0], features.grid[0, found.weights[0, 0].argmax()])
        assert likeliest.log_prob is None


def test_adaptive_attention_by_hand():
    """Lu et al., equations 8 to 13: the sentinel is one more region, and β its weight."""
    torch.manual_seed(0)
    attention, features = AdaptiveAttention(5, 16, 7, input_width=3), random_features(2)
    query, word, cell = torch.randn(2, 3, 5), torch.randn(2, 3, 3), torch.randn(2, 3, 5)
    with torch.no_grad():
        found = attention(query, word, cell, attention.prepare(features))
        for b in range(2):
            for q in range(3):
                gate = attention.gate(torch.cat([query[b, q], word[b, q]])).sigmoid()
                sentinel = attention.sentinel(gate * cell[b, q].tanh())
                seen = torch.cat([features.grid[b], sentinel.unsqueeze(0)])
                scores = attention.score(torch.tanh(attention.key(seen) + attention.query(query[b, q])))
                weights = scores.squeeze(1).softmax(0)
                torch.testing.assert_close(found.sentinel[b, q], weights[-1], atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(found.context[b, q], weights @ seen, atol=1e-5, rtol=1e-4)
                within = weights[:-1] / weights[:-1].sum()
                torch.testing.assert_close(found.weights[b, q], within, atol=1e-5, rtol=1e-4)
