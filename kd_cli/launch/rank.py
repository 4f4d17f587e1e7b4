"""One of the processes of a training with `devices=N`, which `train_on` starts; and what is the same in `copies`."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from kd_cli import console
from kd_cli.config.base import Config, Launch
from kd_cli.errors import Terminated, describe_error
from kd_cli.machine import keep_freed_memory, pick_device, ranks, train_together
from kd_cli.plugins import load_plugins
from kd_cli.signals import heeding
from kd_cli.storage.files import write_json

_PR_SET_PDEATHSIG = 1  # prctl(2)
_GRACE_SECONDS = 5.0  # for the first process to end its step, which takes all of them


def main() -> None:
    """Does the job that is described in the folder that is named on the command line."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    asked = json.loads((folder / "asked.json").read_text())
    _end_with_parent(signal.SIGTERM if rank == 0 else signal.SIGKILL)
    if os.getppid() != asked["parent"]:  # it was gone before
        return
    if rank:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # of all threads, which begin later
        threading.Thread(target=_end_when_asked, daemon=True).start()
    with silent() if rank else nullcontext():
        code = _work(asked, folder, rank)
    sys.exit(code)


def _end_when_asked() -> None:
    signal.sigwait({signal.SIGTERM})
    time.sleep(_GRACE_SECONDS)
    os._exit(Terminated.exit_code)


def _work(asked: dict[str, Any], folder: Path, rank: int) -> int:
    keep_freed_memory()
    console.setup(as_json=asked["as_json"])
    try:
        launch = read_launch(asked["launch"])
        meanwhile = heeding() if rank == 0 else nullcontext()
        record = train_as_rank(asked["job"], asked["config"], launch, meanwhile, line=folder / "go-on")
        if rank == 0:
            write_json(folder / "result.json", record)
        return 0
    except (Exception, KeyboardInterrupt) as error:
        problem = describe_error(error)
        said = {"title": problem.title, "text": problem.text, "time": time.time()}
        others = ranks()
        if others is None or not others.lost(error):
            write_json(folder / f"error-{rank}.json", said)
        return problem.exit_code or 1


def train_as_rank(
    job: str, config: Config, launch: Launch, meanwhile: AbstractContextManager[None] | None = None, **meeting: Any
) -> Mapping[str, Any]:
    """What a job returns that this process does together with the others.

    Args:
        meanwhile: entered when all of them are there: until then nothing is lost by a sudden end.
        meeting: options of `Ranks.join`.
    """
    from kd_cli.training.parallel import Ranks

    load_plugins(config["plugins"])
    those = Ranks.join(pick_device(config["device"]).type, **meeting)
    train_together(those)
    with meanwhile or nullcontext():
        record: Mapping[str, Any] = resolve_name(job)(config, launch)
    those.wait()
    those.leave()
    return record


@contextmanager
def silent() -> Iterator[None]:
    """All but the first process say nothing, and leave it to that one when all of them end."""
    said = sys.stdout, sys.stderr
    heeded = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        sys.stdout = sys.stderr = nowhere
        try:
            yield
        finally:
            sys.stdout, sys.stderr = said
            for number, before in heeded.items():
                signal.signal(number, before)


def plain_launch(launch: Launch) -> dict[str, Any]:
    """As JSON has it."""
    return {key: sorted(value) if isinstance(value, frozenset) else value for key, value in asdict(launch).items()}


def read_launch(plain: dict[str, Any]) -> Launch:
    """What `plain_launch` gave."""
    paths = {key: plain[key] and Path(plain[key]) for key in ("folder", "extends")}
    given = {"arguments": tuple(plain["arguments"]), "given": frozenset(plain["given"])}
    return Launch(**{**plain, **paths, **given})


def _end_with_parent(number: int) -> None:
    """Linux sends this signal when the process is gone that watches over this one."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


if __name__ == "__main__":
    main()
