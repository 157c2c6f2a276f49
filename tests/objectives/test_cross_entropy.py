import pytest
import torch
from torch.nn import functional as F

from src.data.module import Batch
from src.data.vocabulary import BOS, EOS, PAD
from src.encoders.base import Features
from src.model import build
from src.objectives import CrossEntropy, cross_entropy
from tests.conftest import random_features, tiny_config


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
@pytest.mark.parametrize("weighted", [False, True])
def test_the_chunked_loss_has_torchs_value_and_gradients(weighted, chunk, smoothing, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK", chunk)
    torch.manual_seed(0)
    classifier = torch.nn.Linear(5, 7)
    hidden, targets = torch.randn(11, 5, requires_grad=True), torch.randint(7, (11,))
    logits = classifier(hidden)
    weights = torch.randn(11) if weighted else None
    theirs = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    theirs = (theirs * weights).sum() if weighted else theirs.sum()
    total, plain, correct = cross_entropy.linear_cross_entropy(hidden, classifier, targets, smoothing, weights)
    torch.testing.assert_close(total, theirs)
    torch.testing.assert_close(plain, F.cross_entropy(logits, targets, reduction="none"))
    assert int(correct) == int((logits.argmax(1) == targets).sum())
    wanted = [hidden, *classifier.parameters()]
    for mine, its in zip(torch.autograd.grad(3 * total, wanted), torch.autograd.grad(3 * theirs, wanted), strict=True):
        torch.testing.assert_close(mine, its)
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        assert cross_entropy.linear_cross_entropy(hidden, classifier, targets, smoothing, weights)[0] == total
    called = {event.name for event in profile.events()}
    assert "aten::addmm" in called and "aten::mm" not in called, "no gradient is made that nobody asks for"


def test_scheduled_sampling_rises_with_the_run_and_reads_the_models_words(tiny_model, monkeypatch):
    """With probability 0 (in eval mode, or at the start) it is the plain loss; near 1 only BOS is the caption's."""
    batch = batch_of([[[BOS, 4, 5, EOS], [BOS, 6, 7, EOS]], [[BOS, 7, 7, EOS], [BOS, 5, 4, EOS]]])
    objective, plain = CrossEntropy(0.0, scheduled_sampling=0.999999), CrossEntropy(0.0)
    tiny_model.decoder.dropout.p = 0.0
    read = []
    original = type(tiny_model.decoder).embed
    monkeypatch.setattr(type(tiny_model.decoder), "embed", lambda self, w: read.append(w) or original(self, w))
    expected = float(plain(tiny_model, batch).total)
    assert float(objective(tiny_model, batch).total) == pytest.approx(expected)
    objective.progress = 1.0
    assert float(objective.eval()(tiny_model, batch).total) == pytest.approx(expected)
    objective.train()
    with torch.no_grad():
        tiny_model.decoder.classifier.bias[6] = 50.0  # it will always say 6
    read.clear()
    loss = objective(tiny_model, batch)
    assert [w.unique().tolist() for w in read] == [[BOS], [6], [6]]
    loss.total.backward()
    forced = batch._replace(tokens=batch.tokens.clone())
    forced.tokens[..., 1:3] = 6
    output = tiny_model.decoder(tiny_model.decoder.embed(forced.tokens[..., :-1]), tiny_model.memory(batch.images))
    log_probs = tiny_model.decoder.logits(output.hidden).log_softmax(-1)
    expected = -log_probs.gather(-1, batch.tokens[..., 1:].unsqueeze(-1)).sum()
    assert float(loss.total) == pytest.approx(float(expected), rel=1e-4)


def test_sampled_words_keep_the_given_ones(tiny_model):
    tokens = torch.tensor([[[BOS, 4, 5, 6]]])
    tiny_model.decoder.dropout.p = 0.0
    memory = tiny_model.memory(torch.rand(1, 3, 32, 32))
    with torch.no_grad():
        tiny_model.decoder.classifier.bias[7] = 50.0
    own = cross_entropy.read_own_words(tiny_model.decoder, memory, tokens, torch.tensor([[3]]), 1.0)
    plain = tiny_model.decoder(tiny_model.decoder.embed(tokens), memory)
    torch.testing.assert_close(own.hidden[:, :, :3], plain.hidden[:, :, :3], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(own.hidden[:, :, 3], plain.hidden[:, :, 3])
    torch.testing.assert_close(own.attention[:, :, :3], plain.attention[:, :, :3], atol=1e-5, rtol=1e-4)


def test_hard_attention_estimates_the_true_gradient(vocabulary):
    """One word read, four regions: what the looks' scores learn, averaged over many draws, is the gradient of the
    expected log-probability, which the four regions' own give exactly."""
    torch.manual_seed(0)
    model = build(tiny_config("lstm_attn", "hard", attention__expected=0.0, decoder__dropout=0.0), vocabulary).train()
    decoder, features = model.decoder, random_features(1)
    tokens = torch.tensor([[[BOS, 5]]])
    score = decoder.attention.score.weight
    with torch.no_grad():
        score.mul_(8)  # of unlike probabilities

    def log_prob_after(region):
        memory = decoder.prepare(features)
        one = torch.zeros_like(features.mask)
        one[0, region] = True
        seen = decoder.prepare(features._replace(mask=one))
        output = decoder(decoder.embed(tokens[..., :-1]), seen)
        return memory, decoder.logits(output.hidden)[0, 0, 0].log_softmax(-1)[5].detach()

    decoder.eval()  # the likeliest region is the only one
    rewards = torch.stack([log_prob_after(region)[1] for region in range(4)])
    memory = decoder.prepare(features)
    state = decoder.start(memory)
    weights = decoder.attention.scores(state.hidden[:, :, -1], memory.attended.keys)[0, 0].softmax(-1)
    exact = torch.autograd.grad(weights @ rewards, score)[0]
    decoder.train()
    draws = 60_000
    batch = Batch(
        Features(*(x.expand(draws, *x.shape[1:]) for x in features)),
        torch.zeros(draws),
        tokens.expand(draws, -1, -1),
        torch.ones(draws, 1, 2, dtype=torch.bool),
        torch.ones(draws, 1, dtype=torch.long),
        [["a"]] * draws,
    )
    objective = CrossEntropy(0.0, look_entropy=0.0)
    loss = objective(model, batch)
    estimate = -torch.autograd.grad(loss.total, score)[0] / draws
    spread = float(exact.norm())
    assert float((estimate - exact).norm()) < 0.05 * spread
    assert float(objective.baseline[0] / objective.baseline[1]) == pytest.approx(float(weights @ rewards), rel=0.05)


def test_drawn_looks_learn_in_training_only(vocabulary):
    model = build(tiny_config("updown", "hard"), vocabulary)
    objective = CrossEntropy(0.0)
    assert "look_entropy" in objective(model.train(), batch_of(ROWS)).logs
    before = objective.baseline.clone()
    assert "look_entropy" not in objective.eval()(model.eval(), batch_of(ROWS)).logs
    assert torch.equal(objective.baseline, before)


def test_a_look_is_rewarded_by_the_words_from_its_own_on(vocabulary):
    """Two words read: the rewards of the two looks, less the baseline, by hand; the first is before a given word."""
    objective = CrossEntropy(0.0, look_entropy=0.0)
    log_prob = torch.tensor([[[-1.0, -2.0, -3.0]]], requires_grad=True)
    nats, weights = torch.tensor([[[0.0, 0.5, 2.0]]]), torch.full((1, 1, 3, 4), 0.25)
    looked, said = torch.tensor([[[True, True, True]]]), torch.tensor([[[False, True, True]]])
    loss = objective._looks(log_prob, weights, nats, looked, said, {})
    mean = -2.5 / 2  # the first batch's own
    rewards = [-2.5 - 2 * mean, -2.5 - 2 * mean, -2.0 - mean]
    loss.backward()
    assert log_prob.grad[0, 0].tolist() == pytest.approx([-reward for reward in rewards])
    assert float(objective.baseline[0] / objective.baseline[1]) == pytest.approx(mean)
