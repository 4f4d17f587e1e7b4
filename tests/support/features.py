"""The losses of features as functions of two lists of features, so that one test can speak of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kd_cli.losses.at import at_loss
from kd_cli.losses.encoder import encoder_loss
from kd_cli.losses.fitnet import fitnet_loss
from kd_cli.losses.fsp import fsp_loss
from kd_cli.losses.kdsvd import kdsvd_loss
from kd_cli.losses.nst import nst_loss
from kd_cli.losses.pkt import pkt_loss
from kd_cli.losses.sp import sp_loss
from kd_cli.losses.vid import vid_loss
from kd_cli.losses.vkd import vkd_loss
from kd_cli.losses.wkd_f import wkd_f_loss
from tests.losses.references import features as references
from tests.losses.references import recent

Shapes = Sequence[tuple[int, ...]]
Features = Sequence[Tensor]


@dataclass(frozen=True)
class Case:
    """A loss, its reference, and shapes of the student's and the teacher's features that it can compare.

    Args:
        loss: (student's features, teacher's features) → scalar.
        reference: the same of float64 arrays.
        shapes: (student's, teacher's) for each feature, all of 5 images; the first are those of most tests.
    """

    loss: Callable[[Features, Features], Tensor]
    reference: Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], float]
    shapes: Sequence[tuple[Shapes, Shapes]]


VECTORS = [([(5, 6)], [(5, 9)]), ([(5, 2)], [(5, 3)]), ([(5, 3, 2, 2)], [(5, 4, 3, 1)])]
MAPS = [
    ([(5, 3, 4, 4)], [(5, 6, 4, 4)]),
    ([(5, 4, 3, 5)], [(5, 2, 7, 5)]),
    ([(5, 1, 8, 2)], [(5, 3, 3, 6)]),
    ([(5, 2, 1, 1)], [(5, 3, 1, 1)]),
]
STAGES = [
    ([(5, 3, 4, 4), (5, 4, 2, 2), (5, 6, 2, 2)], [(5, 3, 6, 5), (5, 4, 3, 3), (5, 6, 1, 2)]),
    ([(5, 4, 5, 5), (5, 7, 3, 2)],) * 2,
    ([(5, 2, 1, 1), (5, 3, 1, 1)],) * 2,
]
CASES: dict[str, Case] = {
    "fitnet": Case(
        lambda s, t: fitnet_loss(s[0], t[0]),
        lambda s, t: references.fitnet(s[0], t[0]),
        [([shape], [shape]) for shape in ((5, 3, 4, 2), (5, 7), (5, 1, 1, 1))],
    ),
    **{
        f"at, power = {p:g}": Case(
            lambda s, t, p=p: at_loss(s[0], t[0], power=p), lambda s, t, p=p: references.at(s[0], t[0], p), MAPS
        )
        for p in (2.0, 0.5, 1.0, 4.0)
    },
    "sp": Case(lambda s, t: sp_loss(s[0], t[0]), lambda s, t: references.sp(s[0], t[0]), VECTORS),
    "pkt": Case(lambda s, t: pkt_loss(s[0], t[0]), lambda s, t: references.pkt(s[0], t[0]), VECTORS),
    "nst": Case(lambda s, t: nst_loss(s[0], t[0]), lambda s, t: references.nst(s[0], t[0]), MAPS),
    "fsp": Case(fsp_loss, references.fsp, STAGES),
    "vid": Case(
        lambda s, t: vid_loss(s[0], s[1].abs() + 0.1, t[0]),
        lambda s, t: references.vid(s[0], abs(s[1]) + 0.1, t[0]),
        [([shape, (shape[1],)], [shape]) for shape in ((5, 3, 4, 2), (5, 7), (5, 1, 1, 1))],
    ),
    **{
        f"wkd_f, grid = {n}": Case(
            lambda s, t, n=n: wkd_f_loss(s[0], t[0], 0.5, 0.25, n),
            lambda s, t, n=n: recent.wkd_f(s[0], t[0], 0.5, 0.25, n),
            [([(5, 3, 4, 4)], [(5, 3, 6, 5)]), ([(5, 2, 3, 7)],) * 2, ([(5, 1, 1, 1)],) * 2],
        )
        for n in (1, 2)
    },
    "vkd": Case(
        lambda s, t: vkd_loss(s[0], t[0]), lambda s, t: recent.vkd(s[0], t[0]), [([(5, 6)],) * 2, ([(5, 2)],) * 2]
    ),
    **{
        f"encoder, {d}": Case(
            lambda s, t, d=d: encoder_loss(s[0], t[0], d),
            lambda s, t, d=d: recent.encoder(s[0], t[0], d),
            [([(5, 3, 4, 2)],) * 2, ([(5, 6)],) * 2, ([(5, 1)],) * 2],
        )
        for d in ("cosine", "mse")
    },
    **{
        f"kdsvd, k = {k}": Case(
            lambda s, t, k=k: kdsvd_loss(s, t, k), lambda s, t, k=k: references.kdsvd(s, t, k), STAGES
        )
        for k in (1, 2, 4)
    },
}


def draw(shapes: Shapes, seed: int = 0, scale: float = 1.0) -> list[Tensor]:
    """Float64 numbers that want a gradient."""
    random = torch.Generator().manual_seed(seed)
    numbers = [scale * torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    return [feature.requires_grad_() for feature in numbers]


def gradients(case: Case, student: Features, teacher: Features) -> tuple[Tensor, ...]:
    """Of the loss, by the student's features."""
    return torch.autograd.grad(case.loss(student, teacher), student)
