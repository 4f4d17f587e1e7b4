"""Bad input in numbers, and --dry-run, which must say of every command line what the command itself would say."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import HERE, SMALL, Outcome
from tests.support.advice import unreadable
from tests.support.bad_inputs import BAD, Bad
from tests.support.sample import ALL

TINY = (*SMALL, "trainer.epochs=1", "trainer.limit_train_batches=1", "device=cpu")
GOOD = (
    ("train-teacher",),
    ("train-teacher", "teacher=cnn_small", "trainer.label_smoothing=0.1"),
    ("train-baseline", "trainer.precision=bf16"),
    ("distill", "loss=kd", "loss.temperature=2"),
    ("distill", "loss=label_smoothing"),
    ("run",),
    ("run", "loss=dkd", "trainer.schedule=cosine", "trainer.warmup_epochs=1"),
    ("run", "teacher=cnn", "student=cnn", "loss=at"),
    ("run", "teacher=cnn", "student=cnn_small", "loss=fitnet", "dataset.augment=crop_flip"),
    ("run", "loss=dml"),
    ("run", "loss=combined", "loss.terms=[{name: kd}, {name: mse_logits, weight: 0.5}]"),
    ("run", "loss=none"),
    ("run", "ensemble.size=2", "ensemble.weights=confidence"),
    ("run", "generations=2"),
    ("run", "assistants=[{name: mlp, hidden: [16]}]"),
    ("run", "specialists.groups=1"),
    ("run", "trainer.optimizer=sgd", "trainer.nesterov=true", "trainer.ema_decay=0.9", "trainer.accumulate=2"),
    ("run", "dataset.val_fraction=0", "teacher_cache=false"),
    ("run", "experiment=mnist_mlp", "trainer=default", "teacher.hidden=[16]", "student.hidden=[8]"),
    ("run", "seed=99999999999999999999999", "trainer.early_stopping=1"),
    ("run", "-m", HERE, "seed=0,1", "loss=kd"),
)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, links included; the contents of files."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def start(words: list[str], folder: Path) -> Callable[[], Outcome]:
    """`kd …` in a folder and with a cache in it; call what is returned to wait for its end."""
    from tests.support.forked import fork

    def move() -> None:
        os.chdir(folder)
        os.environ["KD_CACHE"] = str(folder / "cache")

    return fork(*words, before=move).ended


def dry(words: list[str]) -> list[str]:
    return [*words[:1], "--dry-run", *words[1:]] if len(words) > 1 else [*words, "--dry-run"]


def misses(bad: Bad, folder: Path, *, tried: bool) -> list[str]:
    """What is wrong with the answers to a mistake, of the command itself and, if it is tried, of its dry run."""
    names = ("typed", "tried") if tried else ("typed",)  # of one length: the messages' lines are broken alike
    folders = [folder / name for name in names]
    for each in folders:
        each.mkdir(parents=True)
        bad.make(each)
    before = tree(folders[0])
    ends = [start(words, each) for words, each in zip((bad.line, dry(bad.line)), folders, strict=False)]
    real, *tests = (end() for end in ends)
    left = [name for each in folders for name in tree(each).items() ^ before.items()]
    found = [f"it changed {left}"] if left else []
    found += [f"exit code {real.code}, not {bad.code}"] if real.code != bad.code else []
    found += [f"{part!r} is not in the message" for part in (bad.key, bad.remedy) if part not in real.message]
    found += [f"{word} cannot be typed" for word in unreadable(real.message)]
    found += ["a traceback"] if any("Traceback" in each.err for each in (real, *tests)) else []
    for test in tests:
        said = ["".join(outcome.message.split()).replace("/tried", "/typed") for outcome in (real, test)]
        same = real.code == test.code and said[0] == said[1]
        found += [] if same else [f"--dry-run says {test.code} {test.message}"]
    return [f"{bad}: {'; '.join(found)}\n{real.message}"] if found else []


def test_there_are_enough_mistakes_and_no_one_twice() -> None:
    lines = [" ".join([*bad.line, *map(str, bad.files.items())]) for group in BAD.values() for bad in group]
    assert len(set(lines)) == len(lines) >= 60


@pytest.mark.slow
@pytest.mark.parametrize("group", BAD)
def test_every_mistake_is_named_with_its_remedy_and_leaves_nothing_and_a_dry_run_agrees(
    group: str, tmp_path: Path
) -> None:
    """The dry run of every third, by default."""
    found = [
        miss
        for number, bad in enumerate(BAD[group])
        for miss in misses(bad, tmp_path / str(number), tried=ALL or number % 3 == 0)
    ]
    assert not found, f"{len(BAD[group]) - len(found)} of {len(BAD[group])}\n" + "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("words", GOOD, ids=" ".join)
def test_a_dry_run_says_yes_to_what_works_and_leaves_nothing(
    words: tuple[str, ...], trained: Path, tmp_path: Path
) -> None:
    line = [words[0], *TINY, *words[1:], *([f"teacher.checkpoint={trained}"] if words[0] == "distill" else [])]
    foreseen = start([*dry(line), "--json"], tmp_path)()
    assert foreseen.code == 0, foreseen.message
    assert not tree(tmp_path)
    done = start([*line, "--json"], tmp_path)()
    assert done.code == 0, done.message
    told, came = (said.json.get("points", [said.json]) for said in (foreseen, done))
    assert [point["status"] for point in told] == ["ready"] * len(came)
    assert [{each["name"] for each in point["trainings"]} for point in told] == [parts_of(point) for point in came]


def parts_of(result: dict) -> set[str]:
    """The names of what a command has trained."""
    parts = {name for name, part in result.items() if isinstance(part, dict) and "test_top1" in part}
    return parts or {result["stage"]}


def test_a_dry_run_says_what_would_be_trained_and_where(kd, trained: Path) -> None:
    said = kd("run", "--dry-run", *SMALL, "hydra.run.dir=here").out
    assert "distilled  mlp: 2 epochs of 6 batches of 50 images, taught by teacher" in said
    assert "It would go into here; nothing was trained, no run was written" in said
    result = kd("distill", "--dry-run", *SMALL, f"teacher.checkpoint={trained}", "--json").json
    assert result["teachers"] == [str(trained)]
    assert [each["name"] for each in result["trainings"]] == ["distilled"]
    assert not list(Path().iterdir())


def test_a_dry_run_of_a_sweep_tries_every_point_and_leaves_nothing(kd) -> None:
    said = kd("run", "--dry-run", "-m", *SMALL, "loss=kd,at", "--json", code=1).json["points"]
    assert {point["point"]: point["status"] for point in said} == {"loss=kd": "ready", "loss=at": "failed"}
    assert not list(Path().iterdir())


@pytest.mark.slow
def test_a_study_can_be_tried_and_a_search_cannot(kd) -> None:
    assert "needs an accuracy" in kd("run", "--dry-run", "-m", *SMALL, "hydra/sweeper=optuna", code=2).message
    said = kd("study", "temperature", "--dry-run", *SMALL, "loss.temperature=1,2", "seed=0").out
    assert said.count("ready") == 2
    assert not list(Path().iterdir())


def test_a_dry_run_knows_what_is_complete_and_what_would_go_on(kd) -> None:
    line = ("train-baseline", *TINY, "hydra.run.dir=here")
    kd(*line)
    before = tree(Path("here"))
    assert "complete already" in kd(*line[:1], "--dry-run", *line[1:]).out
    assert "holds another run (seed: 0 there, 3 here)" in kd(*line, "seed=3", "--dry-run", code=2).message
    assert tree(Path("here")) == before
    Path("here/result.json").unlink()
    assert kd(*line, "--dry-run", "--json").json["trainings"][0]["epochs_done"] == 1
