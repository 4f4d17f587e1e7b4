"""What is found, or told, before the first step."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import SMALL, Outcome

Kd = Callable[..., Outcome]
TINY = (*SMALL[:3], "dataset.image_size=4")  # an image becomes one pixel


def test_one_image_is_too_few_for_batch_normalisation_where_it_becomes_one_pixel(kd: Kd) -> None:
    words = ("train-baseline", *TINY, "student=resnet8", "trainer.epochs=1", "trainer.limit_train_batches=2")
    message = kd(*words, "trainer.batch_size=1", code=2).message
    assert "trainer.batch_size=1: one image has one number for each channel of student=resnet8" in message
    assert "type trainer.batch_size=2 or more" in message
    kd(*words, "trainer.batch_size=2")
    kd("train-baseline", *SMALL, "trainer.batch_size=1", "trainer.limit_train_batches=2")  # nothing is normalised


@pytest.mark.parametrize(
    ("options", "told"), [(("trainer.ema_decay=0.9999",), True), (("trainer.ema_decay=0.5",), False)]
)
def test_a_moving_average_that_has_not_left_its_beginning_is_told(kd: Kd, options: tuple[str, ...], told: bool) -> None:
    said = kd("train-baseline", *SMALL, "trainer.batch_size=90", "trainer.epochs=1", *options).err
    assert ("after all 3 updates 99.98 % of the moving average, which is what is kept, is still" in said) == told
    assert ("with trainer.ema_decay=0.1 it is 1 %" in said) == told
