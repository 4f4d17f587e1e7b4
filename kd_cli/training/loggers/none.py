"""No logger: the run's folder has its numbers anyway."""

from __future__ import annotations

from kd_cli.training.loggers.base import LOGGERS


@LOGGERS.register("none")
def none() -> None:
    """Nothing follows the training."""
