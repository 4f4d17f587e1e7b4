"""What is measured on a GPU, one measurement after the other until the minutes are spent."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.measure import NOTHING, ROOT, Done, Failed, before_others
from benchmarks.startup import Build

Raw = dict[str, Any]
_PATIENCE = 3  # times what a measurement may take, after which it is given up for the others' sake


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Args:
        images: random ones of CIFAR-10's shape; a tenth of them validate.
        test: images beside them.
        files: of the plain script's tree, whose epoch is scaled to all training images.
        script_epochs: the first is not counted.
        temperatures, seeds: of the sweep.
        epochs: of each of its points.
        loop_epochs: of the bare loop; the first is not counted.
        workers: of the plain script.
        losses: whose bits are compared; empty: all.
        settings: of `epochs`; empty: all.
    """

    images: int = 50_000
    test: int = 10_000
    files: int = 6_000
    script_epochs: int = 4
    temperatures: tuple[int, ...] = (1, 2, 5, 10, 20)
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 10
    loop_epochs: int = 8
    workers: tuple[int, ...] = (12, 2)
    losses: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    @property
    def train(self) -> int:
        """Images that are trained on."""
        return self.images - self.images // 10


FULL = Sizes()
SMALL = Sizes(300, 50, 200, 2, (1, 2), (0,), 1, 2, (1, 0), ("kd", "crd"), ("student", "student, eager"))


@dataclass
class Session:
    """A folder, a clock, and what was found so far.

    Args:
        folder: empty.
        device: `cuda`, or `cpu` to try it small.
        run: runs one program.
        end: of the clock time.monotonic.
        before: a checkout of another build, measured beside this one; None: there is none.
        until: of the same clock: when the measurement under way is given up.
    """

    folder: Path
    device: str
    sizes: Sizes
    run: Callable[..., Done]
    end: float
    before: Path | None = None
    until: float = math.inf
    raw: Raw = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    @property
    def teacher(self) -> Path:
        """The run of the teacher that `epochs` has trained.

        Raises:
            Failed: it has not.
        """
        if "epochs" not in self.raw:
            raise Failed("it needs the teacher that epochs trains")
        return Path(self.raw["epochs"]["teacher_run"])

    @cached_property
    def mixed(self) -> Path:
        """A folder for PYTHONPATH: these programs, and the other build's kd."""
        assert self.before is not None
        folder = self.folder / "before"
        folder.mkdir()
        (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
        (folder / "kd_cli").symlink_to(self.before / "kd_cli")
        return folder

    def python(self, module: str, *words: object, name: str, before: bool = False) -> Done:
        """Runs a module with a cache of its own, in what is left of the time."""
        variables: Mapping[str, str] = {"PYTHONPATH": before_others(self.mixed)} if before else NOTHING
        command = [sys.executable, "-m", module, *map(str, words)]
        cache = self.folder / f"{name.replace(' ', '-')}-cache"
        return self.run(
            command, cache=cache, variables=variables, limit=max(1.0, min(self.end, self.until) - time.monotonic())
        )

    def program(self, module: str, *words: object, name: str, before: bool = False) -> Raw:
        """What one of the programs beside this file reports."""
        place = ("--device", self.device)
        return self.python(f"benchmarks.gpu.{module}", *words, *place, name=name, before=before).report

    def sweep(self, *words: str, points: int, name: str, before: bool = False) -> Raw:
        """`kd distill -m` with the default options and these words."""
        sizes, folder = self.sizes, self.folder / name.replace(" ", "-")
        seeds = sizes.seeds if points >= len(sizes.seeds) else sizes.seeds[:1]
        grid = {"loss.temperature": sizes.temperatures[: points // len(seeds)], "seed": seeds}
        fixed = [f"{key}={','.join(map(str, each))}" for key, each in grid.items()]
        fixed += ["experiment=cifar10_kl", f"plugins=[{ROOT / 'benchmarks' / 'gpu' / 'stored_images.py'}]"]
        fixed += ["dataset.name=stored", "dataset.download=false", f"dataset.root={self.folder}"]
        fixed += [f"trainer.epochs={sizes.epochs}", f"teacher.checkpoint={self.teacher}", f"hydra.sweep.dir={folder}"]
        fixed += [] if self.device == "cuda" else [f"device={self.device}"]
        done = self.python("kd_cli", "distill", "--json", "-m", *fixed, *words, name=name, before=before)
        records = [json.loads(Path(point["run"], "run.json").read_text()) for point in done.report["points"]]
        pids = {record["pid"] for record in records}
        return {"seconds": done.seconds, "processes": len(pids), "points": [_lasted(record) for record in records]}


def _lasted(record: Raw) -> float:
    """Seconds of a run, without the start of its process."""
    start, end = (datetime.fromisoformat(record[key]) for key in ("started", "ended"))
    return (end - start).total_seconds()


def epochs(session: Session) -> Raw:
    """Epochs of teacher and student under several settings."""
    words = ["--settings", *session.sizes.settings] if session.sizes.settings else []
    place = ("--folder", session.folder / "epochs", "--root", session.folder)
    return session.program("epochs", *place, *words, name="epochs")


def sweep(session: Session) -> Raw:
    """All points, one command."""
    return session.sweep(points=len(session.sizes.temperatures) * len(session.sizes.seeds), name="sweep")


def loop(session: Session) -> Raw:
    """The bare loop."""
    sizes = session.sizes
    words = ("--images", sizes.train, "--epochs", sizes.loop_epochs)
    return session.program("loop", "--root", session.folder, *words, name="loop")


def script(session: Session) -> Raw:
    """The plain script with few and many workers: seconds of its epochs, and the images of one."""
    weights = session.teacher / "checkpoints" / "epoch-0001" / "model.safetensors"
    words = ["--json", "--data", session.folder, "--teacher", weights, "--epochs", session.sizes.script_epochs]
    words += ["--device", session.device, "--workers"]
    done = {each: session.python("benchmarks.script", *words, each, name="script") for each in session.sizes.workers}
    return {
        str(each): {"epochs": one.report["epoch_seconds"], "images": one.report["images"]} for each, one in done.items()
    }


def bits(session: Session) -> Raw:
    """Bit for bit."""
    words = ["--losses", *session.sizes.losses] if session.sizes.losses else []
    seconds = min(100.0, session.left)
    return session.program("bits", "--folder", session.folder / "bits", "--seconds", seconds, *words, name="bits")


def start_up(session: Session) -> Raw:
    """From the start of `kd distill` to its first step."""
    builds = {"kd": ROOT} | ({"before": session.before} if session.before else {})
    report: Raw = {}
    for name, checkout in builds.items():
        build = Build(checkout, session.folder / f"start-{name}")
        build.prepare()
        report[name] = build.start(counting=False)["seconds"]
    return report


def before_epochs(session: Session) -> Raw:
    """Epochs of the other build."""
    folder = session.folder / "before-epochs"
    words = ("--folder", folder, "--root", session.folder, "--settings", "student", "teacher")
    return session.program("epochs", *words, name="before epochs", before=True)


def before_8_jobs(session: Session) -> Raw:
    """The other build's sweep of all points, eight at a time."""
    points = len(session.sizes.temperatures) * len(session.sizes.seeds)
    return session.sweep("hydra.launcher.n_jobs=8", points=points, name="before 8 jobs", before=True)


def before_default(session: Session) -> Raw:
    """Two points of the other build's sweep as it is by default."""
    return session.sweep(points=2, name="before default", before=True)


# Name → how many seconds it may take at full size, and what is done; the last are the first to be skipped.
MEASURES: Mapping[str, tuple[float, Callable[[Session], Raw]]] = {
    "epochs": (60, epochs),
    "sweep": (30, sweep),
    "loop": (15, loop),
    "script": (40, script),
    "bits": (40, bits),
    "before epochs": (30, before_epochs),
    "before 8 jobs": (60, before_8_jobs),
    "before default": (45, before_default),
    "start-up": (25, start_up),
}


def measure(session: Session, names: Sequence[str], after: Callable[[], None]) -> None:
    """Makes the measurements that there is time for.

    Args:
        after: called after each.
    """
    for name in names:
        seconds, each = MEASURES[name]
        if name.startswith("before") and session.before is None:
            continue
        if session.left < seconds and session.sizes == FULL:
            session.skipped[name] = f"skipped: {max(0.0, session.left):.0f} s are left, and it may take {seconds:.0f}"
            continue
        session.until = time.monotonic() + _PATIENCE * seconds
        try:
            session.raw[name] = each(session)
        except Failed as error:
            session.skipped[name] = f"{error}\n{error.detail}".strip()
        after()
