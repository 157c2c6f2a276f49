import math

import pytest
import torch

from src.attention import AdditiveAttention, DotAttention
from tests.conftest import random_features


@pytest.mark.parametrize("kind", [AdditiveAttention, DotAttention])
def test_weights_by_hand(kind):
    torch.manual_seed(0)
    attention = kind(query_width=5, memory_width=16, width=7)
    features = random_features(2)
    memory = attention.prepare(features)
    query = torch.randn(2, 3, 5)
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
