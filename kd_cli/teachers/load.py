"""From a teacher's run to a frozen teacher: found, checked against its record, and measured again."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kd_cli import console
from kd_cli.config.overrides import override_key
from kd_cli.data.base import Data
from kd_cli.errors import ConfigError, DataError, listed
from kd_cli.metrics.evaluate import evaluate
from kd_cli.metrics.scores import top_k
from kd_cli.models import AS_DATA, VIEW
from kd_cli.models.base import MODELS, build_model, own_options, view_options
from kd_cli.out_of_memory import needing_memory
from kd_cli.registry import OWN
from kd_cli.runs.folder import find_records
from kd_cli.saved.weights import (
    Source,
    brief,
    check_nameable,
    graft_of,
    load_weights,
    locate,
    rebuild,
    seen_by,
    specialty,
)
from kd_cli.storage.files import file_digest
from kd_cli.storage.tensors import network_digest
from kd_cli.teachers.cache import answers_to, make_entry

if TYPE_CHECKING:
    from kd_cli.teachers.ensemble import Weights

# Another number of threads or another processor may move a few borderline images; wrong weights or a wrong
# normalisation move far more.
_TOLERANCE = 0.5  # percentage points
_LEARNED = VIEW[:-1]  # what a wrong accuracy may come from, and a record says


@dataclass(frozen=True)
class Known:
    """A teacher that is trained already.

    Args:
        path: a run's folder, a checkpoint's folder or a file of weights; None: `model` makes it with its weights.
        model: the network's options; None: those of its record.
        view: how it saw its training images, where the user says so; it wins over `model` and the record.
    """

    path: Path | None
    model: Mapping[str, Any] | None
    view: Mapping[str, Any] = field(default_factory=dict)


def find_teacher(outputs: Path, options: Mapping[str, Any], data: Data, arguments: Sequence[str]) -> Path:
    """The newest completed teacher run in `outputs` with the same data and the same network.

    Args:
        arguments: of the command that asks, to name the command that would make such a teacher.

    Raises:
        ConfigError: there is none; the message names the command that makes one.
    """
    for path, record in find_records(outputs):
        if record.get("stage") == "teacher" and record.get("status") == "completed" and _fits(record, options, data):
            return path
    about_students = ("loss", "student", "baseline_trainer", "distill_trainer", "hydra")
    kept = [word for word in arguments if not override_key(word).startswith(about_students)]
    command = " ".join(["kd train-teacher", *map(shlex.quote, kept)])
    raise ConfigError(
        f"there is no completed teacher {brief(options)} on {data.name} in {outputs}; train one:\n\n    {command}\n\n"
        "or name one: teacher.checkpoint=DIR, a run's folder or a file of weights"
    )


@dataclass
class Teacher:
    """A frozen teacher in eval mode, measured on the validation images.

    Args:
        network: images [B, C, H, W] → logits [B, K].
        facts: about it, for the student's record.
    """

    network: nn.Module
    facts: dict[str, Any]

    @cached_property
    def digest(self) -> str:
        """Of its structure and weights, as the cache knows it."""
        return network_digest(self.network)


def load_teachers(
    teachers: Sequence[Known], data: Data, *, weights: Weights, batch_size: int, device: torch.device, limit: int = 0
) -> Teacher:
    """One frozen teacher out of one or several.

    Args:
        weights: of the members of an ensemble.
        limit: bytes that the cache of teachers' answers may take; 0: there is none.

    Raises:
        ConfigError: weights that do not fit; otherwise as `load_teacher`.
        DataError: as `load_teacher`.
    """
    loaded = [load_teacher(known, data, batch_size=batch_size, device=device, limit=limit) for known in teachers]
    records = [teacher.facts for teacher in loaded]
    facts: dict[str, Any] = {
        "sources": [fact["source"] for fact in records],
        "sha256": [fact["sha256"] for fact in records],
    }
    facts |= {"runs": [fact["run"] for fact in records], "models": [fact["model"] for fact in records]}
    facts |= {"grafts": [fact["graft"] for fact in records], "weights": weights}
    facts |= {"ready": True} if any(known.path is None for known in teachers) else {}
    if len(loaded) == 1 and not records[0]["specialist"]:
        loaded[0].facts = facts | {"val_top1": records[0]["val_top1"]}
        return loaded[0]
    from kd_cli.teachers.ensemble import join_teachers

    pairs = [(teacher.network, teacher.facts["specialist"]) for teacher in loaded]
    network = join_teachers(pairs, weights, data.spec.num_classes).to(device).eval().requires_grad_(False)
    val = evaluate(network, data, "val", batch_size=batch_size, device=device)["top1"] if data.size("val") else None
    return Teacher(network, facts | {"val_top1": val})


def load_teacher(known: Known, data: Data, *, batch_size: int, device: torch.device, limit: int = 0) -> Teacher:
    """A network that was trained to be a teacher, measured again.

    Raises:
        ConfigError: the run trained another network than `known` describes.
        DataError: damaged, not what its record says, or for other classes.
    """
    source, options, network = _opened(known, data)
    facts = _facts(source, options, data)
    if source is not None:
        data = seen_by(source, data)
    network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
    teacher = Teacher(network, facts)
    if known.path is not None:
        teacher.facts["source"] = str(known.path.absolute())
    else:
        file = options.get("file") or options.get("pretrained")
        teacher.facts["sha256"] = file_digest(Path(file).expanduser()) if file else f"blake2b:{teacher.digest}"
    seen = {**view_options(options), **known.view}
    remedy = f"Type trainer.eval_batch_size={max(1, batch_size // 4)}: so many images are asked about at a time."
    with needing_memory(f"a teacher that is asked about {batch_size} images", remedy):
        teacher.facts["val_top1"] = _measure(teacher, source, seen, data, batch_size, device, limit)
    return teacher


def _opened(known: Known, data: Data) -> tuple[Source | None, Mapping[str, Any], nn.Module]:
    """Where its weights are, the network's options, and the network with its weights."""
    if known.path is None:
        assert known.model is not None
        return None, known.model, build_model(known.model, data.spec, where="teacher")
    source = locate(known.path)
    recorded = source.record.get("model", {})
    if known.model is None:
        check_nameable(source, recorded)
    options, trained = own_options(recorded if known.model is None else known.model), own_options(recorded)
    if not options.get("pretrained") and options | {"pretrained": trained.get("pretrained")} == trained:
        options = trained  # what it began with is in no weight any more, and need not be typed
    seen = {**view_options((recorded if source.run else known.model) or {}), **known.view}
    data = seen_by(source, data)
    _check_record(source, options, seen, data)
    options |= {key: value for key, value in seen.items() if value != AS_DATA}
    network = rebuild(source, options, data.spec, where="teacher")
    load_weights(network, source)
    return source, options, network


def _facts(source: Source | None, options: Mapping[str, Any], data: Data) -> dict[str, Any]:
    return {
        "source": brief(options),
        "sha256": source.sha256 if source else None,
        "run": str(source.run) if source and source.run else None,
        "model": dict(options),
        "graft": graft_of(source.record) if source else {},
        "specialist": specialty(source, data.spec.class_names) if source else None,
    }


def _measure(
    teacher: Teacher,
    source: Source | None,
    seen: Mapping[str, Any],
    data: Data,
    batch_size: int,
    device: torch.device,
    limit: int,
) -> float | None:
    """Its accuracy on the validation images, percent; None where there are none."""
    if not data.size("val"):
        console.notice("dataset.val_fraction is 0: the teacher's accuracy is not measured again")
        return None
    if limit:
        digest, model = teacher.digest, teacher.facts["model"]
        entry = make_entry(digest, model, data, limit=limit, batch_size=batch_size, device=device)
        logits = answers_to(teacher.network, data, "val", entry, batch_size=batch_size, device=device)
        top1 = top_k(logits, data.labels("val"), 1)
    else:
        top1 = evaluate(teacher.network, data, "val", batch_size=batch_size, device=device)["top1"]
    _check_accuracy(top1, source, seen, data)
    return top1


def _fits(record: Mapping[str, Any], options: Mapping[str, Any], data: Data) -> bool:
    facts = record.get("data", {})
    same_view = _normalisation(facts.get("preprocessing", {})) == _normalisation(data.preprocessing)
    return facts.get("fingerprint") == data.fingerprint and same_view and record.get("model") == dict(options)


def _normalisation(preprocessing: Mapping[str, Any]) -> Any:
    return [list(preprocessing.get(key, [])) for key in ("mean", "std")]


def _check_record(source: Source, options: Mapping[str, Any], seen: Mapping[str, Any], data: Data) -> None:
    if source.run is None:
        console.notice(f"{source.weights} has no run.json beside it: its classes and accuracy cannot be checked")
        return
    record = source.record
    model = own_options(record.get("model", {}))
    if model != options:
        if str(model.get("name")).startswith(OWN):
            MODELS.component(model["name"], where="teacher.checkpoint")  # says what can be done with it
        raise ConfigError(
            f"teacher.checkpoint: {source.run} trained {brief(model)}, but teacher is {brief(options)}; "
            f"type teacher={model.get('name')} with the options of that run (kd show {shlex.quote(str(source.run))})"
        )
    facts = record.get("data", {})
    _check_view(source, facts.get("preprocessing", {}), seen, data)
    classes = tuple(facts.get("classes", ()))
    if classes != data.spec.class_names:
        order = " in another order" if sorted(classes) == sorted(data.spec.class_names) else ""
        raise DataError(
            f"teacher.checkpoint: {source.run} knows {len(classes)} classes ({listed(classes)}), the data have "
            f"{data.spec.num_classes}{order} ({listed(data.spec.class_names)}); train a teacher on these data"
        )


def _check_view(source: Source, learned: Mapping[str, Any], seen: Mapping[str, Any], data: Data) -> None:
    """Refuses images of another size or normalisation than on record; what the network shows itself is not asked."""
    asked = [key for key in _LEARNED if key in learned and key not in seen]
    other = [key for key in asked if learned[key] != data.preprocessing[key]]
    other = [key for key in asked if key in other or (key != "image_size" and {"mean", "std"} & set(other))]
    if other:
        from kd_cli.teachers.view import difference

        raise DataError(
            f"teacher.checkpoint: {source.run} was trained with {difference(learned, data.preprocessing, other)}, or "
            "train a teacher on these data"
        )


def _check_accuracy(top1: float, source: Source | None, seen: Mapping[str, Any], data: Data) -> None:
    known, run = (source.val_top1, source.run) if source else (None, None)
    same_images = source is not None and source.record.get("data", {}).get("fingerprint") == data.fingerprint
    if run and not same_images:
        console.notice("the teacher was trained on another data set or split: it may have seen these validation images")
    slack = max(_TOLERANCE, 200 / data.size("val"))
    if known is not None and abs(top1 - known) <= slack:
        return
    who = f"teacher.checkpoint: {source.weights}" if source else "teacher.ready: the teacher as it stands"
    if known is not None and same_images:
        from kd_cli.teachers.view import contradicted

        recorded = source.record["model"] if source else {}
        raise DataError(
            f"{who} has {top1:.2f} % on the validation images, its record says {known:.2f} %: these are other weights, "
            f"or another run's record; train it again{contradicted(recorded, seen)}"
        )
    share, guess = _guessing(data)
    guessed = top1 <= guess < 100  # beyond, the images are too few to tell
    told = f"{who} has {top1:.2f} % on the validation images, and guessing may reach {guess:.2f} %: "
    doubtful = not seen.keys() >= set(_LEARNED) and top1 < (share + 100) / 2
    if run is None and (guessed or doubtful):
        from kd_cli.teachers.view import unsaid

        raise DataError(told + unsaid(seen, data))
    if guessed:
        raise DataError(f"{told}its weights are random, or {listed(data.spec.class_names)} is not its order of classes")


def _guessing(data: Data) -> tuple[float, float]:
    """The largest class's share of the validation images and what guessing may reach (3 standard errors more)."""
    labels = data.labels("val")
    share = float(labels.bincount().max()) / len(labels)
    return 100 * share, 100 * (share + 3 * math.sqrt(share * (1 - share) / len(labels)))
