"""From a teacher's run to a frozen teacher: found, checked against its record, and measured again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd_cli import console
from kd_cli.checkpoint import Checkpoint, load_state
from kd_cli.config import override_key
from kd_cli.data.base import Data
from kd_cli.errors import ConfigError, DataError
from kd_cli.evaluate import evaluate
from kd_cli.files import file_digest, read_json
from kd_cli.models.base import MODELS
from kd_cli.rundir import find_runs, read_metrics

# Another number of threads or another processor may move a few borderline images; wrong weights or a wrong
# normalisation move far more.
_TOLERANCE = 0.5  # percentage points


@dataclass(frozen=True)
class Source:
    """Where a network's weights are, and what is on record about them.

    Args:
        weights: the .safetensors file.
        run: the run's folder, or None for a file without one.
        epoch: of the checkpoint, or None.
        sha256: of the weights file.
    """

    weights: Path
    run: Path | None
    epoch: int | None
    sha256: str

    @property
    def record(self) -> dict[str, Any]:
        """run.json, or nothing."""
        return (read_json(self.run / "run.json") or {}) if self.run else {}

    @property
    def val_top1(self) -> float | None:
        """The validation accuracy on record for this epoch, percent."""
        rows = read_metrics(self.run) if self.run else []
        return next((row.get("val_top1") for row in rows if row["epoch"] == self.epoch), None)


def locate(path: Path, which: str = "best") -> Source:
    """The weights behind a run's folder, a checkpoint's folder or a .safetensors file.

    Args:
        which: `best` on validation or `last`, where `path` is a run.

    Raises:
        DataError: nothing of the kind is there, it is damaged, or its record speaks of other weights.
    """
    if path.suffix == ".safetensors" and path.is_file():
        if (path.parent / "manifest.json").exists():
            return locate(path.parent)
        return Source(path, None, None, file_digest(path))
    if (path / "manifest.json").exists():
        return _from_checkpoint(Checkpoint(path))
    result = read_json(path / "result.json")
    if result is None or "best_epoch" not in result:
        stages = [stage.name for stage in (path / "teacher", path / "distilled") if (stage / "run.json").exists()]
        hint = f"; it is a comparison, name one of its runs: {path / stages[0]}" if stages else ""
        raise DataError(f"{path} is not a completed run, a checkpoint or a .safetensors file{hint}")
    epoch = result["best_epoch"] if which == "best" else result["epochs"]
    source = _from_checkpoint(Checkpoint(path / "checkpoints" / f"epoch-{epoch:04d}"))
    recorded = result["weights_sha256"][which]
    if source.sha256 != recorded:
        raise DataError(
            f"{source.weights} is not what its record says: result.json has SHA-256 {recorded[:12]}…, "
            f"the file {source.sha256[:12]}…. Somebody replaced one of them; train it again."
        )
    return source


def recorded_result(path: Path) -> dict[str, Any] | None:
    """The result on record of the run that a checkpoint belongs to."""
    source = locate(path)
    return read_json(source.run / "result.json") if source.run else None


def load_weights(network: nn.Module, source: Source) -> None:
    """Puts a source's weights into a network.

    Raises:
        DataError: they belong to another architecture.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        load_state(network, load_file(source.weights))
    except (RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()
        raise DataError(
            f"{source.weights} does not fit this network: {' '.join(line.strip() for line in reason[:2])}"
        ) from error


def find_teacher(outputs: Path, options: Mapping[str, Any], data: Data, arguments: Sequence[str]) -> Path:
    """The newest completed teacher run in `outputs` with the same data and the same network.

    Args:
        arguments: of the command that asks, to name the command that would make such a teacher.

    Raises:
        ConfigError: there is none; the message names the command that makes one.
    """
    for path in find_runs(outputs):
        record = read_json(path / "run.json") or {}
        if record.get("stage") == "teacher" and record.get("status") == "completed" and _fits(record, options, data):
            return path
    about_students = ("loss", "student", "baseline_trainer", "distill_trainer", "hydra")
    kept = [word for word in arguments if not override_key(word).startswith(about_students)]
    command = " ".join(["kd train-teacher", *map(shlex.quote, kept)])
    raise ConfigError(
        f"there is no completed teacher {_brief(options)} on {data.name} in {outputs}; train one:\n\n    {command}\n\n"
        "or name one: teacher.checkpoint=<run folder or .safetensors file>"
    )


def load_teacher(
    checkpoint: Path, options: Mapping[str, Any], data: Data, *, batch_size: int, device: torch.device
) -> tuple[nn.Module, dict[str, Any]]:
    """A frozen teacher in eval mode, measured again on the validation images, and facts for the student's record.

    Raises:
        ConfigError: the run trained another network than `options` describe.
        DataError: damaged, not what its record says, or for other classes.
    """
    source = locate(checkpoint)
    _check_record(source, options, data)
    network = MODELS.build(options, where="teacher", **model_shape(data))
    load_weights(network, source)
    network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
    facts = {
        "source": str(checkpoint.resolve()),
        "weights": str(source.weights),
        "sha256": source.sha256,
        "run": str(source.run) if source.run else None,
    }
    return network, facts | _measure(network, source, data, batch_size, device)


def model_shape(data: Data) -> dict[str, int]:
    """What a network must know of the data: K classes, C channels, H = W pixels."""
    channels, height, _ = data.spec.image_shape
    return {"num_classes": data.spec.num_classes, "in_channels": channels, "image_size": height}


def _from_checkpoint(checkpoint: Checkpoint) -> Source:
    folder = checkpoint.path.resolve().parent.parent
    run = folder if (folder / "run.json").exists() else None
    return Source(checkpoint.path / "model.safetensors", run, checkpoint.plain.get("epoch"), checkpoint.model_digest)


def _fits(record: Mapping[str, Any], options: Mapping[str, Any], data: Data) -> bool:
    facts = record.get("data", {})
    same_data = facts.get("fingerprint") == data.fingerprint and _normalisation(facts) == _normalisation(_facts(data))
    return same_data and record.get("model") == dict(options)


def _facts(data: Data) -> dict[str, Any]:
    return {"preprocessing": data.preprocessing}


def _normalisation(facts: Mapping[str, Any]) -> Any:
    preprocessing = facts.get("preprocessing", {})
    return [list(preprocessing.get(key, [])) for key in ("mean", "std")]


def _check_record(source: Source, options: Mapping[str, Any], data: Data) -> None:
    if source.run is None:
        console.notice(f"{source.weights} has no run.json beside it: its classes and accuracy cannot be checked")
        return
    record = source.record
    model = record.get("model", {})
    if model != dict(options):
        raise ConfigError(
            f"teacher.checkpoint: {source.run} trained {_brief(model)}, but teacher is {_brief(options)}; "
            f"type teacher={model.get('name')} with the options of that run (kd show {shlex.quote(str(source.run))})"
        )
    classes = tuple(record.get("data", {}).get("classes", ()))
    if classes != data.spec.class_names:
        raise DataError(
            f"teacher.checkpoint: {source.run} knows {len(classes)} classes ({_names(classes)}), the data have "
            f"{data.spec.num_classes} ({_names(data.spec.class_names)}); train a teacher on these data"
        )


def _measure(network: nn.Module, source: Source, data: Data, batch_size: int, device: torch.device) -> dict[str, Any]:
    if not data.size("val"):
        console.notice("dataset.val_fraction is 0: the teacher's accuracy is not measured again")
        return {"val_top1": None}
    top1 = evaluate(network, data, "val", batch_size=batch_size, device=device)["top1"]
    known = source.val_top1
    same_images = source.record.get("data", {}).get("fingerprint") == data.fingerprint
    if source.run and not same_images:
        console.notice("the teacher was trained on another data set or split: it may have seen these validation images")
    slack = max(_TOLERANCE, 200 / data.size("val"))
    if known is not None and same_images and abs(top1 - known) > slack:
        raise DataError(
            f"teacher.checkpoint: {source.weights} has {top1:.2f} % on the validation images, its record says "
            f"{known:.2f} %; "
            f"it was trained with {source.record.get('data', {}).get('preprocessing')}, now it is {data.preprocessing}"
        )
    return {"val_top1": top1}


def _brief(options: Mapping[str, Any]) -> str:
    rest = ", ".join(f"{key}={value}" for key, value in options.items() if key != "name")
    return f"{options.get('name')}({rest})"


def _names(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:3]) + (", …" if len(classes) > 3 else "")
