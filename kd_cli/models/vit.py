"""Vision transformers for images of any size, with the distillation token of DeiT."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_cli.models.base import MODELS
from kd_cli.models.layers import MLP, patches_of
from kd_cli.ranges import Count


class VisionTransformer(nn.Module):
    """Dosovitskiy et al. 2021, arXiv:2010.11929, in the sizes of Touvron et al. 2021 (DeiT), arXiv:2012.12877.

    Taps: `stage1`…`stage4` [B, C, H, W], the image's tokens behind every quarter of the blocks, at the size divided by
    `patch_size`; `embedding`, the class token behind the last normalisation [B, D]. With a distillation token,
    `embedding` is both tokens [B, 2 D], and `distill_logits` [B, K] are those of the second one's head: see `Heads`.
    Names are timm's, but for the classifier's.

    Args:
        width: D; there is a head of attention for each 64.
        patch_size: pixels of a side that make one token; None: 16, of images below 128 pixels 4.
        distilled: a second token and its head learn from the teacher alone (`loss=deit_token`).

    Raises:
        ValueError: patches that do not fill the image.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        image_size: int,
        *,
        width: int,
        depth: int = 12,
        patch_size: int | None = None,
        distilled: bool = False,
    ) -> None:
        super().__init__()
        self.patch_embed, tokens = patches_of(image_size, in_channels, width, patch_size, small=4)
        own = 1 + distilled
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width)) if distilled else None
        self.pos_embed = nn.Parameter(torch.zeros(1, own + tokens, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc = Heads(width, num_classes) if distilled else nn.Linear(width, num_classes)
        self.taps = {f"stage{i}": f"blocks.{depth * i // 4 - 1}:tokens{own}" for i in (1, 2, 3, 4)}
        self.taps |= {"embedding": "fc:in"} | ({"distill_logits": "fc.distilled"} if distilled else {})
        self._initialise()

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)
        learned = (token for token in (self.cls_token, self.dist_token) if token is not None)
        own = [token.expand(patches.shape[0], -1, -1) for token in learned]  # len() would fix the number in an export
        tokens = torch.cat([*own, patches], dim=1) + self.pos_embed
        tokens = self.norm(self.blocks(tokens))
        return cast(Tensor, self.fc(tokens[:, : len(own)].flatten(1)))

    def no_weight_decay(self) -> set[str]:
        """What DeiT's recipe leaves out of the weight decay beside biases and normalisations."""
        return {"cls_token", "dist_token", "pos_embed"}

    def _initialise(self) -> None:
        """As DeiT: 0.02 is the standard deviation of tokens, positions and linear layers, whose biases are 0."""
        own = [self.cls_token, self.pos_embed, *([] if self.dist_token is None else [self.dist_token])]
        linear = [module for module in self.modules() if isinstance(module, nn.Linear)]
        for weight in (*own, *(layer.weight for layer in linear)):
            nn.init.trunc_normal_(weight, std=0.02)
        for layer in linear:
            nn.init.zeros_(layer.bias)


class Block(nn.Module):
    """Attention and a perceptron, each behind a normalisation and beside a shortcut: [B, N, D] → [B, N, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, 4 * width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return cast(Tensor, tokens + self.mlp(self.norm2(tokens)))


class Attention(nn.Module):
    """Every token attends to all: [B, N, D] → [B, N, D], with a head for each 64 channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 64
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value)
        return cast(Tensor, self.proj(seen.transpose(1, 2).flatten(2)))


class Heads(nn.Module):
    """The classifiers of the class token and of the distillation token: [B, 2 D] → [B, K].

    What they say is averaged. In a training whose loss reads `distill_logits`, the second one learns from these alone,
    and the logits are the first one's (DeiT, §4). A training that does not read them, a baseline say, learns the
    average, as timm does: no head may stay as it was drawn and still vote.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, num_classes)
        self.distilled = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        own, second = tokens.chunk(2, dim=1)
        logits, distilled = self.head(own), self.distilled(second)
        read = bool(self.distilled._forward_hooks)  # by a tap
        return cast(Tensor, logits if self.training and read else (logits + distilled) / 2)


@MODELS.register("vit_tiny")
def vit_tiny(
    num_classes: int, in_channels: int, image_size: int, *, patch_size: Count | None = None, distilled: bool = False
) -> nn.Module:
    """DeiT-Ti's size: 192 channels, 12 blocks. As `VisionTransformer`."""
    return VisionTransformer(
        num_classes, in_channels, image_size, width=192, patch_size=patch_size, distilled=distilled
    )


@MODELS.register("vit_small")
def vit_small(
    num_classes: int, in_channels: int, image_size: int, *, patch_size: Count | None = None, distilled: bool = False
) -> nn.Module:
    """DeiT-S's size: 384 channels, 12 blocks. As `VisionTransformer`."""
    return VisionTransformer(
        num_classes, in_channels, image_size, width=384, patch_size=patch_size, distilled=distilled
    )
