"""`hydra/sweeper=optuna`: a sweep whose trials Optuna draws, from the search space that the overrides write down.

As captionary.py, it imports what takes long, and this project, where it is used.
"""

import copy
import logging
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write

log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """Runs trials until the study has as many as it is to have.

    Args:
        params: what varies, unless the command line says so.
        study_name: the study; None: as a run would be called.
        storage: an SQLite file, a journal (`*.log`) or a database's URL.
        direction: `maximize` or `minimize`; None: the one of the checkpoint's score.
        n_trials: of the whole study.
        n_jobs: handed to the launcher at once.
        sampler, pruner: Optuna's, their configs.
        trial: None; the number of its trial where a job reads this config.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        study_name: str | None,
        storage: str,
        direction: str | None,
        n_trials: int,
        n_jobs: int,
        sampler: DictConfig,
        pruner: DictConfig,
        trial: int | None = None,
    ) -> None:
        self.params, self.study_name, self.storage, self.direction = params, study_name, storage, direction
        self.n_trials, self.n_jobs, self.sampler, self.pruner = n_trials, n_jobs, sampler, pruner

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from src.config import plain, run_name
        from src.trials import monitored, storage_file, written

        HydraConfig.instance().set_config(copy.deepcopy(config))  # a name may ask for it; the one that is set is locked
        self.config, self.hydra_context = config, hydra_context
        self.study_name = self.study_name or run_name()
        self.monitor, mode = monitored(plain(config, resolve=False))
        self.direction = self.direction or ("minimize" if mode == "min" else "maximize")
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.sweep.dir = self.folder = _own_folder(Path(config.hydra.sweep.dir))
            config.hydra.overrides.hydra += [  # the jobs compose their own config
                written("hydra.sweep.dir", self.folder),
                written("hydra.sweeper.study_name", self.study_name),
                written("hydra.sweeper.storage", storage_file(self.storage) or self.storage),
            ]
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that the study still needs, and write its report."""
        from src.config import plain
        from src.runs import flat
        from src.studies import write_page
        from src.trials import KILLED, finish, lines, open_study, search_space, take, working

        assert self.hydra_context and self.config and self.study_name and self.direction
        parser = OverridesParser.create(self.hydra_context.config_loader)
        given = parser.parse_overrides(arguments)
        keys = {each.key_or_group for each in given}
        more = parser.parse_overrides([f"{key}={value}" for key, value in flat(plain(self.params)).items()])
        overrides = [*given, *(each for each in more if each.key_or_group not in keys)]
        space = search_space(overrides)
        fixed = [str(each.input_line) for each in overrides if not each.is_sweep_override()]
        command = f"python -m src.{self.config.hydra.job.name}"
        where = self.storage, self.study_name, self.direction
        try:
            study = open_study(*where, self.monitor, space, fixed, command, self.pruner)
        except ValueError as error:  # a storage that is none, or a study of something else
            sys.exit(f"error: {error}")
        done = 0
        with working(self.storage) as worker:
            while trials := take(study, self.storage, space, worker, self.sampler, self.n_trials, self.n_jobs):
                jobs = {
                    trial.number: [
                        *(*fixed, *lines(trial, space)),
                        *(f"hydra.sweeper.trial={trial.number}", f"hydra.sweep.subdir={trial.number}"),
                    ]
                    for trial in trials
                }
                legal = {}
                for number, job in jobs.items():
                    try:
                        self.validate_batch_is_legal([job])
                        legal[number] = job
                    except Exception as error:  # choices that do not go together
                        finish(study, number, None, str(error).strip().splitlines()[0])
                scores = self._launch(legal, done) if legal else {}
                for number in legal:
                    finish(study, number, *scores.get(number, (None, KILLED)))
                done += len(jobs)
        page = Path(self.folder) / "study.html"
        print("\n" + write_page(study, page, self.storage), flush=True)

    def _launch(self, jobs: Mapping[int, Sequence[str]], first: int) -> dict[int, tuple[Any, str | None]]:
        """Scores and errors of those that came back, by their trials.

        A job that says by itself how its trial ended has done so before.
        """
        from src.runs import sentence
        from src.sweeps import NOTE, fail_running_jobs, note_start
        from src.trials import KILLED

        def launch(numbers: Sequence[int], first: int) -> dict[int, tuple[Any, str | None]]:
            assert self.launcher
            try:
                returned = self.launcher.launch([jobs[number] for number in numbers], initial_job_idx=first)
            except Exception as error:
                folders = {number: Path(self.folder) / str(number) for number in numbers}
                if not any((folder / NOTE).exists() for folder in folders.values()) and not _was_submitted(error):
                    raise  # nothing can be launched
                log.error("%s", sentence(error).splitlines()[0])
                for number, folder in folders.items():  # the others have said how they ended
                    if not (folder / NOTE).exists():
                        note_start(folder, [line for line in jobs[number] if not line.startswith("hydra.")])
                    fail_running_jobs(str(folder), KILLED)
                return {}
            found: dict[int, tuple[Any, str | None]] = {}
            for number, job in zip(numbers, returned, strict=True):
                try:
                    found[number] = (job.return_value, None)
                except Exception as error:  # the job's own
                    found[number] = (None, sentence(error))
            return found

        # A cluster's launcher gives up a whole array where one of its jobs is killed: there each is one of its own.
        if not any("submitit" in kind.__module__ for kind in type(self.launcher).__mro__):
            return launch(list(jobs), first)
        with ThreadPoolExecutor(len(jobs)) as pool:
            parts = pool.map(launch, [[number] for number in jobs], range(first, first + len(jobs)))
            return {number: end for part in parts for number, end in part.items()}


def _was_submitted(error: Exception) -> bool:
    """Whether a job was in a cluster's queue, and was cancelled there; not one that failed before it could say
    anything, as all would."""
    try:
        from submitit.core.utils import FailedJobError, UncompletedJobError
    except ImportError:
        return False
    return isinstance(error, UncompletedJobError) and not isinstance(error, FailedJobError)


def _own_folder(folder: Path) -> str:
    """Make this folder, or where another call has just made it, one beside it."""
    for number in range(1, 1000):
        mine = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            mine.mkdir(parents=True)
            return str(mine)
        except FileExistsError:
            continue
    raise ValueError(f"{folder} and a thousand beside it are there: give hydra.sweep.dir=FOLDER")
