"""Mathematics that several methods share."""

from __future__ import annotations

import torch
from torch import Tensor


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) [B, K], in float32 at least, so that half precision cannot overflow it."""
    return torch.log_softmax(at_least_float32(logits) / temperature, dim=1)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor, raised to float32 if it is of half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_logits(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Refuses two networks that do not speak of the same classes.

    Raises:
        ValueError: unless both are [B, K].
    """
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        shapes = f"{list(student_logits.shape)} and {list(teacher_logits.shape)}"
        raise ValueError(f"student and teacher logits must both be [B, K], not {shapes}")
