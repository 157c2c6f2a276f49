"""What is computed together: of ensembles, and of searches that draw."""

import pytest
import torch

from src.ensemble import EnsembleCaptioner
from src.service.captioning import Engine, Task
from tests.service.running import picture, tiny_captioner


@pytest.fixture
def captioner(tmp_path, vocabulary):
    return tiny_captioner(tmp_path / "one", vocabulary)


def tasks(engine, seeds, **asked):
    wanted = engine.wanted(**asked)
    return [Task(engine.captioner.stacked([picture(seed)]), wanted) for seed in seeds]


def test_an_ensemble_is_served_as_one(captioner, tmp_path, vocabulary):
    other = tiny_captioner(tmp_path / "other", vocabulary, transform__size=40)
    ensemble = EnsembleCaptioner([captioner, other])
    engine = Engine(ensemble)
    ensemble.ask(language="zh")
    own = list(ensemble([picture(seed) for seed in range(5)], alternatives=1))
    found = engine(tasks(engine, range(5), language="zh", alternatives=1))
    assert [each.text for each in found] == [each.text for each in own]
    assert [each.score for each in found] == pytest.approx([each.score for each in own])
    (alone,) = engine(tasks(engine, [0], attention=True))
    assert alone.attention is None, "its members look at different places"


@pytest.mark.parametrize("search", ["SampleSearch", "ConsensusSearch"])
def test_what_is_drawn_depends_on_the_request_alone(captioner, search):
    captioner.search_by({"_target_": f"src.generation.{search}", "max_length": 8})
    engine = Engine(captioner)
    alone = [engine(tasks(engine, [seed], alternatives=2))[0] for seed in range(4)]
    together = engine(tasks(engine, range(4), alternatives=2) + tasks(engine, [9, 8], language="zh"))
    for one, other in zip(alone, together[:4], strict=True):
        assert (one.text, [each.text for each in one.alternatives]) == (
            other.text,
            [each.text for each in other.alternatives],
        )
        assert one.score == pytest.approx(other.score, abs=1e-4)


def test_what_can_be_searched_together_is(captioner, monkeypatch):
    engine = Engine(captioner)
    sizes, search = [], engine.wanted().search
    compute = type(search).__call__

    def noting(self, decoder, memory, **how):
        sizes.append(len(how["prefix"]))
        return compute(self, decoder, memory, **how)

    monkeypatch.setattr(type(search), "__call__", noting)
    mixed = tasks(engine, [0, 1], language="en") + tasks(engine, [2, 3], language="zh")
    assert len(engine(mixed)) == 4 and sizes == [4], "languages are no hindrance"
    sizes.clear()
    mixed += tasks(engine, [4], length="3") + tasks(engine, [5], beam=2) + tasks(engine, [6], attention=True)
    results = engine([*mixed, Task(None, work=lambda: "done"), Task(None, work=lambda: 1 / 0)])
    assert sorted(sizes) == [1, 1, 1, 4] and results[7] == "done" and isinstance(results[8], ZeroDivisionError)


def test_a_length_is_not_cut_by_the_search(captioner):
    engine = Engine(captioner)
    wanted = engine.wanted(length="12")
    assert wanted.search.max_length == 12 and engine.wanted().search.max_length == 8
    assert wanted.control == ("<en>", "<length=12>")
    with torch.no_grad():
        assert len(engine(tasks(engine, [0], length="12"))[0].words) <= 12
