"""One of the processes of a training with `devices=N`; `devices` starts it."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from kd_cli import console
from kd_cli.config.base import Launch
from kd_cli.errors import describe_error
from kd_cli.machine import keep_freed_memory, pick_device, ranks, train_together
from kd_cli.plugins import load_plugins
from kd_cli.signals import heeding
from kd_cli.storage.files import write_json

_PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    """Does the job that is described in the folder that is named on the command line."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    asked = json.loads((folder / "asked.json").read_text())
    _end_with_parent(signal.SIGTERM if rank == 0 else signal.SIGKILL)
    if rank == 0:
        with heeding():
            sys.exit(_work(asked, folder, rank))
    # The first process decides when all of them end, and says what there is to be said.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the end
    sys.exit(_work(asked, folder, rank))


def _work(asked: dict[str, Any], folder: Path, rank: int) -> int:
    keep_freed_memory()
    console.setup(as_json=asked["as_json"])
    try:
        record = _do(asked, folder)
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


def _do(asked: dict[str, Any], folder: Path) -> Any:
    from kd_cli.training.parallel import Ranks

    config, launch = asked["config"], read_launch(asked["launch"])
    load_plugins(config["plugins"])
    those = Ranks.join(pick_device(config["device"]).type, folder / "go-on")
    train_together(those)
    record = resolve_name(asked["job"])(config, launch)
    those.wait()
    those.leave()
    return record


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
