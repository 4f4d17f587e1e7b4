"""Optimizers without a fused kernel: LAMB and Muon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from kd_cli.config.recipe import Recipe
from kd_cli.errors import ConfigError
from kd_cli.training.groups import head_of
from kd_cli.training.optim import make_optimizer, without_compiler


def make_unfused(
    groups: Sequence[dict[str, Any]], recipe: Recipe, device: torch.device, network: nn.Module
) -> list[Optimizer]:
    """The recipe's optimizers.

    Args:
        groups: as `parameter_groups` gives them.
        network: whose matrices Muon moves.

    Raises:
        ConfigError: Muon where PyTorch has none or the network no matrix.
    """
    options: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "lamb":
        from timm.optim.lamb import Lamb

        options["max_grad_norm"] = None  # trainer.clip_grad_norm clips, and nothing else; timm's own default is 1
        lamb: Any = without_compiler(Lamb)
        return [lamb(groups, betas=recipe.betas, **options)]
    matrices = muon_matrices(network)
    moved, left = _shared_out(groups, matrices, inside=True), _shared_out(groups, matrices, inside=False)
    options["adjust_lr_fn"] = "match_rms_adamw"  # one rate serves both rules: Liu et al. 2025, arXiv:2502.16982
    rule: Any = without_compiler(torch.optim.Muon)
    muon = rule(moved, momentum=recipe.momentum, **options)
    return [muon, *([make_optimizer(left, replace(recipe, optimizer="adamw"), device)] if left else [])]


def muon_matrices(network: nn.Module) -> set[int]:
    """By their ids: the weights with two dimensions that learn, but for embeddings and the classifier's.

    Raises:
        ConfigError: PyTorch has no Muon, or there are none.
    """
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(
            f"trainer.optimizer: muon needs PyTorch 2.9, and {torch.__version__} is installed; "
            "type trainer.optimizer=adamw"
        )
    others = [*head_of(network), *(module for module in network.modules() if isinstance(module, nn.Embedding))]
    left = {id(each) for module in others for each in module.parameters()}
    named = ((name, each) for name, each in network.named_parameters() if each.requires_grad and id(each) not in left)
    found = {id(each) for name, each in named if each.dim() == 2 and name.endswith("weight")}
    if not found:
        raise ConfigError(
            "trainer.optimizer: muon moves weights with two dimensions (linear layers, attention), and this network "
            "learns none beside its classifier; type trainer.optimizer=adamw"
        )
    return found


def _shared_out(groups: Sequence[dict[str, Any]], chosen: set[int], *, inside: bool) -> list[dict[str, Any]]:
    """The groups with those of their parameters that are chosen, or with the others; without empty ones."""
    parts = [{**group, "params": [p for p in group["params"] if (id(p) in chosen) == inside]} for group in groups]
    return [part for part in parts if part["params"]]
