"""Stochastic weight averaging: the statistics of batch normalisation, measured for weights that never learned."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from kd_cli.arithmetic import exact
from kd_cli.training.groups import frozen_norms
from kd_cli.types import Batch


@torch.no_grad()
def measure_norms(network: nn.Module, batches: Iterable[Batch]) -> None:
    """Running statistics of all normalisations: the mean over batches of images, each batch with the same weight.

    All else is in eval mode, as it will be used; frozen normalisations keep what they have (Izmailov et al. 2018,
    arXiv:1803.05407, section 3.2).

    Args:
        batches: each B images, wherever they are.
    """
    frozen = frozen_norms(network)
    norms = [each for each in network.modules() if isinstance(each, _NormBase) and each.track_running_stats]
    norms = [each for each in norms if all(each is not other for other in frozen)]
    if not norms:
        return
    momenta, was_training = [norm.momentum for norm in norms], network.training
    network.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None  # the mean of all, and no moving average
        with exact(next(network.parameters()).device):
            for batch in batches:
                batch.shown(network)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.train(was_training)
