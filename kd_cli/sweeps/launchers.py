"""What starts the points of a sweep, as plugins of Hydra: `hydra/launcher=…` and `hydra/sweeper=optuna`."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from kd_cli.config.alike import Alike, Pattern, Patterns
from kd_cli.config.compose import reference
from kd_cli.config.hydra_checks import check_hydra
from kd_cli.config.overrides import words_of
from kd_cli.config.search_path import SUBMITIT
from kd_cli.errors import ConfigError, suggest
from kd_cli.machine import available_cores, given_threads, has_cuda_driver
from kd_cli.storage.files import without_empty_folders
from kd_cli.sweeps.fork_server import start_server
from kd_cli.sweeps.jobs import run_jobs
from kd_cli.sweeps.points import Place, Run, place_of
from kd_cli.sweeps.processes import run_points
from kd_cli.sweeps.search.sweeper import OptunaSweeper
from kd_cli.sweeps.share import Share, ask_devices, check_n_jobs, divide
from kd_cli.sweeps.submitit import Submitit

_PACKAGE, _NAME = "hydra_plugins", "kd_cli"  # Hydra starts no launcher that is called otherwise


class ProcessLauncher(Launcher):
    """Runs points of a sweep at the same time where there are cores for it, else one after the other in this process.

    Args:
        n_jobs: how many at the same time; None: as many as there are cores, or as the memory of the GPUs takes.
    """

    __module__ = f"{_PACKAGE}.{_NAME}"

    def __init__(self, n_jobs: Any = None) -> None:
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Raises a ConfigError if `n_jobs` is not possible."""
        check_n_jobs(self.n_jobs)
        self.config, self.batches = config, Batches(hydra_context, task_function, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """See Batches."""
        if self.batches.task.writes and len(job_overrides) > 1 and self.n_jobs != 1:
            start_server()
        return self.batches.launch(job_overrides, initial_job_idx, self._apart)

    def _apart(self, points: Sequence[Place]) -> Run | None:
        share = self._divide(len(points))
        return None if share.here else lambda works, first: run_points(works, share, first)

    def at_once(self, points: int) -> int:
        """How many of so many points run at the same time."""
        share = self._divide(points)
        if share.at_once is None:  # a search that asks for all of them would learn nothing
            return min(points, available_cores())
        return min(points, max(share.processes, share.at_once))

    def _divide(self, points: int) -> Share:
        ask, cuda = partial(ask_devices, str(self.config.device)), has_cuda_driver()
        return divide(points, self.n_jobs, ask, cores=available_cores(), threads=given_threads(), cuda=cuda)


class SubmititLauncher(Launcher):
    """Runs points of a sweep by submitit: the options of its Hydra plugin, and our processes.

    The plugin itself would lose all results with the first process that dies.
    """

    __module__ = f"{_PACKAGE}.{_NAME}"

    def __init__(self, **options: Any) -> None:
        self.options = {key: _plain(value) for key, value in options.items()}

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Raises a ConfigError if the options are not possible."""
        self.submitit = Submitit(config.hydra.runtime.choices["hydra/launcher"], self.options)
        self.batches = Batches(hydra_context, task_function, config, send_patterns=False)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """See Batches."""
        return self.batches.launch(job_overrides, initial_job_idx, self._apart)

    def _apart(self, points: Sequence[Place]) -> Run:
        task = self.batches.task
        return partial(run_jobs, self.submitit, task.open(points[0].sweep), detach=task.detach)

    def at_once(self, points: int) -> int:
        """How many of so many points a search asks for together: a queue takes any number, and would learn nothing."""
        return min(points, available_cores())


class RayLauncher(Launcher):
    """Runs points of a sweep as tasks of Ray.

    Args:
        options: of Cluster.
    """

    __module__ = f"{_PACKAGE}.{_NAME}"

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Raises a ConfigError if the options are not possible."""
        from kd_cli.sweeps.ray_cluster import Cluster

        self.cluster = Cluster(self.options)
        self.batches = Batches(hydra_context, task_function, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """See Batches."""
        return self.batches.launch(job_overrides, initial_job_idx, self._apart)

    def _apart(self, points: Sequence[Place]) -> Run:
        from kd_cli.sweeps.ray import run_on_ray

        self.cluster.open(points[0].sweep)
        return partial(run_on_ray, self.cluster)

    def at_once(self, points: int) -> int:
        """How many of so many points run at the same time."""
        return min(points, self.cluster.at_once)

    def close(self) -> None:
        """Ends what was started."""
        self.cluster.close()


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


class Batches:
    """Composes the points of a sweep, batch by batch, and has them run; what comes of them is with the task.

    Args:
        task: a Points.
        send_patterns: whether a point that runs apart is given what its command line is alike.
    """

    def __init__(self, context: Any, task: Any, config: Any, *, send_patterns: bool = True) -> None:
        loader, name = context.config_loader, config.hydra.job.config_name
        self.task, self._context = task, context
        self._composed = Alike(loader, partial(loader.load_sweep_config, config))
        alone = partial(loader.load_configuration, name, run_mode=RunMode.RUN)
        patterns = Patterns(loader, lambda words: alone(overrides=words), reference)
        self._pattern: Callable[[Sequence[str]], Pattern | None] = patterns if send_patterns else lambda _: None

    def launch(
        self, job_overrides: Sequence[Sequence[str]], first: int, apart: Callable[[Sequence[Place]], Run | None]
    ) -> list[JobReturn]:
        """Looks at all points of a batch, and runs them if nothing is wrong.

        Args:
            first: how many points earlier batches had.
            apart: gives what runs them in processes of their own; None: they run here, one after the other.

        Returns:
            What Hydra wants to have; no results.

        Raises:
            Exception: whatever Hydra raises of a wrong one.
        """
        setup_globals()
        points = self._look(job_overrides, first)
        run = apart(points) if self.task.writes else None
        if run is None:
            return self._run_here(job_overrides, first)
        self.task.run_apart(points, run, self._pattern)
        return [JobReturn(status=JobStatus.COMPLETED) for _ in points]

    def _look(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Place]:
        found = []
        for number, words in enumerate(job_overrides, first):
            point = self._compose(words, number)
            check_hydra(point.hydra)
            found.append(place_of(point.hydra))
        return found

    def _run_here(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        done = []
        for number, words in enumerate(job_overrides, first):
            point = copy.deepcopy(self._compose(words, number))  # Hydra writes into it
            with without_empty_folders(place_of(point.hydra).folder):
                done.append(run_job(self.task, point, "hydra.sweep.dir", "hydra.sweep.subdir", self._context))
        return done

    def _compose(self, words: Sequence[str], number: int) -> Any:
        point = self._composed(words)
        with open_dict(point):
            point.hydra.job.id = point.hydra.job.num = number
        return point


def start_sweep(context: Any, task: Any, config: Any) -> None:
    """Has Hydra's sweeper and launcher call the task for every point, or run the points apart."""
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    size = config.hydra.sweeper.get("max_batch_size")
    if size is not None and (type(size) is not int or size < 1):
        raise ConfigError(f"hydra.sweeper.max_batch_size: {size!r} is not possible; type a whole number ≥ 1, or null")
    if task.detach:
        _check_detached(config.hydra)
    sweeper = Plugins.instance().instantiate_sweeper(hydra_context=context, task_function=task, config=config)
    vars(sweeper)["validate_batch_is_legal"] = lambda _: None  # it composes every point; so do our launchers, first
    words = words_of(config.hydra)["task"]  # a key that varies is each point's own
    launcher: Any = sweeper.launcher
    with closing(launcher) if isinstance(launcher, RayLauncher) else nullcontext():
        sweeper.sweep(words)


def _check_detached(hydra: Any) -> None:
    """Raises a ConfigError where nobody but this process would go on with the points."""
    if hydra.runtime.choices["hydra/launcher"] not in SUBMITIT:
        raise ConfigError(
            "--detach needs a launcher whose jobs go on without this command: type hydra/launcher=submitit_slurm on a "
            "cluster, or hydra/launcher=submitit_local for jobs of this machine"
        )
    if hydra.runtime.choices["hydra/sweeper"] != "basic":
        raise ConfigError("--detach is not possible with a search, which learns from each point; leave --detach out")
    if hydra.sweeper.get("max_batch_size") is not None:
        raise ConfigError(
            "--detach submits all points at once, and hydra.sweeper.max_batch_size waits for each batch; leave it out "
            "(of Slurm, hydra.launcher.array_parallelism=2 runs two points at a time)"
        )


def check_launcher(name: str) -> None:
    """Raises a ConfigError if there is no `hydra/launcher` of that name, or if it needs what is not installed."""
    if name == "joblib":
        raise ConfigError(
            "hydra/launcher=joblib is not possible: kd's own launcher runs points in processes of this machine; type "
            "hydra/launcher=process hydra.launcher.n_jobs=2, or how many points are to run at the same time"
        )
    known = ("process", "basic", *SUBMITIT, "ray")
    if name not in known:
        raise ConfigError(f"hydra/launcher: there is no launcher {name!r}{suggest(name, known)}")
    missing = {
        each: "slurm" for each in SUBMITIT if f"{each}.yaml" not in ConfigStore.instance().list("hydra/launcher")
    }
    if getattr(find_spec("ray"), "origin", None) is None:  # a folder of that name is none
        missing["ray"] = "ray"
    if name in missing:
        raise ConfigError(
            f"hydra/launcher={name} needs a package that is not installed: pip install 'kd-cli[{missing[name]}]'; "
            "hydra/launcher=process needs none and runs as many points at a time as there are cores"
        )


def install_launchers() -> None:
    """Makes Hydra know our launchers and the sweeper; it looks them up by name in its own package of plugins."""
    if f"{_PACKAGE}.{_NAME}" in sys.modules:
        return
    for plugin in (ProcessLauncher, SubmititLauncher, RayLauncher, OptunaSweeper):
        Plugins.instance().register(plugin)
    try:
        package = importlib.import_module(_PACKAGE)
    except ImportError:  # it is there only if another plugin is installed
        package = sys.modules[_PACKAGE] = ModuleType(_PACKAGE)
        package.__path__ = []
    sys.modules[f"{_PACKAGE}.{_NAME}"] = sys.modules[__name__]
    setattr(package, _NAME, sys.modules[__name__])
