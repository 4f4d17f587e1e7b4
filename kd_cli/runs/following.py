"""The run of a training that several processes share: the first one owns the folder, the others only look."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kd_cli.runs.folder import RunDir
from kd_cli.runs.records import sound_record

if TYPE_CHECKING:
    from kd_cli.training.parallel import Ranks


def opened(ranks: Ranks, own: Callable[[], RunDir]) -> RunDir:
    """The first process's folder, for all of them.

    Args:
        own: takes it.

    Raises:
        KDError: as `own`, in the first process; who started all of them ends the others.
    """
    ranks.wait()  # another one may still be looking whether it can be had
    if ranks.rank == 0:
        run = own()
        ranks.say_how_to_go_on(run.remedy)
        ranks.told(str(run.path))
        return run
    return Following(Path(ranks.told()))


class Following(RunDir):
    """A run whose folder another process owns: what is to be written is written by that one.

    Args:
        path: the folder.
    """

    follows = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = sound_record(path) or {}

    @contextmanager
    def there(self) -> Iterator[None]:
        yield

    def note(self, **facts: Any) -> None:
        self.record = self.record | facts

    def log(self, records: Sequence[Mapping[str, Any]]) -> None:
        pass

    def finish(self, result: Mapping[str, Any]) -> None:  # noqa: ARG002 - it is the owner's
        self._wait_for_others()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
