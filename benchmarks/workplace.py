"""The data, the teacher and the command lines that all rows share."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measure import NOTHING, Done, Failed, Runner

CLASSES = 10  # of CIFAR-10, whose articles' networks are measured
PARTS = ("train", "test")


@dataclass(frozen=True)
class Sizes:
    """How much is done in one repetition.

    Args:
        images: that every side trains on, N. The test part has a fifth of them, as in CIFAR-10.
        validation: images that kd keeps beside them; the other sides have none.
        student_epochs: of the row `student`; the first is not counted.
        teacher_epochs: of the row `teacher`; the first is not counted.
        epochs: of a distillation.
        temperatures: of the sweep.
        kl_weights: of the sweep; the labels have the rest.
        measured_points: of the sweep that an opponent is measured on; its other points do the same work.
        loop_epochs: of the row `loop`.
        steps: of each student in the row `students`.
        workers: processes that decode for the opponents.
    """

    images: int = 5000
    validation: int = 100
    student_epochs: int = 4
    teacher_epochs: int = 2
    epochs: int = 10
    temperatures: tuple[float, ...] = (1, 2, 5, 10, 20)
    kl_weights: tuple[float, ...] = (0.1, 0.5, 0.9)
    measured_points: int = 2
    loop_epochs: int = 20
    steps: int = 150
    workers: int = 2

    @property
    def points(self) -> list[tuple[float, float]]:
        """(temperature, kl_weight) of every point of the sweep."""
        return list(itertools.product(self.temperatures, self.kl_weights))


@dataclass
class Workplace:
    """A folder for everything that the rows make.

    Args:
        folder: empty; removed by whoever made it.
        run: runs one program.
        torchdistill: the interpreter of the environment that it is installed in; None: it is not.
    """

    folder: Path
    sizes: Sizes
    run: Runner
    torchdistill: Path | None = None
    teacher_run: str = ""
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def kd_tree(self) -> Path:
        return self.folder / "images_and_validation"

    @property
    def tree(self) -> Path:
        return self.folder / "images"

    @property
    def teacher(self) -> Path:
        """The weights of the teacher, after its only epoch."""
        return Path(self.teacher_run, "checkpoints", "epoch-0001", "model.safetensors")

    def fresh(self, name: str) -> Path:
        """A path that nothing has used."""
        return self.folder / f"{name}-{next(self._numbers)}"

    def prepare(self, data: Path) -> None:
        """Copies as many images as are needed, and trains one epoch of the teacher that all sides ask.

        Raises:
            Failed: there are not so many images, or the teacher could not be trained.
        """
        sizes = self.sizes
        for tree, extra in ((self.kd_tree, sizes.validation), (self.tree, 0)):
            copy_images(data / "train", tree / "train", sizes.images + extra)
            copy_images(data / "test", tree / "test", sizes.images // 5)
        done = self.kd("train-teacher", 1, cache=self.fresh("cache"))
        self.teacher_run = done.report["run"]

    def kd(
        self,
        command: str,
        epochs: int,
        *more: str,
        cache: Path,
        watch: bool = False,
        variables: Mapping[str, str] = NOTHING,
    ) -> Done:
        """Runs `kd` on this folder's images; a sweep if -m is one of the words."""
        folder = f"hydra.{'sweep' if '-m' in more else 'run'}.dir={self.fresh('run')}"
        share = self.sizes.validation / (self.sizes.images + self.sizes.validation)
        words = [command, "--json", *more, "seed=42", "device=cpu", folder, f"dataset.val_fraction={share}"]
        words += ["dataset=image_folder", f"dataset.root={self.kd_tree}", f"trainer.epochs={epochs}"]
        words += [f"{group}=cifar10_kl" for group in ("loss", "trainer")]
        words += [f"{role}=cifar10_kl_{role}" for role in ("teacher", "student")]
        words += [f"teacher.checkpoint={self.teacher_run}"] if command == "distill" else []
        return self.run([sys.executable, "-m", "kd_cli", *words], cache=cache, watch=watch, variables=variables)

    def script(self, role: str, epochs: int, *more: str, watch: bool = False) -> Done:
        """Runs the plain script."""
        return self._opponent(sys.executable, "benchmarks.script", role, epochs, more, watch)

    def other(self, role: str, epochs: int, watch: bool = False) -> Done:
        """Runs torchdistill."""
        return self._opponent(str(self.torchdistill), "benchmarks.with_torchdistill", role, epochs, (), watch)

    def driver(self, module: str, *words: object, watch: bool = False) -> Done:
        """Runs one of the programs beside this file."""
        command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, words)]
        return self.run(command, cache=self.fresh("cache"), watch=watch)

    def _opponent(self, python: str, module: str, role: str, epochs: int, more: Sequence[str], watch: bool) -> Done:
        words = ["--json", "--data", str(self.tree), "--role", role, "--epochs", str(epochs)]
        words += ["--workers", str(self.sizes.workers)]
        words += ["--teacher", str(self.teacher)] if role == "distill" else []
        return self.run([python, "-m", module, *words, *more], cache=self.fresh("cache"), watch=watch)


def copy_images(source: Path, target: Path, count: int) -> None:
    """Copies the first images of each class, the same number of each.

    Raises:
        Failed: a class has fewer.
    """
    folders = sorted(path for path in source.iterdir() if path.is_dir())
    for folder in folders:
        files = sorted(path for path in folder.iterdir() if path.is_file())[: count // len(folders)]
        if len(files) < count // len(folders) or not files:
            raise Failed(
                f"{folder} has {len(files)} images; {count // len(folders)} are needed: type a smaller --images"
            )
        (target / folder.name).mkdir(parents=True)
        for file in files:
            shutil.copyfile(file, target / folder.name / file.name)
