"""Attacks on tiny captioners: gradients, budgets, goals."""

from pathlib import Path

import pytest
import torch
import yaml

from src.attacks import FGSM, PGD, Aim, AttackError, CarliniWagner, Keyword, Sentence, Untargeted, Victim, methods
from src.attacks.goals import margins
from src.captioner import Captioner
from src.config import CONF
from src.data.tokenizer import EnglishTokenizer
from src.data.transforms import Preprocess
from src.data.vocabulary import EOS, UNK
from src.generation import BeamSearch, GreedySearch
from src.model import build
from tests.conftest import tiny_config

REFERENCES = [["a red square", "red on grey", "grey"], ["a blue circle", "blue"], ["green square on grey"]]


def captioner_of(vocabulary, seed=0, search=None, config=None):
    torch.manual_seed(seed)
    model = build(config or tiny_config(), vocabulary).eval()
    model.encoder.project.weight.data *= 30  # a picture tells
    model.decoder.classifier.weight.data *= 5
    return Captioner(
        model, vocabulary, EnglishTokenizer(), Preprocess(32), search or GreedySearch(max_length=6), "cpu", "32-true"
    )


def pictures(count=3, seed=0):
    return torch.randint(256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(seed)) / 255


@pytest.fixture
def victim(vocabulary):
    return Victim(captioner_of(vocabulary))


def clean_of(victim, images):
    return victim.words(images)


@pytest.fixture
def in_float64(monkeypatch):
    """Parts that go to float32 stay in float64: small differences would drown."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


GOALS = [Untargeted(), Sentence("a red square"), Keyword("circle")]


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: type(goal).__name__)
@pytest.mark.parametrize("decoder", ["lstm_attn", "transformer", "lstm", "updown"])
def test_gradients_are_finite_differences(goal, decoder, vocabulary, in_float64):
    config = tiny_config(decoder, encoder__pool=decoder == "lstm")
    victim = Victim(captioner_of(vocabulary, config=config))
    victim.model.double()
    images = pictures().double()
    aims = goal.aims(victim, clean_of(victim, images), REFERENCES)
    loss, gradient = methods.slope(victim, goal, images, aims)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        along = torch.randn(images.shape, generator=generator, dtype=torch.double)
        along /= along.norm()
        step = 1e-5
        after, before = (goal.judge(victim, images + sign * step * along, aims).loss.sum() for sign in (1, -1))
        assert float((after - before) / (2 * step)) == pytest.approx(
            float((gradient * along).sum()), rel=1e-3, abs=1e-6
        )
    assert gradient.abs().amax((1, 2, 3)).min() > 0


def test_the_untargeted_loss_is_the_references_log_probability(victim):
    """Word by word, each caption by itself."""
    images = pictures()
    goal = Untargeted()
    aims = goal.aims(victim, clean_of(victim, images), REFERENCES)
    found = goal.judge(victim, images, aims).loss
    decoder = victim.decoder
    for b, group in enumerate(REFERENCES):
        total, words = 0.0, 0
        for text in group:
            memory = victim.model.memory(images[b : b + 1])
            state, word = victim.greedy.begin(decoder, memory, None)
            for target in [*(victim.vocabulary.index.get(w, UNK) for w in text.split()), EOS]:
                output, state = decoder.step(decoder.embed(word), state, memory)
                total += float(decoder.logits(output.hidden)[0, 0].log_softmax(-1)[target])
                word, words = torch.tensor([[target]]), words + 1
        assert float(found[b]) == pytest.approx(total / words, abs=1e-4)


def test_behind_a_caption_that_was_cut_no_keyword_is_looked_for(victim):
    images = pictures()
    said = clean_of(victim, images)
    assert {len(words) for words in said} == {victim.greedy.max_length}, "they are cut"
    goal = Keyword("circle")
    aims = [Aim(list(words), [], ["circle"]) for words in said]
    read = victim.read(victim.seen(images), [[victim.ids(words)[:-1]] for words in said])
    above = margins(read, victim, torch.full_like(read.words, victim.vocabulary.index["circle"]))
    expected = (goal.margin - above.amax((1, 2))).clamp(min=0)
    assert torch.allclose(goal.judge(victim, images, aims).loss, expected, atol=1e-5)


def test_margins_are_above_the_best_other_word_that_may_be_said(victim):
    images = pictures()
    read = victim.read(victim.seen(images), [[victim.ids(["a", "red"])]] * 3)
    above = margins(read, victim, read.words)
    for b in range(3):
        for t, word in enumerate(read.words[b, 0].tolist()):
            row = read.logits[b, 0, t].tolist()
            others = [v for i, v in enumerate(row) if i != word and i not in victim.never]
            assert float(above[b, 0, t]) == pytest.approx(row[word] - max(others), abs=1e-5)


def test_only_what_greedy_search_says_has_positive_margins(victim):
    images = pictures(8, seed=3)
    clean = clean_of(victim, images)
    for words, image in zip(clean, images, strict=True):
        goal = Sentence(" ".join(words))
        (aim,) = goal.aims(victim, [words], REFERENCES[:1])
        assert goal.judge(victim, image[None], [aim]).met == [True] and goal.met(aim, words)
        (aim,) = Sentence("red red").aims(victim, [words], REFERENCES[:1])
        assert goal.judge(victim, image[None], [aim]).met == [False] and not goal.met(aim, words)


ATTACKS = [
    FGSM(),
    FGSM("l2"),
    PGD(steps=4),
    PGD("l2", steps=4),
    PGD(steps=3, restarts=2),
    CarliniWagner(steps=6, searches=2),
    CarliniWagner("linf", steps=6, searches=2),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: f"{type(a).__name__}-{a.norm}-{getattr(a, 'restarts', 0)}")
@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: type(goal).__name__)
def test_the_budget_and_the_range_are_kept_and_zero_changes_nothing(attack, goal, victim):
    images = pictures()
    aims = goal.aims(victim, clean_of(victim, images), REFERENCES)
    assert torch.equal(attack(victim, goal, images, aims, 0), images)
    for size in (2, 16) if attack.norm == "linf" else (0.5, 4):
        changed = attack(victim, goal, images, aims, size)
        change = (changed - images).flatten(1).double()
        far = change.abs().amax(1) * 255 if attack.norm == "linf" else change.norm(dim=1)
        assert (far <= size * (1 + 1e-5)).all()
        assert float(changed.min()) >= -1e-6 and float(changed.max()) <= 1 + 1e-6
        levels = changed * 255
        assert torch.allclose(levels, levels.round(), atol=1e-3)


def test_one_step_is_the_sign_of_the_gradient(victim):
    images = pictures()
    goal = Untargeted()
    aims = goal.aims(victim, clean_of(victim, images), REFERENCES)
    before, gradient = methods.slope(victim, goal, images, aims)
    stepped = (images - 3 / 255 * gradient.sign()).clamp(0, 1)
    changed = FGSM()(victim, goal, images, aims, 3)
    after = goal.judge(victim, stepped, aims).loss
    for b in range(3):  # the picture itself is kept where the step helps nothing
        assert torch.allclose(changed[b], stepped[b] if after[b] < before.loss[b] else images[b], atol=1e-6)


def test_more_steps_and_more_budget_do_more(victim):
    images = pictures(6)
    goal = Untargeted()
    aims = goal.aims(victim, clean_of(victim, images), (REFERENCES * 2))

    def loss(attack, size):
        return float(goal.judge(victim, attack(victim, goal, images, aims, size), aims).loss.mean())

    plain = float(goal.judge(victim, images, aims).loss.mean())
    one, many = loss(FGSM(), 4), loss(PGD(steps=20), 4)
    assert many < one < plain
    assert loss(PGD(steps=20), 16) < many
    assert loss(PGD(steps=20, restarts=3), 4) <= many + 1e-6
    assert loss(PGD("l2", steps=20), 2) < loss(PGD("l2", steps=20), 0.5) < plain


def unsaid(victim, images):
    """A word that is said of none of the pictures."""
    said = {word for words in victim.words(images) for word in words}
    return next(word for word in victim.vocabulary.index if word not in said)


def test_wanted_words_and_sentences_are_said(victim):
    shades = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 0, 1]])
    images = shades.view(4, 3, 1, 1).expand(-1, -1, 32, 32).contiguous()
    clean = clean_of(victim, images)
    for goal in (Keyword(unsaid(victim, images)), Sentence()):
        aims = goal.aims(victim, clean, REFERENCES + [["a"]])
        assert not any(goal.met(aim, words) for aim, words in zip(aims, clean, strict=True))
        changed = PGD(steps=100)(victim, goal, images, aims, 128)
        said = [caption.words for caption in victim.captions(changed)]
        assert all(goal.met(aim, words) for aim, words in zip(aims, said, strict=True)), (said, aims)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_least_change_is_smaller_than_what_a_large_budget_takes(norm, victim):
    images = pictures(4)
    goal = Keyword(unsaid(victim, images))
    aims = goal.aims(victim, clean_of(victim, images), REFERENCES + [["a"]])
    rough = PGD(norm, steps=60)(victim, goal, images, aims, 64 if norm == "linf" else 20)
    fine = CarliniWagner(norm, steps=80, searches=5)(victim, goal, images, aims, float("inf"))

    def far(changed):
        change = (changed - images).flatten(1)
        return change.abs().amax(1) if norm == "linf" else change.norm(dim=1)

    assert all(goal.met(aim, c.words) for aim, c in zip(aims, victim.captions(fine), strict=True))
    assert float(far(fine).mean()) < float(far(rough).mean())


def test_drawn_goals_are_anothers_and_of_their_seed(victim):
    words = [word for word in victim.vocabulary.index if word not in ("a", "on", "square")]
    clean = [["a", word] for word in words] * 2
    references = [["a square"]] * len(clean)
    for kind in (Sentence, Keyword):
        one, same, other = ([a.wanted for a in kind(seed=s).aims(victim, clean, references)] for s in (0, 0, 1))
        assert one == same != other
    for aim, own in zip(Sentence().aims(victim, clean, references), clean, strict=True):
        assert aim.wanted in clean and aim.wanted != own
    for aim in Keyword().aims(victim, clean, references):
        assert aim.wanted[0] in words and aim.wanted[0] not in aim.clean


def test_what_cannot_be_wanted_is_refused(victim):
    with pytest.raises(AttackError, match=r"goal.word: the captioner does not know 'zebra'"):
        Keyword("zebra").aims(victim, [["a"]], [["a"]])
    with pytest.raises(AttackError, match="goal.sentence: 7 words, and its captions have 6"):
        Sentence("a red a red a red a").aims(victim, [["a"]], [["a"]])
    with pytest.raises(AttackError, match="all captions of these pictures are the same"):
        Sentence().aims(victim, [["a"], ["a"]], [["a"], ["a"]])
    with pytest.raises(AttackError, match="have no words to exchange"):
        Keyword().aims(victim, [["a", "red"]], [["red"]])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PGD(steps=0), "attack.steps=0: at least 1"),
        (lambda: PGD(step=0.0), "attack.step=0.0: a share of the budget"),
        (lambda: PGD(momentum=1.0), "attack.momentum=1.0"),
        (lambda: PGD("l1"), "attack.norm=l1: choose linf or l2"),
        (lambda: CarliniWagner(rate=0.0), "attack.rate=0.0: above 0"),
        (lambda: CarliniWagner(searches=0), "attack.searches=0: at least 1"),
        (lambda: Keyword(margin=-1.0), "goal.margin=-1.0: at least 0"),
    ],
)
def test_arguments_out_of_range(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def family():
    for decoder in ("lstm", "gru", "lstm_attn", "gru_attn", "updown", "transformer"):
        yield decoder, "additive", None
    for path in sorted(Path(CONF, "attention").glob("*.yaml")):
        yield "lstm_attn", path.stem, None
    yield "lstm_attn", "additive", "gaussian"


@pytest.mark.parametrize(("decoder", "attention", "latent"), list(family()))
def test_the_whole_family_can_be_attacked(decoder, attention, latent, vocabulary):
    config = tiny_config(decoder, attention, encoder__pool=decoder in ("lstm", "gru"))
    if latent:
        config["latent"] = yaml.safe_load(Path(CONF, "latent", f"{latent}.yaml").read_text())
    victim = Victim(captioner_of(vocabulary, config=config))
    images = pictures()
    victim.check(images[:1])
    goal = Untargeted()
    aims = goal.aims(victim, clean_of(victim, images), REFERENCES)
    changed = PGD(steps=5)(victim, goal, images, aims, 8)
    before, after = (goal.judge(victim, x, aims).loss for x in (images, changed))
    assert (after < before).all()


def test_control_tokens_are_given(vocabulary):
    """What is read is what the search says, behind the same tokens."""
    tagged = vocabulary.extended([["a"]], min_count=1, controls={"<zh>": 1})
    captioner = captioner_of(tagged)
    captioner.ask(tags="zh")
    victim = Victim(captioner)
    images = pictures()
    said = [caption.words for caption in victim.captions(images)]
    assert victim.words(images) == said
    read = victim.read(victim.seen(images), [[victim.ids(words)] for words in said])
    logits = read.logits.clone()
    logits[..., victim.never] = -torch.inf
    for b, words in enumerate(said):
        assert [tagged.words[i] for i in logits[b, 0, : len(words)].argmax(-1).tolist()] == words


def test_a_captioner_without_gradients_is_refused(vocabulary):
    captioner = captioner_of(vocabulary)
    victim = Victim(captioner)
    forward = captioner.model.encoder.forward
    captioner.model.encoder.forward = lambda images: (
        type(out)(*(x.detach() for x in out)) if (out := forward(images)) else None
    )
    with pytest.raises(AttackError, match="no gradient reaches the pixels"):
        victim.check(pictures(1))


def test_beam_search_is_asked_in_the_end(vocabulary):
    victim = Victim(captioner_of(vocabulary, search=BeamSearch(beam_size=3, max_length=6)))
    assert isinstance(victim.captioner.generation, BeamSearch) and isinstance(victim.greedy, GreedySearch)
    assert victim.captions(pictures())[0].words


def test_gradients_of_a_random_defence_are_means_over_draws(vocabulary):
    captioner = captioner_of(vocabulary)
    captioner.defend_by({"_target_": "src.defences.RandomResizeDefence", "least": 0.5})
    victim, once = Victim(captioner, samples=3), Victim(captioner, samples=1)
    assert Victim(captioner).samples == 8
    images = pictures()
    goal = Untargeted()
    aims = goal.aims(victim, clean_of(victim, images), REFERENCES)
    torch.manual_seed(0)
    judged, gradient = methods.slope(victim, goal, images, aims)
    torch.manual_seed(0)
    each = [methods.slope(once, goal, images, aims) for _ in range(3)]
    assert not torch.allclose(each[0][1], each[1][1])
    assert torch.allclose(gradient, torch.stack([g for _, g in each]).mean(0), atol=1e-6)
    assert torch.allclose(judged.loss, torch.stack([j.loss for j, _ in each]).mean(0), atol=1e-5)
    assert victim.words(images) == victim.words(images), "outside an attack a picture has one caption"


@pytest.mark.parametrize("defence", ["jpeg", "bits", "blur", "random_resize"])
def test_an_attack_that_knows_the_defence_gets_through(defence, vocabulary):
    captioner = captioner_of(vocabulary)
    captioner.defend_by(yaml.safe_load(Path(CONF, "defence", f"{defence}.yaml").read_text()))
    victim = Victim(captioner)
    images = pictures(2)
    goal = Untargeted()
    aims = goal.aims(victim, clean_of(victim, images), REFERENCES[:2])
    torch.manual_seed(0)
    changed = PGD(steps=8)(victim, goal, images, aims, 16)
    with captioner.computing():
        before, after = (goal.judge(victim, x, aims).loss for x in (images, changed))
    assert (after < before).all()


def test_words_never_said_are_none_that_an_attack_can_want(vocabulary):
    captioner = captioner_of(vocabulary, search=GreedySearch(max_length=6, never=["circle"]))
    victim = Victim(captioner)
    assert vocabulary.index["circle"] in victim.never
    assert all("circle" not in words for words in victim.words(pictures(8)))
