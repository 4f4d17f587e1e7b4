"""How a network is trained: every number of the loop, checked without torch."""

from __future__ import annotations

import importlib.util
import math
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
_DECAY = Rule("in (0, 1]", lambda value: 0 < value <= 1)
_WEIGHTS = Rule(
    "balanced, or a number above 0 for each class",
    lambda weights: isinstance(weights, str) or (len(weights) > 1 and all(0 < each < math.inf for each in weights)),
)

Score = Literal["top1", "balanced_accuracy", "macro_f1", "nll"]
_WORDS = {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1"}


@dataclass(frozen=True)
class Recipe:
    """The numbers of one training. The yaml of the group `trainer` lists all of them.

    Args:
        epochs: passes over the training images, ≥ 1.
        batch_size: images per forward pass, ≥ 1.
        eval_batch_size: images per forward pass when nothing is learned, ≥ 1.
        freeze: names of the network's parameters or modules, or patterns of them (fnmatch: `layer1.*`), that stay as
            they are; batch normalisation among them keeps its statistics, too.
        optimizer: update rule. `lamb` is timm's; `muon` is PyTorch's for the matrices between the first layer's input
            and the classifier's (parameters with two dimensions) and AdamW for all else, at rates of the same size
            (arXiv:2502.16982).
        lr: peak learning rate, > 0.
        backbone_lr_factor: of the rate for all of the network but its classifier, > 0.
        layer_decay: factor of the rate from each layer to the one before it, in (0, 1]; the classifier has the whole
            rate. Layers are timm's groups where the network has them, otherwise its blocks; null: none.
        momentum: of SGD and Muon, in [0, 1).
        nesterov: Nesterov's momentum, for SGD with momentum > 0 (Muon always has it).
        betas: of Adam, AdamW and LAMB, each in [0, 1).
        weight_decay: ≥ 0; decoupled for AdamW and Muon, an L2 term of the gradient for SGD and Adam, a term of the
            update for LAMB.
        decay_norm_and_bias: weight decay holds for all parameters; false, as timm does it: not for biases, parameters
            with one dimension and those that the network's own `no_weight_decay` names.
        schedule: how the learning rate moves after the warm-up.
        warmup_epochs: linear rise from 0, in epochs, ≥ 0 (`onecycle` brings its own).
        min_lr: where `cosine` ends, and below which `plateau` does not go, ≥ 0.
        patience: epochs without a better validation score (`select_by`) that `plateau` lets pass; after one more it
            drops, ≥ 1.
        step_size: epochs between two drops of `step`, ≥ 1.
        milestones: epochs after which `multistep` drops, rising.
        gamma: factor of one drop, > 0.
        label_smoothing: of the cross-entropy with the labels, in [0, 1).
        class_weights: of the classes in the cross-entropy with the labels, each > 0; `balanced`: N / (K · N_k) for a
            class with N_k of all N training images of K classes; null: all alike.
        clip_grad_norm: largest 2-norm of the gradient, > 0; null: not clipped.
        accumulate: batches whose gradients make one update, ≥ 1; the update then sees batch_size × accumulate images.
        precision: fp32, tf32 (CUDA only), or mixed precision with bf16 or (CUDA only) fp16.
        deterministic: the same command gives the same bits; on a CUDA device that refuses some operations.
        batch_norm: of a training on several devices: `sync`, over the global batch, as on one; `local`, each device's
            over its own images, and the running statistics are the first one's.
        compile: torch.compile the network.
        cuda_graphs: record an update as a CUDA graph and replay it; `auto`: where it can be done, and true refuses
            where it cannot. The bits are the same.
        ema_decay: in (0, 1): an exponential moving average of the weights is evaluated and kept; null: none.
        swa_epochs: in each of the last so many epochs, or of all if there are fewer, the mean of the weights at the
            epochs' ends so far is evaluated and kept, its batch normalisation measured anew on the epoch's images, ≥ 1
            (arXiv:1803.05407); null: none.
        select_by: the validation score by which the best epoch is chosen, training stopped and options are searched.
        early_stopping: epochs without a better validation score after which training ends, ≥ 1; null: never.
        limit_train_batches: at most so many batches per epoch, for smoke runs; null: all.
        checkpoint_every: epochs between two checkpoints, ≥ 1 (the last epoch and a new best always have one).
        checkpoint_minutes: between two checkpoints inside an epoch, ≥ 0 (0: one after every update); null: none.

    Raises:
        ValueError: a number outside its range.
    """

    epochs: _Count = 25
    batch_size: _Count = 64
    eval_batch_size: _Count = 500
    freeze: tuple[str, ...] = ()
    optimizer: Literal["sgd", "adam", "adamw", "lamb", "muon"] = "adam"
    lr: Positive = 1e-3
    backbone_lr_factor: Positive = 1.0
    layer_decay: Annotated[float, _DECAY] | None = None
    momentum: Fraction = 0.9
    nesterov: bool = False
    betas: Annotated[tuple[float, float], _EACH] = (0.9, 0.999)
    weight_decay: NonNegative = 0.0
    decay_norm_and_bias: bool = True
    schedule: Literal["constant", "step", "multistep", "cosine", "onecycle", "plateau"] = "constant"
    warmup_epochs: NonNegative = 0.0
    min_lr: NonNegative = 0.0
    patience: _Count = 10
    step_size: _Count = 30
    milestones: Annotated[tuple[int, ...], _RISING] = ()
    gamma: Positive = 0.1
    label_smoothing: Fraction = 0.0
    class_weights: Annotated[tuple[float, ...] | Literal["balanced"], _WEIGHTS] | None = None
    clip_grad_norm: Positive | None = None
    accumulate: _Count = 1
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    deterministic: bool = True
    batch_norm: Literal["sync", "local"] = "sync"
    compile: bool = False
    cuda_graphs: Literal["auto", True, False] = "auto"
    ema_decay: Inside | None = None
    swa_epochs: _Count | None = None
    select_by: Score = "top1"
    early_stopping: _Count | None = None
    limit_train_batches: _Count | None = None
    checkpoint_every: _Count = 1
    checkpoint_minutes: NonNegative | None = 10.0

    def __post_init__(self) -> None:
        check_ranges(Recipe, vars(self))
        if self.optimizer == "sgd" and self.nesterov and not self.momentum:
            raise ValueError("nesterov: true is not possible; sgd then needs a momentum above 0")
        if self.schedule == "plateau" and self.gamma >= 1:
            raise ValueError(f"gamma: {self.gamma:g} is not possible; plateau lowers the rate; type trainer.gamma=0.1")
        reasons = {"ema_decay": "is an average, too", "early_stopping": "makes any epoch the last one"}
        for key, reason in reasons.items() if self.swa_epochs is not None else ():
            if getattr(self, key) is not None:
                text = f"swa_epochs: {self.swa_epochs} is not possible beside {key}={getattr(self, key):g}"
                raise ValueError(f"{text}, which {reason}; type trainer.{key}=null")


def make_recipe(options: Mapping[str, Any], where: str = "trainer") -> Recipe:
    """A Recipe from the `trainer` node of a configuration.

    Raises:
        ConfigError: unknown option, wrong type or a number outside its range; the message begins with `where`.
    """
    try:
        return Recipe(**bind_options(Recipe, options, where=where, what="the trainer"))
    except ValueError as error:
        raise ConfigError(f"{where}.{str(error).replace(' trainer.', f' {where}.')}") from error


def check_possible(recipe: Recipe, *, validation: bool = True, on_cuda: bool) -> None:
    """Finds what of a recipe cannot be done.

    Args:
        validation: there are validation images.
        on_cuda: it runs on a CUDA device.

    Raises:
        ConfigError: something that validation images decide without any, a package that is not installed, or tf32,
            fp16 or CUDA graphs without CUDA.
    """
    if not validation:
        _check_unvalidated(recipe)
    if recipe.optimizer == "lamb" and importlib.util.find_spec("timm") is None:
        raise ConfigError(
            "trainer.optimizer: lamb needs the package timm, which is not installed: pip install 'kd-cli[timm]', or "
            "type trainer.optimizer=adamw"
        )
    if recipe.precision in _CUDA_ONLY and not on_cuda:
        instead = _CUDA_ONLY[recipe.precision]
        raise ConfigError(
            f"trainer.precision: {recipe.precision} needs a CUDA device; type trainer.precision={instead}"
        )
    if recipe.cuda_graphs is True and not on_cuda:
        raise ConfigError("trainer.cuda_graphs: true needs a CUDA device; type trainer.cuda_graphs=auto")


def _check_unvalidated(recipe: Recipe) -> None:
    wanted = {
        "early_stopping": bool(recipe.early_stopping),
        "schedule: plateau": recipe.schedule == "plateau",
        f"select_by: {recipe.select_by}": recipe.select_by != "top1",
    }
    for words in (words for words, given in wanted.items() if given):
        raise ConfigError(f"trainer.{words} needs validation images; type dataset.val_fraction=0.1")


def score_name(select_by: str) -> str:
    """The key of the score in records and results."""
    return "val_loss" if select_by == "nll" else f"val_{select_by}"


def score_of(row: Mapping[str, Any], select_by: str) -> float:
    """The validation score of an epoch's record or of a result by which it is chosen; more is better."""
    score = float(row[score_name(select_by)])
    return -score if select_by == "nll" else score


def score_text(row: Mapping[str, Any], select_by: str) -> str:
    """`96.40 % on validation`, `91.20 % macro F1 on validation`."""
    score = row[score_name(select_by)]
    if select_by == "nll":
        return f"negative log-likelihood {score:.4f} on validation"
    return f"{score:.2f} % {f'{_WORDS[select_by]} ' if select_by in _WORDS else ''}on validation"


def chosen_by(row: Mapping[str, Any], select_by: str) -> str:
    """`macro F1 91.20 %`, `NLL 0.3120`; empty where top-1 chooses, which is shown anyway, or nothing is measured."""
    score = row.get(score_name(select_by))
    if select_by == "top1" or score is None:
        return ""
    return f"NLL {score:.4f}" if select_by == "nll" else f"{_WORDS.get(select_by, select_by)} {score:.2f} %"
