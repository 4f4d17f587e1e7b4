"""Ray as a launcher: the same points as with our own, on a cluster whose workers and nodes may die."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kd_cli.sweeps.ray_node import Place
from tests.conftest import SMALL, started, wait_for
from tests.test_architecture import imported_by

needs_ray = pytest.mark.skipif(not shutil.which("ray"), reason="needs Ray: pip install 'kd-cli[ray]'")
pytestmark = pytest.mark.usefixtures("one_thread")
BASELINE = ("train-baseline", "-m", *SMALL)
RAY = "hydra/launcher=ray"
STORE = 80_000_000  # bytes, nearly the least that Ray takes

# Kills the worker that a point of this rate runs in, or the point's own process.
DEADLY = """
import os, signal, sys
from pathlib import Path
if any(word.endswith("lr=0.02") for word in sys.argv):
    server = Path(f"/proc/{os.getppid()}/stat").read_text()
    os.kill(int(server.rpartition(")")[2].split()[1]), signal.SIGKILL)
    signal.pause()
if any(word.endswith("lr=0.03") for word in sys.argv):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head with one CPU, as `ray start` makes it; each test adds nodes of its own."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="kd-test-", dir="/tmp") as folder:
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0", "RAY_TMPDIR": folder}
        for name, value in quiet.items():  # /tmp: the names of sockets are limited
            patch.setenv(name, value)
        ray = pytest.importorskip("ray.cluster_utils", reason="needs Ray: pip install 'kd-cli[ray]'")
        head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE}
        cluster = ray.Cluster(initialize_head=True, head_node_args=head)
        yield cluster
        cluster.shutdown()


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[list[dict[str, Any]], str]:
    """The points of a sweep in a process of its own, and what it said."""
    printed, said = process.communicate(timeout=400)
    assert process.returncode == code, said
    return json.loads(printed)["points"], said


def begun(*words: str) -> Any:
    return started(*words, "hydra.sweep.dir=swept", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def processes() -> set[str]:
    """Command lines of all that has to do with this test's folder or with Ray on this machine."""
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return {line for line in lines if "kd-ray-" in line or str(Path.cwd()) in line}


def bits(points: list[dict[str, Any]]) -> list[Any]:
    return [(point["point"], point["weights_sha256"], point["test_top1"]) for point in points]


@needs_ray
@pytest.mark.slow  # Ray starts, and its workers import torch
def test_points_are_as_in_processes_and_one_that_fails_for_good_is_told_while_the_others_finish(kd) -> None:
    Path("deadly.py").write_text(DEADLY)
    rates, more = "trainer.lr=0.01,0.02,0.03,-1,0.04", ("plugins=[deadly.py]", RAY, "hydra.launcher.attempts=2")
    with begun(*BASELINE, rates, *more) as process:
        points, said = ended(process, 1)
    assert [point["status"] for point in points] == ["completed", "failed", "failed", "failed", "completed"], said
    assert "it lost its worker in each of its 2 attempts" in points[1]["error"]
    assert "hydra.launcher.attempts=3" in points[1]["error"]
    assert "signal 9" in points[2]["error"]
    assert "hydra.launcher.cpus=2" in points[2]["error"]
    assert "must be > 0" in points[3]["error"]
    assert "point 2 of 5 lost its worker" in said
    assert "log: swept/trainer.lr=-1/log.txt" in said
    assert not any(word in said for word in ("Traceback", "raylet", "worker.py", "INFO", "WARNING"))
    assert "baseline   epoch 2/2" in Path(points[0]["log"]).read_text()
    assert not processes()
    assert not [path for path in Path("swept").iterdir() if path.name.startswith(".ray")]
    words = ("trainer.lr=0.01,0.04", "plugins=[deadly.py]", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=processes")
    assert bits(kd(*BASELINE, *words, "--json").json["points"]) == bits([points[0], points[4]])


@needs_ray
@pytest.mark.slow
def test_a_node_that_is_killed_costs_no_point_and_no_bit(kd, cluster: Any) -> None:
    words = (*BASELINE, "trainer.epochs=150", "seed=0,1,2")
    doomed = cluster.add_node(num_cpus=1, object_store_memory=STORE)
    with begun(*words, RAY, f"hydra.launcher.address={cluster.address}") as process:
        wait_for(process, "swept/seed=0/metrics.jsonl", "swept/seed=1/metrics.jsonl")
        cluster.remove_node(doomed, allow_graceful=False)
        points, said = ended(process)
    assert "2 nodes, 2 at a time, 1 thread each" in said
    assert "lost its worker" in said
    assert "attempt 2 of 3" in said
    runs = [json.loads(Path(point["folder"], "run.json").read_text()) for point in points]
    assert sum("resumed" in run for run in runs) == 1
    expected = kd(*words, "hydra.launcher.n_jobs=2", "hydra.sweep.dir=processes", "--json").json["points"]
    assert bits(points) == bits(expected)


@needs_ray
@pytest.mark.slow
def test_ctrl_c_ends_the_points_wherever_they_run_with_what_they_have_trained() -> None:
    with begun(*BASELINE, "trainer.epochs=20000", "seed=0,1,2", RAY) as process:
        while len(list(Path().glob("swept/*/metrics.jsonl"))) < min(2, len(os.sched_getaffinity(0))):
            time.sleep(0.05)
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        points, said = ended(process, 130)
    assert sorted(point["status"] for point in points)[0] == "interrupted", said
    for point in points:
        if point["status"] == "interrupted":
            folder = Path(point["folder"])
            assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
            assert list((folder / "checkpoints").iterdir())
        else:
            assert point["status"] == "not started"
    assert "the same command goes on with what is not done" in said
    assert "Traceback" not in said
    assert not processes()


@needs_ray
@pytest.mark.slow
def test_a_node_that_does_not_see_the_folder_is_told_before_anything_runs(cluster: Any) -> None:
    Path("mine").mkdir()
    start = f"mount -t tmpfs none mine && exec ray start --address={cluster.address} --num-cpus=1 --block"
    start += f" --object-store-memory={STORE}"
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs unshare -m: a node with a disk of its own")
    with subprocess.Popen(["unshare", "-m", "sh", "-c", start], stdout=subprocess.DEVNULL) as node:
        try:
            while sum(each["Alive"] for each in cluster.global_state.node_table()) < 2:
                time.sleep(0.1)
            words = ("seed=0,1", RAY, f"hydra.launcher.address={cluster.address}", "hydra.sweep.dir=mine/swept")
            with started(*BASELINE, *words, stderr=subprocess.PIPE) as process:
                said = " ".join(process.communicate(timeout=300)[1].replace("│", " ").split())
        finally:
            node.terminate()
    assert process.returncode == 2, said
    assert "the sweep's folder must be on a file system that all nodes share; type hydra.sweep.dir=DIR" in said
    assert list(Path("mine").iterdir()) == []


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("cpus=0", "hydra.launcher.cpus: 0 is not possible"),
        ("cpus=many", "hydra.launcher.cpus: 'many' is not possible"),
        ("gpus=1.5", "hydra.launcher.gpus: 1.5 is not possible"),
        ("gpus=-1", "hydra.launcher.gpus: -1 is not possible"),
        ("attempts=0", "hydra.launcher.attempts: 0 is not possible"),
        ("address=ray://head:10001", "hydra.launcher.address: 'ray://head:10001' is not possible"),
        ("address=127.0.0.1:1", "nobody answers at 127.0.0.1:1"),
    ],
)
@needs_ray
def test_what_ray_cannot_do_is_refused_and_leaves_nothing(kd, word: str, said: str) -> None:
    message = kd(*BASELINE, "seed=0,1", RAY, f"hydra.launcher.{word}", "hydra.sweep.dir=swept", code=2).message
    assert said in message
    assert "type" in message
    assert not Path("swept").exists()


def test_a_missing_extra_says_what_to_install() -> None:
    code = "import sys\nsys.modules['ray'] = None\nfrom kd_cli.cli import main\nmain()\n"
    words = ["-W", "ignore", "-c", code, "run", "-m", "seed=0,1", RAY]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'kd-cli[ray]'" in done.stderr


@pytest.mark.slow
def test_nothing_of_ray_is_imported_unless_it_is_chosen() -> None:
    modules = imported_by("train-baseline", "-m", *SMALL, "seed=0,1", "hydra.launcher.n_jobs=1", "--json")
    assert "kd_cli.sweeps.launchers" in modules
    assert not [name for name in modules if name.partition(".")[0] == "ray" or name.startswith("kd_cli.sweeps.ray")]


def test_a_node_says_what_it_lacks(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("mine")
    assert Place(tmp_path, token, "mine").problem() is None
    assert "must be on a file system that all nodes share" in str(Place(tmp_path, token, "another's").problem())
    assert "does not see" in str(Place(tmp_path, tmp_path / "other", "mine").problem())
    assert "start kd in a folder that all nodes share" in str(Place(tmp_path / "nowhere", token, "mine").problem())
    assert "install the same there" in str(Place(tmp_path, token, "mine", version="0.0").problem())
