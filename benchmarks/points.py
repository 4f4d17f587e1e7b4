"""What a user of Hydra has without kd: a small training, and a sweep of it by one of Hydra's launchers.

`python -m benchmarks.points -m "+seed=range(20)"` starts this file with a seed, as a `train.py`, anew for each point;
with `hydra/launcher=submitit_local` a job of submitit calls the training. Prints the seconds of training of each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig

_SECONDS = "seconds.json"
TRAIN, BATCH, EPOCHS, HIDDEN = 270, 50, 2, 8  # as the points of kd beside it


def train(seed: int) -> float:
    """Trains a small network on noise; the seconds that takes."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    images, labels = torch.randn(TRAIN, 3 * 32 * 32), torch.randint(10, (TRAIN,))
    network = nn.Sequential(nn.Linear(3 * 32 * 32, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    start = time.perf_counter()
    for _ in range(EPOCHS):
        for rows in torch.randperm(TRAIN).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
    return time.perf_counter() - start


@hydra.main(version_base="1.3", config_path=None, config_name=None)
def sweep(config: Any) -> None:
    """A point."""
    given = HydraConfig.get()
    file = Path(given.runtime.output_dir, _SECONDS)
    if given.runtime.choices["hydra/launcher"] == "basic":
        subprocess.run([sys.executable, "-m", "benchmarks.points", str(config.seed), str(file)], check=True)
    else:
        file.write_text(json.dumps(train(config.seed)))


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1].isdecimal():
        Path(sys.argv[2]).write_text(json.dumps(train(int(sys.argv[1]))))
        return
    sys.argv += ["hydra/hydra_logging=none", "hydra/job_logging=none", "hydra.sweep.dir=swept"]
    sweep()
    seconds = [json.loads(file.read_text()) for file in Path("swept").glob(f"*/{_SECONDS}")]
    print(json.dumps({"points": [{"train_seconds": each} for each in seconds]}))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
