"""SWA against torch's own: the mean of the last epochs' weights, and batch normalisation measured for it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from kd_cli.config.recipe import Recipe
from kd_cli.data.base import Data
from kd_cli.training import swa
from kd_cli.training.state import TrainState
from kd_cli.training.task import Supervised
from kd_cli.training.trainer import Trainer
from kd_cli.types import Batch
from tests.support.small import CPU, SmallNet, make_data, make_student, same_tensors

RECIPE = {"epochs": 4, "batch_size": 32, "lr": 0.02, "swa_epochs": 3}


def without_dropout() -> SmallNet:
    """Torch measures the statistics with dropout, kd as they will be used."""
    torch.manual_seed(0)
    return SmallNet((4, 6, 8), first_stride=2, dropout=0.0)


def images(data: Data, epoch: int) -> list[Tensor]:
    return [batch.images for batch in data.train_batches(seed=3, epoch=epoch, batch_size=32, device=CPU)]


def test_it_is_torchs_average_of_the_last_epochs_with_its_statistics() -> None:
    data, network = make_data(augment="crop_flip"), without_dropout()
    trainer = Trainer(Recipe(**RECIPE), seed=3, device=CPU)
    average = AveragedModel(network)
    for record in trainer.epochs(Supervised(network), data):
        epoch = int(record["epoch"])
        if epoch == 1:
            assert trainer.deployed is network
            continue
        average.update_parameters(network)
        update_bn(images(data, epoch - 1), average)
        for name, tensor in average.module.state_dict().items():
            torch.testing.assert_close(trainer.deployed.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert not same_tensors(trainer.deployed, network)


def test_dropout_has_no_part_in_the_statistics_and_the_modes_stay() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
    images, none = torch.randn(50, 3) + 4, torch.zeros(50, dtype=torch.int64)
    swa.measure_norms(network, [Batch(images, none, none)] * 2)
    torch.testing.assert_close(network[1].running_mean, images.mean(dim=0))
    assert network[1].momentum == 0.1
    assert all(module.training for module in network.modules())


class Broken(Exception):
    pass


@pytest.mark.parametrize("at", [1, 2, 3])
def test_who_is_interrupted_while_statistics_are_measured_averages_no_epoch_twice(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, data = Recipe(**RECIPE), make_data(augment="crop_flip")
    whole = Trainer(recipe, seed=3, device=CPU)
    list(whole.epochs(Supervised(make_student()), data))
    trainer, measured, measure = Trainer(recipe, seed=3, device=CPU), [], swa.measure_norms

    def breaks(network: nn.Module, batches: Any) -> None:
        measured.append(network)
        if len(measured) == at:
            next(iter(batches))
            raise Broken
        measure(network, batches)

    monkeypatch.setattr(swa, "measure_norms", breaks)
    with pytest.raises(Broken):
        list(trainer.epochs(Supervised(make_student()), data))
    assert trainer.between_steps  # so that what stands there is saved
    kept = trainer.state()
    assert (kept.epoch, kept.step) == (at, trainer.updates)
    state = TrainState(kept.epoch, kept.step, copy.deepcopy(kept.tensors), json.loads(json.dumps(kept.plain)))
    monkeypatch.setattr(swa, "measure_norms", measure)
    resumed = Trainer(recipe, seed=3, device=CPU)
    list(resumed.epochs(Supervised(make_student(1)), data, state))
    assert same_tensors(resumed.deployed, whole.deployed)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ema_decay": 0.9}, r"beside ema_decay=0\.9, .*; type trainer\.ema_decay=null"),
        ({"early_stopping": 2}, r"beside early_stopping=2, .*; type trainer\.early_stopping=null"),
    ],
)
def test_what_cannot_be_beside_it_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"swa_epochs: 3 is not possible.*{said}"):
        Recipe(**{**RECIPE, **options})


def test_more_epochs_than_there_are_stand_for_all() -> None:
    networks = []
    for last in (2, 9):
        trainer = Trainer(Recipe(epochs=2, batch_size=32, lr=0.02, swa_epochs=last), seed=3, device=CPU)
        list(trainer.epochs(Supervised(make_student()), make_data()))
        networks.append(trainer.deployed)
        assert trainer.updater.average is not None
        assert int(trainer.updater.average.n_averaged) == 2
    assert same_tensors(*networks)
