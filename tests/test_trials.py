"""Search spaces, taking trials and ending them, pruning: against Optuna's own objects."""

import importlib.util
import math
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna import create_study, create_trial, load_study
from optuna.distributions import CategoricalDistribution as Categories
from optuna.distributions import FloatDistribution as Float
from optuna.distributions import IntDistribution as Whole
from optuna.trial import TrialState

from src.config import CONF, ROOT, plain
from src.model import ConfigError
from src.trials import (
    LOST,
    JobTrial,
    Pruning,
    check_sweeper,
    finish,
    lines,
    lock_folder,
    open_storage,
    open_study,
    search_space,
    storage_file,
    take,
    without_password,
    working,
)


def parsed(*overrides: str):
    return OverridesParser.create().parse_overrides(list(overrides))


# ---------------------------------------------------------------- the search space


@pytest.mark.parametrize(
    ("line", "distribution"),
    [
        ("decoder=lstm,lstm_attn", Categories(["lstm", "lstm_attn"])),
        ("decoder.hidden=choice(64,128,64)", Categories(["64", "128"])),
        ("name='a, b',null,true", Categories(["'a, b'", "null", "True"])),
        ("freeze=choice([],[a.b])", Categories(["[]", "[a.b]"])),
        ("lr=interval(1e-4,1e-2)", Float(1e-4, 1e-2)),
        ("lr=tag(log,interval(1e-4,1e-2))", Float(1e-4, 1e-2, log=True)),
        ("hidden=int(interval(64,512))", Whole(64, 512)),
        ("hidden=tag(log,int(interval(64,512)))", Whole(64, 512, log=True)),
        ("layers=range(1,4)", Whole(1, 3)),
        ("hidden=range(64,257,64)", Whole(64, 256, step=64)),
        ("hidden=range(3,0,-1)", Whole(1, 3)),
        ("dropout=range(0.1,0.5,0.1)", Float(0.1, 0.4, step=0.1)),
        ("hidden=tag(log,range(1,101))", Whole(1, 100, log=True)),
    ],
)
def test_overrides_are_distributions(line, distribution):
    key = line.partition("=")[0]
    (axis,) = search_space(parsed(line, "seed=3")).values()
    assert (axis.key, axis.distribution) == (key, distribution)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("seed=3", "nothing varies"),
        ("lr=tag(exponential,interval(1,2))", "tag(exponential, …) means nothing here"),
        ("lr=tag(log,interval(0,1))", "lr=tag(log,interval(0,1)): "),
        ("lr=interval(2,1)", "lr=interval(2,1): "),
        ("lr=tag(log,range(0.1,0.5,0.1))", "only those of whole numbers"),
        ("lr=tag(log,range(1,10,3))", "with steps of 1"),
        ("seed=range(3,3)", "an empty range"),
        ("seed=shuffle(range(1,4))", "shuffle means nothing here"),
        ("decoder=shuffle(a,b)", "shuffle means nothing here"),
        ("decoder=tag(log,choice(1,2))", "tag(log, …) is for range(…) and interval(…)"),
    ],
)
def test_a_space_that_cannot_be_drawn_from_is_refused(line, sentence):
    with pytest.raises(ConfigError) as refused:
        search_space(parsed(line))
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


def test_a_trials_overrides_are_what_hydra_reads():
    space = search_space(parsed("+trainer.max_steps=int(interval(1,9))", "name='a, b','it\\'s'", "lr=interval(0,1)"))
    trial = create_trial(
        params={"trainer.max_steps": 3, "name": "'it\\'s'", "lr": 1e-05},
        distributions={name: axis.distribution for name, axis in space.items()},
        value=0.0,
    )
    read = {each.key_or_group: each.value() for each in parsed(*lines(trial, space))}
    assert read.pop("name") == "it's"
    assert read == {"trainer.max_steps": 3, "lr": 1e-05} and lines(trial, space)[0] == "+trainer.max_steps=3"


# ---------------------------------------------------------------- the sweeper's config


def sweeper(*overrides: str) -> dict:
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("train", ["hydra/sweeper=optuna", *overrides], return_hydra_config=True)
        return plain(config.hydra.sweeper)


LR = parsed("optimizer.lr=interval(0,1)")


@pytest.mark.parametrize("choice", ["sampler=tpe", "sampler=random", *(f"pruner={p}" for p in ("median", "asha"))])
def test_every_choice_can_be_made(choice):
    check_sweeper(sweeper(f"hydra/sweeper/{choice}"), LR)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("hydra.sweeper.n_trials=0", "n_trials=0"),
        ("hydra.sweeper.n_jobs=-1", "n_jobs=-1"),
        ("hydra.sweeper.direction=up", "direction=up: maximize, minimize or null"),
        ("hydra.sweeper.storage='sqlite:///:memory:'", "a study in memory"),
        ("hydra.sweeper.sampler._target_=os.system", "hydra.sweeper.sampler: _target_: os.system is not allowed"),
        ("+hydra.sweeper.pruner.patience=3", "hydra.sweeper.pruner: "),
        ("hydra.sweeper.pruner.n_startup_trials=-1", "hydra.sweeper.pruner: "),
    ],
)
def test_what_cannot_work_is_refused(override, sentence):
    with pytest.raises(ValueError) as refused:
        check_sweeper(sweeper(override), LR)
    assert sentence in str(refused.value)


# ---------------------------------------------------------------- storages


@pytest.mark.parametrize("package", ["optuna", "plotly"])
def test_a_missing_package_is_named(package, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else name)
    with pytest.raises(ValueError, match=f"needs {package}: `pip install optuna plotly` first"):
        check_sweeper(sweeper(), LR)


def test_nothing_else_needs_optuna():
    code = "import sys, src.train, src.studies, hydra_plugins.captionary_optuna; print('optuna' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_storages_are_files_or_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage_file("runs/a.db") == storage_file("sqlite:///runs/a.db") == tmp_path / "runs" / "a.db"
    assert storage_file(f"sqlite:///{tmp_path}/a.db") == tmp_path / "a.db"
    assert storage_file("postgresql://someone@host/studies") is None
    assert without_password("postgresql://someone:secret@host/studies") == "postgresql://host/studies"
    assert lock_folder("runs/a.db") == tmp_path / "runs" / ".a.db.locks"


@pytest.mark.parametrize("name", ["a.db", "a.log"])
def test_a_storage_that_is_none_is_one_sentence(name, tmp_path):
    (tmp_path / name).write_text("a letter\n" * 200)
    with pytest.raises(ValueError, match=rf"{name}: no storage of studies") as refused:
        create_study(storage=open_storage(str(tmp_path / name)))
    assert "\n" not in str(refused.value)


# ---------------------------------------------------------------- taking and ending trials

SPACE = search_space(parsed("lr=tag(log,interval(1e-4,1e-2))", "decoder=a,b"))
SAMPLERS = {
    "tpe": {"_target_": "optuna.samplers.TPESampler", "seed": 0, "n_startup_trials": 3, "constant_liar": True},
    "random": {"_target_": "optuna.samplers.RandomSampler", "seed": 0},
}


@pytest.fixture(params=["studies.db", "studies.log"])
def storage(request, tmp_path):
    return str(tmp_path / request.param)


def study(storage: str, space=SPACE, **changes):
    given = {"name": "s", "direction": "maximize", "monitor": "val/CIDEr", "fixed": ["seed=1"], "command": "train"}
    given["pruner"] = MEDIAN
    return open_study(storage, space=space, **given | changes)


def drawn(storage: str, stops: int, sampler: str) -> list[dict]:
    """The parameters of six trials, the study taken up anew after each `stops`."""
    while True:
        opened = study(storage)
        with working(storage) as worker:
            for _ in range(stops):
                if not (taken := take(opened, storage, SPACE, worker, SAMPLERS[sampler], 6, 1)):
                    return [trial.params for trial in opened.trials]
                finish(opened, taken[0].number, taken[0].params["lr"])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_draws_the_same_trials_however_often_it_is_stopped(sampler, tmp_path):
    whole, parts = (drawn(str(tmp_path / f"{stops}.db"), stops, sampler) for stops in (9, 2))
    assert whole == parts and len({trial["lr"] for trial in whole}) == 6


def test_trials_end_once_and_as_they_did(storage):
    opened = study(storage)
    with working(storage) as worker:
        taken = take(opened, storage, SPACE, worker, SAMPLERS["random"], 9, 6)
        for trial, score in zip(taken, (0.5, math.nan, None, 0.1, 0.7, "x"), strict=True):
            finish(opened, trial.number, score, pruned=trial.number == 3, error="broken" if trial.number == 4 else None)
        finish(opened, 0, None, "too late")
    states = ["COMPLETE", "FAIL", "FAIL", "PRUNED", "FAIL", "FAIL"]
    assert [trial.state.name for trial in opened.trials] == states and opened.best_value == 0.5
    assert [t.user_attrs.get("error") for t in opened.trials][:2] == [None, "its score is nan"]
    assert opened.trials[4].user_attrs["error"] == "broken"
    assert not list(lock_folder(storage).glob("?" * 32 + ".lock")), "who has ended leaves nothing"


def test_a_lost_trial_is_run_again_once_with_what_it_had_reported(storage):
    with pytest.raises(KeyboardInterrupt), working(storage) as worker:
        (lost,) = take(study(storage), storage, SPACE, worker, SAMPLERS["random"], 2, 1)
        JobTrial({"storage": storage, "study_name": "s", "trial": 0, "pruner": MEDIAN}).hopeless(0.5, 1)
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), working(storage) as worker:
        again, other = take(study(storage), storage, SPACE, worker, SAMPLERS["random"], 2, 5)
        assert again.params == lost.params and again.intermediate_values == {1: 0.5}
        assert other.params != lost.params, "and besides it as many as there are to be"
        raise KeyboardInterrupt
    opened = study(storage)
    with working(storage) as worker:
        (third,) = take(opened, storage, SPACE, worker, SAMPLERS["random"], 2, 5)
        assert third.params == other.params, "what was lost twice is not tried again"
        finish(opened, third.number, 1.0)
    assert [t.state.name for t in opened.trials] == ["FAIL", "FAIL", "FAIL", "COMPLETE"]
    assert opened.trials[0].user_attrs["error"] == LOST
    with working(storage) as worker:
        assert take(opened, storage, SPACE, worker, SAMPLERS["random"], 2, 5) == []


def test_whoever_runs_keeps_its_trials(storage):
    opened = study(storage)
    with working(storage) as mine, working(storage) as theirs:
        assert len(take(opened, storage, SPACE, mine, SAMPLERS["random"], 3, 2)) == 2
        assert len(take(study(storage), storage, SPACE, theirs, SAMPLERS["random"], 3, 2)) == 1
        assert take(opened, storage, SPACE, mine, SAMPLERS["random"], 3, 2) == []
        assert {trial.state for trial in opened.trials} == {TrialState.RUNNING}
        for number in range(3):
            finish(opened, number, 1.0)


def test_another_search_under_the_same_name_is_refused(storage):
    study(storage)
    study(storage, fixed=["seed=1", "data.workers=3"])  # which learns the same
    other = search_space(parsed("lr=interval(1e-4,1e-2)", "decoder=a,b"))
    for change in ({"direction": "minimize"}, {"fixed": ["seed=2"]}, {"space": other}):
        with pytest.raises(ValueError, match=r"is another search: its (direction|fixed|space) was .*, not .*; give"):
            study(storage, **change)


# ---------------------------------------------------------------- pruning


@pytest.fixture
def journal(tmp_path):
    return str(tmp_path / "studies.log")


MEDIAN = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 2, "n_warmup_steps": 0}
PRUNERS = {
    "median": ["hydra.sweeper.pruner.n_startup_trials=2"],
    "asha": ["hydra.sweeper.pruner.reduction_factor=2"],
    "hyperband": ["hydra.sweeper.pruner.reduction_factor=2", "hydra.sweeper.pruner.max_resource=4"],
    "none": [],
}


def job(storage: str, pruner: str) -> JobTrial:
    """Of a trial beside ten complete ones, each better than the one before, at each of four epochs."""
    settings = sweeper(f"hydra/sweeper/pruner={pruner}", *PRUNERS[pruner]) | {"storage": storage, "study_name": "s"}
    opened = study(storage)
    with working(storage) as worker:
        for trial in take(opened, storage, SPACE, worker, SAMPLERS["random"], 99, 10):
            mine, score = JobTrial(settings | {"trial": trial.number}), 0.5 + trial.number / 10
            assert not any(mine.hopeless(score, step) for step in (1, 2, 3, 4))
            finish(opened, trial.number, score)
        take(opened, storage, SPACE, worker, SAMPLERS["random"], 99, 1)
    return JobTrial(settings | {"trial": 10})


@pytest.mark.parametrize("pruner", PRUNERS)
def test_hopeless_trials_are_told_from_others(pruner, journal):
    mine = job(journal, pruner)
    bad = [mine.hopeless(0.1, step) for step in (1, 2, 3, 4)]
    assert any(bad) == (pruner != "none")
    assert mine.trial.study.trials[10].intermediate_values == dict.fromkeys((1, 2, 3, 4), 0.1)


def test_a_trial_that_is_better_goes_on(journal):
    mine = job(journal, "median")
    assert [mine.hopeless(2.0, step) for step in (1, 2, 3)] == [False] * 3


def test_a_resumed_trial_reports_no_step_twice(journal, recwarn):
    mine = job(journal, "none")
    mine.hopeless(0.4, 1)
    again = JobTrial(mine.sweeper)
    again.hopeless(0.1, 1)
    again.hopeless(0.2, 2)
    assert load_study(study_name="s", storage=open_storage(journal)).trials[10].intermediate_values == {1: 0.4, 2: 0.2}
    assert not [warning for warning in recwarn if "already reported" in str(warning.message)]


def test_a_storage_that_fails_stops_no_training(journal, caplog):
    mine = job(journal, "median")
    finish(mine.trial.study, 10, None, LOST)  # another call took this one for lost
    assert mine.hopeless(0.1, 1) is False and "0.1 is not reported" in caplog.text
    mine.ended("finished", 0.9, None)
    assert mine.trial.study.trials[10].state is TrialState.FAIL


class Ranks:
    """Two processes that validate together, each with its own callback."""

    def __init__(self) -> None:
        self.meeting, self.said = threading.Barrier(2, timeout=20), {}

    def strategy(self, rank: int):
        def broadcast(value: bool) -> bool:
            self.said[rank] = value
            self.meeting.wait()
            return self.said[0]

        return SimpleNamespace(broadcast=broadcast)


def trainer(**changes):
    given = {"sanity_checking": False, "fast_dev_run": False, "current_epoch": 0, "max_epochs": 4, "should_stop": False}
    given |= {"max_steps": -1, "global_step": 12}
    alone = {"is_global_zero": True, "callback_metrics": {"val/CIDEr": 0.1}, "strategy": Ranks().strategy(0)}
    alone["strategy"].broadcast = lambda value: value
    return SimpleNamespace(**given | alone | changes)


def test_all_processes_stop_together_and_the_first_alone_reports(journal):
    ranks = Ranks()
    nobody = JobTrial({"trial": 10})  # who could not even find the storage
    callbacks = [Pruning(job(journal, "median"), "val/CIDEr"), Pruning(nobody, "val/CIDEr")]
    trainers = [trainer(is_global_zero=rank == 0, strategy=ranks.strategy(rank)) for rank in (0, 1)]
    for epoch in (0, 1):
        for each in trainers:
            each.current_epoch = epoch
        pairs = list(zip(callbacks, trainers, strict=True))
        threads = [threading.Thread(target=c.on_validation_end, args=(t, None)) for c, t in pairs]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert ranks.said[1] is False and ranks.said[0] is (epoch == 1), "the first epoch is every trial's"
        assert [(c.pruned, t.should_stop) for c, t in pairs] == [(epoch == 1, epoch == 1)] * 2


@pytest.mark.parametrize("bounded", [{}, {"max_steps": 12, "max_epochs": None}], ids=str)
def test_the_last_epoch_is_not_pruned(journal, bounded):
    callback, last = Pruning(job(journal, "median"), "val/CIDEr"), trainer(current_epoch=3, **bounded)
    callback.on_validation_end(last, None)
    assert not callback.pruned and not last.should_stop
    assert callback.trial.trial.study.trials[10].intermediate_values == {4: 0.1}


def test_a_job_that_was_cancelled_in_a_queue_is_told_from_one_that_cannot_begin():
    from hydra_plugins.captionary_optuna import _was_submitted

    submitit = pytest.importorskip("submitit.core.utils")
    assert _was_submitted(submitit.UncompletedJobError("cancelled"))
    assert not _was_submitted(submitit.FailedJobError("No module named 'torch'"))
    assert not _was_submitted(OSError("no sbatch"))


def test_nothing_is_reported_where_there_is_no_trial_or_no_score(journal):
    assert Pruning.of_this_job("val/CIDEr") is None
    callback = Pruning(job(journal, "median"), "val/METEOR")
    for each in (trainer(), trainer(sanity_checking=True), trainer(fast_dev_run=True)):
        callback.on_validation_end(each, None)
    assert callback.trial.trial.study.trials[10].intermediate_values == {}
