"""kd export: what is written is the network that was trained, and runs without kd."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from kd_cli.cli import main
from kd_cli.data.decode import reading_source
from kd_cli.errors import DataError
from kd_cli.export import card
from kd_cli.export.weights import load
from kd_cli.saved.network import Saved
from kd_cli.storage.files import read_json
from tests.conftest import ROOT, SMALL

CPU = torch.device("cpu")
WAYS = ("onnx", "onnx-int8", "pt2", "safetensors")
DATA = ("dataset=synthetic", "dataset.num_train=300", "dataset.num_test=100")
GRAFTED = ("teacher=resnet8", "student=resnet8", "loss=simkd", "trainer.epochs=2", "trainer.batch_size=50")

# infer.py, where importing kd is an error.
_ALONE = """
import runpy, sys
sys.modules["kd_cli"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two seeds of a distilled student, and all that can be exported of the first."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("KD_CACHE", str(folder / "cache"))
        start(patch, "run", "-m", *DATA, *GRAFTED, "seed=0,1", f"hydra.sweep.dir={folder}")
        for way in WAYS:
            kind, _, int8 = way.partition("-")
            start(patch, "export", str(folder / "seed=0"), "--format", kind, *(["--int8"] if int8 else []))
        yield folder


@pytest.fixture
def student(place: Path) -> Path:
    return place / "seed=0" / "distilled"


def start(patch: pytest.MonkeyPatch, *arguments: str) -> None:
    """One command line that must succeed."""
    patch.setattr(sys, "argv", ["kd", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code


def config_of(student: Path, way: str) -> dict[str, Any]:
    config = read_json(student / "export" / way / "config.json")
    assert config is not None
    return config


def images_of(student: Path, count: int) -> tuple[np.ndarray, Tensor]:
    """Test images as bytes [B, H, W, C], and the trained network's logits for them, normalised by hand."""
    saved = Saved(student)
    (batch,) = saved.data().pixels("test", [torch.arange(count)], CPU)
    seen = saved.facts["preprocessing"]
    mean, std = (torch.tensor(seen[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    images = (batch.images.permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        return batch.images.contiguous().numpy(), saved.network(CPU)(images)


def printed_by(script: Path, *images: Path, alone: bool) -> list[str]:
    command = ["-c", _ALONE, str(script)] if alone else [str(script)]
    done = subprocess.run([sys.executable, *command, *map(str, images)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("way", WAYS)
def test_the_script_classifies_image_files_as_the_trained_network_does(way: str, student: Path, tmp_path: Path) -> None:
    pixels, logits = images_of(student, 5)
    paths = [tmp_path / f"{number}.png" for number in range(len(pixels))]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    lines = printed_by(student / "export" / way / "infer.py", *paths, alone=way != "safetensors")
    classes = config_of(student, way)["classes"]
    for path, line, row in zip(paths, lines, logits.softmax(dim=1), strict=True):
        name, probability = line.removeprefix(f"{path}: ").split(", ")[0].rsplit(" ", 1)
        if way != "onnx-int8":
            assert name == classes[int(row.argmax())]
        assert float(probability) == pytest.approx(float(row[classes.index(name)]), abs=0.05 if "int8" in way else 6e-4)


def test_readmes_lines_run_a_student_in_pytorch_alone(student: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[1]
    pixels, logits = images_of(student, 3)
    code = re.sub(r'"outputs/.*?pt2"', repr(str(student / "export" / "pt2" / "model.pt2")), code)
    code = re.sub(r"torch\.zeros\(.*?\)", f"torch.tensor({pixels.tolist()}, dtype=torch.uint8)", code)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys\nsys.modules['kd_cli'] = None\n{code}\nprint(logits.argmax(dim=1).tolist())",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == logits.argmax(dim=1).tolist()


def odd_pictures(folder: Path) -> list[Path]:
    """A red and a bright quarter on black, as cameras and programs store such pictures, and of several sizes."""
    pixels = np.zeros((40, 25, 3), np.uint8)
    pixels[:20, :12, 0], pixels[20:, 12:] = 220, 180
    image, turned = Image.fromarray(pixels), Image.Exif()
    turned[274] = 6
    grey = image.convert("L")
    faded = grey.copy()
    faded.putalpha(grey)
    stored: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "turned.jpg": (image, {"exif": turned}),
        "deep16.png": (Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), {}),
        "cmyk.jpg": (image.convert("CMYK"), {}),
        "grey.png": (grey, {}),
        "faded.png": (faded, {}),
        "palette.png": (image.quantize(4), {"transparency": 0}),
    }
    for name, (each, options) in stored.items():
        each.save(folder / name, **options)
    return [folder / name for name in stored]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["onnx", "pt2", "safetensors"])
def test_the_script_and_kd_predict_say_the_same_of_odd_pictures(
    way: str, student: Path, tmp_path: Path, kd: Callable
) -> None:
    files = odd_pictures(tmp_path)
    rows = kd("predict", str(student), *map(str, files), "--top", "3", "--json").json["images"]
    said = [next(iter(row["predictions"].values())) for row in rows]
    expected = [
        f"{file}: " + ", ".join(f"{each['class']} {each['probability']:.3f}" for each in best)
        for file, best in zip(files, said, strict=True)
    ]
    assert printed_by(student / "export" / way / "infer.py", *files, alone=way != "safetensors") == expected
    assert len({line.partition(": ")[2] for line in expected}) > 3  # they are not all the same to the network


def test_the_script_takes_many_images_and_names_those_that_are_none(student: Path, tmp_path: Path) -> None:
    Image.new("L", (40, 25), 128).save(tmp_path / "grey.png")
    (tmp_path / "text.png").write_text("no image")
    words = [*[str(tmp_path / "grey.png")] * 70, str(tmp_path / "text.png"), "nowhere.png", str(tmp_path)]
    script = student / "export" / "onnx" / "infer.py"
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True)
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 70)
    *each, last = done.stderr.splitlines()
    assert [line.partition(" cannot be read as an image")[0] for line in each] == words[70:]
    assert last == "3 of 73 images could not be read"


def test_the_script_says_which_file_is_missing_beside_it(student: Path, tmp_path: Path) -> None:
    shutil.copy(student / "export" / "onnx" / "infer.py", tmp_path)
    done = subprocess.run([sys.executable, str(tmp_path / "infer.py"), "a.png"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{tmp_path / 'config.json'} is missing")


@pytest.mark.slow
def test_a_script_that_reads_pictures_otherwise_is_noticed(
    student: Path, kd: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        card, "reading_source", lambda: reading_source().replace("exif_transpose(image)", "mirror(image)")
    )
    assert "does not read" in kd("export", str(student), "--format", "pt2", "--out", "other", code=1).message
    assert not Path("other").exists()


@pytest.mark.parametrize("size", [1, 3, 64])
def test_an_onnx_file_takes_bytes_and_any_number_of_images(size: int, student: Path) -> None:
    import onnxruntime

    pixels, logits = images_of(student, size)
    session = onnxruntime.InferenceSession(student / "export" / "onnx" / "model.onnx")
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape) == ("images", "tensor(uint8)", ["batch", 16, 16, 3])
    assert (given.name, given.shape) == ("logits", ["batch", 10])
    (answer,) = session.run(None, {"images": pixels})
    torch.testing.assert_close(torch.from_numpy(answer), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_a_pt2_file_takes_bytes_and_any_number_of_images(size: int, student: Path) -> None:
    pixels, logits = images_of(student, size)
    facts = {"kd.json": ""}
    network = torch.export.load(student / "export" / "pt2" / "model.pt2", extra_files=facts).module()
    torch.testing.assert_close(network(torch.from_numpy(pixels)), logits, rtol=1e-4, atol=1e-5)
    assert json.loads(facts["kd.json"])["classes"] == config_of(student, "pt2")["classes"]


def test_bare_weights_are_built_again_with_their_preprocessing(student: Path) -> None:
    pixels, logits = images_of(student, 3)
    with torch.inference_mode():
        answer = load(student / "export" / "safetensors")(torch.from_numpy(pixels))
    torch.testing.assert_close(answer, logits, rtol=1e-4, atol=1e-5)


def test_weights_that_were_touched_are_refused(student: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(student / "export" / "safetensors", tmp_path / "copy")
    content = bytearray((copied / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copied / "model.safetensors").write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        load(copied)


def test_metadata_say_what_a_user_of_the_file_must_know(student: Path) -> None:
    import onnx

    model = onnx.load(student / "export" / "onnx" / "model.onnx")
    facts = {each.key: each.value for each in model.metadata_props}
    result, record = read_json(student / "result.json"), read_json(student / "run.json")
    assert result is not None
    assert record is not None
    assert json.loads(facts["classes"]) == record["data"]["classes"]
    assert json.loads(facts["image_size"]) == [16, 16]
    assert json.loads(facts["mean"]) == record["data"]["preprocessing"]["mean"]
    assert json.loads(facts["test_top1"]) == result["test_top1"]
    assert facts["weights_sha256"] == result["weights_sha256"]["best"]
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]


@pytest.mark.parametrize("way", ["onnx", "pt2"])
def test_a_graph_names_no_folder_of_this_machine(way: str, student: Path) -> None:
    content = (student / "export" / way / f"model.{way}").read_bytes()
    assert str(ROOT).encode() not in content
    assert sys.prefix.encode() not in content
    assert str(student.parent).encode() not in content


def test_a_grafted_student_keeps_the_head_of_its_teacher(student: Path, place: Path) -> None:
    import onnx
    from safetensors.torch import load_file

    (weights,) = (place / "seed=0" / "teacher" / "checkpoints").glob("epoch-0002/model.safetensors")
    head = load_file(weights)["fc.weight"].numpy()
    model = onnx.load(student / "export" / "onnx" / "model.onnx")
    tensors = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    assert any(tensor.shape == head.shape and np.array_equal(tensor, head) for tensor in tensors)
    assert "with a part of the teacher in it" in (student / "export" / "onnx" / "README.md").read_text()


def test_int8_is_smaller_and_its_accuracy_stands_beside_that_of_float32(student: Path) -> None:
    int8 = config_of(student, "onnx-int8")
    checked, sizes = int8["checks"]["int8"], {name: each["bytes"] for name, each in int8["variants"].items()}
    file = student / "export" / "onnx-int8" / "model.onnx"
    assert file.stat().st_size == sizes["int8"] < sizes["float32"] / 2
    assert checked["calibration"]["images"] == 270
    assert checked["float32_test_top1"] == int8["test_top1"]
    import onnxruntime

    session, data = onnxruntime.InferenceSession(file), Saved(student).data()
    (batch,) = data.pixels("test", [torch.arange(100)], CPU)
    (logits,) = session.run(None, {"images": batch.images.numpy()})
    assert checked["int8_test_top1"] == pytest.approx(100 * float((logits.argmax(1) == batch.labels.numpy()).mean()))
    assert f"{checked['int8_test_top1']:.2f} % on the test" in (file.parent / "README.md").read_text()
    assert json.loads(session.get_modelmeta().custom_metadata_map["int8_test_top1"]) == checked["int8_test_top1"]


@pytest.mark.parametrize("way", WAYS)
def test_the_model_card_says_what_is_on_record(way: str, student: Path, place: Path) -> None:
    folder = student / "export" / way
    card = (folder / "README.md").read_text()
    result, other = (read_json(place / seed / "distilled" / "result.json") for seed in ("seed=0", "seed=1"))
    assert result is not None
    assert other is not None
    tops = [result["test_top1"], other["test_top1"]]
    assert (
        f"| {result['best_epoch']} | best on validation (this file) | {result['val_top1']:.2f} | {tops[0]:.2f} |"
        in card
    )
    assert f"| {result['epochs']} | last | | {result['test_top1_last']:.2f} |" in card
    assert f"with 2 seeds, best on validation: {np.mean(tops):.2f} ± {np.std(tops, ddof=1):.2f} %" in card
    assert f"with {result['parameters']:,} parameters" in card
    header = yaml.safe_load(card.split("---")[1])
    accuracy = 100 * header["model-index"][0]["results"][0]["metrics"][0]["value"]
    assert accuracy == pytest.approx(config_of(student, way)["checks"].get("int8", {}).get("int8_test_top1", tops[0]))
    assert header["license"] == "other"
    assert "kd run dataset=synthetic" in card
    for file in folder.iterdir():
        if file.name != "README.md":
            assert f"| {file.name} | `{hashlib.sha256(file.read_bytes()).hexdigest()}` |" in card


def test_other_experiments_beside_a_run_are_not_its_other_seeds(kd: Callable) -> None:
    runs = [
        kd("train-baseline", *SMALL, *options, f"hydra.run.dir=runs/{name}", "--json").json["run"]
        for name, options in {"a": (), "b": ("seed=1",), "c": ("seed=2", "trainer.lr=0.01")}.items()
    ]
    seeds = kd("export", runs[0], "--format", "safetensors", "--json").json["results"]["seeds"]
    assert set(seeds["test_top1"]) == {"0", "1"}


def test_json_is_one_object_with_the_checks(kd: Callable, place: Path) -> None:
    shown = kd("export", str(place / "seed=0"), "--format", "safetensors", "--out", "there", "--json")
    assert set(shown.json["checks"]["parity"]["max_abs_difference"]) == {"1", "2", "7"}
    assert shown.json["folder"] == "there"
    assert "its distilled student is exported" in shown.message
    assert "parity" in shown.err


def test_the_last_epoch_has_its_own_accuracy_and_a_lonely_run_is_one_seed(kd: Callable) -> None:
    run = kd("train-baseline", *SMALL, "trainer.epochs=4", "trainer.lr=0.05", "--json").json
    assert run["test_top1"] != run["test_top1_last"]
    shown = kd("export", run["run"], "--which", "last", "--format", "safetensors", "--json").json
    assert (shown["epoch"], shown["test_top1"]) == (4, run["test_top1_last"])
    assert (
        shown["weights_sha256"] == hashlib.sha256(Path(shown["folder"], "model.safetensors").read_bytes()).hexdigest()
    )
    card = Path(shown["folder"], "README.md").read_text()
    assert f"| {run['best_epoch']} | best on validation | {run['val_top1']:.2f} | {run['test_top1']:.2f} |" in card
    assert f"| 4 | last (this file) | | {run['test_top1_last']:.2f} |" in card
    assert f"Top-1 accuracy on the test images: {run['test_top1_last']:.2f} %" in card
    assert "One seed (0)" in card


@pytest.mark.slow
def test_an_earlier_export_is_replaced_and_nothing_else_ever(kd: Callable, student: Path, tmp_path: Path) -> None:
    again = shutil.copytree(student / "export" / "safetensors", tmp_path / "again")
    (again / "infer.py").write_text("an older one")
    command = ("export", str(student), "--format", "safetensors", "--out")
    kd(*command, str(again))
    assert "def main" in (again / "infer.py").read_text()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    assert "did not write" in kd(*command, str(other), code=2).message
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "other"]


class Sly(nn.Module):
    """Not the same network while it is traced."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.layer(images.mean(dim=(2, 3)))
        return logits + 0.1 if torch.compiler.is_exporting() else logits


class Lonely(Sly):
    """Another network for one image than for many."""

    def forward(self, images: Tensor) -> Tensor:
        logits = self.layer(images.mean(dim=(2, 3)))
        return 2 * logits if len(images) == 2 else logits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "way", "reason"), [("Sly", "onnx", "differ by 0.1"), ("Lonely", "pt2", "any number of images")]
)
def test_a_network_that_is_another_one_when_exported_is_noticed(
    network: str, way: str, reason: str, kd: Callable
) -> None:
    external = ("student=external", f"student.callable={__name__}.{network}", f"plugins=[{__name__}]")
    run = Path(kd("train-baseline", *DATA, *external, "trainer.epochs=1", "--json").json["run"])
    assert reason in kd("export", str(run), *external, "--format", way, code=1).message
    assert not (run / "export").exists()
    if network == "Sly":
        kd("export", str(run), *external, "--format", "safetensors")  # its own code, untraced
        with pytest.raises(Exception, match="trust_external"):
            load(run / "export" / "safetensors")


def test_data_that_were_moved_are_named_and_found_again(kd: Callable, tmp_path: Path) -> None:
    for number in range(40):
        path = tmp_path / "tree" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (6 * number, 0, 0)).save(path)
    data = ("dataset=image_folder", f"dataset.root={tmp_path / 'tree'}", "student=linear", "trainer.epochs=1")
    run = kd("train-baseline", *data, "--json").json["run"]
    (tmp_path / "tree").rename(tmp_path / "elsewhere")
    command = ("export", run, "--format", "safetensors")
    assert f"there is no folder {tmp_path / 'tree'}" in kd(*command, code=3).message
    shown = kd(*command, f"dataset.root={tmp_path / 'elsewhere'}")
    assert "another fingerprint" not in shown.message
    wrong = kd(*command, f"dataset.root={tmp_path / 'elsewhere'}", "dataset.mean=[0.5]", code=3).message
    assert "the images have mean" in wrong


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("--format", "pt2", "--int8"), 2, "--int8 is for --format onnx"),
        (("--format", "onxx"), 2, "onxx"),
        (("dataset=synthetic", "dataset.channels=1", "--format", "pt2"), 3, "do not fit"),
        (("dataset=synthetic", "dataset.image_size=8", "--format", "pt2"), 3, "the images have shape"),
    ],
)
def test_what_cannot_be_is_said(
    arguments: tuple[str, ...], code: int, reason: str, kd: Callable, student: Path
) -> None:
    assert reason in kd("export", str(student), *arguments, "--out", "there", code=code).message
    assert not Path("there").exists()


def test_what_is_no_run_is_said(kd: Callable, student: Path, tmp_path: Path) -> None:
    assert "there is no run nowhere" in kd("export", "nowhere", code=2).message
    bare = tmp_path / "bare.safetensors"
    shutil.copy(student / "export" / "safetensors" / "model.safetensors", bare)
    assert "has no run.json beside it" in kd("export", str(bare), code=2).message


def test_a_missing_extra_says_what_to_install(kd: Callable, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'kd-cli[onnx]'" in kd("export", str(student), code=2).message
