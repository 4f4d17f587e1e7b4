"""Photographs from the command line: windows, mixed images and several views, taught, paired, killed and refused."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from kd_cli.runs import checkpoint as checkpoints
from tests.conftest import Outcome
from tests.support.forked import fork, run
from tests.support.images import make_photographs
from tests.support.interrupted import everything

Kd = Callable[..., Outcome]
CUT = "dataset.augment=[random_resized_crop,flip]"
MIXED = "dataset.augment=[random_resized_crop,flip,{name:mixup}]"
FILES = ("dataset=image_folder", "dataset.root=photographs", "dataset.image_size=72", "dataset.workers=0")
TRAINED = ("teacher=cnn_tiny", "student=cnn_tiny", "student.hidden=[8]", "trainer.epochs=2", "trainer.batch_size=8")
SMALL = (*FILES, "dataset.val_fraction=0.2", *TRAINED, "--json")


@pytest.fixture(autouse=True)
def _photographs() -> None:
    make_photographs(Path("photographs"), per_class=11)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        (CUT,),
        (MIXED,),
        ("dataset.augment=[random_resized_crop,{name:mixup},{name:cutmix,p:0.5}]", "trainer.limit_train_batches=1"),
        (CUT, "dataset.repeats=2"),
        (CUT, "dataset.views=2", "trainer.epochs=3"),
        (MIXED, "dataset.repeats=2", "dataset.views=2", "dataset.balanced=true"),
        ("dataset.augment=[randaugment,erasing]", "dataset.in_memory=false"),
    ],
)
def test_a_cached_teacher_and_one_that_is_asked_at_every_step_teach_the_same(kd: Kd, words: tuple[str, ...]) -> None:
    found = [kd("run", *SMALL, *words, "loss=kd", f"teacher_cache={cache}").json for cache in ("true", "false")]
    assert found[0]["distilled"]["weights_sha256"] == found[1]["distilled"]["weights_sha256"]
    assert found[0]["distilled"]["weights_sha256"] != found[0]["baseline"]["weights_sha256"]


def test_of_mixed_images_a_teacher_is_asked_once_a_view_unless_they_are_mixed_anew(kd: Kd) -> None:
    once = kd("run", *SMALL, MIXED, "loss=kd")
    assert "asked about all 27 training images" in once.err
    for words in (["dataset.repeats=2"], ["dataset.views=2"], ["dataset.balanced=true"]):
        live = kd("run", *SMALL, MIXED, "loss=kd", *words)
        assert "the teacher is asked at every step: dataset.repeats, views and balanced mix" in live.err
        assert "asked about all 27 training images" not in live.err


@pytest.mark.parametrize("words", [(MIXED,), (MIXED, "dataset.repeats=2", "dataset.views=2"), (CUT, "dataset.views=1")])
def test_without_a_word_of_the_teacher_the_student_is_the_baseline(kd: Kd, words: tuple[str, ...]) -> None:
    found = kd("run", *SMALL, *words, "loss=kd", "loss.weight=0", "loss.ce_weight=1").json
    assert found["distilled"]["weights_sha256"] == found["baseline"]["weights_sha256"]


def _dies_after(saves: int) -> None:
    """This process kills itself when it has written so many checkpoints."""
    write, done = checkpoints.write_checkpoint, []

    def write_and_die(*arguments: object) -> None:
        write(*arguments)  # type: ignore[arg-type]
        done.append(arguments)
        if len(done) == saves:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.write_checkpoint = write_and_die


@pytest.mark.slow
@pytest.mark.parametrize("words", [(CUT, "dataset.repeats=2"), (MIXED, "dataset.in_memory=false")])
def test_killed_inside_an_epoch_it_ends_with_the_same_bits(one_thread: None, words: tuple[str, ...]) -> None:
    run("train-teacher", *SMALL, "hydra.run.dir=teacher")
    command = ("distill", *SMALL, *words, "teacher.checkpoint=teacher", "trainer.checkpoint_minutes=0")
    run(*command, "hydra.run.dir=whole")
    for saves in (1, 4):  # of eight: the first step, and the last of the first epoch
        folder = f"killed-{saves}"
        killed = fork(*command, f"hydra.run.dir={folder}", before=partial(_dies_after, saves)).ended()
        assert killed.code == -signal.SIGKILL, killed.err
        run(*command, f"hydra.run.dir={folder}")
        assert everything(Path(folder)) == everything(Path("whole"))


@pytest.mark.parametrize("command", ["run", "distill"])
@pytest.mark.parametrize("loss", ["dkd", "crd"])
def test_a_loss_that_reads_labels_is_refused_where_images_have_two(kd: Kd, loss: str, command: str) -> None:
    if command == "distill":
        kd("train-teacher", *SMALL, "hydra.run.dir=teacher")
    given = ("teacher.checkpoint=teacher",) if command == "distill" else ()
    message = kd(command, *SMALL, *given, f"loss={loss}", MIXED, "hydra.run.dir=refused", code=2).message
    assert f"loss={loss} cannot work on this pair: it reads the label of each image" in message
    assert "leave them out of dataset.augment" in message
    assert not Path("refused").exists()


def test_a_batch_that_is_no_multiple_of_the_views_is_refused(kd: Kd) -> None:
    for command in ("train-baseline", "run"):
        message = kd(command, *SMALL, CUT, "dataset.repeats=3", "hydra.run.dir=refused", code=2).message
        assert "trainer.batch_size=8 is no multiple of dataset.repeats=3" in message
        assert "type trainer.batch_size=9" in message
        assert not Path("refused").exists()
