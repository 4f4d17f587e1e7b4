"""What runs the points of `hydra/launcher=joblib`, `submitit_local` and `submitit_slurm`, by their plugins' options."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kd_cli.errors import ConfigError, KDError
from kd_cli.machine import available_cores, given_threads
from kd_cli.sweeps.fork_server import no_main_module, stop_blocked
from kd_cli.sweeps.jobs import Errand, Library
from kd_cli.sweeps.point import Point, failed

EXTRAS = {"joblib": "sweep", "submitit_local": "slurm", "submitit_slurm": "slurm"}

_POLL_SECONDS = 0.2

Options = Mapping[str, Any]


def make_library(name: str, options: Options) -> Library:
    """What runs the points of `hydra/launcher=name`.

    Args:
        options: `hydra.launcher`.

    Raises:
        ConfigError: options that are not possible here.
    """
    return _Joblib(options) if name == "joblib" else _Submitit(name, options)


class _Joblib:
    """Processes on this machine that take one point after the other."""

    name, local, shares_devices = "joblib", True, True

    def __init__(self, options: Options) -> None:
        from joblib import effective_n_jobs

        whole = ("pre_dispatch", "batch_size", "max_nbytes")  # words to the plugin; joblib has words and numbers
        self._options = {key: _number(value) if key in whole else value for key, value in options.items()}
        self._options["backend"] = "loky"  # Hydra does not work in threads
        try:
            self._n_jobs = effective_n_jobs(options["n_jobs"])
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"hydra.launcher.n_jobs: {options['n_jobs']!r} is not possible; type how many points run at the same "
                "time, a whole number ≥ 1, or -1: as many as there are cores"
            ) from error

    def divide(self, points: int) -> tuple[int, int | None]:
        at_once = min(points, self._n_jobs)
        return at_once, given_threads() or max(1, available_cores() // at_once)

    def run(self, errands: Sequence[Errand]) -> Iterator[tuple[int, Point]]:
        from joblib import Parallel, delayed
        from joblib.externals.loky.backend import resource_tracker

        resource_tracker.ensure_running()  # it would unblock the signals
        with stop_blocked(), no_main_module():
            calls = [delayed(_numbered)(errand) for errand in errands]
            results = Parallel(**self._options, return_as="generator_unordered")(calls)
        yield from results


def _numbered(errand: Errand) -> tuple[int, Point]:
    return errand.number, errand()


def _number(value: Any) -> Any:
    return int(value) if str(value).isdecimal() else value


class _Submitit:
    """A job for each point: a process of this machine, or a job of a Slurm cluster."""

    shares_devices = False

    def __init__(self, name: str, options: Options) -> None:
        self.name, self._cluster, self._options = name, name.partition("_")[2], options
        self.local = self._cluster == "local"
        if not self.local and shutil.which("sbatch") is None:
            raise ConfigError(
                f"hydra/launcher={name} needs Slurm, and there is no sbatch here: start kd on a machine of the cluster "
                "that can submit jobs, or type hydra/launcher=submitit_local, which runs the points on this machine"
            )
        if (options["nodes"], options["tasks_per_node"]) != (1, 1):
            raise ConfigError("hydra.launcher.nodes and tasks_per_node must be 1: a point runs in one process")

    def divide(self, points: int) -> tuple[int, int | None]:
        threads = self._options["cpus_per_task"]
        if self.local:
            return points, threads or given_threads() or max(1, available_cores() // points)
        return min(points, self._options["array_parallelism"]), threads

    def run(self, errands: Sequence[Errand]) -> Iterator[tuple[int, Point]]:
        executor = self._executor()
        if self.local:
            with stop_blocked():
                jobs = _submit(executor, errands)
        else:
            jobs = _submit(executor, errands)
        while jobs:
            done = [number for number, job in jobs.items() if job.done()]
            for number in done:
                yield number, _outcome(errands[number], jobs.pop(number))
            if not done:
                time.sleep(_POLL_SECONDS)

    def _executor(self) -> Any:
        import submitit
        from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

        shared = BaseQueueConf.__dataclass_fields__
        options = {key if key in shared else f"{self._cluster}_{key}": value for key, value in self._options.items()}
        folder, retries = options.pop("submitit_folder"), f"{self._cluster}_max_num_timeout"
        at_start = {retries: options.pop(retries)} if retries in options else {}
        try:
            executor = submitit.AutoExecutor(folder, self._cluster, **at_start)
            executor.update_parameters(**options)
        except (AssertionError, NameError, TypeError, ValueError) as error:
            raise ConfigError(f"hydra.launcher: {error}") from error
        return executor


def _submit(executor: Any, errands: Sequence[Errand]) -> dict[int, Any]:
    with executor.batch():
        jobs = [executor.submit(errand) for errand in errands]
    return dict(enumerate(jobs))


def _outcome(errand: Errand, job: Any) -> Point:
    try:
        point: Point = job.result()
        return point
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        text = f"its job {job.job_id} ended without a result: {lines[-1] if lines else type(error).__name__}"
        return failed(errand.work.label, KDError(f"{text}\n{job.paths.stderr} may say more"))
