"""Teachers that nobody trained with kd: files of weights, networks that are ready as they stand, ONNX files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file
from torch import Tensor, nn

from kd_cli.config.compose import compose
from kd_cli.data.base import load_dataset
from kd_cli.errors import ConfigError
from kd_cli.models import VIEW
from kd_cli.models.base import MODELS
from kd_cli.teachers.load import Known, load_teacher
from tests.conftest import ROOT, SMALL, Outcome
from tests.support.small import CPU

Run = Callable[..., Outcome]
DISTILL = ("distill", *SMALL, "trainer.epochs=1", "--json")


def best(run: Path) -> Path:
    epoch = json.loads((run / "result.json").read_text())["best_epoch"]
    return run / "checkpoints" / f"epoch-{epoch:04d}" / "model.safetensors"


def nested(run: Path) -> Path:
    """The teacher's weights as a training script would keep them."""
    state = {f"module.{name}": value for name, value in load_file(best(run)).items()}
    torch.save({"state_dict": state, "epoch": 2}, "w.pth")
    return Path("w.pth")


def test_every_option_that_takes_weights_takes_a_file_of_torch(kd: Run, trained: Path, teacher: dict[str, Any]) -> None:
    file = nested(trained)
    expected = kd(*DISTILL, f"teacher.checkpoint={trained}").json["weights_sha256"]
    assert kd(*DISTILL, f"teacher.checkpoint={file}").json["weights_sha256"] == expected
    both = kd(*DISTILL, f"teacher.checkpoint=[{trained},{best(trained)}]").json["weights_sha256"]
    assert kd(*DISTILL, f"teacher.checkpoint=[{trained},{trained}]").json["weights_sha256"] == both
    words = [word for word in SMALL if word.startswith("dataset")]
    (row,) = kd("evaluate", str(trained), "--json").json["evaluations"]
    assert row["top1"] == teacher["test_top1"]
    (row,) = kd("evaluate", str(file), *words, "student=mlp", "student.hidden=[128]", "--json").json["evaluations"]
    assert row["top1"] == teacher["test_top1"]


SIZES = ("dataset.image_size=12", "dataset.mean=[0.2]", "dataset.std=[0.5]")


def test_size_and_normalisation_on_record_are_compared_before_anything_is_measured(kd: Run, trained: Path) -> None:
    said = kd(*DISTILL, f"teacher.checkpoint={trained}", *SIZES, code=3).message
    assert "was trained with dataset.mean=[0.5,0.5,0.5] dataset.std=[0.25,0.25,0.25] dataset.image_size=16" in said
    assert "the images now have dataset.mean=[0.2,0.2,0.2] dataset.std=[0.5,0.5,0.5] dataset.image_size=12" in said
    assert "teacher.mean=[0.5,0.5,0.5] teacher.std=[0.25,0.25,0.25] teacher.image_size=16" in said
    assert "%" not in said


def test_a_teacher_is_shown_images_as_it_learned_them_where_that_is_typed(kd: Run, trained: Path) -> None:
    shown = ("teacher.mean=[0.5]", "teacher.std=[0.25]")
    result = kd(*DISTILL, f"teacher.checkpoint={trained}", *SIZES[1:], *shown, "hydra.run.dir=shown")
    (row,) = kd("evaluate", "shown", "--json").json["evaluations"]
    assert row["agreement"] is not None
    facts = json.loads(Path("shown/run.json").read_text())["teacher"]
    assert {key: facts["models"][0].get(key) for key in VIEW[:3]} == {"mean": [0.5], "std": [0.25], "image_size": None}
    assert facts["val_top1"] == json.loads((trained / "result.json").read_text())["val_top1"]
    assert "has no effect" not in result.err


def test_a_file_without_a_record_that_is_a_little_better_than_a_guess_asks_for_what_no_record_says(
    kd: Run, trained: Path
) -> None:
    swapped = [1, 2, 3, 4, 5, 0, 6, 7, 8, 9]  # of ten classes it knows four by their names
    state = {name: value[swapped] if len(value) == 10 else value for name, value in load_file(best(trained)).items()}
    torch.save(state, "w.pth")
    said = kd(*DISTILL, "teacher.checkpoint=w.pth", code=3)
    assert "Type teacher.mean=… teacher.std=… teacher.image_size=…" in said.message
    assert "teacher.image_size=16 if as the images are now" in said.message
    assert said.err.count("cannot be checked") == 1


def test_what_is_typed_of_a_teacher_is_checked(kd: Run, trained: Path) -> None:
    given = f"teacher.checkpoint={trained}"
    assert "type teacher.mean=[0.5,0.5,0.5]" in kd(*DISTILL, given, "teacher.mean=[0.1,0.2]", code=2).message
    assert "teacher.std: [0.0]: 0.0 is not possible" in kd(*DISTILL, given, "teacher.std=[0]", code=2).message
    assert "teacher.image_size: 0 is not" in kd(*DISTILL, given, "teacher.image_size=0", code=2).message
    assert "teacher.image_size" in kd(*DISTILL, given, "teacher.image_size=[1,2,3]", code=2).message
    assert "teacher.ready: " in kd(*DISTILL, given, "teacher.ready=true", code=2).message


PLUGIN = """
from safetensors.torch import load_file
from kd_cli.models import VIEW
from kd_cli.models.base import MODELS
def build(num_classes, in_channels, image_size, file):
    shape = dict(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    network = MODELS.build({"name": "mlp", "hidden": [128]}, **shape)
    network.load_state_dict(load_file(file))
    return network
"""


def test_a_teacher_that_is_ready_needs_no_checkpoint_and_teaches_the_same(kd: Run, trained: Path) -> None:
    Path("mine.py").write_text(PLUGIN)
    ready = ["plugins=[./mine.py]", "teacher=external", "teacher.callable=mine.build", "teacher.ready=true"]
    ready.append(f"teacher.kwargs={{file: {best(trained)}}}")
    expected = kd(*DISTILL, f"teacher.checkpoint={trained}").json["weights_sha256"]
    words = [word for word in DISTILL if not word.startswith("teacher")]
    assert kd(*words, *ready, "hydra.run.dir=taught").json["weights_sha256"] == expected
    facts = json.loads(Path("taught/run.json").read_text())["teacher"]
    assert facts["ready"] is True
    assert str(best(trained)) in facts["sources"][0]
    assert facts["sha256"][0].startswith("blake2b:")
    said = kd("evaluate", "taught", "plugins=[./mine.py]", "--json")
    assert "was ready as it stood" in said.err
    assert "has nothing to learn" not in said.err


def onnx_file(weights: Sequence[Any], *, batch: Any = "batch", bytes_in: bool = False, path: str = "t.onnx") -> str:
    """One hidden layer with a ReLU: `mlp` of kd, as somebody's ONNX file."""
    tensors = {f"t{number}": each.numpy() for number, each in enumerate(weights)}
    nodes, last = [], "images"
    kind, shape = TensorProto.FLOAT, [batch, 3, 16, 16]
    if bytes_in:
        kind, shape = TensorProto.UINT8, [batch, 16, 16, 3]
        nodes += [helper.make_node("Cast", ["images"], ["real"], to=TensorProto.FLOAT)]
        nodes += [helper.make_node("Transpose", ["real"], ["turned"], perm=[0, 3, 1, 2])]
        tensors |= {"low": torch.tensor(127.5).numpy(), "high": torch.tensor(63.75).numpy()}
        nodes += [helper.make_node("Sub", ["turned", "low"], ["centred"])]
        nodes += [helper.make_node("Div", ["centred", "high"], ["scaled"])]
        last = "scaled"
    nodes += [
        helper.make_node("Flatten", [last], ["flat"]),
        helper.make_node("Gemm", ["flat", "t0", "t1"], ["hidden"], transB=1),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "t2", "t3"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", kind, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, len(weights[-1])])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.fixture
def layers(trained: Path) -> list[Tensor]:
    state = load_file(best(trained))
    wide = sorted({name.rpartition(".")[0] for name in state}, key=lambda layer: -state[f"{layer}.weight"].shape[1])
    return [state[f"{layer}.{kind}"] for layer in wide for kind in ("weight", "bias")]


@pytest.mark.parametrize(("batch", "bytes_in"), [("batch", False), (1, False), ("batch", True)])
def test_an_onnx_file_says_what_the_network_says(
    trained: Path, layers: list[Tensor], batch: Any, bytes_in: bool
) -> None:
    data = load_dataset(compose(SMALL)["dataset"])
    view = {"mean": [0], "std": [1]} if bytes_in else {}
    options = {"name": "onnx", "file": onnx_file(layers, batch=batch, bytes_in=bytes_in), **view}
    asked = load_teacher(Known(None, options), data, batch_size=50, device=CPU)
    known = load_teacher(Known(trained, None), data, batch_size=50, device=CPU)
    batches = data.eval_batches("test", batch_size=30, device=CPU)
    for images in (each.images for each in batches):
        assert torch.allclose(asked.network(images), known.network(images), atol=1e-4)
    assert asked.facts["sha256"] != known.facts["sha256"]
    assert len(asked.facts["sha256"]) == 64


def test_an_onnx_file_teaches(kd: Run, layers: list[Tensor]) -> None:
    file = onnx_file(layers)
    words = [*(word for word in DISTILL if word != "teacher=mlp"), "teacher=onnx"]
    result = kd(*words, f"teacher.file={file}", "hydra.run.dir=taught")
    assert "asked about all 270 training images" in result.err
    assert json.loads(Path("taught/run.json").read_text())["teacher"]["sources"] == [f"onnx(file={file})"]
    assert "asked about" not in kd(*words, f"teacher.file={file}").err
    other = onnx_file([*layers[:3], layers[3] + 0.01], path="other.onnx")
    assert "asked about" in kd(*words, f"teacher.file={other}").err
    assert "there is no file None; type teacher.file=" in kd(*words, code=2).message
    Path("text.onnx").write_text("no network")
    assert "no network that ONNX Runtime can read" in kd(*words, "teacher.file=text.onnx", code=2).message
    checked = kd("check", *(word for word in words[1:] if word != "--json"), f"teacher.file={file}", "--json").json
    assert checked["networks"]["teacher"]["name"] == "t.onnx"
    assert "nothing to learn" in kd("train-teacher", *SMALL, "teacher=onnx", f"teacher.file={file}", code=2).message


def test_an_onnx_file_for_other_classes_or_images_is_refused(layers: list[Tensor]) -> None:
    shape = {"num_classes": 10, "in_channels": 3, "image_size": 16}
    options = {"name": "onnx", "file": onnx_file(layers)}
    assert isinstance(MODELS.build(options, where="teacher", **shape), nn.Module)
    with pytest.raises(ConfigError, match=r"teacher\.file: .* gave \[2, 10\] for images .*, not logits \[2, 7\]"):
        MODELS.build(options, where="teacher", **shape | {"num_classes": 7})
    with pytest.raises(ConfigError, match=r"teacher\.file: .* cannot take images \[2, 3, 8, 8\]"):
        MODELS.build(options, where="teacher", **shape | {"image_size": 8})


def test_the_wrapper_for_hugging_face_in_the_documentation_works(kd: Run) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install transformers: it is no dependency of kd")
    page = (ROOT / "docs" / "extending.md").read_text()
    (code,) = re.findall(r"```python\n# hf\.py\n(.*?)```", page, re.DOTALL)
    Path("hf.py").write_text(code)
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], num_labels=10)
    transformers.ResNetForImageClassification(config).save_pretrained("folder")
    ready = ["plugins=[./hf.py]", "teacher=external", "teacher.callable=hf.Classifier", "teacher.ready=true"]
    words = [word for word in DISTILL if not word.startswith("teacher")]
    said = kd(*words, *ready, "teacher.kwargs={folder: folder}", "dataset.val_fraction=0", "hydra.run.dir=taught")
    assert said.json["epochs"] == 1
    assert "hf.Classifier" in json.loads(Path("taught/run.json").read_text())["teacher"]["sources"][0]
