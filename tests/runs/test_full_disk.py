"""A disk that is full, read-only or gone costs time only: what was written is whole, the message says how to go on.

Each case is a real one: a disk of so many pages (where the machine lets a test mount one), or a limit on files' sizes.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kd_cli.runs.checkpoint import Checkpoint
from kd_cli.training.trainer import Trainer
from tests.conftest import Outcome
from tests.support.disks import apart, can_mount, grow, make_read_only, obey_permissions, small_disk
from tests.support.forked import fork, run
from tests.support.sample import ALL

DATA = (
    "dataset=synthetic",
    "dataset.num_train=60",
    "dataset.num_test=240",
    "dataset.image_size=8",
    "dataset.augment=flip",
)
TINY = (*DATA, "teacher=mlp", "teacher.hidden=[8]", "student=linear", "trainer.epochs=3", "trainer.batch_size=20")
FOLDER = "hydra.run.dir=disk/run"
DISTIL = ("distill", *TINY, "teacher.checkpoint=teacher", FOLDER, "--json")
COMPARE = ("run", *TINY, FOLDER, "--json")
PLENTY = 4000  # pages

PREDICTED = 3  # pages of the predictions
LONG = ("train-baseline", *TINY, "trainer.epochs=40")

pytestmark = pytest.mark.slow


@pytest.fixture
def _disks() -> None:
    if not can_mount():
        pytest.skip("this machine does not let a test mount disks of its own")


@pytest.fixture
def _teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trained teacher, an empty place for a disk, messages in one line each, and a repository with changes."""
    monkeypatch.setenv("COLUMNS", "3000")
    run("train-teacher", *TINY, "hydra.run.dir=teacher")
    Path("disk").mkdir()
    Path("notes.txt").write_text("one\n")
    for words in ("init -q", "add notes.txt", "-c user.name=a -c user.email=a@b commit -qm one"):
        subprocess.run(["git", *words.split()], check=True)
    Path("notes.txt").write_text("two\n" * 100)


def whole(folder: Path) -> None:
    """Everything in a run's folder is whole, whenever it was stopped."""
    assert not [path for path in folder.rglob("*") if path.suffix in (".tmp", ".old")]
    for path in folder.rglob("epoch-*"):
        Checkpoint(path).tensors("training")
    for path in folder.rglob("*.json"):
        assert json.loads(path.read_text())
    for path in folder.rglob("metrics.jsonl"):
        assert all(json.loads(line)["epoch"] for line in path.read_text().splitlines())


def outcome_of(folder: Path) -> dict[str, object]:
    """What must be the same, however often a run was stopped."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("result.json")):
        found[f"{path.parent.relative_to(folder)} weights"] = json.loads(path.read_text()).get("weights_sha256")
    for path in sorted(folder.rglob("predictions.safetensors")):
        found[f"{path.parent.relative_to(folder)} predictions"] = path.read_bytes()
    for path in sorted(folder.rglob("metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[f"{path.parent.relative_to(folder)} metrics"] = [
            {name: value for name, value in row.items() if name not in ("seconds", "images_per_second")} for row in rows
        ]
    return found


def refused(outcome: Outcome) -> tuple[str, list[str]]:
    """The file that could not be written, and the words to go on with."""
    assert outcome.code == 1, outcome
    assert "Traceback" not in outcome.err + outcome.out
    message = outcome.json["error"]["message"]
    found = re.search(r"^(/\S+) cannot be written: .*; [\d,]+ bytes were to be written, [\d,]+ are free", message)
    assert found, message
    assert "What was written before is whole. Make room, then go on with:\nkd " in message
    return Path(found[1]).name, shlex.split(message.splitlines()[-1])[1:]


def with_small_files(size: int, *words: str) -> Outcome:
    """`kd …` in a process that cannot write more than so many bytes into a file; what it prints goes into pipes."""
    pipes = os.pipe(), os.pipe()

    def limit() -> None:
        for number, (_, end) in zip((1, 2), pipes, strict=True):
            os.dup2(end, number)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    code = fork(*words, before=limit).ended().code
    for _, end in pipes:
        os.close(end)
    said = []
    for end, _ in pipes:
        with os.fdopen(end) as stream:
            said.append(stream.read())
    return Outcome(code, *said)


def stand_still() -> None:
    """Stops this process at the first step of its second epoch."""
    obey_permissions()
    learn = Trainer._learn

    def stop_and_learn(self: Trainer) -> None:
        if (self.epoch, self.step) == (1, 0):
            os.kill(os.getpid(), signal.SIGSTOP)
        learn(self)

    Trainer._learn = stop_and_learn  # type: ignore[method-assign]


@contextmanager
def stopped_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """A run in the middle of its epochs that stands still, and what makes it go on and gives its last message.

    A whole run of the same command is in `whole`.
    """
    monkeypatch.setenv("COLUMNS", "3000")
    run(*LONG, "hydra.run.dir=whole")
    begun = fork(*LONG, FOLDER, "--json", before=stand_still)
    os.waitpid(begun.pid, os.WUNTRACED)

    def go_on() -> str:
        begun.signal(signal.SIGCONT)
        outcome = begun.ended()
        assert outcome.code == 1, outcome
        assert "Traceback" not in outcome.err
        return outcome.json["error"]["message"]

    yield go_on
    begun.ended()


def undisturbed(words: tuple[str, ...]) -> tuple[dict[str, object], int]:
    """What a run ends with that has room enough, and the pages that it needs."""
    run(*words)
    pages = sum(-(-path.stat().st_size // 4096) for path in Path("disk/run").rglob("*") if path.is_file())
    expected = outcome_of(Path("disk/run"))
    shutil.rmtree("disk/run")
    return expected, pages


@pytest.mark.usefixtures("_disks", "_teacher")
@pytest.mark.parametrize("first", [1, 2])
def test_a_run_goes_on_to_the_same_bits_from_a_disk_that_was_full_at_any_moment(first: int) -> None:
    """Sixteen sizes of a disk (twelve by default): the first pages one by one, then steps up to the whole run's."""

    def scenario() -> None:
        expected, needed = undisturbed(DISTIL)
        sizes = [*range(first, 9, 2), *(10 + (2 * i + first) * (needed - 12) // 10 for i in range(4))]
        met: Counter[str] = Counter()
        for pages in sizes if ALL else [*sizes[:4], *sizes[5:7]]:  # two more end in an epoch, too
            small_disk(Path("disk"), pages)
            name, words = refused(fork(*DISTIL).ended())
            met[name] += 1
            whole(Path("disk/run"))
            grow(Path("disk"), PLENTY)
            run(*words)
            assert outcome_of(Path("disk/run")) == expected, (pages, name)
        assert met.total() == (8 if ALL else 6)
        assert {"run.json", "metrics.jsonl", "epoch-0001", "epoch-0002"} <= met.keys(), met

    apart(scenario)


@pytest.mark.usefixtures("_disks", "_teacher")
def test_the_end_of_a_run_waits_for_room() -> None:
    """The disk is full after the last checkpoint: predictions, the result, the status."""

    def scenario() -> None:
        expected, needed = undisturbed(DISTIL)
        small_disk(Path("disk"), PLENTY)
        run(*DISTIL)
        for name in ("result.json", "predictions.safetensors"):
            Path("disk/run", name).unlink()
        shutil.copytree("disk/run", "trained")
        met: Counter[str] = Counter()
        for spare in range(6):
            small_disk(Path("disk"), needed - PREDICTED - 1 + spare)
            shutil.copytree("trained", "disk/run")
            name, words = refused(fork("resume", "disk/run", "--json").ended())
            met[name] += 1
            whole(Path("disk/run"))
            grow(Path("disk"), PLENTY)
            run(*words)
            assert outcome_of(Path("disk/run")) == expected, (spare, name)
        assert met == {"run.json": 3, "predictions.safetensors": PREDICTED - 1, "result.json": 1}

    apart(scenario)


@pytest.mark.usefixtures("_teacher")
def test_a_limit_on_the_size_of_files_is_met_like_a_full_disk() -> None:
    expected, _ = undisturbed(DISTIL)
    met = set()
    for limit in (100, 300, 2000, 6000) if not ALL else (100, 300, 700, 2000, 6000, 20000):
        name, words = refused(with_small_files(limit, *DISTIL))
        met.add(name)
        whole(Path("disk/run"))
        run(*words)
        assert outcome_of(Path("disk/run")) == expected, (limit, name)
        shutil.rmtree("disk/run")
    assert met >= {"git.diff", "config.yaml", "epoch-0001"}


@pytest.mark.usefixtures("_disks", "_teacher")
def test_each_part_of_a_comparison_goes_on_from_a_full_disk() -> None:
    def scenario() -> None:
        expected, needed = undisturbed(COMPARE)
        met = set()
        for share in (0.2, 0.6, 0.9):
            small_disk(Path("disk"), int(share * needed))
            outcome = fork(*COMPARE).ended()
            met.add(
                Path(outcome.json["error"]["message"].split(" cannot be written")[0]).relative_to(Path.cwd()).parts[2]
            )
            _, words = refused(outcome)
            assert words == ["resume", "disk/run"]
            whole(Path("disk/run"))
            grow(Path("disk"), PLENTY)
            run(*words)
            assert outcome_of(Path("disk/run")) == expected, share
        assert met == {"teacher", "baseline", "distilled"}

    apart(scenario)


@pytest.mark.usefixtures("_disks", "_teacher")
def test_a_cache_on_a_full_disk_costs_only_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    def scenario() -> None:
        expected, _ = undisturbed(DISTIL)
        Path("small").mkdir()
        for pages in (1, 2, 3):
            small_disk(Path("small"), pages)
            monkeypatch.setenv("KD_CACHE", str(Path("small").absolute()))
            said = run(*DISTIL)
            assert outcome_of(Path("disk/run")) == expected
            shutil.rmtree("disk/run")
            assert re.search(r"small/teacher/\S+ cannot be written: No space left on device; [\d,]+ bytes", said.err), (
                said.err
            )
            assert not [*Path("small").rglob("*.tmp")]

    apart(scenario)


def test_a_folder_that_becomes_read_only_ends_the_run_and_it_goes_on_later(monkeypatch: pytest.MonkeyPatch) -> None:
    with stopped_run(monkeypatch) as begun:
        for path in (Path("disk/run"), Path("disk/run/checkpoints")):
            path.chmod(0o555)
        message = begun()
    assert re.search(r"cannot be written: Permission denied; [\d,]+ bytes were to be written\. What", message), message
    assert message.endswith(" Make it writable, then go on with:\nkd resume disk/run")
    for path in (Path("disk/run"), Path("disk/run/checkpoints")):
        path.chmod(0o755)
    run("resume", "disk/run")
    whole(Path("disk/run"))
    assert outcome_of(Path("disk/run")) == outcome_of(Path("whole"))


def test_a_folder_that_is_moved_away_ends_the_run_and_it_goes_on_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with stopped_run(monkeypatch) as begun:
        Path("disk").rename("elsewhere")
        message = begun()
    assert "the folder has vanished, " in message
    assert message.endswith(" Bring the folder back, then go on with:\nkd resume disk/run")
    assert not Path("disk").exists()
    Path("elsewhere").rename("disk")
    whole(Path("disk/run"))
    run("resume", "disk/run")
    assert outcome_of(Path("disk/run")) == outcome_of(Path("whole"))


def test_a_run_whose_folder_was_removed_leaves_the_one_that_took_its_place_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with stopped_run(monkeypatch) as begun:
        shutil.rmtree("disk/run")
        run(*LONG, FOLDER)
        files = {path: path.read_bytes() for path in Path("disk").rglob("*") if path.is_file()}
        message = begun()
    assert "the folder has vanished, " in message
    assert files == {path: path.read_bytes() for path in Path("disk").rglob("*") if path.is_file()}
    assert outcome_of(Path("disk/run")) == outcome_of(Path("whole"))


@pytest.mark.usefixtures("_disks")
def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "3000")
    Path("disk").mkdir()

    def scenario() -> None:
        small_disk(Path("disk"), PLENTY, files=1)
        full = run("train-baseline", *TINY, FOLDER, code=1)
        assert "disk/run cannot be written (No space left on device); choose another: hydra.run.dir=DIR" in full.message
        make_read_only(Path("disk"))
        refusal = run("train-baseline", *TINY, FOLDER, code=2)
        assert (
            "disk/run cannot be written (Read-only file system); choose another: hydra.run.dir=DIR" in refusal.message
        )

    apart(scenario)
