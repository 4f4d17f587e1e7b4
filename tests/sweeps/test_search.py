"""Searches with Optuna: what is tried is what is run and shown, nothing is run twice, hopeless trainings end early."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.trial import TrialState

from kd_cli.errors import ConfigError
from kd_cli.sweeps.point import Point
from kd_cli.sweeps.search.options import Options
from kd_cli.sweeps.search.space import read_axes, size_of
from kd_cli.sweeps.search.study import Search
from kd_cli.training.trial_pruner import OLDEST, opened_study
from tests.conftest import HERE, ROOT, SMALL, started

BASELINE = ("train-baseline", "-m", *SMALL, "hydra/sweeper=optuna")
RATE = "trainer.lr=tag(log,interval(1e-3,1e-1))"


class Killed(BaseException):
    """The process is gone before anything could be done about it."""


def axes_of(*words: str) -> Any:
    return read_axes(OverridesParser.create().parse_overrides(list(words)), lambda _: [])


def hunt(folder: Path, start: Any, *words: str, **options: Any) -> list[Point]:
    """Searches with points that `start` runs, two at a time; what came of all of them."""
    storage = f"sqlite:///{folder / 'optuna.db'}"
    with opened_study(storage, "hunt") as study:
        search = Search(
            study,
            Options(**options),
            axes_of(*words),
            [],
            storage=storage,
            folder=folder,
            owner="",
            seed=options["seed"],
        )
        search.run(start, at_once=2)
        return search.points


class Runner:
    """Runs points as a launcher would: x must be small. It is killed, or fails, at its n-th point."""

    def __init__(self, killed_at: int | None = None, failing: Sequence[int] = ()) -> None:
        self.ran: list[str] = []
        self.killed_at, self.failing = killed_at, failing

    def __call__(self, points: Sequence[Sequence[str]]) -> list[Point]:
        return [self._run(point[0]) for point in points]

    def _run(self, word: str) -> Point:
        if len(self.ran) == self.killed_at:
            raise Killed
        self.ran.append(word)
        if len(self.ran) - 1 in self.failing:
            return {"point": word, "status": "failed", "error": "no space left on the device"}
        return {"point": word, "status": "completed", "val_top1": 100 - float(word.partition("=")[2])}


def states(folder: Path) -> list[TrialState]:
    """Of the trials of the only study in a sweep's folder."""
    storage = f"sqlite:///{folder / 'optuna.db'}"
    (name,) = optuna.get_all_study_names(storage)
    with opened_study(storage, name) as study:
        return [trial.state for trial in study.trials]


def test_what_is_tried_is_what_is_run_shown_and_remembered_and_the_best_can_be_typed_again(kd) -> None:
    done = kd(*BASELINE, HERE, RATE, "hydra.sweeper.n_trials=3", "hydra.sweep.dir=swept", "--json")
    points, found = done.json["points"], done.json["optuna_results"]
    assert len(points) == found["points"]["completed"] == 3
    for point in points:
        key, _, value = point["point"].partition("=")
        assert key == "trainer.lr"
        assert 1e-3 <= float(value) <= 1e-1
        assert value == repr(float(f"{float(value):.3g}"))
        assert Path(point["run"]).name == Path(point["folder"]).name == point["point"]
        assert f"  lr: {value}\n" in Path(point["run"], "config.yaml").read_text()
    best = found["best"]
    assert best["val_top1"] == max(point["val_top1"] for point in points)
    assert f"trainer.lr={best['params']['trainer.lr']!r}" == best["point"]
    again = kd(*shlex.split(best["command"])[1:], "--json")
    chosen = next(point for point in points if point["point"] == best["point"])
    assert again.json["weights_sha256"] == chosen["weights_sha256"]
    assert again.json["run"] != chosen["run"]
    for text in ("Best of 3 points (3 completed)", "which is therefore optimistic", best["command"]):
        assert text in done.err


def test_points_in_folders_inside_of_folders_are_found_again(kd) -> None:
    words = (*BASELINE, HERE, "hydra.sweeper.n_trials=2", RATE, "hydra.sweep.dir=there")
    words += ("hydra.sweep.subdir=seed${seed}/${hydra.job.num}", "--json")
    for _ in range(2):
        assert Path(kd(*words).json["optuna_results"]["best"]["run"], "run.json").exists()
    points = json.loads(Path("there/sweep.json").read_text())["points"]
    assert sorted(point["folder"] for point in points) == ["seed0/0", "seed0/1"]


def test_the_same_seed_tries_the_same_points_and_another_does_not(tmp_path: Path) -> None:
    tried = {}
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        tried[name] = Runner()
        hunt(tmp_path / name, tried[name], "x=interval(0,1)", n_trials=5, n_startup_trials=2, seed=seed)
    assert tried["one"].ran == tried["same"].ran
    assert not set(tried["one"].ran) & set(tried["other"].ran)


@pytest.mark.parametrize("killed_at", [0, 3])
def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path: Path, killed_at: int) -> None:
    options = {"n_trials": 5, "n_startup_trials": 2, "seed": 0}
    whole, first, rest = Runner(), Runner(killed_at=killed_at), Runner()
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    hunt(tmp_path / "whole", whole, "x=interval(0,1)", **options)
    with pytest.raises(Killed):
        hunt(tmp_path / "killed", first, "x=interval(0,1)", **options)
    points = hunt(tmp_path / "killed", rest, "x=interval(0,1)", **options)
    assert [point["point"] for point in points] == whole.ran
    batch = killed_at - killed_at % 2  # what its launcher was given together is given again: its folders are there
    assert first.ran[:batch] + rest.ran == whole.ran
    assert states(tmp_path / "killed") == [TrialState.COMPLETE] * 5
    hunt(tmp_path / "killed", last := Runner(), "x=interval(0,1)", **options)
    assert last.ran == []
    hunt(tmp_path / "killed", last, "x=interval(0,1)", **{**options, "n_trials": 6})
    assert len(last.ran) == 1


def test_a_point_that_failed_is_tried_again_at_the_next_start_and_once(tmp_path: Path) -> None:
    options = {"n_trials": 4, "n_startup_trials": 3, "seed": 0}
    first, rest = Runner(failing=[1]), Runner()
    hunt(tmp_path, first, "x=interval(0,1)", **options)
    assert len(first.ran) == 4
    hunt(tmp_path, rest, "x=interval(0,1)", **options)
    assert rest.ran == first.ran[1:2]
    assert sorted(states(tmp_path)) == [TrialState.COMPLETE] * 4 + [TrialState.FAIL]


def test_a_search_ends_where_everything_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = Runner(failing=range(20))
    hunt(tmp_path, runner, "x=interval(0,1)", n_trials=20, seed=0)
    assert len(runner.ran) == 4
    assert "every point so far failed" in capsys.readouterr().err


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
def test_no_point_is_run_twice_and_a_space_that_is_used_up_ends_the_search(tmp_path: Path, sampler: str) -> None:
    runner = Runner()
    words = ("x=1,2,3", "y=range(0,2)")
    hunt(tmp_path, runner, *words, n_trials=6 if sampler == "grid" else 200, sampler=sampler, seed=0)
    assert sorted(runner.ran) == ["x=1", "x=1", "x=2", "x=2", "x=3", "x=3"]
    assert len(states(tmp_path)) == 6  # none of the 200 trials is spent on a point that was tried


def test_a_search_says_how_many_points_it_can_try_and_which_trials_repeat_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hunt(tmp_path, Runner(), "x=1,2", n_trials=4, seed=0)
    said = "".join(capsys.readouterr())
    assert "for hydra.sweeper.n_trials=4 there is nothing to choose; each is tried once" in said
    assert "search     2 of 2 points; best 99.00 %" in said
    (tmp_path / "more").mkdir()
    hunt(tmp_path / "more", runner := Runner(), "x=range(0,9)", n_trials=8, sampler="random", seed=0)
    again = 8 - len(runner.ran)
    assert again
    assert f"search     8 of 8 trials ({again} of them were of a point that had been tried)" in "".join(
        capsys.readouterr()
    )


def test_a_trial_that_diverged_tells_the_sampler_where_not_to_look(tmp_path: Path) -> None:
    def diverge(points: Sequence[Sequence[str]]) -> list[Point]:
        return [{"point": point[0], "status": "diverged", "error": "the loss is not finite"} for point in points]

    hunt(tmp_path, diverge, "x=interval(0,1)", n_trials=2, seed=0)
    assert states(tmp_path) == [TrialState.PRUNED] * 2


def test_only_the_hopeless_distilled_student_of_a_comparison_is_ended(kd) -> None:
    words = (
        "run",
        "-m",
        *SMALL,
        "trainer.epochs=4",
        "distill_trainer.lr=choice(1e-9,0.01)",
        HERE,
        "hydra/sweeper=optuna",
    )
    how = ("hydra.sweeper.sampler=grid", "hydra.sweeper.n_startup_trials=1", "hydra.sweeper.seed=1")
    done = kd(*words, *how, "hydra.sweep.dir=swept", "--json")
    good, bad = done.json["points"]
    assert (good["status"], bad["status"]) == ("completed", "pruned")
    assert bad["point"] == "distill_trainer.lr=1e-09"
    assert "pruned after epoch 2 of 4" in bad["error"]
    folder = Path("swept", bad["folder"])
    for name, epochs, status in (("teacher", 4, "completed"), ("baseline", 4, "completed"), ("distilled", 2, "pruned")):
        assert len(Path(folder, name, "metrics.jsonl").read_text().splitlines()) == epochs
        assert json.loads(Path(folder, name, "run.json").read_text())["status"] == status
    record = json.loads(Path(folder, "run.json").read_text())
    assert (record["status"], record["error"]) == ("pruned", bad["error"])
    assert Path(folder, "distilled", "checkpoints", "epoch-0002").is_dir()
    assert "pruned" in next(line for line in done.err.splitlines() if line.startswith(" distill_trainer.lr=1e-09"))
    assert done.json["optuna_results"]["points"] == {"completed": 1, "pruned": 1}
    kd("resume", str(folder))  # by hand it goes on to its end
    assert Path(folder, "result.json").exists()


@pytest.mark.slow  # two starts of processes that import torch
def test_points_in_processes_of_their_own_outlive_a_kill_and_are_pruned_too(kd) -> None:
    """It takes as long as processes take to import torch and Optuna."""
    rates = ("trainer.lr=choice(1e-9,0.01,0.02)", "trainer.epochs=10", "hydra.sweeper.sampler=grid")
    how = ("hydra.sweeper.seed=3", "hydra.sweeper.n_startup_trials=1", "hydra.sweep.dir=swept")
    words = (*BASELINE, *rates, *how, "hydra.launcher.n_jobs=2")
    with started(*words) as process:
        while not list(Path("swept").glob("*/metrics.jsonl")):
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.05)
            assert process.returncode is None
        os.killpg(process.pid, signal.SIGKILL)
    assert states(Path("swept"))[:2] == [TrialState.RUNNING] * 2
    done = kd(*words, "--json")
    assert [point["status"] for point in done.json["points"]] == ["completed", "completed", "pruned"]
    assert done.json["points"][2]["point"] == "trainer.lr=1e-09"
    assert states(Path("swept")) == [TrialState.COMPLETE] * 2 + [TrialState.PRUNED]


def test_a_preset_may_say_what_is_searched_and_the_command_line_wins(kd) -> None:
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/rates.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /hydra/sweeper: optuna\n"
        "hydra:\n  sweeper:\n    n_trials: 2\n    sampler: random\n    params:\n"
        "      trainer.lr: tag(log,interval(1e-3,1e-2))\n      trainer.batch_size: choice(50,60)\n"
        "baseline_trainer:\n  lr: 0.5\n"
    )
    words = ("train-baseline", "-m", "--config-dir", "mine", "experiment=rates", *SMALL, HERE)
    points = kd(*words, "--json").json["points"]
    assert len(points) == 2
    for point in points:
        assert set(point["point"].partition("=")[::2]) != {""}
        rate = point["point"].split("trainer.lr=")[1].split()[0]
        config = Path(point["run"], "config.yaml").read_text().partition("baseline_trainer:")[2]
        assert f"  lr: {rate}\n" in config.partition("distill_trainer")[0]
        assert "trainer.batch_size=" not in point["point"]  # SMALL types one
    typed = kd(*words, "trainer.lr=0.01", code=2)
    assert "nothing is searched" in typed.message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("loss=interval(1,2)",), "loss is a group; type 'loss=choice("),
        (("student=choice(mlp,mpl)", RATE), "there is no student 'mpl'; did you mean 'mlp'?"),
        (("trainer.lr=tag(log,interval(0,1))",), "has no logarithm at 0"),
        (("trainer.lr=tag(lgo,interval(1,2))",), "tag 'lgo'; did you mean 'log'?"),
        (("trainer.lr=interval(2,1)",), "type 'trainer.lr=interval(1,2)', the lower one first"),
        (("trainer.epochs=interval(1,5)",), "type 'trainer.epochs=int(interval(1,5))'"),
        (("trainer.lrx=interval(1,5)",), "trainer.lrx: there is no such option; did you mean 'trainer.lr'?"),
        ((), "nothing is searched"),
        (
            (RATE, "hydra.sweeper.n_trials=0"),
            "hydra.sweeper.n_trials: 0 is not possible; it must be a whole number ≥ 1",
        ),
        ((RATE, "hydra.sweeper.sampler=tpo"), "hydra.sweeper.sampler: 'tpo' is not possible; did you mean 'tpe'?"),
        ((RATE, "hydra.sweeper.pruner=medain"), "did you mean 'median'?"),
        ((RATE, "hydra.sweeper.trials=3"), "hydra.sweeper.trials: there is no such option"),
        ((RATE, "hydra.sweeper.sampler=grid"), "sampler=grid cannot try all of"),
        ((RATE, "hydra.sweeper.storage=nowhere"), "hydra.sweeper.storage: it cannot be opened"),
        ((RATE, "dataset.val_fraction=0"), "dataset.val_fraction is 0; type dataset.val_fraction=0.1"),
    ],
)
def test_a_search_that_cannot_work_is_refused_before_anything_runs(kd, words: tuple[str, ...], message: str) -> None:
    refused = kd(*BASELINE, HERE, "hydra.sweep.dir=swept", *words, code=2)
    assert message in refused.message
    assert not list(Path("swept").glob("*/run.json"))


@pytest.mark.parametrize("found", [None, "2.10.1", "4.6.0"])
def test_without_optuna_or_with_an_old_one_it_says_what_to_install(found: str | None, tmp_path: Path) -> None:
    """`hydra-optuna-sweeper`, Hydra's own plugin, brings Optuna 2."""
    if found:
        (tmp_path / f"optuna-{found}.dist-info").mkdir()
        (tmp_path / f"optuna-{found}.dist-info" / "METADATA").write_text(f"Name: optuna\nVersion: {found}\n")
    (tmp_path / "optuna").mkdir()
    (tmp_path / "optuna" / "__init__.py").write_text("raise ImportError('not this one')\n")
    hidden = "" if found else "import importlib.metadata as m\nold = m.version\n"
    if not found:
        hidden += (
            "def version(name):\n    if name == 'optuna': raise m.PackageNotFoundError(name)\n    return old(name)\n"
        )
        hidden += "m.version = version\n"
    code = f"{hidden}from kd_cli.cli import main\nmain()\n"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "COLUMNS": "400"}
    words = [sys.executable, "-W", "ignore", "-c", code, *BASELINE, RATE]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 2, done.stderr
    assert "type pip install 'kd-cli[optuna]'" in done.stderr
    assert f"needs Optuna 5 or newer, and {found} is installed" in done.stderr or not found


def test_the_oldest_optuna_is_the_one_that_the_package_asks_for() -> None:
    assert f'optuna = ["optuna>={OLDEST}"]' in (ROOT / "pyproject.toml").read_text()


def test_a_study_of_another_search_is_left_alone(tmp_path: Path) -> None:
    hunt(tmp_path, Runner(), "x=interval(0,1)", n_trials=1, seed=0)
    with pytest.raises(ConfigError, match=r"x=interval\(0,1\) there, x=interval\(0,2\) here"):
        hunt(tmp_path, Runner(), "x=interval(0,2)", n_trials=1, seed=0)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a,b,a", ["a", "b"]),
        ("choice([8],[16,8])", ["[8]", "[16,8]"]),
        ("range(8,33,8)", [8, 16, 24, 32]),
        ("range(3,0,-1)", [1, 2, 3]),
        ("range(0,0.5,0.1)", [0.0, 0.1, 0.2, 0.3, 0.4]),
        ("int(interval(1,3))", [1, 2, 3]),
        ("interval(1,3)", None),
    ],
)
def test_hydras_grammar_says_what_is_tried(text: str, values: list[Any] | None) -> None:
    (axis,) = axes_of(f"x={text}")
    assert axis.values() == values
    assert size_of([axis]) == (None if values is None else len(values))


def test_importances_are_told_of_many_trials_and_need_no_more_than_optuna() -> None:
    study = optuna.create_study(direction="maximize")
    axes = axes_of("x=interval(0,100)", "y=interval(0,100)")
    found = []
    for n_trials in (39, 40):
        search = Search(
            study, Options(n_trials=n_trials), axes, [], storage="sqlite://", folder=Path(), owner="", seed=0
        )
        search.run(Runner(), at_once=1)
        found.append(search.summary(" ".join)["importances"])
    assert found[0] == {}
    assert found[1]["x"] > 0.7
