"""Points that share a process and take turns: each has the bits that it has alone, and ends by itself."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kd_cli import console
from kd_cli.config.base import TRIAL
from kd_cli.errors import OutOfMemory
from kd_cli.launch.hydra_app import run_once
from kd_cli.sweeps import launchers
from kd_cli.sweeps.processes import run_points
from kd_cli.sweeps.share import Share
from kd_cli.sweeps.together import Memory
from kd_cli.sweeps.worker import Work
from kd_cli.turns import once, rest
from tests.conftest import SMALL

JOBS = "kd_cli.experiments.experiment"
TOGETHER, APART = Share(1, 1, at_once=3), Share(1, 1)
LONG = ("trainer.epochs=25", "trainer.checkpoint_every=1000")
pytestmark = pytest.mark.usefixtures("one_thread")


def point(folder: str, *words: str, command: str = "train-baseline") -> Work:
    path = Path(folder).resolve()
    environment = {**os.environ, "KD_CACHE": str(path.parent / "cache")}
    job = f"{JOBS}:{command.replace('-', '_')}"
    start = partial(run_once, job, command, [*SMALL, *words, f"hydra.run.dir={path}"])
    return Work(path.name, path, environment, start)


def read(*path: str) -> Any:
    return json.loads(Path(*path).read_text())


def left_by(run: Path) -> dict[str, object]:
    """All that a run leaves, but for what says when, where and how fast."""
    timeless = {"seconds", "images_per_second"}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights = {
        str(file.relative_to(run)): file.read_bytes()
        for file in [*run.glob("checkpoints/*/*.safetensors"), run / "predictions.safetensors"]
    }
    result = read(str(run), "result.json")
    for moving in ("run", "train_seconds"):
        del result[moving]
    record = read(str(run), "run.json")
    kept = ("config_digest", "threads", "seed", "data", "status", "command")
    return {
        "metrics": [{key: value for key, value in row.items() if key not in timeless} for row in rows],
        "files": sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.name != "log.txt"),
        "result": result,
        "record": {key: record.get(key) for key in kept},
        **weights,
    }


def said(place: str, name: str) -> str:
    """A point's log, but for speed and place."""
    text = re.sub(r"[\d,]+ images/s", "images/s", Path(place, name, "log.txt").read_text())
    return text.replace(f"{place}/{name}", name)


@pytest.mark.usefixtures("teacher")
def test_points_that_share_a_process_are_those_that_run_alone_whatever_becomes_of_the_others() -> None:
    options = {
        "mild": ("loss.temperature=1", "seed=1", "dataset.augment=crop_flip"),
        "warm": ("loss.temperature=8", "seed=2", "trainer.ema_decay=0.9"),
        "other": ("loss=crd", "seed=3", "student.dropout=0.3"),
        "wild": ("trainer.lr=1e30",),
        "wrong": ("trainer.lr=-1",),
    }
    noticed = ("teacher_trainer.epochs=3",)  # it has no effect, which each is told
    works = [point(f"joint/{name}", *noticed, *words, command="distill") for name, words in options.items()]
    points = run_points(works, Share(1, 1, at_once=4))
    assert [each["status"] for each in points] == [*["completed"] * 3, "diverged", "failed"]
    assert [each.get("exit_code") for each in points[3:]] == [4, 2]
    assert len({read("joint", name, "run.json")["pid"] for name in ("mild", "warm", "other", "wild")}) == 1
    alone = run_points(
        [point(f"alone/{name}", *noticed, *words, command="distill") for name, words in options.items()], APART
    )
    assert [each["status"] for each in alone] == [each["status"] for each in points]
    for name in options:
        assert said("joint", name) == said("alone", name)
    for name in ("mild", "warm", "other"):
        assert left_by(Path("joint", name)) == left_by(Path("alone", name))


def test_points_take_turns_and_one_alone_runs_at_a_time() -> None:
    works = [Work(name, Path("swept", name), dict(os.environ), partial(see_others, name)) for name in "abc"]
    points = run_points(works, TOGETHER)
    assert {each["most"] for each in points} == {1}
    assert len({each["thread"] for each in points}) == 3
    assert {each["made"] for each in points} == {points[0]["made"]}
    assert any(each["met"] > 1 for each in points)
    for name in "abc":  # what is to be said of what is made is said to all
        assert Path("swept", name, "log.txt").read_text() == "note: it was made\n"


_there: set[str] = set()
_at_work = 0


def see_others(name: str) -> dict[str, Any]:
    """How many run between two places where they give way, how many are there at all; what is made is made once."""
    global _at_work
    _there.add(name)
    most = met = 0
    for _ in range(20):
        _at_work += 1
        time.sleep(0.001)  # the interpreter lets other threads run
        most, met = max(most, _at_work), max(met, len(_there))
        _at_work -= 1
        rest(0.001)
    made = min(once("number", make))
    _there.remove(name)
    return {"most": most, "met": met, "made": made, "thread": threading.get_ident()}


def make() -> set[int]:
    console.notice("it was made")
    return {threading.get_ident()}


def stops(*logs: str) -> Callable[[], bool]:
    """Asks the points to end when all of them are at work."""
    return lambda: all(Path(log, "metrics.jsonl").exists() for log in logs)


def test_a_request_to_end_finds_every_point_between_two_steps_and_the_same_points_go_on(kd) -> None:
    names = {"a": "seed=1", "b": "seed=2"}
    works = [point(f"joint/{name}", *LONG, seed) for name, seed in names.items()]
    points = run_points([*works, point("joint/c", *LONG)], Share(1, 1, at_once=2), unwanted=stops("joint/a", "joint/b"))
    assert [each["status"] for each in points] == ["interrupted", "interrupted", "not started"]
    assert [each["exit_code"] for each in points] == [143] * 3
    for name in names:
        assert read("joint", name, "run.json")["status"] == "interrupted"
        assert "kd resume" in Path("joint", name, "log.txt").read_text()
        assert list(Path("joint", name, "checkpoints").iterdir())
    assert [each["status"] for each in run_points(works, TOGETHER)] == ["completed"] * 2
    for name, seed in names.items():
        assert "goes on after epoch" in Path("joint", name, "log.txt").read_text()
        kd("train-baseline", *SMALL, *LONG, seed, f"hydra.run.dir=alone/{name}")
        assert (
            read("joint", name, "result.json")["weights_sha256"] == read("alone", name, "result.json")["weights_sha256"]
        )


def short_of_memory(start: Callable[[], dict[str, Any]], tries: str, times: int) -> dict[str, Any]:
    """Is out of memory so many times."""
    with Path(tries).open("a") as file:
        file.write(".")
    if len(Path(tries).read_text()) <= times:
        raise OutOfMemory(f"nothing fits ({tries})")
    return start()


def test_a_point_that_is_out_of_memory_beside_others_is_run_again_alone_and_fails_only_then(capsys) -> None:
    works = [point(name) for name in "abc"]
    tries = {"b": 1, "c": 9}
    short = [
        Work(
            work.label,
            work.folder,
            work.environment,
            partial(short_of_memory, work.start, f"{work.label}.tries", tries[work.label]),
        )
        for work in works[1:]
    ]
    points = run_points([works[0], *short], TOGETHER)
    assert [each["status"] for each in points] == ["completed", "completed", "failed"]
    assert (points[2]["error"], points[2]["exit_code"]) == ("nothing fits (c.tries)", 1)
    assert [Path(f"{name}.tries").read_text() for name in "bc"] == ["..", ".."]
    printed = capsys.readouterr().out
    assert "point 2 of 3 was out of memory beside others" in printed
    assert printed.index("point 1 of 3 done") < printed.rindex("point 2 of 3 starts")


def dies_once(start: Callable[[], dict[str, Any]], mark: str, together: str) -> dict[str, Any]:
    """The process ends without a word when another point is at work in it."""
    if not Path(mark).exists():
        while not list(Path(together).glob("epoch-*")):
            rest(0.001)
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return start()


def test_where_the_process_dies_its_points_go_on_each_in_one_of_its_own_and_the_others_together(kd, capsys) -> None:
    long = point("joint/a", "trainer.epochs=8")
    deadly = partial(dies_once, point("joint/b").start, "mark", "joint/a/checkpoints")
    works = [long, Work("b", Path("joint/b"), long.environment, deadly), point("joint/c"), point("joint/d")]
    points = run_points(works, Share(1, 1, at_once=2))
    assert [each["status"] for each in points] == ["completed"] * 4
    pids = [read("joint", name, "run.json")["pid"] for name in "abcd"]
    assert len(set(pids[:2])) == 2
    assert pids[2] == pids[3]
    assert "signal 9" in capsys.readouterr().err
    assert "goes on after epoch" in Path("joint/a/log.txt").read_text()
    kd("train-baseline", *SMALL, "trainer.epochs=8", "hydra.run.dir=alone")
    assert read("joint/a/result.json")["weights_sha256"] == read("alone/result.json")["weights_sha256"]


def test_points_of_a_comparison_wait_for_the_teacher_that_they_share_with_one_another(kd, monkeypatch) -> None:
    monkeypatch.setattr(launchers, "divide", lambda *_, **__: TOGETHER)
    swept = kd("run", "-m", *SMALL, "loss.temperature=1,4,8", "hydra.sweep.dir=swept", "--json").json["points"]
    assert [each["status"] for each in swept] == ["completed"] * 3
    assert len(list(Path("swept/parts").iterdir())) == 2
    logs = [Path("swept", f"loss.temperature={value}", "log.txt").read_text() for value in (1, 4, 8)]
    assert sum("teacher    epoch" in log for log in logs) == 1
    assert any("waiting for swept/loss.temperature=" in log for log in logs)
    kd("run", *SMALL, "loss.temperature=4", "hydra.run.dir=alone")
    for part in ("teacher", "baseline", "distilled"):
        assert left_by(Path("swept/loss.temperature=4", part).resolve()) == left_by(Path("alone", part))


@pytest.mark.slow
def test_trials_of_a_search_are_pruned_one_by_one(kd, monkeypatch) -> None:
    monkeypatch.setattr(launchers, "divide", lambda *_, **__: TOGETHER)
    words = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_startup_trials=1", "trainer.epochs=6")
    prune = ("hydra.sweeper.pruner=median", "hydra.sweeper.n_warmup_epochs=1")
    rate = "trainer.lr=choice(0.01,0.02,1e-9)"
    done = kd("train-baseline", "-m", *SMALL, *words, *prune, rate, "hydra.sweep.dir=swept", "--json").json
    assert {each["status"] for each in done["points"]} <= {"completed", "pruned"}
    assert len({read(each["folder"], "run.json")["pid"] for each in done["points"]}) == 1


def test_another_point_begins_only_where_free_memory_exceeds_what_one_has_taken() -> None:
    free = [100]
    memory = Memory(lambda: free[0])
    memory.begin()
    free[0] = 70
    memory.measure()
    assert memory.suffices()
    memory.begin()
    free[0] = 36
    memory.measure()  # took 34, 1.2 times which is 40.8
    assert not memory.suffices()
    free[0] = 41
    assert memory.suffices()


def trial_of() -> dict[str, Any]:
    return {"trial": os.environ.get(TRIAL), "mine": os.environ["MINE"], "process": os.getpid()}


def test_points_with_other_variables_have_another_process_but_their_trials_are_their_own() -> None:
    own = [
        {"MINE": "a", TRIAL: "1"},
        {"MINE": "b"},
        {"MINE": "a", TRIAL: "3"},
        {"MINE": "a"},
        {"MINE": "b", TRIAL: "5"},
    ]
    works = [
        Work(f"{number}", Path("swept", f"{number}"), {**os.environ, **variables}, trial_of)
        for number, variables in enumerate(own)
    ]
    points = run_points(works, TOGETHER)
    assert [(each["mine"], each["trial"]) for each in points] == [(each["MINE"], each.get(TRIAL)) for each in own]
    processes = [each["process"] for each in points]
    assert processes == [processes[0], processes[1], processes[0], processes[0], processes[1]]
    assert processes[0] != processes[1]


def leave(code: int) -> dict[str, Any]:
    raise SystemExit(code)


def test_a_component_that_leaves_python_ends_its_point_alone() -> None:
    works = [Work(name, Path("swept", name), dict(os.environ), partial(leave, 3)) for name in "ab"]
    assert [each["status"] for each in run_points(works, TOGETHER)] == ["failed", "failed"]
