"""What is left of logits of which the highest are kept, against float64 arithmetic of its own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kd_cli.teachers.outputs import Kept, make_layout
from kd_cli.teachers.top_k import TopK, costs, told
from kd_cli.types import Outputs


def make_logits(images: int = 16, classes: int = 50, scale: float = 4.0) -> Tensor:
    return scale * torch.randn(images, classes, generator=torch.Generator().manual_seed(3))


def expected(row: list[float], k: int) -> list[float]:
    """One image's logits as they shall come back, in Python's float64."""
    level = math.log(math.fsum(math.exp(value) for value in row))
    order = sorted(range(len(row)), key=lambda place: (-row[place], place))
    tail = max(1 - math.fsum(math.exp(row[place] - level) for place in order[:k]), 2**-24)
    others = level + math.log(tail / (len(row) - k))
    return [row[place] if place in order[:k] else others for place in range(len(row))]


def back(logits: Tensor, k: int, dtype: torch.dtype | None = None) -> Tensor:
    coding = TopK("logits", logits, k, dtype)
    return coding.decode(coding.encode(logits))


@pytest.mark.parametrize("k", [1, 5, 49])
def test_the_kept_logits_and_the_spread_tail_are_those_of_a_slow_reference(k: int) -> None:
    logits = make_logits()
    wanted = torch.tensor([expected(row, k) for row in logits.double().tolist()], dtype=torch.float64)
    # A sum of probabilities is rounded by some 1e-16, and a tail of 2**-24 by 2**24 times that, in both.
    torch.testing.assert_close(back(logits.double(), k), wanted, rtol=0, atol=1e-7)
    left, order = back(logits, k).double(), logits.topk(k).indices
    torch.testing.assert_close(left.gather(1, order), wanted.gather(1, order), rtol=0, atol=1e-5)
    torch.testing.assert_close(left.softmax(dim=1), wanted.softmax(dim=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_at_temperature_1_the_log_sum_exp_is_the_teachers(dtype: torch.dtype | None) -> None:
    for scale in (0.0, 1.0, 4.0):
        logits = make_logits(scale=scale)
        left = back(logits, 5, dtype).double().logsumexp(dim=1)
        torch.testing.assert_close(left, logits.double().logsumexp(dim=1), rtol=0, atol=3e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0, 20.0])
def test_at_any_temperature_the_kept_classes_keep_their_ratios_and_the_tail_is_on_its_side(temperature: float) -> None:
    logits, k = make_logits().double(), 5
    order = logits.topk(k).indices
    true, left = ((each / temperature).softmax(dim=1) for each in (logits, back(logits, k)))
    kept, kept_left = true.gather(1, order), left.gather(1, order)
    torch.testing.assert_close(kept_left / kept_left[:, :1], kept / kept[:, :1], rtol=1e-9, atol=0)
    tail, tail_left = 1 - kept.sum(dim=1), 1 - kept_left.sum(dim=1)
    if temperature == 1:
        torch.testing.assert_close(tail_left, tail, rtol=1e-9, atol=1e-12)
    else:
        assert ((tail_left > tail) == (temperature > 1)).all()


def test_all_but_one_kept_is_nearly_everything() -> None:
    logits = make_logits(scale=1.0)
    torch.testing.assert_close(back(logits, 49), logits, rtol=0, atol=1e-3)


def test_a_teacher_without_a_doubt_has_a_finite_tail() -> None:
    logits = torch.zeros(2, 10)
    logits[:, 3] = 200.0
    left = back(logits, 2, torch.float16)
    assert left.isfinite().all()
    assert (left.argmax(dim=1) == 3).all()
    assert (left.softmax(dim=1)[:, 3] > 1 - 1e-6).all()


@pytest.mark.parametrize("classes", [40_000, 65_536, 65_537])
def test_every_class_has_its_number(classes: int) -> None:
    logits = torch.zeros(3, classes)
    logits[0, classes - 1], logits[1, 32_768], logits[2, 0] = 9.0, 9.0, 9.0
    coding = TopK("logits", logits, 1)
    columns = coding.encode(logits)
    assert coding.decode(columns).argmax(dim=1).tolist() == [classes - 1, 32_768, 0]
    assert columns["logits classes"].element_size() == (2 if classes <= 65_536 else 4)


def test_of_equal_logits_the_first_classes_are_kept_whatever_the_batch() -> None:
    logits = torch.zeros(7, 30)
    coding = TopK("logits", logits, 4)
    assert coding.encode(logits)["logits classes"].tolist() == [[0, 1, 2, 3]] * 7
    assert coding.encode(logits[:1])["logits classes"].tolist() == [[0, 1, 2, 3]]


def test_float16_costs_a_two_thousandth_of_a_log_probability() -> None:
    logits = make_logits()
    coding = TopK("logits", logits, 5, torch.float16)
    level = logits.double().logsumexp(dim=1, keepdim=True)
    kept = logits.double().topk(5)
    distances = kept.values - level
    left = coding.decode(coding.encode(logits)).double().gather(1, kept.indices) - level
    assert ((left - distances).abs() <= distances.abs() * 2**-11 + 4e-6).all()


@pytest.mark.parametrize("k", [0, 50, 51])
def test_as_many_as_there_are_classes_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"{k} of 50 classes"):
        TopK("logits", make_logits(), k)


def test_what_it_costs_is_what_a_slow_reference_says() -> None:
    logits, kept = make_logits(), Kept(5, "float16")
    said = Outputs(logits, {"maps": torch.randn(16, 3, 2, 2)})
    layout = make_layout(said, kept)
    facts = costs(said, layout, kept)
    true, left = (each.double() for each in (logits, layout.through(said).logits))
    for temperature in (1, 4):
        pairs = zip((true / temperature).softmax(1).tolist(), (left / temperature).softmax(1).tolist(), strict=True)
        sums = [math.fsum(p * math.log(p / q) for p, q in zip(*rows, strict=True)) for rows in pairs]
        assert facts[f"kl_{temperature}"] == pytest.approx(math.fsum(sums) / 16, rel=1e-3, abs=1e-6)
    tail = 1 - true.softmax(1).topk(5).values.sum(1)
    assert facts["tail_mass"] == pytest.approx(tail.mean().item(), abs=1e-4)
    difference = (said.features["maps"] - said.features["maps"].half().float()).abs().max().item()
    assert facts["largest_difference"] == {"maps": pytest.approx(difference)}
    assert "the 5 highest of 50 logits as float16" in told(facts)


def test_exact_answers_cost_nothing() -> None:
    said = Outputs(make_logits(), {"maps": torch.randn(16, 3, 2, 2).contiguous(memory_format=torch.channels_last)})
    left = make_layout(said, Kept()).through(said)
    assert torch.equal(left.logits, said.logits)
    assert torch.equal(left.features["maps"], said.features["maps"])
    assert left.features["maps"].stride() == said.features["maps"].stride()


@pytest.mark.parametrize("kept", [Kept(), Kept(3), Kept(3, "float16"), Kept(None, "bfloat16")])
@pytest.mark.parametrize("size", [1, 5])
def test_rows_come_back_as_they_were_packed(kept: Kept, size: int) -> None:
    features = {"a": torch.randn(5, 3, 2, 2), "b": torch.randn(5, 7).double(), "c": torch.randn(5, 1).half()}
    said = Outputs(make_logits(5, 11), features)
    layout = make_layout(said, kept)
    rows = layout.pack(layout.encode(said))[:size]
    assert rows.shape == (size, layout.row_bytes)
    columns = layout.unpack(rows.view(layout.word))
    assert {name: tuple(column.shape) for name, column in columns.items()} == {
        name: (size, *column.shape[1:]) for name, column in layout.encode(said).items()
    }
    assert all(torch.equal(columns[name], column[:size]) for name, column in layout.encode(said).items())
