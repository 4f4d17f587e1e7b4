"""A Slurm cluster of one machine, with Debian's packages slurm-wlm and munge: no systemd, cgroups or accounting."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # daemons are not in every user's
_PATIENCE = 60.0  # seconds, for each step, on a busy machine
_LOOK_AGAIN = 0.05

# Nothing that needs cgroups, a database or name resolution. What is left out has a default that needs none either.
# Five seconds, Slurm's least, are also what a requeued job waits; two minutes by default.
_CONF = """
ClusterName=kd
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,sched_interval=1,builtin_interval=1
MaxArraySize=3
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    absent = [name for name in (*DAEMONS, "sbatch") if shutil.which(name, path=_PATH) is None]
    return f"needs {', '.join(absent)} (Debian: apt-get install slurm-wlm munge)" if absent else ""


@contextmanager
def cluster(folder: Path) -> Iterator[Path]:
    """Starts one with four processors, whatever the machine has; nothing of it is left at the end, however that comes.

    Args:
        folder: an empty one with a short path: the name of a socket has at most 107 characters.

    Yields:
        Its configuration: `SLURM_CONF` of whoever uses it.
    """
    conf = folder / "slurm.conf"
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    conf.write_text(_CONF.format(folder=folder, host=_host(), user=getpass.getuser(), **_ports()))
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        _start_all(folder, conf, daemons)
        yield conf
    finally:
        for daemon in reversed(daemons):
            _end(daemon)
        while left := processes(conf):  # jobs and what watches them
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(_LOOK_AGAIN)


def ask(conf: Path, *words: str) -> str:
    """What a command of Slurm's prints."""
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=_PATIENCE).stdout


def _start_all(folder: Path, conf: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
    def start(there: Callable[[], bool], name: str, *options: str) -> None:
        environment = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(conf)}
        with (folder / f"{name}.out").open("wb") as said:
            command = [name, *options]
            daemons.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True))
        end = time.monotonic() + _PATIENCE
        while not there():
            if daemons[-1].poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{name} did not start: {(folder / f'{name}.out').read_text()}")
            time.sleep(_LOOK_AGAIN)

    files = {name: f"{folder}/munge.{name}" for name in ("log", "pid", "seed")}
    options = [f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key"]
    options += [f"--{name}-file={file}" for name, file in files.items()]
    start(lambda: (folder / "munge.socket").exists(), "munged", "--foreground", "--force", *options)
    start(lambda: "gpu" in ask(conf, "sinfo", "-h", "-o", "%P"), "slurmctld", "-D")
    start(lambda: ask(conf, "sinfo", "-h", "-o", "%T").strip() == "idle", "slurmd", "-D", "-N", _host())


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def processes(conf: Path) -> list[int]:
    """Of the cluster: all that it has started has its variable, jobs and their children, too."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"SLURM_CONF={conf}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _ports() -> dict[str, int]:
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind(("127.0.0.1", 0))
        return {"controller": first.getsockname()[1], "node": second.getsockname()[1]}
