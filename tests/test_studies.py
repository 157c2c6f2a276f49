"""Studies through the real command: resumed, shared, pruned, with failures; and the page of what came of them."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState

from src import studies
from src.config import ROOT
from src.runs import LOCK, STATUS, read_run
from src.studies import best_command, write_page
from src.sweeps import NOTE
from src.trials import KILLED, LOST, lock_folder, open_storage

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(*arguments: str) -> subprocess.Popen:
    """A call in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def call(*arguments: str, expect: int = 0) -> str:
    process = start(*arguments)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == expect, said[-5000:]
    return said


def trials(storage: Path, name: str = "s") -> list[FrozenTrial]:
    return optuna.load_study(study_name=name, storage=open_storage(str(storage))).get_trials(deepcopy=False)


def states(storage: Path) -> list[str]:
    return [trial.state.name for trial in trials(storage)]


def scores(run: str, name: str) -> dict[int, float]:
    """A validation score by epoch, counted from 1, from a run's metrics.csv."""
    with (Path(run) / "metrics.csv").open(newline="") as file:
        return {int(row["epoch"]) + 1: float(row[name]) for row in csv.DictReader(file) if row[name]}


# ---------------------------------------------------------------- trainings


@pytest.fixture(scope="module")
def tiny(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    return folder, [
        *(
            "-m",
            "src.train",
            "-m",
            "hydra/sweeper=optuna",
            "hydra.sweeper.study_name=s",
            "data=tsv",
            f"data.root={shapes}",
            "data.train=train.tsv",
            "data.val=val.tsv",
        ),
        *("data.min_count=1", "data.batch_size=8", f"data.cache_dir={folder / 'cache'}", "data.workers=0"),
        *("data.cache_workers=0", "transform.size=32", "encoder=cnn", "encoder.backbone.channels=[16,32]"),
        *("encoder.frozen=true", "encoder.width=32", "embedding.size=32", "attention.width=32", "decoder.hidden=32"),
        *("logger=csv", "generation=greedy", "trainer.enable_progress_bar=false", "trainer.max_epochs=2"),
        *(f"run_dir={folder}/${{name}}", f"hydra.sweep.dir={folder}/sweep"),
    ]


@pytest.fixture(scope="module")
def studied(tiny):
    """Four trials of TPE, two handed to two workers at once."""
    folder, command = tiny
    parallel = ["hydra/launcher=parallel", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2"]
    vary = ["optimizer.lr=tag(log,interval(1e-4,1e-1))", "decoder=lstm,lstm_attn"]
    command = [*command, *vary, *parallel, f"hydra.sweeper.storage={folder}/studies.db"]
    return folder, command, call(*command, "hydra.sweeper.n_trials=4")


def test_a_study_has_as_many_trials_as_it_is_to_have(studied):
    folder, _, said = studied
    assert states(folder / "studies.db") == ["COMPLETE"] * 4
    assert "study s: 4 complete" in said and "4 jobs, best first" in said


def test_a_trial_is_its_run(studied):
    folder, *_ = studied
    for trial in trials(folder / "studies.db"):
        run = json.loads((Path(trial.user_attrs["run"]) / STATUS).read_text())
        assert (run["state"], run["best"]) == ("finished", trial.value)
        assert run["choices"]["decoder"] == trial.params["decoder"]
        assert f"optimizer.lr={trial.params['optimizer.lr']}" in run["overrides"]
        assert scores(trial.user_attrs["run"], "val/CIDEr") == pytest.approx(trial.intermediate_values)


def test_the_best_is_the_best_run(studied):
    folder, _, said = studied
    runs = [read_run(path.parent, path.parent.name, "val") for path in folder.glob(f"*/{STATUS}")]
    best = max(runs, key=lambda run: run["best"])
    found = optuna.load_study(study_name="s", storage=open_storage(str(folder / "studies.db")))
    assert len(runs) == 4 and found.best_value == best["best"]
    ready = shlex.split(best_command(found))
    assert ready[:3] == ["python", "-m", "src.train"] and "name=best/s" in ready and best_command(found) in said
    assert {f"{key}={value}" for key, value in found.best_params.items()} < set(ready)
    call(*ready[1:], f"run_dir={folder}/best", "trainer.max_epochs=1", "evaluate_splits=[]")
    assert read_run(folder / "best", "best", "val", config=True)["optimizer.lr"] == found.best_params["optimizer.lr"]


def test_the_same_call_goes_on_with_what_is_left(studied):
    folder, command, _ = studied
    before = [trial.params for trial in trials(folder / "studies.db")]
    said = call(*command, "hydra.sweeper.n_trials=5")
    after = [trial.params for trial in trials(folder / "studies.db")]
    assert after[:4] == before and len(after) == 5 and after[4] not in before and "1 jobs" in said


def test_a_killed_sweep_goes_on_with_the_run_that_it_was_at(tiny):
    folder, command = tiny
    storage = folder / "killed.db"
    command = [*command, "optimizer.lr=interval(1e-3,1e-2)", "seed=7", "trainer.max_epochs=6"]
    command += [f"hydra.sweeper.storage={storage}", "hydra.sweeper.n_trials=3"]
    process = start(*command)

    def reached() -> bool:
        """The second trial has trained an epoch, whose checkpoint is there."""
        found = trials(storage) if storage.exists() and lock_folder(str(storage)).exists() else []
        run = found[1].user_attrs.get("run") if len(found) == 2 else None
        return run is not None and (Path(run) / "checkpoints" / "last.ckpt").exists()

    try:
        while not _asks(reached):
            assert process.poll() is None, process.communicate()[0][-5000:]
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert states(storage) == ["COMPLETE", "RUNNING"]
    reported = trials(storage)[1].intermediate_values
    assert 1 <= len(reported) < 6, "in the middle"
    call(*command)
    found = trials(storage)
    assert [trial.state.name for trial in found] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert found[1].user_attrs["error"] == LOST and found[2].params == found[1].params
    again = found[2].intermediate_values
    assert list(again) == [1, 2, 3, 4, 5, 6] and reported.items() <= again.items()
    assert found[2].user_attrs["run"] == found[1].user_attrs["run"]
    log = (Path(found[2].user_attrs["job"]) / "train.log").read_text()
    assert "starting from the beginning" not in log
    assert sorted(scores(found[2].user_attrs["run"], "val/CIDEr")) == [1, 2, 3, 4, 5, 6]


def _asks(question) -> bool:
    """The answer; no while the study is only being made."""
    try:
        return question()
    except (KeyError, ValueError):
        return False


def test_a_hopeless_run_is_stopped_early(tiny):
    folder, command = tiny
    storage = folder / "pruned.db"
    made = optuna.create_study(storage=open_storage(str(storage)), study_name="s", direction="minimize")
    for rate in (0.01, 1e-7):
        made.enqueue_trial({"optimizer.lr": rate})
    command = [*command, "optimizer.lr=tag(log,interval(1e-8,0.1))", "trainer.max_epochs=4", "seed=3"]
    command += ["callbacks.checkpoint.monitor=val/loss", "callbacks.checkpoint.mode=min"]
    sweep = [f"hydra.sweeper.storage={storage}", "hydra.sweeper.n_trials=2", "hydra.sweeper.pruner.n_startup_trials=1"]
    said = call(*command, *sweep)
    good, bad = trials(storage)
    assert (good.state, bad.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert sorted(scores(good.user_attrs["run"], "val/loss")) == [1, 2, 3, 4]
    assert sorted(scores(bad.user_attrs["run"], "val/loss")) == [1, 2] == sorted(bad.intermediate_values)
    run = Path(bad.user_attrs["run"])
    assert json.loads((run / STATUS).read_text())["state"] == "pruned"
    assert not (run / "bundle").exists() and not (run / "eval").exists()
    assert "1 complete, 1 pruned" in said and re.search(r"1e-07 .* pruned$", said, re.M)
    alone = [*command[:2], *(word for word in command[3:] if not word.startswith(("hydra", "optimizer")))]  # no sweep
    call(*alone, "optimizer.lr=1e-07", "ckpt=last")
    assert json.loads((run / STATUS).read_text())["state"] == "finished" and (run / "bundle").exists()
    assert sorted(scores(str(run), "val/loss")) == [1, 2, 3, 4]


# ---------------------------------------------------------------- jobs that only pretend to train

JOB = """
import os, signal, sys, time
import hydra
from src.config import CONF
from src.sweeps import sweep_job

@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
@sweep_job
def main(config):
    time.sleep(0.3)
    if config.seed == 1:
        raise RuntimeError("out of memory")
    if config.seed == 2:
        return float("nan")
    if config.seed == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return config.optimizer.lr

if __name__ == "__main__":
    main()
"""


def pretend(folder: Path, *overrides: str) -> list[str]:
    """Arguments of a sweep whose scores are its learning rates; `seed` 1 fails, 2 has no score, 3 kills its process."""
    (folder / "job.py").write_text(JOB)
    where = [f"hydra.sweep.dir={folder}/sweep", f"run_dir={folder}/${{name}}"]
    given = ["hydra/sweeper=optuna", "hydra.sweeper.study_name=s", "optimizer.lr=interval(0,1)"]
    return [str(folder / "job.py"), "-m", *given, *where, *overrides]


def queue(storage: Path, *seeds: int) -> None:
    """Let the first trials of a study to come have these seeds."""
    made = optuna.create_study(storage=open_storage(str(storage)), study_name="s", direction="maximize")
    for seed in seeds:
        made.enqueue_trial({"seed": str(seed), "optimizer.lr": 0.5})


def test_failed_trials_do_not_end_a_sweep(tmp_path):
    """In a journal; what varies is said in the sweeper's config, but for the learning rate."""
    storage = tmp_path / "studies.log"
    queue(storage, 0, 1, 2, 4)
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "seeds.yaml").write_text(
        "# @package hydra.sweeper\nparams: {seed: 'choice(0, 1, 2, 4)', optimizer.lr: '8,9', decoder: lstm}\n"
    )
    script, *overrides = pretend(tmp_path, f"hydra.sweeper.storage={storage}", "hydra.sweeper.n_trials=5")
    overrides += ["+search=seeds", "hydra/sweeper/sampler=random", "hydra/sweeper/pruner=none"]
    said = call(script, "--config-dir", str(tmp_path), *overrides, expect=1)
    found = trials(storage)
    assert [trial.state.name for trial in found[:4]] == ["COMPLETE", "FAIL", "FAIL", "COMPLETE"] and len(found) == 5
    assert found[1].user_attrs["error"] == "RuntimeError: out of memory"
    assert found[2].user_attrs["error"] == "its score is nan"
    assert "RuntimeError: out of memory" in said and "tries these anew" not in said
    assert [set(trial.params) for trial in found] == [{"optimizer.lr", "seed"}] * 5
    assert found[4].params["optimizer.lr"] < 1, "the command line comes first"
    assert "decoder=lstm" in json.loads((Path(found[4].user_attrs["job"]) / NOTE).read_text())["overrides"]
    other = call(script, *overrides[:-3], "seed=5,6", expect=1)
    assert other.startswith("error: study s of ") and "is another search: its space was" in other
    assert len(other.splitlines()) == 1


@pytest.mark.parametrize("launcher", ["parallel", pytest.param("submitit_local", marks=pytest.mark.slow)])
def test_a_killed_job_is_a_failed_trial(launcher, tmp_path):
    storage = tmp_path / "studies.db"
    if launcher == "submitit_local":
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs hydra-submitit-launcher")
    queue(storage, 3, 0)
    command = pretend(tmp_path, "seed=0,3", f"hydra.sweeper.storage={storage}", f"hydra/launcher={launcher}")
    call(*command, "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2", expect=1)
    killed, other = trials(storage)
    assert killed.state is TrialState.FAIL and KILLED in killed.user_attrs["error"]
    assert other.state is TrialState.COMPLETE or launcher == "parallel"  # which may lose what ran beside it


def test_a_trial_waits_for_the_run_of_another_with_the_same_values(tmp_path):
    storage, run = tmp_path / "studies.log", tmp_path / "run"
    run.mkdir()
    process = start(
        *pretend(tmp_path, f"hydra.sweeper.storage={storage}", "hydra.sweeper.n_trials=1", f"run_dir={run}")
    )
    with FileLock(run / LOCK):
        while not any("it trains" in log.read_text() for log in tmp_path.glob("sweep/0/train.log")):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        assert states(storage) == ["RUNNING"] and process.poll() is None
    assert process.communicate(timeout=300) and states(storage) == ["COMPLETE"]


def test_processes_share_a_study(tmp_path):
    command = pretend(tmp_path, f"hydra.sweeper.storage={tmp_path}/studies.db", "hydra.sweeper.n_trials=10")
    processes = [start(*command) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    found = trials(tmp_path / "studies.db")
    assert [trial.number for trial in found] == list(range(10))
    assert {trial.state for trial in found} == {TrialState.COMPLETE}
    assert len({trial.user_attrs["worker"] for trial in found}) == 2, "both had a part"
    assert len({trial.params["optimizer.lr"] for trial in found}) == 10, "and drew other trials"
    assert sorted(Path(trial.user_attrs["job"]).name for trial in found) == sorted(map(str, range(10)))


# ---------------------------------------------------------------- the page


class Page(HTMLParser):
    """The parts of a page: headings, cells by row, links, and whatever a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings, self.rows, self.links, self.fetched, self.ids = [], [], [], [], []
        self.inside: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag not in ("meta", "link", "img", "br"):
            self.inside.append(tag)
        self.fetched += [given[key] for key in ("src",) if key in given] + ([given["href"]] if tag == "link" else [])
        self.links += [given["href"]] if tag == "a" else []
        self.ids += [given["id"]] if "id" in given else []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, data):
        if "h2" in self.inside:
            self.headings[-1] += data
        if self.inside[-1:] and {"td", "th"} & set(self.inside):
            self.rows[-1][-1] += data


def made(*ends: tuple[str, float], parameters: int = 1) -> optuna.Study:
    """A study in memory whose trials ended like this."""
    study = optuna.create_study(study_name="a/<b>", direction="maximize")
    study.set_user_attr("monitor", "val/CIDEr")
    names = ["optimizer.lr", "+trainer.max_steps", "decoder"][:parameters]
    study.set_user_attr("about", {"space": dict.fromkeys(names, "")})
    study.set_user_attr("given", ["data=tsv", "name=here", "run_dir=there", "data.root=my data"])
    study.set_user_attr("command", "python -m src.train")
    spread = [optuna.distributions.FloatDistribution(0, 1), optuna.distributions.IntDistribution(1, 9)]
    spread += [optuna.distributions.CategoricalDistribution(["lstm", "gru"])]
    for i, (state, value) in enumerate(ends):
        drawn = zip(names, [i / 10 + 0.1, i % 9 + 1, ["lstm", "gru"][i % 2]], spread, strict=False)
        given = {name.lstrip("+"): (value, distribution) for name, value, distribution in drawn}
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState[state],
                value=value if state == "COMPLETE" else None,
                params={name: value for name, (value, _) in given.items()},
                distributions={name: distribution for name, (_, distribution) in given.items()},
                intermediate_values={1: value} if state in ("COMPLETE", "PRUNED") else {},
                user_attrs={"run": f"runs/r {i}", **({"error": "<broken>"} if state == "FAIL" else {})},
            )
        )
    return study


ALL = [("COMPLETE", 0.2), ("COMPLETE", 0.5), ("PRUNED", 0.1), ("FAIL", 0), ("RUNNING", 0), ("WAITING", 0)]
ALL += [("COMPLETE", 0.3 + i / 50) for i in range(4)]
PLOTS = ["History", "Scores by epoch", "Importance", "Parallel coordinates"]


@pytest.mark.parametrize(
    ("study", "plots"),
    [
        (made(), []),
        (made(("COMPLETE", 0.5)), [PLOTS[0], PLOTS[1], PLOTS[3]]),
        (made(("FAIL", 0), ("RUNNING", 0)), []),
        (made(("PRUNED", 0.1)), [PLOTS[1]]),
        (made(("COMPLETE", 0.5), ("COMPLETE", 0.5), parameters=2), [PLOTS[0], PLOTS[1], PLOTS[3]]),
        (made(*ALL), PLOTS),
        (made(*ALL, parameters=3), PLOTS),
    ],
    ids=["none", "one", "failed", "pruned", "alike", "one parameter", "all"],
)
def test_a_page_of_any_study(study, plots, tmp_path):
    write_page(study, tmp_path / "pages" / "study.html", "runs/studies.db")
    page = Page((tmp_path / "pages" / "study.html").read_text(encoding="utf-8"))
    assert page.headings == [*plots, "Trials"] and not page.inside
    assert page.fetched == [], "one file, without a network"
    assert [f"plot{i}" in page.ids for i in range(4)] == [i < len(plots) for i in range(4)]
    head, *rows = page.rows
    names = [key.lstrip("+") for key in study.user_attrs["about"]["space"]]
    assert head == ["trial", "state", "val/CIDEr", *names, "epochs", "minutes", "run", "error"]
    assert len(rows) == len(study.trials)


def test_the_page_says_what_the_study_holds(tmp_path):
    said = write_page(made(*ALL, parameters=3), tmp_path / "study.html", "runs/studies.db")
    text = (tmp_path / "study.html").read_text(encoding="utf-8")
    page = Page(text)
    cells = {row[0]: row for row in page.rows}
    assert cells["1"][:6] == ["1", "complete", "50.0", "0.2", "2", "gru"]
    assert [cells[number][1] for number in "2345"] == ["pruned", "failed", "running", "waiting"]
    assert cells["3"][-1] == "<broken>" and "<b>" not in text
    assert page.links[1] == os.path.relpath(Path("runs/r 1").absolute(), tmp_path).replace(" ", "%20") + "/"
    command = "python -m src.train data=tsv 'data.root=my data' optimizer.lr=0.2 +trainer.max_steps=2 decoder=gru"
    assert f"{command} name=best/a/_b" in said and "5 complete" not in said and "6 complete, 1 pruned" in said


def test_the_command_lists_shows_and_writes(studied, tmp_path, capsys):
    storage = str(studied[0] / "studies.db")
    assert studies.main([storage]) == 0
    shown = capsys.readouterr().out
    assert "val/CIDEr" in shown and "complete" in shown and "python -m src.train" in shown
    assert studies.main([storage, "--study", "s", "-o", str(tmp_path / "a.html")]) == 0
    assert Page((tmp_path / "a.html").read_text(encoding="utf-8")).headings[-1] == "Trials"
    (page,) = {path.read_text(encoding="utf-8")[:15] for path in studied[0].glob("sweep*/study.html")}
    assert page == "<!doctype html>", "the sweep wrote one too"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.db"], "nowhere.db: no such file"),
        (["two.db", "--study", "c"], "no study c; there are a, b"),
        (["two.db", "-o", "page.html"], "--study NAME is needed: there are a, b"),
        (["empty.db"], "no study; there is none"),
    ],
)
def test_wrong_calls_are_one_sentence(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    open_storage("empty.db")
    for name in "ab":
        optuna.create_study(storage=open_storage("two.db"), study_name=name)
    assert studies.main(["two.db"]) == 0 and capsys.readouterr().out == "a\nb\n"
    assert studies.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and sentence in said and len(said.splitlines()) == 1


@pytest.mark.browser
def test_the_plots_are_drawn(tmp_path, browser):
    write_page(made(*ALL, parameters=3), tmp_path / "study.html", "runs/studies.db")
    wrong: list[str] = []
    page = browser.new_page()
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith("file:") else wrong.append(request.url))
    page.goto((tmp_path / "study.html").as_uri())
    page.wait_for_selector("#plot3 svg.main-svg")
    drawn = page.evaluate("[...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('svg path').length)")
    page.close()
    assert len(drawn) == 4 and min(drawn) > 0 and wrong == []
