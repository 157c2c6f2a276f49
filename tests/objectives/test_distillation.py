import copy

import pytest
import torch
from torch.nn import functional as F

from src.bundle import Bundle, load_bundle, save_bundle
from src.model import build
from src.objectives import CrossEntropy, Distillation
from src.objectives.cross_entropy import linear_cross_entropy
from src.train import train
from tests.conftest import tiny_config
from tests.objectives.test_cross_entropy import ROWS, batch_of
from tests.objectives.test_self_critical import data_of
from tests.test_configs import composed, tiny


def teacher(folder, vocabulary, seed, decoder="lstm_attn", **overrides):
    torch.manual_seed(seed)
    config = tiny_config(decoder, **overrides)
    config["generation"]["max_length"] = 8
    model = build(config, vocabulary)
    save_bundle(
        folder / f"teacher{seed}", Bundle(model.eval(), vocabulary, {**config, "control": None, "latent": None})
    )
    return model, str(folder / f"teacher{seed}")


@pytest.fixture
def taught(vocabulary, tmp_path):
    """Two teachers of unlike decoders, and the objective that has them."""
    found = [teacher(tmp_path, vocabulary, 1), teacher(tmp_path, vocabulary, 2, "transformer")]
    objective = Distillation([path for _, path in found], weight=0.6, label_smoothing=0.2)
    objective.begin(build(tiny_config(), vocabulary), data_of(vocabulary, tmp_path))
    return [model for model, _ in found], objective


def log_probs(model, batch, b, words):
    memory = model.memory(batch.images[b : b + 1])
    output = model.decoder(model.decoder.embed(torch.tensor([[words[:-1]]])), memory)
    return model.decoder.logits(output.hidden)[0, 0].log_softmax(-1)


def test_equals_the_mixed_target_word_by_word(tiny_model, taught):
    """The loss and its gradient, from the definition: the target is 0.6 of the teachers' mean and 0.4 of the smoothed
    word."""
    teachers, objective = taught
    batch = batch_of(ROWS)
    loss = objective.train()(tiny_model, batch)
    total, nats = 0.0, 0.0
    for b, q in [(0, 0), (0, 1), (1, 0)]:
        words = [t for t in ROWS[b][q] if t]
        own = log_probs(tiny_model, batch, b, words)
        said = torch.stack([log_probs(model, batch, b, words).exp() for model in teachers]).mean(0).detach()
        truth = F.one_hot(torch.tensor(words[1:]), own.size(-1)).float()
        smoothed = 0.8 * truth + 0.2 / own.size(-1)
        total = total - ((0.6 * said + 0.4 * smoothed) * own).sum()
        nats -= float((truth * own).sum())
    assert int(loss.count) == 7
    assert float(loss.total) == pytest.approx(float(total), rel=1e-5)
    assert float(loss.logs["cross_entropy"]) == pytest.approx(nats, rel=1e-5)
    learned = [p for p in tiny_model.parameters() if p.requires_grad]
    for found, expected in zip(
        torch.autograd.grad(loss.total, learned, allow_unused=True, retain_graph=True),
        torch.autograd.grad(total, learned, allow_unused=True),
        strict=True,
    ):
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_chunks_change_nothing(monkeypatch, tiny_model, taught):
    batch = batch_of(ROWS)
    whole = taught[1].train()(tiny_model, batch)
    monkeypatch.setattr("src.objectives.cross_entropy.CHUNK", 1)
    assert float(taught[1](tiny_model, batch).total) == pytest.approx(float(whole.total), rel=1e-6)


def test_of_no_weight_and_in_eval_mode_it_is_cross_entropy(tiny_model, taught):
    batch, objective = batch_of(ROWS), taught[1]
    expected = CrossEntropy(0.2)(tiny_model, batch)
    assert float(objective.eval()(tiny_model, batch).total) == pytest.approx(float(expected.total))
    objective.weight = 0.0
    expected = CrossEntropy(0.2)(tiny_model, batch)
    assert float(objective.train()(tiny_model, batch).total) == pytest.approx(float(expected.total))


def test_a_student_comes_to_say_what_its_teacher_says(vocabulary, tmp_path):
    """With all the weight, its probabilities become the teacher's, whatever the captions say."""
    model, path = teacher(tmp_path, vocabulary, 3)
    torch.manual_seed(4)
    student = build(tiny_config(decoder__dropout=0.0), vocabulary).train()
    objective = Distillation([path], weight=1.0)
    objective.begin(student, data_of(vocabulary, tmp_path))
    batch = batch_of(ROWS)
    with torch.no_grad():  # a teacher that is sure of itself
        for each in (objective.teachers[0], model):
            each.decoder.classifier.weight.mul_(10)
    optimizer = torch.optim.Adam(student.parameters(), 0.02)

    def apart():
        words = ROWS[0][0]
        with torch.no_grad():
            theirs, own = (log_probs(each, batch, 0, words) for each in (model, student.eval()))
        student.train()
        return float((theirs.exp() * (theirs - own)).sum())

    before = apart()
    for _ in range(300):
        loss = objective(student, batch)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert apart() < 0.02 * before


def test_teachers_are_no_part_of_what_is_saved_or_learned(taught):
    assert not list(taught[1].parameters()) and list(taught[1].state_dict()) == ["baseline"]
    assert copy.deepcopy(taught[1]).teachers is taught[1].teachers, "a moving average has no second ones"


def test_control_tokens_are_given_not_taught(tiny_model, taught):
    assert int(taught[1].train()(tiny_model, batch_of(ROWS, prefix=2)).count) == 4


def test_cached_features_are_for_teachers_of_the_same_frozen_stages(vocabulary, tmp_path):
    def encoder(seed, frozen):
        return teacher(tmp_path, vocabulary, seed, encoder__frozen=frozen)

    (student, same), (_, other), (_, whole) = encoder(5, True), encoder(6, True), encoder(7, False)
    cached = student.encoder.frozen_regions(torch.rand(2, 3, 32, 32)).detach()
    batch = batch_of(ROWS)._replace(images=cached)
    for path, fits in ((same, True), (other, False), (whole, False)):
        objective = Distillation([path]).train()
        objective.begin(student, data_of(vocabulary, tmp_path))
        assert torch.isfinite(objective(student, batch_of(ROWS)).total), "of pixels each has its own"
        if fits:
            assert torch.isfinite(objective(student, batch).total)
        else:
            with pytest.raises(ValueError, match=f"{path} cannot read the cached features.*set data.cache=false"):
                objective(student, batch)


def test_teachers_of_other_words_are_refused(vocabulary, tmp_path):
    _, path = teacher(tmp_path, vocabulary, 8)
    with pytest.raises(ValueError, match="teacher8 knows 12 words and these data have 13"):
        Distillation([path]).begin(None, data_of(vocabulary.extended([["new"]], 1), tmp_path))


def test_from_the_command_to_a_bundle(shapes, tmp_path):
    """Two teachers and their student, with cached features; the student's folder holds itself alone."""
    plainly = ["encoder=cnn", "encoder.frozen=true", "encoder.width=32", "generation=greedy"]
    for name in ("a", "b"):
        train(composed([*plainly, *tiny(shapes, tmp_path), f"run_dir={tmp_path / name}"]))
    paths = ",".join(str(tmp_path / f"{name}.fast_dev_run") for name in "ab")
    student = ["objective=distillation", f"objective.teachers=[{paths}]", f"run_dir={tmp_path / 'student'}"]
    train(composed([*plainly, *tiny(shapes, tmp_path), *student]))
    bundle = load_bundle(tmp_path / "student.fast_dev_run")
    assert list(bundle.model.state_dict()) == list(load_bundle(tmp_path / "a.fast_dev_run").model.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teachers": []}, r"objective.teachers=\[\]: name one captioner or more"),
        ({"teachers": ["x"], "weight": 1.5}, "objective.weight=1.5: from 0 to 1"),
        ({"teachers": ["x"], "label_smoothing": 1.0}, "objective.label_smoothing=1.0"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(options, message, tiny_model):
    with pytest.raises(ValueError, match=message):
        Distillation(**options).check(tiny_model)


def test_a_latent_variable_is_not_taught(vocabulary):
    latent = {"_target_": "src.decoders.GaussianLatent", "size": 4, "hidden": 8}
    with pytest.raises(ValueError, match="latent=null"):
        Distillation(["x"]).check(build({**tiny_config(), "latent": latent}, vocabulary))


def test_linear_cross_entropy_of_weighted_rows_with_teachers():
    """Weights go over the whole target."""
    torch.manual_seed(0)
    hidden, layer, targets = torch.randn(4, 6), torch.nn.Linear(6, 9), torch.tensor([1, 2, 3, 8])
    other = (torch.randn(4, 5), torch.randn(9, 5), torch.randn(9))
    weights = torch.tensor([0.5, 2.0, 0.0, -1.0])
    total, _, _ = linear_cross_entropy(hidden, layer, targets, 0.1, weights, taught=[other], share=0.3)
    own = layer(hidden).log_softmax(-1)
    said = (other[0] @ other[1].t() + other[2]).softmax(-1)
    target = 0.3 * said + 0.7 * (0.9 * F.one_hot(targets, 9) + 0.1 / 9)
    assert float(total) == pytest.approx(float(-(weights.unsqueeze(1) * target * own).sum()), rel=1e-5)
