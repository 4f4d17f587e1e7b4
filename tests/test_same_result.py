"""The same command gives the same bits wherever and however it is started; where it may not, that is said."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from kd_cli.errors import KDError
from kd_cli.runs.folder import RunDir
from kd_cli.runs.provenance import changes, go_on
from tests.conftest import SMALL
from tests.support.forked import run
from tests.support.images import make_tree
from tests.support.sample import ALL

# An assistant, augmentation, images that are decoded in workers, a loss with layers and a memory.
COMMAND = (
    *("dataset=image_folder", "dataset.image_size=16", "dataset.in_memory=false", "dataset.augment=crop_flip"),
    *("teacher=cnn_small", "student=cnn_tiny", "assistants=[{name: resnet8}]"),
    *("loss=crd", "trainer.epochs=2", "trainer.batch_size=8", "--json"),
)

# Environment, workers, and what is done in the process first, of each start.
STARTS: tuple[tuple[dict[str, str], int, Callable[[], object]], ...] = (
    ({"PYTHONHASHSEED": "0", "LC_ALL": "C"}, 0, partial(os.umask, 0o022)),
    ({"PYTHONHASHSEED": "1", "LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo"}, 1, partial(os.umask, 0o077)),
    ({"PYTHONHASHSEED": "2", "LC_ALL": "de_DE.UTF-8", "LC_NUMERIC": "de_DE.UTF-8"}, 2, partial(os.nice, 5)),
    ({"PYTHONHASHSEED": "3", "COLUMNS": "30"}, 3, partial(os.close, 0)),
    ({"PYTHONHASHSEED": "4", "TERM": "dumb", "NO_COLOR": "1"}, 0, partial(os.umask, 0o002)),
    ({"PYTHONHASHSEED": "5", "COLUMNS": "400", "TZ": "America/St_Johns"}, 1, partial(os.nice, 1)),
    ({"PYTHONHASHSEED": "random", "CI": "1", "LANG": "tr_TR.UTF-8"}, 2, partial(os.umask, 0o022)),
    ({"PYTHONHASHSEED": "4294967295", "PYTHONOPTIMIZE": "0", "LC_ALL": "fr_FR"}, 3, os.setsid),
)


def digest(folder: Path) -> str:
    """Of all that a comparison ends with: every part's weights, metrics without times, and predictions."""
    parts = sorted(path.parent for path in folder.rglob("predictions.safetensors"))
    text = []
    for part in parts:
        result = json.loads((part / "result.json").read_text())
        rows = list(csv.DictReader((part / "metrics.csv").read_text().splitlines()))
        timeless = [[row[name] for name in row if name not in ("seconds", "images_per_second")] for row in rows]
        said = hashlib.sha256((part / "predictions.safetensors").read_bytes()).hexdigest()
        text.append(f"{part.name} {result['weights_sha256']} {result['test_nll']} {timeless} {said}")
    assert [part.name for part in parts] == ["assistant-1", "baseline", "distilled", "teacher"]
    return hashlib.sha256("\n".join(text).encode()).hexdigest()


def begin(number: int, root: Path, cold: bool) -> subprocess.Popen[bytes]:
    """One of the starts, in a folder and, if it is cold, with a cache of its own."""
    settings, workers, first = STARTS[number]
    here = Path("x" * number, f"start {number}").absolute()
    here.mkdir(parents=True)
    cache = {"KD_CACHE": str(here / "cache" if cold else root.parent / "cache")}
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "TZ", "COLUMNS"))}
    words = [sys.executable, "-m", "kd_cli", "run", *COMMAND, f"dataset.root={root}", f"dataset.workers={workers}"]
    with Path(here, "said").open("wb") as said:
        return subprocess.Popen(
            [*words, "hydra.run.dir=run"],
            cwd=here,
            env=keep | cache | settings,
            preexec_fn=first,
            stdout=said,
            stderr=said,
        )


@pytest.mark.slow
def test_eight_fresh_processes_give_one_hash() -> None:
    """By default four of them: every number of workers, warm and cold caches."""
    root = make_tree(Path("tree").absolute(), per_class=16, suffix="jpg")
    numbers = range(8) if ALL else (0, 5, 6, 3)
    pairs = [
        [begin(number, root, cold=number % 3 == 0) for number in pair]
        for pair in zip(numbers[::2], numbers[1::2], strict=True)
    ]
    for pair in pairs:
        for process in pair:
            process.wait()
    folders = [Path("x" * number, f"start {number}") for number in numbers]
    said = [Path(folder, "said").read_text() for folder in folders]
    assert all((folder / "run" / "result.json").exists() for folder in folders), said
    assert len({digest(folder / "run") for folder in folders}) == 1


@pytest.mark.slow
def test_what_is_not_as_it_was_is_said_in_one_line_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "3000")
    words = ("run", *SMALL, "trainer.epochs=1", "hydra.run.dir=one")
    run(*words)
    record = json.loads(Path("one/run.json").read_text())
    for name in ("result.json", "distilled/result.json"):
        Path("one", name).unlink()
    for path in ("one/run.json", "one/distilled/run.json"):
        begun = json.loads(Path(path).read_text())
        begun |= {"threads": 7, "packages": begun["packages"] | {"torch": "2.0.0"}, "device": "cuda"}
        Path(path).write_text(json.dumps(begun))
    said = run("resume", "one").err
    (line,) = [line for line in said.splitlines() if "not all is as it was" in line]
    for part in ("threads: 7 then, 1 now", "torch: 2.0.0 then, ", "device: cuda then, cpu now", "may differ"):
        assert part in line
    assert "with OMP_NUM_THREADS=7 the threads are as before" in line
    for path in ("one/run.json", "one/distilled/run.json"):
        after = json.loads(Path(path).read_text())
        assert (after["threads"], after["device"], after["packages"]["torch"]) == (7, "cuda", "2.0.0")
        (session,) = after["resumed"]
        assert session["changes"]["threads"] == [7, 1]
        assert session["host"] == record["host"]
    assert after["status"] == "completed"


def test_nothing_is_said_where_all_is_as_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    identity = {"command": "distill", "threads": 2, "git_commit": None, "packages": {"torch": "2.6"}, "python": "3.11"}
    with pytest.raises(KDError), RunDir.open(tmp_path / "a", identity, {}, exact=True):
        raise KDError("stopped")
    with RunDir.open(tmp_path / "a", identity | {"host": "b"}, {}, exact=True) as run_dir:
        assert [session["changes"] for session in run_dir.record["resumed"]] == [{}]
        assert run_dir.record["error"] is None
    assert not caplog.text


@pytest.mark.parametrize(
    ("then", "now", "expected"),
    [
        ({"threads": 1}, {"threads": 2}, {"threads": [1, 2]}),
        ({"threads": 1}, {}, {}),
        ({}, {"threads": 1}, {}),
        (
            {"machine": {"processor": "x86_64", "cores": 2}},
            {"machine": {"processor": "arm64", "cores": 2}},
            {"processor"},
        ),
        ({"machine": {"processor": "x86_64", "cores": 2}}, {"machine": {"processor": "x86_64", "cores": 8}}, {}),
        ({"instructions": "AVX2"}, {"instructions": "AVX512"}, {"instructions of the processor"}),
        (
            {"packages": {"kd-cli": "1", "torch": "2"}},
            {"packages": {"kd-cli": "2", "torch": "2"}},
            {"kd-cli": ["1", "2"]},
        ),
        ({"git_commit": "a"}, {"git_commit": "b"}, {"git commit": ["a", "b"]}),
        ({"git_diff_sha256": None}, {"git_diff_sha256": "b"}, {"SHA-256 of uncommitted changes": [None, "b"]}),
        ({"host": "a", "directory": "/a"}, {"host": "b", "directory": "/b"}, {}),
    ],
)
def test_only_what_bits_depend_on_counts(then: dict, now: dict, expected: dict | set) -> None:
    found = changes(then, now)
    assert (set(found) if isinstance(expected, set) else found) == expected
    assert go_on(then, now)["changes"] == found
