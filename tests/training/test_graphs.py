"""A recorded update gives the bits of one that is not, for every loss and recipe; what cannot be recorded is not.

On the CPU a tape stands for the CUDA graph; tests/gpu has the graph itself.
"""

from __future__ import annotations

import gc
import logging
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_cli.config.recipe import Recipe
from kd_cli.data.base import Data
from kd_cli.errors import ConfigError, DivergedError
from kd_cli.losses.base import LOSSES, build_loss
from kd_cli.teachers.cache import CachedTeacher
from kd_cli.teachers.outputs import EXACT, Entry, Kept
from kd_cli.training.task import Distillation, Supervised, Task
from kd_cli.training.trainer import Trainer
from kd_cli.types import Batch, Step
from tests.support.small import CPU, SPEC, loss_options, make_data, make_student, make_teacher
from tests.support.tape import TapeRecorder

READS_THE_HOST = {"kdsvd": "aten._linalg_eigh"}  # loss → what makes the program wait for the device
RAMPS = {"ctkd", "dkd", "reviewkd", "rld"}  # whose weights rise over the first epochs
RECIPE = {"epochs": 3, "batch_size": 32, "lr": 0.01, "cuda_graphs": True}


def make_task(name: str, **options: Any) -> Distillation:
    method, mix = build_loss({**loss_options(name), **options})
    torch.manual_seed(0)
    return Distillation(make_student(), make_teacher(), method, mix, SPEC, name=name)


def trained(task: Task, recorded: bool, data: Data | None = None, **recipe: Any) -> tuple[Trainer, dict[str, Tensor]]:
    """All that a training leaves, by a trainer that works behind the program's back."""
    options = {**RECIPE, **recipe, **({} if recorded else {"cuda_graphs": False})}
    trainer = Trainer(Recipe(**options), seed=0, device=CPU, recorder=TapeRecorder())
    records = list(trainer.epochs(task, data or make_data()))
    numbers = {f"record.{row['epoch']}.{key}": torch.tensor(value) for row in records for key, value in row.items()}
    left = {name: tensor.clone() for name, tensor in trainer.state().tensors.items()}
    timed = ("seconds", "images_per_second")
    return trainer, left | {name: value for name, value in numbers.items() if not name.endswith(timed)}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(LOSSES.names()) - set(READS_THE_HOST)))
def test_every_loss_gives_the_same_bits(name: str) -> None:
    recorded, bits = trained(make_task(name), True)
    times = 3 if name in RAMPS else 1
    assert recorded._recorder.recorded == times
    assert recorded._recorder.replays == 3 * 5 - 2 * times  # of six batches the last is smaller
    assert_same(bits, trained(make_task(name), False)[1])


@pytest.mark.parametrize("name", sorted(READS_THE_HOST))
def test_a_loss_that_waits_for_the_device_is_refused_or_not_recorded_with_the_reason(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=rf"trainer\.cuda_graphs: true is not possible: {READS_THE_HOST[name]} makes"):
        trained(make_task(name), True)


RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "weight_decay": 0.01},
    "adamw, averaged, clipped": {"optimizer": "adamw", "ema_decay": 0.9, "clip_grad_norm": 0.1},
    "a rate that moves": {"schedule": "onecycle", "optimizer": "sgd", "nesterov": True},
    "several batches to an update": {"accumulate": 2, "batch_size": 16, "schedule": "cosine"},
    "bf16": {"precision": "bf16"},
    "whole batches": {"batch_size": 36},
    "rates by layer": {"optimizer": "adamw", "layer_decay": 0.7, "backbone_lr_factor": 0.3, "schedule": "cosine"},
    "decay of matrices alone": {"optimizer": "sgd", "weight_decay": 0.1, "decay_norm_and_bias": False},
    "frozen in part": {"freeze": ("stage1", "stage2.0.*"), "ema_decay": 0.9},
    "averaged at the end": {"swa_epochs": 2},
    "a plateau": {"schedule": "plateau", "patience": 1, "lr": 1e-6, "epochs": 5, "select_by": "macro_f1"},
}


def test_the_rates_of_a_plateau_are_set_between_replays() -> None:
    recorded, _ = trained(make_task("kd"), True, **RECIPES["a plateau"])
    assert recorded._recorder.recorded == 1
    assert len({row["lr"] for row in recorded.records}) > 1


@pytest.mark.parametrize("optimizer", ["lamb", "muon"])
def test_optimizers_without_a_fused_kernel_are_not_recorded(optimizer: str) -> None:
    pytest.importorskip("timm" if optimizer == "lamb" else "torch.optim._muon")
    with pytest.raises(ConfigError, match=r"cuda_graphs: true is not possible: an optimizer has no fused kernel"):
        trained(Supervised(make_student()) if optimizer == "lamb" else matrices(), True, optimizer=optimizer)


def matrices() -> Supervised:
    torch.manual_seed(0)
    return Supervised(nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 10)))


def test_weights_of_classes_are_part_of_a_recorded_update() -> None:
    def weighted() -> Supervised:
        return Supervised(make_student(), 0.1, torch.linspace(0.5, 2.0, 10))

    recorded, bits = trained(weighted(), True)
    assert recorded._recorder.replays > 0
    assert_same(bits, trained(weighted(), False)[1])
    assert not torch.equal(bits["task.network.classifier.bias"], plain_bias())


def plain_bias() -> Tensor:
    return trained(Supervised(make_student(), 0.1), True)[1]["task.network.classifier.bias"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_recipe_gives_the_same_bits(recipe: dict[str, Any]) -> None:
    recorded, bits = trained(make_task("kd"), True, **recipe)
    assert recorded._recorder.replays >= 3
    assert_same(bits, trained(make_task("kd"), False, **recipe)[1])


@pytest.mark.parametrize("options", [{"augment": "crop_flip"}, {"in_memory": False, "workers": 0}, {"augment": "flip"}])
def test_augmented_and_streamed_images_are_those_of_the_step(options: dict[str, Any]) -> None:
    recorded, bits = trained(Supervised(make_student()), True, make_data(**options))
    assert recorded._recorder.replays > 0
    assert_same(bits, trained(Supervised(make_student()), False, make_data(**options))[1])


@pytest.mark.parametrize(
    ("name", "options", "times"),
    [
        ("kd", {"warmup_epochs": 3, "decay_epochs": 2}, 5),  # ⅓, ⅔, 1, ½, 0
        ("ctkd", {"ramp_epochs": 2.0}, 3),  # 0, ½, 1, 1, 1
        ("kd", {}, 1),
    ],
)
def test_what_changes_with_the_epoch_is_recorded_anew_and_nothing_else(
    name: str, options: dict[str, Any], times: int
) -> None:
    recorded, bits = trained(make_task(name, **options), True, epochs=5)
    assert recorded._recorder.recorded == times
    assert_same(bits, trained(make_task(name, **options), False, epochs=5)[1])


ASKED = 32  # images of a forward pass of the teacher


def remember(task: Distillation, data: Data, kept: Kept = EXACT, **options: Any) -> Distillation:
    limit = options.pop("limit", 10**9)
    entry = Entry({"taps": list(task.teacher_taps), "data": data.fingerprint, "kept": vars(kept)}, limit, kept, ASKED)
    cache = CachedTeacher(task.ask, data, entry, seed=0, batch_size=ASKED, device=CPU, fixed=True, **options)
    task.cache, task.ask_in = cache, ASKED
    return task


@pytest.mark.slow
@pytest.mark.parametrize("augment", ["none", "crop_flip"])
@pytest.mark.parametrize("options", [{}, {"used": 4 * ASKED}, {"limit": 1}], ids=["kept", "in part", "too large"])
@pytest.mark.parametrize("loss", ["kd", "fitnet"])
def test_what_the_teacher_said_is_found_where_it_was_in_every_epoch(
    loss: str, options: dict[str, Any], augment: str
) -> None:
    data = make_data(augment=augment)
    recipe = {"limit_train_batches": 4} if "used" in options else {}
    live = make_task(loss)
    live.ask_in = ASKED
    _, bits = trained(live, False, data, **recipe)
    for _ in range(2):  # asked for, then read
        recorded, same = trained(remember(make_task(loss), data, **options), True, data, **recipe)
        assert recorded._recorder.recorded == 1
        assert_same(same, bits)


@pytest.mark.parametrize("kept", [Kept(3), Kept(3, "float16"), Kept(None, "float16")])
def test_an_approximation_is_recorded_like_what_is_exact(kept: Kept) -> None:
    data = make_data(augment="crop_flip")
    _, bits = trained(remember(make_task("fitnet"), data, kept, live=True), False, data)
    recorded, same = trained(remember(make_task("fitnet"), data, kept), True, data)
    assert recorded._recorder.recorded == 1
    assert_same(same, bits)


def test_answers_larger_than_the_memory_cannot_be_recorded() -> None:
    data = make_data(augment="crop_flip")
    _, bits = trained(remember(make_task("kd"), data), True, data)
    with pytest.raises(ConfigError, match="makes the program wait for the device"):
        trained(remember(make_task("kd"), data, resident=0), True, data)
    assert_same(trained(remember(make_task("kd"), data, resident=0), False, data)[1], bits)


class ReadsTheEpoch(Supervised):
    def forward(self, batch: Batch) -> Step:
        step = super().forward(batch)
        loss = step.loss * (1 + batch.epoch)
        return Step(loss, step.logits, {"ce": loss.detach()})


def test_a_loss_that_reads_the_epoch_itself_is_recorded_in_each() -> None:
    recorded, bits = trained(ReadsTheEpoch(make_student()), True)
    assert recorded._recorder.recorded == 3
    assert_same(bits, trained(ReadsTheEpoch(make_student()), False)[1])


def test_without_weight_it_is_the_baseline() -> None:
    _, bits = trained(make_task("kd", weight=0.0, ce_weight=1.0), True)
    _, baseline = trained(Supervised(make_student()), True)
    ours, theirs = ({k: v for k, v in each.items() if k.startswith("task.network")} for each in (bits, baseline))
    assert_same(ours, theirs)


@pytest.mark.parametrize("stopped_after", [3, 7, 11])
def test_stopped_and_resumed_it_ends_with_the_same_bits(stopped_after: int) -> None:
    _, bits = trained(make_task("kd"), True)
    first = Trainer(Recipe(**RECIPE), seed=0, device=CPU, recorder=TapeRecorder(), watch=lambda _: stop())
    updates: list[int] = []

    def stop() -> None:
        updates.append(1)
        if len(updates) == stopped_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(first.epochs(make_task("kd"), make_data()))
    first.step += 1  # the watcher stopped it inside of its step, which was done
    state = first.state()
    tensors = {name: tensor.clone() for name, tensor in state.tensors.items()}
    second = Trainer(Recipe(**RECIPE), seed=0, device=CPU, recorder=TapeRecorder())
    list(second.epochs(make_task("kd"), make_data(), type(state)(state.epoch, state.step, tensors, state.plain)))
    left = second.state().tensors
    assert_same({k: v for k, v in bits.items() if k in left}, dict(left))


class Breaks(Supervised):
    """The loss of the images with one id is not finite, on the device."""

    bad = 17

    def forward(self, batch: Batch) -> Step:
        step = super().forward(batch)
        loss = step.loss * torch.where((batch.ids == self.bad).any(), torch.nan, 1.0)
        return Step(loss, step.logits, {"ce": loss.detach()})


def test_what_is_not_finite_is_found_with_its_step_and_its_images_and_moves_nothing() -> None:
    data, broken, whole = make_data(), Breaks(make_student()), Breaks(make_student())
    steps = [batch.ids.tolist() for batch in data.train_batches(seed=0, epoch=0, batch_size=16, device=CPU)]
    whole.bad = -1
    bad = next(number for number, ids in enumerate(steps) if Breaks.bad in ids)
    trained(whole, True, data, epochs=1, batch_size=16, limit_train_batches=bad)
    with pytest.raises(DivergedError, match=f"epoch 1, step {bad + 1} of 12.*training images {steps[bad][0]}, "):
        trained(broken, True, data, epochs=1, batch_size=16)
    learned = dict(whole.network.named_parameters())
    assert all(torch.equal(learned[name], value) for name, value in broken.network.named_parameters())


def test_what_was_recorded_is_let_go_with_the_trainer() -> None:
    trainer, _ = trained(Supervised(make_student()), True, epochs=1)
    gone = weakref.ref(trainer)
    gc.disable()
    try:
        del trainer
        assert gone() is None
    finally:
        gc.enable()


class Foreign(nn.Linear):
    """Somebody else's layer."""


def test_layers_of_others_are_recorded_only_where_that_is_demanded(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("kd").propagate = True
    network = nn.Sequential(nn.Flatten(), Foreign(768, 10))
    trainer, _ = trained(Supervised(network), True, cuda_graphs="auto")
    assert trainer._recorder.recorded == 0
    assert trainer.not_recorded.startswith("Foreign is not one of kd's layers")
    assert trained(Supervised(network), True)[0].not_recorded is None
    plain = nn.Sequential(nn.Flatten(), nn.Linear(768, 10))
    assert trained(Supervised(plain), True, cuda_graphs="auto")[0]._recorder.recorded == 1
