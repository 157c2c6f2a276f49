"""Captioners of different parts that caption together: the mean of their probabilities, and what cannot be mixed."""

import json

import pytest
import torch
from PIL import Image

from src import caption, evaluate
from src.bundle import Bundle, bundle_config, save_bundle
from src.captioner import Captioner
from src.data.vocabulary import EOS, Vocabulary
from src.ensemble import EnsembleCaptioner, EnsembleError
from src.generation import BeamSearch, GreedySearch
from src.model import build
from tests.conftest import tiny_config
from tests.test_configs import composed


def save(path, vocabulary, seed, decoder="lstm_attn", **overrides):
    torch.manual_seed(seed)
    config = bundle_config(tiny_config(decoder, **overrides), {"encoder_weights": "random", "seed": seed})
    model = build(config, vocabulary).eval()
    model.decoder.classifier.weight.data *= 30
    model.encoder.project.weight.data *= 100  # what it says depends on the picture
    save_bundle(path, Bundle(model, vocabulary, config))
    return path


@pytest.fixture
def paths(tmp_path, vocabulary):
    """Three that differ in weights, decoder, picture size and how pictures become square."""
    return [
        save(tmp_path / "a", vocabulary, 1),
        save(tmp_path / "b", vocabulary, 2, "gru_attn"),
        save(tmp_path / "c", vocabulary, 3, "lstm", transform__size=64, transform__fit="crop"),
    ]


def load(paths, **options):
    return EnsembleCaptioner.load_all(paths, device_name="cpu", precision_name="32-true", **options)


@pytest.fixture
def pictures(shapes):
    return sorted((shapes / "images").iterdir())[:5]


def test_greedy_words_are_the_likeliest_by_the_mean_probability(paths, pictures):
    """Word by word, each member run alone on its own pixels."""
    members = [Captioner.load(path, GreedySearch(max_length=6), "cpu", "32-true") for path in paths]
    together = EnsembleCaptioner(members)
    for path, found in zip(pictures, together(pictures, batch_size=2), strict=True):
        with torch.no_grad():
            memories = [m.model.memory(m.preprocess.open(path).unsqueeze(0)) for m in members]
            states = [m.model.decoder.start(memory) for m, memory in zip(members, memories, strict=True)]
            word, said, log_probs = torch.tensor([[1]]), [], []
            while len(log_probs) < 7:
                each = []
                for i, member in enumerate(members):
                    decoder = member.model.decoder
                    output, states[i] = decoder.step(decoder.embed(word), states[i], memories[i])
                    each.append(decoder.logits(output.hidden).softmax(-1))
                mean = torch.stack(each).mean(0)
                allowed = mean.clone()
                allowed[..., [0, 1, 3] + ([EOS] if not said else [])] = 0
                word = allowed.argmax(-1)
                if len(said) == 6 and word != EOS:
                    break
                log_probs.append(float(mean[0, 0, word[0, 0]].log()))
                if word == EOS:
                    break
                said.append(together.vocabulary.words[int(word)])
        assert found.words == said
        assert found.log_probs == pytest.approx(log_probs, abs=1e-4)


def test_one_alone_or_twice_is_the_captioner_itself(paths, pictures):
    alone = list(load(paths[:1])(pictures, attention=True, alternatives=2))
    for count in (1, 2):
        member = Captioner.load(paths[0], None, "cpu", "32-true")
        again = list(EnsembleCaptioner([member] * count)(pictures, attention=True, alternatives=2))
        for one, other in zip(alone, again, strict=True):
            assert one.text == other.text and one.log_probs == pytest.approx(other.log_probs, abs=1e-5)
            assert one.attention == pytest.approx(other.attention, abs=1e-5)
            assert [c.text for c in one.alternatives] == [c.text for c in other.alternatives]
    assert not isinstance(load(paths[:1]), EnsembleCaptioner)


def test_members_of_one_transform_share_the_pixels(paths, pictures):
    first, second, third = load(paths).stacked([Image.open(path) for path in pictures])
    assert first is second and first.shape == (5, 3, 32, 32) and third.shape == (5, 3, 64, 64)


def test_attention_is_drawn_where_all_look_at_the_same_places(paths, pictures, tmp_path, vocabulary):
    both = [Captioner.load(path, None, "cpu", "32-true") for path in paths[:2]]
    (found,) = EnsembleCaptioner(both)(pictures[:1], attention=True)
    assert found.attention.shape == (len(found.words), 16) and found.boxes.shape == (16, 4)
    assert found.attention.sum(-1) == pytest.approx(1, abs=1e-4)
    for number, other in enumerate([{"transform__fit": "crop"}, {"transform__size": 64}, {"encoder__grids": [2]}]):
        path = save(tmp_path / f"other{number}", vocabulary, 4, **other)
        (found,) = load([paths[0], path])(pictures[:1], attention=True)
        assert found.attention is None and found.text
    found = load(paths)
    assert not found.model.decoder.attends and found(pictures[:1], attention=True)[0].attention is None


def test_what_cannot_speak_together_is_refused(paths, tmp_path, vocabulary, pictures):
    words = vocabulary.words[4:]
    others = {
        "more": [*words, "purple"],
        "fewer": words[:-1],
        "order": words[::-1],
    }
    said = {}
    for name, these in others.items():
        other = Vocabulary.build([[w] * (len(these) - i) for i, w in enumerate(these)], min_count=1)
        with pytest.raises(EnsembleError, match="captioner 2 has another vocabulary than the first") as refused:
            load([paths[0], save(tmp_path / name, other, 1)])
        said[name] = str(refused.value)
    assert "'purple'" in said["more"] and f"{words[-1]!r}" in said["fewer"] and "order" in said["order"]
    config = {"tokenizer": {"_target_": "src.data.tokenizer.CharacterTokenizer"}}
    chinese = bundle_config(tiny_config() | config, {})
    save_bundle(tmp_path / "zh", Bundle(build(chinese, vocabulary).eval(), vocabulary, chinese))
    with pytest.raises(EnsembleError, match="tokenizer=character and the first english"):
        load([paths[0], tmp_path / "zh"])
    regions = bundle_config(tiny_config(), {})
    regions["encoder"] = {"_target_": "src.encoders.RegionEncoder", "path": "x", "dimension": 8, "max_regions": 9}
    save_bundle(tmp_path / "regions", Bundle(build(regions, vocabulary).eval(), vocabulary, regions))
    with pytest.raises(EnsembleError, match="captioner 2 reads regions computed beforehand"):
        load([paths[0], tmp_path / "regions"])
    with pytest.raises(EnsembleError, match="regions computed beforehand"):
        load(paths[:2], regions=tmp_path)
    with pytest.raises(EnsembleError, match="no captioners"):
        EnsembleCaptioner([])


def test_caption_command(paths, pictures, tmp_path, capsys):
    names = [str(path) for path in paths]
    expected = [found.text for found in load(paths, generation=BeamSearch(3, max_length=8))(pictures)]
    assert len(set(expected)) > 1
    files = [str(path) for path in pictures]
    for line in (
        ["--model", *names, *files, "--beam", "3", "--device", "cpu"],
        ["--model", *names, "--beam", "3", "--device", "cpu", *files],
        [*files, "--device", "cpu", "--model", *names],
    ):
        assert caption.main(line) == 0
        assert [row.split("\t")[1] for row in capsys.readouterr().out.splitlines()] == expected
    assert caption.main(["--model", *names[:2], *files[:1], "--attention", str(tmp_path / "drawn")]) == 0
    assert (tmp_path / "drawn" / "00.png").exists()
    crop = save(tmp_path / "crop", load(paths).vocabulary, 4, transform__fit="crop")
    assert caption.main(["--model", names[0], str(crop), *files[:1], "--attention", str(tmp_path / "none")]) == 0
    assert "different places" in capsys.readouterr().err and not list((tmp_path / "none").iterdir())
    with pytest.raises(SystemExit):
        caption.main(["--model", *names])
    assert "which pictures?" in capsys.readouterr().err


def test_evaluate_command(paths, shapes, tmp_path, monkeypatch):
    """With one member cached and the other not, the captions are those of pictures; `reuse` looks at all weights."""
    frozen = save(tmp_path / "frozen", load(paths).vocabulary, 5, encoder__frozen=True)
    models = [str(paths[0]), str(frozen), str(paths[2])]

    def run(**overrides):
        config = composed(["model=x", "data=tsv", f"data.root={shapes}", "data.test=test.tsv"], "evaluate")
        config["data"] |= {"cache_dir": str(tmp_path / "cache"), "workers": 0, "cache_workers": 0}
        config |= {"model": models, "output": str(tmp_path / "eval"), "device": "cpu", "precision": "32-true"}
        evaluate.run(config | {"metrics": ["Bleu_4", "CIDEr"]} | overrides)
        return json.loads((tmp_path / "eval" / "scores.json").read_text())

    scores = run()
    assert list((tmp_path / "cache").glob("features/*/regions.npy"))
    assert scores["next_token_accuracy"] is None and scores["images"] == 4 and scores["CIDEr"] >= 0
    meta = json.loads((tmp_path / "eval" / "meta.json").read_text())
    assert meta["model"] == models and meta["seed"] == [1, 5, 3]
    assert "ensemble" in meta["not_computed"]["cross_entropy"]
    rows = [line.split("\t") for line in (tmp_path / "eval" / "captions.tsv").read_text().splitlines()]
    expected = [found.text for found in load(models)([shapes / row[0] for row in rows])]
    assert [row[1] for row in rows] == expected and len(set(expected)) > 1
    monkeypatch.setattr(evaluate, "evaluate", lambda *_, **__: pytest.fail("it was scored before"))
    assert run(reuse=True) == scores
    with pytest.raises(pytest.fail.Exception):
        run(reuse=True, model=models[:2])
