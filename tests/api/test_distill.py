"""kd.distill: networks, data and losses of a program's own go the way of the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

import kd_cli as kd_api
from kd_cli.api.own import own_loss
from kd_cli.losses.base import Distiller, build_loss
from kd_cli.training.graphs import foreign_layer
from kd_cli.types import Batch, Outputs
from tests.support.small import same_tensors

SHAPE = (3, 12, 10)  # higher than wide
SEEN = {"mean": [0.5], "std": [0.25]}
QUICK = {"epochs": 2, "batch_size": 50}


def images(size: int, seed: int) -> TensorDataset:
    """Four patterns under noise."""
    labels = torch.arange(size) % 4
    patterns = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(size, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return TensorDataset((128 + 30 * (patterns[labels] + noise)).clamp(0, 255).to(torch.uint8), labels)


TRAIN, VAL, TEST = images(200, 1), images(40, 2), images(60, 3)


class Net(nn.Module):
    """A network of somebody's: no stages, no taps; dropout."""

    def __init__(self, width: int = 4, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Dropout(0.1), nn.Flatten())
        self.head = nn.Linear(width * 10 * 8, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.body(pixels))


@pytest.fixture(scope="module")
def teacher() -> Net:
    """Learned in a loop of the program's own."""
    return taught(Net(16))


def taught(network: Any) -> Any:
    pixels, labels = TRAIN.tensors
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        functional.cross_entropy(network((pixels / 255 - 0.5) / 0.25), labels).backward()
        optimizer.step()
    return network


@pytest.fixture
def distill(teacher: Net) -> Callable[..., kd_api.Trained]:
    def call(student: nn.Module | None = None, **options: Any) -> kd_api.Trained:
        given: dict[str, Any] = {"teacher": teacher, "train": TRAIN, "val": VAL, "test": TEST} | options
        given = {"trainer": QUICK, "dataset": SEEN, "quiet": True} | given
        return kd_api.distill(student or Net(), **given)

    return call


@pytest.fixture(scope="module")
def run(teacher: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished one, to be read and not changed."""
    once = {"trainer": {"epochs": 1, "batch_size": 50}, "dataset": SEEN, "overrides": ["teacher_cache=false"]}
    folder = tmp_path_factory.mktemp("own") / "run"
    return kd_api.distill(Net(), teacher, TRAIN, VAL, TEST, folder=folder, quiet=True, **once).run


def of_logits(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    return kd_api.losses.kd_loss(student_logits, teacher_logits, 4.0)


class OfPrograms(Distiller):
    """As `of_logits`; it counts what it was bound to."""

    def __init__(self) -> None:
        super().__init__()
        self.bound = 0

    def bind(self, student: Outputs, teacher: Outputs, data: Any) -> None:
        self.bound += 1
        assert self.bound == 1

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return of_logits(student.logits, teacher.logits, batch.labels)


def test_every_way_to_name_a_loss_gives_the_same_bits(distill, teacher: Net) -> None:
    named = {"name": "kd", "temperature": 4.0, "kl_weight": 1.0, "ce_weight": 1.0}
    ways = [named, of_logits, {"name": of_logits, "ce_weight": 1.0}, OfPrograms()]
    assert len({distill(loss=loss).weights_sha256["best"] for loss in ways}) == 1
    assert distill(loss={"name": of_logits, "weight": 0.5}).weights_sha256 != distill(loss=named).weights_sha256


class Pooled(nn.Module):
    """Takes images of any size."""

    def __init__(self, width: int = 4, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Dropout(0.1), nn.AdaptiveAvgPool2d(4))
        self.head = nn.Linear(width * 16, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.body(pixels).flatten(1))


def write_tree(root: Path) -> dict[str, TensorDataset]:
    """The images as files; the parts in the order in which a tree is read."""
    ordered = {}
    for part, data in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        rows = data.tensors[1].argsort(stable=True)
        ordered[part] = TensorDataset(data.tensors[0][rows], data.tensors[1][rows])
        for row, (pixels, label) in enumerate(ordered[part]):
            folder = root / part / f"class {label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{row:03d}.png")
    return ordered


def test_it_has_the_bits_of_the_command_line(kd, distill) -> None:
    """The same images as files and the same networks in a plugin."""
    parts = write_tree(Path("tree"))
    Path("mine.py").write_text(
        "from tests.api.test_distill import Pooled\n"
        "import torch\ndef small(num_classes):\n    return Pooled()\ndef large(num_classes):\n"
        "    network = Pooled(16)\n    network.load_state_dict(torch.load('large.pth'))\n    return network\n"
    )
    large = taught(Pooled(16))
    torch.save(large.state_dict(), "large.pth")
    options = {"mean": [0.5], "std": [0.25], "augment": "crop_flip"}
    teaches = {"teacher": large, "loss": "kd", "classes": [f"class {label}" for label in range(4)]}
    own = distill(Pooled(), **teaches, **parts, dataset=options, overrides=["trainer.ema_decay=0.5"], seed=3)
    words = ["dataset=image_folder", "dataset.root=tree", "dataset.mean=[0.5]", "dataset.std=[0.25]"]
    words += ["dataset.augment=crop_flip", "plugins=[./mine.py]", "trainer.epochs=2", "trainer.batch_size=50", "seed=3"]
    words += ["student=external", "student.callable=mine.small", "teacher=external", "teacher.callable=mine.large"]
    shown = kd("distill", *words, "teacher.ready=true", "trainer.ema_decay=0.5", "loss=kd", "--json").json
    assert shown["weights_sha256"] == own.weights_sha256
    assert shown["test_nll"] == own.test_nll


def test_the_run_is_a_run_of_kd(kd, distill) -> None:
    own = distill(loss=of_logits)
    record = json.loads((own.run / "run.json").read_text())
    assert record["model"] == {"name": "own_student", "network": f"{__name__}.Net"}
    assert record["loss"]["function"] == f"{__name__}.of_logits"
    assert record["teacher"]["val_top1"] > 90
    files = {path.name for path in own.run.iterdir()}
    assert {"run.json", "config.yaml", "metrics.csv", "metrics.jsonl", "result.json", "checkpoints"} <= files
    assert kd("show", str(own.run), "--json").json["result"]["test_top1"] == own.test_top1
    assert kd("list", "runs", "--json").json["runs"][0]["network"] == "Net"
    assert kd("report", str(own.run), "--json").json


def test_the_programs_modules_stay_as_they_are(distill, teacher: Net) -> None:
    student, before = Net(), Net()
    teacher.train()
    grads = [parameter.requires_grad for parameter in teacher.parameters()]
    first = distill(student)
    assert same_tensors(student, before)
    assert teacher.training
    assert [parameter.requires_grad for parameter in teacher.parameters()] == grads
    assert not hasattr(student, "taps")
    assert distill(student).weights_sha256 == first.weights_sha256


def test_the_loss_none_is_the_baseline_of_the_same_student(distill) -> None:
    assert (
        distill(teacher=None, loss="none").weights_sha256
        == distill(loss={"name": of_logits, "weight": 0.0}).weights_sha256
    )


@pytest.mark.parametrize("loss", ["dkd", "simkd", "dml", {"name": "fitnet", "taps": ["body.0"]}, "crd"], ids=str)
def test_methods_of_every_kind_train_modules_of_ones_own(distill, loss: Any) -> None:
    result = distill(loss=loss, trainer={"epochs": 1, "batch_size": 50})
    network = kd_api.load(result.run, student=Net(), teacher=Net(16))
    right = (network(TEST.tensors[0]).argmax(dim=1) == TEST.tensors[1]).sum()
    assert int(right) == result.test_correct


def test_a_killed_call_goes_on_with_the_same_bits(distill) -> None:
    whole = distill(loss=of_logits)
    steps = []

    def killed(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        steps.append(1)
        if len(steps) == 7:  # in the second epoch
            raise KeyboardInterrupt
        return of_logits(student_logits, teacher_logits, labels)

    killed.__module__, killed.__qualname__ = of_logits.__module__, of_logits.__qualname__
    with pytest.raises(KeyboardInterrupt, match=r"kd.distill\(…, folder='mine'\)"):
        distill(loss=killed, folder="mine")
    went_on = distill(Net(seed=5), loss=of_logits, folder="mine")  # the weights are those of the checkpoint
    assert went_on.weights_sha256 == whole.weights_sha256
    assert distill(loss=of_logits, folder="mine") == went_on
    assert len(json.loads(Path("mine/run.json").read_text())["resumed"]) == 1


def test_a_call_with_other_things_does_not_go_on(distill, teacher: Net) -> None:
    def stopped(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        if labels.shape == (50,):
            raise KeyboardInterrupt
        return of_logits(student_logits, teacher_logits, labels)

    stopped.__module__, stopped.__qualname__ = of_logits.__module__, of_logits.__qualname__
    with pytest.raises(KeyboardInterrupt):
        distill(loss=stopped, folder="mine")
    for options, kind, said in (
        ({"seed": 1}, kd_api.ConfigError, "seed: 0 there, 1 here"),
        ({"loss": "dkd"}, kd_api.ConfigError, "loss"),
        ({"teacher": Net(16, seed=0)}, kd_api.DataError, "has changed since|guessing"),
        ({"train": images(200, 9)}, kd_api.DataError, "images of own have changed"),
    ):
        with pytest.raises(kind, match=said):
            distill(**({"loss": of_logits, "folder": "mine"} | options))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["resume"], "kd.distill(…, folder="),
        (["evaluate"], "name images on disk"),
        (["predict", "--test", "2"], "kd.load(RUN, student=module)"),
        (["profile"], "kd.load(RUN, student=module)"),
        (["export"], "name images on disk"),
        (["transfer", "dataset=synthetic", "dataset.num_classes=4"], "kd.load(RUN, student=module)"),
    ],
    ids=lambda value: str(value),
)
def test_commands_say_what_only_the_program_has(kd, run: Path, words: list[str], said: str) -> None:
    assert said in kd(words[0], str(run), *words[1:], code=2).message


def test_commands_open_it_where_its_code_is_named(kd, distill) -> None:
    parts = write_tree(Path("tree"))
    classes = [f"class {label}" for label in range(4)]
    run = distill(Pooled(), loss="none", classes=classes, **parts).run
    Path("mine.py").write_text(
        "from tests.api.test_distill import Pooled\ndef small(num_classes):\n    return Pooled()\n"
    )
    code = ["student=external", "student.callable=mine.small", "plugins=[./mine.py]"]
    shown = kd("evaluate", str(run), "dataset=image_folder", "dataset.root=tree", *code, "--json").json
    result = json.loads((run / "result.json").read_text())
    assert shown["evaluations"][0]["top1"] == result["test_top1"]


def test_a_run_as_a_teacher_is_refused_with_what_can_be_done(kd, run: Path) -> None:
    failed = kd("distill", "dataset=synthetic", f"teacher.checkpoint={run}", code=2)
    assert "kd.load(RUN, student=module)" in failed.message


def test_it_asks_for_the_module_and_refuses_another_one(run: Path) -> None:
    with pytest.raises(kd_api.ConfigError, match=r"own \(.*test_distill.Net\); give a module like it: student=module"):
        kd_api.load(run)
    with pytest.raises(kd_api.DataError, match="of another network"):
        kd_api.load(run, student=Net(5))
    given = Net(seed=7)
    before = Net(seed=7)
    assert kd_api.load(run, student=given)(TEST.tensors[0]).shape == (60, 4)
    assert same_tensors(given, before)


class Of(Dataset[Any]):
    """A data set in an unusual form."""

    def __init__(self, make: Callable[[Tensor], Any], label: Callable[[int], Any] = int, data: Any = TRAIN) -> None:
        self.make, self.label, self.data = make, label, data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> Any:
        pixels, label = self.data[row]
        return self.make(pixels), self.label(label)


def as_picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


BUFFER = torch.empty(SHAPE, dtype=torch.uint8)


def read_only(pixels: Tensor) -> np.ndarray:
    array = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    array.flags.writeable = False
    return array


def opaque(pixels: Tensor) -> Tensor:
    return torch.cat([pixels, torch.full_like(pixels[:1], 255)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [as_picture, lambda pixels: read_only(pixels), lambda pixels: BUFFER.copy_(pixels), lambda pixels: opaque(pixels)],
    ids=["PIL", "read-only array", "tensor that the next image overwrites", "with transparency"],
)
@pytest.mark.parametrize("held", [True, False])
def test_images_in_every_form_in_memory_or_not_give_the_same_bits(distill, make: Any, held: bool) -> None:
    wanted = distill()
    options = {"train": Of(make), "dataset": SEEN | {"in_memory": held, "workers": 0}}
    result = distill(**options)
    assert result.weights_sha256 == wanted.weights_sha256
    fingerprints = {
        json.loads((run / "run.json").read_text())["data"]["fingerprint"] for run in (wanted.run, result.run)
    }
    assert len(fingerprints) == 1  # so they share the teacher's answers


@pytest.mark.parametrize("label", [np.int64, lambda label: np.array(int(label)), int], ids=["numpy", "array", "int"])
def test_whole_numbers_of_every_kind_are_labels(distill, label: Any) -> None:
    once = {"epochs": 1, "batch_size": 50}
    assert distill(train=Of(as_picture, label), trainer=once).weights_sha256 == distill(trainer=once).weights_sha256


def test_grey_images_stay_grey(distill) -> None:
    grey = {
        name: Of(lambda pixels: Image.fromarray(pixels[0].numpy()), data=data)
        for name, data in (("train", TRAIN), ("val", VAL), ("test", TEST))
    }
    flat = lambda width: nn.Sequential(nn.Flatten(), nn.Linear(120, width), nn.ReLU(), nn.Linear(width, 4))  # noqa: E731
    torch.manual_seed(0)
    result = distill(flat(8), teacher=None, loss="none", **grey)
    assert json.loads((result.run / "run.json").read_text())["data"]["image_shape"] == [1, 12, 10]


def test_without_validation_images_a_share_of_each_class_validates(distill) -> None:
    result = distill(val=None)
    assert result.images == {"train": 180, "val": 20, "test": 60}
    named = TensorDataset(*TRAIN.tensors)
    named.classes = list("abcd")  # type: ignore[attr-defined]
    record = json.loads((distill(train=named, val=None).run / "run.json").read_text())
    assert record["data"]["classes"] == list("abcd")


REFUSED = {
    "floats": ({"train": Of(lambda pixels: pixels / 255)}, r"train\[0\] is of torch.float32, and kd normalises"),
    "normalised": ({"test": Of(lambda pixels: pixels.numpy() / 255)}, r"test\[0\] is of float"),
    "random": ({"val": None, "train": Of(lambda pixels: torch.randint(0, 255, SHAPE).byte())}, "random transforms"),
    "no labels": ({"train": TensorDataset(TRAIN.tensors[0])}, "gives no .image, label.: ValueError"),
    "soft labels": ({"train": Of(as_picture, lambda label: [0.5, 0.5])}, "a label is one whole number"),
    "truth": ({"train": Of(as_picture, bool)}, "a label is one whole number"),
    "numbers": ({"train": Of(as_picture, float)}, "has the label 0.0"),
    "no class": ({"test": Of(as_picture, lambda label: int(label) + 2**40)}, "has the label 1099511627776; a label is"),
    "negative": ({"train": Of(as_picture, lambda label: int(label) - 1)}, "labels -1 … 3 do not fit"),
    "sizes": (
        {"test": images(60, 3), "train": Of(lambda pixels: pixels[:, : 9 + int(pixels[0, 0, 0]) % 2])},
        "one size",
    ),
    "a stream": ({"train": iter(TRAIN)}, "has no length and items"),
    "nothing": ({"test": TensorDataset(torch.zeros(0, 3, 12, 10), torch.zeros(0))}, "has no length and items"),
    "fails": ({"train": Of(lambda pixels: 1 / 0)}, r"train\[0\] gives no .*ZeroDivisionError"),
    "namesakes": ({"classes": ["a", "b", "a", "c"]}, "has a name twice"),
    "few classes": ({"classes": ["a", "b"]}, "labels 0 … 3 do not fit 2 classes"),
}


@pytest.mark.parametrize(
    ("name", "held"), [*((name, True) for name in REFUSED), *((name, False) for name in ("random", "sizes", "fails"))]
)
def test_other_data_are_refused(distill, name: str, held: bool) -> None:
    options, said = REFUSED[name]
    with pytest.raises(kd_api.DataError, match=said):
        distill(**options, dataset=SEEN | {"in_memory": held, "workers": 0})
    assert not list(Path().rglob("run.json"))


def scalar_of_batch(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    return (student_logits - teacher_logits).square().mean(dim=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss": "dkdd"}, "did you mean 'dkd'"),
        ({"loss": {"name": "dkd", "temprature": 1}}, "did you mean 'loss.temperature'"),
        ({"loss": {"temperature": 1.0}}, "loss: None is no name"),
        ({"loss": scalar_of_batch}, r"scalar_of_batch returned \[2\], not a scalar"),
        ({"loss": lambda student, teacher: student.mean()}, "takes 2 positional arguments"),
        ({"loss": of_logits, "teacher": None}, "give a module like it: teacher=module"),
        ({"loss": {"name": of_logits, "ce_weight": -1}}, "loss.ce_weight: -1"),
        ({"trainer": {"epoch": 1}}, "did you mean 'trainer.epochs'"),
        ({"trainer": {"epochs": "many"}}, "'many' is not a whole number"),
        ({"trainer": {"epochs": object()}}, "is no number, text, list"),
        ({"dataset": {"means": [0.5]}}, "did you mean 'dataset.mean'"),
        ({"dataset": {"mean": [0.1, 0.2]}}, "the images have 3 channels"),
        ({"overrides": ["student=mlp"]}, "student=mlp is not possible here"),
        ({"overrides": ["-m"]}, "an option of the command line"),
        ({"teacher": "resnet18"}, "teacher: 'resnet18' is no nn.Module"),
        ({"student": None}, "student: None is no nn.Module"),
        ({"student": nn.Flatten()}, "not logits"),
        ({"student": nn.Linear(7, 4)}, "cannot take images"),
        ({"seed": -1}, "seed: -1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "given",
)
def test_a_wrong_argument_is_named(teacher: Net, options: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"student": Net(), "teacher": teacher, "train": TRAIN, "val": VAL, "test": TEST}
    with pytest.raises(kd_api.ConfigError, match=said):
        kd_api.distill(**(given | {"trainer": QUICK, "dataset": SEEN, "quiet": True} | options))
    assert not list(Path().rglob("run.json"))


def test_updates_with_somebodys_code_are_not_recorded_as_graphs() -> None:
    """A replay would run none of its Python; kd's own functions it knows."""

    def layer_of(loss: Any) -> str | None:
        from kd_cli.api.called import called

        with called(quiet=True), own_loss(loss):
            method, _ = build_loss({"name": "own", "function": "mine"})
        return foreign_layer(method)

    assert layer_of(of_logits) == "OfLogits"
    assert layer_of(partial(of_logits)) == "OfLogits"
    assert layer_of(lambda student, teacher, labels: student.mean()) == "OfLogits"
    assert layer_of(kd_api.losses.dkd_loss) is None


def test_nothing_of_it_is_left_behind(kd, distill) -> None:
    distill(loss=of_logits, trainer={"epochs": 1, "batch_size": 50})
    assert "there is no loss 'own'" in kd("run", "loss=own", code=2).message
    for group, name in (("losses", "own"), ("models", "own_student"), ("datasets", "own")):
        assert name not in {row["name"] for row in kd("list", group, "--json").json[group]}
