"""Small networks that differ in what stands between their last stage and their classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.support.small import SPEC

HEADS = ("average", "norm and relu", "convolution", "hidden layer", "one pixel", "nothing published")


class Headed(nn.Module):
    """One stage, a head of the given kind, a linear classifier.

    Args:
        head: one of HEADS; with "average" and "one pixel" the classifier reads the average of the stage's map.
        channels: of the stage.
        size: of its map, pixels.
    """

    def __init__(self, head: str, channels: int, size: int) -> None:
        super().__init__()
        size = 1 if head == "one pixel" else size
        activation = nn.Identity() if head == "norm and relu" else nn.ReLU()
        self.stage = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.stage.extend([nn.AdaptiveAvgPool2d(size), activation])
        wide = channels + 2 if head in ("convolution", "hidden layer") else channels
        self.between = nn.Sequential()
        if head == "norm and relu":
            self.between.extend([nn.BatchNorm2d(channels), nn.ReLU()])
        elif head == "convolution":
            self.between.extend([nn.Conv2d(channels, wide, 1), nn.ReLU()])
        self.hidden = nn.Linear(channels, wide) if head == "hidden layer" else nn.Identity()
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(wide, SPEC.num_classes))
        self.taps = {"stage1": "stage"} | ({} if head == "nothing published" else {"embedding": "head.1:in"})

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.hidden(self.between(self.stage(images)).mean(dim=(2, 3))))


def headed(head: str, *, seed: int = 0, channels: int = 6, size: int = 4) -> Headed:
    """A fresh network in eval mode."""
    torch.manual_seed(seed)
    return Headed(head, channels, size).eval()
