"""Networks that were made for other sizes and normalisations than the data have, through every command."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models as zoo

from kd_cli.export.weights import load
from kd_cli.saved.network import Saved
from tests.conftest import Outcome, run_in

Run = Callable[..., Outcome]
CPU = torch.device("cpu")
IMAGES = ("dataset=synthetic", "dataset.num_train=300", "dataset.num_test=60")
DATA = (*IMAGES, "trainer.epochs=2", "trainer.batch_size=50")
LARGE = ("teacher=resnet8", "teacher.image_size=24", "teacher.mean=[0.4]", "teacher.std=[0.3]")
SMALL = ("student=resnet8", "student.image_size=[10,12]", "student.interpolation=bicubic", "student.mean=[0.6]")


def record(run: str | Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((Path(run) / "run.json").read_text())
    return read


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that shows itself the images in another size."""
    return run_in(tmp_path_factory.mktemp("large"), "train-teacher", *DATA, *LARGE)


@pytest.fixture(scope="module")
def taught(large: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with a view of its own, of the teacher whose record says how that is shown the images."""
    words = ("distill", *DATA, *SMALL, "teacher=resnet8", f"teacher.checkpoint={large}")
    return run_in(tmp_path_factory.mktemp("taught"), *words)


def test_a_record_says_how_each_network_is_shown_the_images(large: Path, taught: Path) -> None:
    own = {"name": "resnet8", "mean": [0.4], "std": [0.3], "image_size": 24}
    assert record(large)["model"] == own
    assert record(taught)["teacher"]["models"] == [own]
    result = json.loads((large / "result.json").read_text())
    assert record(taught)["teacher"]["val_top1"] == result["val_top1"]
    assert record(taught)["model"]["image_size"] == [10, 12]
    assert record(taught)["data"]["image_shape"] == [3, 16, 16]


def test_a_saved_network_shows_itself_the_images_as_in_training(kd: Run, large: Path, taught: Path) -> None:
    for run in (large, taught):
        (row,) = kd("evaluate", str(run), "--json").json["evaluations"]
        assert row["top1"] == json.loads((run / "result.json").read_text())["test_top1"]
    assert row["agreement"] is not None
    saved = Saved(large)
    network, seen = saved.network(CPU), []
    next(network.children()).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    (batch,) = saved.data().eval_batches("test", batch_size=60, device=CPU)
    network(batch.images)
    expected = torch.nn.functional.interpolate(batch.images * 0.25 + 0.5, 24, mode="bilinear", antialias=True)
    assert torch.allclose(seen[0], (expected - 0.4) / 0.3, atol=1e-5)


def test_the_same_command_goes_on_where_a_run_with_views_was_left(kd: Run, large: Path) -> None:
    words = ("distill", *DATA, *SMALL, "teacher=resnet8", f"teacher.checkpoint={large}", "--json")
    whole = kd(*words, "hydra.run.dir=whole").json["weights_sha256"]
    kd(*words, "trainer.epochs=1", "hydra.run.dir=part")
    assert kd("resume", "part", "trainer.epochs=2", "--json").json["weights_sha256"] == whole


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "pt2", "safetensors"])
def test_an_exported_network_shows_itself_the_images(kd: Run, taught: Path, kind: str) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    report = kd("export", str(taught), "--format", kind, "--out", kind, "--json").json
    assert report["checks"]
    if kind == "safetensors":
        (batch,) = Saved(taught).data().pixels("test", [torch.arange(9)], CPU)
        (shown,) = Saved(taught).data().eval_batches("test", batch_size=60, device=CPU)
        expected = Saved(taught).network(CPU)(shown.images)[:9]
        assert torch.allclose(load(kind)(batch.images), expected, atol=1e-5)
        card = Path(kind, "README.md").read_text()
        assert "with mean [0.6] and std [0.25, 0.25, 0.25] per channel, resized to [10, 12] pixels (bicubic," in card


@pytest.mark.slow
def test_predict_and_infer_say_the_same_of_a_file(
    kd: Run, taught: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    (batch,) = Saved(taught).data().pixels("test", [torch.arange(1)], CPU)
    Image.fromarray(batch.images[0].numpy()).save("one.png")
    (row,) = kd("predict", str(taught), "one.png", "--json").json["images"]
    (said,) = row["predictions"].values()
    kd("export", str(taught), "--format", "onnx", "--out", "out")
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["infer.py", "one.png"])
    runpy.run_path("out/infer.py", run_name="__main__")
    assert said[0]["class"] in capsys.readouterr().out


def test_a_view_that_changes_nothing_leaves_the_bits(kd: Run) -> None:
    words = ("train-baseline", *DATA, "trainer.epochs=1", "student=resnet8", "--json")
    plain = kd(*words).json["weights_sha256"]
    as_data = ("student.mean=[0.5]", "student.std=[0.25]", "student.image_size=16", "student.interpolation=bicubic")
    assert kd(*words, *as_data).json["weights_sha256"] == plain
    assert kd(*words, "student.mean=data").json["weights_sha256"] == plain
    assert kd(*words, "student.image_size=12").json["weights_sha256"] != plain


def test_what_is_typed_of_a_given_teacher_wins_over_its_record(kd: Run, large: Path) -> None:
    words = ("distill", *DATA, "student=resnet8", "teacher=resnet8", f"teacher.checkpoint={large}", "trainer.epochs=1")
    said = kd(*words, "teacher.image_size=12", "hydra.run.dir=typed", code=3).message
    assert "or teacher.image_size=12 is not as it was trained: leave it out" in said
    other = ("dataset.mean=[0.3]", "dataset.std=[0.5]")
    kd(*words, *other, "hydra.run.dir=moved")  # its record says all that these are
    assert record("moved")["teacher"]["val_top1"] == json.loads((large / "result.json").read_text())["val_top1"]


def test_a_step_with_views_waits_for_no_device(kd: Run) -> None:
    checked = kd("check", *DATA, *LARGE, *SMALL, "loss=at", "--json").json
    assert checked["host_reads"] == []
    assert [row["teacher_shape"][1:] for row in checked["features"]] == [[24, 24], [12, 12], [6, 6]]
    assert [row["student_shape"][1:] for row in checked["features"]] == [[10, 12], [5, 6], [3, 3]]


def test_procedures_take_each_network_as_it_is_shown_the_images(kd: Run) -> None:
    between = "assistants=[{name: resnet8, image_size: 20}]"
    words = (*DATA, "trainer.epochs=1", "student=resnet8", "student.image_size=12")
    kd("run", *words, *LARGE, "loss=simkd", between, "generations=2", "hydra.run.dir=all")
    sizes = {name: record(f"all/{name}")["model"]["image_size"] for name in ("teacher", "assistant-1", "generation-1")}
    assert sizes == {"teacher": 24, "assistant-1": 20, "generation-1": 12}
    (row,) = kd("evaluate", "all/distilled", "--json").json["evaluations"]
    assert row["top1"] == json.loads(Path("all/distilled/result.json").read_text())["test_top1"]
    kd("distill", *words, "teacher.checkpoint=[all/teacher,all/assistant-1]", "hydra.run.dir=joined")
    (row,) = kd("evaluate", "joined", "--json").json["evaluations"]
    assert row["agreement"] is not None


def test_the_newest_teacher_that_fits_is_shown_the_images_in_the_same_way(kd: Run, large: Path) -> None:
    words = ("distill", *DATA, "student=resnet8", f"outputs={large.parent}", "--dry-run")
    assert str(large) in kd(*words, *LARGE).out.replace("\n", "")
    assert "there is no completed teacher" in kd(*words, *LARGE, "teacher.image_size=12", code=2).message


def of_torchvision() -> tuple[str, nn.Module, Sequence[str]]:
    return "squeezenet1_1-b8a52dc0.pth", zoo.squeezenet1_1(), ("student=torchvision", "student.model=squeezenet1_1")


def of_timm() -> tuple[str, nn.Module, Sequence[str]]:
    timm = pytest.importorskip("timm")
    words = ("student=external", "student.callable=timm.create_model", "student.kwargs.model_name=resnet10t.c3_in1k")
    return "model.pth", timm.create_model("resnet10t"), words


@pytest.mark.parametrize("published", [of_torchvision, of_timm])
def test_published_weights_in_a_file_say_how_they_are_shown_the_images(
    kd: Run, published: Callable[[], tuple[str, nn.Module, Sequence[str]]]
) -> None:
    file, network, choice = published()
    torch.save(network.state_dict(), file)
    words = ["train-baseline", *DATA, "trainer.epochs=1", "trainer.limit_train_batches=1", *choice]
    said = kd(*words, f"student.pretrained={file}", "student.image_size=40", "hydra.run.dir=tuned").err
    assert said.count("were made for student.mean=[0.485,0.456,0.406] student.std=[0.229,0.224,0.225], and") == 1
    model = record("tuned")["model"]
    assert (model["mean"], model["image_size"], "interpolation" in model) == ([0.485, 0.456, 0.406], 40, False)
    (row,) = kd("evaluate", "tuned", *(choice if "external" in choice[0] else ()), "--json").json["evaluations"]
    assert row["top1"] == json.loads(Path("tuned/result.json").read_text())["test_top1"]


def test_what_a_teacher_began_with_need_not_be_typed_again(kd: Run) -> None:
    file, network, _ = of_torchvision()
    torch.save(network.state_dict(), file)
    short = ("trainer.epochs=1", "trainer.limit_train_batches=1")
    choice = (*DATA, *short, "teacher=torchvision", "teacher.model=squeezenet1_1")
    kd("train-teacher", *choice, f"teacher.pretrained={file}", "teacher.image_size=40", "hydra.run.dir=there")
    words = ("distill", *choice, "student=resnet8", "teacher.checkpoint=there", "--json")
    typed = kd(*words, f"teacher.pretrained={file}", "teacher.image_size=40").json
    Path(file).unlink()
    assert kd(*words).json["weights_sha256"] == typed["weights_sha256"]
    said = kd(*words, "teacher.pretrained=other.pth", code=2).message
    assert "trained torchvision(" in said


def test_a_yaml_of_the_users_own_may_say_it(kd: Run) -> None:
    Path("mine/student").mkdir(parents=True)
    Path("mine/student/wide.yaml").write_text("name: resnet8\nimage_size: 20\nmean: [0.1]\n")
    words = ("train-baseline", *DATA, "student=wide", "--config-dir", "mine", "--cfg", "job")
    assert "image_size: 20" in kd(*words).out
    assert "image_size: 12" in kd(*words, "student.image_size=12").out


def test_wrong_numbers_are_refused_before_anything_is_trained(kd: Run) -> None:
    words = ("train-baseline", *DATA, "student=resnet8")
    assert "type student.mean=[0.5,0.5,0.5], or student.mean=data" in kd(*words, "student.mean=[1,2]", code=2).message
    assert "student.image_size: 0 is not possible" in kd(*words, "student.image_size=0", code=2).message
    said = kd("run", *DATA, "assistants=[{name: resnet8, std: [0]}]", code=2).message
    assert "assistants[0].std: [0.0]: 0.0 is not possible" in said
