"""What a run was told that can change its numbers, and what of it is compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from kd_cli.config.base import STAGE_TRAINER
from kd_cli.config.controls import NONE
from kd_cli.report.records import Run, mapping
from kd_cli.runs.identity import flatten

Facts = Mapping[str, Any]

GROUPS = ("dataset", "teacher", "student", "loss")
_PROCEDURES = ("ensemble", "specialists", "assistants", "generations")
_ANSWERS = ("teacher_cache_top_k", "teacher_cache_dtype")
_TRAINER: Mapping[str, str] = {str(stage): trainer for stage, trainer in STAGE_TRAINER.items()}
_RECIPES = ("distill_trainer", "baseline_trainer", "teacher_trainer")  # whose value stands for all comes first
_READS: Mapping[str, Sequence[str]] = {
    "teacher": ("dataset", "teacher", "teacher_trainer"),
    "baseline": ("dataset", "student", "baseline_trainer"),
    "distilled": ("dataset", "teacher", "student", "loss", "control", *_PROCEDURES, *_ANSWERS, "distill_trainer"),
}
# Where data lie, how they are held, how much is evaluated at a time: none of it changes what is learned.
_WITHOUT_EFFECT = {
    *(f"dataset.{key}" for key in ("root", "download", "in_memory", "memory_limit_gb", "workers")),
    *(
        f"{recipe}.{key}"
        for recipe in _RECIPES
        for key in ("eval_batch_size", "checkpoint_every", "checkpoint_minutes")
    ),
    "teacher.checkpoint",
}


def facts(run: Run, role: str | None = None) -> dict[str, Any]:
    """The options that this run's training read: `{"loss.temperature": 4.0, "distill_trainer.epochs": 12}`.

    Its seed, its device, paths, caches and loggers are not among them.

    Args:
        role: what it stands for, where that is not its stage; its own recipe then has the name of that stage's.
    """
    stage = str(run.record.get("stage"))
    reads, renamed = _READS.get(role or stage, ()), {_TRAINER.get(role or stage, ""): _own_trainer(run)}
    sections = {key: run.config.get(renamed.get(key, key)) for key in reads}
    told = flatten({key: section for key, section in sections.items() if section not in (None, NONE)})
    known = {key: value for key, value in told.items() if key not in _WITHOUT_EFFECT}
    fingerprint = run.data.get("fingerprint")
    return known | ({"dataset.fingerprint": fingerprint} if fingerprint else {})


def recipe(run: Run) -> dict[str, Any]:
    """How a run was trained, whatever its stage: `{"epochs": 12, "lr": 0.001}`."""
    own = f"{_own_trainer(run)}."
    return {key.removeprefix(own): value for key, value in facts(run).items() if key.startswith(own)}


def told(run: Run) -> dict[str, Any]:
    """As `facts`, for a table of all runs: `trainer.epochs` is each run's own, and the seed is there."""
    own = _own_trainer(run)
    named = {
        key.replace(f"{own}.", "trainer.", 1) if key.startswith(f"{own}.") else key: value
        for key, value in facts(run).items()
    }
    return {**named, "seed": run.seed}


def _own_trainer(run: Run) -> str:
    return _TRAINER.get(str(run.record.get("stage")), "trainer")


def varying(rows: Sequence[Facts]) -> list[str]:
    """The keys whose values differ; what differs in several stages in the same way is one key, `trainer.epochs`."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = {key: [_text(row.get(key)) for row in rows] for key in keys}
    found = [key for key in keys if len(set(columns[key])) > 1]
    merged: dict[str, None] = {}
    for key in found:
        stage, _, option = key.partition(".")
        others = [f"{each}.{option}" for each in _RECIPES if each != stage and f"{each}.{option}" in found]
        together = stage in _RECIPES and others and all(columns[other] == columns[key] for other in others)
        merged[f"trainer.{option}" if together else key] = None
    return list(merged)


def value(key: str, row: Facts, typed: Mapping[str, str]) -> Any:
    """What a run has for a key: of the configuration, or the choice of a group as it was typed."""
    if "control" in row and key in typed:
        return _number(typed[key])  # the control has put something else in its place
    option = key.removeprefix("trainer.")
    for name in (key, *(f"{recipe}.{option}" for recipe in _RECIPES if key != option)):
        if name in row:
            return _scalar(row[name])
    if key in typed:
        return typed[key]
    return _scalar(row.get(f"{key}.name"))


def found_axes(rows: Sequence[Facts], typed: Sequence[Mapping[str, str]]) -> list[str]:
    """What varies where nothing says what was swept: `loss` stands for its options where another loss is chosen."""
    axes: list[str] = []
    for key in varying(rows):
        group = key.partition(".")[0]
        if group in GROUPS and len({_text(_choice(group, *pair)) for pair in zip(rows, typed, strict=True)}) > 1:
            if group not in axes:
                axes.append(group)
            if not _varies_within(key, group, rows, typed):
                continue
        axes.append(key)
    return [axis for axis in axes if axis != "dataset.fingerprint" or "dataset" not in axes]


def unexplained(
    axes: Iterable[str], rows: Sequence[Facts], settings: Sequence[Mapping[str, Any]], *, one_sweep: bool
) -> list[str]:
    """The keys that differ although they are not what is compared.

    Args:
        one_sweep: one command line made all of them; then what follows from the axes is meant to follow from them.
    """
    others = [key for key in varying(rows) if not any(_explains(axis, key) for axis in axes)]
    free = one_sweep or any(_stands_for_anything(axis) for axis in axes)
    return [key for key in others if not (free and _follows(key, rows, settings))]


def _explains(axis: str, key: str) -> bool:
    name = axis.partition("@")[2] or axis
    if key == name or key.startswith(f"{name}."):
        return True
    if name.startswith("trainer") and key.partition(".")[0] in _RECIPES:
        return name == "trainer" or key.partition(".")[2] == name.partition(".")[2]
    return False


def _stands_for_anything(axis: str) -> bool:
    """An experiment sets many options."""
    return axis.partition(".")[0] not in (*GROUPS, *_RECIPES, *_PROCEDURES, "trainer")


def _follows(key: str, rows: Sequence[Facts], settings: Sequence[Mapping[str, Any]]) -> bool:
    """Whether runs with the same settings always have the same value."""
    pairs = {(_text(setting), _text(value(key, row, {}))) for row, setting in zip(rows, settings, strict=True)}
    return len(pairs) == len({setting for setting, _ in pairs})


def _choice(group: str, row: Facts, typed: Mapping[str, str]) -> Any:
    return typed.get(group, row.get(f"{group}.name"))


def _varies_within(key: str, group: str, rows: Sequence[Facts], typed: Sequence[Mapping[str, str]]) -> bool:
    """Whether a key varies among the runs with the same choice of its group."""
    pairs = {(_text(_choice(group, *pair)), _text(pair[0].get(key))) for pair in zip(rows, typed, strict=True)}
    return len(pairs) > len({choice for choice, _ in pairs})


def label(settings: Mapping[str, Any]) -> str:
    """`loss.temperature=4 student=resnet20`."""
    return " ".join(f"{key}={brief(each)}" for key, each in settings.items())


def brief(value: Any) -> str:
    """A value as it would be typed: `4`, not `4.0`."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)


def _number(text: str) -> Any:
    """A typed number as the configuration has it; other words as they are."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _scalar(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else _text(value)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def digest(row: Facts, settings: Mapping[str, Any]) -> str:
    """The same for runs that differ in nothing but their seed."""
    return _text([{**row}, {**settings}])


def dataset_options(run: Run) -> Mapping[str, Any]:
    """What opens the data that a run was trained on."""
    return mapping(run.config.get("dataset"))
