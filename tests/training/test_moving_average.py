"""Moving averages: what is averaged, what is copied, and that runs of a kd that averaged everything are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.models.swin_transformer import SwinTransformer

from kd_cli.report.results import results_of
from kd_cli.training import update
from kd_cli.training.optim import MovingAverage
from tests.conftest import Outcome

DECAYS = (0.9, 0.95, 0.992, 0.9995, 0.9999)  # each cuts ones off an index table that is averaged
SMALL_SWIN = {
    **{"patch_size": [2, 2], "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]},
    "window_size": [7, 7],  # that of torchvision's `swin_t`
}
TIMM = {
    "swin_tiny_patch4_window7_224": {"img_size": 56, "depths": (1, 1, 1, 1)},
    "swinv2_tiny_window8_256": {"img_size": 64, "depths": (1, 1, 1, 1)},
    "maxvit_nano_rw_256": {"img_size": 256, "depths": (1, 1, 1, 1)},
    "coatnet_nano_rw_224": {"img_size": 224, "depths": (1, 1, 1, 1)},
    "beit_base_patch16_224": {"depth": 1},
    "levit_128s": {"depth": (1, 1, 1)},
}


def of_timm(name: str) -> nn.Module:
    return pytest.importorskip("timm").create_model(name, **TIMM[name])


def whole_numbers(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: each.clone() for name, each in network.named_buffers() if not each.is_floating_point()}


@pytest.mark.parametrize("name", ["torchvision", *TIMM])
def test_whole_numbers_are_copied_and_fractions_averaged(name: str) -> None:
    network = SwinTransformer(**SMALL_SWIN) if name == "torchvision" else of_timm(name)
    tables = whole_numbers(network)
    assert any(each.numel() > 1 for each in tables.values())
    learned = next(network.parameters())
    for decay in DECAYS:
        average = MovingAverage(network, decay)
        average.update_parameters(network)
        before = learned.detach().clone()
        with torch.no_grad():
            learned.add_(1)
        average.update_parameters(network)
        averaged = average.module.get_buffer
        assert all(torch.equal(averaged(path), table) for path, table in tables.items()), decay
        torch.testing.assert_close(next(average.module.parameters()), before + (1 - decay))


def test_all_of_an_average_is_where_its_network_is() -> None:
    average = MovingAverage(nn.BatchNorm1d(2, device="meta"), 0.9)
    assert {tensor.device.type for tensor in average.state_dict().values()} == {"meta"}  # its count of updates, too


def test_counters_are_those_of_the_network() -> None:
    network = nn.BatchNorm1d(2)
    average = MovingAverage(network, 0.9)
    for _ in range(3):
        network(torch.rand(4, 2))
        average.update_parameters(network)
    assert average.module.num_batches_tracked == network.num_batches_tracked == 3


NAMED = ["student=external", "student.callable=torchvision.models.swin_transformer.SwinTransformer"]
SWIN = [
    *("dataset=synthetic", "dataset.num_train=100", "dataset.num_test=20", "dataset.image_size=28"),
    *NAMED,
    *(f"+student.kwargs.{key}={value}".replace(" ", "") for key, value in SMALL_SWIN.items()),
    *("trainer.epochs=1", "trainer.batch_size=30", "trainer.ema_decay=0.9"),
]


@pytest.fixture
def swin_run(kd: Callable[..., Outcome], tmp_path: Path) -> Callable[[], Path]:
    def made() -> Path:
        kd("train-baseline", *SWIN, f"hydra.run.dir={tmp_path / 'run'}")
        return tmp_path / "run"

    return made


def averages_all(network: nn.Module, decay: float) -> AveragedModel:
    """As kd did."""
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def told(kd: Callable[..., Outcome], run: Path) -> dict[str, str]:
    """What each command that takes a run says of it."""
    said = {"show": kd("show", str(run)).err, "evaluate": kd("evaluate", str(run), *SWIN[4:-3]).err}
    return said | {"report": " ".join(results_of([run], ())["warnings"])}


def test_a_run_whose_tables_were_averaged_is_named(
    swin_run: Callable[[], Path], kd: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update, "MovingAverage", averages_all)
    run = swin_run()
    for command, words in told(kd, run).items():
        assert "relative_position_index" in words, command
        assert "is damaged, because an earlier kd" in words, command


def test_a_run_whose_tables_were_copied_is_not(swin_run: Callable[[], Path], kd: Callable[..., Outcome]) -> None:
    for command, words in told(kd, swin_run()).items():
        assert "damaged" not in words, command
