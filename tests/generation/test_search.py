import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from src.captioner import Captioner
from src.data.tokenizer import EnglishTokenizer
from src.data.transforms import Preprocess
from src.data.vocabulary import BOS, EOS, PAD, UNK
from src.decoders.base import Output
from src.generation import BeamSearch, GreedySearch, SampleSearch
from src.model import build
from tests.conftest import random_features, tiny_config


class Table(torch.nn.Module):
    """A decoder whose next word depends on the image and the last word only: logits[image, last, next]."""

    def __init__(self, logits):
        super().__init__()
        self.table = logits

    controls = ()

    def start(self, memory, condition=None, generator=None, captions=1):
        return (torch.zeros(memory.size(0), 1, 1),)

    def embed(self, words):
        return words

    def step(self, words, state, memory):
        return Output(self.table[memory.unsqueeze(1), words]), (state[0].expand(-1, words.size(1), -1) + 1,)

    def logits(self, hidden):
        return hidden


@torch.no_grad()
def every_caption(decoder, memory, words, longest, shortest):
    """Log-probabilities of all captions of one image, by brute force and teacher forcing: {words: total with EOS}."""
    found = {}
    for length in range(shortest, longest + 1):
        captions = list(itertools.product(words, repeat=length))
        ids = torch.tensor([[BOS, *caption, EOS] for caption in captions]).unsqueeze(0)
        logits = decoder.logits(decoder(decoder.embed(ids[..., :-1]), memory).hidden)
        totals = logits.float().log_softmax(-1).gather(-1, ids[..., 1:, None]).sum((-1, -2))
        found |= dict(zip(captions, totals[0].tolist(), strict=True))
    return found


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("name", ["lstm", "lstm_attn"])
def test_wide_beam_equals_exhaustive_search(name, alpha, vocabulary):
    torch.manual_seed(3)
    decoder = build(tiny_config(name), vocabulary).decoder.eval()
    decoder.classifier.weight.data *= 4  # a peaked distribution, so that ranks are no near-ties
    features = random_features(3, seed=5)
    words = range(UNK + 1, len(vocabulary))
    search = BeamSearch(beam_size=600, length_penalty=alpha, max_length=3)
    found = search(decoder, decoder.prepare(features))
    for b in range(3):
        memory = decoder.prepare(type(features)(*(x[b : b + 1] for x in features)))
        all_captions = every_caption(decoder, memory, words, 3, 1)
        ranked = sorted(all_captions.items(), key=lambda item: -item[1] / (len(item[0]) + 1) ** alpha)
        for k, (caption, total) in enumerate(ranked[:20]):
            assert tuple(found.tokens[b, k, : found.lengths[b, k]].tolist()) == caption
            assert float(found.scores[b, k]) == pytest.approx(total / (len(caption) + 1) ** alpha, abs=1e-4)
            if found.finished[b, k]:
                assert float(found.log_probs[b, k].sum()) == pytest.approx(total, abs=1e-4)
        assert found.finished[b].any()
        assert (found.scores[b] > -torch.inf).sum() == len(all_captions) == 8 + 64 + 512


def simple_beam(decoder, memory, width, alpha, longest):
    """Beam search of one image with plain lists, no early stop: the definition."""
    alive, ended = [((), 0.0, decoder.start(memory))], []
    for step in range(longest + 1):
        options = []
        for words, total, state in alive:
            last = torch.tensor([[words[-1] if words else BOS]])
            output, after = decoder.step(decoder.embed(last), state, memory)
            log_probs = decoder.logits(output.hidden).float().log_softmax(-1)[0, 0]
            options += [((*words, w), total + float(log_probs[w]), after) for w in range(len(log_probs))]
        options = [o for o in options if o[0][-1] not in (PAD, BOS, UNK) and (step > 0 or o[0][-1] != EOS)]
        options.sort(key=lambda o: -o[1])
        ends = [o for o in (options if step == longest else options[:width]) if o[0][-1] == EOS]
        ended += [(o[0][:-1], o[1] / len(o[0]) ** alpha) for o in ends]
        alive = [o for o in options if o[0][-1] != EOS][:width]
    return sorted(ended, key=lambda e: -e[1])[:width]


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("alpha", [0.0, 0.7])
@pytest.mark.parametrize("name", ["lstm", "lstm_attn"])
def test_batched_beam_equals_the_plain_definition(name, alpha, width, vocabulary):
    """Back-pointers, images leaving the batch and the early stop change nothing."""
    torch.manual_seed(4)
    decoder = build(tiny_config(name), vocabulary).decoder.eval()
    decoder.classifier.weight.data *= 6
    features = random_features(6, seed=6)
    found = BeamSearch(beam_size=width, length_penalty=alpha, max_length=7)(decoder, decoder.prepare(features))
    for b in range(6):
        memory = decoder.prepare(type(features)(*(x[b : b + 1] for x in features)))
        expected = simple_beam(decoder, memory, width, alpha, 7)
        for k, (words, score) in enumerate(expected):
            assert tuple(found.tokens[b, k, : found.lengths[b, k]].tolist()) == words
            assert float(found.scores[b, k]) == pytest.approx(score, abs=1e-4)


def test_attention_follows_the_words_of_its_own_caption(vocabulary):
    """The looks read back through back-pointers are those of decoding the same caption alone."""
    torch.manual_seed(4)
    decoder = build(tiny_config("lstm_attn"), vocabulary).decoder.eval()
    decoder.classifier.weight.data *= 6
    memory = decoder.prepare(random_features(4, seed=7))
    found = BeamSearch(beam_size=4, max_length=6)(decoder, memory, attention=True)
    given = torch.cat([torch.full((4, 4, 1), BOS), found.tokens[..., :-1]], -1)
    expected = decoder(decoder.embed(given), memory).attention
    for b, k in itertools.product(range(4), range(4)):
        length = int(found.lengths[b, k])
        torch.testing.assert_close(found.attention[b, k, :length], expected[b, k, :length])


@pytest.mark.parametrize("name", ["lstm", "lstm_attn"])
def test_beam_of_one_without_length_normalisation_is_greedy(name, vocabulary):
    torch.manual_seed(5)
    decoder = build(tiny_config(name), vocabulary).decoder.eval()
    decoder.classifier.weight.data *= 4
    decoder.classifier.bias.data[EOS] = 3
    memory = decoder.prepare(random_features(8, seed=8))
    greedy = GreedySearch(max_length=6)(decoder, memory)
    beam = BeamSearch(beam_size=1, length_penalty=0.0, max_length=6)(decoder, memory)
    assert greedy.finished.any()
    for b in range(8):
        if greedy.finished[b, 0]:
            length = int(greedy.lengths[b, 0])
            assert beam.tokens[b, 0, : length + 1].tolist() == greedy.tokens[b, 0, : length + 1].tolist()
            assert float(beam.scores[b, 0]) == pytest.approx(float(greedy.scores[b, 0]), abs=1e-5)


@pytest.mark.parametrize("search", [GreedySearch(max_length=5), BeamSearch(beam_size=3, max_length=5)])
def test_a_caption_that_never_ends_is_cut(search):
    logits = torch.zeros(2, 8, 8)
    logits[..., EOS] = -torch.inf
    logits[..., 5] = 3
    found = search(Table(logits), torch.tensor([0, 1]))
    assert found.tokens[:, 0].tolist() == [[5] * 5 + [PAD] * (found.tokens.size(-1) - 5)] * 2
    assert not found.finished.any()
    assert found.lengths[:, 0].tolist() == [5, 5]
    assert torch.isfinite(found.scores[:, 0]).all()


@pytest.mark.parametrize("search", [GreedySearch, BeamSearch])
def test_limits(search):
    logits = torch.zeros(1, 8, 8)
    logits[..., EOS] = 5.0
    logits[..., UNK] = 4.0
    logits[..., 6] = 2.0
    decoder, memory = Table(logits), torch.tensor([0])
    assert search(min_length=3, max_length=6)(decoder, memory).tokens[0, 0, :4].tolist() == [6, 6, 6, EOS]
    assert search(min_length=1, max_length=6, allow_unknown=True)(decoder, memory).tokens[0, 0, 0] == UNK
    assert search(min_length=0, max_length=6)(decoder, memory).lengths[0, 0] == 0
    with pytest.raises(ValueError, match="min_length=7"):
        search(min_length=7, max_length=6)


@pytest.mark.parametrize("search", [GreedySearch, BeamSearch])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_ngram_occurs_twice(search, n):
    logits = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    logits[..., EOS] = -8
    found = search(no_repeat_ngram=n, max_length=8)(Table(logits), torch.arange(4))
    free = search(max_length=8)(Table(logits), torch.arange(4))
    repeats = []
    for hypotheses in (found, free):
        words = [hypotheses.tokens[b, 0, : hypotheses.lengths[b, 0]].tolist() for b in range(4)]
        grams = [[tuple(w[i : i + n]) for i in range(len(w) - n + 1)] for w in words]
        repeats.append(sum(len(g) - len(set(g)) for g in grams))
    assert repeats[0] == 0 < repeats[1]


def test_more_beams_than_captions():
    """Two words, one step: rows that stand for no caption say so and are empty."""
    logits = torch.zeros(1, 6, 6)
    found = BeamSearch(beam_size=5, max_length=1)(Table(logits), torch.tensor([0]))
    real = found.scores[0] > -torch.inf
    assert sorted(found.tokens[0, real, 0].tolist()) == [4, 5]
    assert found.lengths[0, ~real].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("key", "value"), [("beam_size", 0), ("length_penalty", -1), ("no_repeat_ngram", -1)])
def test_impossible_settings_are_refused(key, value):
    with pytest.raises(ValueError, match=f"generation.{key}={value}"):
        BeamSearch(**{key: value})


def test_a_search_casts_each_weight_once(tiny_model, vocabulary):
    """Under autocast, whose casts inference mode would not keep from one step to the next."""

    class Casts(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default and args[0].shape == tiny_model.decoder.classifier.weight.shape:
                self.count += 1
            return func(*args, **(kwargs or {}))

    captioner = Captioner(
        tiny_model,
        vocabulary,
        EnglishTokenizer(),
        Preprocess(32),
        BeamSearch(3, min_length=6, max_length=6),
        device_name="cpu",
        precision_name="bf16",
    )
    with Casts() as casts:
        captioner.search(torch.randint(255, (2, 3, 32, 32), dtype=torch.uint8))
    assert casts.count == 1


@pytest.mark.parametrize("search", [GreedySearch, BeamSearch, SampleSearch])
def test_a_caption_with_no_word_left_ends(search):
    """Two words, neither of which may be said twice: the third step can only end, although four are wanted."""
    logits = torch.zeros(2, 6, 6)
    logits[..., EOS] = -3.0
    found = search(no_repeat_ngram=1, min_length=4, max_length=6)(Table(logits), torch.tensor([0, 1]))
    for tokens in found.tokens[:, 0].tolist():
        assert sorted(tokens[:2]) == [4, 5] and tokens[2] == EOS
