"""`hydra/launcher=parallel`: Hydra's joblib launcher with as many workers as make sense, that outlives killed jobs.

Hydra takes launchers from the package `hydra_plugins` only, and imports all that is there whenever it starts, before
src/config.py is whole: what takes long, or needs that file, is imported where it is used.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
from joblib import cpu_count
from joblib.externals.loky.process_executor import TerminatedWorkerError
from omegaconf import open_dict, read_write


class ParallelLauncher(JoblibLauncher):
    """Runs a sweep's jobs in worker processes.

    Args:
        n_jobs: workers; None: one a GPU, or where there is none, one a CPU core. Never more than there are jobs.
        options: joblib.Parallel's.
    """

    def __init__(self, n_jobs: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.workers = n_jobs

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; those whose process was killed count as failed, and the others go on."""
        import torch

        from src.sweeps import fail_running_jobs
        from src.trials import KILLED

        assert self.config is not None
        wanted = self.workers or torch.cuda.device_count() or cpu_count()
        workers = self.joblib["n_jobs"] = min(wanted if wanted > 0 else cpu_count(), len(job_overrides))
        with read_write(self.config), open_dict(self.config):  # the jobs compose their own config: say it there too
            self.config.hydra.overrides.hydra.append(f"hydra.launcher.n_jobs={workers}")
        while True:
            try:
                return super().launch(job_overrides, initial_job_idx)
            except TerminatedWorkerError:
                why = f"{KILLED}, perhaps for want of memory: use fewer workers"
                if not fail_running_jobs(self.config.hydra.sweep.dir, why):  # it would be the same again
                    raise
