"""`hydra/sweeper=optuna`: from the command line's overrides to a search, whose points the launcher runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf

from kd_cli import console
from kd_cli.config.overrides import override_key
from kd_cli.errors import ConfigError
from kd_cli.seeds import derive_seed
from kd_cli.sweeps.point import Point
from kd_cli.sweeps.points import sweep_folder
from kd_cli.sweeps.search.options import Options
from kd_cli.training.trial_pruner import check_installed, opened_study

if TYPE_CHECKING:
    from kd_cli.sweeps.search.space import Axis


class OptunaSweeper(Sweeper):
    """Searches for the options with the best validation accuracy.

    Args:
        params: what a preset says to search; it is among the arguments of `sweep` already.
        options: see Options.
    """

    __module__ = "hydra_plugins.kd_cli"  # Hydra starts no sweeper that is called otherwise

    def __init__(self, params: Any, **options: Any) -> None:  # noqa: ARG002 - Hydra gives all of hydra.sweeper
        self._given = options
        self.config: Any = None
        self.launcher: Any = None

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Raises a ConfigError if an option is not possible or Optuna is not installed."""
        check_installed()
        self.options = Options(**self._given)
        if not task_function.writes:
            raise ConfigError(
                "hydra/sweeper=optuna needs an accuracy, and there is none without training; leave it and -m out"
            )
        self.loader, self.task, self.config = hydra_context.config_loader, task_function, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Hydra gets no results: what came of the points, and what was found, is with the task.

        Raises:
            ConfigError: a search that is not possible; nothing was run.
        """
        from kd_cli.sweeps.search.study import Search, default_name

        for point in self.task.unknown:
            raise ConfigError(point["error"])
        axes, fixed = self._read(arguments)
        self._check(axes, fixed)
        folder = sweep_folder(self.config.hydra)
        self.task.open(folder)
        storage = self.options.storage or f"sqlite:///{folder / 'optuna.db'}"
        name = self.options.study_name or default_name(axes, fixed)
        with opened_study(storage, name) as study:
            seed = derive_seed(self.config.seed, "search") if self.options.seed is None else self.options.seed
            owner = "this folder" if self.options.storage is None else str(folder)  # which may be moved
            search = Search(study, self.options, axes, fixed, storage=storage, folder=folder, owner=owner, seed=seed)
            self.task.records[:] = search.points
            try:
                search.run(self._start, self._at_once())
            finally:
                self.task.records[:] = search.points
                self.task.found = search.summary(self.task.command_for)

    def _read(self, arguments: Sequence[str]) -> tuple[list[Axis], list[str]]:
        """What is searched, and the overrides that all points share."""
        from kd_cli.sweeps.search.space import read_axes

        parsed = OverridesParser.create(self.loader).parse_overrides(list(arguments))
        overrides = list({override.key_or_group: override for override in parsed}.values())  # the last one wins
        axes = read_axes(overrides, self.loader.get_group_options)
        if not axes:
            raise ConfigError(
                "hydra/sweeper=optuna: nothing is searched; type what each option may be, "
                "'loss.temperature=interval(1,20)' or loss=choice(kd,dkd)"
            )
        if any(axis.key == "seed" for axis in axes):
            console.notice("the best of several seeds is the luckiest, not a better choice; leave seed out of a search")
        return axes, [str(override.input_line) for override in overrides if not override.is_sweep_override()]

    def _check(self, axes: Sequence[Axis], fixed: Sequence[str]) -> None:
        """Composes a point for every choice of a group: what is wrong is said before anything is run."""
        for axis in axes:
            axis.check_kind(OmegaConf.select(self.config, override_key(axis.key)))
        for point in self._examples(axes):
            config = self.loader.load_sweep_config(self.config, [*fixed, *point])
            if not config.dataset.val_fraction:
                raise ConfigError(
                    "hydra/sweeper=optuna compares accuracies on validation images, and dataset.val_fraction is 0; "
                    "type dataset.val_fraction=0.1"
                )

    def _examples(self, axes: Sequence[Axis]) -> Iterator[list[str]]:
        first = {axis.key: axis.first for axis in axes}
        yield list(first.values())
        for axis in axes:
            if self.loader.get_group_options(override_key(axis.key).partition("@")[0]):
                yield from ([*{**first, axis.key: word}.values()] for word in axis.words())

    def _start(self, points: Sequence[Sequence[str]]) -> Sequence[Point]:
        before = len(self.task.records)
        self.launcher.launch([list(point) for point in points], initial_job_idx=before)
        records: Sequence[Point] = self.task.records[before:]
        return records

    def _at_once(self) -> int:
        if self.options.n_jobs is not None:
            return self.options.n_jobs
        return int(self.launcher.at_once(self.options.n_trials))
