"""How good a network is on one part of the data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kd_cli.arithmetic import exact
from kd_cli.data.base import Data, Part
from kd_cli.errors import ConfigError
from kd_cli.metrics.scores import accuracy, confusion
from kd_cli.turns import let_finish
from kd_cli.types import DataSpec

if TYPE_CHECKING:
    from kd_cli.training.parallel import Ranks


def evaluate(network: nn.Module, data: Data, part: Part, *, batch_size: int, device: torch.device) -> dict[str, Any]:
    """Accuracy and likelihood of `network` on `part`.

    Returns:
        As `scores.accuracy`; its percentages are rounded, so that every place shows the same number.

    Raises:
        ValueError: if the part is empty.
    """
    logits, labels = predict(network, data, part, batch_size=batch_size, device=device)
    if not len(labels):
        raise ValueError(f"the {part} part of {data.name} is empty")
    return accuracy(logits, labels)


def predict(
    network: nn.Module, data: Data, part: Part, *, batch_size: int, device: torch.device, ranks: Ranks | None = None
) -> tuple[Tensor, Tensor]:
    """Logits [N, K] in float32 and labels [N] of a whole part, in its order, on the CPU.

    Args:
        ranks: that share the work. Each has whole batches, so that the bits are those of one process.
    """
    logits, labels = [], []
    shard = (0, 1) if ranks is None else (ranks.rank, ranks.world)
    with evaluating(network):
        for batch in data.eval_batches(part, batch_size=batch_size, device=device, shard=shard):
            logits.append(network(batch.images).float())
            labels.append(batch.labels)
        none = torch.zeros(0, data.spec.num_classes), torch.zeros(0, dtype=torch.int64)
        said, known = (torch.cat(logits), torch.cat(labels)) if labels else (each.to(device) for each in none)
        if ranks is not None:
            said, known = ranks.joined(said), ranks.joined(known)
    let_finish(device)
    return said.cpu(), known.cpu()


def confusion_matrix(network: nn.Module, data: Data, part: Part, *, batch_size: int, device: torch.device) -> Tensor:
    """How often an image of class i was taken for class j: int64 [K, K] on the CPU."""
    return confusion(*predict(network, data, part, batch_size=batch_size, device=device))


def check_takes(network: nn.Module, spec: DataSpec, what: str, size: int | None = None) -> None:
    """Tries a network on one image, where images are no squares: it was told no more than their height.

    Args:
        what: how the user names it: `student=cnn`.
        size: H = W, pixels, that suits it; None: one that suits the images.

    Raises:
        ConfigError: it cannot take them.
    """
    channels, height, width = spec.image_shape
    if height == width:
        return
    modes = {module: module.training for module in network.modules()}
    place = next((tensor.device for tensor in network.parameters()), None)
    try:
        with torch.no_grad():  # no inference mode: what it may keep of this is trained with
            network.eval()(torch.zeros(1, channels, height, width, device=place))
    except Exception as error:  # each network has its own words
        from kd_cli.data.resize import square_size

        role = what.partition("=")[0]
        raise ConfigError(
            f"{what} cannot take images of {width}×{height} pixels (width × height), it is made for squares; type "
            f"dataset.image_size={size or square_size(height, width)}, or take a convolutional network: {role}=resnet20"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, exact arithmetic; the network's mode is put back afterwards."""
    was_training = network.training
    network.eval()
    place = next(network.parameters(), torch.empty(0)).device
    try:
        with torch.inference_mode(), exact(place):
            yield
    finally:
        network.train(was_training)
