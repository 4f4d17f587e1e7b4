"""How the threads of this machine are used."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is PyTorch's on Linux alone")
@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "30000000000")],
    ids=["as kd has it", "the user's count", "the user's policy"],
)
def test_threads_that_wait_soon_sleep_unless_the_user_says_how_they_wait(given: Mapping[str, str], spins: str) -> None:
    """libgomp itself tells, as it is loaded with torch."""
    words = ["-m", "kd_cli", "profile", "mlp", "--seconds", "0", "--batch-sizes", "1", "--device", "cpu"]
    ours = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment = {**ours, **given, "OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=True)
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
