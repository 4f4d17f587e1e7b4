"""What runs the points of `hydra/launcher=submitit_local` and `submitit_slurm`, by the options of Hydra's plugin."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kd_cli.errors import ConfigError, KDError
from kd_cli.machine import available_cores, given_threads
from kd_cli.sweeps.fork_server import stop_blocked
from kd_cli.sweeps.jobs import Job
from kd_cli.sweeps.point import KEPT, Point, failed, outcome_file, recorded_point
from kd_cli.sweeps.queue import DIED, is_over, job_name, longest_array, states, status
from kd_cli.sweeps.worker import Work

_POLL_SECONDS = 0.2
_QUEUE_SECONDS = 5.0  # between two questions to Slurm, which others ask, too; a result is a file, and seen at once
_RESULT_SECONDS = 10.0
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
        self._handed: list[Any] = []  # submitit's; Python would complain of processes that nobody has any more
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

    def has(self, job: str) -> bool:
        """Whether a job, by its name on record, is one of this queue."""
        return job.startswith(f"{self._cluster} ")

    def submit(
        self, jobs: Sequence[Job], note: Callable[[Sequence[str]], object], *, lasting: bool
    ) -> tuple[list[str], Exception | None]:
        """Hands jobs over, of Slurm in as few arrays as it takes; they share what may run at the same time.

        Args:
            note: records the names of the first jobs, by which `outcomes` finds them; no request to stop comes between.
            lasting: they outlive this process.

        Returns:
            The names of the first jobs; why those behind them were not taken.
        """
        arrays, names = self._arrays(jobs), list[str]()
        for array in arrays:
            executor = self._executor(len(arrays))
            with background() if self.local and lasting else stop_blocked():
                try:
                    with executor.batch():
                        handed = [executor.submit(job) for job in array]
                except Exception as error:  # a queue takes no more of this user, or is not there any more
                    return names, error
                self._handed += handed
                names += [job_name(self._cluster, str(job.job_id)) for job in handed]
                if lasting:
                    note(names)
        return names, None

    def _arrays(self, jobs: Sequence[Job]) -> list[Sequence[Job]]:
        if not jobs:
            return []
        most = len(jobs) if self.local else longest_array() or len(jobs)
        count = math.ceil(len(jobs) / most)
        return [jobs[number * len(jobs) // count : (number + 1) * len(jobs) // count] for number in range(count)]

    def outcomes(self, works: Sequence[Work], jobs: Mapping[int, str], *, wait: bool) -> Iterator[tuple[int, Point]]:
        """What came of each job that is over, with its number, in any order.

        Args:
            works: all points.
            jobs: the number of a point → the name of its job on record.
            wait: until all are over; otherwise those that are not are `queued` or `running`.
        """
        left = {number: self._job(name) for number, name in jobs.items()}
        asked, said = -math.inf, dict[str, str]()
        while left:
            if time.monotonic() >= asked + (_POLL_SECONDS if self.local else _QUEUE_SECONDS):
                asked, said = time.monotonic(), states(jobs[number] for number in left)
                if not self.local:
                    _wait_for_results(job for number, job in left.items() if is_over(said.get(jobs[number])))
            ended = [(each, _outcome(works[each], job, said.get(jobs[each]))) for each, job in left.items()]
            found = {number: point for number, point in ended if point is not None}
            yield from found.items()
            left = {number: job for number, job in left.items() if number not in found}
            if not wait:
                yield from (
                    (each, {"point": works[each].label, "status": status(said.get(jobs[each]))}) for each in left
                )
                return
            if not found:  # of thousands each is looked at less often: a shared file system has other users
                time.sleep(_POLL_SECONDS * max(1, len(left) // 100))

    def _job(self, name: str) -> Any:
        import submitit

        kind = submitit.LocalJob if self.local else submitit.SlurmJob
        return kind(self._options["submitit_folder"], name.split()[1])

    def _executor(self, arrays: int) -> Any:
        """What submits so many arrays of jobs."""
        import submitit
        from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

        shared = BaseQueueConf.__dataclass_fields__
        given = dict(self._options)
        if arrays > 1:
            given["array_parallelism"] = max(1, given["array_parallelism"] // arrays)
        options = {key if key in shared else f"{self._cluster}_{key}": value for key, value in given.items()}
        folder, retries = options.pop("submitit_folder"), f"{self._cluster}_max_num_timeout"
        at_start = {retries: options.pop(retries, 0)}  # submitit's own default on this machine is 3
        try:
            executor = submitit.AutoExecutor(folder, self._cluster, **at_start)
            executor.update_parameters(**options)
        except (AssertionError, NameError, TypeError, ValueError) as error:
            raise ConfigError(f"hydra.launcher: {error}") from error
        return executor


@contextmanager
def background() -> Iterator[None]:
    """What is started meanwhile outlives the terminal, and holds no end of a pipe that somebody reads from."""
    sys.stdout.flush()
    kept = [os.dup(number) for number in range(3)]
    nothing = os.open(os.devnull, os.O_RDWR)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for number in range(3):
            os.dup2(nothing, number)
        yield
    finally:
        signal.signal(signal.SIGHUP, hangup)
        for number, handle in enumerate(kept):
            os.dup2(handle, number)
        for handle in (*kept, nothing):
            os.close(handle)


def _wait_for_results(jobs: Iterable[Any]) -> None:
    """A shared file system may show a file only some seconds after another machine wrote it."""
    records = [outcome_file(job.paths) for job in jobs if job.paths.stderr.exists()]
    end = time.monotonic() + _RESULT_SECONDS
    while not all(record.exists() for record in records) and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)


def _outcome(work: Work, job: Any, state: str | None) -> Point | None:
    """None: it is not over. A cluster that takes a machine away ends a job and starts it again, later."""
    point = recorded_point(work, outcome_file(job.paths))
    if point is not None and point["status"] != "interrupted":
        return point
    if not is_over(state):
        return None
    silent = point is None and job.paths.stderr.exists() and state != "CANCELLED"
    if silent or state in DIED:  # what it said when it was interrupted before is no news
        return _failed(work, job, str(state))
    kept = KEPT.partition("; ")[2] if (work.folder / "run.json").exists() else "it had not begun"
    text = f"its job {job.job_id} was cancelled (by scancel, or by whoever runs the cluster); {kept}"
    return {"point": work.label, "status": "cancelled", "error": text, "exit_code": KDError.exit_code}


def _failed(work: Work, job: Any, state: str) -> Point:
    lines = [line for line in (job.stderr() or "").splitlines() if line.strip()]
    why = lines[-1] if lines else "it said nothing; its folder must be on a file system that its machine sees"
    text = f"its job {job.job_id} ended without a result ({state}): {why}"
    return failed(work.label, KDError(f"{text}\n{job.paths.stderr} may say more"))
