"""Losses as plain functions: `from kd_cli import losses`."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch

from kd_cli import losses
from kd_cli.losses.base import LOSSES
from tests.support.small import draw

# They are made of other methods, or compare by layers of their own.
MADE_OF_OTHERS = {"combined", "logit_standardization", "adversarial"}


def reads_logits(name: str) -> bool:
    component = LOSSES.component(name)
    option = inspect.signature(component).parameters.get("taps")
    return not ((option.default if option else None) or getattr(component, "taps", ()))


OF_LOGITS = sorted({name for name in LOSSES.names() if reads_logits(name)} - MADE_OF_OTHERS)


@pytest.mark.parametrize("name", OF_LOGITS)
def test_every_method_of_logits_is_a_function_of_logits(name: str) -> None:
    function = getattr(losses, f"{name}_loss")
    assert function is getattr(sys.modules[LOSSES.component(name).__module__], f"{name}_loss")
    assert function.__name__ in dir(losses)
    required = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    assert required[0].endswith("logits")
    given = {"labels": torch.arange(6) % 5, "temperature": torch.tensor(4.0)}
    given |= {"cost": 1 - torch.eye(5), "noise": torch.zeros(2, 6, 5)}
    loss = function(*(draw(6, 5, seed=len(word)) if word.endswith("logits") else given[word] for word in required))
    loss.backward()
    assert loss.shape == ()


def test_every_function_that_is_listed_is_there() -> None:
    listed = [name for name in dir(losses) if name.endswith("_loss")]
    assert {f"{name}_loss" for name in OF_LOGITS} <= set(listed)
    assert all(callable(getattr(losses, name)) for name in listed)


def test_one_function_imports_one_method() -> None:
    code = "import sys, kd_cli as kd; kd.losses.dkd_loss; print(*(n for n in sys.modules if '.losses.' in n))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(printed.split()) == {f"kd_cli.losses.{file}" for file in ("base", "common", "dkd")}


def test_another_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match="did you mean 'dkd_loss'"):
        _ = losses.dkdd_loss
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = losses.nothing
