"""Optimizers, the learning rate as a pure function of the step, and the moving average of what they move."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kd_cli.config.recipe import Recipe, score_of

# onecycle starts at lr/25, peaks after 30 % of the steps and ends at lr/(25·1e4): Smith & Topin 2018, arXiv:1708.07120,
# with the constants of torch.optim.lr_scheduler.OneCycleLR.
_ONECYCLE_START, _ONECYCLE_END, _ONECYCLE_PEAK = 25.0, 1e4, 0.3


def without_compiler(rule: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """The same optimizer without the wrappers by which PyTorch keeps its compiler's hands off it.

    The first call of any of them imports torch._dynamo, which takes as long as torch itself: 1–2 s before the first
    step (`python -m benchmarks.startup`). kd compiles networks, never optimizers. What is calculated is the same.
    """
    wrapped = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(rule, name)) for name in wrapped}
    return type(rule.__name__, (rule,), {**methods, "step": torch.no_grad()(inspect.unwrap(rule.step))})


def make_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    recipe: Recipe,
    device: torch.device,
    rate: Tensor | None = None,
) -> torch.optim.Optimizer:
    """The recipe's optimizer (`sgd`, `adam`, `adamw`), fused where the device has a fused kernel.

    Args:
        parameters: or groups of them.
        rate: scalar, on the device: the learning rate, whatever it is when a step is taken; None: it is set from here.
    """
    options: dict[str, Any] = {
        "lr": recipe.lr if rate is None else rate,
        "weight_decay": recipe.weight_decay,
        "fused": device.type in ("cpu", "cuda"),
    }
    if recipe.optimizer == "sgd":
        rule: type[torch.optim.Optimizer] = torch.optim.SGD
        options |= {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
    else:
        rule = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
        options |= {"betas": recipe.betas, "capturable": rate is not None}
    return without_compiler(rule)(parameters, **options)


class MovingAverage(AveragedModel):
    """An average of a network's fractional parameters and buffers over its updates; all others are copied.

    PyTorch's own averages whole numbers, too, and cuts the result: the index tables of Swin and its kin lose ones. It
    also asks the device at every update whether it is the first.

    Args:
        network: that learns.
        decay: in (0, 1), of an exponential moving average; None: all updates have the same weight.
    """

    def __init__(self, network: nn.Module, decay: float | None) -> None:
        device = next(iter(network.parameters())).device  # of the count, too: a replay of a CUDA graph raises it
        super().__init__(network, device, use_buffers=True)
        self._decay, self._begun = decay, False

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        self._begun = self._begun or bool(self.n_averaged > 0)  # a training that goes on has an average already
        share = 1 / (int(self.n_averaged) + 1) if self._decay is None else 1 - self._decay
        pairs: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        theirs = [*model.parameters(), *model.buffers()]
        for averaged, current in zip([*self.module.parameters(), *self.module.buffers()], theirs, strict=True):
            ours, others = pairs.setdefault(averaged.dtype, ([], []))
            ours.append(averaged)
            others.append(current)
        for dtype, (ours, others) in pairs.items():
            if self._begun and (dtype.is_floating_point or dtype.is_complex):
                torch._foreach_lerp_(ours, others, share)
            else:
                torch._foreach_copy_(ours, others)
        self._begun = True
        self.n_averaged += 1


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int, drops: int = 0) -> float:
    """The learning rate of update number `step` (0, 1, …).

    Args:
        drops: how often `plateau` has dropped it before this update's epoch.
    """
    if recipe.schedule == "onecycle":
        return _onecycle(recipe, step, steps_per_epoch * recipe.epochs)
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return recipe.lr * (step + 1) / (warmup + 1)
    if recipe.schedule == "plateau":
        return max(min(recipe.lr, recipe.min_lr), recipe.lr * recipe.gamma**drops)
    return _after_warmup(recipe, step, warmup, steps_per_epoch)


def plateau_drops(records: Sequence[Mapping[str, float]], recipe: Recipe) -> int:
    """How often `plateau` has dropped the rate after epochs with these records; another schedule never does.

    It is what torch's ReduceLROnPlateau does with `threshold=0`.
    """
    best, waited, drops = -math.inf, 0, 0
    for record in records if recipe.schedule == "plateau" else ():
        score = score_of(record, recipe.select_by)
        waited = 0 if score > best else waited + 1
        best = max(best, score)
        if waited > recipe.patience:
            waited, drops = 0, drops + 1
    return drops


def _after_warmup(recipe: Recipe, step: int, warmup: int, steps_per_epoch: int) -> float:
    epoch = step // steps_per_epoch
    if recipe.schedule == "cosine":
        total = steps_per_epoch * recipe.epochs
        return _cosine(recipe.lr, recipe.min_lr, (step - warmup) / max(1, total - warmup))
    if recipe.schedule == "step":
        return float(recipe.lr * recipe.gamma ** (epoch // recipe.step_size))
    if recipe.schedule == "multistep":
        return float(recipe.lr * recipe.gamma ** sum(epoch >= milestone for milestone in recipe.milestones))
    return recipe.lr


def _onecycle(recipe: Recipe, step: int, total: int) -> float:
    peak = max(1.0, _ONECYCLE_PEAK * total - 1)
    start = recipe.lr / _ONECYCLE_START
    if step <= peak:
        return _cosine(start, recipe.lr, step / peak)
    return _cosine(recipe.lr, start / _ONECYCLE_END, (step - peak) / max(1.0, total - 1 - peak))


def _cosine(begin: float, end: float, share: float) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * share)) / 2
