"""Every precision trains, and its record says which."""

from __future__ import annotations

import json
import math

import pytest
import torch
import yaml

from benchmarks.gpu.lab import Lab, bits, options, precisions

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", precisions())
def test_every_precision_trains_and_is_on_record(lab: Lab, device: str, precision: str) -> None:
    if torch.device(device).type == "cpu" and precision in ("tf32", "fp16"):
        pytest.skip("of CUDA itself")
    edits = {"trainer.precision": precision}
    run = lab.train("distill", edits)
    assert bits(run) == bits(lab.train("distill", edits))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert yaml.safe_load((run / "config.yaml").read_text())["distill_trainer"]["precision"] == precision
    if "deterministic" in options():
        record = json.loads((run / "run.json").read_text())
        assert (record["precision"], record["deterministic"]) == (precision, True)
    if precision in ("bf16", "fp16"):  # a card may have exact kernels only for such small convolutions
        assert bits(run)["weights"] != lab.bits("kd")["weights"]
