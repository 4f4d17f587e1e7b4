"""Plain convolutional network: the articles' teachers and students."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, cast

from torch import Tensor, nn

from kd_cli.models.base import MODELS
from kd_cli.models.layers import hidden_layers
from kd_cli.ranges import Share, Widths, check_widths


@MODELS.register("cnn")
class CNN(nn.Module):
    """Article experiments E1 and E3: convolutions with ReLU, pooled by 2 block by block, then linear layers.

    Each block is [convolution, ReLU]… and maxpool 2; behind them stand [linear, ReLU, dropout]… and linear.

    Taps: `stage1`… [B, C, H, W], each block's pooled output; `preact1`… before its last ReLU;
    `embedding` [B, D], the last linear layer's input.

    Args:
        blocks: for each block the widths of its convolutions.
        hidden: units of each hidden linear layer.
        dropout: probability of zeroing a hidden unit; 0 leaves the layer out.
        kernel_size: of every convolution, pixels.
        padding: of every convolution, pixels on each side.

    Raises:
        ValueError: a layer without units, a dropout outside 0…1, or images too small for that many poolings.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        image_size: int,
        *,
        blocks: Annotated[Sequence[Sequence[int]], check_widths] = ((16,), (32,)),
        hidden: Widths = (64,),
        dropout: Share = 0.0,
        kernel_size: int = 3,
        padding: int = 1,
    ) -> None:
        super().__init__()
        size = _final_size(image_size, blocks, kernel_size, padding)
        self.blocks = nn.Sequential()
        channels = in_channels
        for block in blocks:
            self.blocks.append(_block([channels, *block], kernel_size, padding))
            channels = [channels, *block][-1]
        widths = [channels * size * size, *hidden]
        self.hidden = hidden_layers(widths, dropout, dropout_first=False)
        self.fc = nn.Linear(widths[-1], num_classes)
        self.taps = {f"stage{i + 1}": f"blocks.{i}" for i in range(len(blocks))} | {"embedding": "fc:in"}
        self.taps |= {
            f"preact{i + 1}": f"blocks.{i}.{2 * len(block) - 1}:in" for i, block in enumerate(blocks) if block
        }

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.fc(self.hidden(self.blocks(images).flatten(1))))


def _block(channels: Sequence[int], kernel_size: int, padding: int) -> nn.Sequential:
    block = nn.Sequential()
    for in_channels, out_channels in pairwise(channels):
        block.extend([nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding), nn.ReLU()])
    return block.append(nn.MaxPool2d(2))


def _final_size(image_size: int, blocks: Sequence[Sequence[int]], kernel_size: int, padding: int) -> int:
    """Height = width of the last block's output."""
    if kernel_size < 1 or padding < 0:
        raise ValueError(f"kernel_size: {kernel_size} must be at least 1 (and padding, {padding}, at least 0)")
    size = image_size
    for i, block in enumerate(blocks, start=1):
        size = (size + len(block) * (2 * padding - kernel_size + 1)) // 2
        if size < 1:
            raise ValueError(
                f"blocks: images of {image_size} pixels are too small for {len(blocks)} blocks: nothing is left "
                f"after the pooling of block {i}; give fewer blocks or more padding"
            )
    return size
