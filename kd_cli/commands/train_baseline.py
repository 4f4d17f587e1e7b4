"""kd train-baseline: train a student without a teacher."""

from __future__ import annotations

from kd_cli.launch.hydra_command import hydra_command, present_one

PANEL = "Experiments"
JOB = "kd_cli.experiments.experiment:train_baseline"

command = hydra_command("train-baseline", "Train a student without a teacher.", JOB, present_one)
