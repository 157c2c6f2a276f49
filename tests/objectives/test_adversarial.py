import pytest
import torch
from torch.nn import functional as F

from src.data.vocabulary import BOS, EOS, PAD
from src.model import build
from src.objectives import Adversarial, CrossEntropy
from src.objectives.adversarial import Discriminator, relaxed_captions
from tests.conftest import random_features, tiny_config
from tests.objectives.test_cross_entropy import batch_of

ROWS = [[[BOS, 4, 5, EOS], [BOS, 6, EOS, PAD]], [[BOS, 7, 8, EOS], [PAD] * 4], [[BOS, 9, EOS, PAD], [PAD] * 4]]


def set_up(vocabulary, name="lstm_attn", **options):
    torch.manual_seed(0)
    model = build(tiny_config(name, decoder__dropout=0.0), vocabulary).train()
    objective = Adversarial(hidden=12, max_length=5, **options)
    objective.begin(model)
    batch = batch_of(ROWS, images=3)._replace(images=random_features(3))
    return model, objective.train(), batch


def test_relaxed_captions_are_one_hot_with_gradients(vocabulary):
    model, _, _ = set_up(vocabulary)
    words, lengths = relaxed_captions(model.decoder, model.decoder.prepare(random_features(4)), 5, 0.5)
    torch.testing.assert_close(words.sum(-1), torch.ones(words.shape[:2]))
    assert set(words.detach().unique().round(decimals=4).tolist()) <= {0.0, 1.0, -0.0}
    ids = words.argmax(-1)
    assert not torch.isin(ids, torch.tensor([PAD, BOS])).any()
    for row, length in zip(ids.tolist(), lengths.tolist(), strict=True):
        assert EOS not in row[: length - 1] and (row[length - 1] == EOS or length == 5)
    (words * torch.randn(words.size(-1))).sum().backward()
    assert float(model.decoder.classifier.weight.grad.abs().sum()) > 0


def test_the_discriminator_reads_ids_and_one_hots_alike_and_no_padding(vocabulary):
    torch.manual_seed(0)
    judge = Discriminator(12, 16, 8)
    words, lengths, pooled = torch.randint(4, 12, (3, 5)), torch.tensor([5, 2, 3]), torch.randn(3, 16)
    said = judge(words, lengths, pooled)
    torch.testing.assert_close(judge(F.one_hot(words, 12).float(), lengths, pooled), said)
    for row in range(3):
        alone = judge(words[row : row + 1, : lengths[row]], lengths[row : row + 1], pooled[row : row + 1])
        torch.testing.assert_close(alone, said[row : row + 1])


@pytest.mark.parametrize("estimator", ["gumbel", "policy"])
@pytest.mark.parametrize("name", ["lstm_attn", "transformer", "gru"])
def test_each_side_learns_from_its_own_loss_only(name, estimator, vocabulary):
    """With both weights at 0 the captioner gets no gradient, the discriminator the same as ever."""

    def gradients(**weights):
        model, objective, batch = set_up(vocabulary, name, estimator=estimator, **weights)
        torch.manual_seed(5)
        objective(model, batch).total.backward()
        judged = [p.grad.clone() for p in objective.discriminator.parameters()]
        grads = [p.grad for p in model.decoder.parameters() if p.grad is not None]
        return judged, float(sum(g.abs().sum() for g in grads)) if grads else 0.0

    alone, nothing = gradients(weight=0.0, likelihood=0.0)
    both, something = gradients(weight=1.0, likelihood=0.0)
    assert nothing == 0 < something
    for mine, its in zip(alone, both, strict=True):
        torch.testing.assert_close(mine, its)
    assert float(sum(g.abs().sum() for g in alone)) > 0


@pytest.mark.parametrize("estimator", ["gumbel", "policy"])
def test_the_captioner_learns_to_pass(estimator, vocabulary):
    """Against a discriminator that takes only captions with many 6s for a person's, it comes to say 6."""
    model, objective, batch = set_up(vocabulary, "gru", estimator=estimator, weight=1.0, likelihood=0.0, samples=12)

    class Fan(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.value = torch.nn.Parameter(torch.full((12,), -4.0))
            self.value.data[6] = 4.0

        def forward(self, words, lengths, pooled):
            values = words @ self.value if words.is_floating_point() else self.value[words]
            real = torch.arange(values.size(1)) < lengths.unsqueeze(1)
            return (values * real).sum(1) / lengths

    objective.discriminator = Fan().requires_grad_(False)
    optimizer = torch.optim.Adam(model.decoder.parameters(), 0.02)
    taken = []
    for _ in range(60):
        loss = objective(model, batch)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
        taken.append(float(loss.logs["taken_for_true"] / loss.count))
    assert taken[0] < 0.3 and sum(taken[-5:]) / 5 > 0.7


def test_the_discriminator_learns_which_caption_is_whose(vocabulary):
    model, objective, batch = set_up(vocabulary)
    optimizer = torch.optim.Adam(objective.discriminator.parameters(), 0.01)
    for _ in range(80):
        loss = objective(model, batch)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert float(loss.logs["true_for_true"] / loss.count) > 0.8
    assert float(loss.logs["taken_for_true"] / loss.count) < 0.3
    judge, pooled = objective.discriminator, batch.images.pooled
    true, sizes = batch.tokens[:, 0, 1:], batch.mask[:, 0, 1:].sum(-1)
    assert (judge(true, sizes, pooled) > 0).all() and (judge(true, sizes, pooled.roll(1, 0)) < 0).all()


def test_in_eval_mode_it_is_the_likelihood(vocabulary):
    model, objective, batch = set_up(vocabulary)
    expected = CrossEntropy(label_smoothing=0.0)(model.eval(), batch)
    assert float(objective.eval()(model, batch).total) == pytest.approx(float(expected.total))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "score"}, "objective.estimator=score: choose gumbel or policy"),
        ({"temperature": 0.0}, "objective.temperature=0.0: above 0"),
        ({"estimator": "policy", "samples": 1}, "objective.samples=1"),
        ({"weight": -1.0}, "objective.weight=-1"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Adversarial(**options)
