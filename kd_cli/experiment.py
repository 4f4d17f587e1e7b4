"""What the commands do, as straight lines: train a network, distil one, compare three."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd_cli import console, handover
from kd_cli.config import STAGE_TRAINER, Config, Launch, Stage, stage_recipe
from kd_cli.data.base import Data, check_dataset, load_dataset
from kd_cli.errors import ConfigError, DataError, Interrupted, Terminated
from kd_cli.fit import Result, fit
from kd_cli.losses.base import build_loss
from kd_cli.models.base import MODELS
from kd_cli.provenance import provenance
from kd_cli.recipe import Recipe
from kd_cli.rundir import RunDir
from kd_cli.seeds import derive_seed
from kd_cli.task import Distillation, Supervised
from kd_cli.trainer import seed_dropout

_UNUSED: dict[Stage, set[str]] = {
    "teacher": {"student", "loss", "baseline_trainer", "distill_trainer"},
    "baseline": {"teacher", "loss", "teacher_trainer", "distill_trainer"},
    "distilled": {"teacher_trainer", "baseline_trainer"},
}


def train(config: Config, launch: Launch, stage: Stage) -> Result:
    """`kd train-teacher` and `kd train-baseline`: one network learns from the labels."""
    check(config)
    with _opened(launch.folder, config, launch, stage, exact=launch.exact) as run:
        if run.result is not None:
            return _already(run)
        _say_unused(launch, stage)
        return _supervised(config, stage, run, _load_data(config))


def distill(config: Config, launch: Launch) -> Result:
    """`kd distill`: a student learns from a teacher that is there already."""
    check(config)
    with _opened(launch.folder, config, launch, "distilled", exact=launch.exact) as run:
        if run.result is not None:
            return _already(run)
        _say_unused(launch, "distilled")
        data = _load_data(config)
        return _distilled(config, launch, run, data, teacher=None)


def compare(config: Config, launch: Launch) -> Result:
    """`kd run`: teacher, baseline student and distilled student, with the same seed."""
    check(config)
    with _opened(launch.folder, config, launch, None, exact=launch.exact) as run:
        if run.result is not None:
            return _already(run)
        start, data = time.monotonic(), _load_data(config)
        given = _checkpoint(config)
        recorded = handover.recorded_result(given) if given else None
        results: dict[str, Result] = {"teacher": recorded} if recorded else {}
        for stage in STAGE_TRAINER:
            if stage == "teacher" and given:
                continue
            with RunDir.open(run.path / stage, _identity(launch, stage), config, exact=True) as part:
                teacher = given or run.path / "teacher"
                results[stage] = part.result or _stage(config, launch, stage, part, data, teacher)
        seconds = round(time.monotonic() - start, 1)
        result = {"run": str(run.path), "seconds": seconds, **_comparison(config, results), **results}
        run.finish(result)
        return result


def _comparison(config: Config, results: Mapping[str, Result]) -> dict[str, Any]:
    gain = round(results["distilled"]["test_top1"] - results["baseline"]["test_top1"], 2)
    differences = _recipe_differences(config)
    return {"seed": config["seed"], "gain": gain} | ({"recipe_differences": differences} if differences else {})


def _recipe_differences(config: Config) -> dict[str, list[Any]]:
    """What the baseline's and the distilled student's recipes do not share: such a gain is not distillation's alone."""
    baseline, distilled = (vars(stage_recipe(config, stage)) for stage in ("baseline", "distilled"))
    return {key: [value, distilled[key]] for key, value in baseline.items() if value != distilled[key]}


def check(config: Config) -> None:
    """Finds what is wrong with the components' options before any data are read.

    Raises:
        ConfigError: unknown component or option, wrong type or range.
    """
    check_dataset(config["dataset"])
    build_loss(config["loss"])
    for role in ("teacher", "student"):
        MODELS.check(model_options(config, role), where=role)
    pick_device(config["device"])
    _checkpoint(config)


def model_options(config: Config, role: str) -> dict[str, Any]:
    """The network's own options; where its weights come from is not one of them."""
    return {key: value for key, value in config[role].items() if key != "checkpoint"}


def pick_device(name: str) -> torch.device:
    """The device; `auto` is the fastest that is there.

    Raises:
        ConfigError: a device that is unknown or not there.
    """
    there = ["mps"] if torch.backends.mps.is_available() else []
    there = [*(f"cuda:{index}" for index in range(torch.cuda.device_count())), *there, "cpu"]
    if name == "auto":
        return torch.device(there[0])
    if name not in (*there, *(kind.partition(":")[0] for kind in there)):
        known = ", ".join(["auto", *there])
        raise ConfigError(f"device: {name!r} is not on this machine; type device=… with one of {known}")
    return torch.device(name)


def build_network(config: Config, role: str, data: Data, device: torch.device) -> nn.Module:
    """A network with its first weights: a pure function of the seed and the network's options."""
    seed_dropout(derive_seed(config["seed"], "weights"), device)
    network = MODELS.build(model_options(config, role), where=role, **handover.model_shape(data))
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _stage(config: Config, launch: Launch, stage: Stage, run: RunDir, data: Data, teacher: Path) -> Result:
    if stage == "distilled":
        return _distilled(config, launch, run, data, teacher=teacher)
    return _supervised(config, stage, run, data)


def _supervised(config: Config, stage: Stage, run: RunDir, data: Data) -> Result:
    recipe, device = stage_recipe(config, stage), pick_device(config["device"])
    role = "teacher" if stage == "teacher" else "student"
    network = build_network(config, role, data, device)
    run.note(model=model_options(config, role))
    task = Supervised(network, recipe.label_smoothing)
    return fit(task, data, run, recipe, stage=stage, seed=config["seed"], device=device)


def _distilled(config: Config, launch: Launch, run: RunDir, data: Data, teacher: Path | None) -> Result:
    recipe, device = stage_recipe(config, "distilled"), pick_device(config["device"])
    student = build_network(config, "student", data, device)  # first, so that every loss starts from the same student
    method, mix = build_loss(config["loss"])
    network = None
    if method.teacher != "none" and mix.weight:
        network = _take_teacher(config, launch, run, data, teacher, recipe, device)
    run.note(model=model_options(config, "student"), loss=config["loss"])
    try:
        task = Distillation(
            student,
            network,
            method,
            mix,
            data.spec,
            name=config["loss"]["name"],
            label_smoothing=recipe.label_smoothing,
        )
    except ValueError as error:
        raise ConfigError(f"loss={config['loss']['name']} cannot work on this pair: {error}") from error
    return fit(task, data, run, recipe, stage="distilled", seed=config["seed"], device=device)


def _take_teacher(
    config: Config, launch: Launch, run: RunDir, data: Data, teacher: Path | None, recipe: Recipe, device: torch.device
) -> nn.Module:
    options, before = model_options(config, "teacher"), run.record.get("teacher")
    if before is not None:  # a resumed run keeps its teacher, whatever was trained since
        path = Path(before["source"])
    else:
        outputs = Path(config["outputs"])
        path = teacher or _checkpoint(config) or handover.find_teacher(outputs, options, data, launch.arguments)
    network, facts = handover.load_teacher(path, options, data, batch_size=recipe.eval_batch_size, device=device)
    if before is not None and before["sha256"] != facts["sha256"]:
        raise DataError(f"{path} has changed since {run.path} began with it as its teacher; start a new run")
    run.note(teacher=facts)
    accuracy = "" if facts["val_top1"] is None else f", {facts['val_top1']:.2f} % on validation (measured again now)"
    console.say(f"teacher    {console.short_path(path)}{accuracy}")
    return network


def _say_unused(launch: Launch, stage: Stage) -> None:
    for key in sorted(key for key in launch.given if key.partition(".")[0] in _UNUSED[stage]):
        console.notice(f"{key} has no effect on kd {launch.command}")


def _checkpoint(config: Config) -> Path | None:
    given = config["teacher"].get("checkpoint")
    if given is None:
        return None
    path = Path(str(given)).expanduser()
    if not path.exists():
        raise ConfigError(f"teacher.checkpoint: there is no {path}; kd list runs shows what is there")
    return path


def _load_data(config: Config) -> Data:
    data = load_dataset(config["dataset"])
    sizes = ", ".join(f"{data.size(part):,} {part}" for part in ("train", "val", "test"))
    console.say(f"data       {data.name}: {sizes}")
    return data


@contextmanager
def _opened(folder: Path, config: Config, launch: Launch, stage: Stage | None, *, exact: bool) -> Iterator[RunDir]:
    """The run's folder; Ctrl-C and SIGTERM say how to go on."""
    with RunDir.open(folder, _identity(launch, stage), config, exact=exact) as run:
        try:
            yield run
        except (KeyboardInterrupt, Terminated) as error:
            kind = Interrupted if isinstance(error, KeyboardInterrupt) else Terminated
            command = f"kd resume {shlex.quote(console.short_path(run.path))}"
            raise kind(f"stopped; every finished epoch is kept. Go on with:\n{command}") from None


def _identity(launch: Launch, stage: Stage | None) -> dict[str, Any]:
    return provenance(launch.command, launch.arguments) | {"stage": stage}


def _already(run: RunDir) -> Result:
    console.say(f"{run.path} is complete already; nothing was trained again")
    result: Mapping[str, Any] | None = run.result
    assert result is not None
    return dict(result)
