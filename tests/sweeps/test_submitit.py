"""submitit as a launcher: the same points as with our own, and none is lost with its process."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kd_cli.machine import available_cores
from kd_cli.sweeps.point import outcome_file, record_point
from kd_cli.sweeps.submitit import Submitit, _outcome
from kd_cli.sweeps.worker import Work
from tests.conftest import HERE, SMALL, started, wait_for

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
LocalJob = pytest.importorskip("submitit").LocalJob

pytestmark = pytest.mark.usefixtures("one_thread")
BASELINE = ("train-baseline", "-m", *SMALL)
LOCAL = "hydra/launcher=submitit_local"


def sweep(*words: str, **options: Any) -> Any:
    """`kd …` in a process of its own, which the jobs are children of."""
    with started(*words, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        printed, said = process.communicate(timeout=100)
    assert process.returncode == options.get("code", 0), said
    return json.loads(printed)["points"], said


@pytest.mark.slow  # each process imports torch
def test_a_point_that_dies_and_one_that_cannot_be_leave_the_others_as_they_are_alone(kd) -> None:
    Path("deadly.py").write_text(
        "import os, sys\nif any(word.endswith('lr=0.02') for word in sys.argv): os.kill(os.getpid(), 9)\n"
    )
    words = ("trainer.lr=0.01,0.02,-1", "plugins=[deadly.py]", LOCAL, "hydra.sweep.dir=swept")
    (done, died, impossible), said = sweep(*BASELINE, *words, code=1)
    assert [point["status"] for point in (done, died, impossible)] == ["completed", "failed", "failed"]
    assert "signal 9" in died["error"]
    assert "must be > 0" in impossible["error"]
    assert "log: swept/trainer.lr=-1/log.txt" in said
    assert impossible["rerun"] in said
    assert "baseline   epoch 2/2" in Path(done["log"]).read_text()
    assert "baseline   epoch" not in said
    words = ("trainer.lr=0.01", "plugins=[deadly.py]", HERE, "hydra.sweep.dir=here")
    (here,) = kd(*BASELINE, *words, "--json").json["points"]
    assert (here["weights_sha256"], here["test_top1"]) == (done["weights_sha256"], done["test_top1"])


@pytest.mark.slow
def test_ctrl_c_ends_the_points_of_submitit_and_says_what_is_done() -> None:
    command = [*BASELINE, "trainer.epochs=20000", "seed=0,1", LOCAL, "hydra.sweep.dir=swept", "--json"]
    with started(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not all(Path(f"swept/seed={seed}/metrics.jsonl").exists() for seed in (0, 1)):
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.05)
            assert process.returncode is None
        os.killpg(process.pid, signal.SIGINT)
        printed, said = process.communicate(timeout=100)
    assert process.returncode == 130, said
    points = json.loads(printed)["points"]
    assert [point["status"] for point in points] == ["interrupted", "interrupted"], said
    for seed in (0, 1):
        assert json.loads(Path(f"swept/seed={seed}/run.json").read_text())["status"] == "interrupted"
    assert "Traceback" not in said


def children(process: str) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def warn_job() -> None:
    """As submitit's controller, or a cluster, shortly before its time is over: some tell all of its processes."""
    (controller,) = (path.name for path in Path("swept/.submitit").iterdir() if path.name.isdecimal())
    told = children(controller)
    for process in told:
        os.kill(int(process), signal.SIGUSR2)
        told += children(process)


def warned(*words: str, code: int) -> dict[str, Any]:
    """The only point of a sweep whose job is warned in the middle of its training."""
    with started(*words, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for(process, "swept/*/metrics.jsonl")
        warn_job()
        printed, said = process.communicate(timeout=200)
    assert process.returncode == code, said
    (point,) = json.loads(printed)["points"]
    return dict(point)


@pytest.mark.slow  # processes that import torch
def test_a_job_out_of_time_keeps_what_it_has_and_says_its_limit_and_the_option() -> None:
    words = (
        *BASELINE,
        "trainer.epochs=20000",
        "seed=0",
        LOCAL,
        "hydra.sweep.dir=swept",
        "hydra.launcher.timeout_min=1",
    )
    point = warned(*words, code=1)
    assert point["status"] == "failed"
    assert "at its time limit (hydra.launcher.timeout_min=1); what was trained is kept" in point["error"]
    assert "hydra.launcher.timeout_min=2 behind it" in point["error"]
    run = Path(point["folder"])
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    epochs = len((run / "metrics.jsonl").read_text().splitlines())
    saved = max(path.name for path in (run / "checkpoints").iterdir())
    assert int(saved[6:10]) >= epochs - ("step" in saved)  # nothing that was told is lost
    assert "resumed" not in json.loads((run / "run.json").read_text())


@pytest.mark.slow
def test_a_job_whose_machine_is_taken_away_goes_on_where_it_was() -> None:
    words = (*BASELINE, "trainer.epochs=300", "seed=0", LOCAL, "hydra.sweep.dir=swept")
    point = warned(*words, code=0)
    assert point["status"] == "completed"
    assert len(json.loads(Path(point["folder"], "run.json").read_text())["resumed"]) == 1


def test_a_limit_that_leaves_no_time_to_save_is_refused(kd) -> None:
    message = kd(*BASELINE, "seed=0,1", LOCAL, "hydra.launcher.timeout_min=0", code=2).message
    assert "hydra.launcher.timeout_min: 0 is not possible" in message
    assert "type hydra.launcher.timeout_min=60" in message


def test_options_of_hydras_users_are_there_and_what_is_not_possible_is_said(kd) -> None:
    shown = kd("train-baseline", "--cfg", "hydra", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu").out
    assert "partition: gpu" in shown
    assert "timeout_min: 60" in shown
    message = kd(*BASELINE, "seed=0,1", "hydra/launcher=submitit_locl", code=2).message
    assert "did you mean 'submitit_local'?" in message
    message = kd(*BASELINE, "seed=0,1", LOCAL, "hydra.launcher.tasks_per_node=2", code=2).message
    assert "hydra.launcher.nodes and tasks_per_node must be 1" in message


def test_without_slurm_its_launcher_says_what_to_do(kd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "nowhere")
    message = kd(*BASELINE, "seed=0,1", "hydra/launcher=submitit_slurm", code=2).message
    assert "there is no sbatch here" in message
    assert "hydra/launcher=submitit_local" in message


def test_a_missing_extra_says_what_to_install() -> None:
    code = "import sys\nsys.modules['hydra_plugins.hydra_submitit_launcher'] = None\n"
    code += "from kd_cli.cli import main\nmain()\n"
    words = ["-W", "ignore", "-c", code, "run", "-m", "seed=0,1", LOCAL]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'kd-cli[slurm]'" in done.stderr


def test_the_cores_are_divided_among_the_points_of_submitit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    options = {"nodes": 1, "tasks_per_node": 1, "cpus_per_task": None, "timeout_min": 60}
    assert Submitit("submitit_local", options).divide(4) == (4, max(1, available_cores() // 4))
    assert Submitit("submitit_local", options | {"cpus_per_task": 3}).divide(4) == (4, 3)


@pytest.mark.slow
def test_detached_points_go_on_without_the_command_and_the_next_one_hears_of_them(kd) -> None:
    words = (*BASELINE, "trainer.epochs=2,20000", LOCAL, "hydra.sweep.dir=outputs/swept", "--json")
    done = subprocess.run([sys.executable, "-m", "kd_cli", *words, "--detach"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # it does not wait for who else could write into the pipe
    assert [point["status"] for point in json.loads(done.stdout)["points"]] == ["running", "running"]
    job = json.loads(Path("outputs/swept/sweep.json").read_text())["jobs"]["trainer.epochs=20000"]
    run = Path("outputs/swept/trainer.epochs=20000")
    with started(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            wait_for(process, str(run / "metrics.jsonl"))
            listed = {Path(each["run"]).name: each["status"] for each in kd("list", "runs", "--json").json["runs"]}
            assert listed[run.name] == "running"
        finally:
            while process.poll() is None:  # a cluster asks more than once, and lets it save what it has
                with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.kill(int(job.split()[1]), signal.SIGTERM)
                    process.wait(timeout=0.05)
        finished, ended = json.loads(process.communicate()[0])["points"]
    assert (process.returncode, finished["status"], ended["status"]) == (1, "completed", "cancelled")
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    assert not json.loads(Path("outputs/swept/sweep.json").read_text())["jobs"]


def test_what_a_strange_folder_says_of_a_job_is_not_executed(kd) -> None:
    words = (*BASELINE, "seed=0,1", LOCAL, "hydra.sweep.dir=swept", "--json")
    Path("swept/.submitit/999999999").mkdir(parents=True)
    jobs = {f"seed={seed}": f"local 999999999 {platform.node()}" for seed in (0, 1)}
    Path("swept/sweep.json").write_text(json.dumps({"jobs": jobs}))
    result = Path("swept/.submitit/999999999/999999999_0_result.pkl")
    result.write_bytes(b"cposix\nsystem\n(S'touch executed'\ntR.")
    for facts in (
        "{",
        '{"status": ["completed"]}',
        '{"status": "completed"}',
        '{"status": "failed", "exit_code": "1"}',
    ):
        result.with_suffix(".json").write_text(facts)
        points = kd(*words, "--detach", code=1).json["points"]
        assert {point["status"] for point in points} <= {"cancelled", "failed"}
        Path("swept/sweep.json").write_text(json.dumps({"jobs": jobs}))
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("recorded", "begun", "state", "status"),
    [
        (None, False, "PENDING", None),
        (None, False, "GONE", "cancelled"),
        (None, False, "FAILED", "failed"),  # a folder that its machine does not see
        (None, True, "GONE", "failed"),
        (None, True, "CANCELLED", "cancelled"),
        ("interrupted", True, "PENDING", None),  # preempted: it will go on
        ("interrupted", True, "CANCELLED", "cancelled"),
        ("interrupted", True, "GONE", "cancelled"),
        ("interrupted", True, "OUT_OF_MEMORY", "failed"),  # when it went on
        ("diverged", True, "RUNNING", "diverged"),
    ],
)
def test_what_is_said_of_a_job(
    recorded: str | None, begun: bool, state: str, status: str | None, tmp_path: Path
) -> None:
    job = LocalJob(tmp_path, "7")
    if begun:
        job.paths.stderr.write_text("srun: error: it died\n")
    if recorded:
        record_point({"status": recorded, "error": "why"}, outcome_file(job.paths))
    point = _outcome(Work("seed=1", tmp_path / "point", {}, dict), job, state)
    assert (None if point is None else point["status"]) == status
    if status == "failed":
        assert f"its job 7 ended without a result ({state})" in str(point)


def test_points_of_another_machine_are_not_submitted_again(kd) -> None:
    Path("swept").mkdir()
    Path("swept/sweep.json").write_text(json.dumps({"jobs": {"seed=0": "local 12 elsewhere"}}))
    message = kd(*BASELINE, "seed=0,1", LOCAL, "hydra.sweep.dir=swept", code=2).message
    assert "points of this sweep were submitted on elsewhere; type the command there" in message


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-m", "seed=0,1"), "type hydra/launcher=submitit_slurm on a cluster, or hydra/launcher=submitit_local"),
        (("-m", "seed=0,1", HERE), "type hydra/launcher=submitit_slurm on a cluster, or hydra/launcher=submitit_local"),
        (("-m", "seed=0,1", LOCAL, "hydra.sweeper.max_batch_size=1"), "hydra.sweeper.max_batch_size waits for each"),
        (("seed=0", LOCAL), "--detach submits the points of a sweep: type -m, too"),
    ],
)
def test_what_cannot_be_detached_is_refused_and_leaves_nothing(words: tuple[str, ...], said: str, kd) -> None:
    assert said in kd("train-baseline", *SMALL, *words, "--detach", code=2).message
    assert not list(Path().rglob("*"))
