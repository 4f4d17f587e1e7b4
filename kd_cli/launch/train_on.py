"""`devices=N`: one training in several processes, which are started, watched and ended here."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from kd_cli import console, errors
from kd_cli.config.base import Config, Launch
from kd_cli.config.devices import count_devices
from kd_cli.config.overrides import is_own
from kd_cli.errors import ConfigError, KDError
from kd_cli.launch.rank import plain_launch
from kd_cli.machine import available_cores, given_threads
from kd_cli.runs.provenance import resume_line


def train_on(job: str, config: Config, launch: Launch) -> Mapping[str, Any]:
    """Does a job in as many processes as are asked for; the first one prints, and owns the run's folder.

    Returns:
        What the job returned.

    Raises:
        ConfigError: they cannot be had, or what they should do is not done by several processes.
        KDError: what went wrong first in one of them.
    """
    if is_own(launch.arguments):
        raise ConfigError("devices: a network of the program's own is trained in its process; leave devices out")
    if launch.trial is not None or threading.current_thread() is not threading.main_thread():
        raise ConfigError(
            f"devices: {config['devices']} is not possible in a search, or in points that share a process; type "
            "devices=1"
        )
    count = count_devices(config)
    if count == 1:
        alone: Mapping[str, Any] = resolve_name(job)(config, launch)
        return alone
    with tempfile.TemporaryDirectory(prefix="kd-") as folder:
        place = Path(folder)
        asked = {"job": job, "config": config, "launch": plain_launch(launch), "as_json": console.as_json()}
        asked["parent"] = os.getpid()
        (place / "asked.json").write_text(json.dumps(asked, default=str))
        (place / "go-on").write_text(resume_line(launch.folder, vars(launch)))
        _start(count, place)
        result: Mapping[str, Any] = json.loads((place / "result.json").read_text())
        return result


def _start(count: int, folder: Path) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # what they tell is told here
    if given_threads() is None:
        os.environ["OMP_NUM_THREADS"] = str(max(1, available_cores() // count))
    agent = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint=str(folder / "rendezvous"),
        rdzv_configs={"store_type": "file"},  # a port would be open to the network, and pickles are read from it
        local_addr="localhost",
        max_restarts=0,
    )
    try:
        elastic_launch(agent, sys.executable)("-m", "kd_cli.launch.rank", str(folder))
    except SignalException as ended:
        raise _first_error(folder) or errors.Terminated("the process was asked to end (SIGTERM)") from ended
    except ChildFailedError as failed:
        # One that was killed says nothing; what the others said comes of it. SIGTERM is what the agent sends to the
        # others when one has ended.
        codes = {rank: failure.exitcode for rank, failure in failed.failures.items()}
        killed = [rank for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM]
        said = None if killed else _first_error(folder)
        raise said or _death(killed[0] if killed else failed.get_first_failure()[0], failed, folder) from failed


def _first_error(folder: Path) -> KDError | None:
    """What went wrong first; what follows of it in the other processes comes after it."""
    said = [json.loads(path.read_text()) for path in folder.glob("error-*.json")]
    return _error(min(said, key=lambda each: float(each["time"]))) if said else None


def _error(said: Mapping[str, Any]) -> KDError:
    kind = getattr(errors, said["title"], None)
    if isinstance(kind, type) and issubclass(kind, KDError) and kind is not errors.Pruned:
        return kind(said["text"])
    return KDError(f"{said['title']}: {said['text']}")


def _death(rank: int, failed: Any, folder: Path) -> KDError:
    """A process ended without a word: it was killed."""
    code = failed.failures[rank].exitcode
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return KDError(
        f"process {rank} of this training {how}, and the others were ended; what was trained is kept. Go on with:\n"
        + (folder / "go-on").read_text()
    )
