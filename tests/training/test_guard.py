"""Nothing that is not finite moves a weight, is saved, or is chosen; the message says where it came from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kd_cli.config.recipe import Recipe
from kd_cli.errors import DivergedError
from kd_cli.losses.base import build_loss
from kd_cli.runs.checkpoint import Checkpoint
from kd_cli.training.fit import best_epoch
from kd_cli.training.guard import LossGuard, can_wait
from kd_cli.training.task import Distillation
from kd_cli.training.trainer import Trainer
from tests.conftest import HERE, SMALL, Outcome
from tests.support.small import CPU, SPEC, loss_options, make_data, make_student, make_teacher

Run = Callable[..., Outcome]
Spoil = Callable[[Tensor], Tensor]

SPOILERS: dict[str, Spoil] = {
    "nan": lambda said: said * math.nan,
    "inf": lambda said: said * math.inf,
    "one row": lambda said: torch.cat([said[:1] * math.nan, said[1:]]) if said.dim() else said * math.nan,
    "a gradient": lambda said: said + (0 * said).sum().square().sqrt(),  # 0, and its derivative is 0/0
}
# what is spoiled → the loss that has it, and where in the task it is
PLACES: dict[str, tuple[str, Callable[[Distillation], nn.Module]]] = {
    "the student": ("kd", lambda task: task.network),
    "the method": ("fitnet", lambda task: task.method),
    "the peer": ("dml", lambda task: task.peer),
    "the discriminator": ("adversarial", lambda task: task.method.discriminator),
}
SETTINGS = {
    "sgd": Recipe(batch_size=16, optimizer="sgd", lr=0.01),
    "adam, clipped": Recipe(batch_size=16, clip_grad_norm=1.0, weight_decay=0.01),
    "adamw, averaged": Recipe(batch_size=16, optimizer="adamw", ema_decay=0.9),
    "two batches to an update": Recipe(batch_size=16, accumulate=2),
}
BAD = 6  # the batch that is spoiled, 1, 2, …; the second of a pair


def make_task(name: str) -> Distillation:
    method, mix = build_loss(loss_options(name))
    torch.manual_seed(0)
    return Distillation(make_student(), make_teacher(), method, mix, SPEC, name=name)


def spoil(module: nn.Module, task: Distillation, how: Spoil) -> None:
    """Spoils what a module says in training, of one batch, as often as it comes."""
    batches: list[Tensor] = []

    def after(_: nn.Module, __: object, said: Any) -> Any:
        if len(batches) < BAD or not torch.equal(batches[-1], batches[BAD - 1]):
            return None
        return (how(said[0]), *said[1:]) if isinstance(said, tuple) else how(said)

    task.register_forward_pre_hook(lambda _, given: batches.append(given[0].ids))
    module.register_forward_hook(after)


def moving(task: Distillation, trainer: Trainer) -> dict[str, Tensor]:
    """All that an update moves: what is learned, the state of every optimizer, and the moving average."""
    found = dict(task.named_parameters())
    for number, optimizer in enumerate(trainer.updater.optimizers):
        for index, slots in optimizer.state_dict()["state"].items():
            found |= {f"{number}.{index}.{slot}": value for slot, value in slots.items() if isinstance(value, Tensor)}
    found |= {} if trainer.updater.average is None else dict(trainer.updater.average.named_parameters())
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def train_until_it_diverges(
    task: Distillation, recipe: Recipe, deferred: bool = False
) -> tuple[DivergedError, list[dict[str, Tensor]], dict[str, Tensor]]:
    """The error, all that moves as each batch found it, and as the error left it.

    Args:
        deferred: losses are looked at when the epoch is over.
    """
    trainer, found = Trainer(recipe, seed=0, device=CPU), []

    def before(*_: object) -> None:
        if deferred and not found:
            names = dict(task.named_parameters())
            trainer.updater.guard = LossGuard(
                trainer.updater.optimizers, recipe, CPU, parameters=names, steps=12, deferred=True
            )
        found.append(moving(task, trainer))

    task.register_forward_pre_hook(before)
    with pytest.raises(DivergedError) as diverged:
        list(trainer.epochs(task, make_data()))
    return diverged.value, found, moving(task, trainer)


def the_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def moved_in_vain(place: str, how: str, recipe: Recipe, deferred: bool = False) -> bool:
    """Whether something moved on what was not finite, or nothing did before."""
    name, module = PLACES[place]
    task = make_task(name)
    spoil(module(task), task, SPOILERS[how])
    _, found, left = train_until_it_diverges(task, recipe, deferred)
    return not the_same(found[BAD - 1], left) or the_same(found[0], left)


@pytest.mark.slow  # 64 trainings of a few steps
def test_nothing_moves_on_what_is_not_finite_wherever_it_comes_from() -> None:
    """4 places × 4 ways × 4 recipes."""
    cases = [(place, how, setting) for place in PLACES for how in SPOILERS for setting in SETTINGS]
    failed = [case for case in cases if moved_in_vain(case[0], case[1], SETTINGS[case[2]])]
    print(f"{len(cases) - len(failed)}/{len(cases)}")
    assert (len(cases), failed) == (64, [])


@pytest.mark.slow  # 27 trainings of a few steps
def test_nothing_moves_either_where_the_look_is_put_off() -> None:
    """What follows the bad batch is good again, and there are three recipes whose optimizers all stand still."""
    settings = [name for name, recipe in SETTINGS.items() if recipe.ema_decay is None]
    places = [place for place in PLACES if place != "the discriminator"]  # its optimizer is not fused: see can_wait
    cases = [(place, how, name) for place in places for how in ("nan", "inf", "a gradient") for name in settings]
    failed = [case for case in cases if moved_in_vain(case[0], case[1], SETTINGS[case[2]], deferred=True)]
    print(f"{len(cases) - len(failed)}/{len(cases)}")
    assert (len(cases), failed) == (27, [])


@pytest.mark.parametrize("how", ["nan", "a gradient"])
def test_a_discriminators_optimizer_stands_still_too(how: str) -> None:
    assert not moved_in_vain("the discriminator", how, SETTINGS["adam, clipped"])


@pytest.mark.parametrize("deferred", [False, True])
def test_the_second_of_two_batches_stops_both(deferred: bool) -> None:
    assert not moved_in_vain("the method", "inf", SETTINGS["two batches to an update"], deferred)


def test_looks_are_put_off_only_where_all_that_moves_stands_still() -> None:
    weight = [nn.Parameter(torch.zeros(1))]
    fused, plain = torch.optim.Adam(weight, fused=True), torch.optim.Adam(weight)
    assert can_wait([fused], Recipe())
    assert not can_wait([fused, plain], Recipe())
    assert not can_wait([fused], Recipe(precision="fp16"))


def test_a_gradient_scaler_leaves_out_what_overflows_without_a_word() -> None:
    weight = nn.Parameter(torch.zeros(1))
    rule = torch.optim.SGD([weight], lr=1.0, fused=True)
    for precision, diverges in (("fp16", False), ("fp32", True)):
        guard = LossGuard([rule], Recipe(precision=precision), CPU, parameters={"weight": weight}, steps=1)
        step = make_task("kd").train()
        batch = next(make_data().train_batches(seed=0, epoch=0, batch_size=4, device=CPU))
        guard.watch(step(batch), batch)
        weight.grad = torch.tensor([math.inf])
        if diverges:
            with pytest.raises(DivergedError, match="the gradient of weight is not finite"):
                guard.watch_gradients()
        else:
            guard.watch_gradients()


@pytest.mark.parametrize("deferred", [False, True])
def test_the_message_names_step_term_rate_and_the_images_to_blame(deferred: bool) -> None:
    task = make_task("kd")
    ids: list[list[int]] = []
    task.register_forward_pre_hook(lambda _, given: ids.append(given[0].ids.tolist()))
    spoil(task.network, task, SPOILERS["one row"])
    error, _, _ = train_until_it_diverges(task, Recipe(batch_size=16, lr=0.002), deferred)
    assert "epoch 1, step 6 of 12: ce = nan, kd = nan; learning rate 0.002" in str(error)
    assert f"training images {ids[BAD - 1][0]} (their logits are not finite)" in str(error)
    assert "(trainer.lr=0.0002) or trainer.clip_grad_norm=1" in str(error)


def test_the_term_that_is_not_finite_comes_first_and_else_the_batch_is_named() -> None:
    task = make_task("fitnet")
    spoil(task.method, task, SPOILERS["inf"])
    error, _, _ = train_until_it_diverges(task, Recipe(batch_size=16))
    assert "step 6 of 12: fitnet = inf; ce = " in str(error)
    assert "(the batch of 16)" in str(error)


@pytest.mark.parametrize("deferred", [False, True])
def test_a_gradient_that_is_not_finite_is_told_from_a_loss(deferred: bool) -> None:
    task = make_task("kd")
    spoil(task.network, task, SPOILERS["a gradient"])
    error, _, _ = train_until_it_diverges(task, Recipe(batch_size=16), deferred)
    assert "the gradient of network.stage1.0.weight, network.stage1.0.bias" in str(error)
    assert "is not finite in epoch 1, step 6 of 12, though the loss is (ce = " in str(error)


def test_an_epoch_whose_validation_loss_is_not_finite_ends_the_run_without_a_record() -> None:
    task, epochs = make_task("kd"), []
    task.network.register_forward_hook(
        lambda network, _, said: None if network.training or not epochs else said * math.nan
    )
    trainer = Trainer(Recipe(epochs=3, batch_size=90), seed=0, device=CPU)
    with pytest.raises(DivergedError, match="the loss on the validation images is not finite"):
        epochs.extend(record["epoch"] for record in trainer.epochs(task, make_data()))
    assert epochs == [1]


def test_no_state_is_given_of_weights_that_are_not_finite() -> None:
    task = make_task("kd")
    trainer = Trainer(Recipe(epochs=1, batch_size=90), seed=0, device=CPU)
    list(trainer.epochs(task, make_data()))
    trainer.state()
    with torch.no_grad():
        task.network.classifier.bias[3] = math.inf
    with pytest.raises(DivergedError, match=r"the weights are not finite \(network.classifier.bias, classifier.bias\)"):
        trainer.state()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_epoch_without_a_finite_loss_is_never_best(value: float) -> None:
    rows = [{"epoch": epoch, "val_top1": 10.0 * epoch, "val_loss": 1.0} for epoch in (1, 2, 3)]
    assert best_epoch([*rows[:2], rows[2] | {"val_loss": value}]) == 2
    assert best_epoch([rows[0] | {"val_loss": value}, *rows[1:]]) == 3


# The first epoch is as always; from the second on the rate is 10³⁰ times as high.
CLIFF = (*SMALL, "trainer.optimizer=sgd", "trainer.schedule=multistep", "trainer.milestones=[1]")


@pytest.mark.slow  # eight commands
def test_every_command_that_trains_leaves_with_4_and_keeps_what_it_has(kd: Run) -> None:
    kd("train-teacher", *SMALL, "hydra.run.dir=teacher")
    commands = ("train-teacher", "train-baseline", "distill")
    for command in commands:
        words = (
            ("trainer.gamma=1e30", "teacher.checkpoint=teacher") if command == "distill" else ("trainer.gamma=1e30",)
        )
        failed = kd(command, *CLIFF, *words, f"hydra.run.dir={command}-run", "--json", code=4)
        assert failed.json["error"]["exit_code"] == 4
        assert "epoch 2, step " in failed.message
        record = json.loads(Path(f"{command}-run", "run.json").read_text())
        assert record["status"] == "diverged"
        assert "learning rate" in record["error"]
        assert [path.name for path in Path(f"{command}-run", "checkpoints").iterdir()] == ["epoch-0001"]
        assert not Path(f"{command}-run", "result.json").exists()
    kept = Checkpoint(Path("distill-run/checkpoints/epoch-0001"))
    assert all(tensor.isfinite().all() for tensor in kept.tensors("training").values())
    kd("evaluate", "distill-run/checkpoints/epoch-0001")
    again = kd("resume", "distill-run", code=4)
    assert "distill-run has diverged: the loss is not finite in epoch 2" in again.message
    assert "goes on after epoch 1" in again.message + again.out


@pytest.mark.slow  # two comparisons and a sweep
def test_in_a_comparison_and_in_a_sweep_the_others_stay(kd: Run) -> None:
    words = (*CLIFF, "distill_trainer.gamma=1e30", "hydra.run.dir=compared")
    assert "Try a smaller rate (distill_trainer.lr=0.0001)" in kd("run", *words, code=4).message
    done = {name: Path("compared", name, "result.json").stat().st_mtime_ns for name in ("teacher", "baseline")}
    assert not Path("compared/distilled/result.json").exists()
    assert json.loads(Path("compared/run.json").read_text())["status"] == "diverged"
    assert "compared has diverged" in kd("resume", "compared", code=4).message
    assert done == {name: Path("compared", name, "result.json").stat().st_mtime_ns for name in done}
    swept = kd("train-baseline", "-m", HERE, *CLIFF, "trainer.gamma=0.1,1e30", "--json", code=1)
    assert [(point["status"], point.get("exit_code")) for point in swept.json["points"]] == [
        ("completed", None),
        ("diverged", 4),
    ]


@pytest.mark.slow  # a command
def test_weights_that_overflow_in_the_last_step_are_not_saved_even_without_validation(kd: Run) -> None:
    words = ("trainer.optimizer=sgd", "trainer.lr=1e38", "trainer.limit_train_batches=1", "dataset.val_fraction=0")
    failed = kd("train-baseline", *SMALL, *words, "trainer.epochs=1", "hydra.run.dir=lost", code=4)
    assert "not finite" in failed.message
    saved = [load_file(path) for path in Path("lost").rglob("*.safetensors")]
    assert all(tensor.isfinite().all() for tensors in saved for tensor in tensors.values())
    assert not Path("lost/result.json").exists()
