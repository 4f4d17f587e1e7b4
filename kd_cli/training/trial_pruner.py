"""Trials of a search: where they are kept, and how a training asks after each epoch whether its trial is hopeless."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any

from kd_cli.config.recipe import Recipe, score_of, score_text
from kd_cli.errors import ConfigError, Pruned

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.study import Study
    from optuna.trial import Trial

OLDEST = 5  # version of Optuna, as in pyproject.toml
_PATIENCE = 60  # seconds to wait for another process that writes to the same SQLite file


def check_installed() -> None:
    """Raises a ConfigError if Optuna is not there, or too old."""
    remedy = "type pip install 'kd-cli[optuna]'"
    try:
        found = metadata.version("optuna")
    except metadata.PackageNotFoundError:
        raise ConfigError(f"hydra/sweeper=optuna needs Optuna; {remedy}") from None
    if int(found.partition(".")[0]) < OLDEST:
        raise ConfigError(
            f"hydra/sweeper=optuna needs Optuna {OLDEST} or newer, and {found} is installed; {remedy}. "
            "Hydra's own plugin keeps it below 3, and kd does not use that: pip uninstall hydra-optuna-sweeper first"
        )


@contextmanager
def opened_study(storage: str, name: str) -> Iterator[Study]:
    """A search in its storage, made if it is not there yet.

    Args:
        storage: SQLAlchemy's URL: `sqlite:///outputs/optuna.db`.

    Raises:
        ConfigError: Optuna is not installed, or the storage cannot be opened.
    """
    check_installed()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # kd says what happens
    options = {"connect_args": {"timeout": _PATIENCE}} if storage.startswith("sqlite") else {}
    try:
        kept = optuna.storages.RDBStorage(storage, engine_kwargs=options)
    except Exception as error:  # SQLAlchemy has many kinds
        raise ConfigError(
            f"hydra.sweeper.storage: it cannot be opened ({str(error).splitlines()[0]}); "
            "type hydra.sweeper.storage=sqlite:///FILE, or null: a file in the sweep's folder"
        ) from error
    try:
        yield optuna.create_study(storage=kept, study_name=name, direction="maximize", load_if_exists=True)
    finally:
        kept.remove_session()
        kept.engine.dispose()


def make_pruner(pruner: str, n_startup_trials: int, n_warmup_epochs: int) -> BasePruner:
    """none, median, hyperband or successive_halving."""
    from optuna import pruners

    if pruner == "median":
        return pruners.MedianPruner(n_startup_trials, n_warmup_steps=n_warmup_epochs + 1)
    if pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=n_warmup_epochs + 1)
    if pruner == "successive_halving":
        return pruners.SuccessiveHalvingPruner(min_resource=n_warmup_epochs + 1)
    return pruners.NopPruner()


def address(storage: str, study: str, trial_id: int, pruner: Mapping[str, Any]) -> str:
    """What the variable `TRIAL` holds: all that a process needs to find its trial."""
    return json.dumps({"storage": storage, "study": study, "trial": trial_id, "pruner": dict(pruner)})


def without_password(storage: str) -> str:
    """A storage's URL as it may be shown."""
    from sqlalchemy.engine import make_url

    return make_url(storage).render_as_string(hide_password=True)


class Pruner:
    """Follows a training for its trial, and ends it where the trials before it were better.

    Args:
        address: of the trial.
        recipe: of the training; after its last epoch there is nothing to save.
    """

    def __init__(self, address: str, recipe: Recipe) -> None:
        self._where, self._epochs, self._select_by = json.loads(address), recipe.epochs, recipe.select_by
        self._open = ExitStack()

    def begin(self, records: Sequence[Mapping[str, float]]) -> None:
        from optuna.trial import Trial

        study = self._open.enter_context(opened_study(self._where["storage"], self._where["study"]))
        study.pruner = make_pruner(**self._where["pruner"])
        self._trial = Trial(study, self._where["trial"])
        for record in records:
            self._report(record)

    def epoch(self, record: Mapping[str, float]) -> None:
        self._report(record)
        epoch = int(record["epoch"])
        if epoch < self._epochs and self._trial.should_prune():
            raise Pruned(
                f"pruned after epoch {epoch} of {self._epochs}, at {score_text(record, self._select_by)} "
                f"(hydra.sweeper.pruner={self._where['pruner']['pruner']})",
                val_top1=record["val_top1"],
            )

    def finish(self, result: Mapping[str, Any]) -> None:
        """The search takes the result from the point's record."""

    def close(self, status: str) -> None:  # noqa: ARG002 - of the protocol
        self._open.close()

    def _report(self, record: Mapping[str, float]) -> None:
        """Epochs that an earlier process has reported are known."""
        trial: Trial = self._trial
        known = trial.storage.get_trial(trial._trial_id).intermediate_values
        if int(record["epoch"]) not in known:
            trial.report(score_of(record, self._select_by), int(record["epoch"]))
