"""Mathematics that several methods share."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) [B, K], in float32 at least, so that half precision cannot overflow it."""
    return torch.log_softmax(at_least_float32(logits) / temperature, dim=1)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor, raised to float32 if it is of half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def unit(vectors: Tensor, dim: int = -1) -> Tensor:
    """Vectors divided by their length. A vector of zeros stays one, and its gradient is 0.

    (`F.normalize` divides such a vector by 1e-12 and its gradient with it, which a dead channel or two equal images are
    enough for.)
    """
    squares = vectors.square().sum(dim, keepdim=True)
    empty = squares == 0  # and not the opposite of > 0, which would make zeros of NaN
    return vectors / torch.where(empty, math.inf, torch.where(empty, 1, squares).sqrt())


def inner_products(one: Tensor, other: Tensor) -> Tensor:
    """Of the rows of [..., M, D] with the rows of [..., N, D]: [..., M, N], in float32 at least, autocast or not."""
    kind = one.device.type
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
        return at_least_float32(one) @ at_least_float32(other).mT


def self_products(rows: Tensor) -> Tensor:
    """`inner_products` of the rows of [..., N, D] with themselves, for losses that treat (i, j) and (j, i) alike.

    Then both factors have the same gradient, and one product makes it.
    """
    products = inner_products(rows, rows.detach())
    return 2 * products - products.detach()


def check_logits(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Refuses two networks that do not speak of the same classes. Raises ValueError: unless both are [B, K]."""
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        shapes = f"{list(student_logits.shape)} and {list(teacher_logits.shape)}"
        raise ValueError(f"student and teacher logits must both be [B, K], not {shapes}")


def other_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits of all classes but the label's, in their order: [B, K] → [B, K − 1].

    Nothing is gathered: on CUDA the gradient of that is added up by a sort, or in any order.
    """
    before = torch.arange(logits.shape[1] - 1, device=logits.device) < labels[:, None]
    return torch.where(before, logits[:, :-1], logits[:, 1:])


def of_label(values: Tensor, labels: Tensor) -> Tensor:
    """Of each row of [B, K] the value of its label, [B]; gathered as little as in `other_logits`."""
    own = torch.arange(values.shape[1], device=values.device) == labels[:, None]
    return torch.where(own, values, 0).sum(dim=1)


def log_binary(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """log (p of the label, p of all others together), [B, 2]."""
    softened = at_least_float32(logits) / temperature
    gap = of_label(softened, labels) - other_logits(softened, labels).logsumexp(dim=1)
    return torch.stack([F.logsigmoid(gap), F.logsigmoid(-gap)], dim=1)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) of log-probabilities [B, K], mean over the batch."""
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def standardized(rows: Tensor) -> Tensor:
    """Each row of [R, N] with mean 0 and variance 1 (population variance: divided by N), in float32 at least.

    A constant row has no z-scores; it becomes 0 and takes no gradient.
    """
    rows = at_least_float32(rows)
    centred = rows - rows.mean(dim=1, keepdim=True)
    length = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    # The mean of N equal numbers is off by a few roundings: what is left of a constant row is not exactly 0.
    rounding = 10 * torch.finfo(rows.dtype).eps * torch.linalg.vector_norm(rows.detach(), dim=1, keepdim=True)
    constant = length <= rounding
    return torch.where(constant, 0.0, centred * rows.shape[1] ** 0.5 / torch.where(constant, 1.0, length))
