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
