"""Networks that start from a file of weights, and names for their modules."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kd_cli.errors import ConfigError, DataError
from kd_cli.models.pretrained import read_for
from kd_cli.plugins import trust
from kd_cli.storage.tensors import check_names
from kd_cli.taps import Tapped
from tests.conftest import ROOT, SMALL
from tests.support.networks import CIFAR, MNIST, build
from tests.support.sample import ALL


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


WRAPPINGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "bare": lambda state: state,
    **{key: lambda state, key=key: {key: state, "epoch": 3} for key in ("state_dict", "model", "ema", "net", "params")},
    "the average first": lambda state: {"state_dict": {"w": torch.zeros(1)}, "state_dict_ema": state},
    "two deep": lambda state: {"model": {"state_dict": state, "epoch": 3}, "args": Namespace(lr=0.1)},
    "of a name of its own": lambda state: {"my_network": state, "optimizer": {"state": {}, "param_groups": []}},
    "an average of torch": lambda state: {"model_ema": {"n_averaged": ONE} | {f"module.{k}": state[k] for k in state}},
}
ONE = torch.ones((), dtype=torch.long)


PREFIXES = ("", "module.", "_orig_mod.module.", "model._orig_mod.")
# By default each way with one prefix and each prefix with one way.
FORMS = [
    (name, prefix)
    for name in WRAPPINGS
    for prefix in PREFIXES
    if ALL or prefix == PREFIXES[1] or name == next(iter(WRAPPINGS))
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "prefix"), FORMS)
def test_files_of_torch_are_read_in_the_forms_that_scripts_write(tmp_path: Path, name: str, prefix: str) -> None:
    wrap = WRAPPINGS[name]
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


def test_half_precision_and_files_without_counters_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = resnet18(seed=1).state_dict()
    half = {name: value.half() for name, value in state.items() if value.is_floating_point()}
    torch.save(half, tmp_path / "half.pth")
    network = resnet18(seed=2, pretrained=str(tmp_path / "half.pth"))
    assert all(torch.equal(value, half[name].float()) for name, value in network.named_parameters())
    assert network.bn1.num_batches_tracked == 0
    assert "has numbers of type float16" in caplog.text


def test_a_file_with_two_networks_says_which_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two = (resnet18(seed=seed).state_dict() for seed in (1, 2))
    torch.save({"state_dict": one, "state_dict_ema": two}, tmp_path / "w.pth")
    assert not differing(resnet18(seed=3, pretrained=str(tmp_path / "w.pth")), resnet18(seed=2))
    assert "holds state_dict_ema, state_dict; state_dict_ema is taken" in caplog.text


def test_names_of_an_older_densenet_are_renamed_as_torchvision_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trust(__name__)
    options = {"name": "external", "callable": f"{__name__}.small_densenet"}
    published = build(options, seed=1).state_dict()
    inner = re.compile(r"(denselayer\d+\.(?:norm|conv))([12])\.")
    torch.save({inner.sub(r"\1.\2.", name): value for name, value in published.items()}, tmp_path / "w.pth")
    network = build({**options, "pretrained": str(tmp_path / "w.pth")}, seed=2)
    assert all(torch.equal(value, published[name]) for name, value in network.state_dict().items())
    assert "names of an older version were renamed (such as features.denseblock1.denselayer1.conv.1" in caplog.text


@pytest.mark.parametrize("model", ["googlenet", "inception_v3"])
def test_auxiliary_heads_that_the_network_does_not_have_are_left_out(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"name": "torchvision", "model": model, "kwargs": {"init_weights": False, "aux_logits": False}}
    shape = (3, 96, 96)
    plain = build(options, shape, seed=1).state_dict()
    heads = ["aux1.conv.weight", "aux2.fc2.bias"] if model == "googlenet" else ["AuxLogits.conv0.bn.bias"]
    torch.save(plain | {name: torch.ones(3) for name in heads}, tmp_path / "w.pth")
    network = build({**options, "pretrained": str(tmp_path / "w.pth")}, shape, seed=2)
    assert all(torch.equal(value, plain[name]) for name, value in network.state_dict().items())
    assert "auxiliary heads, which this network does not have, were left out" in caplog.text
    assert "kwargs.transform_input=true" in caplog.text


def test_a_classifier_that_is_a_convolution_keeps_random_weights_for_other_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"name": "torchvision", "model": "squeezenet1_1"}
    source = build(options, num_classes=7, seed=1)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    network = build({**options, "pretrained": str(tmp_path / "w.pth")}, seed=2)
    fresh, other = build(options, seed=2).state_dict(), source.state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(value, fresh[name] if name.startswith("classifier") else other[name])
    assert "classifier.1 learned on other data" in caplog.text


def small_densenet(num_classes: int) -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(8, (1, 2, 1, 1), 16, num_classes=num_classes)


def small_vit(num_classes: int, image_size: int) -> nn.Module:
    from torchvision.models import VisionTransformer

    network = VisionTransformer(image_size, 8, 1, 2, 16, 32, num_classes=num_classes)
    nn.init.normal_(network.encoder.pos_embedding)
    return network


def test_position_embeddings_of_another_grid_are_resampled_as_torchvision_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from torchvision.models.vision_transformer import interpolate_embeddings

    torch.manual_seed(1)
    source = small_vit(10, 64)
    torch.save({"model": source.state_dict()}, tmp_path / "w.pth")
    trust(__name__)
    network = build({"name": "external", "callable": f"{__name__}.small_vit", "pretrained": str(tmp_path / "w.pth")})
    expected = interpolate_embeddings(32, 8, source.state_dict())
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    assert "resampled from 64 to 16 patches" in caplog.text


def test_position_embeddings_of_another_grid_are_resampled_as_timm_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    small = {"model_name": "vit_tiny_patch16_224", "depth": 1, "embed_dim": 24, "num_heads": 2, "patch_size": 8}
    torch.manual_seed(1)
    source = timm.create_model(**small, img_size=64, num_classes=7)
    torch.save({"model": source.state_dict()}, tmp_path / "w.pth")
    options = {"name": "external", "callable": "timm.create_model", "kwargs": {**small, "img_size": 32}}
    network = build({**options, "pretrained": str(tmp_path / "w.pth")})
    expected = checkpoint_filter_fn(source.state_dict(), network)
    loaded = {name: value for name, value in network.state_dict().items() if not name.startswith("head.")}
    assert all(torch.equal(value, expected[name]) for name, value in loaded.items())
    assert "pos_embed resampled, as timm does" in caplog.text
    assert "head learned on other data" in caplog.text


def test_a_refusal_names_five_at_the_most_and_how_many_more(tmp_path: Path) -> None:
    state = resnet18().state_dict()
    torch.save({name.replace("layer", "stage"): value for name, value in state.items()}, tmp_path / "w.pth")
    with pytest.raises(ConfigError) as refusal:
        resnet18(pretrained=str(tmp_path / "w.pth"))
    assert str(refusal.value).count("layer") == str(refusal.value).count("stage") == 5
    assert len(re.findall(r"and \d+ more", str(refusal.value))) == 2


PUBLISHED = ROOT.parent / "shared" / "data" / "pretrained"


@pytest.mark.data
@pytest.mark.parametrize("file", ["resnet20-12fca82f.th", "resnet56-4bfd9763.th"])
def test_published_cifar_networks_are_read_by_name(file: str, caplog: pytest.LogCaptureFixture) -> None:
    if not (PUBLISHED / file).exists():
        pytest.skip(f"needs {PUBLISHED / file}")
    name = file.partition("-")[0]
    network = build({"name": f"{name}_a"})
    network.load_state_dict(read_for(network, PUBLISHED / file))  # nothing is missing, nothing is left over
    assert "the classifier is called fc here, and linear there" in caplog.text
    ours = build({"name": name})
    with pytest.raises(DataError, match=r"it has no fc\.bias, fc\.weight, layer2.*has not, linear\.bias, linear\.w"):
        check_names(read_for(ours, PUBLISHED / file), ours.state_dict(), Path(file))


@pytest.mark.parametrize(("renamed", "read"), [("fc", True), ("conv1", False), ("layer1.0.conv1", False)])
def test_only_a_classifier_may_have_another_name(tmp_path: Path, renamed: str, read: bool) -> None:
    network = build({"name": "resnet8"})
    state = {re.sub(f"^{re.escape(renamed)}[.]", "own.", name): value for name, value in network.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    assert (read_for(network, tmp_path / "w.pth").keys() == network.state_dict().keys()) is read


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
