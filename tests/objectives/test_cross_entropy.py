import pytest
import torch
from torch.nn import functional as F

from src.data.module import Batch
from src.data.vocabulary import BOS, EOS, PAD
from src.model import build
from src.objectives import CrossEntropy, cross_entropy
from tests.conftest import tiny_config


def batch_of(rows, images=2, prefix=1):
    tokens = torch.tensor(rows)
    mask = tokens != PAD
    return Batch(
        torch.rand(images, 3, 32, 32),
        torch.arange(images),
        tokens,
        mask,
        torch.full(tokens.shape[:2], prefix),
        [["a"]] * images,
    )


ROWS = [[[BOS, 4, 5, EOS], [BOS, 6, EOS, PAD]], [[BOS, 7, EOS, PAD], [PAD, PAD, PAD, PAD]]]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_equals_the_sum_over_real_tokens_one_by_one(smoothing, tiny_model, vocabulary):
    batch = batch_of(ROWS)
    loss = CrossEntropy(label_smoothing=smoothing)(tiny_model, batch)
    total, correct = 0.0, 0
    for b, q in [(0, 0), (0, 1), (1, 0)]:
        words = [t for t in ROWS[b][q] if t != PAD]
        memory = tiny_model.memory(batch.images[b : b + 1])
        output = tiny_model.decoder(tiny_model.decoder.embed(torch.tensor([[words[:-1]]])), memory)
        log_probs = tiny_model.decoder.logits(output.hidden)[0, 0].log_softmax(-1)
        for t, word in enumerate(words[1:]):
            total -= (1 - smoothing) * float(log_probs[t, word]) + smoothing * float(log_probs[t].mean())
            correct += int(log_probs[t].argmax() == word)
    assert int(loss.count) == 3 + 2 + 2
    assert float(loss.total) == pytest.approx(total, rel=1e-4)
    assert int(loss.logs["token_accuracy"]) == correct


def test_what_lies_in_the_padding_does_not_matter(tiny_model):
    batch = batch_of(ROWS)
    longer = torch.nn.functional.pad(batch.tokens, (0, 3), value=5)
    padded = batch._replace(tokens=longer, mask=torch.nn.functional.pad(batch.mask, (0, 3), value=False))
    first, second = (CrossEntropy()(tiny_model, b) for b in (batch, padded))
    assert float(first.total) == pytest.approx(float(second.total), rel=1e-5)
    assert first.count == second.count


def test_control_tokens_are_given_not_predicted(tiny_model):
    assert int(CrossEntropy()(tiny_model, batch_of(ROWS, prefix=2)).count) == 2 + 1 + 1


def test_attention_penalty_by_hand(tiny_model):
    batch = batch_of(ROWS)
    plain, penalised = (CrossEntropy(0.0, penalty)(tiny_model, batch) for penalty in (0.0, 0.7))
    memory = tiny_model.memory(batch.images)
    attention = tiny_model.decoder(tiny_model.decoder.embed(batch.tokens[..., :-1]), memory).attention
    expected = 0.0
    for b, q, words in [(0, 0, 3), (0, 1, 2), (1, 0, 2)]:
        looked = attention[b, q, :words].sum(0)
        expected += words * float(((1 - looked) ** 2).mean())
    assert float(penalised.total - plain.total) == pytest.approx(0.7 * expected, rel=1e-3)


def test_no_penalty_without_attention(vocabulary):
    model = build(tiny_config("lstm"), vocabulary).eval()
    batch = batch_of(ROWS)
    assert float(CrossEntropy(0.0, 1.0)(model, batch).total) == float(CrossEntropy(0.0, 0.0)(model, batch).total)


def test_parts_add_up_to_the_whole(tiny_model):
    """Sums and counts of two half batches are those of the whole: what makes two processes equal one."""
    batch = batch_of(ROWS)
    whole = CrossEntropy(0.1, 0.5)(tiny_model, batch)
    halves = [CrossEntropy(0.1, 0.5)(tiny_model, Batch(*(x[b : b + 1] for x in batch))) for b in range(2)]
    assert float(whole.total) == pytest.approx(sum(float(h.total) for h in halves), rel=1e-4)
    assert int(whole.count) == sum(int(h.count) for h in halves)


def test_smoothing_out_of_range_is_refused():
    with pytest.raises(ValueError, match="label_smoothing=1"):
        CrossEntropy(label_smoothing=1.0)


@pytest.mark.parametrize("chunk", [1, 35, 10**6])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_chunked_loss_has_torchs_value_and_gradients(chunk, smoothing, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK", chunk)
    torch.manual_seed(0)
    classifier = torch.nn.Linear(5, 7)
    hidden, targets = torch.randn(11, 5, requires_grad=True), torch.randint(7, (11,))
    logits = classifier(hidden)
    theirs = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    total, plain, correct = cross_entropy.linear_cross_entropy(hidden, classifier, targets, smoothing)
    torch.testing.assert_close(total, theirs)
    torch.testing.assert_close(plain, F.cross_entropy(logits, targets, reduction="sum"))
    assert int(correct) == int((logits.argmax(1) == targets).sum())
    wanted = [hidden, *classifier.parameters()]
    for mine, its in zip(torch.autograd.grad(3 * total, wanted), torch.autograd.grad(3 * theirs, wanted), strict=True):
        torch.testing.assert_close(mine, its)
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        assert cross_entropy.linear_cross_entropy(hidden, classifier, targets, smoothing)[0] == total
    called = {event.name for event in profile.events()}
    assert "aten::addmm" in called and "aten::mm" not in called, "no gradient is made that nobody asks for"
