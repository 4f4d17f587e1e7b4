"""The options of a search, `hydra.sweeper`, checked without Optuna."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from kd_cli.errors import ConfigError
from kd_cli.registry import convert


@dataclass(frozen=True)
class Options:
    """`hydra.sweeper`.

    Args:
        n_trials: of the whole search, however often it is started again.
        sampler: tpe (models what was good), random, or grid (every point of a discrete space).
        seed: of the sampler; None: derived from the run's seed.
        n_startup_trials: random ones before tpe models anything, and complete ones before the median pruner ends any.
        pruner: which trainings are ended early.
        n_warmup_epochs: of every training, after which none is ended.
        n_jobs: trials that are asked for together; None: as many as the launcher runs at the same time.
        storage: SQLAlchemy's URL; None: optuna.db in the sweep's folder.
        study_name: None: made of what is searched.

    Raises:
        ConfigError: a value that is not possible.
    """

    n_trials: int = 20
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    seed: int | None = None
    n_startup_trials: int = 5
    pruner: Literal["none", "median", "hyperband", "successive_halving"] = "median"
    n_warmup_epochs: int = 1
    n_jobs: int | None = None
    storage: str | None = None
    study_name: str | None = None

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(Options).items():
            convert(getattr(self, name), hint, f"hydra.sweeper.{name}")
        for name, low in (("n_trials", 1), ("n_jobs", 1), ("n_startup_trials", 0), ("n_warmup_epochs", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"hydra.sweeper.{name}: {value} is not possible; it must be a whole number ≥ {low}")

    @property
    def pruning(self) -> Mapping[str, Any]:
        """The arguments of `make_pruner`."""
        return {key: getattr(self, key) for key in ("pruner", "n_startup_trials", "n_warmup_epochs")}
