"""Too little memory: what needed it, what to type instead, and nothing changed in silence."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path

import pytest
import torch
import yaml

from kd_cli.cli import main
from kd_cli.config.overrides import recipe_key
from kd_cli.config.recipe import Recipe
from kd_cli.errors import OutOfMemory, describe_error, missing_memory
from kd_cli.runs.checkpoint import Checkpoint
from kd_cli.training.guard import evaluation_memory, training_memory
from tests.conftest import ROOT, SMALL, Outcome
from tests.support import forked

Run = Callable[..., Outcome]

CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 139.81 GiB of which 1 GiB is free."
)
# what libraries say of it → how much they wanted, as kd says it
WORDS: dict[str, tuple[Exception, str]] = {
    "cuda": (torch.OutOfMemoryError(CUDA), " (2.68 GB more were asked for)"),
    "the processor": (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096000 bytes. Error code 12"),
        " (4.1 MB more were asked for)",
    ),
    "windows": (
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 5000 bytes."),
        " (5 kB more were asked for)",
    ),
    "numpy": (MemoryError("Unable to allocate 8.00 TiB for an array"), " (8.8e+03 GB more were asked for)"),
    "apple": (RuntimeError("MPS backend out of memory. Tried to allocate 256.00 MB"), " (256 MB more were asked for)"),
    "cublas": (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), ""),
    "python": (MemoryError(), ""),
    "the system": (OSError(12, "Cannot allocate memory"), ""),
}

# A linear network that needs more memory than there is for more than `most` images, in training or in evaluation.
GREEDY = """
import torch
from torch import nn

class Greedy(nn.Module):
    def __init__(self, num_classes, in_channels, image_size, most, at, after):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))
        self.most, self.training_at, self.after, self.calls = most, at == "training", after, 0

    def forward(self, images):
        self.calls += self.training
        if len(images) > self.most and self.training == self.training_at and self.calls > self.after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has too little.")
        return self.layers(images)
"""


@pytest.mark.parametrize("whose", WORDS)
def test_the_words_of_every_library_are_understood(whose: str) -> None:
    error, wanted = WORDS[whose]
    assert missing_memory(error) == wanted
    assert describe_error(error).title == "OutOfMemory"
    with pytest.raises(OutOfMemory, match=re.escape(f"trainer.batch_size=64 does not fit into memory{wanted}. Type")):
        in_training(error, Recipe())


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"), OSError(28, "No")]
)
def test_other_errors_are_left_alone(error: Exception) -> None:
    assert missing_memory(error) is None
    with pytest.raises(type(error)):
        in_training(error, Recipe())


def in_training(error: Exception, recipe: Recipe, where: str = "trainer") -> None:
    with training_memory(recipe, where):
        raise error


@pytest.mark.parametrize(
    ("recipe", "typed"),
    [
        (Recipe(batch_size=64), "trainer.batch_size=32 trainer.accumulate=2:"),
        (Recipe(batch_size=64, accumulate=3), "trainer.batch_size=32 trainer.accumulate=6:"),
        (Recipe(batch_size=5), "trainer.batch_size=2 trainer.accumulate=3:"),
        (Recipe(batch_size=1), "One image is the least there is"),
    ],
)
def test_two_overrides_make_an_update_of_as_many_images(recipe: Recipe, typed: str) -> None:
    with pytest.raises(OutOfMemory, match=typed):
        in_training(MemoryError(), recipe)


def test_the_inner_stage_is_the_one_that_is_named() -> None:
    recipe = Recipe(eval_batch_size=400)
    with (
        pytest.raises(
            OutOfMemory, match=r"^an evaluation with trainer.eval_batch_size=400 .* trainer.eval_batch_size=100"
        ),
        training_memory(recipe, "trainer"),
        evaluation_memory(recipe, "trainer"),
    ):
        raise MemoryError


def test_advice_names_the_stages_own_key_where_the_user_has_typed_it() -> None:
    assert recipe_key("distilled", ["trainer.batch_size=8", "loss=kd"]) == "trainer"
    assert recipe_key("distilled", ["distill_trainer.lr=8"]) == "distill_trainer"
    assert recipe_key("teacher", ["trainer@teacher_trainer=mnist_cnn"]) == "teacher_trainer"
    assert recipe_key("teacher", ["distill_trainer.lr=8"]) == "trainer"
    assert recipe_key(None, ["distill_trainer.lr=8"]) == "trainer"


@pytest.fixture
def greedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[str, ...]]:
    """The overrides that make the student greedy."""
    (tmp_path / "greedy.py").write_text(GREEDY)
    monkeypatch.syspath_prepend(tmp_path)

    def words(most: int, at: str = "training", after: int = 0) -> tuple[str, ...]:
        kwargs = (f"+student.kwargs.{name}={value}" for name, value in (("most", most), ("at", at), ("after", after)))
        small = (word for word in SMALL if not word.startswith("student"))
        return (*small, "plugins=[greedy]", "student=external", "student.callable=greedy.Greedy", *kwargs)

    return words


def test_what_is_advised_is_typed_and_works(kd: Run, greedy: Callable[..., tuple[str, ...]]) -> None:
    words = greedy(most=25)
    failed = kd("train-baseline", *words, "hydra.run.dir=first", code=1)
    assert "a training step with trainer.batch_size=50 does not fit into memory (2.68 GB more" in failed.message
    advised = re.findall(r"trainer\.\w+=\d+(?= |:)", failed.message.partition("Type ")[2])
    assert advised == ["trainer.batch_size=25", "trainer.accumulate=2"]
    record = json.loads(Path("first/run.json").read_text())
    assert (record["status"], record["error"][:15]) == ("failed", "a training step")
    assert yaml.safe_load(Path("first/config.yaml").read_text())["trainer"]["batch_size"] == 50  # as it was typed
    assert "first holds another run" in kd("train-baseline", *words, *advised, "hydra.run.dir=first", code=2).message
    kd("train-baseline", *words, *advised, "hydra.run.dir=second")


@pytest.mark.slow  # two commands
def test_the_checkpoint_before_it_stays_whole_and_training_goes_on_from_there(
    kd: Run, greedy: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    words = (*greedy(most=25, after=9), "hydra.run.dir=run")
    kd("train-baseline", *words, code=1)
    (checkpoint,) = Path("run/checkpoints").iterdir()
    assert Checkpoint(checkpoint).plain["epoch"] == 1
    assert not Path("run/result.json").exists()
    gone = kd(
        "resume", "run", "plugins=[greedy]", "student.callable=greedy.Greedy"
    )  # its first steps are the second epoch's: there is room again
    assert "goes on after epoch 1" in gone.err + gone.out
    assert Path("run/result.json").exists()


def limited(megabytes: int) -> Callable[[], None]:
    """Leaves a process so much address space beyond what it has."""

    def limit() -> None:
        torch.set_num_threads(1)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * resource.getpagesize() + megabytes * 1_000_000
        resource.setrlimit(resource.RLIMIT_AS, (size, size))

    return limit


CNN = ("student=cnn", "student.blocks=[[64]]", "student.hidden=[8]", "dataset.image_size=32")
CNN_TEACHER = ("teacher=cnn", "teacher.blocks=[[64]]", "teacher.hidden=[8]")
# where memory runs out → megabytes left (None: no limit), the command, what is said
SHORT: dict[str, tuple[int | None, tuple[str, ...], tuple[str, ...]]] = {
    "the network": (
        None,
        ("train-baseline", "student.hidden=[100000000000]"),
        ("the network student=mlp does not fit", "Type student=…"),
    ),
    "the data": (
        None,
        ("train-baseline", "dataset.num_train=10000000000000"),
        ("the data set does not fit into memory (", "dataset.in_memory=false"),
    ),
    "a training step": (
        150,
        ("train-baseline", *CNN, "trainer.batch_size=250", "trainer.eval_batch_size=2"),
        ("a training step with trainer.batch_size=250", "trainer.batch_size=125 trainer.accumulate=2"),
    ),
    "a stage's own recipe": (
        150,
        ("train-baseline", *CNN, "baseline_trainer.batch_size=250", "trainer.eval_batch_size=2"),
        ("baseline_trainer.batch_size=250", "baseline_trainer.batch_size=125 baseline_trainer.accumulate=2"),
    ),
    "validation": (
        150,
        ("train-baseline", *CNN, "trainer.batch_size=2", "trainer.limit_train_batches=1", "dataset.val_fraction=0.9"),
        ("an evaluation with trainer.eval_batch_size=500", "Type trainer.eval_batch_size=125"),
    ),
    "the test": (
        150,
        (
            *("train-baseline", *CNN, "trainer.batch_size=2", "trainer.limit_train_batches=1", "trainer.epochs=1"),
            *("dataset.val_fraction=0.04", "dataset.num_test=500"),
        ),
        ("an evaluation with trainer.eval_batch_size=500", "Type trainer.eval_batch_size=125"),
    ),
    "the teacher": (
        150,
        ("distill", "dataset.image_size=32", *CNN_TEACHER),
        ("a teacher that is asked about 500 images", "Type trainer.eval_batch_size=125"),
    ),
    "the teacher's answers": (
        150,
        (
            *("distill", "dataset.num_train=3000", "dataset.val_fraction=0.1", "teacher=cnn", "teacher.blocks=[[256]]"),
            *("teacher.hidden=[8]", "student=cnn", "student.hidden=[8]", "trainer.eval_batch_size=4"),
            *("trainer.batch_size=4", "loss=at", "teacher_cache_gb=100"),
        ),
        ("what the teacher says of all training images", "Type teacher_cache=false"),
    ),
    "an evaluation of a run": (
        150,
        ("evaluate", "outputs/teacher", "dataset.image_size=32", *CNN_TEACHER),
        ("the memory does not suffice", "smaller batches"),
    ),
}


@pytest.mark.slow  # eleven commands in processes of their own
def test_wherever_memory_runs_out_one_panel_says_what_to_type(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Real failures of the processor's allocator; what other tests have freed in this process would be lent to them."""
    command, environment = [sys.executable, "-m", __name__], {**os.environ, "PYTHONPATH": str(ROOT)}
    fresh = subprocess.run(command, capture_output=True, text=True, env=environment)
    outcomes = {where: Outcome(*told) for where, told in json.loads(fresh.stdout or "{}").items()}
    failed = {
        where: f"{told.code}: {told.message[-600:]}"
        for where, told in outcomes.items()
        if told.code != 1 or "Traceback" in told.err or not all(part in told.message for part in SHORT[where][2])
    }
    with capsys.disabled():
        print(f" {len(outcomes) - len(failed)}/{len(SHORT)}", end="")
    assert (len(outcomes), failed) == (9, {}), fresh.stderr


def run_short(megabytes: int | None, words: tuple[str, ...]) -> Outcome:
    if words[0] in ("distill", "evaluate"):
        few = [word for word in words if word.startswith(("dataset", "teacher=", "teacher.b", "teacher.h"))]
        made = ("trainer.epochs=1", "trainer.eval_batch_size=4", "hydra.run.dir=outputs/teacher")
        shutil.rmtree("outputs", ignore_errors=True)
        forked.run("train-teacher", *ROOMY, *few, *made)
    limit = None if megabytes is None else limited(megabytes)
    roomy = () if words[0] == "evaluate" else ROOMY
    return forked.fork(words[0], *roomy, *words[1:], before=limit).ended()


ROOMY = (*SMALL, "dataset.num_train=1200", "dataset.num_test=600", "dataset.val_fraction=0.5")


if __name__ == "__main__":
    sys.argv = ["kd", "train-baseline", *SMALL]  # what it imports would count in every process that is forked
    with suppress(SystemExit), redirect_stdout(sys.stderr):
        main()
    short = {where: run_short(megabytes, words) for where, (megabytes, words, _) in SHORT.items()}
    print(json.dumps({where: (told.code, told.out, told.err) for where, told in short.items()}))
