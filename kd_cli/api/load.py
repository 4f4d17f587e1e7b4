"""kd.load: a finished network for pictures of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from kd_cli.api.called import alone, called
from kd_cli.api.images import opened
from kd_cli.api.own import own_networks
from kd_cli.api.run import Folder
from kd_cli.errors import ConfigError
from kd_cli.evaluation.networks import Opened
from kd_cli.evaluation.predict import Reader, all_probabilities
from kd_cli.machine import pick_device
from kd_cli.runs.folder import find_records
from kd_cli.saved.network import Saved


@dataclass(frozen=True)
class Network:
    """A network that was trained, in eval mode; called with images it says how probable each class is.

    Args:
        module: images [B, C, H, W], normalised → logits [B, K]; on its device.
        classes: K names.
        preprocessing: what the images of its training became: `mean` and `std` of values 0 … 1, `image_size`, …
        image_shape: (C, H, W).
        run: where its weights are from.
        epoch: which one's they are; None where that is not on record.
    """

    module: nn.Module
    classes: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    run: Path
    epoch: int | None
    _opened: Opened = field(repr=False)

    def __call__(self, images: Any) -> Tensor:
        """Probabilities [N, K], float32, on the CPU: the numbers of `kd predict`.

        Args:
            images: a file, a PIL image, an array [H, W, C] or a tensor [C, H, W] of uint8; a list of such; or a batch,
                [N, H, W, C] or [N, C, H, W]. Each is brought to the network's size and colours.

        Raises:
            DataError: what cannot be read, or is no image of bytes.
        """
        with alone(quiet=True):
            reader = Reader([], self._opened.first.spec(), self._opened.first.facts["preprocessing"])
            return all_probabilities(self._opened, (reader.fitted(*each) for each in opened(images)))


def load(
    run: Folder | None = None,
    *,
    which: Literal["best", "last"] | None = None,
    device: str = "auto",
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    overrides: Sequence[str] = (),
    outputs: Folder = "outputs",
) -> Network:
    """Opens the network of a finished run; of a comparison its distilled student.

    Args:
        run: its folder, or a checkpoint's; None: the newest completed training in `outputs`.
        which: the epoch, the best on validation or the last; None: the best.
        device: `auto`, `cpu`, `cuda` or `mps`.
        student: a network like the one that `kd.distill` was given; its weights are the run's.
        teacher: likewise, where the student has a part of it (`loss="simkd"`).
        overrides: what kd takes from the user alone: `["plugins=[./mine.py]"]`.
        outputs: where dated folders are.

    Raises:
        ConfigError, DataError: as `kd predict`.
    """
    path = _newest(Path(outputs)) if run is None else Path(run).expanduser()
    if not path.exists():
        raise ConfigError(f"there is no run {path}; kd list runs shows what is there")
    if (path / "distilled" / "run.json").exists():
        path = path / "distilled"
    with called(quiet=True), own_networks(student, teacher):
        saved = Saved(path, which=which, overrides=overrides)
        spec, module = saved.spec(), saved.network(pick_device(device))
    seen, found = saved.facts["preprocessing"], Opened(path.name, (saved,), module)
    return Network(module, spec.class_names, seen, spec.image_shape, saved.path, saved.source.epoch, found)


def _newest(outputs: Path) -> Path:
    for path, record in find_records(outputs):
        if record.get("status") == "completed" and record.get("stage"):
            return path
    raise ConfigError(f"there is no completed training in {outputs}; give the folder of one")
