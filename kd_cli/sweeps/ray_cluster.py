"""A cluster of Ray: one that is there, or one of this machine that is started and stopped."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_cli import console
from kd_cli.config.alike import Pattern
from kd_cli.errors import ConfigError, KDError, Terminated, offer
from kd_cli.machine import available_cores, given_threads
from kd_cli.storage.files import without_empty_folders
from kd_cli.sweeps.ray_node import Place, RayPoint, look, received, run_point

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # it would run the points in a copy of the folder
    "RAY_DEDUP_LOGS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # or it says on standard output what kd says of a lost worker
    "RAY_memory_monitor_refresh_ms": "0",  # where others need the memory it would kill points, which need little
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray would do and warns of: kd hides the GPUs itself
}
_ONCE = {"RAY_NUM_REDIS_GET_RETRIES": "1"}  # a look takes Ray most of a minute, where something else answers
_STORE = 80_000_000  # bytes for objects, nearly the least that Ray takes: the points are small, and files are on disk
_ANSWER = 5.0  # seconds that a cluster has to answer
_START = 180.0  # seconds that a node has for its first worker
_STARTS = 3  # of a cluster of this machine: a busy one may not be up in the time that Ray gives it


class Cluster:
    """Ray, as `hydra.launcher` asks for it.

    Args:
        options: `hydra.launcher`.

    Raises:
        ConfigError: options that are not possible.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.cpus, self.gpus = (_amount(name, options[name]) for name in ("cpus", "gpus"))
        self.attempts = options["attempts"]
        if type(self.attempts) is not int or self.attempts < 1:
            raise ConfigError(
                f"hydra.launcher.attempts: {self.attempts!r} is not possible; type how many workers a point may lose, "
                "a whole number ≥ 1: hydra.launcher.attempts=3"
            )
        self.threads = given_threads() or max(1, int(self.cpus))
        self._address = str(options["address"] or os.environ.get("RAY_ADDRESS") or "local")
        self._place: Place | None = None
        self._nodes: list[Mapping[str, Any]] = []  # that can take a point
        self._before: dict[str, str | None] = {}
        self._files: Path | None = None  # of Ray itself
        self._sent: dict[int, tuple[Pattern, Any]] = {}  # to the cluster, once for all tasks that have it

    @property
    def at_once(self) -> int:
        """How many points run at the same time."""
        self.connect()
        return sum(
            int(min(node["CPU"] / self.cpus, node["GPU"] / self.gpus if self.gpus else 1e9)) for node in self._nodes
        )

    @property
    def name(self) -> str:
        """What it is called in a sentence."""
        return "ray on this machine" if self._address == "local" else f"ray at {self._address}, {_nodes(self._nodes)}"

    @property
    def place(self) -> Place:
        assert self._place is not None
        return self._place

    def open(self, folder: Path) -> None:
        """Starts or finds the cluster, and has every node look whether it sees the sweep's folder; once.

        Raises:
            ConfigError: there is no such cluster, or a node lacks something.
        """
        self.connect()
        if self._place is None:
            with without_empty_folders(folder):
                self._place = _placed(folder)
                try:
                    self._check_nodes()
                except BaseException:
                    self._leave()
                    raise

    def close(self) -> None:
        """Ends what was started, however far that came; points that still run are asked to end by Ray."""
        self._leave()
        if not self._before:
            return
        import ray

        ray.shutdown()
        if self._files is not None:
            shutil.rmtree(self._files, ignore_errors=True)
        for name, value in self._before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})
        self._before, self._files, self._nodes, self._sent = {}, None, [], {}

    def connect(self) -> None:
        """Starts or finds the cluster.

        Raises:
            ConfigError: nobody answers, or no node can take a point.
        """
        if self._before:
            return
        _check_answers(self._address)
        variables, starts = (_QUIET, _STARTS) if self._address == "local" else (_QUIET | _ONCE, 1)
        self._before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)  # read when Ray is imported, and by what it starts
        with console.live_line("ray starts"):
            for left in reversed(range(starts)):
                try:
                    self._init()
                    break
                except KDError:
                    raise
                except Exception as error:
                    if not left:
                        raise self._unreachable(error) from error
        self._find_nodes()

    def _init(self) -> None:
        import ray

        options: dict[str, Any] = {}
        if self._address == "local":
            self._files = self._files or Path(tempfile.mkdtemp(prefix="kd-ray-"))
            options = {"num_cpus": available_cores(), "include_dashboard": False, "object_store_memory": _STORE}
            options["_temp_dir"] = str(self._files)
        handler = signal.getsignal(signal.SIGTERM)  # Ray takes it
        try:
            ray.init(self._address, logging_level="ERROR", log_to_driver=False, **options)
        except SystemExit as error:
            raise Terminated("the process was asked to end (SIGTERM)") from error
        except BaseException:
            ray.shutdown()
            raise
        finally:
            signal.signal(signal.SIGTERM, handler)
        ray.util.register_serializer(Pattern, serializer=self._send, deserializer=received)

    def _send(self, pattern: Pattern) -> Any:
        import ray

        if id(pattern) not in self._sent:
            self._sent[id(pattern)] = pattern, ray.put(vars(pattern))
        return self._sent[id(pattern)][1]

    def _unreachable(self, error: Exception) -> ConfigError:
        text = " ".join((str(error).strip() or type(error).__name__).split())
        if self._address == "local":
            return ConfigError(f"hydra/launcher=ray: Ray does not start on this machine: {text}")
        return ConfigError(
            f"hydra.launcher.address: no cluster of Ray is reached at {self._address}: {text}\n{_REMEDY}"
        )

    def _find_nodes(self) -> None:
        import ray

        nodes = [node for node in ray.nodes() if node["Alive"]]
        sizes = [{"id": node["NodeID"], "name": node["NodeManagerHostname"], **_size(node)} for node in nodes]
        self._nodes = [size for size in sizes if size["CPU"] >= self.cpus and size["GPU"] >= self.gpus]
        if not self._nodes:
            largest = max(sizes, key=lambda size: (size["GPU"], size["CPU"]), default={"CPU": 0, "GPU": 0})
            raise ConfigError(
                f"hydra.launcher: no node of Ray has {self.cpus:g} CPUs and {self.gpus:g} GPUs for a point; the "
                f"largest has {largest['CPU']:g} and {largest['GPU']:g}: type hydra.launcher.cpus=1 and "
                f"{offer('hydra.launcher.gpus', min(1, int(largest['GPU'])))}, or start a node that has them"
            )
        if not self.gpus and any(size["GPU"] for size in sizes):
            console.notice("points of ray have no GPU unless you type hydra.launcher.gpus=1, or a part of one: 0.25")

    def _check_nodes(self) -> None:
        """Raises a ConfigError with what is missing on a node."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        asked = {}
        for node in self._nodes:
            there = NodeAffinitySchedulingStrategy(node["id"], soft=False)
            task = ray.remote(look).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
            asked[task.remote(self.place)] = node["name"]
        done, late = ray.wait(list(asked), num_returns=len(asked), timeout=_START)
        for reference in late:
            raise ConfigError(f"node {asked[reference]} of Ray starts no worker; ray status, typed there, may say why")
        for reference in done:
            try:
                problem = ray.get(reference)
            except ray.exceptions.RayError as error:
                problem = f"node {asked[reference]} cannot run kd: {reason_of(error)}\nInstall the same kd there"
            if problem is not None:
                raise ConfigError(f"hydra/launcher=ray: {problem}")

    def _leave(self) -> None:
        if self._place is not None:
            self._place.token.unlink(missing_ok=True)
            self._place = None

    def start(self, task: RayPoint) -> Any:
        """Hands a point to Ray; what comes of it can be waited for."""
        import ray

        # Ray's own retries would know nothing of attempts; a worker serves one point after the other, on GPUs, too.
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": 0, "max_calls": 0}
        return ray.remote(**options)(run_point).options(name=task.work.label).remote(task)


_REMEDY = (
    "type hydra.launcher.address=HOST:PORT of its head (6379, unless it was started with another) on a machine that "
    "is a node of it (ray start --address=HOST:PORT), or leave it out: a cluster of this machine is then started"
)


def _amount(name: str, value: Any) -> float:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
    if not fits or (name == "cpus" and not value) or (value > 1 and value != int(value)):
        least = "> 0" if name == "cpus" else "≥ 0"
        raise ConfigError(
            f"hydra.launcher.{name}: {value!r} is not possible; type how many of them each point has, {least}; a "
            f"part of one is possible: hydra.launcher.{name}=1, or 0.5 for two points on each"
        )
    return float(value)


def _check_answers(address: str) -> None:
    """Raises a ConfigError if there is none; Ray itself would end this process, after a minute."""
    if address in ("local", "auto"):
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise ConfigError(f"hydra.launcher.address: {address!r} is not possible; {_REMEDY}")
    try:
        socket.create_connection((host, int(port)), _ANSWER).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"hydra.launcher.address: nobody answers at {address} ({error}); {_REMEDY}") from error


def _size(node: Mapping[str, Any]) -> dict[str, float]:
    return {name: node["Resources"].get(name, 0.0) for name in ("CPU", "GPU")}


def _nodes(nodes: Sequence[Any]) -> str:
    return "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"


def _placed(folder: Path) -> Place:
    folder.mkdir(parents=True, exist_ok=True)
    text = secrets.token_hex(16)
    place = Place(Path.cwd(), folder / f".ray-{text[:8]}", text)
    place.token.write_text(text)
    return place


def reason_of(error: Exception) -> str:
    """The line of an error of Ray that says most."""
    cause = getattr(error, "cause", None)
    lines = [line.strip() for line in str(cause or error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
