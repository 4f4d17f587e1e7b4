"""The teacher stays the teacher: distilling changes no bit of it, and one that is not what it should be is refused."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kd_cli.config.recipe import Recipe
from kd_cli.losses.base import LOSSES, build_loss
from kd_cli.storage.files import file_digest
from kd_cli.training.task import Distillation
from kd_cli.training.trainer import Trainer
from tests.conftest import SMALL, Outcome
from tests.support.small import CPU, SPEC, loss_options, make_batch, make_data, make_student, make_teacher, same_tensors

Run = Callable[..., Outcome]
RECIPE = Recipe(epochs=1, batch_size=16, lr=0.01, weight_decay=0.1, momentum=0.9, clip_grad_norm=1.0, ema_decay=0.9)


def changed(name: str) -> list[str]:
    """What an epoch under a loss does to its frozen teacher, which comes as it was trained: learning, with dropout."""
    method, mix = build_loss(loss_options(name))
    teacher = make_teacher().train().requires_grad_(True)
    before = copy.deepcopy(teacher)
    task = Distillation(make_student(), teacher, method, mix, SPEC, name=name, ask_in=16)
    trainer = Trainer(RECIPE, seed=0, device=CPU)
    list(trainer.epochs(task, make_data()))
    random = torch.get_rng_state()
    task.ask(make_batch().images)
    owned = {
        id(parameter)
        for rule in trainer.updater.optimizers
        for group in rule.param_groups
        for parameter in group["params"]
    }
    wrong = {
        "its weights or statistics": not same_tensors(teacher, before),
        "its structure": str(teacher) != str(before),
        "its mode": any(module.training for module in teacher.modules()),
        "what it learns": any(parameter.requires_grad for parameter in teacher.parameters()),
        "its gradients": any(parameter.grad is not None for parameter in teacher.parameters()),
        "random numbers": not torch.equal(random, torch.get_rng_state()),
        "an optimizer has it": any(id(parameter) in owned for parameter in teacher.parameters()),
        "the student": same_tensors(task.network, make_student()),  # nothing was learned: the others prove nothing
    }
    return [f"{name}: {what}" for what, bad in wrong.items() if bad]


@pytest.mark.slow  # an epoch of 12 steps under every loss
def test_no_loss_changes_a_bit_of_its_frozen_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    names = [name for name in LOSSES.names() if build_loss(loss_options(name))[0].teacher == "frozen"]
    found = {name: changed(name) for name in names}
    with capsys.disabled():
        print(f" {sum(not wrong for wrong in found.values())}/{len(found)} losses", end="")
    assert len(found) > 30
    assert [wrong for each in found.values() for wrong in each] == []


def test_a_loss_that_asks_in_training_mode_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert changed("kd") == []
    monkeypatch.setattr(nn.Module, "eval", nn.Module.train)
    assert {"kd: its weights or statistics", "kd: its mode", "kd: random numbers"} <= set(changed("kd"))


# --- what is refused

DATA = ("dataset.num_train=600", "dataset.val_fraction=0.5", "dataset.noise=0.3")
STUDENT = (*SMALL, *DATA, "trainer.epochs=1", "trainer.limit_train_batches=2")


def retouch(file: Path, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> None:
    """Other tensors in the place of a checkpoint's weights, under a manifest that says so."""
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}, file)
    manifest = file.parent / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {file.name: file_digest(file)}, indent=2))


def random_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(5)
    return {name: 0.05 * torch.randn(tensor.shape, generator=random) for name, tensor in tensors.items()}


def other_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The classifier's rows, one further: each class has the next one's name."""
    last = list(tensors)[-1].rpartition(".")[0]
    return {name: tensor.roll(1, 0) if name.startswith(f"{last}.") else tensor for name, tensor in tensors.items()}


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)


def change_record(run: Path) -> None:
    """The validation accuracies of another run, a little worse than its own."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row | {"val_top1": row["val_top1"] - 2} for row in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def digests(folder: Path) -> dict[str, str]:
    return {str(path): file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def run(kd: Run) -> Path:
    """A teacher that is right about most of 300 validation images."""
    words = ("trainer.epochs=3", "trainer.lr=0.01", "hydra.run.dir=taught")
    assert kd("train-teacher", *SMALL, *DATA, *words, "--json").json["val_top1"] > 60
    return Path("taught")


def weights_of(run: Path) -> Path:
    epoch = json.loads((run / "result.json").read_text())["best_epoch"]
    return run / "checkpoints" / f"epoch-{epoch:04d}" / "model.safetensors"


def refused(kd: Run, teacher: Path, *words: str, code: int = 3) -> str:
    """What is said of a teacher that `kd distill` does not take; nothing was trained."""
    before = digests(Path("taught"))
    said = kd("distill", *STUDENT, f"teacher.checkpoint={teacher}", *words, "hydra.run.dir=refused", code=code).message
    assert not Path("refused").exists()
    assert digests(Path("taught")) == before
    return said


@pytest.mark.slow  # a dozen commands
def test_seven_kinds_of_wrong_teachers_are_refused(kd: Run, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of kd whose files or whose data are not what they were."""

    def copied(name: str) -> Path:
        return shutil.copytree(run, Path(name))

    said: dict[str, str] = {}
    said["another architecture"] = refused(kd, run, "teacher.hidden=[5]", code=2)
    retouch(weights_of(copied("exchanged")), random_weights)
    said["random weights"] = refused(kd, Path("exchanged"))
    assert "other weights, or another run's record" in refused(kd, weights_of(Path("exchanged")))
    result = json.loads(Path("exchanged/result.json").read_text())
    result["weights_sha256"]["best"] = file_digest(weights_of(Path("exchanged")))
    Path("exchanged/result.json").write_text(json.dumps(result))
    assert "its record says" in refused(kd, Path("exchanged"))  # whatever else was made to fit
    flip_a_bit(weights_of(copied("damaged")))
    said["a damaged file"] = refused(kd, Path("damaged"))
    record = copied("ordered") / "run.json"
    facts = json.loads(record.read_text())
    facts["data"]["classes"].reverse()
    record.write_text(json.dumps(facts))
    said["classes in another order"] = refused(kd, Path("ordered"))
    said["another normalisation"] = refused(kd, run, "dataset.std=[0.5]")
    said["other classes"] = refused(kd, run, "dataset.num_classes=4")
    change_record(copied("recorded"))
    said["the record of another run"] = refused(kd, Path("recorded"))
    expected = {
        "another architecture": "trained mlp(hidden=[128], dropout=0.0), but teacher is mlp(hidden=[5]",
        "random weights": "is not what its record says: result.json has SHA-256",
        "a damaged file": "is damaged: its SHA-256 is not the one in manifest.json",
        "classes in another order": "the data have 10 in another order",
        "another normalisation": "type dataset.mean=[0.5,0.5,0.5] dataset.std=[0.25,0.25,0.25]",
        "other classes": "knows 10 classes (pattern 0, pattern 1, pattern 2, pattern 3, pattern 4 and 5 more)",
        "the record of another run": "other weights, or another run's record",
    }
    refusals = [kind for kind, part in expected.items() if part in said[kind]]
    with capsys.disabled():
        print(f" {len(refusals)}/{len(expected)}", end="")
    assert refusals == list(expected) == list(said), "\n".join(said.values())


@pytest.mark.slow  # seven commands
def test_a_file_without_a_record_must_know_more_than_a_guess(kd: Run, run: Path) -> None:
    file = weights_of(run)
    loose = {"random": random_weights, "mis-ordered": other_order, "as it was": dict}
    for name, change in loose.items():
        save_file({key: tensor.contiguous() for key, tensor in change(load_file(file)).items()}, f"{name}.safetensors")
    normalised = ("dataset.mean=[8.0]", "dataset.std=[0.1]")
    for said in (
        refused(kd, Path("random.safetensors")),
        refused(kd, Path("mis-ordered.safetensors")),
        refused(kd, Path("as it was.safetensors"), *normalised),
    ):
        assert "and guessing may reach 15.20 %" in said  # 10 % and three times √(0.1 · 0.9 / 300)
        assert "Type teacher.mean=… teacher.std=… teacher.image_size=… as it was trained" in said
    kd("distill", *STUDENT, "teacher.checkpoint='as it was.safetensors'")


def paint(root: Path, colours: Mapping[str, tuple[int, int, int]]) -> Path:
    """A tree of noisy images in the colour of their class."""
    random = np.random.default_rng(0)
    for part, count in (("train", 60), ("test", 5)):
        for label, colour in colours.items():
            (root / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(random.normal(colour, 20, (8, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{number}.png")
    return root


@pytest.mark.slow  # three commands
def test_folders_whose_names_were_exchanged_are_noticed(kd: Run, tmp_path: Path) -> None:
    red, green, blue = (200, 60, 60), (60, 200, 60), (60, 60, 200)
    paint(tmp_path / "tree", {"cat": red, "dog": green, "eel": blue})
    paint(tmp_path / "exchanged", {"cat": green, "dog": blue, "eel": red})
    paint(tmp_path / "renamed", {"dog": green, "eel": blue, "zebu": red})

    def on(tree: str) -> tuple[str, ...]:
        options = ("dataset.image_size=8", "dataset.val_fraction=0.5", "dataset.workers=0")
        return ("dataset=image_folder", f"dataset.root={tmp_path / tree}", *options, "trainer.epochs=2")

    networks = ("teacher=mlp", "student=mlp")
    taught = kd("train-teacher", *on("tree"), *networks, "hydra.run.dir=taught", "--json").json
    assert taught["val_top1"] == 100
    words = ("teacher.checkpoint=taught", "trainer.epochs=1", *networks)
    assert "guessing may reach" in kd("distill", *on("exchanged"), *words, code=3).message
    assert "knows 3 classes (cat, dog, eel), the data" in kd("distill", *on("renamed"), *words, code=3).message


@pytest.mark.slow  # two commands
def test_a_teacher_that_is_no_better_on_record_is_what_it_says(kd: Run) -> None:
    words = (*SMALL, *DATA, "trainer.epochs=1", "trainer.limit_train_batches=1")
    taught = kd("train-teacher", *words, "trainer.lr=1e-9", "hydra.run.dir=smoke", "--json").json
    assert taught["val_top1"] < 15
    kd("distill", *words, "teacher.checkpoint=smoke")
