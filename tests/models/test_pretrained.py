"""Networks that start from a file of weights, and names for their modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kd_cli.errors import ConfigError
from kd_cli.taps import Tapped
from tests.conftest import SMALL
from tests.support.networks import CIFAR, MNIST, build


def resnet18(shape: tuple[int, int, int] = CIFAR, num_classes: int = 10, seed: int = 0, **options: Any) -> nn.Module:
    return build({"name": "torchvision", "model": "resnet18", **options}, shape, num_classes, seed)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Those of a ResNet-18 for colour images of 10 classes, made from seed 1."""
    path = tmp_path / "resnet18.safetensors"
    save_file(resnet18(seed=1).state_dict(), path)
    return path


def differing(one: nn.Module, other: nn.Module) -> set[str]:
    states = one.state_dict(), other.state_dict()
    return {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}


def test_a_network_starts_from_the_weights_of_a_file(weights: Path) -> None:
    assert differing(resnet18(seed=2), resnet18(seed=1))
    assert not differing(resnet18(seed=2, pretrained=str(weights)), resnet18(seed=1))


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"state_dict": x}, lambda x: {"model": x, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_files_of_torch_are_read_in_the_forms_that_scripts_write(tmp_path: Path, wrap: Any, prefix: str) -> None:
    state = {f"{prefix}{name}": value for name, value in resnet18(seed=1).state_dict().items()}
    torch.save(wrap(state), tmp_path / "w.pth")
    assert not differing(resnet18(seed=2, pretrained=str(tmp_path / "w.pth")), resnet18(seed=1))


def test_layers_that_depend_on_the_data_keep_their_random_weights(
    weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = resnet18(MNIST, num_classes=7, seed=2, pretrained=str(weights))
    fresh, source = resnet18(MNIST, num_classes=7, seed=2), resnet18(seed=1).state_dict()
    for name, value in network.state_dict().items():
        mine = name in ("conv1.weight", "fc.weight", "fc.bias")
        assert torch.equal(value, fresh.state_dict()[name] if mine else source[name])
    assert "conv1, fc learned on other data" in caplog.text


class Payload:
    """Pickled code, which must never run."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def other_network(path: Path) -> None:
    torch.save(nn.Linear(3, 4).state_dict(), path)


def other_width(path: Path) -> None:
    state = resnet18().state_dict()
    torch.save(state | {"layer1.0.conv1.weight": torch.zeros(32, 64, 3, 3)}, path)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: None, "there is no file"),
        (lambda path: torch.save(Payload(), path), "tensors alone"),
        (lambda path: torch.save([1, 2], path), "no state dict"),
        (lambda path: path.write_bytes(b"nonsense"), "tensors alone"),
        (lambda path: path.write_bytes(b""), "tensors alone"),
        (other_network, "another network"),
        (other_width, "layer1.0.conv1.weight is [32, 64, 3, 3] there, [64, 64, 3, 3] here"),
    ],
)
def test_files_that_do_not_fit_or_are_not_safe_are_refused(tmp_path: Path, write: Any, said: str) -> None:
    write(tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"student\.pretrained: ") as refusal:
        resnet18(pretrained=str(tmp_path / "w.pth"))
    assert said in str(refusal.value)
    assert not Path("executed").exists()


def test_a_student_that_started_from_a_file_is_evaluated_without_it(kd, weights: Path) -> None:
    small = [word for word in SMALL if not word.startswith("student")]
    options = ["student=torchvision", f"student.pretrained={weights}", "trainer.limit_train_batches=2"]
    result = kd("train-baseline", *small, *options, "trainer.epochs=1", "--json").json
    record = kd("show", result["run"], "--json").json["provenance"]
    assert len(record["pretrained_sha256"]) == 64
    weights.unlink()
    (row,) = kd("evaluate", result["run"], "--json").json["evaluations"]
    assert row["top1"] == result["test_top1"]


def test_what_could_not_be_taken_from_a_file_is_said_once(kd, weights: Path) -> None:
    small = [word for word in SMALL if not word.startswith("student")]
    options = ["student=torchvision", f"student.pretrained={weights}", "dataset.num_classes=4"]
    shown = kd("run", *small, *options, "trainer.limit_train_batches=2", "trainer.epochs=1").err
    assert shown.count("learned on other data") == 1


def test_patterns_name_the_modules_of_a_foreign_network_in_its_order() -> None:
    network = resnet18(taps={"stage": "layer*", "preact": "layer*.1.relu:in", "embedding": "fc:in", "mine": "maxpool"})
    assert [network.taps[f"stage{i}"] for i in (1, 2, 3, 4)] == ["layer1", "layer2", "layer3", "layer4"]
    assert network.taps["preact2"] == "layer2.1.relu:in"
    assert network.taps["mine"] == "maxpool"
    features = Tapped(network.eval(), ["stages", "embedding", "mine"])(torch.zeros(2, *CIFAR)).features
    assert list(features) == ["stage1", "stage2", "stage3", "stage4", "embedding", "mine"]


def test_a_pattern_stands_for_all_found_of_its_kind() -> None:
    network = resnet18(taps={"stage": "layer*.1"})
    assert {tap: path for tap, path in network.taps.items() if tap.startswith("stage")} == {
        f"stage{i}": f"layer{i}.1" for i in (1, 2, 3, 4)
    }
    assert "embedding" in network.taps


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"student\.taps: stage: 'blocks\.\*' matches no module"):
        resnet18(taps={"stage": "blocks.*"})


def test_networks_of_timm_take_weights_from_a_file_and_names_by_pattern(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(1)
    save_file(timm.create_model("resnet10t", num_classes=5).state_dict(), tmp_path / "timm.safetensors")
    network = build(
        {
            "name": "external",
            "callable": "timm.create_model",
            "kwargs": {"model_name": "resnet10t"},
            "pretrained": str(tmp_path / "timm.safetensors"),
            "taps": {"stage": "layer*", "embedding": "fc:in"},
        }
    )
    said = Tapped(network.eval(), ["stages", "embedding"])(torch.zeros(2, *CIFAR))
    assert [said.features[f"stage{i}"].shape[1] for i in (1, 2, 3, 4)] == [64, 128, 256, 512]
    assert said.logits.shape == (2, 10)
