"""A network of perceptrons, which mix places and channels in turn."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from kd_cli.models.base import MODELS
from kd_cli.models.layers import MLP, patches_of
from kd_cli.ranges import Count


@MODELS.register("mixer")
class Mixer(nn.Module):
    """Tolstikhin et al. 2021, arXiv:2105.01601. Its Mixer-S/16 is width 512, depth 8 at 224 pixels.

    Taps: `stage1`…`stage4` [B, C, H, W], the tokens behind every quarter of the blocks, at the size divided by
    `patch_size`; `final`, those behind the last normalisation; `embedding`, their average [B, D].

    Args:
        width: D. As in all sizes of the paper, the perceptrons over tokens are half as wide, those over channels four
            times.
        depth: blocks, ≥ 4.
        patch_size: pixels of a side that make one token; None: 16, of images below 128 pixels 4.

    Raises:
        ValueError: fewer blocks, or patches that do not fill the image.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        image_size: int,
        *,
        width: Count = 256,
        depth: Count = 8,
        patch_size: Count | None = None,
    ) -> None:
        super().__init__()
        if depth < 4:
            raise ValueError(f"depth: {depth} is not possible; it must be a whole number ≥ 4, one block for each stage")
        self.patch_embed, tokens = patches_of(image_size, in_channels, width, patch_size, small=4)
        self.blocks = nn.Sequential(*(Block(width, tokens) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc = nn.Linear(width, num_classes)
        self.taps = {f"stage{i}": f"blocks.{depth * i // 4 - 1}:tokens0" for i in (1, 2, 3, 4)}
        self.taps |= {"final": "norm:tokens0", "embedding": "fc:in"}

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.fc(self.norm(self.blocks(self.patch_embed(images))).mean(dim=1)))


class Block(nn.Module):
    """A perceptron over the tokens of each channel, one over the channels of each token: [B, N, D] → [B, N, D]."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.mlp_tokens = MLP(tokens, width // 2)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp_channels = MLP(width, 4 * width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.mlp_tokens(self.norm1(tokens).transpose(1, 2)).transpose(1, 2)
        return cast(Tensor, tokens + self.mlp_channels(self.norm2(tokens)))
