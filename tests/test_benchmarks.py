"""The benchmarks measure the same work on every side. How long it took is not looked at here."""

from __future__ import annotations

import importlib
import json
import math
import re
import runpy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks import default_run, losses, script, students
from benchmarks.measure import NOTHING, Done, Failed, Measured, Sample, interleave, run
from benchmarks.page import COLUMNS, Page, machine
from benchmarks.rows import ROWS, Row
from benchmarks.workplace import Sizes, Workplace
from kd_cli.data.mnist_mini import mnist_mini
from kd_cli.losses.kd import kd_loss
from kd_cli.models.base import MODELS
from tests.conftest import ROOT

TINY = Sizes(
    images=140,
    validation=20,
    student_epochs=2,
    teacher_epochs=2,
    epochs=1,
    temperatures=(1, 5),
    kl_weights=(0.9,),
    measured_points=1,
    loop_epochs=2,
    steps=2,
    workers=0,
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of JPEG images, each with a shade of its own."""
    root, random = tmp_path_factory.mktemp("jpeg"), np.random.default_rng(0)
    for part, count in (("train", 16), ("test", 3)):
        for label in range(10):
            folder = root / part / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(20 * label, 20 * label + 60, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return root


class Here:
    """Runs kd and the benchmarks' programs in this process, and keeps what they printed."""

    def __init__(self, kd, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.kd, self.capsys, self.monkeypatch = kd, capsys, monkeypatch
        self.reports: list[tuple[str, dict]] = []

    def __call__(
        self, command: Sequence[str], *, cache: Path, watch: bool = False, variables: Mapping[str, str] = NOTHING
    ) -> Done:
        self.monkeypatch.setenv("KD_CACHE", str(cache))
        _, _, module, *words = command
        here = ["hydra/launcher=basic"] if "-m" in words else []  # and no process for each point of a sweep
        report = self.kd(*words, *here).json if module == "kd_cli" else self._main(module, words)
        self.reports.append((module, report))
        return Done(2.0, {"seconds": 1.0, **report}, peak_mb=100.0 if watch else None)

    def _main(self, module: str, words: Sequence[str]) -> dict:
        self.capsys.readouterr()
        importlib.import_module(module).main(words)
        return json.loads(self.capsys.readouterr().out)

    def steps(self, module: str) -> set[int]:
        """Of every training of a program."""
        reports = [report for name, report in self.reports if name == module]
        each = [point for report in reports for point in report.get("points", [report])]
        if module == "kd_cli":
            return {math.ceil(point["images"]["train"] / 128) * point["epochs"] for point in each}
        return {report["steps"] for report in each}


@pytest.fixture(scope="module")
def prepared(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """With a teacher, trained in a process of its own."""
    place = Workplace(tmp_path_factory.mktemp("work"), TINY, run)
    place.prepare(images)
    return place


@pytest.fixture
def place(prepared: Workplace, kd, capsys, monkeypatch) -> Workplace:
    return replace(prepared, run=Here(kd, capsys, monkeypatch))


def page(rows: Sequence[Row]) -> str:
    return Page("python -m benchmarks", TINY, 1, machine(), rows=list(rows)).text()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("student", 4), ("distill", 2), ("sweep", 2), ("augment", 2)])
def test_kd_and_the_script_make_the_same_steps(place: Workplace, name: str, steps: int) -> None:
    (row,) = ROWS[name](place, 0)
    assert row.opponent == "script"
    assert place.run.steps("kd_cli") == place.run.steps("benchmarks.script") == {steps}  # of 128 and of 12 images
    assert row.kd.peak_mb == row.other.peak_mb == 100


def test_a_row_knows_when_its_target_is_missed() -> None:
    fast, slow = Measured(None, [1.0, 1.0, 1.0]), Measured(None, [2.0, 4.0, 9.0])
    assert Row("job", "script", fast, slow, 4.0).met
    assert not Row("job", "script", fast, slow, 4.1).met
    assert Row("loop", "bare", slow, fast, 4.0, at_most=True).met
    assert not Row("loop", "bare", slow, fast, 3.9, at_most=True).met
    assert Row("job", "torchdistill", fast, slow).met is None


def test_the_page_is_a_table_with_a_cell_for_every_column() -> None:
    fast, slow = Measured(100.4, [0.05, 0.05, 0.1]), Measured(None, [2.0, 4.0, 9.0])
    text = page([Row("job", "script", fast, slow, 7.0), Row("loop", "bare", slow, fast, 1.05, at_most=True)])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}
    assert "| job | 50.00 ms | script | 4.00 s | 80.00 [40.00 – 90.00] | ≥ 7 | yes | 100 | – |" in text
    assert "≤ 1.05 | **no** |" in text
    assert not re.search(r"{\w+}", text)


def test_sides_with_different_work_are_refused() -> None:
    sides = {"kd": lambda warm: Sample(1.0, 100), "script": lambda warm: Sample(1.0, 128)}
    with pytest.raises(Failed, match="kd 100, script 128"):
        interleave(sides, 1)


def test_sides_run_in_turns_and_the_first_run_is_not_counted() -> None:
    order: list[str] = []

    def side(name: str, warm: bool) -> Sample:
        order.append(name)
        return Sample(9.0 if warm else 1.0, 1, 50.0 if warm else None)

    measured = interleave({name: lambda warm, name=name: side(name, warm) for name in "ab"}, 2)
    assert "".join(order) == "ab" + "ab" + "ba"
    assert measured["a"] == Measured(50.0, [1.0, 1.0])


@pytest.mark.slow
def test_both_sides_ask_the_same_teacher(place: Workplace) -> None:
    options = {"name": "cnn", "blocks": [[128, 64], [64, 32]], "hidden": [512], "dropout": 0.1}
    network = MODELS.build(options, num_classes=10, in_channels=3, image_size=32).eval()
    network.load_state_dict(load_file(place.teacher))
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(script.load_teacher(str(place.teacher))(pixels), network(pixels))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 20.0])
def test_both_sides_minimise_the_same_loss(temperature: float) -> None:
    random = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, 16, 10, generator=random)
    torch.testing.assert_close(
        script.distillation_loss(student, teacher, temperature), kd_loss(student, teacher, temperature)
    )


def test_the_bare_loop_computes_what_kd_computes(place: Workplace) -> None:
    words = ["--data", str(place.tree), "--epochs", "2", "--dropout", "0"]
    report = place.driver("loop", *words, "kd", "bare").report
    assert report["kd"]["losses"] == pytest.approx(report["bare"]["losses"], rel=1e-6)
    assert report["kd"]["losses"][1] < report["kd"]["losses"][0]


def test_stacked_students_have_the_gradients_of_single_ones() -> None:
    networks = [script.Student().eval() for _ in range(3)]
    images, labels = (each[:4] for each in students.batch())
    _, gradient = students.stacked(networks, images, labels)
    for number, network in enumerate(networks):
        script.F.cross_entropy(network(images), labels).backward()
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(gradient()[name][number], parameter.grad)


def test_a_program_of_its_own_reports_its_memory_and_its_failure(tmp_path: Path) -> None:
    code = "import time; held = b'1' * 200_000_000; time.sleep(0.5); print(len(held))"
    done = run([sys.executable, "-c", code], cache=tmp_path / "cache", watch=True)
    assert done.report == 200_000_000
    assert done.peak_mb is None or 200 < done.peak_mb < 400
    with pytest.raises(Failed, match="ended with exit code 3: no such thing"):
        run([sys.executable, "-c", "import sys; print('no such thing', file=sys.stderr); sys.exit(3)"], cache=tmp_path)


# --- losses


def test_what_losses_cost_is_a_table_of_those_that_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    pair = losses.Pair("resnet14", "resnet8", size=8, batch=4)
    threads = torch.get_num_threads()
    try:
        losses.main(["kd", "vkd", "dml", "deit_token", "--turns", "2", "--steps", "1", "--threads", "1"], pair)
    finally:
        torch.set_num_threads(threads)
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("| `loss=` | step, beside kd's |")
    row = re.compile(r"\| `(\w+)` \| \d+\.\d\d \[\d+\.\d\d – \d+\.\d\d\] \| \d+ \| \d+\.\d \| -?\d+ \|")
    assert {row.fullmatch(line)[1] for line in rows} == {"kd", "vkd", "dml", "deit_token"}


def test_a_loss_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        losses.main(["dkdd"])
    assert "there is no loss 'dkdd'; there are ab, " in capsys.readouterr().err


# --- the default of kd run


class Told:
    """Takes the place of running kd: two seeds of which one gains less than a point."""

    def __init__(self) -> None:
        self.commands: list[Sequence[str]] = []

    def __call__(
        self, command: Sequence[str], *, cache: Path, watch: bool = False, variables: Mapping[str, str] = NOTHING
    ) -> Done:
        assert cache.is_dir()
        assert not watch
        assert not variables
        self.commands.append(command)
        stages = {"teacher": {"test_top1": 98.0}, "baseline": {"test_top1": 91.0}}
        points = [{**stages, "distilled": {"test_top1": 91.0 + gain}, "gain": gain} for gain in (0.5, 2.5)]
        return Done(3.0 * len(self.commands), {"points": points})


def test_the_default_run_is_judged_by_all_its_seeds(tmp_path: Path) -> None:
    told = Told()
    lines = default_run.measure(2, ["loss=dkd"], tmp_path, told).lines()
    assert lines == [
        "test top-1: teacher 98.00, baseline 91.00, distilled 92.50",
        "gains: +0.50, +2.50",
        "mean +1.50, std 1.41",
        "helped at 2 of 2 seeds, by more than 1 point at 1",
        "kd run: 3.0 s; the sweep: 6 s",
    ]
    assert [command[-1] for command in told.commands] == ["seed=0", "seed=range(2)"]
    assert all("loss=dkd" in command for command in told.commands)


@pytest.mark.data
def test_the_default_is_chosen_on_images_that_are_neither_shipped_nor_tested(
    real_data: Path,
) -> None:
    plugin = runpy.run_path(str(ROOT / "benchmarks" / "mnist_choice.py"))
    choice, shipped = plugin["mnist_choice"](root=str(real_data)), mnist_mini()
    assert isinstance(choice.test_images, torch.Tensor)
    assert isinstance(shipped.train_images, torch.Tensor)
    rows = [
        {bytes(image) for image in images.flatten(1).numpy()} for images in (choice.test_images, shipped.train_images)
    ]
    assert len(choice.test_images) == 55_000
    assert not rows[0] & rows[1]
