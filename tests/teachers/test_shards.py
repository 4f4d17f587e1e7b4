"""A teacher's answers in shards: streamed, resumed, shared by writers, mapped into memory, of several views."""

from __future__ import annotations

import gc
import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_cli.config.recipe import Recipe
from kd_cli.data.base import Data
from kd_cli.losses.base import build_loss
from kd_cli.storage.cache import Shards, cache_folder, shards_in
from kd_cli.teachers.cache import CachedTeacher
from kd_cli.teachers.outputs import EXACT, Entry, Kept, Layout, make_layout, rows_per_shard
from kd_cli.training.task import Distillation
from kd_cli.training.trainer import Trainer
from kd_cli.types import Batch, Outputs
from tests.support.small import CPU, loss_options, make_data, make_student, make_teacher, same_tensors

BATCH = 50
SHARDS = 4  # of 180 images, a batch each
GIGABYTE = 10**9

Ask = Callable[[Tensor], Outputs]


def test_shards_are_complete_where_each_has_a_file(tmp_path: Path) -> None:
    shards = Shards(tmp_path, json.dumps({"rows": 5, "rows_per_shard": 2, "row_bytes": 1}))
    assert not shards_in(tmp_path).is_complete()
    shards.describe()
    for number in range(3):
        assert not shards_in(tmp_path).is_complete()
        (tmp_path / f"{number:04d}-abc.rows").touch()
    assert shards_in(tmp_path).is_complete()


class Asked:
    """A teacher that counts its batches, and does something before some of them."""

    def __init__(self, before: Callable[[int], object] = lambda _: None) -> None:
        self.network, self.before, self.batches = make_teacher(), before, 0

    def __call__(self, images: Tensor) -> Outputs:
        self.before(self.batches)
        self.batches += 1
        filled = torch.cat([images] * -(-BATCH // len(images)))[:BATCH]
        with torch.no_grad():
            return Outputs(self.network(filled)[: len(images)])


def answering(ask: Ask, data: Data, *, kept: Kept = EXACT, per_shard: int = BATCH, **options: Any) -> CachedTeacher:
    entry = Entry({"data": data.fingerprint, "kept": vars(kept)}, GIGABYTE, kept, per_shard)
    return CachedTeacher(ask, data, entry, seed=0, batch_size=BATCH, device=CPU, **options)


def everything(teacher: CachedTeacher, epoch: int = 0, view: int = 0, repeat: int | None = None) -> Tensor:
    """Its logits for all 180 images; it never looks at them."""
    ids = torch.arange(180)
    shows = None if repeat is None else torch.full((180,), repeat)
    return teacher(Batch(torch.empty(180, 0), ids, ids, epoch, shows)).logits


def live(data: Data, view: int = 0) -> Tensor:
    ask, ids = Asked(), torch.arange(180).split(BATCH)
    return torch.cat([ask(batch.images).logits for batch in data.views(ids, seed=0, view=view, device=CPU)])


def shard_files() -> list[Path]:
    return sorted(cache_folder().rglob("*.rows"))


def test_one_damaged_byte_is_noticed_and_only_its_shard_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    data, ask = make_data(), Asked()
    right = everything(answering(ask, data))
    assert ask.batches == 1 + SHARDS  # a sample first
    assert [path.name[:5] for path in shard_files()] == [f"000{number}-" for number in range(SHARDS)]
    path = shard_files()[2]
    content = bytearray(path.read_bytes())
    content[7] ^= 16
    path.write_bytes(content)
    ask.batches = 0
    assert torch.equal(everything(answering(ask, data)), right)
    assert ask.batches == 1 + 1
    assert len(caplog.messages) == 1
    assert str(path) in caplog.text
    assert torch.equal(right, live(data))


def test_a_shard_that_is_missing_is_asked_for_alone() -> None:
    data, ask = make_data(), Asked()
    right = everything(answering(ask, data))
    shard_files()[1].unlink()
    ask.batches = 0
    assert torch.equal(everything(answering(ask, data)), right)
    assert ask.batches == 1 + 1


def ends(_: int) -> None:
    os._exit(9)


def killed_after(batches: int, data: Data, per_shard: int) -> None:
    """A process asks for so many batches, the sample among them, and is gone without a word."""
    pid = os.fork()
    if pid == 0:
        try:
            ask = Asked(lambda asked: ends(asked) if asked == batches else None)
            everything(answering(ask, data, per_shard=per_shard))
        finally:
            os._exit(70)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of threads, which xdist has
@pytest.mark.parametrize("per_shard", [BATCH, 4 * BATCH])
@pytest.mark.parametrize("batches", [1, 2, 4])
def test_killed_while_it_writes_another_goes_on_where_it_was(batches: int, per_shard: int) -> None:
    data, ask = make_data(), Asked()
    killed_after(batches, data, per_shard)
    assert torch.equal(everything(answering(ask, data, per_shard=per_shard)), live(data))
    assert ask.batches == 1 + SHARDS - (batches - 1)
    assert not list(cache_folder().rglob("*.part"))
    assert not list(cache_folder().rglob("*.sums"))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_killed_before_a_shard_gets_its_name_nothing_of_it_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    data, ask, per_shard = make_data(), Asked(), 4 * BATCH
    rename = os.replace
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *names: ends(0) if str(names[1]).endswith(".rows") else rename(*names))
        killed_after(100, data, per_shard)
    assert torch.equal(everything(answering(ask, data, per_shard=per_shard)), live(data))
    assert ask.batches == 1


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("place", [0, 1, 2])
def test_of_what_a_killed_one_has_left_only_what_is_whole_is_taken(place: int) -> None:
    data, ask, per_shard = make_data(), Asked(), 4 * BATCH
    killed_after(4, data, per_shard)
    (part,) = cache_folder().rglob("*.part")
    content = bytearray(part.read_bytes())
    row_bytes = 40
    content[place * BATCH * row_bytes + 3] ^= 1
    part.write_bytes(content + b"half a ro")
    assert torch.equal(everything(answering(ask, data, per_shard=per_shard)), live(data))
    assert ask.batches == 1 + SHARDS - place


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("sums", [b"", b"\0\xff\n", b"9" * 30 + b" x\n", b"8000 abc\n", b"-1 x\n4 y", b"[" * 10_000])
def test_sums_of_anybodys_are_not_believed(sums: bytes) -> None:
    data, ask, per_shard = make_data(), Asked(), 4 * BATCH
    killed_after(4, data, per_shard)
    next(iter(cache_folder().rglob("*.sums"))).write_bytes(sums)
    assert torch.equal(everything(answering(ask, data, per_shard=per_shard)), live(data))
    assert ask.batches == 1 + SHARDS


def link_to_a_file(path: Path) -> None:
    (cache_folder() / "precious").write_text("precious")
    path.symlink_to(cache_folder() / "precious")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero"), link_to_a_file])
def test_what_is_no_file_in_a_parts_place_is_neither_waited_for_nor_written(
    make: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    data, ask = make_data(), Asked()
    right = everything(answering(ask, data))
    shard_files()[1].unlink()
    make(shard_files()[0].parent / ".0001.part")
    ask.batches = 0
    assert torch.equal(everything(answering(ask, data)), right)
    assert ask.batches == 1 + 1  # into a temporary folder
    assert "cannot be written" in caplog.text
    assert make is not link_to_a_file or (cache_folder() / "precious").read_text() == "precious"


def test_of_two_writers_each_takes_shards_that_the_other_has_not() -> None:
    data, begun, done, answers = make_data(), threading.Event(), threading.Event(), {}

    def slow(asked: int) -> None:
        if asked == 1:  # the first batch of the first shard, which it has
            begun.set()
            assert done.wait(60)

    asks = [Asked(slow), Asked(lambda asked: done.set() if asked == SHARDS - 1 else None)]

    def start(number: int) -> None:
        assert number == 0 or begun.wait(60)
        answers[number] = everything(answering(asks[number], data))

    threads = [threading.Thread(target=start, args=(number,)) for number in range(2)]
    for act in (threading.Thread.start, threading.Thread.join):
        for thread in threads:
            act(thread)
    assert [ask.batches for ask in asks] == [1 + 1, 1 + SHARDS - 1]
    assert torch.equal(answers[0], live(data))
    assert torch.equal(answers[1], live(data))


def test_while_it_asks_it_holds_the_rows_of_a_batch_or_two() -> None:
    data, teacher, size, row_bytes, held = make_data(), make_teacher(), 20, 44, []

    def ask(images: Tensor) -> Outputs:
        tensors = [
            each for each in gc.get_objects() if type(each) is Tensor and each.shape[1:] in ((11,), (row_bytes,))
        ]
        written = sum(path.stat().st_size for kind in ("*.part", "*.rows") for path in cache_folder().rglob(kind))
        held.append((sum(map(len, tensors)), written // row_bytes))
        with torch.no_grad():
            return Outputs(torch.cat([teacher(images), images.new_zeros(len(images), 1)], dim=1))  # no other has 11

    CachedTeacher(ask, data, Entry({}, GIGABYTE), seed=0, batch_size=size, device=CPU, resident=0).begin(0)
    assert [written for _, written in held] == [0, *range(0, 180, size)]
    assert max(rows for rows, _ in held) <= 4 * size  # the sample, and a batch as logits and as bytes


def small_task(loss: str, data: Data) -> Distillation:
    method, mix = build_loss(loss_options(loss))
    torch.manual_seed(5)
    return Distillation(make_student(), make_teacher(), method, mix, data.spec, ask_in=BATCH)


def learned(loss: str, data: Data, resident: int | None, kept: Kept = EXACT, **options: Any) -> Distillation:
    task = small_task(loss, data)
    entry = Entry({"taps": list(task.teacher_taps), "kept": vars(kept)}, GIGABYTE, kept, BATCH)
    limit = {"limit_train_batches": 2} if "used" in options else {}
    task.cache = CachedTeacher(
        task.ask, data, entry, seed=0, batch_size=BATCH, device=CPU, resident=resident, **options
    )
    list(Trainer(Recipe(epochs=2, batch_size=BATCH, lr=0.01, **limit), seed=0, device=CPU).epochs(task, data))
    return task


@pytest.mark.parametrize("options", [{}, {"used": 2 * BATCH}], ids=["all", "some"])
@pytest.mark.parametrize("augment", ["none", "crop_flip"])
@pytest.mark.parametrize("loss", ["kd", "fitnet", "crd"])
def test_answers_read_from_the_memory_map_give_the_same_student(
    loss: str, augment: str, options: dict[str, Any]
) -> None:
    data = make_data(augment=augment)
    read, held = (learned(loss, data, resident, **options) for resident in (0, None))
    assert same_tensors(read, held)


@pytest.mark.parametrize("kept", [Kept(3), Kept(3, "float16"), Kept(None, "float16"), Kept(None, "bfloat16")])
def test_approximations_are_the_same_whether_they_are_kept_mapped_or_made_at_every_step(kept: Kept) -> None:
    data = make_data()
    students = [
        learned("fitnet", data, None, kept, live=True),
        *(learned("fitnet", data, each, kept) for each in (0, None)),
    ]
    assert same_tensors(students[0], students[1])
    assert same_tensors(students[0], students[2])
    assert not same_tensors(students[0], learned("kd", data, None))


class Several(Data):
    """An epoch shows some views, and views come again."""

    per_epoch, of = 2, 3

    def views_in(self, epoch: int) -> tuple[int, ...]:
        return tuple((epoch * self.per_epoch + number) % self.of for number in range(self.per_epoch))


def several(per_epoch: int, of: int) -> Several:
    data = make_data(augment="crop_flip")
    data.__class__ = Several
    assert isinstance(data, Several)
    data.per_epoch, data.of = per_epoch, of
    return data


@pytest.mark.parametrize("options", [{}, {"resident": 0}, {"fixed": True}])
def test_an_epoch_with_several_views_is_answered_for_each(options: dict[str, Any]) -> None:
    data, ask = several(2, 5), Asked()
    teacher = answering(ask, data, **options)
    views = [live(data, view) for view in range(5)]
    assert not torch.equal(views[0], views[1])
    for epoch in range(4):
        for repeat, view in enumerate(data.views_in(epoch)):
            assert torch.equal(everything(teacher, epoch, repeat=repeat), views[view])
        assert torch.equal(everything(teacher, epoch), views[data.views_in(epoch)[0]])


def test_rows_of_one_batch_may_show_different_views() -> None:
    data = several(3, 3)
    teacher, ids = answering(Asked(), data), torch.tensor([7, 7, 7, 20])
    said = teacher(Batch(torch.empty(4, 0), ids, ids, 0, torch.tensor([0, 1, 2, 1]))).logits
    assert torch.equal(
        said, torch.stack([live(data, view)[number] for view, number in ((0, 7), (1, 7), (2, 7), (1, 20))])
    )


def test_views_that_come_again_are_asked_about_once() -> None:
    data, ask = several(1, 3), Asked()
    teacher = answering(ask, data)
    for epoch in range(7):
        assert torch.equal(everything(teacher, epoch), live(data, epoch % 3))
    assert ask.batches == 7 + 3 * SHARDS  # a sample whenever an epoch begins
    assert {path.parent.name for path in shard_files()} == {f"seed-0-view-000{view}" for view in range(3)}


def test_of_several_views_only_the_images_that_are_used_are_asked_about() -> None:
    data, ask = several(2, 2), Asked()
    answering(ask, data, used=4 * BATCH).begin(0)  # four batches show 100 images, each twice
    assert ask.batches == 2 * (1 + 2)


# --- sizes

IMAGENET = 1_281_167


def layout_of(classes: int, kept: Kept) -> Layout:
    return make_layout(Outputs(torch.zeros(2, classes)), kept)


@pytest.mark.parametrize(
    ("kept", "row_bytes", "views", "gigabytes"),
    [
        (EXACT, 4000, 1, 5.13),
        (Kept(None, "float16"), 2000, 1, 2.57),
        (Kept(10), 64, 1, 0.083),
        (Kept(10, "float16"), 44, 1, 0.057),
        (Kept(10, "float16"), 44, 300, 17.0),
        (Kept(10), 64, 300, 24.7),
    ],
)
def test_the_sizes_for_imagenet(kept: Kept, row_bytes: int, views: int, gigabytes: float) -> None:
    assert layout_of(1000, kept).row_bytes == row_bytes
    assert IMAGENET * row_bytes * views / 1e9 == pytest.approx(gigabytes, rel=0.02)
    assert IMAGENET * row_bytes * views / 1e9 <= gigabytes


def test_the_sizes_follow_the_formulas() -> None:
    for classes in (10, 999, 21_841, 70_000):
        index = 2 if classes <= 65_536 else 4
        for k in (1, 2, 9):
            for kept, width in ((Kept(k), 4), (Kept(k, "float16"), 2)):
                size = 4 + k * (width + index)
                assert layout_of(classes, kept).row_bytes == -(-size // 4) * 4
        assert layout_of(classes, EXACT).row_bytes == 4 * classes
        assert layout_of(classes, Kept(None, "bfloat16")).row_bytes == 2 * classes


@pytest.mark.parametrize("row_bytes", [44, 4000, 200_000, 2**31])
@pytest.mark.parametrize("size", [1, 300, 50_000, IMAGENET])
@pytest.mark.parametrize("batch", [1, 64, 1000])
def test_shards_are_few_and_of_whole_batches(size: int, row_bytes: int, batch: int) -> None:
    rows = rows_per_shard(size, row_bytes, batch)
    assert rows % batch == 0
    assert rows * row_bytes <= max(2**30, batch * row_bytes)
    assert -(-size // rows) <= max(
        17, 2 * size * row_bytes / 2**30 + 1, size / batch if row_bytes > 2**29 / batch else 0
    )


def test_a_shard_that_is_copied_into_another_entry_is_not_taken() -> None:
    data = make_data()
    answering(Asked(), data).begin(0)
    (manifest,) = cache_folder().rglob("manifest.json")
    shards = shards_in(manifest.parent)
    assert shards.is_whole()
    elsewhere = replace(shards, folder=manifest.parents[2] / "other" / "train")
    elsewhere.folder.mkdir(parents=True)
    for path in shards.files():
        (elsewhere.folder / path.name).write_bytes(path.read_bytes())
    assert elsewhere.all() == {}
