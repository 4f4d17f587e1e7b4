"""How a network is trained: every number of the loop, checked without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kd_cli.errors import ConfigError
from kd_cli.registry import bind_options


@dataclass(frozen=True)
class Recipe:
    """The numbers of one training. The yaml of the group `trainer` lists all of them.

    Args:
        epochs: passes over the training images, ≥ 1.
        batch_size: images per forward pass, ≥ 1.
        eval_batch_size: images per forward pass when nothing is learned, ≥ 1.
        optimizer: update rule.
        lr: peak learning rate, > 0.
        momentum: of SGD, in [0, 1).
        nesterov: Nesterov's momentum, for SGD with momentum > 0.
        betas: of Adam and AdamW, each in [0, 1).
        weight_decay: ≥ 0; decoupled for AdamW, an L2 term of the gradient otherwise.
        schedule: how the learning rate moves after the warm-up.
        warmup_epochs: linear rise from 0, in epochs, ≥ 0 (`onecycle` brings its own).
        min_lr: where `cosine` ends, ≥ 0.
        step_size: epochs between two drops of `step`, ≥ 1.
        milestones: epochs after which `multistep` drops, rising.
        gamma: factor of one drop, > 0.
        label_smoothing: of the cross-entropy with the labels, in [0, 1).
        clip_grad_norm: largest 2-norm of the gradient, > 0; null: not clipped.
        accumulate: batches whose gradients make one update, ≥ 1; the update then sees batch_size × accumulate images.
        precision: fp32, or mixed precision with bf16 or (CUDA only) fp16.
        compile: torch.compile the network.
        ema_decay: in (0, 1): an exponential moving average of the weights is evaluated and kept; null: none.
        early_stopping: epochs without a better validation accuracy after which training ends, ≥ 1; null: never.
        limit_train_batches: at most so many batches per epoch, for smoke runs; null: all.
        checkpoint_every: epochs between two checkpoints, ≥ 1 (the last epoch and a new best always have one).
        checkpoint_minutes: between two checkpoints inside an epoch, ≥ 0 (0: one after every update); null: none.

    Raises:
        ValueError: a number outside its range.
    """

    epochs: int = 12
    batch_size: int = 64
    eval_batch_size: int = 500
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    lr: float = 1e-3
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: Literal["constant", "step", "multistep", "cosine", "onecycle"] = "constant"
    warmup_epochs: float = 0.0
    min_lr: float = 0.0
    step_size: int = 30
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    label_smoothing: float = 0.0
    clip_grad_norm: float | None = None
    accumulate: int = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    ema_decay: float | None = None
    early_stopping: int | None = None
    limit_train_batches: int | None = None
    checkpoint_every: int = 1
    checkpoint_minutes: float | None = 10.0

    def __post_init__(self) -> None:
        for rule, fits, names in _RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not fits(value):
                    raise ValueError(f"{name}: {value} is not possible; it must be {rule}")
        if self.optimizer == "sgd" and self.nesterov and not self.momentum:
            raise ValueError("nesterov: true is not possible; sgd then needs a momentum above 0")


_COUNT = "≥ 1 and below 2,147,483,648"
_RANGES: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    (_COUNT, lambda value: 1 <= value < 2**31, ("epochs", "batch_size", "eval_batch_size", "accumulate")),
    (_COUNT, lambda value: 1 <= value < 2**31, ("step_size", "early_stopping", "limit_train_batches")),
    (_COUNT, lambda value: 1 <= value < 2**31, ("checkpoint_every",)),
    ("≥ 0", lambda value: 0 <= value < math.inf, ("weight_decay", "warmup_epochs", "min_lr", "checkpoint_minutes")),
    ("> 0", lambda value: 0 < value < math.inf, ("lr", "gamma", "clip_grad_norm")),
    ("in [0, 1)", lambda value: 0 <= value < 1, ("momentum", "label_smoothing")),
    ("in (0, 1)", lambda value: 0 < value < 1, ("ema_decay",)),
    ("two numbers in [0, 1)", lambda value: all(0 <= beta < 1 for beta in value), ("betas",)),
    ("epochs in rising order", lambda value: list(value) == sorted(set(value)), ("milestones",)),
)


def make_recipe(options: Mapping[str, Any], where: str = "trainer") -> Recipe:
    """A Recipe from the `trainer` node of a configuration.

    Raises:
        ConfigError: unknown option, wrong type or a number outside its range; the message begins with `where`.
    """
    try:
        return Recipe(**bind_options(Recipe, options, where=where, what="the trainer"))
    except ValueError as error:
        raise ConfigError(f"{where}.{error}") from error


def check_possible(recipe: Recipe, *, validation: bool = True, on_cuda: bool) -> None:
    """Finds what of a recipe cannot be done.

    Args:
        validation: there are validation images.
        on_cuda: it runs on a CUDA device.

    Raises:
        ConfigError: early stopping without validation images, or fp16 without CUDA.
    """
    if recipe.early_stopping and not validation:
        raise ConfigError("trainer.early_stopping needs validation images; type dataset.val_fraction=0.1")
    if recipe.precision == "fp16" and not on_cuda:
        raise ConfigError("trainer.precision: fp16 needs a CUDA device; type trainer.precision=bf16")
