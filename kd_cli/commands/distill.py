"""kd distill: train a student with a teacher that is there already."""

from __future__ import annotations

from kd_cli.launch.hydra_command import hydra_command, present_one

PANEL = "Experiments"
JOB = "kd_cli.experiments.experiment:distill"

command = hydra_command("distill", "Train a student with a teacher that is there already.", JOB, present_one)
