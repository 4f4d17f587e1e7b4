"""Points on a Slurm cluster, run for real: they end as on this machine, whatever the cluster does to their jobs."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import HERE, ROOT, SMALL, started, wait_for
from tests.experiments.test_devices import check_like, typed
from tests.support.interrupted import everything
from tests.support.slurm import ask, cluster, missing, processes

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.usefixtures("one_thread"),
]
SLURM = ("hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1")
BASELINE = ("train-baseline", "-m", *SMALL)
HOPELESS = (
    *BASELINE,
    *SLURM,
    "trainer.epochs=20000",
    "hydra.launcher.timeout_min=1",
    "hydra.launcher.signal_delay_s=1",
    "hydra.sweep.dir=swept",
    "--json",
)
LONG = 120  # epochs in which something can happen


@pytest.fixture(scope="module")
def conf() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kd-") as folder, cluster(Path(folder)) as conf:
        yield conf


@pytest.fixture(scope="module", autouse=True)
def out_of_time(conf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a sweep is whose only point has a minute, during which other tests run."""
    folder = tmp_path_factory.mktemp("out_of_time")
    environment = {**os.environ, "SLURM_CONF": str(conf), "KD_CACHE": str(folder / "cache")}
    with started(*HOPELESS, "--detach", env=environment, cwd=folder, stdout=-1, stderr=-1) as process:
        _, said = process.communicate(timeout=100)
    assert process.returncode == 0, said
    return folder


@pytest.fixture(autouse=True)
def slurm(conf: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A command of Slurm's."""
    monkeypatch.setenv("SLURM_CONF", str(conf))
    return lambda *words: ask(conf, *words)


def jobs(sweep: str = "swept") -> dict[str, str]:
    """The job of each point that was submitted."""
    record = json.loads(Path(sweep, "sweep.json").read_text())
    return {name: job.removeprefix("slurm ") for name, job in record["jobs"].items()}


def swept(*words: str, code: int = 0, meanwhile: Callable[[subprocess.Popen[str]], object] = bool) -> list[Any]:
    """`kd …`, in a process of its own, as it waits for a cluster's jobs; the records of its points."""
    with started(*words, *SLURM, "hydra.sweep.dir=swept", "--json", stdout=-1, stderr=-1) as process:
        meanwhile(process)
        printed, said = process.communicate(timeout=200)
    assert process.returncode == code, said
    points: list[Any] = json.loads(printed)["points"]
    return points


def epochs_of(run: Path) -> int:
    return len((run / "metrics.jsonl").read_text().splitlines())


def trains(*points: str) -> Callable[[subprocess.Popen[str]], None]:
    return lambda process: wait_for(process, *(f"swept/{point}/metrics.jsonl" for point in points))


def alone(kd: Any, *words: str) -> dict[str, Any]:
    """All that the only point of the same sweep leaves on this machine, by the launcher that is the default."""
    kd(*BASELINE, *words, HERE, "hydra.sweep.dir=here")
    (run,) = (path.parent for path in Path("here").glob("*/run.json"))
    return everything(run)


def test_of_a_cluster_that_does_not_start_nothing_is_left(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)  # no socket has such a name
    folder.mkdir()
    with pytest.raises(RuntimeError, match="munged did not start"), cluster(folder):
        pass
    assert not processes(folder / "slurm.conf")


def test_the_lines_of_the_page_end_with_the_results_of_the_process_launcher(kd) -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    section = page.partition("## Slurm\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    submit, show, collect = (shlex.split(line)[1:] for line in block.splitlines())
    assert submit == [*collect, "--detach"]
    small = [*SMALL, "student.dropout=0.2", "hydra.launcher.cpus_per_task=1"]
    assert "2 points by submitit_slurm" in kd(*submit, *small).out
    shown = kd(*show).out
    assert "queued" in shown or "running" in shown
    points = kd(*collect, *small, "--json").json["points"]
    here = [word for word in [*collect, *small] if not word.startswith("hydra")]
    kd(*here, "hydra/launcher=process", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=here")
    for point in points:
        assert point["status"] == "completed"
        for part in ("teacher", "baseline", "distilled"):
            assert everything(Path(point["folder"], part)) == everything(Path("here", Path(point["folder"]).name, part))
    assert not jobs(str(Path(points[0]["folder"]).parent))


def test_a_preempted_point_goes_on_with_the_same_bits(kd, slurm) -> None:
    def preempt(process: subprocess.Popen[str]) -> None:
        trains("point")(process)
        slurm("scontrol", "requeue", jobs()["point"])

    words = (f"trainer.epochs={LONG}", "seed=0")
    (point,) = swept(*BASELINE, *words, meanwhile=preempt)
    assert point["status"] == "completed"
    assert len(json.loads(Path("swept/point/run.json").read_text())["resumed"]) == 1
    assert everything(Path("swept/point")) == alone(kd, *words)


@pytest.mark.parametrize("killed", [False, True])
def test_two_tasks_of_a_step_train_one_network(kd, conf: Path, killed: bool) -> None:
    (line,) = typed("scaling.md", "One network on several devices", "srun")
    assert line[1:] == ["kd", "run", "devices=auto"]
    words = ("train-baseline", *SMALL, f"trainer.epochs={40 if killed else 2}")
    kd_here = [sys.executable, "-m", "kd_cli"]
    step = ["srun", line[0], *kd_here, *words, line[-1], "hydra.run.dir=both"]
    with subprocess.Popen(step, stdout=-1, stderr=-1, text=True) as process:
        if killed:
            wait_for(process, "both/checkpoints/epoch-0003*")
            os.kill(task(conf, 1), signal.SIGKILL)
        printed, said = process.communicate(timeout=100)
    assert (process.returncode == 0, printed.count("of the test images")) == ((False, 0) if killed else (True, 1)), said
    if killed:
        assert "kd resume both" in said
        assert json.loads(Path("both/run.json").read_text())["status"] == "interrupted"
        kd("resume", "both", "devices=1")
    kd(*words, "hydra.run.dir=one")
    check_like(Path("one"), Path("both"))


def task(conf: Path, number: int) -> int:
    """The process of `kd` that is this task of a step."""
    (found,) = [
        each
        for each in processes(conf)
        if f"SLURM_PROCID={number}".encode() in Path(f"/proc/{each}/environ").read_bytes().split(b"\0")
        and b"kd_cli" in Path(f"/proc/{each}/cmdline").read_bytes()
    ]
    return found


def test_a_point_can_have_several_devices(kd) -> None:
    (point,) = swept(*BASELINE, "seed=0", "devices=2", "hydra.launcher.cpus_per_task=2")
    assert point["status"] == "completed"
    kd("train-baseline", *SMALL, "seed=0", "hydra.run.dir=one")
    check_like(Path("one"), Path(point["folder"]))


def test_a_cancelled_point_is_told_and_the_same_command_finishes_it(kd, slurm) -> None:
    def cancel(process: subprocess.Popen[str]) -> None:
        trains(f"trainer.epochs={LONG}")(process)
        slurm("scancel", jobs()[f"trainer.epochs={LONG}"])

    words = ("seed=0", f"trainer.epochs=2,{LONG}")
    done, cancelled = swept(*BASELINE, *words, code=1, meanwhile=cancel)
    assert (done["status"], cancelled["status"]) == ("completed", "cancelled")
    assert "was cancelled (by scancel" in cancelled["error"]
    assert "what was trained is kept" in cancelled["error"]
    assert not jobs()
    done, finished = swept(*BASELINE, *words)
    assert (done["status"], finished["status"]) == ("completed", "completed")
    run = Path(f"swept/trainer.epochs={LONG}")
    assert len(json.loads((run / "run.json").read_text())["resumed"]) == 1
    assert everything(run) == alone(kd, "seed=0", f"trainer.epochs={LONG}")


def test_detached_points_are_shown_and_the_same_command_hears_of_them(kd, slurm) -> None:
    words = (*BASELINE, "seed=0,1", "trainer.epochs=100", *SLURM, "hydra.launcher.array_parallelism=1")
    words = (*words, "hydra.sweep.dir=outputs/swept", "--json")
    for _ in range(2):  # the second submits nothing
        submitted = kd(*words, "--detach").json["points"]
        assert {point["status"] for point in submitted} <= {"queued", "running"}
    first, second = (jobs("outputs/swept")[f"seed={seed}"] for seed in (0, 1))
    assert (first.partition("_")[2], second.partition("_")[2]) == ("0", "1")
    array = first.partition("_")[0]  # another test's job waits for its limit meanwhile
    assert len(slurm("squeue", "--noheader", "--array", "--jobs", array).splitlines()) == 2
    listed = {Path(run["run"]).name: run["status"] for run in kd("list", "runs", "--json").json["runs"]}
    assert (listed["seed=0"] in ("queued", "running"), listed["seed=1"]) == (True, "queued")
    slurm("scancel", second)
    done, cancelled = kd(*words, code=1).json["points"]
    assert (done["status"], cancelled["status"]) == ("completed", "cancelled")
    assert "it had not begun" in cancelled["error"]
    assert {run["status"] for run in kd("list", "runs", "--json").json["runs"]} == {"completed"}
    assert kd(*words, "--detach").json["points"][0]["test_top1"] == done["test_top1"]  # it needs no job
    assert list(jobs("outputs/swept")) == ["seed=1"]


def test_more_points_than_an_array_takes_are_several_arrays_and_what_slurm_refuses_is_told(kd, slurm) -> None:
    words = (*BASELINE, *SLURM, "trainer.epochs=1", "hydra.sweep.dir=swept", "--detach", "--json")
    points = kd(*words, "seed=range(8)").json["points"]
    assert {point["status"] for point in points} <= {"queued", "running"}
    sizes = Counter(job.partition("_")[0] for job in jobs().values())
    assert sorted(sizes.values()) == [2, 3, 3]
    again = kd(*words, "seed=range(9)", "hydra.launcher.partition=none", code=1).json["points"]
    assert [point["status"] for point in again[8:]] == ["failed"]
    assert "invalid partition" in again[8]["error"]
    done = kd(*(word for word in words if word != "--detach"), "seed=range(9)").json["points"]
    assert [point["status"] for point in done] == ["completed"] * 9


def test_jobs_of_a_command_that_was_killed_are_found_again(kd, slurm) -> None:
    words = (*BASELINE, "seed=0", "trainer.epochs=100", *SLURM, "hydra.sweep.dir=swept", "--json")
    with started(*words, stdout=-1, stderr=-1) as process:
        while not (Path("swept/sweep.json").exists() and jobs()):
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.05)
            assert process.returncode is None
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    job = jobs()["point"]
    (point,) = kd(*words).json["points"]
    assert point["status"] == "completed"
    assert "resumed" not in json.loads(Path("swept/point/run.json").read_text())
    assert max(map(int, slurm("squeue", "--noheader", "--states=all", "--format=%F").split())) == int(job)


def test_a_point_out_of_time_keeps_what_it_has_and_goes_on(out_of_time, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(out_of_time)
    (point,) = swept(*HOPELESS, code=1)
    assert point["status"] == "failed"
    assert "at its time limit (hydra.launcher.timeout_min=1); what was trained is kept" in point["error"]
    run = Path(point["folder"])
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], "resumed" in record) == ("interrupted", False)
    epochs, saved = epochs_of(run), max(path.name for path in (run / "checkpoints").iterdir())
    assert int(saved[6:10]) >= epochs - ("step" in saved)  # nothing that was told is lost

    def stop(process: subprocess.Popen[str]) -> None:
        while epochs_of(run) <= epochs:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.05)
            assert process.returncode is None
        os.kill(process.pid, signal.SIGINT)

    (point,) = swept(*HOPELESS, "hydra.launcher.timeout_min=60", code=130, meanwhile=stop)
    assert point["status"] == "running"
    assert len(json.loads((run / "run.json").read_text())["resumed"]) == 1
