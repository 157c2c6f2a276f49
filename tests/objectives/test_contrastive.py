import pytest
import torch
from torch.nn import functional as F

from src.data.vocabulary import PAD
from src.matcher import spoken
from src.model import build
from src.objectives import Contrastive
from tests.conftest import random_features, tiny_config
from tests.objectives.test_cross_entropy import ROWS, batch_of

MATCHER = {"_target_": "src.matcher.JointMatcher", "size": 6, "words": 5, "hidden": 4, "heads": 2, "dropout": 0.0}


def matching_model(vocabulary, **fields):
    torch.manual_seed(0)
    return build({**tiny_config(), "matcher": {**MATCHER, "word_dropout": 0.0, **fields}}, vocabulary)


def vectors(count, size=6, seed=0):
    drawn = torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(drawn, dim=-1).requires_grad_()


IMAGE = [0, 0, 1, 2, 2, 2, 3]


def by_loops(pictures, sentences, scale, margin, hard_weight):
    """The loss as its definition reads, sentence by sentence, and its gradients."""
    total = torch.zeros((), dtype=torch.float64)
    for n, own in enumerate(IMAGE):
        like = [scale * sentences[n] @ picture for picture in pictures]
        to_pictures = -torch.log(like[own].exp() / sum(each.exp() for each in like))
        others = [m for m, image in enumerate(IMAGE) if image != own]
        rest = sum((scale * sentences[m] @ pictures[own]).exp() for m in others)
        to_sentences = -torch.log(like[own].exp() / (like[own].exp() + rest))
        total = total + (to_pictures + to_sentences) / 2
        mine = sentences[n] @ pictures[own]
        worst_picture = max(sentences[n] @ pictures[b] for b in range(len(pictures)) if b != own)
        worst_sentence = max(sentences[m] @ pictures[own] for m in others)
        for worst in (worst_picture, worst_sentence):
            total = total + hard_weight * max(margin + worst - mine, 0 * mine)
    return total


@pytest.mark.parametrize("hard_weight", [0.0, 0.7])
def test_loss_and_gradients_are_those_of_the_definition(hard_weight):
    objective = Contrastive(hard_weight=hard_weight, margin=0.3, temperature=0.2).double()
    found, expected = [], []
    for function, results in ((objective.match, found), (None, expected)):
        pictures, sentences = vectors(4), vectors(len(IMAGE), seed=1)
        if function:
            total = function(pictures, sentences, torch.tensor(IMAGE))[0]
        else:
            total = by_loops(pictures, sentences, objective.log_scale.exp(), 0.3, hard_weight)
        objective.zero_grad()
        total.backward()
        results += [total, pictures.grad, sentences.grad, objective.log_scale.grad.clone()]
    assert float(found[0].detach()) > 1
    for own, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(own, theirs)


def test_hard_negatives_alone_are_vse(vocabulary):
    """With one sentence a picture it is Faghri et al.'s maximum of hinges."""
    pictures, sentences = vectors(5), vectors(5, seed=1)
    objective = Contrastive(likelihood_weight=0.0, hard_weight=1.0).double()
    scores = pictures @ sentences.t()
    own = scores.diagonal()
    off = scores.masked_fill(torch.eye(5, dtype=torch.bool), -9)
    expected = (0.2 + off.amax(0) - own).clamp(min=0).sum() + (0.2 + off.amax(1) - own).clamp(min=0).sum()
    total, nats, hard = objective.match(pictures, sentences, torch.arange(5))
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(hard, expected.detach())
    assert not objective.log_scale.requires_grad


def test_one_picture_alone_teaches_nothing_and_breaks_nothing():
    objective = Contrastive(hard_weight=1.0).double()
    pictures, sentences = vectors(1), vectors(2, seed=1)
    total = objective.match(pictures, sentences, torch.tensor([0, 0]))[0]
    total.backward()
    assert float(total) == pytest.approx(0, abs=1e-6) and pictures.grad.abs().max() < 1e-6
    none = objective.match(pictures, sentences[:0], torch.zeros(0, dtype=torch.long))[0]
    none.backward()
    assert float(none) == 0


def test_a_picture_that_occurs_twice_is_one():
    """Two groups of a picture's sentences in a batch: neither they nor the two pictures are set against each other."""
    pictures, sentences = vectors(3), vectors(5, seed=1)
    objective = Contrastive(hard_weight=0.5).double()
    twice = torch.cat([pictures, pictures[:1]])
    for n, place in ((0, 0), (4, 3)):  # of its own sentences the loss is the same wherever it stands
        one = objective.match(twice, sentences[n : n + 1], torch.tensor([place]), torch.tensor([7, 8, 9, 7]))
        torch.testing.assert_close(one[0], objective.match(pictures, sentences[n : n + 1], torch.tensor([0]))[0])


def test_sentences_are_read_without_what_is_given_and_without_padding(vocabulary):
    batch = batch_of(ROWS)
    words, lengths, image = spoken(batch)
    real = [(b, [t for t in row if t != PAD][1:-1]) for b, rows in enumerate(ROWS) for row in rows]
    real = [(b, row) for b, row in real if row]
    assert image.tolist() == [b for b, _ in real] and lengths.tolist() == [len(row) for _, row in real]
    assert [words[n, :length].tolist() for n, length in enumerate(lengths)] == [row for _, row in real]
    tagged = batch._replace(prefix=torch.full_like(batch.prefix, 2))
    words, lengths, _ = spoken(tagged)
    shorter = [row[1:] for _, row in real if row[1:]]
    assert [words[n, :length].tolist() for n, length in enumerate(lengths)] == shorter


def test_vectors_are_of_unit_length_and_padding_changes_nothing(vocabulary):
    matcher = matching_model(vocabulary).eval().matcher
    words, lengths = torch.tensor([[4, 5, 6, 7], [8, 9, 4, 4]]), torch.tensor([4, 2])
    both = matcher.sentences(words, lengths)
    torch.testing.assert_close(both.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(matcher.sentences(torch.tensor([[8, 9]]), torch.tensor([2]))[0], both[1])
    assert not torch.allclose(both[0], both[1], atol=1e-2)
    features = random_features(2)
    seen = matcher.pictures(features)
    torch.testing.assert_close(seen.norm(dim=-1), torch.ones(2))
    padded = features._replace(
        grid=torch.cat([features.grid, 9 * torch.ones(2, 1, 16)], 1),
        mask=torch.cat([features.mask, torch.zeros(2, 1, dtype=torch.bool)], 1),
    )
    torch.testing.assert_close(matcher.pictures(padded), seen)


def test_the_captioner_stays_as_it_is_or_learns_too(vocabulary):
    for weight in (0.0, 0.5):
        model = matching_model(vocabulary)
        objective = Contrastive(caption_weight=weight)
        assert objective.needs_start == (not weight)
        objective.begin(model)
        loss = objective(model.train(), batch_of(ROWS))
        loss.total.backward()
        assert int(loss.count) == 3
        moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert moved == ({"encoder", "decoder", "matcher"} if weight else {"matcher"})
        assert model.encoder.training == bool(weight)
    batch = batch_of(ROWS)
    alone, both = (Contrastive(caption_weight=weight).eval() for weight in (0.0, 2.0))
    words = both.captions(model.eval(), batch)
    more = float(both(model, batch).total - alone(model, batch).total)
    assert more == pytest.approx(2 * 3 / int(words.count) * float(words.total), rel=1e-4)


def test_what_cannot_be_is_refused(vocabulary, tiny_model):
    with pytest.raises(ValueError, match="add matcher=joint"):
        Contrastive().check(tiny_model)
    with pytest.raises(ValueError, match="learns from one of them"):
        Contrastive(likelihood_weight=0)
    with pytest.raises(ValueError, match="temperature=0: above 0"):
        Contrastive(temperature=0)
    assert float(Contrastive(temperature=0.1).log_scale.detach().exp()) == pytest.approx(10)
