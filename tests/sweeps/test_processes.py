"""The points of a sweep in processes of their own: the same results, and nothing is lost or left behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_cli.sweeps.processes import run_points
from kd_cli.sweeps.share import Share, divide
from kd_cli.sweeps.worker import Devices, Work
from tests.conftest import HERE, SMALL, started, wait_for

BASELINE = ("train-baseline", "-m", *SMALL)
pytestmark = pytest.mark.usefixtures("one_thread")
TWO = "hydra.launcher.n_jobs=2"
CPU = Devices()
GPUS = Devices("cuda:0", [{"CUDA_VISIBLE_DEVICES": str(index)} for index in range(4)])
ONE_GPU = Devices("cuda:0", GPUS.slots[:1])


def read(path: str) -> Any:
    return json.loads(Path(path).read_text())


def work(label: str, start: Callable[[], dict[str, Any]]) -> Work:
    return Work(label, Path("swept", label), dict(os.environ), start)


def surroundings() -> dict[str, Any]:
    """Paths become text, as in every record."""
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HYDRA_FULL_ERROR", "KD_CACHE")
    return {
        "threads": torch.get_num_threads(),
        "here": Path.cwd(),
        **{name: os.environ.get(name) for name in names},
    }


def meet(mine: str, other: str) -> dict[str, Any]:
    """Ends when another point has begun."""
    Path(mine).touch()
    deadline = time.monotonic() + 30
    while not Path(other).exists():
        assert time.monotonic() < deadline
    return {}


def end_when_asked(launcher: int, number: int) -> dict[str, Any]:
    """Makes the launcher stop."""
    os.kill(launcher, number)
    time.sleep(10)  # more than it takes to be asked, less than the launcher's patience
    return {}


def ask_again(launcher: int, number: int) -> dict[str, Any]:
    """Makes the launcher stop, and asks a second time instead of ending."""
    signal.signal(signal.SIGTERM, lambda *_: os.kill(launcher, number))
    return end_when_asked(launcher, number)


class Deaf:
    """Loses what is raised while it is taken down, as Python does it."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.001)  # the handler runs before the destructor ends


def end_in_a_destructor() -> dict[str, Any]:
    Deaf()
    time.sleep(20)  # more than it takes to be asked again
    return {}


def test_a_request_to_end_that_python_drops_in_a_destructor_is_not_lost() -> None:
    (point,) = run_points([work("deaf", end_in_a_destructor)], Share(1, 1))
    assert point["status"] == "interrupted"


def test_a_point_is_the_same_in_its_own_process_and_one_after_the_other_and_by_itself(kd) -> None:
    kd(*BASELINE, "seed=0,1", TWO, "hydra.sweep.dir=apart")
    kd(*BASELINE, "seed=0,1", "hydra/launcher=basic", "hydra.sweep.dir=basic")
    kd("train-baseline", *SMALL, "seed=1", "hydra.run.dir=alone")
    for point, other in (("seed=0", "basic/seed=0"), ("seed=1", "basic/seed=1"), ("seed=1", "alone")):
        first, second = read(f"apart/{point}/result.json"), read(f"{other}/result.json")
        assert first["weights_sha256"] == second["weights_sha256"]
        assert first["test_top1"] == second["test_top1"]
        first, second = read(f"apart/{point}/run.json"), read(f"{other}/run.json")
        for key in ("config_digest", "arguments", "command", "directory", "threads"):
            assert first[key] == second[key]
        assert first["pid"] != second["pid"]


def test_a_point_leaves_few_files_however_long_it_was_and_its_sweep_three(kd) -> None:
    kd(*BASELINE, "trainer.epochs=1,4", TWO, "hydra.sweep.dir=swept")
    assert {file.name for file in Path("swept").iterdir() if file.is_file()} == {".lock", "multirun.yaml", "sweep.json"}
    for epochs, most in (1, 12), (4, 16):  # of its two last epochs it keeps what it needs to go on
        files = [file for file in Path(f"swept/trainer.epochs={epochs}").rglob("*") if file.is_file()]
        assert len(files) <= most, files


def test_a_sweep_that_is_started_again_skips_what_is_complete_whatever_launched_it(kd) -> None:
    kd(*BASELINE, "seed=0,1", TWO, "hydra.sweep.dir=swept")
    weights = read("swept/seed=1/result.json")["weights_sha256"]
    again = kd(*BASELINE, "seed=1,0", TWO, "hydra.sweep.dir=swept", "--json")
    assert again.err.count("was complete already") == 2
    assert [point["seed"] for point in again.json["points"]] == [1, 0]
    assert again.json["points"][0]["weights_sha256"] == weights
    assert "nothing was trained again" in Path("swept/seed=1/log.txt").read_text()
    other = kd(*BASELINE, "seed=0,1", "hydra/launcher=basic", "hydra.sweep.dir=swept")
    assert other.out.count("nothing was trained again") == 2


def test_a_point_that_fails_leaves_the_others_alone_and_says_why_and_where(kd) -> None:
    Path("swept").mkdir()
    Path("swept/trainer.lr=0.02").write_text("a file where a folder should be")
    rates = "trainer.lr=1e30,0.01,-1,0.02"
    failed = kd(*BASELINE, rates, TWO, "hydra.sweep.dir=swept", "--json", code=1)
    points = failed.json["points"]
    assert [point["status"] for point in points] == ["diverged", "completed", "failed", "failed"]
    assert [point.get("exit_code") for point in points] == [4, None, 2, 2]
    assert "the loss is not finite" in points[0]["error"]
    assert "hydra.sweep.dir=DIR" in points[3]["error"]
    assert "point 1 of 4 failed: trainer.lr=1e+30" in failed.message
    assert "log: swept/trainer.lr=1e+30/log.txt" in failed.message
    assert "the loss is not finite" in Path("swept/trainer.lr=1e+30/log.txt").read_text()
    log = Path("swept/trainer.lr=0.01/log.txt").read_text()
    assert sum(line.startswith("baseline   epoch") for line in log.splitlines()) == 2
    assert "baseline   epoch" not in failed.err


@pytest.mark.parametrize("launcher", [TWO, HERE])
def test_the_line_that_is_printed_for_a_failed_point_goes_on_with_it_in_its_folder(kd, launcher: str) -> None:
    obstacle = Path("a sweep/seed=1/.lock")
    obstacle.mkdir(parents=True)
    failed = kd(*BASELINE, "seed=0,1", launcher, "hydra.sweep.dir='a sweep'", "--json", code=1)
    done, point = failed.json["points"]
    assert (done["status"], point["status"]) == ("completed", "failed")
    assert "cannot be written" in Path(point["log"]).read_text()
    assert f"\n  {point['rerun']}\n" in failed.err
    assert done["rerun"] not in failed.err
    obstacle.rmdir()
    program, *arguments = shlex.split(point["rerun"])
    assert program == "kd"
    result = kd(*arguments, "--json").json
    assert (result["run"], result["seed"]) == (str(Path("a sweep/seed=1").resolve()), 1)


def test_a_process_that_dies_without_a_word_is_a_failed_point(kd) -> None:
    Path("deadly.py").write_text(
        "import os, sys\nif 'seed=1' in sys.argv: os.kill(os.getpid(), 9)\nif 'seed=2' in sys.argv: os._exit(7)\n"
    )
    died = kd(*BASELINE, "seed=0,1,2", TWO, "plugins=[deadly.py]", "hydra.sweep.dir=swept", "--json", code=1)
    points = died.json["points"]
    assert [point["status"] for point in points] == ["completed", "failed", "failed"]
    assert "signal 9: perhaps out of memory" in points[1]["error"]
    assert "hydra.launcher.n_jobs=1" in points[1]["error"]
    assert "exit code 7" in points[2]["error"]
    assert "log: swept/seed=1/log.txt" in died.message


def test_components_and_yaml_of_the_user_are_there_in_every_process(kd) -> None:
    Path("mine/student").mkdir(parents=True)
    Path("mine/student/line.yaml").write_text("name: line\nbias: true\n")
    Path("mine/line.py").write_text(
        "from torch import nn\nfrom kd_cli.models.base import MODELS\n"
        "@MODELS.register('line')\n"
        "def line(num_classes: int, in_channels: int, image_size: int, bias: bool = True) -> nn.Module:\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes, bias))\n"
    )
    words = [word for word in SMALL if not word.startswith("student")]
    mine = ("--config-dir", "mine", "plugins=[mine/line.py]", "student=line", "student.bias=true,false")
    points = kd("train-baseline", "-m", *words, *mine, TWO, "--json").json["points"]
    assert points[0]["parameters"] == points[1]["parameters"] + 10


def test_points_run_at_the_same_time_and_are_shown_in_the_order_of_the_sweep() -> None:
    meetings = {"a": "c", "b": "a", "c": "b"}  # two at a time: b is done before c begins, and a after that
    works = [work(mine, partial(meet, mine, other)) for mine, other in meetings.items()]
    points = run_points(works, Share(2, 1))
    assert [point["point"] for point in points] == ["a", "b", "c"]
    assert {point["status"] for point in points} == {"completed"}


def test_a_process_has_its_threads_its_device_and_the_surroundings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    works = [work(label, surroundings) for label in "abcd"]
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as while Hydra runs
    points = run_points(works, Share(4, 3, GPUS.slots[:2]))
    assert {point["threads"] for point in points} == {3}
    assert {point["OMP_NUM_THREADS"] for point in points} == {"3"}
    assert [point["CUDA_VISIBLE_DEVICES"] for point in points] == ["0", "1", "0", "1"]
    assert {point["here"] for point in points} == {str(Path.cwd())}
    assert {point["HYDRA_FULL_ERROR"] for point in points} == {None}
    assert {point["KD_CACHE"] for point in points} == {os.environ["KD_CACHE"]}


@pytest.mark.parametrize(
    ("points", "n_jobs", "threads", "devices", "processes", "of_each", "together"),
    [
        (15, None, None, CPU, 8, 1, None),
        (3, None, None, CPU, 3, 2, None),
        (15, None, 2, CPU, 4, 2, None),
        (15, None, 16, CPU, 1, 16, None),
        (15, 3, None, CPU, 3, 2, None),
        (15, 12, None, CPU, 12, 1, None),
        (15, 3, 4, CPU, 3, 4, None),
        (2, 3, None, CPU, 2, 4, None),
        (15, None, None, Devices("mps", [{}]), 1, 8, None),
        (15, 2, None, Devices("mps", [{}]), 2, 4, None),
        (1, None, None, GPUS, 1, 8, None),
        (15, None, None, GPUS, 4, 2, "as memory takes"),
        (15, None, 8, GPUS, 4, 8, "as memory takes"),
        (15, None, None, ONE_GPU, 1, 8, "as memory takes"),
        (2, None, None, GPUS, 2, 4, "as memory takes"),
        (15, 6, None, GPUS, 4, 2, [2, 2, 1, 1]),
        (15, 3, None, GPUS, 3, 2, None),
        (15, 8, None, ONE_GPU, 1, 8, [8]),
        (15, 1, None, GPUS, 1, 8, None),
    ],
)
def test_eight_cores_and_the_gpus_are_divided(
    points: int,
    n_jobs: int | None,
    threads: int | None,
    devices: Devices,
    processes: int,
    of_each: int,
    together: str | list[int] | None,
) -> None:
    cuda = devices.kind.startswith("cuda")
    share = divide(points, n_jobs, lambda: devices, cores=8, threads=threads, cuda=cuda)
    assert (share.processes, share.threads) == (processes, of_each)
    assert share.joins == (together is not None)
    assert share.here == (processes == 1 and not together)
    if together is not None:
        assert share.device == "cuda:0"
        at_once = [share.of(slot).at_once for slot in range(processes)]
        assert at_once == (together if isinstance(together, list) else [None] * processes)


def test_no_process_is_asked_for_devices_where_there_is_one_core_and_no_gpu() -> None:
    def ask() -> Devices:
        raise AssertionError

    assert divide(15, None, ask, cores=1, threads=None).here


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "true"])
def test_a_wrong_number_of_jobs_is_refused_before_anything_is_made(kd, value: str) -> None:
    message = kd(*BASELINE, "seed=0,1", f"hydra.launcher.n_jobs={value}", code=2).message
    assert "hydra.launcher.n_jobs: " in message
    assert "whole number ≥ 1" in message
    assert not Path("outputs").exists()


def test_ctrl_c_ends_all_processes_of_a_sweep_and_says_what_is_done() -> None:
    command = [*BASELINE, "trainer.epochs=2000", "seed=0,1,2", TWO, "hydra.sweep.dir=swept", "--json"]
    with started(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for(process, "swept/seed=0/metrics.jsonl", "swept/seed=1/metrics.jsonl")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        printed, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    points = json.loads(printed)["points"]
    assert [point["status"] for point in points] == ["interrupted", "interrupted", "not started"], said
    assert [read(f"swept/seed={seed}/run.json")["status"] for seed in (0, 1)] == ["interrupted", "interrupted"]
    assert not Path("swept/seed=2").exists()
    assert "the same command goes on" in said
    assert "Traceback" not in said


def test_no_process_outlives_a_killed_sweep() -> None:
    command = [*BASELINE, "trainer.epochs=2000", "seed=0,1", TWO, "hydra.sweep.dir=swept"]
    with started(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for(process, "swept/seed=0/metrics.jsonl", "swept/seed=1/metrics.jsonl")
        process.kill()
        process.communicate(timeout=60)  # the pipes are closed when the last process is gone
    assert [read(f"swept/seed={seed}/run.json")["status"] for seed in (0, 1)] == ["interrupted", "interrupted"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("point", [end_when_asked, ask_again])
def test_a_request_to_stop_ends_the_points_and_a_second_one_kills_them(
    number: signal.Signals, point: Callable[[int, int], dict[str, Any]]
) -> None:
    works = [work("first", partial(point, os.getpid(), number)), work("next", surroundings)]
    first, following = run_points(works, Share(1, 1))
    assert (first["status"], first["exit_code"]) == ("interrupted", 128 + number)
    assert (following["status"], following["exit_code"]) == ("not started", 128 + number)


def test_the_program_that_called_kd_is_not_run_again_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("program.py").write_text("open('ran', 'w')")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(Path("program.py").resolve()), raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    (point,) = run_points([work("point", surroundings)], Share(1, 1))
    assert point["status"] == "completed"
    assert not Path("ran").exists()
