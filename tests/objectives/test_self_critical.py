import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from torch import nn

from src.data.control import Control
from src.data.tokenizer import EnglishTokenizer
from src.data.vocabulary import BOS, EOS, PAD
from src.decoders.base import Output, select_images
from src.generation import GreedySearch
from src.model import build
from src.objectives import CrossEntropy, SelfCritical
from src.objectives.self_critical import END, policy_gradient, requests
from tests.conftest import random_features, tiny_config
from tests.objectives.test_cross_entropy import ROWS, batch_of

CAPTIONS = [["a red square", "a red square on grey"], ["a blue circle", "there is a circle"], ["green on grey"]]


class Unigram(nn.Module):
    """A decoder whose words all have the same log-odds, its classifier's bias."""

    def __init__(self, odds):
        super().__init__()
        self.classifier, self.dropout = nn.Linear(1, len(odds)), nn.Identity()
        self.classifier.weight.data.zero_()
        self.classifier.bias.data.copy_(torch.tensor(odds))

    def embed(self, words):
        return words.unsqueeze(-1).float()

    def forward(self, embedded, memory, condition=None, lengths=None):
        return Output(torch.zeros_like(embedded))


def data_of(vocabulary, folder):
    return SimpleNamespace(
        vocabulary=vocabulary,
        tokenizer=EnglishTokenizer(),
        cache_dir=folder,
        control=None,
        images=lambda name: SimpleNamespace(captions=CAPTIONS),
    )


@pytest.fixture
def objective(vocabulary, tmp_path):
    found = SelfCritical(samples=3, max_length=6)
    found.begin(None, data_of(vocabulary, tmp_path))
    return found


def test_the_gradient_by_hand():
    """Words 4 and EOS have probabilities 3/4 and 1/4. Two captions, `4 EOS` with advantage 2 and `EOS` with -1:
    d/db = −Σ advantage · Σ_t (1[word] − p)."""
    big = -1e4
    decoder = Unigram([big, big, math.log(0.25), big, math.log(0.75)])
    tokens = torch.tensor([[[EOS, PAD], [4, EOS]]])
    total, count = policy_gradient(decoder, None, tokens, torch.tensor([[-1.0, 2.0]]))
    assert int(count) == 3
    assert float(total) == pytest.approx(-(2 * (math.log(0.75) + math.log(0.25)) - math.log(0.25)))
    total.backward()
    gradient = decoder.classifier.bias.grad
    first = -2 * ((1 - 0.75) + (0 - 0.75)) + (0 - 0.75)
    end = -2 * ((0 - 0.25) + (1 - 0.25)) + (1 - 0.25)
    assert gradient.tolist() == pytest.approx([0, 0, end, 0, first], abs=1e-6)


def test_rewards_are_pycocoevalcaps_with_the_end_token_as_a_word(vocabulary, objective, tmp_path):
    index = vocabulary.index
    rows = [
        [[index["a"], index["red"], index["square"], EOS], [index["a"], index["red"], index["circle"], index["on"]]],
        [[index["a"], index["blue"], index["circle"], EOS], [index["circle"], EOS, PAD, PAD]],
        [[index["green"], index["on"], index["grey"], EOS], [EOS, PAD, PAD, PAD]],
    ]
    found = objective.reward(torch.tensor(rows), CAPTIONS)
    mixed = SelfCritical(samples=2, cider=0.5, bleu=2.0)
    mixed.begin(None, data_of(vocabulary, tmp_path))
    both = mixed.reward(torch.tensor(rows), CAPTIONS)
    words = {**dict(enumerate(vocabulary.words)), EOS: END}
    references = {i: [f"{caption} {END}" for caption in group] for i, group in enumerate(CAPTIONS)}
    for k in range(2):
        captions = {i: [" ".join(words[w] for w in rows[i][k] if w != PAD)] for i in range(3)}
        cider = Cider().compute_score(references, captions)[1]
        assert found[:, k].tolist() == pytest.approx(list(cider), abs=1e-6)
        bleu = Bleu(4).compute_score(references, captions, verbose=0)[1][3]
        expected = [0.5 * c + 2 * b for c, b in zip(cider, bleu, strict=True)]
        assert both[:, k].tolist() == pytest.approx(expected, abs=1e-6)
    assert found[0, 0] > found[0, 1], "a caption that ends is worth more"


@pytest.mark.parametrize("baseline", ["mean", "greedy"])
@pytest.mark.parametrize("name", ["lstm_attn", "transformer", "lstm", "gru"])
def test_it_raises_the_reward(name, baseline, vocabulary, tmp_path):
    """A captioner that cross-entropy left in doubt, with a right and a wrong caption for each of three images, comes
    to score much higher in a few steps. (From random weights, steps by the greedy baseline are mostly noise.)"""
    torch.manual_seed(0)
    model = build(tiny_config(name, decoder__layers=2), vocabulary).train()
    objective = SelfCritical(samples=24, baseline=baseline, max_length=6)
    objective.begin(model, data_of(vocabulary, tmp_path))
    right = [[BOS, *(vocabulary.index[word] for word in group[0].split()), EOS] for group in CAPTIONS]
    rows = [[right[i], right[(i + 1) % 3]] for i in range(3)]
    batch = batch_of(rows, images=3)._replace(images=random_features(3), references=CAPTIONS)

    def steps(count, objective, rate):
        optimizer = torch.optim.Adam(model.decoder.parameters(), rate)
        for _ in range(count):
            loss = objective(model, batch)
            optimizer.zero_grad()
            (loss.total / loss.count).backward()
            optimizer.step()
            yield loss

    list(steps(120, CrossEntropy(), 0.02))
    rewards = [float(loss.logs["reward"] / loss.count) for loss in steps(40, objective, 0.005)]
    assert sum(rewards[-10:]) > 1.3 * sum(rewards[:10])
    assert model.decoder.training and (name in ("lstm_attn", "transformer") or model.decoder.recurrent.dropout > 0)


TAGGED = [["en", "zh"], ["en", "zh", "zh"], ["zh"]]
SAID = [["a red square", "square red"], ["a blue circle", "circle blue", "blue circle"], ["grey on green"]]


def tagged_data(vocabulary, folder, labels=TAGGED, captions=SAID):
    """Captions in two languages; the images' requests are read as `CaptionedImages` holds them."""
    counts = [len(each) for each in labels]
    split = SimpleNamespace(
        captions=captions,
        labels=[label for each in labels for label in each],
        first_caption=np.cumsum([0, *counts]),
        control=Control(tags=True, dropout=0.0),
        control_index=vocabulary.control_index,
    )
    return SimpleNamespace(**{**vars(data_of(vocabulary, folder)), "control": split.control, "images": lambda _: split})


@pytest.fixture
def bilingual(vocabulary):
    return vocabulary.extended([], controls={"<en>": 2, "<zh>": 4})


def test_what_images_are_asked_for(bilingual, tmp_path):
    en, zh = (bilingual.control_index[name] for name in ("<en>", "<zh>"))
    split = tagged_data(bilingual, tmp_path, [["en", "zh"], ["", "fr", "zh"], ["zh"]]).images("train")
    assert requests(split) == [{(en,): [0], (zh,): [1]}, {(): [0, 1], (zh,): [2]}, {(zh,): [0]}]


def test_references_are_of_what_was_asked_for(bilingual, tmp_path):
    en, zh = (bilingual.control_index[name] for name in ("<en>", "<zh>"))
    objective = SelfCritical(samples=2)
    objective.begin(None, tagged_data(bilingual, tmp_path))
    batch = batch_of(ROWS, images=3)._replace(references=SAID)
    seen = set()
    for _ in range(40):
        asked, references = objective._asked(batch)
        seen.update(enumerate(asked))
        for image, (request, texts) in enumerate(zip(asked, references, strict=True)):
            tag = "en" if request == (en,) else "zh"
            assert texts == [text for text, label in zip(SAID[image], TAGGED[image], strict=True) if label == tag]
    objective.unasked = 1.0
    assert objective._asked(batch) == ([()] * 3, SAID), "of nothing asked for, all of them"
    assert seen == {(0, (en,)), (0, (zh,)), (1, (en,)), (1, (zh,)), (2, (zh,))}


@pytest.mark.parametrize("name", ["lstm_attn", "transformer", "lstm"])
def test_the_gradient_behind_control_tokens_is_that_of_the_words_one_by_one(name, bilingual):
    torch.manual_seed(0)
    model = build(tiny_config(name), bilingual).eval()
    tokens = torch.tensor([[[5, EOS, PAD], [6, 4, EOS]], [[7, 8, EOS], [EOS, PAD, PAD]]])
    advantages = torch.tensor([[0.5, -1.0], [2.0, 0.3]])
    prefix = torch.tensor([[12], [13]])
    memory = model.memory(random_features(2))
    total, count = policy_gradient(model.decoder, memory, tokens, advantages, prefix)
    expected = 0.0
    for b in range(2):
        for k in range(2):
            state, word = model.decoder.start(select_images(memory, torch.tensor([b]))), torch.tensor([[BOS]])
            own = select_images(memory, torch.tensor([b]))
            _, state = model.decoder.step(model.decoder.embed(word), state, own)
            word = prefix[b].view(1, 1)
            for token in [t for t in tokens[b, k].tolist() if t != PAD]:
                output, state = model.decoder.step(model.decoder.embed(word), state, own)
                log_prob = model.decoder.logits(output.hidden)[0, 0].log_softmax(-1)[token]
                expected = expected - advantages[b, k] * log_prob
                word = torch.tensor([[token]])
    assert int(count) == 9
    assert float(total) == pytest.approx(float(expected), rel=1e-4)
    weight = model.decoder.classifier.weight
    found, wanted = (torch.autograd.grad(x, weight, retain_graph=True)[0] for x in (total, expected))
    assert torch.allclose(found, wanted, atol=1e-5)


def test_each_language_learns_its_own_captions(bilingual, tmp_path):
    """From equal likelihood of both captions under both tags, each tag comes to mean its own."""
    torch.manual_seed(0)
    model = build(tiny_config("lstm_attn"), bilingual).train()
    labels, captions = [["en", "zh"]] * 2, [["a red square", "square red on"], ["a blue circle", "circle blue on"]]
    objective = SelfCritical(samples=24, max_length=6)
    objective.begin(model, tagged_data(bilingual, tmp_path, labels, captions))
    controls = [bilingual.control_index[name] for name in ("<en>", "<zh>")]
    ids = [[[bilingual.index[word] for word in text.split()] for text in group] for group in captions]
    rows = [[[BOS, control, *words, EOS] for control in controls for words in group] for group in ids]
    batch = batch_of(rows, prefix=2)._replace(images=random_features(2), references=captions)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(160):
        loss = (CrossEntropy() if step < 100 else objective)(model, batch)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    for control, place in zip(controls, range(2), strict=True):
        with torch.no_grad():
            memory = model.eval().memory(batch.images)
            found = GreedySearch(max_length=6)(model.decoder, memory, prefix=torch.full((2, 1), control))
        assert [row[: n + 1] for row, n in zip(found.tokens[:, 0].tolist(), found.lengths[:, 0], strict=True)] == [
            [*group[place], EOS] for group in ids
        ]


def test_the_baselines(vocabulary, objective):
    rewards = torch.tensor([[1.0, 2.0, 6.0]])
    assert objective._baseline(rewards, None, None, []).tolist() == [[4.0, 3.5, 1.5]]


@pytest.mark.parametrize("name", ["lstm_attn", "transformer", "lstm", "gru"])
def test_the_greedy_baseline_is_the_reward_of_the_likeliest_words(name, vocabulary, tmp_path):
    model = build(tiny_config(name), vocabulary).eval()
    objective = SelfCritical(samples=3, baseline="greedy", max_length=6)
    objective.begin(model, data_of(vocabulary, tmp_path))
    decoder, memory = model.decoder, model.memory(random_features(3))
    words = torch.full((3, 1, 1), BOS)
    with torch.no_grad():
        for _ in range(6):
            odds = decoder.logits(decoder(decoder.embed(words), memory).hidden[:, :, -1])
            odds[..., [PAD, BOS]] = -math.inf
            words = torch.cat([words, odds.argmax(-1, keepdim=True)], -1)
        said = words[..., 1:]
        said = said.masked_fill((said == EOS).cumsum(-1) - (said == EOS).long() > 0, PAD)
        found = objective._baseline(torch.zeros(3, 3), decoder, memory, CAPTIONS)
    assert found.tolist() == objective.reward(said, CAPTIONS).tolist()


@pytest.mark.parametrize("dropout", [False, True])
def test_dropout_in_drawing_and_in_learning(dropout, vocabulary, tmp_path):
    model = build(tiny_config("transformer", decoder__dropout=0.5), vocabulary).train()
    objective = SelfCritical(samples=2, max_length=6, dropout=dropout)
    objective.begin(model, data_of(vocabulary, tmp_path))
    modes = []
    model.decoder.classifier.register_forward_hook(lambda *_: modes.append(model.decoder.training))
    model.decoder.embedding.register_forward_hook(lambda *_: modes.append(model.decoder.training))
    objective(model, batch_of(ROWS, images=3)._replace(images=random_features(3), references=CAPTIONS))
    assert len(modes) > 2 and set(modes) == {dropout} and model.decoder.training


def test_in_eval_mode_it_is_the_likelihood(tiny_model, objective):
    batch = batch_of(ROWS)
    expected = CrossEntropy(label_smoothing=0.0)(tiny_model, batch)
    assert float(objective.eval()(tiny_model, batch).total) == pytest.approx(float(expected.total))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "median"}, "objective.baseline=median: choose greedy or mean"),
        ({"samples": 1}, "objective.samples=1: the mean of the other samples"),
        ({"cider": 0}, "nothing is rewarded"),
        ({"bleu": -1}, "objective.bleu=-1"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SelfCritical(**options)
