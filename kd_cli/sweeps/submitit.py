"""What runs the points of `hydra/launcher=submitit_local` and `submitit_slurm`, by the options of Hydra's plugin."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from kd_cli.errors import ConfigError, KDError
from kd_cli.machine import available_cores, given_threads
from kd_cli.sweeps.fork_server import stop_blocked
from kd_cli.sweeps.jobs import Job
from kd_cli.sweeps.point import Point, failed

_POLL_SECONDS = 0.2
_LOCAL_NOTICE = 30  # seconds before the end, of submitit on this machine


class Submitit:
    """A job for each point: a process of this machine, or a job of a Slurm cluster.

    Args:
        name: of the launcher.
        options: `hydra.launcher`.

    Attributes:
        local: on this machine; the points end when the sweep does.
        minutes: that a job has.

    Raises:
        ConfigError: options that are not possible here.
    """

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self.name, self._cluster, self._options = name, name.partition("_")[2], options
        self.local = self._cluster == "local"
        if not self.local and shutil.which("sbatch") is None:
            raise ConfigError(
                f"hydra/launcher={name} needs Slurm, and there is no sbatch here: start kd on a machine of the cluster "
                "that can submit jobs, or type hydra/launcher=submitit_local, which runs the points on this machine"
            )
        if (options["nodes"], options["tasks_per_node"]) != (1, 1):
            raise ConfigError("hydra.launcher.nodes and tasks_per_node must be 1: a point runs in one process")
        self.minutes, notice = options["timeout_min"], options.get("signal_delay_s", _LOCAL_NOTICE)
        if 60 * self.minutes <= notice:
            raise ConfigError(
                f"hydra.launcher.timeout_min: {self.minutes} is not possible: a point saves what it has {notice} "
                "seconds before the end; type hydra.launcher.timeout_min=60"
            )

    def divide(self, points: int) -> tuple[int, int | None]:
        """How many points run at the same time, and the threads of each; None: known only where they run."""
        threads = self._options["cpus_per_task"]
        if self.local:
            return points, threads or given_threads() or max(1, available_cores() // points)
        return min(points, self._options["array_parallelism"]), threads

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Point]]:
        """What came of each job, with its place among them, in any order."""
        executor = self._executor()
        with stop_blocked() if self.local else nullcontext(), executor.batch():
            handed = [executor.submit(job) for job in jobs]
        submitted = dict(enumerate(handed))
        while submitted:
            done = [number for number, job in submitted.items() if job.done()]
            for number in done:
                yield number, _outcome(jobs[number], submitted.pop(number))
            if not done:
                time.sleep(_POLL_SECONDS)

    def _executor(self) -> Any:
        import submitit
        from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

        shared = BaseQueueConf.__dataclass_fields__
        options = {key if key in shared else f"{self._cluster}_{key}": value for key, value in self._options.items()}
        folder, retries = options.pop("submitit_folder"), f"{self._cluster}_max_num_timeout"
        at_start = {retries: options.pop(retries, 0)}  # submitit's own default on this machine is 3
        try:
            executor = submitit.AutoExecutor(folder, self._cluster, **at_start)
            executor.update_parameters(**options)
        except (AssertionError, NameError, TypeError, ValueError) as error:
            raise ConfigError(f"hydra.launcher: {error}") from error
        return executor


def _outcome(job: Job, submitted: Any) -> Point:
    try:
        point: Point = submitted.result()
        return point
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        text = f"its job {submitted.job_id} ended without a result: {lines[-1] if lines else type(error).__name__}"
        return failed(job.work.label, KDError(f"{text}\n{submitted.paths.stderr} may say more"))
