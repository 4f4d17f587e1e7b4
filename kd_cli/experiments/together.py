"""Before the first step of a training on several devices: what only one process can do is refused."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kd_cli.config.plan import Training
from kd_cli.config.recipe import Recipe
from kd_cli.data.base import Data
from kd_cli.errors import ConfigError
from kd_cli.training.whole_batch import DROPOUT

_TRIED = 3  # images


def check_together(training: Training, network: nn.Module, recipe: Recipe, data: Data, devices: int) -> None:
    """Finds what of a training several processes cannot do as one does it.

    Args:
        network: that learns, with its first weights.
        devices: how many.

    Raises:
        ConfigError: mixed images, batches of fewer images than processes, too few of them for batch normalisation of
            each device's own, or a network that draws random numbers otherwise than by dropout and stochastic depth.
    """
    if data.mixes:
        raise ConfigError(
            f"dataset.augment: mixup and cutmix pair images of a whole batch, of which each of {devices} devices has a "
            "part; leave them out, or type devices=1"
        )
    views = len(data.views_in(0))
    images = min(recipe.batch_size, data.shown) // views
    if images < devices:
        raise ConfigError(
            f"devices: {devices} are more than a batch has images, {images}; type devices={images} or fewer"
        )
    rest = data.shown % recipe.batch_size
    smallest = min(recipe.batch_size, rest if rest > 1 else recipe.batch_size) // views // devices
    if recipe.batch_norm == "local" and smallest < 2:
        raise ConfigError(
            f"trainer.batch_norm: local is not possible where one of {devices} devices has {smallest} images of a "
            "batch; type trainer.batch_norm=sync"
        )
    _check_draws(training, network, data)


def _check_draws(training: Training, network: nn.Module, data: Data) -> None:
    device = next(network.parameters()).device
    image = torch.zeros(_TRIED, *data.spec.image_shape, device=device)
    tried = copy.deepcopy(network).train()
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []), _WithoutDraws():
        before = _drawn(device)
        tried(image)
        same = torch.equal(before, _drawn(device))
    if not same:
        raise ConfigError(
            f"devices: {training.role}={training.model['name']} draws random numbers otherwise than by dropout and "
            "stochastic depth, and they would not be those of one process; switch that off in the network's options, "
            "or type devices=1"
        )


class _WithoutDraws(TorchFunctionMode):
    """Leaves out what `WholeBatch` draws as one process does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drops = func in DROPOUT or (func is Tensor.bernoulli_ and not any(map(torch.is_tensor, args[1:])))
        return args[0] if drops and len(args[0]) % _TRIED == 0 else func(*args, **(kwargs or {}))


def _drawn(device: torch.device) -> torch.Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
