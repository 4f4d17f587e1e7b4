"""What a frozen teacher says, asked once and kept on disk.

An answer is used only if it is, bit for bit, what the teacher says of that image in any batch of the same size: a
sample is compared whenever a file is made or read. N training images, B per batch.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kd_cli import console
from kd_cli.data.base import Data
from kd_cli.data.sampling import generator, permutation
from kd_cli.metrics.evaluate import evaluating, predict
from kd_cli.storage.cache import folder_size
from kd_cli.storage.tensors import digest_tensors
from kd_cli.teachers.outputs import Answers, Entry, Rows
from kd_cli.turns import once
from kd_cli.types import Batch, Outputs

log = logging.getLogger("kd")

_LOGITS = "logits"
_FORMAT = 3  # raise it when what is kept changes


class CachedTeacher:
    """Answers for a frozen teacher, which is asked once about each image, or once per epoch where they are augmented:
    then only about those that the epoch uses.

    Args:
        ask: images [B, C, H, W] → what the teacher says of them.
        data: the training images.
        entry: where the answers are kept.
        seed: of the augmentation.
        batch_size: B.
        device: of the images.
        used: of how many images, the first in its order, an epoch makes its batches; None: of all.
        fixed: answers stay where they are on the device, whatever the epoch, so that a step can be recorded.
    """

    def __init__(
        self,
        ask: Callable[[Tensor], Outputs],
        data: Data,
        entry: Entry,
        *,
        seed: int,
        batch_size: int,
        device: torch.device,
        used: int | None = None,
        fixed: bool = False,
    ) -> None:
        self._used = used if data.augmented else None  # one file for all epochs otherwise
        self._place: Tensor | None = None  # [N], the row of each image, on the device, where not all have one
        self._fixed, self._version = fixed, 0
        self._ask, self._data, self._entry = ask, data, entry
        self._seed, self._batch_size, self._device = seed, batch_size, device
        self._classifier: nn.Module | None = None
        self._name = ""
        self._answers: Answers | None = None
        self._live = False
        self._announced = False

    def begin(self, epoch: int) -> None:
        """Finds the answers for an epoch, or asks for them."""
        (view,) = self._data.views_in(epoch)
        part = "" if self._used is None else f"-first-{self._used}-of-epoch-{epoch:04d}"
        augmented = f"seed-{self._seed}-view-{view:04d}{part}.safetensors"
        name = augmented if self._data.augmented else "train.safetensors"
        if not self._live and name != self._name:
            self._name = ""
            if not self._fixed:
                self._answers = None  # the last epoch's make room for this one's
            self._keep(self._find(name, epoch))
            self._name = name

    def __call__(self, batch: Batch) -> Outputs:
        """What the teacher says of a batch of training images."""
        batch.at(self._arranged)
        if self._answers is None:
            return self._ask(batch.images)
        taken = {tap: rows.take(self._rows(batch.ids)) for tap, rows in self._answers.items()}
        return Outputs(taken.pop(_LOGITS), taken, self._classifier)

    def _arranged(self, epoch: int) -> int:
        """Another number where answers are not where they were, or the teacher is to be asked."""
        self.begin(epoch)
        return self._version

    def _keep(self, answers: Answers | None) -> None:
        held = self._answers
        if answers is None or held is None or not _alike(held, answers):
            self._answers, self._version = answers, self._version + 1
            return
        for tap, rows in answers.items():
            held[tap].values.copy_(rows.values)

    def _find(self, name: str, epoch: int) -> Answers | None:
        """The answers for an epoch; None if the teacher is to be asked at every step."""
        ids = self._ids(epoch)
        sample, said = self._sample(ids, epoch)
        with self._entry.locked():
            answers = self._entry.read(name, len(ids))
            if answers is not None and _agree(answers, self._rows(sample), said):
                if self._fixed and self._answers is not None and _alike(self._answers, answers):
                    return answers  # they are copied to where the last epoch's are
                answers = self._on_device(name, answers)
                if _agree(answers, self._rows(sample), said):
                    return answers
            if answers is not None:
                log.warning("%s is not what the teacher says: it is asked again", self._entry.path / name)
            return self._ask_all(name, ids, epoch, sample, said)

    def _on_device(self, name: str, answers: Answers) -> Answers:
        """Those of all epochs are there once for all trainings that share this process."""

        def copied() -> Answers:
            return Answers({tap: Rows(rows.values.to(self._device), rows.order) for tap, rows in answers.items()})

        path = self._entry.path / name
        return copied() if self._data.augmented else once(("answers", path, self._device), copied)

    def _ids(self, epoch: int) -> Tensor:
        """Of the images that the epoch uses, rising; each has the row of its place among them."""
        size = self._data.spec.num_train
        if self._used is None:
            return torch.arange(size)
        ids = permutation(size, self._seed, epoch)[: self._used].sort().values
        place = torch.full((size,), -1)
        place[ids] = torch.arange(len(ids))
        self._place = place.to(self._device) if self._place is None else self._place.copy_(place)
        return ids

    def _rows(self, ids: Tensor) -> Tensor:
        return ids if self._place is None else self._place[ids.to(self._place.device)]

    def _sample(self, ids: Tensor, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Some of these training images, and what the teacher says of them now."""
        random = generator(self._seed, "teacher cache", epoch)
        some = ids[torch.randperm(len(ids), generator=random)[: self._batch_size]]
        (view,) = self._data.views_in(epoch)
        (shown,) = self._data.views(
            [some], seed=self._seed, view=view, device=self._device, batch_size=self._batch_size
        )
        said = self._ask(shown.images)
        self._classifier = said.classifier
        return shown.ids, _named(said)

    def _ask_all(
        self, name: str, ids: Tensor, epoch: int, sample: Tensor, said: Mapping[str, Tensor]
    ) -> Answers | None:
        size = len(ids)
        needed = size * sum(output[0].numel() * output.element_size() for output in said.values())
        if folder_size(self._entry.path) + needed > self._entry.limit:
            kept, limit = f"{needed / 1e9:.3g} GB", f"teacher_cache_gb={self._entry.limit / 1e9:g}"
            per = " for each epoch" if self._data.augmented else ""
            self._stop(f"its answers take {kept}{per}, more than {limit} leaves; a larger number keeps them")
            return None
        self._announce()
        answers = Answers({tap: Rows.like(output, size) for tap, output in said.items()})
        (view,) = self._data.views_in(epoch)
        batches = self._data.views(
            ids.split(self._batch_size), seed=self._seed, view=view, device=self._device, batch_size=self._batch_size
        )
        progress = console.Counted("teacher    was asked about", size)
        with torch.inference_mode():
            for batch in batches:
                for tap, output in _named(self._ask(batch.images)).items():
                    answers[tap].put(self._rows(batch.ids).to(output.device), output)
                progress.add(len(batch.ids))
        if not _agree(answers, self._rows(sample), said):
            self._stop("its answer to an image depends on the others in the batch")
            return None
        self._entry.write(name, answers)
        return answers

    def _announce(self) -> None:
        if not self._announced:
            anew = ", as each epoch augments them" if self._data.augmented else ""
            number = f"all {self._data.spec.num_train:,}" if self._used is None else f"{self._used:,}"
            console.say(f"teacher    is asked about {number} training images{anew}")
        self._announced = True

    def _stop(self, reason: str) -> None:
        self._live = True
        log.warning("the teacher is asked at every step: %s", reason)


def validation_logits(network: nn.Module, data: Data, entry: Entry, *, batch_size: int, device: torch.device) -> Tensor:
    """What a teacher says of the validation images, [N, K] on the CPU; the first batch is compared with it now."""
    name = "val.safetensors"
    first = next(data.eval_batches("val", batch_size=batch_size, device=device))
    with evaluating(network):
        said = network(first.images).float().cpu()
    with entry.locked():
        answers = entry.read(name, data.size("val"))
        if answers is not None and _agree(answers, torch.arange(len(said)), {_LOGITS: said}):
            return answers[_LOGITS].values
        logits, _ = predict(network, data, "val", batch_size=batch_size, device=device)
        entry.write(name, {_LOGITS: Rows(logits, (0, 1))})
    return logits


def make_entry(
    digest: str,
    model: Mapping[str, Any],
    data: Data,
    *,
    limit: int,
    batch_size: int,
    device: torch.device,
    precision: str = "fp32",
    taps: Sequence[str] = (),
) -> Entry:
    """Where the answers of a frozen network to images of these data are.

    Args:
        digest: of the network, as `network_digest` gives it.
        model: its options, to be shown.
        limit: bytes.
        batch_size: of the forward passes.
        taps: features beside the logits.
    """
    facts = {
        "format": _FORMAT,
        "teacher": {**model, "weights": digest},
        "taps": list(taps),
        "data": {"name": data.name, "fingerprint": data.fingerprint, "preprocessing": data.preprocessing},
        "batch_size": batch_size,
        "precision": precision,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(device),
    }
    return Entry(facts, limit)


def _processor(device: torch.device) -> str:
    return torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else device.type


def network_digest(network: nn.Module) -> str:
    """BLAKE2b of a network's structure, parameters, buffers and how it is shown its images, hex."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    views = [f" {each.seen_as}" for each in network.modules() if hasattr(each, "seen_as")]
    said = f"{network} {digest_tensors(tensors)}{''.join(views)}"
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()


def _alike(one: Answers, other: Answers) -> bool:
    """Whether one's answers fit where the other's are."""
    shapes = (
        {tap: (rows.order, rows.values.shape, rows.values.dtype) for tap, rows in each.items()} for each in (one, other)
    )
    return next(shapes) == next(shapes)


def _named(said: Outputs) -> dict[str, Tensor]:
    return {_LOGITS: said.logits, **said.features}


def _agree(answers: Answers, ids: Tensor, said: Mapping[str, Tensor]) -> bool:
    return answers.keys() == said.keys() and all(
        torch.equal(answers[tap].take(ids).to(output.device), output) for tap, output in said.items()
    )
