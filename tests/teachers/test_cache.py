"""The teacher is asked once, and nobody can tell."""

from __future__ import annotations

import copy
import json
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kd_cli import console
from kd_cli.config.recipe import Recipe
from kd_cli.data.base import Data
from kd_cli.errors import ConfigError
from kd_cli.losses.base import LOSSES, build_loss
from kd_cli.storage.cache import cache_folder, shards_in, write_cached
from kd_cli.storage.tensors import network_digest
from kd_cli.teachers.cache import CachedTeacher
from kd_cli.teachers.outputs import Entry, Kept, Plain, Resident
from kd_cli.training.task import Distillation
from kd_cli.training.trainer import Trainer
from kd_cli.types import Outputs
from tests.conftest import SMALL, Outcome
from tests.support.small import CPU, SPEC, loss_options, make_data, make_student, make_teacher, same_tensors, yaml_names

BATCH = 50  # of 180 images: the last batch of an epoch is smaller
PASSES = 4  # over all images
RECIPE = Recipe(epochs=2, batch_size=BATCH, lr=0.01)
GIGABYTE = 10**9


class Counted:
    """A teacher's forward passes."""

    def __init__(self, teacher: nn.Module) -> None:
        self.passes = 0
        teacher.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.passes += 1


def frozen_losses() -> list[str]:
    asks = {name: build_loss(loss_options(name)) for name in yaml_names("loss") if loss_options(name)["name"] == name}
    return [name for name, (method, mix) in asks.items() if method.teacher == "frozen" and mix.weight]


def make_task(loss: str, data: Data, teacher: nn.Module | None = None, **options: Any) -> Distillation:
    teacher = (teacher or make_teacher()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    student = make_student().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.manual_seed(5)
    method, mix = build_loss(loss_options(loss) | options)
    return Distillation(student, teacher, method, mix, data.spec, ask_in=BATCH)


def remember(
    task: Distillation, data: Data, *, seed: int = 0, limit: int = GIGABYTE, used: int | None = None, **facts: Any
) -> CachedTeacher:
    entry = Entry({"taps": list(task.teacher_taps), "data": data.fingerprint, **facts}, limit)
    task.cache = CachedTeacher(task.ask, data, entry, seed=seed, batch_size=BATCH, device=CPU, used=used)
    return task.cache


def learn(task: Distillation, data: Data, recipe: Recipe = RECIPE, seed: int = 0) -> nn.Module:
    list(Trainer(recipe, seed=seed, device=CPU).epochs(task, data))
    return task


def answer_files() -> list[str]:
    """The views that are there, and `val`."""
    plain = [path.stem for path in cache_folder().rglob("*.safetensors")]
    return sorted(plain + [path.parent.name for path in cache_folder().rglob("*.rows")])


@pytest.mark.parametrize("augment", [pytest.param("none", marks=pytest.mark.slow), "crop_flip"])
@pytest.mark.parametrize("loss", frozen_losses())
def test_cached_answers_give_the_same_weights_bit_for_bit(loss: str, augment: str) -> None:
    data = make_data(augment=augment)
    plain, cached = make_task(loss, data), make_task(loss, data)
    remember(cached, data)
    assert same_tensors(learn(cached, data), learn(plain, data))
    again = make_task(loss, data)
    remember(again, data)
    assert same_tensors(learn(again, data), plain)


def test_every_frozen_loss_is_among_them() -> None:
    frozen = {name for name in LOSSES.names() if LOSSES.component(name).teacher == "frozen"}
    assert set(frozen_losses()) == frozen
    assert {"kd", "crd", "simkd", "reviewkd"} <= frozen


def test_the_teacher_is_asked_once_for_any_number_of_epochs_and_runs() -> None:
    data, teacher = make_data(), make_teacher()
    counted = Counted(teacher)
    for run in range(3):
        task = make_task("kd", data, teacher)
        remember(task, data)
        before = counted.passes
        learn(task, data, Recipe(epochs=5, batch_size=BATCH))
        sample = 1
        assert counted.passes - before == sample + (PASSES if run == 0 else 0)


def test_augmented_images_are_asked_about_once_for_each_seed_and_epoch() -> None:
    data, teacher = make_data(augment="crop_flip"), make_teacher()
    counted = Counted(teacher)
    for seed, asked in ((0, 2 * PASSES), (0, 0), (1, 2 * PASSES), (1, 0)):
        task = make_task("kd", data, teacher)
        remember(task, data, seed=seed)
        before = counted.passes
        learn(task, data, seed=seed)
        assert counted.passes - before == 2 + asked  # a sample of each epoch
    assert len(answer_files()) == 4


def test_where_an_epoch_uses_some_images_the_teacher_is_asked_about_these() -> None:
    data, teacher = make_data(augment="crop_flip"), make_teacher()
    recipe = Recipe(epochs=3, batch_size=BATCH, limit_train_batches=2)
    plain = learn(make_task("kd", data), data, recipe)
    counted = Counted(teacher)
    for asked in (2, 0):
        task = make_task("kd", data, teacher)
        remember(task, data, used=2 * BATCH)
        before = counted.passes
        assert same_tensors(learn(task, data, recipe), plain)
        assert counted.passes - before == 3 * (1 + asked)
    assert answer_files() == [f"seed-0-view-000{epoch}-first-100-of-epoch-000{epoch}" for epoch in range(3)]
    full = make_task("kd", data, teacher)  # what is there of some is not taken for all
    remember(full, data)
    before = counted.passes
    learn(full, data)
    assert counted.passes - before == 2 * (1 + PASSES)


def test_mixed_precision_is_the_same_with_and_without() -> None:
    data, recipe = make_data(), Recipe(epochs=2, batch_size=BATCH, precision="bf16")
    plain, cached = make_task("fitnet", data), make_task("fitnet", data)
    remember(cached, data)
    assert same_tensors(learn(cached, data, recipe), learn(plain, data, recipe))


def test_a_feature_comes_back_in_its_memory_format() -> None:
    maps = torch.randn(6, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    for feature in (maps, maps.contiguous(), torch.randn(6, 7), torch.randn(6, 5, 7).transpose(1, 2)):
        coding = Plain("maps", feature)
        taken = coding.decode({tap: column[[4, 0, 5]] for tap, column in coding.encode(feature).items()})
        assert torch.equal(taken, feature[[4, 0, 5]])
        assert taken.stride() == feature[:3].stride()


def first_answers(task: Distillation, data: Data) -> Outputs:
    assert task.cache is not None
    return task.cache(next(data.train_batches(seed=0, epoch=0, batch_size=BATCH, device=CPU)))


def stored() -> Path:
    (path,) = cache_folder().rglob("train/*.rows")
    return path


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def lie(path: Path) -> None:
    """Other answers under a right checksum."""
    wrong = bytes(len(path.read_bytes()))
    digest = shards_in(path.parent).begun(0)
    digest.update(wrong)
    path.write_bytes(wrong)
    path.rename(path.with_name(f"0000-{digest.hexdigest()}.rows"))


def take_another(path: Path) -> None:
    """The rows of another view."""
    other = path.parent.with_name("seed-0-view-0000")
    digest = replace(shards_in(path.parent), folder=other).begun(0)
    digest.update(path.read_bytes())
    path.rename(path.with_name(f"0000-{digest.hexdigest()}.rows"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip_a_bit, "wrong checksum"),
        (cut, "another size"),
        (lie, "not what the teacher says"),
        (take_another, "damaged"),
    ],
)
def test_wrong_answers_are_noticed_and_asked_for_again(
    damage: Callable[[Path], None], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_data()
    task = make_task("kd", data)
    remember(task, data)
    right = first_answers(task, data).logits
    damage(stored())
    for notices in (1, 0):
        caplog.clear()
        remember(task, data)
        assert torch.equal(first_answers(task, data).logits, right)
        assert len(caplog.messages) == notices
        assert all(said in message for message in caplog.messages)


def test_answers_that_do_not_fit_are_not_kept_and_the_student_is_the_same(caplog: pytest.LogCaptureFixture) -> None:
    data = make_data(augment="flip")
    plain, cached = make_task("kd", data), make_task("kd", data)
    one_epoch = 180 * 10 * 4
    remember(cached, data, limit=int(1.9 * one_epoch))
    assert same_tensors(learn(cached, data), learn(plain, data))
    assert answer_files() == ["seed-0-view-0000"]
    assert len(caplog.messages) == 1
    assert "teacher_cache_gb" in caplog.text
    assert "for each view" in caplog.text


def test_answers_that_no_memory_could_hold_are_asked_for_at_every_step(caplog: pytest.LogCaptureFixture) -> None:
    def ask(images: Tensor) -> Outputs:
        return Outputs(torch.zeros(len(images), 10), {"huge": torch.zeros(1).expand(len(images), 2**45)})

    data = make_data()
    teacher = CachedTeacher(ask, data, Entry({}, GIGABYTE), seed=0, batch_size=BATCH, device=CPU)
    said = teacher(next(data.train_batches(seed=0, epoch=0, batch_size=BATCH, device=CPU)))
    assert said.features["huge"].shape == (BATCH, 2**45)
    assert "asked at every step" in caplog.text


def test_what_was_not_used_for_longest_makes_room() -> None:
    data = make_data()
    limit = 25_000  # three entries of 7,200 bytes of answers and some hundred of headers
    task = make_task("kd", data)
    paths = []
    for number in range(4):
        remember(task, data, limit=limit, number=number)
        first_answers(task, data)
        time.sleep(0.02)  # a file system's clock ticks a few hundred times a second
        paths.append(stored_entry(number, data))
        if number == 1:  # the first is used again, so the second is the oldest
            remember(task, data, limit=limit, number=0)
            first_answers(task, data)
    assert [path.exists() for path in paths] == [True, False, True, True]


def stored_entry(number: int, data: Data) -> Path:
    return Entry({"taps": [], "data": data.fingerprint, "number": number}, 1).path / "train"


class Companion(nn.Module):
    """Its answer to an image depends on the other images."""

    def __init__(self) -> None:
        super().__init__()
        self.network = make_teacher()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits - logits.mean(dim=0)


def test_a_teacher_whose_answers_depend_on_the_batch_is_asked_at_every_step(caplog: pytest.LogCaptureFixture) -> None:
    data = make_data()
    plain, cached = make_task("kd", data, Companion()), make_task("kd", data, Companion())
    remember(cached, data)
    assert same_tensors(learn(cached, data), learn(plain, data))
    assert "depends on the others in the batch" in caplog.text
    assert answer_files() == []


class AtTimes(Companion):
    """Its answer depends on the other images only sometimes, as with kernels that round by where a row lies."""

    depends = True

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) if self.depends else self.network(images)


def test_a_run_that_goes_on_asks_at_every_step_from_the_epoch_on_in_which_it_did() -> None:
    data, network, told = make_data(augment="crop_flip"), AtTimes(), list[int]()
    task = make_task("kd", data, network)
    entry = Entry({"taps": [], "data": data.fingerprint}, GIGABYTE)
    same = {"seed": 0, "batch_size": BATCH, "device": CPU}
    whole = CachedTeacher(task.ask, data, entry, tell=told.append, **same)
    for epoch, network.depends in enumerate((False, False, True, False)):
        whole.begin(epoch)
    assert told == [2]
    resumed = CachedTeacher(task.ask, data, entry, tell=told.append, live_from=2, **same)
    network.depends = False
    for epoch, kept in ((1, True), (2, False), (3, False)):
        resumed.begin(epoch)
        assert (resumed._answers is not None) is kept
    assert told == [2]


def test_processes_that_start_together_ask_once() -> None:
    data, teachers = make_data(), [make_teacher() for _ in range(4)]
    counts = [Counted(teacher) for teacher in teachers]
    tasks = [make_task("kd", data, teacher) for teacher in teachers]
    before = counts[0].passes  # the loss was shown an example
    answers: list[Tensor] = []
    barrier = threading.Barrier(len(tasks))

    def start(task: Distillation) -> None:  # a lock of a file is one per opened file, as between processes
        remember(task, data)
        barrier.wait()
        answers.append(first_answers(task, data).logits)

    threads = [threading.Thread(target=start, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(count.passes - before for count in counts) == [1, 1, 1, 1 + PASSES]
    assert all(torch.equal(each, answers[0]) for each in answers)


def test_a_cache_that_cannot_be_written_costs_only_a_notice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "file"))
    data = make_data()
    plain, cached = make_task("kd", data), make_task("kd", data)
    remember(cached, data)
    assert same_tensors(learn(cached, data), learn(plain, data))
    assert len(caplog.messages) == 1
    assert "cannot be written" in caplog.text


def test_the_digest_of_a_network_sees_weights_statistics_and_structure() -> None:
    network = make_teacher()
    digests = {network_digest(network), network_digest(make_teacher(seed=3))}
    changed = copy.deepcopy(network)
    changed.stage1[1].running_mean += 1  # type: ignore[operator]
    digests.add(network_digest(changed))
    other = copy.deepcopy(network)
    other.stage1[0].stride = (2, 2)
    digests.add(network_digest(other))
    assert len(digests) == 4
    assert network_digest(make_teacher()) in digests


# --- the command line

Run = Callable[..., Outcome]
DISTILL = ("distill", *SMALL, "--json")


@pytest.fixture
def teacher(kd: Run) -> str:
    """A teacher's run; nothing is in the cache yet."""
    folder: str = kd("train-teacher", *SMALL, "--json").json["run"]
    return f"teacher.checkpoint={folder}"


def test_the_command_line_keeps_answers_and_shares_them(kd: Run, teacher: str) -> None:
    first = kd(*DISTILL, teacher)
    assert "asked about all 270 training images" in first.err
    entries = kd("cache", "--json").json["entries"]
    assert {(entry["of"], entry["data"], entry["taps"]) for entry in entries} == {("mlp", "synthetic", "logits")}
    assert sorted(entry["answers"] for entry in entries) == ["train", "val"]
    second = kd(*DISTILL, teacher, "loss.temperature=7")
    assert "asked about" not in second.err
    third = kd(*DISTILL, teacher, "teacher_cache=false")
    assert "asked about" not in third.err
    assert third.json["weights_sha256"] == first.json["weights_sha256"]
    assert len(kd("cache", "--json").json["entries"]) == 2


@pytest.mark.parametrize(
    "override",
    [
        *("trainer.batch_size=25", "trainer.precision=bf16", "dataset.num_train=310", "loss=fitnet"),
        *("teacher_cache_top_k=3", "teacher_cache_dtype=float16"),
    ],
)
def test_what_changes_the_answers_is_asked_anew(kd: Run, teacher: str, override: str) -> None:
    kd(*DISTILL, teacher)
    extra = ["loss.taps=[embedding]"] if override == "loss=fitnet" else []
    assert "asked about all" in kd(*DISTILL, teacher, override, *extra).err


def test_images_of_another_normalisation_are_asked_about_anew(kd: Run, teacher: str) -> None:
    (weights,) = Path(teacher.partition("=")[2]).glob("checkpoints/epoch-0002/model.safetensors")
    shutil.copy(weights, "loose.safetensors")  # a run's record would not let it see others
    kd(*DISTILL, "teacher.checkpoint=loose.safetensors")
    assert "asked about all" in kd(*DISTILL, "teacher.checkpoint=loose.safetensors", "dataset.mean=[0.49]").err


def test_another_teacher_is_asked_anew(kd: Run, teacher: str) -> None:
    kd(*DISTILL, teacher)
    other = kd("train-teacher", *SMALL, "seed=1", "--json").json["run"]
    assert "asked about all" in kd(*DISTILL, f"teacher.checkpoint={other}").err
    assert "asked about all" in kd(*DISTILL, f"{teacher.replace('=', '=[')},{other}]").err
    assert "asked about all" in kd(*DISTILL, f"{teacher.replace('=', '=[')},{other}]", "ensemble.weights=[1,3]").err


def test_an_approximation_is_declared_and_is_the_same_however_it_is_made(kd: Run, teacher: str) -> None:
    words = (*DISTILL, teacher, "teacher_cache_top_k=3", "teacher_cache_dtype=float16")
    first = kd(*words)
    assert "teacher    answers are kept approximately, the 3 highest of 10 logits as float16: on " in first.err
    facts = json.loads(Path(first.json["run"], "run.json").read_text())["teacher_answers"]
    assert (facts["top_k"], facts["dtype"], facts["classes"]) == (3, "float16", 10)
    assert 0 < facts["tail_mass"] < 1
    assert facts["kl_1"] > 0
    (entry,) = (each for each in kd("cache", "--json").json["entries"] if each["kept"] != "exact")
    assert (entry["kept"], entry["answers"], entry["shards"]) == ("top 3, float16", "train", 1)
    for more in ("teacher_cache_gb=4", "teacher_cache_gb=0.000000001"):  # read, asked at every step
        assert kd(*words, more).json["weights_sha256"] == first.json["weights_sha256"]
    exact = kd(*DISTILL, teacher).json
    assert exact["weights_sha256"] != first.json["weights_sha256"]
    assert "teacher_answers" not in json.loads(Path(exact["run"], "run.json").read_text())


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (
            ["loss=mse_logits"],
            "mse_logits compares all logits, and with teacher_cache_top_k=3 all others have one value",
        ),
        (["loss=fitnet", "loss.taps=[embedding]"], "the features that fitnet reads are kept whole"),
        (["loss=kd"], None),
        (["loss=dml"], "teacher_cache_top_k has no effect: dml asks no finished teacher"),
    ],
)
def test_what_a_loss_makes_of_few_logits_is_said(kd: Run, teacher: str, loss: list[str], said: str | None) -> None:
    words = [word for word in [teacher] if loss != ["loss=dml"]]
    err = kd(*DISTILL, *words, *loss, "teacher_cache_top_k=3", "trainer.epochs=1").err
    assert said is None or said in err
    assert ("teacher_cache_top_k" in err) == (said is not None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["teacher_cache_top_k=0"], "teacher_cache_top_k: 0 is not possible"),
        (["teacher_cache_top_k=10"], "teacher_cache_top_k: 10 is not possible, there are 10 classes"),
        (["teacher_cache_top_k=2.5"], "teacher_cache_top_k: 2.5 is not a whole number"),
        (["teacher_cache_dtype=int8"], "teacher_cache_dtype: 'int8' is not possible; type float16, bfloat16 or null"),
        (["teacher_cache_top_k=3", "teacher_cache=false"], "type teacher_cache_top_k=null"),
    ],
)
def test_approximations_that_are_not_possible_are_refused(kd: Run, words: list[str], said: str, teacher: str) -> None:
    assert said in kd(*DISTILL, teacher, *words, code=2).message


def test_a_type_too_small_for_the_answers_is_refused() -> None:
    data = make_data()

    def ask(images: Tensor) -> Outputs:
        return Outputs(torch.zeros(len(images), 10), {"large": torch.full((len(images), 3), 1e5)})

    kept = Kept(None, "float16")
    teacher = CachedTeacher(ask, data, Entry({}, GIGABYTE, kept), seed=0, batch_size=BATCH, device=CPU)
    with pytest.raises(
        ConfigError, match=r"float16 cannot hold 1e\+05, which is among the teacher's large; type teacher"
    ):
        teacher.begin(0)


def test_a_smoke_run_does_not_ask_about_images_it_never_sees(kd: Run, teacher: str) -> None:
    kd(*DISTILL, teacher, "trainer.limit_train_batches=1")
    assert answer_files() == ["val"]


def test_a_smoke_run_reads_what_another_run_has_asked_about(
    kd: Run, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = (teacher, "trainer.limit_train_batches=1")
    asked = kd(*DISTILL, *short).json["weights_sha256"]
    kd(*DISTILL, teacher)
    read, take = [], Resident.take
    monkeypatch.setattr(Resident, "take", lambda self, row: read.append(len(row)) or take(self, row))
    assert kd(*DISTILL, *short).json["weights_sha256"] == asked
    assert read


def test_the_command_line_says_how_many_an_epoch_uses(kd: Run, teacher: str) -> None:
    words = (teacher, "dataset.augment=crop_flip", "trainer.limit_train_batches=2", "trainer.epochs=3")
    assert "teacher    is asked about 100 training images, as each view shows them" in kd(*DISTILL, *words).err


def test_how_long_the_teacher_is_asked_is_told_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    console.setup(as_json=False)
    progress = console.Counted("teacher    was asked about", 100, every=0.0)
    for _ in range(4):
        progress.add(25)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(",")[0] for line in lines] == [
        f"teacher    was asked about {n} of 100 images" for n in (25, 50, 75)
    ]
    assert all(line.endswith(" left") for line in lines)


def test_the_cache_is_listed_verified_and_cleared(kd: Run, teacher: str) -> None:
    assert "nothing is kept" in kd("cache").out
    kd(*DISTILL, teacher)
    listed = kd("cache").out
    assert "teacher's answers" in listed
    assert "whole" in kd("cache", "verify").out
    flip_a_bit(stored())
    verified = kd("cache", "verify", "--json", code=3)
    states = {entry["state"]: entry for entry in verified.json["entries"]}
    assert states.keys() == {"damaged", "whole"}
    name = states["damaged"]["entry"]
    assert f"kd cache clear {name}" in verified.message
    assert "there is no entry 'other'" in kd("cache", "clear", "other", code=2).message
    assert kd("cache", "clear", name, "--json").json == {"removed": [name]}
    assert answer_files() == ["val"]
    kd("cache", "clear")
    assert kd("cache", "--json").json["entries"] == []


@pytest.mark.parametrize(
    ("tensor", "kind"), [("images", "decoded images"), ("stamps", "checked headers"), ("names", "index of files")]
)
def test_what_is_kept_of_data_is_listed_beside_them_as_what_it_is(tensor: str, kind: str, kd: Run) -> None:
    folder = cache_folder() / "data"
    folder.mkdir(parents=True)
    write_cached(folder / "0123.safetensors", {tensor: torch.zeros(2), "others": torch.zeros(2)}, {})
    (entry,) = kd("cache", "verify", "--json").json["entries"]
    assert (entry["entry"], entry["kind"], entry["state"]) == ("0123", kind, "whole")
    (folder / "0123.safetensors").write_bytes(b"of nobody")
    (entry,) = kd("cache", "--json").json["entries"]
    assert entry["kind"] == "damaged"
    kd("cache", "clear")
    assert not list(folder.iterdir())


def test_a_size_that_keeps_nothing_is_refused(kd: Run) -> None:
    message = kd("distill", *SMALL, "teacher_cache_gb=0", code=2).message
    assert "teacher_cache_gb: 0" in message
    assert "teacher_cache=false" in message


def test_the_small_networks_are_what_these_tests_need() -> None:
    assert make_data().spec.num_train == 180
    assert make_data().spec.image_shape == SPEC.image_shape


def test_the_validation_images_are_asked_about_once_too(kd: Run, teacher: str) -> None:
    def accuracy() -> str:
        found = re.search(r"(\S+) % on validation \(checked now\)", kd(*DISTILL, teacher).err)
        assert found
        return found[1]

    first = accuracy()
    (path,) = cache_folder().rglob("val.safetensors")
    made = path.stat().st_mtime_ns
    assert accuracy() == first
    assert path.stat().st_mtime_ns == made
    wrong = {name: -values for name, values in load_file(path).items()}
    write_cached(path, wrong, {})
    assert accuracy() == first
