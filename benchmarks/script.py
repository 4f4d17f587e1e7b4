"""Distillation as a user writes it without a framework, after PyTorch's tutorial: what `kd` is measured against."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The layers of kd's file, in the order in which the teacher here has them.
LAYERS = ("blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2", "hidden.0", "fc")


class Teacher(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 128, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(128, 64, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(nn.Linear(2048, 512), nn.ReLU(), nn.Dropout(0.1), nn.Linear(512, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))


class Student(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(nn.Linear(1024, 256), nn.ReLU(), nn.Dropout(0.1), nn.Linear(256, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))


def load_teacher(path: str) -> Teacher:
    """The teacher that kd trained, so that both sides ask the same one."""
    weights, teacher = load_file(path), Teacher()
    tensors = [weights[f"{layer}.{kind}"] for layer in LAYERS for kind in ("weight", "bias")]
    teacher.load_state_dict(dict(zip(teacher.state_dict(), tensors, strict=True)))
    return teacher.eval()


def datasets(root: str, augment: bool) -> tuple[ImageFolder, ImageFolder]:
    plain = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    random = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if augment else []
    train = ImageFolder(f"{root}/train", transforms.Compose([*random, *plain]))
    return train, ImageFolder(f"{root}/test", transforms.Compose(plain))


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    soft_targets = F.softmax(teacher / temperature, dim=1)
    soft_answers = F.log_softmax(student / temperature, dim=1)
    return F.kl_div(soft_answers, soft_targets, reduction="batchmean") * temperature**2


def train_epoch(
    network: nn.Module,
    teacher: Teacher | None,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    args: argparse.Namespace,
) -> tuple[float, int]:
    """The mean loss of an epoch, and its steps."""
    network.train()
    total, steps = 0.0, 0
    for images, labels in loader:
        images, labels = images.to(args.device), labels.to(args.device)
        optimizer.zero_grad()
        logits = network(images)
        loss = F.cross_entropy(logits, labels)
        if teacher is not None:
            with torch.no_grad():
                teacher_logits = teacher(images)
            soft = distillation_loss(logits, teacher_logits, args.temperature)
            loss = args.kl_weight * soft + args.ce_weight * loss
        loss.backward()
        optimizer.step()
        total += loss.item() * len(labels)
        steps += 1
    return total / len(loader.dataset), steps


@torch.no_grad()
def accuracy(network: nn.Module, loader: DataLoader, device: str = "cpu") -> float:
    network.eval()
    correct = sum((network(images.to(device)).argmax(dim=1).cpu() == labels).sum().item() for images, labels in loader)
    return 100 * correct / len(loader.dataset)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="holds train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--role", choices=("student", "teacher", "distill"), default="distill")
    parser.add_argument("--teacher", help="the teacher's .safetensors, to distill from")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--kl-weight", type=float, default=0.25)
    parser.add_argument("--ce-weight", type=float, default=0.75)
    parser.add_argument("--augment", action="store_true", help="crop and flip")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    begin = time.perf_counter()
    torch.manual_seed(args.seed)
    train, test = datasets(args.data, args.augment)
    options = {"batch_size": 128, "num_workers": args.workers, "persistent_workers": args.workers > 0}
    options["pin_memory"] = args.device != "cpu"
    train_loader = DataLoader(train, shuffle=True, **options)
    network = (Teacher() if args.role == "teacher" else Student()).to(args.device)
    teacher = load_teacher(args.teacher).to(args.device) if args.role == "distill" else None
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    report = {"images": len(train), "steps": 0, "losses": [], "epoch_seconds": []}
    for epoch in range(args.epochs):
        start = time.perf_counter()
        loss, steps = train_epoch(network, teacher, train_loader, optimizer, args)
        report["epoch_seconds"].append(time.perf_counter() - start)
        report["losses"].append(loss)
        report["steps"] += steps
        if not args.json:
            print(f"epoch {epoch + 1}: loss {loss:.4f}")
    report["test_top1"] = accuracy(network, DataLoader(test, **options), args.device)
    report["seconds"] = time.perf_counter() - begin
    print(json.dumps(report) if args.json else f"test accuracy {report['test_top1']:.2f} %")


if __name__ == "__main__":
    main()
