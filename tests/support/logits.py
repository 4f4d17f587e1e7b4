"""Random logits with labels, and what tests of losses of logits ask of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def draw(shape: tuple[int, int], seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Student and teacher logits, float64, and labels; the student's logits want a gradient."""
    random = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher, torch.randint(shape[1], shape[:1], generator=random)


def gradient(loss: Loss, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return torch.autograd.grad(loss(student, teacher, labels), student)[0]


def arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple((t.detach().double() if t.is_floating_point() else t).numpy() for t in tensors)
