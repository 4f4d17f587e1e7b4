"""docs/python.md and the notebook do what they say."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from kd_cli.losses.base import LOSSES
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "python.md").read_text()
NOTEBOOK = json.loads((ROOT / "docs" / "kd.ipynb").read_text())
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def run_blocks(blocks: list[str]) -> dict[str, Any]:
    """The names that they leave, run one after the other as a notebook does it."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, "block", "exec"), scope)
    return scope


@pytest.mark.slow
def test_the_blocks_of_the_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    scope = run_blocks(re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL))
    printed = capsys.readouterr().out
    assert "did you mean 'loss.temperature'" in printed
    assert scope["alone"].test_top1 > 90
    assert scope["taught"].images == {"train": 300, "val": 90, "test": 150}
    assert scope["result"].weight == 1.0


def test_the_cells_of_the_notebook_run(capsys: pytest.CaptureFixture[str]) -> None:
    scope = run_blocks(CODE)
    assert scope["result"].distilled.test_top1 > 50
    assert scope["network"].classes == tuple("0123456789")
    assert "distilled" in capsys.readouterr().out


def test_the_notebook_is_one_and_holds_no_output() -> None:
    assert NOTEBOOK["nbformat"] == 4
    assert {cell["cell_type"] for cell in NOTEBOOK["cells"]} == {"markdown", "code"}
    for cell in NOTEBOOK["cells"]:
        required = {"cell_type", "id", "metadata", "source"}
        required |= {"outputs", "execution_count"} if cell["cell_type"] == "code" else set()
        assert cell.keys() == required
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])


def test_every_loss_of_the_page_is_a_loss() -> None:
    named = re.findall(r"`(\w+)_loss`", PAGE.partition("## Losses as functions")[2])
    assert len(named) > 10
    assert all(any(name.startswith(known) for known in LOSSES.names()) for name in named)
