"""What is measured: for each row its two or three sides and its target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.measure import Done, Measured, Sample, Side, interleave
from benchmarks.samples import epoch, extrapolated, job, kd_epoch, kd_job, kd_sweep
from benchmarks.workplace import Workplace

Opponent = Callable[..., Done]
# Network → the title of its row by the epoch.
EPOCHS = {"student": "an epoch of the baseline student", "teacher": "an epoch of the teacher"}


@dataclass(frozen=True)
class Row:
    """kd beside one opponent.

    Args:
        title: what was done.
        opponent: who did it too.
        target: of the ratio; None: there is none.
        at_most: the ratio is kd's time by the opponent's and shall not be larger than the target; otherwise it is the
            opponent's by kd's, and shall not be smaller.
    """

    title: str
    opponent: str
    kd: Measured
    other: Measured
    target: float | None = None
    at_most: bool = False

    @property
    def ratios(self) -> list[float]:
        """One per repetition."""
        pairs = zip(self.kd.seconds, self.other.seconds, strict=True)
        return [ours / theirs if self.at_most else theirs / ours for ours, theirs in pairs]

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target


def student(place: Workplace, repeats: int) -> list[Row]:
    """An epoch of training of the student alone."""
    sides = _epochs(place, "train-baseline", "student", place.sizes.student_epochs)
    return _rows(EPOCHS["student"], interleave(sides, repeats), 3.5)


def teacher(place: Workplace, repeats: int) -> list[Row]:
    """An epoch of training of the teacher; without torchdistill, whose work is the script's here too."""
    sides = _epochs(place, "train-teacher", "teacher", place.sizes.teacher_epochs)
    sides.pop("torchdistill", None)
    return _rows(EPOCHS["teacher"], interleave(sides, repeats), 1.35)


def distill(place: Workplace, repeats: int) -> list[Row]:
    """A distillation from nothing: images are decoded and the teacher is asked for the first time."""
    epochs = place.sizes.epochs

    def kd(warm: bool) -> Sample:
        return kd_job(place.kd("distill", _few(epochs, warm), cache=place.fresh("cache"), watch=warm))

    def opponent(start: Opponent, warm: bool) -> Sample:
        return job(start("distill", _few(epochs, warm), watch=warm))

    title = f"{epochs} epochs of distillation, the teacher's pass included"
    return _rows(title, interleave(_sides(place, kd, opponent), repeats), 7)


def sweep(place: Workplace, repeats: int) -> list[Row]:
    """Temperatures × weights, each point a distillation from the same teacher."""
    sizes = place.sizes
    grid = ["-m", "--config-dir", str(_presets(place)), f"experiment={','.join(map(_preset, sizes.kl_weights))}"]
    grid += [f"loss.temperature={','.join(map(str, sizes.temperatures))}"]
    apart = -(-len(sizes.points) // sizes.measured_points)

    def kd(warm: bool) -> Sample:
        return kd_sweep(place.kd("distill", _few(sizes.epochs, warm), *grid, cache=place.fresh("cache"), watch=warm))

    def script(warm: bool) -> Sample:
        words = [
            ("--temperature", str(t), "--kl-weight", str(kl), "--ce-weight", str(1 - kl)) for t, kl in sizes.points
        ]
        runs = [place.script("distill", _few(sizes.epochs, warm), *each, watch=warm) for each in words[::apart]]
        return extrapolated(runs, len(sizes.points))

    title = f"a sweep of {len(sizes.points)} points, {sizes.epochs} epochs each, the teacher's pass included"
    return _rows(title, interleave({"kd": kd, "script": script}, repeats), 14)


def augment(place: Workplace, repeats: int) -> list[Row]:
    """A point of a sweep with augmentation, when another point has been there before."""
    epochs, cache = place.sizes.epochs, place.fresh("cache")
    place.kd("distill", epochs, "dataset.augment=crop_flip", "loss.temperature=1", cache=cache)

    def kd(warm: bool) -> Sample:
        words = ("dataset.augment=crop_flip", "loss.temperature=5")
        return kd_job(place.kd("distill", _few(epochs, warm), *words, cache=cache, watch=warm))

    def script(warm: bool) -> Sample:
        return job(place.script("distill", _few(epochs, warm), "--augment", "--temperature", "5", watch=warm))

    title = f"{epochs} epochs of distillation with crop and flip, from the second point of a sweep on"
    return _rows(title, interleave({"kd": kd, "script": script}, repeats), 3)


def loop(place: Workplace, repeats: int) -> list[Row]:
    """kd's loop and a bare one, epoch by epoch in one process; their memory in one process each."""
    words, sides = ("--data", place.tree, "--epochs"), ("kd", "bare")
    measured = {side: Measured(place.driver("loop", *words, 2, side, watch=True).peak_mb) for side in sides}
    for _ in range(repeats):
        report = place.driver("loop", *words, place.sizes.loop_epochs, *sides).report
        for side in sides:
            measured[side].seconds.append(median(report[side]["seconds"][1:]))
    title = f"{EPOCHS['student']}, kd's loop alone"
    return [Row(title, "bare PyTorch loop", measured["kd"], measured["bare"], 1.05, at_most=True)]


def students(place: Workplace, repeats: int) -> list[Row]:
    """Three ways to train the students of a sweep; kd takes the first."""

    def side(way: str, warm: bool) -> Sample:
        done = place.driver("students", way, "--steps", place.sizes.steps, watch=warm)
        return Sample(done.report["seconds"], 0, done.peak_mb)

    others = {"turns": "one after the other, all threads", "stacked": "five stacked, torch.func.vmap"}
    measured = interleave({way: partial(side, way) for way in ("processes", *others)}, repeats)
    title = "a step of one of a sweep's students, in one-thread processes side by side"
    return [Row(title, name, measured["processes"], measured[way], 1.0) for way, name in others.items()]


def allocator(place: Workplace, repeats: int) -> list[Row]:
    """kd keeps the memory of freed tensors; it leaves the C library alone where a variable of that library is set."""

    def side(command: str, epochs: int, variables: Mapping[str, str], warm: bool) -> Sample:
        few, cache = _few(epochs, warm), place.fresh("cache")
        return kd_epoch(place.kd(command, few, cache=cache, watch=warm, variables=variables))

    rows, sizes = [], place.sizes
    for command, network, epochs in (
        ("train-baseline", "student", sizes.student_epochs),
        ("train-teacher", "teacher", sizes.teacher_epochs),
    ):
        variables = {"kd": {}, "kd with glibc's defaults": {"MALLOC_ARENA_TEST": "8"}}  # which is the default
        sides = {each: partial(side, command, epochs, value) for each, value in variables.items()}
        rows += _rows(f"{EPOCHS[network]}, freed memory kept", interleave(sides, repeats), 1.0)
    return rows


ROWS: Mapping[str, Callable[[Workplace, int], list[Row]]] = {
    each.__name__: each for each in (student, teacher, distill, sweep, augment, loop, students, allocator)
}


def _rows(title: str, measured: Mapping[str, Measured], target: float) -> list[Row]:
    """One row per opponent; there is no target for torchdistill."""
    others = [name for name in measured if name != "kd"]
    return [
        Row(title, name, measured["kd"], measured[name], None if name == "torchdistill" else target) for name in others
    ]


def _epochs(place: Workplace, command: str, role: str, epochs: int) -> dict[str, Side]:
    """Training without a teacher, measured by the epoch."""

    def kd(warm: bool) -> Sample:
        return kd_epoch(place.kd(command, _few(epochs, warm), cache=place.fresh("cache"), watch=warm))

    def opponent(start: Opponent, warm: bool) -> Sample:
        return epoch(start(role, _few(epochs, warm), watch=warm))

    return _sides(place, kd, opponent)


def _sides(place: Workplace, kd: Side, opponent: Callable[[Opponent, bool], Sample]) -> dict[str, Side]:
    sides: dict[str, Side] = {"kd": kd, "script": partial(opponent, place.script)}
    return sides | ({"torchdistill": partial(opponent, place.other)} if place.torchdistill else {})


def _few(epochs: int, warm: bool) -> int:
    """The untimed run needs no more than two epochs: by then all memory is taken."""
    return min(epochs, 2) if warm else epochs


def _presets(place: Workplace) -> Path:
    """A folder for --config-dir: one preset for each pair of weights, because a grid would cross them."""
    folder = place.fresh("presets")
    (folder / "experiment").mkdir(parents=True)
    for weight in place.sizes.kl_weights:
        text = f"# @package _global_\nloss:\n  kl_weight: {weight}\n  ce_weight: {round(1 - weight, 6)}\n"
        (folder / "experiment" / f"{_preset(weight)}.yaml").write_text(text)
    return folder


def _preset(kl_weight: float) -> str:
    return f"kl_{round(100 * kl_weight)}"
