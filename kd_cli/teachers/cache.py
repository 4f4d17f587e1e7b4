"""What a frozen teacher says, asked once and kept on disk.

An answer is used only if it is, bit for bit, what the teacher says of that image in any batch of the same size, or what
is kept of that: a sample is compared whenever files are made or read. N training images, B per batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from mmap import mmap
from typing import Any

import torch
from torch import Tensor, nn

from kd_cli import console
from kd_cli.data.base import Data, Part
from kd_cli.data.sampling import generator, permutation
from kd_cli.machine import ranks
from kd_cli.metrics.evaluate import evaluating, predict
from kd_cli.storage.cache import Shards, make_room, read_cached, write_cached
from kd_cli.teachers.outputs import EXACT, LOGITS, WHOLE, Entry, Kept, Layout, Mapped, Resident, make_layout
from kd_cli.turns import once
from kd_cli.types import Batch, Outputs

log = logging.getLogger("kd")

_FORMAT = 3  # raise it when what is kept changes
_RESIDENT = 10**9  # bytes that are copied into the memory of a processor; more is read from the files' pages
_SHARE = 4  # of the free memory of an accelerator that answers take


class CachedTeacher:
    """Answers for a frozen teacher, which is asked once about each image, or once per view where they are augmented:
    then only about those that the epoch uses.

    Args:
        ask: images [B, C, H, W] → what the teacher says of them.
        data: the training images.
        entry: where the answers are kept.
        seed: of the augmentation.
        batch_size: B.
        device: of the images.
        used: of how many rows an epoch makes its batches: of the first images in its order; None: of all.
        fixed: answers stay where they are on the device, whatever the epoch, so that a step can be recorded.
        resident: bytes that may be on the device; what is larger is read batch by batch. None: as much as is sensible.
        live: it is asked at every step, and what would be kept of its answers is used.
        live_from: the epoch from which it was, before the run was interrupted: it stays so.
        tell: is given that epoch when answers turn out not to be usable.
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
        resident: int | None = None,
        live: bool = False,
        live_from: int | None = None,
        tell: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._used = used if data.augmented else None  # the same answers in all epochs otherwise
        self._place: Tensor | None = None  # [N], the row of each image, on the device, where not all have one
        self._fixed, self._version, self._resident = fixed, 0, resident
        self._ask, self._data, self._entry = ask, data, entry
        self._seed, self._batch_size, self._device = seed, batch_size, device
        self._views = partial(data.views, seed=seed, device=device, batch_size=batch_size)
        self._classifier: nn.Module | None = None
        self._layout: Layout | None = None
        self._names: list[str] = []
        self._rows = data.spec.num_train  # of a view
        self._answers: Resident | Mapped | None = None
        self._live, self._announced = live, False
        self._live_from, self._tell = live_from, tell

    def begin(self, epoch: int) -> None:
        """Finds the answers for an epoch, or asks for them."""
        views = self._data.views_in(epoch) if self._data.augmented else (0,)
        names = [self._name(view, epoch) for view in views]
        if not self._live and self._live_from is not None and epoch >= self._live_from:
            self._live = True
            self._keep(None, names)
        if self._live or names == self._names:
            return
        self._names = []
        if not self._fixed:
            self._answers = None  # the last epoch's make room for this one's
        ids = self._ids(epoch, len(views))
        maps = []
        for view, name in zip(views, names, strict=True):
            found = None if self._live else self._find(name, ids, view)
            maps += [] if found is None else [found]
        self._live = self._live if (others := ranks()) is None else others.any(self._live)
        if self._live:
            self._tell(epoch)
        self._keep(None if self._live else Mapped(maps, self._device), names)
        self._names = names

    def _name(self, view: int, epoch: int) -> str:
        part = "" if self._used is None else f"-first-{self._used}-of-epoch-{epoch:04d}"
        return f"seed-{self._seed}-view-{view:04d}{part}" if self._data.augmented else WHOLE

    def __call__(self, batch: Batch) -> Outputs:
        """What the teacher says of a batch of training images."""
        batch.at(self._arranged)
        if self._answers is None:
            said = batch.shown(self._ask)
            return self._laid_out(said).through(said) if self._entry.kept else said
        assert self._layout is not None
        row = self._row(batch.ids)
        row = row if batch.repeat is None or not self._data.augmented else row + batch.repeat * self._rows
        logits, features = self._layout.decode(self._layout.unpack(self._answers.take(row)))
        return Outputs(logits, features, self._classifier)

    def _arranged(self, epoch: int) -> int:
        """Another number where answers are not where they were, or the teacher is to be asked."""
        self.begin(epoch)
        return self._version

    def _keep(self, found: Mapped | None, names: Sequence[str]) -> None:
        """From now on these are the answers: where the last ones are, if they may stay there."""
        held = self._answers
        if found is not None and self._fits(found):
            same = isinstance(held, Resident) and held.values.shape == found.shape
            if self._fixed and isinstance(held, Resident) and same and held.values.dtype == found.dtype:
                found.copy_to(held.values)
                return
            self._answers = self._on_device(found, names)
        else:
            self._answers = found
        self._version += 1

    def _fits(self, found: Mapped) -> bool:
        most = self._resident
        if most is None:
            cuda = self._device.type == "cuda"
            most = torch.cuda.mem_get_info(self._device)[0] // _SHARE if cuda else _RESIDENT
        own = self._answers.values.nbytes if isinstance(self._answers, Resident) else 0
        return found.nbytes <= max(most, own)

    def _on_device(self, found: Mapped, names: Sequence[str]) -> Resident:
        """Those of all epochs are there once for all trainings that share this process."""

        def copied() -> Resident:
            values = torch.empty(found.shape, dtype=found.dtype, device=self._device)
            found.copy_to(values)
            return Resident(values)

        path = self._entry.path / names[0]
        return copied() if self._data.augmented else once(("answers", path, self._device), copied)

    def _find(self, name: str, ids: Tensor, view: int) -> list[Tensor] | None:
        """The rows of a view, in shards; None if the teacher is to be asked at every step."""
        some, said = self._sample(ids, view)
        layout = self._laid_out(said)
        expected = {column: values.cpu() for column, values in layout.encode(said).items()}
        shards = self._entry.shards(name, layout, len(ids), self._batch_size)
        fresh, found = not shards.folder.exists(), shards.all()
        while self._fill(shards, found, ids, view):
            rows = [layout.mapped(found[number]) for number in range(shards.count)]
            taken = layout.unpack(Mapped([rows], torch.device("cpu")).take(self._row(some)))
            if all(torch.equal(taken[column], values) for column, values in expected.items()):
                return rows
            shards.remove()
            if fresh:
                self._stop("its answer to an image depends on the others in the batch")
                break
            log.warning("%s is not what the teacher says: it is asked again", shards.folder)
            fresh, found = True, {}
        return None

    def _fill(self, shards: Shards, found: dict[int, mmap], ids: Tensor, view: int) -> bool:
        """Asks for the shards that are not found; whether all of them are there then."""
        self._entry.sign()
        if len(found) == shards.count:
            return True
        from kd_cli.teachers.ask import complete

        reason = complete(self._entry, shards, found, partial(self._asked, ids, view))
        self._entry.sign()  # the cache may have been cleared meanwhile
        if reason:
            self._stop(reason)
        return not reason

    def _asked(self, ids: Tensor, view: int, rows: range) -> Iterator[Tensor]:
        """The rows of some images, batch by batch: nothing else is held of them."""
        assert self._layout is not None
        if not self._announced:
            anew = ", as each view shows them" if self._data.augmented else ""
            number = f"all {self._data.spec.num_train:,}" if self._used is None else f"{self._rows:,}"
            console.say(f"teacher    is asked about {number} training images{anew}")
        self._announced = True
        wanted = ids[rows.start : rows.stop].split(self._batch_size)
        for batch in self._views(wanted, view=view):
            with torch.inference_mode():
                packed = self._layout.pack(self._layout.encode(self._ask(batch.images)))
            yield packed

    def _ids(self, epoch: int, views: int) -> Tensor:
        """Of the images that the epoch uses, rising; each has the row of its place among them."""
        size = self._data.spec.num_train
        if self._used is None:
            return torch.arange(size)
        ids = permutation(size, self._seed, epoch)[: -(-self._used // views)].sort().values
        place = torch.full((size,), -1)
        place[ids] = torch.arange(len(ids))
        self._place = place.to(self._device) if self._place is None else self._place.copy_(place)
        self._rows = len(ids)
        return ids

    def _laid_out(self, said: Outputs) -> Layout:
        self._layout = self._layout or make_layout(said, self._entry.kept)
        return self._layout

    def costs(self) -> Mapping[str, Any]:
        """What is lost of what the teacher says, on some images of the first epoch: see `top_k.costs`."""
        from kd_cli.teachers.top_k import costs

        _, said = self._sample(torch.arange(self._data.spec.num_train), self._data.views_in(0)[0])
        return costs(said, self._laid_out(said), self._entry.kept)

    def _row(self, ids: Tensor) -> Tensor:
        return ids if self._place is None else self._place[ids.to(self._place.device)]

    def _sample(self, ids: Tensor, view: int) -> tuple[Tensor, Outputs]:
        """Some of these training images, and what the teacher says of them now."""
        random = generator(self._seed, "teacher cache", view)
        some = ids[torch.randperm(len(ids), generator=random)[: self._batch_size]]
        (shown,) = self._views([some], view=view)
        said = self._ask(shown.images)
        self._classifier = said.classifier
        return shown.ids, said

    def _stop(self, reason: str) -> None:
        self._live = True
        log.warning("the teacher is asked at every step: %s", reason)


def answers_to(
    network: nn.Module, data: Data, part: Part, entry: Entry, *, batch_size: int, device: torch.device
) -> Tensor:
    """What a teacher says of a part, not augmented, [N, K] on the CPU; the first batch is compared with it now."""
    with evaluating(network):
        said = network(next(data.eval_batches(part, batch_size=batch_size, device=device)).images).float().cpu()
    with entry.locked():
        kept = (read_cached(entry.path / f"{part}.safetensors") or ({},))[0].get(LOGITS)
        if kept is not None and len(kept) == data.size(part) and torch.equal(kept[: len(said)], said):
            return kept
        logits, _ = predict(network, data, part, batch_size=batch_size, device=device)
        make_room(entry.path, entry.limit - logits.nbytes)
        write_cached(entry.path / f"{part}.safetensors", {LOGITS: logits}, {})
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
    kept: Kept = EXACT,
) -> Entry:
    """Where the answers of a frozen network to images of these data are.

    Args:
        digest: of the network, as `network_digest` gives it.
        model: its options, to be shown.
        limit: bytes.
        batch_size: of the forward passes.
        taps: features beside the logits.
        kept: what is kept of an answer.
    """
    facts = {
        "format": _FORMAT,
        "teacher": {**model, "weights": digest},
        "taps": list(taps),
        "data": {"name": data.name, "fingerprint": data.fingerprint, "preprocessing": data.preprocessing},
        "batch_size": batch_size,
        "precision": precision,
        "kept": vars(kept),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(device),
    }
    return Entry(facts, limit, kept)


def _processor(device: torch.device) -> str:
    return torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else device.type
