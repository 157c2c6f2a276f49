"""Trials of an Optuna study. `hydra/sweeper=optuna` takes them and hands them to a launcher; each job reports its
validation scores to its own, is stopped where those are hopeless, and says how it ended.

A study may be worked at by several calls at once, now or later: what they share is its storage, and beside that a
folder of lock files. optuna is imported where it is used: without it everything else runs.
"""

import contextlib
import importlib.util
import logging
import math
import re
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytorch_lightning as lightning
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from src.config import NOT_IN_NAME, plain
from src.files import locked
from src.interruption import is_first
from src.model import ConfigError, instantiate
from src.ranges import at_least
from src.runs import is_locked, sentence

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

OPTUNA = ("optuna.samplers.", "optuna.pruners.")
"""What `sampler` and `pruner` may name."""
KILLED = "its process was killed"
LOST = "its sweep was ended before it was"

# ---------------------------------------------------------------- the storage


def storage_file(storage: str) -> Path | None:
    """The file that a storage is kept in; None for a database's URL.

    Raises:
        ValueError: a database in memory.
    """
    path = storage.removeprefix("sqlite:///")
    if path in ("", ":memory:", "sqlite://"):
        raise ValueError(f"storage={storage}: jobs cannot find a study in memory: name a file, such as runs/studies.db")
    return Path(path).absolute() if "://" not in path else None


def lock_folder(storage: str) -> Path:
    """Where the calls that work at a storage's studies keep their locks."""
    file = storage_file(storage)
    return file.with_name(f".{file.name}.locks") if file else Path("runs/.studies.locks").absolute()


def open_storage(storage: str) -> "BaseStorage":
    """A file's name (SQLite; a journal if it ends in .log, for file systems of a network) or a database's URL, opened,
    and made where it is not there.

    Raises:
        ValueError: it is no storage of studies, or a package is missing.
    """
    ready()
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    file, locks = storage_file(storage), lock_folder(storage)
    locks.mkdir(parents=True, exist_ok=True)
    try:
        with locked(locks / "making.lock", f"it makes {storage}"):  # two that make its tables at once would fail
            if file is None:
                return RDBStorage(storage)
            if file.suffix == ".log":
                return JournalStorage(JournalFileBackend(str(file)))
            return RDBStorage(f"sqlite:///{file}", engine_kwargs={"connect_args": {"timeout": 60}})
    except Exception as error:  # of the database's driver, of any kind
        what = sentence(error).splitlines()[0]
        raise ValueError(f"storage={without_password(storage)}: no storage of studies: {what}") from error


def without_password(storage: str) -> str:
    """A storage as it can be shown: a URL without its user and password."""
    return re.sub(r"://[^/]*@", "://", storage)


def is_study(sweeper: Mapping[str, Any]) -> bool:
    """Whether a sweeper's config is that of hydra/sweeper=optuna."""
    return "trial" in sweeper


def ready() -> None:
    """Have optuna say only what is wrong.

    Raises:
        ValueError: it is not installed, or what its plots need.
    """
    for package in ("optuna", "plotly"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"hydra/sweeper=optuna needs {package}: `pip install optuna plotly` first")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


# ---------------------------------------------------------------- the search space


class Axis(NamedTuple):
    """A field or group that the trials vary."""

    key: str
    """As an override begins: `optimizer.lr`, `+trainer.max_steps`."""
    distribution: "BaseDistribution"


def search_space(overrides: Sequence[Override]) -> dict[str, Axis]:
    """What a sweep's overrides vary, by the parameter's name: `a,b`, `choice(…)` and `glob(…)` are categories, written
    as on the command line; `range(…)` has steps, its end left out as ever in Hydra; `interval(…)` is of real numbers,
    `int(interval(…))` of whole ones, both with their ends; `tag(log, …)` is drawn evenly by order of magnitude.

    Raises:
        ConfigError: nothing varies, or a range cannot be drawn from.
    """
    ready()
    space = {}
    for each in overrides:
        if each.is_sweep_override():
            try:
                key = each.get_key_element()
                space[key.lstrip("+~")] = Axis(key, _distribution(each))
            except ValueError as error:
                raise ConfigError(f"{each.input_line}: {str(error).rstrip('.')}") from error
    if not space:
        raise ConfigError(
            "hydra/sweeper=optuna: nothing varies; give it a field with several values, such as "
            "'optimizer.lr=tag(log,interval(1e-4,1e-2))'"
        )
    return space


def _distribution(override: Override) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    tags: set[str] = getattr(value, "tags", set())
    if wrong := tags - {"log"}:
        raise ValueError(f"tag({', '.join(sorted(wrong))}, …) means nothing here; log does")
    if getattr(value, "shuffle", False):
        raise ValueError("shuffle means nothing here: trials are drawn in the sampler's order")
    even = "log" in tags  # by order of magnitude
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=even)
        return FloatDistribution(value.start, value.end, log=even)
    if isinstance(value, RangeSweep):
        steps = list(value.range())
        if not steps:
            raise ValueError("an empty range")
        low, high = min(steps), max(steps)
        if even:
            if not (isinstance(low, int) and abs(value.step) == 1):
                raise ValueError("of ranges, only those of whole numbers with steps of 1 can be tag(log, …)")
            return IntDistribution(low, high, log=True)
        if all(isinstance(step, int) for step in steps):
            return IntDistribution(low, high, step=abs(int(value.step)))
        return FloatDistribution(float(low), float(high), step=abs(float(value.step)))
    if even:
        raise ValueError("tag(log, …) is for range(…) and interval(…)")
    return CategoricalDistribution(list(dict.fromkeys(override.sweep_string_iterator())))


def lines(trial: "FrozenTrial", space: Mapping[str, Axis]) -> list[str]:
    """A trial's overrides."""
    return [f"{axis.key}={trial.params[name]}" for name, axis in space.items()]


def written(key: str, value: object) -> str:
    """An override that gives `key` this very text, whatever is in it."""
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{text}'"


def monitored(config: Mapping[str, Any]) -> tuple[str, str]:
    """The validation score by which a training's best checkpoint is kept, and `max` or `min`; what `train` returns."""
    checkpoint = (config.get("callbacks") or {}).get("checkpoint") or {}
    return (checkpoint["monitor"], checkpoint["mode"]) if checkpoint.get("monitor") else ("val/CIDEr", "max")


def check_sweeper(sweeper: Mapping[str, Any], overrides: Sequence[Override]) -> None:
    """Refuse what cannot work before any work.

    Args:
        sweeper: the sweeper's config, as plain values.
        overrides: of the sweep.

    Raises:
        ValueError: one sentence that names the field.
    """
    ready()
    at_least(1, "hydra.sweeper", n_trials=sweeper["n_trials"], n_jobs=sweeper["n_jobs"])
    storage_file(sweeper["storage"])
    if sweeper["direction"] not in (None, "maximize", "minimize"):
        raise ConfigError(f"hydra.sweeper.direction={sweeper['direction']}: maximize, minimize or null is wanted")
    for part in ("sampler", "pruner"):
        try:
            instantiate(sweeper[part], OPTUNA)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"hydra.sweeper.{part}: {error}") from error
    search_space(overrides)


# ---------------------------------------------------------------- the sweep's side


def open_study(
    storage: str,
    name: str,
    direction: str,
    monitor: str,
    space: Mapping[str, Axis],
    fixed: Sequence[str],
    command: str,
    pruner: Mapping[str, Any],
) -> "Study":
    """The study of this name, made where it is not there.

    Args:
        storage, name: where it is kept.
        direction: `maximize` or `minimize`.
        monitor: which score.
        space: what its trials vary.
        fixed: the overrides that they share.
        command: what is called with them.
        pruner: its config; hyperband draws each bracket's trials by that bracket's.

    Raises:
        ConfigError: a study of this name has other trials.
    """
    import optuna

    study = optuna.create_study(
        storage=open_storage(storage),
        study_name=name,
        direction=direction,  # type: ignore[arg-type]
        pruner=instantiate(pruner, OPTUNA),
        load_if_exists=True,
    )
    about = {
        "direction": direction,
        "space": {axis.key: repr(axis.distribution) for axis in space.values()},
        "fixed": sorted(line for line in fixed if line.partition("=")[0].lstrip("+~") not in NOT_IN_NAME),
    }
    known = study.user_attrs.get("about")
    if known is None:
        for key, value in {"monitor": monitor, "command": command, "given": list(fixed), "about": about}.items():
            study.set_user_attr(key, value)
    elif known != about:
        what = next(key for key in about if known.get(key) != about[key])
        raise ConfigError(
            f"study {name} of {without_password(storage)} is another search: its {what} was {known.get(what)}, not "
            f"{about[what]}; give hydra.sweeper.study_name=NAME"
        )
    return study


@contextmanager
def working(storage: str) -> Iterator[str]:
    """Be one of those who work at a storage's studies: yields a name that goes with one's trials. While its file is
    locked they are being run; should this process be killed, whoever comes next sees that they are not."""
    folder = lock_folder(storage)
    folder.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex
    path = folder / f"{name}.lock"
    try:
        with FileLock(path):
            yield name
    except BaseException:
        path.touch()  # its trials are lost, whether or not releasing a lock removes the file
        raise
    path.unlink(missing_ok=True)


def take(
    study: "Study",
    storage: str,
    space: Mapping[str, Axis],
    worker: str,
    sampler: Mapping[str, Any],
    n_trials: int,
    most: int,
) -> list["FrozenTrial"]:
    """Take the study's next trials: those whose process was killed first, then new ones.

    Args:
        study, storage, space: what is worked at.
        worker: the name from `working`.
        sampler: its config; a `seed` draws the same trials from the same earlier ones, in whatever call.
        n_trials: how many the study has in the end, whoever runs them, and however they end; a lost one that is run
            again counts once.
        most: how many to take at once.
    """
    from optuna.trial import TrialState

    taken: list[FrozenTrial] = []
    with locked(lock_folder(storage) / "taking.lock", "it takes trials"):
        _retry_lost(study, lock_folder(storage))
        while len(taken) < most:
            trials = study.get_trials(deepcopy=False)
            again = {trial.user_attrs.get("retry_of") for trial in trials}
            if sum(t.state is not TrialState.WAITING and t.number not in again for t in trials) >= n_trials:
                break
            seed = sampler.get("seed")
            study.sampler = instantiate({**sampler, "seed": None if seed is None else seed + len(trials)}, OPTUNA)
            trial = study.ask({name: axis.distribution for name, axis in space.items()})
            trial.set_user_attr("worker", worker)
            taken.append(_frozen(study, trial.number))
    return taken


def _frozen(study: "Study", number: int) -> "FrozenTrial":
    return next(trial for trial in study.get_trials(deepcopy=False) if trial.number == number)


def _live(study: "Study", number: int) -> "Trial":
    import optuna

    return optuna.Trial(study, _frozen(study, number)._trial_id)


def _retry_lost(study: "Study", folder: Path) -> None:
    """Fail the trials whose worker was killed, and queue each once more, with what it had reported: its run goes on."""
    from optuna.trial import TrialState, create_trial

    running = study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
    locks = {worker: folder / f"{worker}.lock" for trial in running if (worker := trial.user_attrs.get("worker"))}
    killed = {worker for worker, lock in locks.items() if lock.exists() and not is_locked(lock)}
    for trial in running:
        if trial.user_attrs.get("worker") not in {*killed, None}:
            continue  # somebody runs it, or one of whom nothing is known here
        finish(study, trial.number, None, LOST)
        log.warning("trial %d of %s was lost: %s", trial.number, study.study_name, LOST)
        if "retry_of" not in trial.user_attrs:
            study.add_trial(
                create_trial(
                    state=TrialState.WAITING,
                    params=trial.params,
                    distributions=trial.distributions,
                    intermediate_values=trial.intermediate_values,
                    user_attrs={"retry_of": trial.number},
                )
            )


def finish(study: "Study", number: int, score: object, error: str | None = None, pruned: bool = False) -> None:
    """Write down how a trial ended, unless that is written already: complete with a score that is a number, pruned, or
    failed."""
    from optuna.trial import TrialState

    # Another process may write it at this moment: ValueError of `tell`, RuntimeError of the storage.
    with contextlib.suppress(RuntimeError, ValueError):
        if _frozen(study, number).state.is_finished():
            return
        complete = isinstance(score, int | float) and not math.isnan(score) and error is None and not pruned
        if not complete and not pruned:
            _live(study, number).set_user_attr("error", error or f"its score is {score}")
        state = TrialState.COMPLETE if complete else TrialState.PRUNED if pruned else TrialState.FAIL
        study.tell(number, score if complete else None, state)  # type: ignore[arg-type]


# ---------------------------------------------------------------- the job's side


class JobTrial:
    """The trial that this process trains for. Only the first of several processes that train together talks to the
    storage.

    Args:
        sweeper: the sweeper's config as the job sees it: `storage`, `study_name`, `pruner`, and `trial`, its number.
    """

    def __init__(self, sweeper: Mapping[str, Any]) -> None:
        self.sweeper = sweeper
        self.number: int = sweeper["trial"]
        self._trial: Trial | None = None

    @classmethod
    def of_this_job(cls) -> "JobTrial | None":
        """None outside of such a sweep."""
        if not HydraConfig.initialized():
            return None
        sweeper = plain(HydraConfig.get().sweeper)
        return cls(sweeper) if is_study(sweeper) and sweeper["trial"] is not None else None

    @property
    def trial(self) -> "Trial":
        """Optuna's."""
        if self._trial is None:
            import optuna

            study = optuna.load_study(
                study_name=self.sweeper["study_name"],
                storage=open_storage(self.sweeper["storage"]),
                pruner=instantiate(self.sweeper["pruner"], OPTUNA),
            )
            self._trial = _live(study, self.number)
        return self._trial

    def began(self, run: Path, job: Path) -> None:
        """Note the folders of its run and of its log."""
        if is_first():
            self.trial.set_user_attr("run", str(run))
            self.trial.set_user_attr("job", str(job))

    def ended(self, state: str, score: float | None, error: str | None) -> None:
        """Note how it ended, `state` as in the job's note. Where the storage does not answer, the sweep notes what the
        job returns."""
        from optuna.exceptions import StorageInternalError

        if not is_first():
            return
        try:
            finish(self.trial.study, self.number, score, error, pruned=state == "pruned")
        except (StorageInternalError, OSError) as fault:
            log.warning("trial %d: its end is not noted: %s", self.number, sentence(fault).splitlines()[0])

    def hopeless(self, score: float, step: int) -> bool:
        """Report a validation score, once for each step; whether to stop. A storage that does not answer stops
        nothing."""
        from optuna.exceptions import StorageInternalError

        try:
            if step not in _frozen(self.trial.study, self.number).intermediate_values:
                self.trial.report(score, step)
            return bool(self.trial.should_prune())
        except (StorageInternalError, RuntimeError, OSError, ValueError) as error:  # RuntimeError: it has ended
            log.warning("trial %d: %s is not reported: %s", self.number, score, sentence(error).splitlines()[0])
            return False


class Pruning(lightning.Callback):
    """Reports a job's validation score to its trial after each validation, and ends trainings that are hopeless.

    Args:
        trial: the job's.
        monitor: which score.
    """

    def __init__(self, trial: JobTrial, monitor: str) -> None:
        self.trial, self.monitor = trial, monitor
        self.pruned = False

    @classmethod
    def of_this_job(cls, monitor: str) -> "Pruning | None":
        """None outside of such a sweep."""
        trial = JobTrial.of_this_job()
        return cls(trial, monitor) if trial else None

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        step, hopeless = trainer.current_epoch + 1, False
        if trainer.is_global_zero and (score := trainer.callback_metrics.get(self.monitor)) is not None:
            hopeless = self.trial.hopeless(float(score), step)
        hopeless = trainer.strategy.broadcast(hopeless)  # all processes stop together
        last = step == trainer.max_epochs or 0 < trainer.max_steps <= trainer.global_step
        if hopeless and not last:  # after which there is nothing left to save
            log.info("pruned after epoch %d: others of the study were better by then", step)
            self.pruned = trainer.should_stop = True
