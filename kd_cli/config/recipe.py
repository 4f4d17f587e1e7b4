"""How a network is trained: every number of the loop, checked without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from kd_cli.errors import ConfigError
from kd_cli.ranges import Fraction, Inside, NonNegative, Positive, Rule, check_ranges
from kd_cli.registry import bind_options

_Count = Annotated[int, Rule("≥ 1 and below 2,147,483,648", lambda value: 1 <= value < 2**31)]
_EACH = Rule("two numbers in [0, 1)", lambda betas: all(0 <= beta < 1 for beta in betas))
_CUDA_ONLY = {"tf32": "fp32", "fp16": "bf16"}  # and what to take elsewhere
_RISING = Rule("epochs in rising order", lambda epochs: list(epochs) == sorted(set(epochs)))


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
        precision: fp32, tf32 (CUDA only), or mixed precision with bf16 or (CUDA only) fp16.
        deterministic: the same command gives the same bits; on a CUDA device that refuses some operations.
        compile: torch.compile the network.
        cuda_graphs: record an update as a CUDA graph and replay it; `auto`: where it can be done, and true refuses
            where it cannot. The bits are the same.
        ema_decay: in (0, 1): an exponential moving average of the weights is evaluated and kept; null: none.
        early_stopping: epochs without a better validation accuracy after which training ends, ≥ 1; null: never.
        limit_train_batches: at most so many batches per epoch, for smoke runs; null: all.
        checkpoint_every: epochs between two checkpoints, ≥ 1 (the last epoch and a new best always have one).
        checkpoint_minutes: between two checkpoints inside an epoch, ≥ 0 (0: one after every update); null: none.

    Raises:
        ValueError: a number outside its range.
    """

    epochs: _Count = 25
    batch_size: _Count = 64
    eval_batch_size: _Count = 500
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    lr: Positive = 1e-3
    momentum: Fraction = 0.9
    nesterov: bool = False
    betas: Annotated[tuple[float, float], _EACH] = (0.9, 0.999)
    weight_decay: NonNegative = 0.0
    schedule: Literal["constant", "step", "multistep", "cosine", "onecycle"] = "constant"
    warmup_epochs: NonNegative = 0.0
    min_lr: NonNegative = 0.0
    step_size: _Count = 30
    milestones: Annotated[tuple[int, ...], _RISING] = ()
    gamma: Positive = 0.1
    label_smoothing: Fraction = 0.0
    clip_grad_norm: Positive | None = None
    accumulate: _Count = 1
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    deterministic: bool = True
    compile: bool = False
    cuda_graphs: Literal["auto", True, False] = "auto"
    ema_decay: Inside | None = None
    early_stopping: _Count | None = None
    limit_train_batches: _Count | None = None
    checkpoint_every: _Count = 1
    checkpoint_minutes: NonNegative | None = 10.0

    def __post_init__(self) -> None:
        check_ranges(Recipe, vars(self))
        if self.optimizer == "sgd" and self.nesterov and not self.momentum:
            raise ValueError("nesterov: true is not possible; sgd then needs a momentum above 0")


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
        ConfigError: early stopping without validation images, or tf32, fp16 or CUDA graphs without CUDA.
    """
    if recipe.early_stopping and not validation:
        raise ConfigError("trainer.early_stopping needs validation images; type dataset.val_fraction=0.1")
    if recipe.precision in _CUDA_ONLY and not on_cuda:
        instead = _CUDA_ONLY[recipe.precision]
        raise ConfigError(
            f"trainer.precision: {recipe.precision} needs a CUDA device; type trainer.precision={instead}"
        )
    if recipe.cuda_graphs is True and not on_cuda:
        raise ConfigError("trainer.cuda_graphs: true needs a CUDA device; type trainer.cuda_graphs=auto")
