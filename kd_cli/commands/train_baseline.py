"""kd train-baseline: train a student without a teacher."""

from __future__ import annotations

from typing import Any

from kd_cli.config.base import Config, Launch
from kd_cli.launch.hydra_command import hydra_command, present_one

PANEL = "Experiments"


def job(config: Config, launch: Launch) -> dict[str, Any]:
    """Train a student without a teacher."""
    from kd_cli.experiments import experiment

    return experiment.train_baseline(config, launch)


command = hydra_command("train-baseline", "Train a student without a teacher.", job, present_one)
