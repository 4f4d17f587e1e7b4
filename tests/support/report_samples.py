"""Results of made-up runs for the report's tests: any number of points, seeds, epochs and classes, with any names."""

from __future__ import annotations

import base64
import random
import struct
import zlib
from typing import Any

from kd_cli.report.tables import KINDS

HOSTILE = (
    "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\x1b[31m\u202e'\"&</script><!--\u2028]]>"
)
STAGES = ("teacher", "baseline", "distilled")
LEVEL = {"teacher": 97.0, "baseline": 92.0, "distilled": 93.5}


def empty() -> dict[str, Any]:
    """A folder without runs."""
    lists = (
        "findings",
        "warnings",
        "axes",
        "runs",
        "comparisons",
        "groups",
        "points_not_done",
        "differences",
        "examples",
    )
    head = {"title": "outputs", "made": "2026-03-01T10:00:00", "kd": "0.1.0", "command": "kd report outputs"}
    return {
        **head,
        "sources": ["outputs"],
        "study": None,
        "transfer": None,
        "examples_rule": None,
        "classes": None,
        **{name: [] for name in lists},
    }


def results(
    axis: dict[str, list[Any]] | None = None,
    *,
    seeds: int = 3,
    epochs: int = 12,
    classes: int = 10,
    name: str = "",
) -> dict[str, Any]:
    """A sweep of comparisons with everything that a report can show.

    Args:
        axis: key → its values; every combination is a group.
        name: a word in every name that the data could bring: classes, runs, errors.
    """
    axis = {"loss.temperature": [1, 2, 5, 10, 20]} if axis is None else axis
    found = empty()
    found["axes"] = list(axis)
    found["classes"] = [f"{name}class {index}" for index in range(classes)]
    made = _Maker(random.Random(0), epochs, classes, name, found)
    for seed in range(seeds):
        for stage in ("teacher", "baseline"):
            made.run(stage, seed, {})
    for settings in _product(axis):
        made.group(settings, seeds)
    _words(found, name)
    return found


def unknown(found: dict[str, Any]) -> dict[str, Any]:
    """The same runs where half of what could be measured was not, or is not a number."""
    nan = float("nan")
    found["runs"][0] |= {"curves": None, "scores": None, "reliability": None, "confusion": None, "speed": None}
    found["runs"][0] |= {
        "test_top1": None,
        "val_top1": None,
        "stage": None,
        "status": "failed",
        "error": "out of memory",
    }
    found["runs"][1]["curves"] |= {"val_top1": None, "train_loss": [nan] * len(found["runs"][1]["curves"]["epoch"])}
    found["runs"][2]["curves"] = {key: [] for key in found["runs"][2]["curves"]}
    found["runs"][3] |= {"test_top1": nan, "parameters": None, "provenance": {}, "settings": {}}
    found["groups"][0] |= {"teacher": None, "gain": None, "recovered": None, "confusion": None, "per_class_gain": None}
    found["groups"][0] |= {**{kind: {"baseline": None, "distilled": None} for kind in KINDS}}
    found["groups"][1]["distilled"]["test_top1"] = {"mean": nan, "std": None, "n": 1}
    found["groups"][2]["gain"] |= {"std": None, "low": None, "high": None, "p_value": None}
    found["classes"] = None
    return found


class _Maker:
    def __init__(self, chance: random.Random, epochs: int, classes: int, name: str, found: dict[str, Any]) -> None:
        self.chance, self.epochs, self.classes, self.name, self.found = chance, epochs, classes, name, found
        self.ids: dict[tuple[Any, ...], str] = {}
        self.matrices: dict[str, list[list[int]]] = {}

    def run(self, stage: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
        label = _label(settings)
        matrix = self._matrix(LEVEL[stage] + len(self.found["runs"]) % 5 * 0.1)
        top1 = 100 * sum(matrix[index][index] for index in range(self.classes)) / sum(map(sum, matrix))
        self.ids[stage, label, seed] = f"r{len(self.found['runs']) + 1}"
        self.matrices[f"r{len(self.found['runs']) + 1}"] = matrix
        epochs = list(range(1, self.epochs + 1))
        run = {
            "id": self.ids[stage, label, seed],
            "run": f"outputs/{self.name}sweep/{label or stage} seed={seed}/{stage}",
            "name": " · ".join(filter(None, (stage, f"{self.name}{label} seed={seed}".strip()))),
            "stage": stage,
            "status": "completed",
            "error": None,
            "rerun": f"kd distill {label} seed={seed} '{self.name}'",
            "log": None,
            "data": "mnist_mini",
            "network": "mnist_cnn_teacher" if stage == "teacher" else "mnist_cnn_student",
            "loss": "kd" if stage == "distilled" else None,
            "seed": seed,
            "settings": settings,
            "test_top1": top1,
            "test_top1_last": top1 - 0.2,
            "val_top1": top1 + 0.3,
            "test_nll": 0.2,
            "best_epoch": self.epochs,
            "epochs": self.epochs,
            "parameters": 1_199_882 if stage == "teacher" else 80_000,
            "train_seconds": 12.25,
            "started": "2026-03-01T09:00:00",
            "ended": "2026-03-01T09:00:12",
            "speed": {
                "flops_per_image": 10_000_000 if stage == "teacher" else 900_000,
                "latency_ms": 2.0 if stage == "teacher" else 0.5,
                "images_per_second": 900.0 if stage == "teacher" else 9_000.0,
                "bytes": 4_800_000 if stage == "teacher" else 320_000,
            },
            "curves": {
                "epoch": epochs,
                "train_loss": [2.0 / epoch + self.chance.random() * 0.05 for epoch in epochs],
                "val_loss": [2.1 / epoch + self.chance.random() * 0.05 for epoch in epochs],
                "train_top1": [top1 - 40 / epoch + self.chance.random() for epoch in epochs],
                "val_top1": [top1 - 42 / epoch + self.chance.random() for epoch in epochs],
                "lr": [0.1 * (1 - epoch / (self.epochs + 1)) for epoch in epochs],
            },
            "scores": {
                "top1": top1,
                "nll": 0.2,
                "brier": 0.1,
                "ece": 2.5,
                "mce": 9.0,
                "agreement": 95.0,
                "agreement_when_wrong": 40.0,
                "kl": 0.1,
            },
            "reliability": [self._bin(index) for index in range(15)],
            "per_class": [
                {"class": self.found["classes"][index], "images": sum(row), "top1": 100 * row[index] / sum(row)}
                for index, row in enumerate(matrix)
            ],
            "confusion": matrix,
            "provenance": {
                "command": f"kd run -m {label}",
                "commit": "0123456789abcdef",
                "dirty": seed == 0,
                "packages": {"torch": "2.6.0", "numpy": "1.26"},
                "threads": 2,
                "device": "cpu",
            },
        }
        self.found["runs"].append(run)
        return run

    def group(self, settings: dict[str, Any], seeds: int) -> None:
        label, members = _label(settings), []
        for seed in range(seeds):
            distilled = self.run("distilled", seed, settings)
            others = {stage: self.ids[stage, "", seed] for stage in ("teacher", "baseline")}
            baseline = next(run for run in self.found["runs"] if run["id"] == others["baseline"])
            self.found["comparisons"].append(
                {
                    "id": f"c{len(self.found['comparisons']) + 1}",
                    "run": f"outputs/sweep/{label}",
                    "point": label,
                    "seed": seed,
                    "settings": settings,
                    **others,
                    "distilled": distilled["id"],
                    "gain": distilled["test_top1"] - baseline["test_top1"],
                    "recovered": 30.0,
                    "recipe_differences": {},
                }
            )
            members.append(self.found["comparisons"][-1])
        self.found["groups"].append(self._summary(label, settings, members))

    def _summary(self, label: str, settings: dict[str, Any], members: list[dict[str, Any]]) -> dict[str, Any]:
        by_id = {run["id"]: run for run in self.found["runs"]}
        gains = [member["gain"] for member in members]
        both = ("baseline", "distilled")
        confusion = {stage: _sum([self.matrices[member[stage]] for member in members]) for stage in both}
        per_class = []
        for index, name in enumerate(self.found["classes"]):
            rates = {stage: 100 * confusion[stage][index][index] / sum(confusion[stage][index]) for stage in both}
            per_class.append({"class": name, **rates, "gain": rates["distilled"] - rates["baseline"]})
        center, std = _spread(gains)
        return {
            "name": f"{self.name}{label}",
            "settings": settings,
            "seeds": [member["seed"] for member in members],
            "comparisons": [member["id"] for member in members],
            **{
                stage: {
                    key: dict(
                        zip(
                            ("mean", "std", "n"),
                            (*_spread([by_id[m[stage]][key] for m in members]), len(members)),
                            strict=True,
                        )
                    )
                    for key in ("test_top1", "val_top1", "test_top1_last")
                }
                for stage in STAGES
            },
            "gain": {
                "mean": center,
                "std": std,
                "low": None if std is None else center - 2 * std,
                "high": None if std is None else center + 2 * std,
                "p_value": None if std is None else 0.25,
                "n": len(members),
                "verdict": "helped" if std is not None and center > 2 * std else "did not differ beyond its noise",
            },
            "recovered": {"mean": 30.0, "low": 10.0, "high": 50.0},
            "confusion": confusion,
            "per_class_gain": per_class,
            "agreement": {"baseline": 93.0, "distilled": 95.0 + len(self.found["groups"]) % 7 * 0.3},
            "agreement_when_wrong": {"baseline": 31.0, "distilled": 40.0},
        }

    def _matrix(self, level: float) -> list[list[int]]:
        images = max(20, 1000 // self.classes)
        matrix = []
        for truth in range(self.classes):
            row = [0] * self.classes
            for _ in range(images):
                right = self.chance.random() * 100 < level - truth % 5
                row[truth if right else self.chance.randrange(self.classes)] += 1
            matrix.append(row)
        return matrix

    def _bin(self, index: int) -> dict[str, Any]:
        low, high = index / 15, (index + 1) / 15
        if index < 3:
            return {"low": low, "high": high, "images": 0, "confidence": None, "accuracy": None}
        middle = (low + high) / 2
        accuracy = min(1.0, middle - 0.05 + self.chance.random() * 0.05)
        return {"low": low, "high": high, "images": 10 * (index + 1) ** 2, "confidence": middle, "accuracy": accuracy}


def _words(found: dict[str, Any], name: str) -> None:
    """What is written rather than measured."""
    found["title"] = f"{name}outputs/temperature"
    found["findings"] = [f"{name}Temperature 5 is best by validation; its gain over 1 is inside the noise (p = 0.25)."]
    found["warnings"] = [f"{name}Two runs were made with uncommitted changes."]
    found["points_not_done"] = [
        {
            "point": f"{name}loss.temperature=50",
            "status": "failed",
            "error": f"{name}out of memory",
            "log": "x.log",
            "rerun": f"kd run {name}",
        }
    ]
    ids = [run["id"] for run in found["runs"]]
    found["differences"] = [
        {
            "key": f"{name}loss.temperature",
            "values": [{"value": 1, "runs": ids[:3]}, {"value": name or 2, "runs": ids[3:]}],
        }
    ]
    names = found["classes"]
    found["examples"] = [
        {
            "id": index,
            "part": "test",
            "image": _image(index),
            "label": names[index % len(names)],
            "networks": [
                {
                    "name": stage,
                    "class": names[(index + place) % len(names)],
                    "probabilities": [
                        {"class": names[(index + place + rank) % len(names)], "p": p}
                        for rank, p in enumerate((0.7, 0.2, 0.05))
                    ],
                }
                for place, stage in enumerate(STAGES)
            ],
        }
        for index in range(8)
    ]


def _image(index: int) -> str:
    """A PNG of 28 × 28 grey pixels."""
    lines = b"".join(b"\0" + bytes((x * index * 3 + y * 5) % 256 for x in range(28)) for y in range(28))
    parts = ((b"IHDR", struct.pack(">IIBBBBB", 28, 28, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _product(axis: dict[str, list[Any]]) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = [{}]
    for key, values in axis.items():
        points = [{**point, key: value} for point in points for value in values]
    return points


def _label(settings: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in settings.items())


def _sum(matrices: list[list[list[int]]]) -> list[list[int]]:
    return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def _spread(values: list[float]) -> tuple[float, float | None]:
    center = sum(values) / len(values)
    if len(values) == 1:
        return center, None
    return center, (sum((value - center) ** 2 for value in values) / (len(values) - 1)) ** 0.5
