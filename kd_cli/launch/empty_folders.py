"""The folders that Hydra makes before anything is checked: taken away again where nothing came of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import OmegaConf


@dataclass(frozen=True)
class Footprint:
    """A folder before Hydra made it.

    Args:
        listing: Hydra's record of a sweep in it.
        before: what that held, if it was there.
        new: the folder and those above it that were not there, the deepest first.
    """

    listing: Path
    before: bytes | None
    new: tuple[Path, ...]

    @classmethod
    def of(cls, folder: Path) -> Footprint:
        listing = folder / "multirun.yaml"
        before = listing.read_bytes() if listing.is_file() else None
        return cls(listing, before, tuple(each for each in (folder, *folder.parents) if not each.exists()))

    def remove(self) -> None:
        """Puts things back as they were; a folder that holds something stays."""
        with suppress(OSError):
            if self.before is None:
                self.listing.unlink()
            else:
                self.listing.write_bytes(self.before)
        self.remove_empty()

    def remove_empty(self) -> None:
        """Removes the new folders, unless something has come into them."""
        with suppress(OSError):
            for folder in self.new:
                folder.rmdir()


class Watch(Callback):
    """Hydra calls it before it makes a folder."""

    # Hydra makes its own instance, and knows the folder before anybody who could ask for it.
    noted: ClassVar[list[Footprint]] = []

    def on_run_start(self, config: Any, **_: Any) -> None:
        self._note(config, "hydra.run.dir")

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        self._note(config, "hydra.sweep.dir")

    def _note(self, config: Any, key: str) -> None:
        with suppress(Exception):  # Hydra will ask the same, and say what is wrong
            self.noted.append(Footprint.of(Path(str(OmegaConf.select(config, key))).absolute()))


@contextmanager
def watched() -> Iterator[list[Footprint]]:
    """What Hydra is about to make, noted while this is open; new folders that stay empty are removed at its end."""
    Watch.noted.clear()
    try:
        yield Watch.noted
    finally:
        for each in Watch.noted:
            each.remove_empty()
