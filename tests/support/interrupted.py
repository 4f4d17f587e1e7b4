"""What the tests of interrupted trainings share: a hard one for each command, and all of its bits when it is done."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from kd_cli.runs.metrics import read_metrics
from kd_cli.storage.tensors import digest_tensors

TIMES = {"seconds", "images_per_second", "train_seconds", "run"}

NETWORK = """
from torch import nn
from kd_cli.models.base import MODELS


@MODELS.register("hard")
class Hard(nn.Module):
    taps = {"embedding": "classifier:in"}

    def __init__(self, num_classes: int, in_channels: int, image_size: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2)
        )
        self.classifier = nn.Linear(width * ((image_size - 1) // 2) ** 2, num_classes)

    def forward(self, images):
        return self.classifier(self.body(images))
"""

# Augmentation, dropout, batch normalisation, a schedule, an average, clipping, accumulation: all that has a state.
HARD = (
    *("--config-dir=../conf", "plugins=[../hard.py]", "teacher=hard", "student=hard", "student.width=4"),
    *("dataset=synthetic", "dataset.num_train=213", "dataset.num_test=60", "dataset.image_size=8"),
    *("dataset.augment=crop_flip", "trainer.epochs=4", "trainer.batch_size=16", "trainer.accumulate=1"),
    *("trainer.schedule=cosine", "trainer.warmup_epochs=1.5", "trainer.ema_decay=0.8", "trainer.clip_grad_norm=1.0"),
    *("trainer.label_smoothing=0.1", "trainer.checkpoint_minutes=0", "--json"),
)
STEPS = 48  # of 4 epochs
SGD = ("trainer.optimizer=sgd", "trainer.momentum=0.9", "trainer.nesterov=true", "trainer.lr=0.05")
CRD = ("loss=crd", "loss.dim=8", "loss.negatives=20", "loss.memory_mb=1", "loss.warmup_epochs=2")
COMMANDS = {"train-teacher": SGD, "train-baseline": (), "distill": (*CRD, "teacher.checkpoint=../teacher")}


def write_network(folder: Path) -> None:
    """The network and its choices."""
    (folder / "hard.py").write_text(NETWORK)
    for group in ("teacher", "student"):
        (folder / "conf" / group).mkdir(parents=True)
        (folder / "conf" / group / "hard.yaml").write_text("name: hard\nwidth: 8\n")


def everything(run: Path) -> dict[str, Any]:
    """All that a complete training leaves, but for times: result, metrics, answers, weights, the last state."""
    result = json.loads((run / "result.json").read_text())
    rows = [{key: value for key, value in row.items() if key not in TIMES} for row in read_metrics(run)]
    table = (run / "metrics.csv").read_text().splitlines()
    last = run / "checkpoints" / f"epoch-{result['epochs']:04d}"
    state = json.loads((last / "state.json").read_text())
    state["records"] = [{key: value for key, value in row.items() if key not in TIMES} for row in state["records"]]
    return {
        "result": {key: value for key, value in result.items() if key not in TIMES},
        "metrics": rows,
        "csv": (table[0], len(table)),
        "predictions": hashlib.sha256((run / "predictions.safetensors").read_bytes()).hexdigest(),
        "weights": digest_tensors(load_file(last / "model.safetensors")),
        "training": digest_tensors(load_file(last / "training.safetensors")),
        "state": {key: value for key, value in state.items() if key != "run"},
    }
