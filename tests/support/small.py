"""Small networks, data and yaml files that several tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from kd_cli.data.base import Data, load_dataset
from kd_cli.types import Batch, DataSpec, Outputs

CONF = Path(__file__).resolve().parents[2] / "conf"
SPEC = DataSpec(num_classes=10, num_train=200, image_shape=(3, 16, 16), class_names=tuple("abcdefghij"))
CPU = torch.device("cpu")


class SmallNet(nn.Module):
    """Three stages with batch normalisation, dropout, a linear classifier; it publishes its taps as kd's models do.

    Args:
        channels: of each stage.
        first_stride: 2 halves every feature map.
        dropout: probability.
    """

    taps = {  # noqa: RUF012
        **{f"stage{i}": f"stage{i}" for i in (1, 2, 3)},
        **{f"preact{i}": f"stage{i}.2:in" for i in (1, 2, 3)},
        "embedding": "classifier:in",
        "distill_logits": "classifier",  # in place of a second head's
    }

    def __init__(self, channels: tuple[int, int, int], first_stride: int, dropout: float) -> None:
        super().__init__()
        first, second, third = channels
        self.stage1 = stage(3, first, first_stride)
        self.stage2 = stage(first, second, 2)
        self.stage3 = stage(second, third, 2)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(third, SPEC.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stage3(self.stage2(self.stage1(images)))
        return self.classifier(self.dropout(maps.mean(dim=(2, 3))))


def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())


def make_student(seed: int = 0) -> SmallNet:
    """Batch normalisation and dropout; maps of 8, 4 and 2 pixels."""
    torch.manual_seed(seed)
    return SmallNet((4, 6, 8), first_stride=2, dropout=0.3)


def make_teacher(seed: int = 1) -> SmallNet:
    """Other channel counts than the student, maps of twice its size, eval mode."""
    torch.manual_seed(seed)
    return SmallNet((5, 8, 12), first_stride=1, dropout=0.5).eval()


def make_batch(size: int = 8, seed: int = 2) -> Batch:
    """Real-valued images."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(size, *SPEC.image_shape, generator=random)
    return Batch(images, torch.randint(SPEC.num_classes, (size,), generator=random), torch.arange(size))


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Float64 numbers that want a gradient."""
    random = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=random, dtype=torch.float64)).requires_grad_()


def spec(num_classes: int) -> DataSpec:
    """The shape of the small images, with so many classes."""
    return DataSpec(num_classes, 200, (3, 16, 16), tuple("abcdefghij"[:num_classes]))


def batch_of(labels: Tensor) -> Batch:
    """Black images with these labels [B]."""
    return Batch(torch.zeros(len(labels), 3, 16, 16), labels, torch.arange(len(labels)))


def make_data(**options: Any) -> Data:
    """Synthetic images that fit the small networks: 180 for training, 20 for validation."""
    return load_dataset({"name": "synthetic", "num_train": 200, "num_test": 50, "image_size": 16, **options})


def logits_only(student: Tensor, teacher: Tensor) -> tuple[Outputs, Outputs, Batch]:
    """The arguments of a method that reads nothing but logits [B, K]; the label of row b is b mod K."""
    size = len(student)
    labels = torch.arange(size) % student.shape[1]
    return Outputs(student), Outputs(teacher), Batch(torch.zeros(size, 3, 4, 4), labels, torch.arange(size))


def same_tensors(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have the same state, bit for bit."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def read_yaml(group: str, name: str) -> dict[str, Any]:
    """conf/<group>/<name>.yaml with what its defaults list brings; interpolations as text."""
    own = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"), resolve=False)
    assert isinstance(own, dict)
    options: dict[str, Any] = {}
    for base in own.pop("defaults", ["_self_"]):
        options |= own if base == "_self_" else read_yaml(group, base)
    return options


def yaml_names(group: str) -> list[str]:
    """The choices of a config group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def loss_options(name: str) -> dict[str, Any]:
    """The options that `loss=name` gives."""
    return read_yaml("loss", name)
