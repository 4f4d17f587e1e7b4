"""`dataset.balanced`: each class equally often, a pure function of (seed, epoch), with everything that reads ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_cli.data.base import Data, Raw
from kd_cli.data.common import Common
from kd_cli.data.sampling import balanced
from kd_cli.losses.base import build_loss
from kd_cli.teachers.cache import CachedTeacher
from kd_cli.teachers.outputs import Entry
from kd_cli.training.task import Distillation
from tests.conftest import SMALL
from tests.support.small import CPU, loss_options, make_student, make_teacher, same_tensors
from tests.training.test_graphs import trained

COUNTS = (40, 3, 17, 0, 11)  # images of each class; of the last but one there is none


def some_labels() -> Tensor:
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor(COUNTS))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("epoch", range(4))
def test_each_class_comes_equally_often_and_no_image_again_before_all_of_its_class(epoch: int) -> None:
    labels = some_labels()
    ids = balanced(labels, 7, epoch)
    assert len(ids) == len(labels) == 71
    shown = labels[ids].bincount(minlength=5)
    assert shown[3] == 0
    assert sorted(shown[[0, 1, 2, 4]].tolist()) == [17, 18, 18, 18]
    for label in (0, 1, 2, 4):
        times = ids.bincount(minlength=71)[labels == label]
        assert times.max() - times.min() <= 1


def test_an_order_depends_on_seed_and_epoch_alone_and_reaches_every_image() -> None:
    labels = some_labels()
    orders = [balanced(labels, seed, epoch) for seed in (0, 1) for epoch in range(12)]
    assert len({tuple(order.tolist()) for order in orders}) == 24
    torch.rand(3)
    assert torch.equal(balanced(labels, 0, 5), orders[5])
    assert set(torch.cat(orders[:12]).tolist()) == set(range(71))
    fewest = {min((0, 1, 2, 4), key=lambda each: int((labels[order] == each).sum())) for order in orders}
    assert len(fewest) > 1  # not always the same class has one image less


def skewed(**options: Any) -> Data:
    """180 images of ten classes, half of them of the first."""
    labels = torch.cat([torch.zeros(90, dtype=torch.int64), torch.arange(90) % 9 + 1])
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (180, 16, 16, 3), generator=random, dtype=torch.uint8)
    pixels = (pixels // 2 + (12 * labels[:, None, None, None]).to(torch.uint8)).to(torch.uint8)
    names = tuple("abcdefghij")
    raw = Raw(pixels, labels, pixels[60:120], labels[60:120], names)
    return Data("skewed", raw, Common(val_fraction=0.0, balanced=True, **options))


def ids_of(data: Data, **options: Any) -> list[Tensor]:
    return [batch.ids for batch in data.train_batches(seed=1, device=CPU, **options)]


def test_batches_are_cut_from_that_order_and_an_epoch_has_as_many_images_as_ever() -> None:
    data = skewed()
    assert torch.equal(torch.cat(ids_of(data, epoch=2, batch_size=32)), balanced(data.labels("train"), 1, 2))
    later = ids_of(data, epoch=2, batch_size=32, first=3)
    assert torch.equal(torch.cat(later), torch.cat(ids_of(data, epoch=2, batch_size=32)[3:]))
    assert len(ids_of(data, epoch=0, batch_size=32, limit=2)) == 2
    shards = [torch.cat(ids_of(data, epoch=0, batch_size=32, shard=(rank, 2))) for rank in (0, 1)]
    assert sorted(torch.cat(shards).tolist()) == sorted(balanced(data.labels("train"), 1, 0).tolist())


def test_labels_are_those_of_the_images_and_the_data_are_the_same() -> None:
    data = skewed()
    for batch in data.train_batches(seed=1, epoch=0, batch_size=50, device=CPU):
        assert torch.equal(batch.labels, data.labels("train")[batch.ids])
    plain = Data("skewed", data_raw(data), Common(val_fraction=0.0))
    assert data.fingerprint == plain.fingerprint  # so teachers of either fit the other


def data_raw(data: Data) -> Raw:
    train, test = (data._parts[part] for part in ("train", "test"))
    pixels = [store.take(torch.arange(count), CPU) for store, count in ((train.store, 180), (test.store, 60))]
    return Raw(pixels[0], train.labels, pixels[1], test.labels, data.spec.class_names)


def task(data: Data, cached: bool, **options: Any) -> Distillation:
    method, mix = build_loss(loss_options("fitnet"))
    made = Distillation(make_student(), make_teacher(), method, mix, data.spec, name="fitnet", ask_in=32)
    if cached:
        entry = Entry({"taps": list(made.teacher_taps), "data": data.fingerprint}, 10**9)
        made.cache = CachedTeacher(made.ask, data, entry, seed=0, batch_size=32, device=CPU, **options)
    return made


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_a_teachers_kept_answers_are_those_of_the_images_that_come_again(augment: Any) -> None:
    data = skewed(augment=augment)
    torch.manual_seed(0)
    live = task(data, cached=False)
    torch.manual_seed(0)
    kept = task(data, cached=True, fixed=True)
    _, bits = trained(live, False, data)
    recorded, same = trained(kept, True, data)
    assert recorded._recorder.replays > 0
    assert [name for name in bits if not torch.equal(bits[name], same[name])] == []
    assert same_tensors(live.network, kept.network)


@pytest.mark.parametrize("words", [(), ("dataset.augment=crop_flip",), ("trainer.limit_train_batches=2",)])
def test_a_comparison_on_balanced_epochs_pairs_student_and_baseline(kd, words: tuple[str, ...]) -> None:
    options = ("dataset.balanced=true", "loss.weight=0", "loss.ce_weight=1", *words)
    found = kd("run", *SMALL, *options, "hydra.run.dir=there", "--json").json
    assert found["baseline"]["weights_sha256"] == found["distilled"]["weights_sha256"]
    config = (Path("there") / "config.yaml").read_text()
    assert "balanced: true" in config


@pytest.mark.parametrize("words", [(), ("trainer.limit_train_batches=2",)], ids=["whole", "in part"])
@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_with_and_without_the_cache_the_student_is_the_same(kd, augment: str, words: tuple[str, ...]) -> None:
    options = ("dataset.balanced=true", f"dataset.augment={augment}", "trainer.epochs=4", *words)
    found = [kd("run", *SMALL, *options, f"teacher_cache={cache}", "--json").json for cache in ("true", "false")]
    assert found[0]["distilled"]["weights_sha256"] == found[1]["distilled"]["weights_sha256"]
