"""Multilayer perceptron, down to a single linear layer."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from kd_cli.models.base import MODELS
from kd_cli.models.layers import hidden_layers
from kd_cli.ranges import Share, Widths


@MODELS.register("mlp")
class MLP(nn.Module):
    """Article experiment E2: flatten, then [linear, dropout, ReLU] per hidden layer, then linear.

    Dropout stands before the ReLU, as in the article. Taps: `embedding` [B, D], the last linear layer's input; without
    hidden layers it is the flattened image.

    Args:
        hidden: units of each hidden layer; none makes a linear classifier.
        dropout: probability of zeroing a hidden unit; 0 leaves the layer out.

    Raises:
        ValueError: a layer without units, or a dropout outside 0…1.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        image_size: int,
        *,
        hidden: Widths = (128,),
        dropout: Share = 0.0,
    ) -> None:
        super().__init__()
        widths = [in_channels * image_size * image_size, *hidden]
        self.hidden = hidden_layers(widths, dropout, dropout_first=True)
        self.fc = nn.Linear(widths[-1], num_classes)
        self.taps = {"embedding": "fc:in"}

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.fc(self.hidden(images.flatten(1))))
