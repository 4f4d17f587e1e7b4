"""Two and three processes that train together, against one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from kd_cli.config.plan import Training
from kd_cli.config.recipe import Recipe
from kd_cli.errors import ConfigError
from kd_cli.experiments.together import check_together
from kd_cli.losses.base import LOSSES, build_loss
from kd_cli.machine import ranks
from kd_cli.metrics.evaluate import predict
from kd_cli.teachers import outputs
from kd_cli.teachers.cache import CachedTeacher
from kd_cli.teachers.outputs import Entry
from kd_cli.training.task import Distillation, Supervised, Task
from kd_cli.training.trainer import Trainer
from kd_cli.types import Outputs
from tests.support.ranks import on_ranks
from tests.support.small import CPU, SPEC, SmallNet, loss_options, make_data, make_student

Said = dict[str, Any]
STEPS = 10


class Double(SmallNet):
    """In float64, with batch normalisation and dropout."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.double())


def network(channels: tuple[int, int, int], stride: int, seed: int, dropout: float = 0.3) -> SmallNet:
    torch.manual_seed(seed)
    return Double(channels, stride, dropout).double()


def distilled(name: str) -> Task:
    method, mix = build_loss(loss_options(name))
    student, teacher = network((4, 6, 8), 2, 0), network((5, 8, 12), 1, 1)
    torch.manual_seed(0)
    task = Distillation(student, teacher, method.double(), mix, SPEC, name=name)
    task.method.double()
    return task


def trained(task: Task, *, batch_size: int = 32, data: Said | None = None, **options: Any) -> Said:
    """What ten updates, or as many as there are batches, came to."""
    recipe = Recipe(
        **{
            "epochs": 1,
            "batch_size": batch_size,
            "lr": 0.02,
            "optimizer": "sgd",
            "limit_train_batches": STEPS,
            **options,
        }
    )
    trainer = Trainer(recipe, seed=3, device=CPU)
    (*_, record) = trainer.epochs(task, make_data(**(data or {"augment": "crop_flip"})))
    state = {name: value.clone() for name, value in task.state_dict().items()}
    return {
        "record": {key: value for key, value in record.items() if "seconds" not in key and "images" not in key},
        "state": state,
    }


def check_same(alone: Said, together: list[Said], tolerance: float) -> None:
    for said in together:
        assert said["record"].keys() == alone["record"].keys()
        for name, value in alone["record"].items():
            assert said["record"][name] == pytest.approx(value, rel=1e-5 if tolerance < 1e-8 else 1e-3, abs=1e-6), name
        for name, value in alone["state"].items():
            torch.testing.assert_close(
                said["state"][name],
                value,
                rtol=tolerance,
                atol=tolerance,
                msg=lambda text, name=name: f"{name}: {text}",
            )


def every_loss(names: list[str]) -> dict[str, Said]:
    """53 images: batches of 17, 17, 17 and 2, so that three ranks have rows of different number, and one has none."""
    data = {"augment": "crop_flip", "num_train": 59}
    return {name: trained(distilled(name), batch_size=17, data=data) for name in names}


@pytest.fixture(scope="module")
def each_alone() -> dict[str, Said]:
    """Every loss in one process."""
    return every_loss(LOSSES.names())


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_every_loss_gives_the_loss_terms_and_weights_of_one_process(world: int, each_alone: dict[str, Said]) -> None:
    names = list(each_alone)
    alone, together = each_alone, on_ranks(world, every_loss, names)
    for name in names:
        check_same(alone[name], [said[name] for said in together], 1e-10)


RECIPES: dict[str, Said] = {
    "supervised": {},
    "accumulated": {"accumulate": 2, "clip_grad_norm": 0.5, "label_smoothing": 0.1},
    "averaged": {"ema_decay": 0.8, "momentum": 0.0},
    "frozen": {"freeze": ("stage1",), "backbone_lr_factor": 0.5},
    "averaged over epochs": {"epochs": 3, "swa_epochs": 2},
    "two views": {"batch_size": 18, "data": {"augment": "crop_flip", "repeats": 2}},
    "two epochs": {"epochs": 2, "schedule": "plateau", "limit_train_batches": None},
}


def every_recipe() -> dict[str, Said]:
    weights = torch.linspace(0.5, 2, SPEC.num_classes)
    return {
        name: trained(Supervised(network((4, 6, 8), 2, 0), 0.1, weights), **{"batch_size": 17, **options})
        for name, options in RECIPES.items()
    }


@pytest.mark.slow
def test_every_kind_of_update_gives_the_numbers_of_one_process() -> None:
    alone, together = every_recipe(), on_ranks(3, every_recipe)
    for name in RECIPES:
        check_same(alone[name], [said[name] for said in together], 1e-10)


def answered() -> Said:
    """Of a student whose teacher's answers are kept in shards; how often the teacher was asked here, and all of it."""
    outputs._LEAST_ROWS = 16  # of this process, which is this test's
    data, task, asked = make_data(augment="crop_flip"), distilled("kd"), 0

    def ask(images: Tensor) -> Outputs:
        nonlocal asked
        asked += 1
        if asked == 2:  # the first of its own shards, after the sample: each must come to one
            torch.distributed.monitored_barrier(timeout=timedelta(seconds=60))
        return task.ask(images)

    entry = Entry({"taps": list(task.teacher_taps), "data": data.fingerprint}, 10**9)
    task.cache = CachedTeacher(ask, data, entry, seed=3, batch_size=16, device=CPU)
    return {**trained(task, batch_size=16), "asked": asked}


def test_the_teacher_is_asked_by_all_each_about_its_shards_and_says_the_same() -> None:
    data = {"augment": "crop_flip"}
    alone, together = trained(distilled("kd"), batch_size=16, data=data), on_ranks(2, answered)
    assert sum(said["asked"] for said in together) == len(together) + -(-make_data().spec.num_train // 16)
    assert all(said["asked"] > 1 for said in together)
    check_same(alone, together, 1e-10)


def predicted() -> list[Tensor]:
    """In batches of 7, of which each of three processes has one or two; and in one, which one of them has."""
    data, net = make_data(), make_student()
    sizes = (7, data.size("val"))
    return [each for size in sizes for each in predict(net, data, "val", batch_size=size, device=CPU, ranks=ranks())]


def test_validation_is_shared_with_the_bits_of_one_process() -> None:
    alone = predicted()
    assert len(alone[0]) % 7
    for said in on_ranks(3, predicted):
        assert all(map(torch.equal, said, alone))


def local() -> Said:
    return trained(Supervised(network((4, 6, 8), 2, 0, dropout=0.0)), batch_size=18, batch_norm="local")


def test_local_batch_normalisation_is_another_training_of_one_network() -> None:
    alone, (one, other) = local(), on_ranks(2, local)
    check_same(one, [other], 0.0)
    assert any((one["state"][name] - value).abs().max() > 1e-6 for name, value in alone["state"].items())


class Before(nn.Module):
    """A network whose images are changed before it sees them."""

    def __init__(self, change: Callable[[Tensor], Tensor], inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(self.change(images) if self.training else images)


def drops(images: Tensor) -> Tensor:
    """As dropout of channels and stochastic depth do."""
    return stochastic_depth(nn.functional.dropout2d(images, 0.3), 0.4, "row")


def dropping() -> Said:
    return trained(Supervised(Before(drops, network((4, 6, 8), 2, 0))), batch_size=17)


def test_what_dropout_of_channels_and_stochastic_depth_draw_is_that_of_one_process() -> None:
    alone = dropping()
    check_same(alone, on_ranks(3, dropping), 1e-10)


@pytest.mark.parametrize(
    "draws",
    [
        lambda images: images * torch.rand(len(images), 1, 1, 1),
        lambda images: images * torch.ones(1, 1, 1, 1).bernoulli_(0.5),
        lambda images: images * torch.empty_like(images).bernoulli_(images.sigmoid()),
        partial(nn.functional.alpha_dropout, training=True),
    ],
)
def test_a_network_that_draws_otherwise_than_by_dropout_is_refused(draws: Callable[..., Tensor]) -> None:
    data, training = make_data(), Training("baseline", "baseline", {"name": "draws"}, 0)
    check_together(training, Before(drops, make_student()), Recipe(batch_size=32), data, 2)
    with pytest.raises(ConfigError, match=r"^devices: student=draws draws random numbers otherwise than by dropout"):
        check_together(training, Before(draws, make_student()), Recipe(batch_size=32), data, 2)


def refused() -> str:
    class Remembers(nn.Module):
        """Keeps the mean of what it was shown, as no function of PyTorch does it."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = network((4, 6, 8), 2, 0)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, images: Tensor) -> Tensor:
            self.seen += images.mean().double()
            return self.inner(images)

    try:
        trained(Supervised(Remembers()))
    except ConfigError as error:
        return str(error)
    return "trained"


def test_a_network_that_remembers_its_own_rows_is_refused_and_not_trained_wrongly() -> None:
    assert all("type devices=1" in said for said in on_ranks(2, refused))


def diverged() -> str:
    from kd_cli.errors import DivergedError

    class Breaks(nn.Module):
        """Has no number for the images of one rank."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = network((4, 6, 8), 2, 0)

        def forward(self, images: Tensor) -> Tensor:
            from kd_cli.machine import shard

            return self.inner(images) * (torch.nan if shard()[0] == 1 else 1)

    try:
        trained(Supervised(Breaks()))
    except DivergedError as error:
        return str(error)
    return "trained"


def test_what_is_not_finite_on_one_rank_stops_all_with_its_images_named() -> None:
    one, other = on_ranks(2, diverged)
    assert one == other
    assert "their logits are not finite" in one
