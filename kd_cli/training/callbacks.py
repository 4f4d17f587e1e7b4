"""Callbacks of a training: what logs it, and what may end it early."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from kd_cli.errors import status_after


class Callback(Protocol):
    """Sees one training as it goes: `begin`, `epoch` after each, `finish` if it gets there, and `close` in any case.

    What it raises ends the training like any other error; the run's status and message are those of the exception.
    """

    def begin(self, records: Sequence[Mapping[str, float]]) -> None:
        """Before the first epoch of this process.

        Args:
            records: of the epochs that an earlier process has done; what it did after them is forgotten.
        """

    def epoch(self, record: Mapping[str, float]) -> None:
        """After an epoch (`epoch`, `lr`, `train_loss`, `val_top1`, …), when it is saved."""

    def finish(self, result: Mapping[str, Any]) -> None:
        """The training is complete and judged on the test images: result.json."""

    def close(self, status: str) -> None:
        """The end: completed, failed, diverged, pruned or interrupted."""


@contextmanager
def watched_by(callbacks: Sequence[Callback], records: Sequence[Mapping[str, float]]) -> Iterator[None]:
    """Begins and closes all of them, whatever happens in between."""
    status = "completed"
    try:
        for callback in callbacks:
            callback.begin(records)
        yield
    except BaseException as error:
        status = status_after(error)
        raise
    finally:
        for callback in callbacks:
            callback.close(status)
