"""kd train-teacher: train a teacher."""

from __future__ import annotations

from kd_cli.launch.hydra_command import hydra_command, present_one

PANEL = "Experiments"
JOB = "kd_cli.experiments.experiment:train_teacher"

command = hydra_command("train-teacher", "Train a teacher.", JOB, present_one)
