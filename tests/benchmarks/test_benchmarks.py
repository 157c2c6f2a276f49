"""The benchmarks measure what they say; how fast anything is, is not tested."""

import json
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from benchmarks import decoder, evaluation, export, huggingface, index, parts, rewards
from benchmarks.measuring import Row, alternate, table
from benchmarks.products import record
from src.bundle import Bundle, bundle_config, load_bundle, save_bundle
from src.config import ROOT
from src.export import LEAST_TORCH
from src.model import build
from tests.conftest import tiny_config

TINY = decoder.QUICK["quick"]


def test_the_textbook_is_the_same_function_as_ours():
    found = decoder.check_equal(TINY._replace(regions=9, vocabulary=50))
    assert found["captions"] == 2


def test_another_function_is_found_out(monkeypatch):
    step = decoder.Textbook.step

    def other(self, words, hidden, cell, regions):
        return step(self, words, hidden, cell, regions.flip(1) * 1.01)

    monkeypatch.setattr(decoder.Textbook, "step", other)
    with pytest.raises(AssertionError, match="differ"):
        decoder.check_equal(TINY)


def test_products_forward_and_backward_are_recorded():
    x, w, b = torch.randn(3, 4), torch.randn(5, 4, requires_grad=True), torch.randn(5, requires_grad=True)
    keys = torch.randn(2, 6, 5)

    def run() -> None:
        hidden = F.linear(x, w, b)  # (3, 4) × (4, 5); backward its weight's gradient, as large, and none of x
        (torch.tanh(hidden.expand(2, 3, 5)) @ keys.transpose(1, 2)).sum().backward()  # twice (3, 5) × (5, 6)

    products = record(run)
    one, two = 2 * 3 * 4 * 5, 2 * 2 * 3 * 5 * 6
    assert products.flops == one + one + two + two
    strides = {x.stride() for _, args, _ in products.calls for x in args if isinstance(x, torch.Tensor)}
    assert (1, 4) in strides, "the transposed weight is one"
    count = len(products.calls)
    again = record(products.replay())
    assert (again.flops, len(again.calls)) == (2 * one + 2 * two, count) and not products.calls


def test_products_under_autocast_are_of_its_type():
    layer = torch.nn.Linear(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        products = record(lambda: layer(torch.randn(2, 4)))
    replayed = record(products.replay())
    assert [x.dtype for _, args, _ in replayed.calls for x in args if isinstance(x, torch.Tensor)][-1] == torch.bfloat16


def test_a_search_asks_the_decoder_for_one_step_a_word_and_the_end(monkeypatch):
    ours = decoder.Ours(TINY)
    ours.model.eval()
    kind = type(ours.model.decoder)
    rows, step = [], kind.step

    def counted(self, embedded, *others):
        rows.append(embedded.shape[:2].numel())
        return step(self, embedded, *others)

    monkeypatch.setattr(kind, "step", counted)
    regions, _ = decoder.regions_and_tokens(TINY, 2, 1)
    again = ours.decoder_calls(ours.memory(regions))
    searched = list(rows)
    again()
    assert len(searched) == decoder.WORDS + 1 and searched[-1] == 2 * decoder.BEAMS
    assert rows == searched * 2, "the same steps"


@pytest.mark.skipif(not huggingface.installed(), reason="needs .[bench]")
def test_generate_makes_as_many_steps():
    trial = decoder.generate(TINY, "32", 3)
    assert trial.run().shape == (3, 1 + decoder.WORDS + 1)


def test_readings_alternate():
    order = []
    seconds = alternate({name: lambda name=name: order.append(name) for name in "ab"}, repeats=3)
    assert "".join(order) == "ba" + "ab" + "ba" + "ab"
    assert [len(each) for each in seconds.values()] == [3, 3]


def test_memory_is_above_what_was_held():
    """In a fresh process, as it asks for: this one may hold freed memory, and its peak is of its whole life."""
    code = "import torch; from benchmarks.measuring import peak_mb; print(peak_mb(lambda: torch.ones(2**25).sum()))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said == "None\n" or float(said) > 100


def test_goals():
    assert Row("", "", "", 12, 10, 15).verdict == "met"
    assert Row("", "", "", 9.99, 10, 15).verdict == "MISSED"
    assert Row("", "", "", 1.9, 2.0, at_most=True).verdict == "met"
    assert Row("", "", "", 2.1, 2.0, at_most=True).verdict == "MISSED"
    assert "≥ 10" in table([Row("", "", "", 15, 10, 15)]) and Row("", "", "", 15, 10, 15).verdict == "met, aim too"


def test_a_larger_vocabulary_says_the_same(tmp_path, vocabulary):
    config = bundle_config(tiny_config(), {"encoder_weights": "random"})
    model = build(config, vocabulary).eval()
    save_bundle(tmp_path / "small", Bundle(model, vocabulary, config))
    save_bundle(tmp_path / "large", evaluation.with_vocabulary(tmp_path / "small", 40))
    large = load_bundle(tmp_path / "large")
    hidden = torch.randn(3, 12)
    ours, theirs = model.decoder.logits(hidden), large.model.eval().decoder.logits(hidden)
    assert theirs.shape == (3, 40) and torch.allclose(ours.softmax(-1), theirs[:, : len(vocabulary)].softmax(-1))
    assert theirs.argmax(-1).max() < len(vocabulary)


def test_the_command_writes_its_figures(tmp_path, capsys, monkeypatch):
    path = tmp_path / "bench.json"
    monkeypatch.setattr(decoder, "use_cores", lambda count: None)  # the other tests want theirs
    assert decoder.main(["--quick", "--repeats", "1", "--output", str(path)]) == 0
    written = json.loads(path.read_text())
    assert {"cpu", "cores", "memory_gb", "torch", "precision", "load", "quiet", "code", "date"} <= written[
        "machine"
    ].keys()
    figures = written["decoder"]["quick"]
    assert figures.keys() == {"setting", "equality", "train", "beam", "step", "search"}
    for task in ("train", "beam"):
        assert {"textbook", "ours", "same function"} <= figures[task].keys()
        assert figures[task]["ours"].keys() == {"captions/s", "batch", "peak_mb", "ratio"}
        assert figures[task]["ours"]["captions/s"].keys() == {"median", "min", "max", "all"}
    assert "a training step over its matrix products" in capsys.readouterr().out


def test_a_profile_names_what_a_step_and_a_search_spend_their_time_on():
    told = decoder.profile(decoder.QUICK["quick"], "32-true", images=2)
    assert "a training step, 10 captions" in told and "a search, 2 captions" in told
    assert "aten::" in told and "%" in told


def test_the_parts_are_timed_beside_the_plain_way(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(parts, "use_cores", lambda count: None)
    monkeypatch.setattr(parts, "step_seconds", lambda *_: [1.0])
    (tmp_path / "t.tsv").write_text("a.jpg\ta dog\na.jpg\ta dog runs\nb.jpg\ta man sits down\n")
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    assert parts.main(["--setting", "quick", "--repeats", "1", "--compile", "--tsv", str(tmp_path / "t.tsv")]) == 0
    told = capsys.readouterr().out
    assert "additive attention" in told and "dropout" in told and "cross-entropy" in told
    assert "of like length, corner" in told and "as it is" in told


def test_steps_for_a_token_by_hand():
    """Captions of 4 and 2 tokens, and one of 3: padded 2 × 2 × 4 steps; corners 4, 4, 2, 1; 9 tokens."""
    found = parts.steps_a_token([[2, 4], [3]], 2, 2)
    assert found["shuffled, padded"] == 16 / 9 and found["of like length, corner"] == 11 / 9


def test_rewards_are_timed_within_the_steps_that_they_are_part_of():
    measured = rewards.every_mix(TINY, 1)
    for each in measured.values():
        assert 0 < each["rewards"]["median"] < each["step"]["median"]
        assert each["share"] == pytest.approx(each["rewards"]["median"] / each["step"]["median"])
    first, second = rewards.rows(measured)
    assert "CIDEr-D" in first.what and first.at_most and second.floor == rewards.LIMIT


@pytest.mark.skipif(torch.__version__ < LEAST_TORCH, reason="torch is too old to export")
@pytest.mark.slow
def test_an_exports_gains_and_costs_are_measured(vocabulary, shapes, tmp_path, capsys):
    config = bundle_config(tiny_config(), {"encoder_weights": "random"})
    save_bundle(tmp_path / "bundle", Bundle(build(config, vocabulary).eval(), vocabulary, config))
    flags = ["--root", str(shapes), "--images", "4", "--calibrate", "4", "--repeats", "1"]
    flags += ["--metrics", "Bleu_4", "CIDEr", "--output", str(tmp_path / "bench.json")]
    assert export.main([str(tmp_path / "bundle"), *flags]) == 0
    found = json.loads((tmp_path / "bench.json").read_text())["captioners"]
    assert list(found)[2:] == list(export.EXPORTS) and found["ONNX"]["same"] == found["torch.export"]["same"] == 4
    for way, each in found.items():
        assert (
            each["mb"] > 0
            and each["scores"]["CIDEr"] >= 0
            and all(x["median"] > 0 for x in each["per_second"].values())
        )
        assert ("memory_mb" in each) == (way != "torch, float32")
    assert found["ONNX, int8 all"]["mb"] < found["ONNX"]["mb"] and found["ONNX"]["memory_mb"] > 20
    table = capsys.readouterr().out.splitlines()
    assert table[0].endswith("| ties | BLEU-4 | CIDEr-D |") and len({line.count("|") for line in table[:8]}) == 1


def test_the_indexs_figures_are_of_an_index_and_of_all_products(tmp_path):
    assert index.build(tmp_path / "index", 300) > 0
    found = index.measure(tmp_path / "index", 300, 7)
    assert found["recall@10"] == 1 and found["segments"] == 1 and found["by three words ms"] > 0
    assert found["disk, vectors MB"] < found["disk, all MB"] < 1
    every, asked = index.vectors(300, 0), index.vectors(7, 10**9)
    assert index.exact(300, asked) == [set(row.tolist()) for row in (-(asked @ every.T)).argsort(1)[:, :10]]
