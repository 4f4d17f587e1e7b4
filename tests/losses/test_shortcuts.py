"""What is computed in fewer steps than it is written in is the same."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kd_cli.losses.at import attention_map
from kd_cli.losses.base import build_loss
from kd_cli.losses.common import inner_products, self_products, unit
from kd_cli.losses.mlkd import mlkd_loss
from kd_cli.losses.nst import kernel_mean, nst_loss
from kd_cli.training.task import Distillation
from kd_cli.types import Outputs
from tests.support.small import SPEC, batch_of, draw, loss_options, make_batch, make_student, make_teacher


def gradient(value: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(value, leaf)[0]


def test_products_of_rows_with_themselves_have_the_value_and_the_gradient_of_products_of_any_rows() -> None:
    rows = draw(3, 4, 5)
    own, any_rows = self_products(rows), inner_products(rows, rows)
    assert torch.equal(own, any_rows)
    wanted = draw(3, 4, 4, seed=1).detach()
    wanted = wanted + wanted.mT  # both halves alike, as the losses are that use it
    slopes = [gradient((products - wanted).square().sum(), rows) for products in (own, any_rows)]
    torch.testing.assert_close(*slopes)


def test_a_vector_of_zeros_has_no_direction_and_no_gradient_and_nan_stays() -> None:
    vectors = torch.tensor([[0.0, 0.0], [3.0, 4.0], [math.nan, 1.0]], requires_grad=True)
    made = unit(vectors)
    assert made[:2].tolist() == [[0.0, 0.0], [pytest.approx(0.6), pytest.approx(0.8)]]
    assert made[2].isnan().all()
    assert gradient(made[:2].sum(), vectors)[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("ours", "theirs"), [((5, 9, 2, 2), (5, 7, 2, 2)), ((5, 3, 6, 6), (5, 4, 6, 6))])
def test_nst_is_the_same_by_positions_and_by_channels(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    student, teacher = draw(*ours), draw(*theirs, seed=1).detach()
    s, t = (unit(maps.flatten(2)) for maps in (student, teacher))
    written = kernel_mean(t) + kernel_mean(s) - 2 * inner_products(s, t).square().mean()
    torch.testing.assert_close(nst_loss(student, teacher), written)
    torch.testing.assert_close(gradient(nst_loss(student, teacher), student), gradient(written, student))


def test_an_attention_map_of_power_two_is_that_of_any_power() -> None:
    maps = draw(2, 3, 4, 4)
    square, near = attention_map(maps, 2.0), attention_map(maps, 2.0 + 1e-12)
    torch.testing.assert_close(square, near)
    weights = draw(*square.shape, seed=1).detach()
    torch.testing.assert_close(gradient((weights * square).sum(), maps), gradient((weights * near).sum(), maps))


def test_mlkd_of_several_temperatures_is_the_sum_over_each() -> None:
    method, _ = build_loss({**loss_options("mlkd"), "temperatures": [0.5, 2.0, 6.0]})
    student, teacher = draw(5, 4), draw(5, 4, seed=1)
    together = method(Outputs(student), Outputs(teacher), batch_of(torch.zeros(5, dtype=torch.int64)))
    each = sum(mlkd_loss(student, teacher, temperature) for temperature in (0.5, 2.0, 6.0))
    torch.testing.assert_close(together, each)
    torch.testing.assert_close(gradient(together, student), gradient(each, student))


def test_crd_looks_for_its_normaliser_again_where_a_state_was_loaded() -> None:
    def task() -> Distillation:
        method, mix = build_loss(loss_options("crd"))
        torch.manual_seed(0)
        return Distillation(make_student(), make_teacher(), method, mix, SPEC, name="crd").train()

    one, batch = task(), make_batch()
    fresh = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    one(batch)
    known = one.method.log_z.clone()
    assert one.method.begun
    one(batch)
    assert torch.equal(one.method.log_z, known)  # it is that of the first batch
    one.load_state_dict(fresh)
    assert not one.method.begun
    torch.manual_seed(3)
    again = one(batch).loss
    other = task()
    torch.manual_seed(3)
    assert torch.equal(other(batch).loss, again)
    assert one.method.log_z.isfinite().all()
    one.eval()
    one(batch)
