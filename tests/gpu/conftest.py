"""Tests that need a CUDA device. KD_TEST_DEVICE=cpu runs them, but for those of CUDA itself, on the processor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.lab import Lab

DEVICE = os.environ.get("KD_TEST_DEVICE", "cuda")
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    there = torch.device(DEVICE).type == "cpu" or torch.cuda.is_available()
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))  # drivers warn of what kd cannot change
            if not there:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def device() -> str:
    """As `device=` takes it."""
    return DEVICE


@pytest.fixture
def cuda(device: str) -> None:
    """For what only CUDA has."""
    if torch.device(device).type != "cuda":
        pytest.skip("of CUDA itself")


@pytest.fixture(scope="session")
def lab(device: str, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Small trainings; what several tests compare with is trained once."""
    return Lab(tmp_path_factory.mktemp("lab"), device)
