"""Every number of the training loop: its range, its type, and the yaml files that list it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from kd_cli.config.recipe import Recipe, make_recipe
from kd_cli.errors import ConfigError
from tests.support.small import read_yaml, yaml_names

FIELDS = [field.name for field in dataclasses.fields(Recipe)]
AT_LEAST_ONE = (
    *("epochs", "batch_size", "eval_batch_size", "accumulate"),
    *("checkpoint_every", "step_size", "early_stopping", "limit_train_batches"),
)
OUT_OF_RANGE: list[tuple[str, Any]] = [
    *((name, value) for name in AT_LEAST_ONE for value in (0, -1)),
    *((name, value) for name in ("weight_decay", "warmup_epochs", "min_lr") for value in (-0.1, math.inf, math.nan)),
    *((name, value) for name in ("lr", "gamma", "clip_grad_norm") for value in (0.0, -1.0, math.inf, math.nan)),
    *((name, value) for name in ("momentum", "label_smoothing") for value in (-0.1, 1.0, math.nan)),
    *(("ema_decay", value) for value in (0.0, 1.0)),
    *(("betas", value) for value in ([0.9, 1.0], [-0.1, 0.9])),
    *(("milestones", value) for value in ([20, 10], [10, 10])),
]
LIMITS: list[tuple[str, Any]] = [
    *((name, 1) for name in AT_LEAST_ONE),
    *((name, 0.0) for name in ("weight_decay", "warmup_epochs", "min_lr", "momentum", "label_smoothing")),
    *((name, None) for name in ("clip_grad_norm", "ema_decay", "early_stopping", "limit_train_batches")),
    ("betas", [0.0, 0.0]),
    ("milestones", []),
]


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_a_number_outside_its_range_is_refused_by_its_key(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^trainer\.{name}: .* is not possible; it must be "):
        make_recipe({name: value})


@pytest.mark.parametrize(("name", "value"), LIMITS)
def test_the_limit_of_a_range_that_includes_it_is_possible(name: str, value: Any) -> None:
    kept = getattr(make_recipe({name: value}), name)
    assert kept == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 1.5}, "trainer.epochs: 1.5 is not a whole number"),
        ({"lr": "fast"}, "trainer.lr: 'fast' is not a number"),
        ({"lr": None}, "trainer.lr: None is not a number"),
        ({"nesterov": 1}, "trainer.nesterov: 1 is not true or false"),
        ({"optimizer": "adma"}, "trainer.optimizer: 'adma' is not possible; did you mean 'adam'"),
        ({"schedule": "cosin"}, "trainer.schedule: 'cosin' is not possible; did you mean 'cosine'"),
        ({"precision": "fp8"}, "trainer.precision: 'fp8' is not possible"),
        ({"betas": [0.9]}, "trainer.betas: needs 2 values, not 1"),
        ({"milestones": [1.5]}, "trainer.milestones[0]: 1.5 is not a whole number"),
        ({"epcohs": 3}, "trainer.epcohs: the trainer has no option 'epcohs'; did you mean 'epochs'"),
    ],
)
def test_what_cannot_be_a_recipe_is_refused_by_its_key(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_recipe(options)
    assert str(error.value).startswith(message)


def test_messages_speak_of_the_stage_whose_recipe_it_is() -> None:
    with pytest.raises(ConfigError, match=r"^teacher_trainer\.lr: "):
        make_recipe({"lr": -1.0}, where="teacher_trainer")


def test_nesterov_needs_a_momentum() -> None:
    with pytest.raises(ConfigError, match=r"^trainer\.nesterov: .*momentum"):
        make_recipe({"optimizer": "sgd", "nesterov": True, "momentum": 0.0})
    make_recipe({"optimizer": "sgd", "nesterov": True, "momentum": 0.9})
    make_recipe({"optimizer": "adam", "nesterov": True, "momentum": 0.0})  # Adam reads neither


def test_whole_numbers_serve_as_floats_and_lists_as_tuples() -> None:
    recipe = make_recipe({"lr": 1, "milestones": [2, 5], "betas": [0, 0.5]})
    assert isinstance(recipe.lr, float)
    assert recipe.milestones == (2, 5)
    assert recipe.betas == (0.0, 0.5)


def test_the_default_yaml_lists_every_field_with_its_default() -> None:
    options = read_yaml("trainer", "default")
    assert list(options) == FIELDS
    assert make_recipe(options) == Recipe()


def test_the_inheriting_yaml_takes_every_field_from_the_trainer() -> None:
    assert read_yaml("trainer", "inherit") == {name: f"${{trainer.{name}}}" for name in FIELDS}


@pytest.mark.parametrize("name", [name for name in yaml_names("trainer") if name != "inherit"])
def test_every_trainer_yaml_is_a_recipe(name: str) -> None:
    options = read_yaml("trainer", name)
    assert set(options) == set(FIELDS)
    make_recipe(options)
