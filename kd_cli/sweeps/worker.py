"""What happens in the process of one point: its output goes into a log, and it ends when it is asked to."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from kd_cli import console
from kd_cli.errors import ConfigError, KDError, Terminated, describe_error
from kd_cli.machine import keep_freed_memory
from kd_cli.signals import ask_again, request
from kd_cli.sweeps.fork_server import STOP
from kd_cli.sweeps.point import LOG, Point, attempt

GRACE = 15.0  # seconds to end in, when asked; what a killed run has written is whole as well


Environment = Mapping[str, str]


@dataclass(frozen=True)
class Work:
    """A point for a process of its own, or for one that it shares.

    Args:
        label: what makes it different: `seed=1`.
        folder: of the run; its log is there too.
        environment: all variables.
        start: runs it. It must be importable: a function of a module, or a partial of one.
    """

    label: str
    folder: Path
    environment: Environment
    start: Callable[[], Point]

    @property
    def log(self) -> Path:
        return self.folder / LOG


def logs_of(works: Sequence[Work]) -> str:
    """Where to look for what they say: `swept/*/log.txt`."""
    parents = {str(work.folder.absolute().parent) for work in works}
    between = "*" if len(parents) == 1 else "**"
    return f"{console.short_path(os.path.commonpath(parents))}/{between}/{LOG}"


class Devices(NamedTuple):
    """What points can be divided among.

    Args:
        kind: `cpu`, `mps`, `cuda:0` or another of CUDA: what each is called in a process that has its environment.
        slots: the environment of each device; none where points need no device.
    """

    kind: str = "cpu"
    slots: Sequence[Environment] = ()


def run(sender: Connection, work: Work, threads: int, slot: Environment) -> None:
    """The life of the process.

    Args:
        sender: takes the point's record; see `send`.
        slot: variables that choose a device.
    """
    begin(work.environment, threads, slot, _end)
    sys.unraisablehook = _end_again
    point = attempt(work.label, lambda: _logged(work, threads))
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    send(sender, number=0, point=point)


def begin(
    environment: Environment, threads: int, slot: Environment, end: Callable[[int, FrameType | None], None]
) -> None:
    """What a process does first; requests to end stay blocked.

    Args:
        end: their handler.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the launcher decides
    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    os.environ.clear()
    os.environ.update({**environment, "OMP_NUM_THREADS": str(threads), **slot})


def send(sender: Connection, **facts: Any) -> None:
    """Tells the launcher, as JSON: it may not know the classes of the user's plugins."""
    with suppress(OSError):  # the launcher is gone
        sender.send_bytes(json.dumps(facts, default=str).encode())


def find_devices(sender: Connection, device: str) -> None:
    """Sends the Devices that `device=…` means."""
    devices = _devices(device)
    with suppress(OSError):  # the launcher is gone
        sender.send(devices)


def _devices(device: str) -> Devices:
    import torch

    from kd_cli.machine import pick_device

    try:
        picked = pick_device(device)
    except ConfigError:  # every point will say so
        return Devices()
    if picked.type == "cpu":
        return Devices()
    if picked.type != "cuda" or device not in ("auto", picked.type):
        return Devices(str(picked), [{}])  # one device for all
    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = names if len(names) >= count and all(names) else [str(index) for index in range(count)]
    return Devices("cuda:0", [{"CUDA_VISIBLE_DEVICES": name} for name in names[:count]])


def _logged(work: Work, threads: int) -> Point:
    """Runs the point with its output in its log."""
    import torch

    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
    log = open_log(work.log)
    write_to(log)
    os.close(log)
    buffer_lines()
    console.setup(as_json=False)
    keep_freed_memory()
    torch.set_num_threads(threads)
    return told(work.start)


def told(start: Callable[[], Point]) -> Point:
    """Runs a point, and says why if it fails."""
    try:
        return start()
    except Exception as error:
        if not isinstance(error, KDError) or os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        problem = describe_error(error)
        console.panel(problem.title, problem.text)
        raise


def open_log(log: Path) -> int:
    """Raises a ConfigError if it cannot be written."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise ConfigError(
            f"hydra.sweep.dir: {log} cannot be written ({error.strerror}); choose another: hydra.sweep.dir=DIR"
        ) from error


def write_to(handle: int) -> None:
    """Makes an open file standard output and standard error, also for what is not Python."""
    for number in (1, 2):
        os.dup2(handle, number)


def buffer_lines() -> None:
    """Python's streams on whatever standard output and standard error are; a crash leaves its stack there."""
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
    faulthandler.enable()


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once: what is being saved now must not be stopped again
    request(number, frame)


def _end_again(dropped: sys.UnraisableHookArgs) -> None:
    """As `ask_again`, where the first request has made the process deaf to others."""
    if isinstance(dropped.exc_value, Terminated):
        signal.signal(signal.SIGTERM, _end)
    ask_again(dropped)


def _end_with_launcher() -> None:
    """No process outlives the launcher, however that ended."""
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    wait([launcher.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(Terminated.exit_code)
