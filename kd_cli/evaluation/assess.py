"""How good saved networks are: accuracy, calibration, agreement with their teachers, also under corruptions."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from kd_cli import console
from kd_cli.data import corruptions as corrupt
from kd_cli.data.base import Data, Part
from kd_cli.errors import DataError, KDError
from kd_cli.evaluation.networks import teacher_facts, teacher_of
from kd_cli.metrics.evaluate import predict
from kd_cli.metrics.scores import AGREEMENT, agreement, confusion, judge, only_answer, per_class
from kd_cli.models.base import count_parameters
from kd_cli.saved.network import Saved

Scores = dict[str, Any]
_BATCH = 500  # images per forward pass


class Assessor:
    """Judges saved networks one after the other; what a teacher said is kept for its next student.

    Args:
        part: of each network's data.
        seed: of the corruptions; None: no corruptions.
    """

    def __init__(self, part: Part, device: torch.device, *, seed: int | None = None) -> None:
        self.part: Part = part
        self.device = device
        self.seed = seed
        self._said: dict[tuple[str, ...], Tensor] = {}

    def assess(self, saved: Saved) -> Scores:
        """All that is known of a network: what it is, its scores, and with a seed its scores under corruptions.

        Raises:
            ConfigError: as `Saved`.
            DataError: the data do not fit, have no such part, or the network's answers are not finite.
        """
        data = saved.data(only_test=self.part == "test")
        if not data.size(self.part):
            raise DataError(f"{data.name} has no {self.part} images; type --part test, or dataset.val_fraction=0.1")
        pair = _Pair(saved, data, self.device)
        logits, labels = predict(pair.network, data, self.part, batch_size=_BATCH, device=self.device)
        counts, only = confusion(logits, labels), only_answer(logits, labels, data.spec.class_names)
        if only is not None:
            console.notice(f"{saved.path} takes all {len(labels):,} images for {only!r}: it tells nothing apart")
        row = {
            "run": str(saved.source.run or saved.path),
            "weights": str(saved.source.weights),
            "epoch": saved.source.epoch,
            "stage": saved.source.record.get("stage"),
            "dataset": data.name,
            "part": self.part,
            **self._scores(pair, data, logits, labels),
            "parameters": count_parameters(pair.network),
            "teacher": pair.teacher_names or None,
            "per_class": per_class(counts, data.spec.class_names),
            "confusion": counts.tolist(),
        }
        return row if self.seed is None else row | {"corrupted": self._corrupted(pair, data, self.seed)}

    def _scores(self, pair: _Pair, data: Data, logits: Tensor, labels: Tensor, *view: str) -> Scores:
        """Of one view of the data."""
        try:
            scores = judge(logits, labels)
        except ValueError as error:
            raise DataError(f"{pair.saved.path}: {error}; the network is of no use") from error
        if pair.teacher is None:
            return scores | dict.fromkeys(AGREEMENT)
        key = (pair.taught_by, data.fingerprint, str(data.preprocessing), *view)
        if key not in self._said:
            self._said[key], _ = predict(pair.teacher, data, self.part, batch_size=_BATCH, device=self.device)
        return scores | agreement(logits, self._said[key], labels)

    def _corrupted(self, pair: _Pair, data: Data, seed: int) -> Scores:
        """Top-1 over all corruptions and severities, over the severities of each corruption, and all scores of each."""
        found: dict[str, Scores] = {}
        for name in corrupt.NAMES:
            rows = [self._one_corruption(pair, data, name, severity, seed) for severity in corrupt.SEVERITIES]
            found[name] = {"top1": round(fmean(row["top1"] for row in rows), 2), "severities": rows}
        mean = round(fmean(row["top1"] for each in found.values() for row in each["severities"]), 2)
        return {"seed": seed, "top1": mean, "corruptions": found}

    def _one_corruption(self, pair: _Pair, data: Data, name: str, severity: int, seed: int) -> Scores:
        corrupted = data.seen_through(corrupt.corruption(name, severity, seed))
        logits, labels = predict(pair.network, corrupted, self.part, batch_size=_BATCH, device=self.device)
        return {"severity": severity, **self._scores(pair, corrupted, logits, labels, name, str(severity))}


class _Pair:
    """A saved network and the teacher that its run took, where one is on record and still there."""

    def __init__(self, saved: Saved, data: Data, device: torch.device) -> None:
        self.saved = saved
        self.network = saved.network(device, data.spec)
        facts = teacher_facts(saved)
        self.teacher_names: list[str] = facts.get("sources", [])
        self.taught_by = str([facts.get(key) for key in ("sha256", "models", "weights")])  # all that its answers are of
        self.teacher: nn.Module | None = None
        try:
            typed = "external" in [each.get("name") for each in facts.get("models", ())]  # none from a record
            words = {"overrides": saved.overrides, "config_dirs": saved.config_dirs} if typed else {}
            teacher = teacher_of(saved, device, image_shape=data.spec.image_shape, **words)
            self.teacher = teacher.network if teacher else None
        except KDError as error:
            console.notice(f"{console.short_path(saved.path)}: no agreement with its teacher: {error}")
