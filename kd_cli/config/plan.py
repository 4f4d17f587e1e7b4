"""What a comparison trains, in order: each part in a folder of its own, and a row of the result."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_cli.config.base import Config, Stage
from kd_cli.errors import ConfigError
from kd_cli.models import AS_DATA, VIEW
from kd_cli.registry import convert
from kd_cli.seeds import derive_seed

TAUGHT = ("shuffled_teacher", "random_teacher", "self_distillation")  # controls that the loss asks as a teacher


@dataclass(frozen=True)
class Training:
    """The training of one network.

    Args:
        name: of its folder and its row: `teacher`, `teacher-2`, `specialist-1`, `baseline`, `assistant-1`,
            `generation-1`, `distilled`.
        stage: which recipe it has, and whether it learns from labels or from teachers.
        model: the network's options.
        seed: of its training.
        teachers: the parts it learns from; for a specialist, the generalist.
        group: which group of confusable classes it is a specialist for: 0, 1, …; None: it knows all classes.
    """

    name: str
    stage: Stage
    model: Mapping[str, Any]
    seed: int
    teachers: tuple[str, ...] = ()
    group: int | None = None

    @property
    def role(self) -> str:
        """The configuration key of its network."""
        return "teacher" if self.stage == "teacher" else "student"


def single(config: Config, stage: Stage) -> Training:
    """The only part of `kd train-teacher`, `kd train-baseline` and `kd distill`."""
    return Training(stage, stage, model_options(config, "teacher" if stage == "teacher" else "student"), config["seed"])


def plan(config: Config, *, teacher: str, given: bool) -> list[Training]:
    """The parts of `kd run`: teachers, baseline, what stands between, and the distilled student.

    Args:
        teacher: what the method asks: a `frozen` one, one that is `trained` beside the student, or `none`.
        given: the teacher is trained already.

    Raises:
        ConfigError: options of a procedure that do not fit together.
    """
    check_procedure(config, teacher=teacher)
    itself = config.get("control") == "self_distillation"
    teachers = [] if given or itself or teacher != "frozen" else list(_teachers(config))
    between = list(_between(config, tuple(each.name for each in teachers)))
    last = (between[-1].name,) if between else ("baseline",) if itself else tuple(each.name for each in teachers)
    student = model_options(config, "student")
    baseline = Training("baseline", "baseline", student, config["seed"])
    return [*teachers, baseline, *between, Training("distilled", "distilled", student, config["seed"], last)]


def check_procedure(config: Config, *, teacher: str) -> None:
    """Checks `ensemble`, `specialists`, `assistants` and `generations`, and that they can be used together.

    Raises:
        ConfigError: a number outside its range or options that contradict each other; it says what to type instead.
    """
    check_numbers(config)
    asked = [*procedures(config), *(["control"] if config.get("control") in TAUGHT else [])]
    if asked and teacher != "frozen":
        name = config["loss"]["name"]
        raise ConfigError(f"{asked[0]} needs a loss that asks a finished teacher, and {name} does not; type loss=kd")


def check_numbers(config: Config) -> None:
    """Checks what of the procedures depends neither on the loss nor on the data.

    Raises:
        ConfigError: a number outside its range, weights that are not one per teacher, or two kinds of teachers.
    """
    for key, low in (("ensemble.size", 1), ("generations", 1), ("specialists.groups", 0), ("specialists.classes", 2)):
        value: Any = config
        for word in key.split("."):
            value = value[word]
        if convert(value, int, key) < low:
            raise ConfigError(f"{key}: {value} is not possible; it must be a whole number ≥ {low}")
    given = given_paths(config)
    several = [key for key in procedures(config) if key in ("ensemble.size", "specialists.groups")]
    if several and given:
        raise ConfigError(f"{several[0]} trains teachers, and teacher.checkpoint names finished ones; give one of them")
    if len(several) == 2:
        raise ConfigError("ensemble.size: more than 1 is not possible with specialists.groups; type ensemble.size=1")
    try:
        check_weights(config["ensemble"]["weights"], members(config, given))
    except ValueError as error:
        raise ConfigError(f"ensemble.{error}") from error


def given_paths(config: Config) -> list[Path]:
    """What `teacher.checkpoint` names.

    Raises:
        ConfigError: one that is not there.
    """
    given = config["teacher"].get("checkpoint")
    if isinstance(given, list) and not given:
        raise ConfigError("teacher.checkpoint: [] names no teacher; type a run's folder, or null for the newest")
    paths = [Path(str(each)).expanduser() for each in (given if isinstance(given, list) else [given] if given else [])]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise ConfigError(f"teacher.checkpoint: there is no {missing[0]}; kd list runs shows what is there")
    return paths


def members(config: Config, given: Sequence[Any]) -> int:
    """How many teachers an ensemble has."""
    return len(given) if len(given) > 1 else int(config["ensemble"]["size"])


def check_weights(weights: Any, members: int) -> None:
    """Refuses weights that are not one per member.

    Raises:
        ValueError: neither `confidence` nor a list of numbers, another number of them, or they cannot be normalised.
    """
    if weights is None or weights == "confidence":
        return
    numbers = weights if isinstance(weights, list | tuple) else [weights]
    if numbers is not weights or not all(type(number) in (int, float) for number in numbers):
        raise ValueError(f"weights: {weights!r} is not possible; type confidence, null or one number per teacher")
    if len(weights) != members:
        raise ValueError(f"weights: {len(weights)} numbers do not fit {members} teachers; give one per teacher")
    if any(not (math.isfinite(weight) and weight >= 0) for weight in weights) or sum(weights) <= 0:
        raise ValueError(f"weights: {list(weights)} is not possible; they must be ≥ 0 and not all 0")


def check_groups(count: int, size: int, classes: int) -> None:
    """Refuses more groups than there are classes for.

    Raises:
        ValueError: `count` groups of `size` do not fit `classes`, or one would have all of them.
    """
    if count * size > classes or (count and size >= classes):
        raise ValueError(
            f"specialists.groups={count} × specialists.classes={size} do not fit {classes} classes; take fewer"
        )


_NO_DATA: Mapping[str, Any] = {}
GIVEN = ("checkpoint", "ready")  # of a teacher: where its weights come from
_OF_TEACHER = (*GIVEN, "probe")  # and how it learns


def typed_view(config: Config, role: str) -> dict[str, Any]:
    """What is typed of how a network is shown the images."""
    return {key: config[role][key] for key in VIEW if config[role].get(key) is not None}


def model_options(config: Config, role: str) -> dict[str, Any]:
    """The network's own options; where its weights come from, and what they learned from, are not among them."""
    options = {key: value for key, value in config[role].items() if role == "student" or key not in _OF_TEACHER}
    return network_options(options, role, config["dataset"])


def network_options(options: Mapping[str, Any], role: str, data: Mapping[str, Any] = _NO_DATA) -> dict[str, Any]:
    """A network's options, with what its published weights say of the images that they were made for.

    Args:
        data: the options of the data.
    """
    said = {key: options.get(key) for key in VIEW}
    if options.get("pretrained") or options.get("kwargs"):
        from kd_cli.models.published import fill_in

        fill_in(said, options, role, data)
    own = {key: value for key, value in options.items() if key not in VIEW}
    return own | {key: value for key, value in said.items() if value is not None and value != AS_DATA}


def procedures(config: Config) -> list[str]:
    """The options in use that make more of a comparison than three networks."""
    wanted = {
        "ensemble.size": config["ensemble"]["size"] > 1,
        "specialists.groups": config["specialists"]["groups"] > 0,
        "assistants": bool(config["assistants"]),
        "generations": config["generations"] > 1,
    }
    return [key for key, is_wanted in wanted.items() if is_wanted]


def _teachers(config: Config) -> Iterator[Training]:
    model, seed = model_options(config, "teacher"), config["seed"]
    if model == model_options(config, "student"):  # with the same seed it would be the baseline once more
        seed = derive_seed(seed, "teacher")
    yield Training("teacher", "teacher", model, seed)
    for number in range(2, config["ensemble"]["size"] + 1):
        yield Training(f"teacher-{number}", "teacher", model, derive_seed(seed, "teacher", number))
    for number in range(1, config["specialists"]["groups"] + 1):
        name = f"specialist-{number}"
        yield Training(name, "teacher", model, derive_seed(seed, name), ("teacher",), group=number - 1)


def _between(config: Config, teachers: tuple[str, ...]) -> Iterator[Training]:
    """The chain from the teacher to the student: assistants, then all generations of the student but the last."""
    assistants = enumerate(config["assistants"], start=1)
    data = config["dataset"]
    models = [(f"assistant-{i}", network_options(model, f"assistants[{i - 1}]", data)) for i, model in assistants]
    student = model_options(config, "student")
    models += [(f"generation-{i}", student) for i in range(1, config["generations"])]
    for name, model in models:
        yield Training(name, "distilled", model, derive_seed(config["seed"], name), teachers)
        teachers = (name,)
