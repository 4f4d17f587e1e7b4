"""kd distill: train a student with a teacher that is there already."""

from __future__ import annotations

from typing import Any

from kd_cli.config.base import Config, Launch
from kd_cli.launch.hydra_command import hydra_command, present_one

PANEL = "Experiments"


def job(config: Config, launch: Launch) -> dict[str, Any]:
    """Train a student with a teacher that is there already."""
    from kd_cli.experiments import experiment

    return experiment.distill(config, launch)


command = hydra_command("distill", "Train a student with a teacher that is there already.", job, present_one)
