"""What a launcher costs is counted alike on every side. How much it was is not looked at here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import points, sweep_files, sweep_overhead
from benchmarks.measure import Done, Failed
from benchmarks.sweep_overhead import measure, sides


def test_the_overhead_is_what_a_point_takes_beside_its_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It waits for all that was started in this process, such as the servers of sweeps that other tests ran.
    seconds = iter([1.0, 4.0])
    monkeypatch.setattr(sweep_overhead, "_processor_seconds", lambda: next(seconds, 0.0))
    asked: list[Any] = []

    def runner(command: Any, **_: Any) -> Done:
        asked.append(command)
        return Done(10.0, {"points": [{"train_seconds": 0.5}, {"train_seconds": 1.5}]})

    cost = measure(sides(2)["kd, process"], 2, tmp_path / "two", runner)
    assert (cost.seconds, cost.training, cost.overhead) == (5.0, 0.5, 4.5)  # two points at a time
    assert cost.cpu == 1.5
    assert asked[0][-1] == "seed=range(2)"
    with pytest.raises(Failed, match="2 of 3 points"):
        measure(sides(2)["hydra, basic"], 3, tmp_path / "three", runner)


def test_every_side_says_how_long_it_trained(kd, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    words = [word for word in sides(1)["kd, process"].words[1:] if not word.startswith("hydra")]
    trained = kd(*words, "seed=range(2)", "hydra/launcher=basic").json["points"]
    assert all(point["train_seconds"] >= 0 for point in trained)
    assert {point["images"]["train"] for point in trained} == {points.TRAIN}
    monkeypatch.setattr(sys, "argv", ["points", "1", "seconds.json"])
    points.main()
    assert json.loads(Path("seconds.json").read_text()) > 0


def test_an_unknown_side_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sweep_overhead.main(["kd, ry"])
    assert "there is no side 'kd, ry'; there are kd, process" in capsys.readouterr().err


def test_what_comes_to_a_file_server_is_counted_by_whose_it_is() -> None:
    lines = """
7 openat(AT_FDCWD</home>, "/shared/swept/sweep.json.1", O_WRONLY|O_CREAT|O_EXCL, 0666) = 3</shared/swept/sweep.json.1>
7 rename("/shared/swept/sweep.json.1", "/shared/swept/sweep.json") = 0
8 newfstatat(AT_FDCWD</home>, "/shared/swept/sweep.json", {st_mode=S_IFREG|0644}, 0) = 0
8 openat(9</shared/swept/seed=0>, "run.json", O_RDONLY <unfinished ...>
8 <... openat resumed>) = -1 ENOENT (No such file or directory)
8 fsync(5</shared/swept/seed=0/run.json>) = 0
8 fcntl(5</shared/swept/seed=0/.lock>, F_GETFD) = 0
8 flock(5</shared/swept/seed=0/.lock>, LOCK_EX|LOCK_NB) = 0
8 openat(AT_FDCWD</home>, "/shared/cache/answers", O_RDONLY) = 4</shared/cache/answers>
8 openat(AT_FDCWD</home>, "/usr/lib/libc.so", O_RDONLY) = 4</usr/lib/libc.so>
8 +++ exited with 0 +++
"""
    own, by_points, by_command, cache = sweep_files.OWNERS
    assert sweep_files.count(lines.splitlines(), "/shared") == {
        (by_command, "created"): 1,
        (by_command, "renamed"): 1,
        (by_points, "looked at"): 1,
        (own, "opened"): 1,
        (own, "fsync"): 1,
        (own, "locked"): 1,
        (cache, "opened"): 1,
    }
