"""Which parts of a network learn, and how fast: what is frozen, the classifier, layers, what has no weight decay."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from kd_cli.config.recipe import Recipe
from kd_cli.errors import ConfigError
from kd_cli.taps import classifier_of

_NEAREST = 5  # names in a message
_STACK = 0.75  # of the parameters before the classifier: what holds so many is no layer but a stack of them
_FROZEN = "kd_frozen"  # what a normalisation is marked with; a copy has the mark, too


def freeze(network: nn.Module, patterns: Sequence[str], *, what: str = "the network", alone: str = "trainer") -> None:
    """The parts that match learn nothing more, and their normalisations keep their statistics (see `frozen_norms`).

    Args:
        patterns: of names of parameters and modules, as `fnmatch` has them; a module stands for all that is in it.
        what: how a message calls the network: `student=resnet20`.
        alone: the configuration key of its own recipe.

    Raises:
        ConfigError: a pattern that matches nothing, or nothing is left to learn.
    """
    learned = dict(network.named_parameters())
    names = [*(name for name, _ in network.named_modules() if name), *learned]
    places: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            raise ConfigError(_no_match(pattern, names, what, alone))
        places |= found
    for name in (name for name in learned if _within(name, places)):
        learned[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in learned.values()):
        raise ConfigError(
            f"trainer.freeze: {list(patterns)} leaves nothing to learn in {what}; name less, or type trainer.freeze=[]"
        )
    for name, module in network.named_modules():
        if isinstance(module, _NormBase):
            own = list(module.parameters())
            frozen = _within(name, places) or (own and not any(each.requires_grad for each in own))
            setattr(module, _FROZEN, bool(frozen))


def check_parts(network: nn.Module, recipe: Recipe, *, what: str, alone: str) -> None:
    """Finds what a recipe names of a network that is not there, before anything is trained; it freezes what is.

    Args:
        what, alone: as of `freeze`.

    Raises:
        ConfigError: as `freeze`, `parameter_groups` and `unfused.muon_matrices`.
    """
    if recipe.freeze:
        freeze(network, recipe.freeze, what=what, alone=alone)
    if recipe.backbone_lr_factor != 1:
        _factors(network, recipe)
    if recipe.optimizer == "muon":
        from kd_cli.training.unfused import muon_matrices

        muon_matrices(network)


def frozen_norms(network: nn.Module) -> list[nn.Module]:
    """The normalisations that stay in eval mode."""
    return [module for module in network.modules() if getattr(module, _FROZEN, False)]


def _no_match(pattern: str, names: Sequence[str], what: str, alone: str) -> str:
    near = difflib.get_close_matches(pattern.strip("*."), names, n=_NEAREST, cutoff=0.0)
    example = f"freeze=[{near[0]}]"
    return (
        f"trainer.freeze: {pattern!r} matches no parameter or module of {what}; nearest: {', '.join(near)}; type "
        f"trainer.{example} (of this network alone: {alone}.{example})"
    )


def _within(name: str, places: Iterable[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def parameter_groups(
    task: nn.Module, network: nn.Module, parameters: Sequence[nn.Parameter], recipe: Recipe
) -> list[dict[str, Any]]:
    """For an optimizer: `params` with the same `factor` of the rate and the same `weight_decay`.

    Args:
        task: all that learns.
        network: whose layers have rates of their own; what else learns has the whole rate.
        parameters: of the task, in their order.

    Raises:
        ConfigError: `backbone_lr_factor` of a network without a classifier that is known.
    """
    factors = _factors(network, recipe)
    bare = set() if recipe.decay_norm_and_bias else _without_decay(task, network)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in parameters:
        decay = 0.0 if id(parameter) in bare else recipe.weight_decay
        groups.setdefault((factors.get(id(parameter), 1.0), decay), []).append(parameter)
    return [{"params": each, "factor": factor, "weight_decay": decay} for (factor, decay), each in groups.items()]


def _factors(network: nn.Module, recipe: Recipe) -> dict[int, float]:
    """Of each of the network's parameters, by its id."""
    layers = layers_of(network) if recipe.layer_decay is not None else {}
    last, head = max(layers.values(), default=0), {id(each) for part in head_of(network) for each in part.parameters()}
    if not head and recipe.backbone_lr_factor != 1:
        raise ConfigError(
            f"trainer.backbone_lr_factor: {recipe.backbone_lr_factor:g} is not possible; no classifier is known of "
            "this network. One of your own can name it by its taps (embedding: MODULE:in); otherwise type "
            "trainer.backbone_lr_factor=1"
        )
    factors = {}
    for name, parameter in network.named_parameters():
        factor = (recipe.layer_decay or 1.0) ** (last - layers.get(name, last))
        factors[id(parameter)] = factor * (1.0 if id(parameter) in head else recipe.backbone_lr_factor)
    return factors


def _without_decay(task: nn.Module, network: nn.Module) -> set[int]:
    """As timm: biases, whatever has one dimension, and what the network itself names. By id."""
    small = {id(each) for name, each in task.named_parameters() if each.dim() <= 1 or name.endswith(".bias")}
    own = getattr(network, "no_weight_decay", None)
    patterns = own() if callable(own) else ()
    named = network.named_parameters()
    return small | {id(each) for name, each in named if any(fnmatchcase(name, pattern) for pattern in patterns)}


def head_of(network: nn.Module) -> list[nn.Module]:
    """The classifier: what timm's networks say, the layer behind the published `embedding`, or the last linear one."""
    own = getattr(network, "get_classifier", None)
    said = own() if callable(own) else None
    found = [*(said if isinstance(said, tuple | list) else (said,)), classifier_of(network)]
    known = [each for each in found if isinstance(each, nn.Module) and any(True for _ in each.parameters())]
    if known:
        return known
    linear: list[nn.Module] = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return linear[-1:]


def layers_of(network: nn.Module) -> dict[str, int]:
    """Parameter → layer 0, 1, …, from the images on; the classifier is the last.

    They are timm's own groups, or the network's blocks: its children in their order, a stack of blocks taken apart, a
    normalisation with what is before it, loose parameters with the first one.
    """
    matcher = getattr(network, "group_matcher", None)
    if callable(matcher):
        from timm.models import group_parameters

        found: Mapping[str, int] = group_parameters(network, matcher(coarse=False), reverse=True)
        return dict(found)
    head = {id(each) for part in head_of(network) for each in part.parameters()}
    body = {name: each for name, each in network.named_parameters() if id(each) not in head}
    blocks = _merged(_blocks(network, "", body), body)
    layers = {name: number for number, block in enumerate(blocks) for name in block}
    return {name: layers.get(name, 0 if name in body else len(blocks)) for name, _ in network.named_parameters()}


def _blocks(module: nn.Module, prefix: str, body: Mapping[str, nn.Parameter]) -> list[list[str]]:
    blocks: list[list[str]] = []
    for name, child in module.named_children():
        names = [full for own, _ in child.named_parameters() if (full := f"{prefix}{name}.{own}") in body]
        stack = len(names) >= _STACK * len(body) and any(True for _ in child.children())
        blocks += _blocks(child, f"{prefix}{name}.", body) if stack else [names]
    return [block for block in blocks if block]


def _merged(blocks: Sequence[list[str]], body: Mapping[str, nn.Parameter]) -> list[list[str]]:
    merged: list[list[str]] = []
    for block in blocks:
        if merged and all(body[name].dim() <= 1 for name in block):
            merged[-1] += block
        else:
            merged.append(block)
    return merged
