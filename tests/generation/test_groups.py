"""Diverse and constrained beams against their definitions, image by image and with plain lists."""

import itertools

import pytest
import torch

from src.data.tokenizer import CharacterTokenizer, EnglishTokenizer
from src.data.vocabulary import BOS, EOS, PAD, UNK, Vocabulary
from src.decoders.ensemble import EnsembleDecoder
from src.generation import BeamSearch, ConstrainedBeamSearch, DiverseBeamSearch, GreedySearch, SampleSearch
from src.generation.beam import automaton
from src.model import build
from tests.conftest import random_features, tiny_config
from tests.generation.test_search import every_caption


def peaked(name, vocabulary, seed=4):
    torch.manual_seed(seed)
    decoder = build(tiny_config(name), vocabulary).decoder.eval()
    decoder.classifier.weight.data *= 6
    return decoder


def alone(decoder, features, b):
    return decoder.prepare(type(features)(*(x[b : b + 1] for x in features)))


@torch.no_grad()
def plain_diverse(decoder, memory, groups, width, diversity, alpha, longest):
    """Vijayakumar et al., algorithm 1, with lists: groups choose in turn; what others chose costs `diversity`."""
    alive = [[((), 0.0, decoder.start(memory))] for _ in range(groups)]
    ended = [[] for _ in range(groups)]
    for step in range(longest + 1):
        chosen = {}
        for group in range(groups):
            options = []
            for words, total, state in alive[group]:
                last = torch.tensor([[words[-1] if words else BOS]])
                output, after = decoder.step(decoder.embed(last), state, memory)
                log_probs = decoder.logits(output.hidden).float().log_softmax(-1)[0, 0].tolist()
                for w, log_prob in enumerate(log_probs):
                    if w in (PAD, BOS, UNK) or (w == EOS and step == 0):
                        continue
                    rank = total + log_prob - (0 if w == EOS else diversity * chosen.get(w, 0))
                    options.append(((*words, w), total + log_prob, after, rank))
            options.sort(key=lambda o: -o[3])
            ends = [o for o in (options if step == longest else options[:width]) if o[0][-1] == EOS]
            ended[group] += [(o[0][:-1], o[1] / len(o[0]) ** alpha) for o in ends]
            ended[group] = sorted(ended[group], key=lambda e: -e[1])[:width]
            going = [o for o in options if o[0][-1] != EOS][:width]
            alive[group] = [o[:3] for o in going]
            for o in going:
                chosen[o[0][-1]] = chosen.get(o[0][-1], 0) + 1
    return sorted((e for group in ended for e in group), key=lambda e: -e[1])


@pytest.mark.parametrize(("groups", "width"), [(1, 3), (2, 1), (3, 2)])
@pytest.mark.parametrize("diversity", [0.0, 0.8])
@pytest.mark.parametrize("name", ["lstm_attn", "transformer"])
def test_diverse_beams_equal_the_definition(name, diversity, groups, width, vocabulary):
    decoder, features = peaked(name, vocabulary), random_features(5, seed=6)
    search = DiverseBeamSearch(groups * width, groups, diversity, length_penalty=0.7, max_length=6)
    with torch.no_grad():
        found = search(decoder, decoder.prepare(features))
    for b in range(5):
        expected = plain_diverse(decoder, alone(decoder, features, b), groups, width, diversity, 0.7, 6)
        assert len(expected) == groups * width
        words = [tuple(found.tokens[b, k, : found.lengths[b, k]].tolist()) for k in range(groups * width)]
        assert sorted(words) == sorted(e[0] for e in expected)
        assert found.scores[b].tolist() == pytest.approx([e[1] for e in expected], abs=1e-4)


def test_groups_tell_captions_apart(vocabulary):
    decoder = peaked("lstm_attn", vocabulary)
    memory = decoder.prepare(random_features(6, seed=6))

    def different(diversity):
        found = DiverseBeamSearch(4, 4, diversity, max_length=6)(decoder, memory)
        return sum(len({tuple(row) for row in rows}) for rows in found.tokens.tolist())

    assert different(0.0) == 6 and different(3.0) > 18
    with pytest.raises(ValueError, match="generation.groups=4: does not divide generation.beam_size=6"):
        DiverseBeamSearch(6, 4)


CONSTRAINTS = [
    (["red"], []),
    (["red", "circle"], []),
    (["red|blue"], ["a"]),
    (["on grey"], []),
    (["on on grey"], ["red"]),
    ([], ["on", "a red", "a a"]),
    (["green"], ["green a", "red green"]),
]


def holds(caption, include, exclude, vocabulary):
    def occurs(phrase):
        ids = tuple(vocabulary.index[word] for word in phrase.split())
        return any(caption[i : i + len(ids)] == ids for i in range(len(caption)))

    return all(any(map(occurs, each.split("|"))) for each in include) and not any(map(occurs, exclude))


@pytest.mark.parametrize(("include", "exclude"), CONSTRAINTS, ids=str)
def test_a_wide_constrained_beam_finds_the_best_captions_that_hold(include, exclude, vocabulary):
    """Against every caption of up to three words."""
    decoder, features = peaked("lstm", vocabulary, 3), random_features(2, seed=5)
    search = ConstrainedBeamSearch(include, exclude, beam_size=600, length_penalty=0.7, max_length=3)
    search.bind(vocabulary, EnglishTokenizer())
    found = search(decoder, decoder.prepare(features))
    for b in range(2):
        captions = every_caption(decoder, alone(decoder, features, b), range(UNK + 1, len(vocabulary)), 3, 1)
        held = {c: t / (len(c) + 1) ** 0.7 for c, t in captions.items() if holds(c, include, exclude, vocabulary)}
        ranked = sorted(held.items(), key=lambda item: -item[1])[:20]
        for k, (caption, score) in enumerate(ranked):
            assert tuple(found.tokens[b, k, : found.lengths[b, k]].tolist()) == caption
            assert float(found.scores[b, k]) == pytest.approx(score, abs=1e-4)
        assert (found.scores[b] > -torch.inf).sum() == len(held)


@pytest.mark.parametrize("name", ["lstm_attn", "transformer"])
@pytest.mark.parametrize(("include", "exclude"), CONSTRAINTS, ids=str)
def test_narrow_constrained_beams_keep_what_was_asked(name, include, exclude, vocabulary):
    decoder = peaked(name, vocabulary)
    memory = decoder.prepare(random_features(6, seed=8))
    search = ConstrainedBeamSearch(include, exclude, beam_size=2, max_length=7)
    search.bind(vocabulary, EnglishTokenizer())
    found = search(decoder, memory, attention=True)
    for b in range(6):
        assert holds(tuple(found.tokens[b, 0, : found.lengths[b, 0]].tolist()), include, exclude, vocabulary)
    given = torch.cat([torch.full((6, 2, 1), BOS), found.tokens[..., :-1]], -1)
    expected = decoder(decoder.embed(given), memory).attention
    for b, k in itertools.product(range(6), range(2)):
        length = int(found.lengths[b, k])
        torch.testing.assert_close(found.attention[b, k, :length], expected[b, k, :length], atol=1e-5, rtol=1e-4)


def test_without_constraints_it_is_beam_search(vocabulary):
    decoder = peaked("updown", vocabulary)
    memory = decoder.prepare(random_features(4))
    search = ConstrainedBeamSearch(beam_size=3, max_length=6)
    search.bind(vocabulary, EnglishTokenizer())
    for mine, its in zip(search(decoder, memory), BeamSearch(3, max_length=6)(decoder, memory), strict=True):
        assert (mine is None and its is None) or torch.equal(mine, its)


def test_an_automaton_accepts_what_strings_say():
    """Against a plain search for phrases, over all strings of six letters of three; overlaps fall back rightly."""
    wanted, banned = [[(0, 0, 1), (2,)], [(1, 0)]], [(2, 2), (0, 1, 1)]
    table, first = automaton(wanted, banned, 4)

    def occurs(phrase, string):
        return any(string[i : i + len(phrase)] == phrase for i in range(len(string)))

    for string in itertools.product(range(3), repeat=6):
        state = 0
        for letter in string:
            state = int(table[state, letter]) if state >= 0 else -1
        if any(occurs(phrase, string) for phrase in banned):
            assert state == -1
        else:
            held = all(any(occurs(phrase, string) for phrase in each) for each in wanted)
            assert (state >= first) == held


def test_chinese_words_are_phrases_of_characters():
    vocabulary = Vocabulary.build([list("一只小狗在草地上跑")], min_count=1)
    search = ConstrainedBeamSearch(["小狗"], beam_size=2, max_length=6)
    search.bind(vocabulary, CharacterTokenizer())
    decoder = peaked("lstm_attn", vocabulary)
    found = search(decoder, decoder.prepare(random_features(3)))
    for b in range(3):
        assert "小狗" in "".join(vocabulary.decode(found.tokens[b, 0].tolist()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": ["rad"]}, "generation.include='rad': the captioner has no word 'rad'; it knows red"),
        ({"exclude": ["!"]}, "generation.exclude='!': has no word"),
        ({"include": ["a red", "on grey"], "max_length": 3}, "generation.include: 4 words at least"),
        (
            {"include": ["a", "red", "green", "blue", "on", "grey", "circle"]},
            "more than 64 ways of having said part of it",
        ),
    ],
    ids=str,
)
def test_impossible_constraints_are_refused(options, message, vocabulary):
    with pytest.raises(ValueError, match=message):
        ConstrainedBeamSearch(**options).bind(vocabulary, EnglishTokenizer())


SEARCHES = [
    GreedySearch(max_length=6),
    BeamSearch(3, max_length=6),
    DiverseBeamSearch(4, 2, max_length=6),
    SampleSearch(captions=2, max_length=6),
]


@pytest.mark.parametrize("search", SEARCHES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", ["lstm", "gru_attn", "transformer"])
def test_an_ensemble_of_one_is_the_one(name, search, vocabulary):
    decoder = peaked(name, vocabulary)
    memory = decoder.prepare(random_features(4))
    one, together = (
        search(decoder, memory, attention=True),
        search(EnsembleDecoder([decoder]), (memory,), attention=True),
    )
    for mine, its in zip(one, together, strict=True):
        assert (mine is None and its is None) or torch.allclose(mine.float(), its.float(), atol=1e-5)


def test_an_ensemble_says_the_mean_probability(vocabulary):
    """Of two decoders of other kinds, with memories of other widths; of one twice, the one."""
    first, second = peaked("lstm", vocabulary, 1), peaked("transformer", vocabulary, 2)
    memories = first.prepare(random_features(3)), second.prepare(random_features(3))
    ensemble = EnsembleDecoder([first, second])
    word = torch.full((3, 1), BOS)
    output, _ = ensemble.step(ensemble.embed(word), ensemble.start(memories), memories)
    each = []
    for decoder, memory in zip((first, second), memories, strict=True):
        alone, _ = decoder.step(decoder.embed(word), decoder.start(memory), memory)
        each.append(decoder.logits(alone.hidden).softmax(-1))
    torch.testing.assert_close(ensemble.logits(output.hidden).exp(), (each[0] + each[1]) / 2)
    assert output.attention is None
    found = BeamSearch(3, max_length=6)(ensemble, memories)
    given = torch.cat([torch.full((3, 3, 1), BOS), found.tokens], -1)
    log_probs = (
        torch.stack(
            [
                d.logits(d(d.embed(given[..., :-1]), m).hidden).softmax(-1)
                for d, m in zip((first, second), memories, strict=True)
            ]
        )
        .mean(0)
        .log()
    )
    expected = log_probs.gather(-1, found.tokens.unsqueeze(-1)).squeeze(-1)
    real = found.tokens != PAD
    torch.testing.assert_close(found.log_probs[real], expected[real], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("order", [0, 1])
def test_members_with_and_without_a_latent_are_sampled_together_behind_a_prefix(order, vocabulary):
    plain, config = peaked("lstm", vocabulary, 1), tiny_config("lstm_attn")
    config["latent"] = {"_target_": "src.decoders.GaussianLatent", "size": 4, "hidden": 6}
    latent = build(config, vocabulary).decoder.eval()
    members = [plain, latent][:: 1 - 2 * order]
    memories = tuple(member.prepare(random_features(2)) for member in members)
    search, prefix = SampleSearch(captions=3, max_length=4), torch.tensor([[4, 5], [6, 7]])
    found = search(EnsembleDecoder(members), memories, prefix=prefix)
    assert found.tokens.shape[:2] == (2, 3)
