"""What is set in a configuration that is there is what Hydra composes, and where it might not be Hydra composes."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from kd_cli.config.alike import Alike, Kinds, Pattern, Patterns, is_settled
from kd_cli.config.compose import composed, plain, reference
from kd_cli.config.overrides import name_by_overrides, winning_overrides
from kd_cli.config.search_path import install_search_path

MINE = {
    "student/led.yaml": "name: led\nkwargs: {inside: {a: 1}}\nlist: [1, {b: 2}]\ntext: a\n",
    "experiment/named.yaml": "# @package _global_\nhydra: {sweep: {subdir: 't${loss.temperature}'}}\n",
}


@pytest.fixture
def loader() -> Iterator[Any]:
    for name, text in MINE.items():
        Path("mine", name).parent.mkdir(parents=True, exist_ok=True)
        Path("mine", name).write_text(text)
    install_search_path(["mine"])
    OmegaConf.register_new_resolver("kd_sweep", lambda: "swept", replace=True)
    OmegaConf.register_new_resolver("kd_point", lambda: "point", replace=True)
    with composed("run", []) as (loader, _):
        yield loader
    install_search_path([])


def compose(loader: Any) -> Callable[[list[str]], Any]:
    return lambda words: named(loader.load_configuration("run", words, RunMode.RUN))


def named(config: Any) -> Any:
    """What Hydra composed, as kd has it: nothing that kd adds to the words is in a name."""
    name_by_overrides(config.hydra)
    return config


class Counting:
    """Composes, and counts."""

    def __init__(self, loader: Any) -> None:
        self.compose, self.count = compose(loader), 0

    def __call__(self, words: list[str]) -> Any:
        self.count += 1
        return self.compose(words)


def content(config: Any) -> Any:
    return OmegaConf.to_container(config, resolve=False), plain(OmegaConf.masked_copy(config, TASK))


TASK = ["seed", "loss", "trainer", "teacher_trainer", "student", "teacher", "dataset"]
FIXED = ["dataset=synthetic", "loss=dkd", "student=led", "student.list=[8]", "teacher.checkpoint=a", "logger=none"]
VALUES = {
    "seed": ["0", "1", "-3", "07", "1e3", "true", "null", "text", "'a b'", "'1'", "${trainer.epochs}", ""],
    "loss.temperature": ["1", "4.0", "1e-3", "null", "inf"],
    "teacher.checkpoint": ["null", "outputs/a", '"a=b, c"', "${student.name}", "[a]", "null"],
    "student.kwargs": ["null", "3", "null", "{a:1}", "{b:2}", "4"],
    "trainer.epochs": ["1", "2", "int(3)", "???"],
    "student.text": ["${oc.env:HOME}", "here"],
    "hydra.run.dir": ["a", '"b c"', "a"],
    "hydra.job.name": ["one", "other"],
    "loss": ["kd", "dkd", "rkd", "kd"],
    "student.list": ["[8]", "[16,8]", "[8]"],
}


@pytest.mark.slow
@pytest.mark.parametrize("key", VALUES)
def test_a_value_that_is_set_is_what_hydra_composes(loader, key: str) -> None:
    find = Alike(loader, compose(loader))
    for value in VALUES[key]:
        words = [*(word for word in FIXED if not word.startswith(f"{key}=")), f"{key}={value}", "++trainer.lr=0.5"]
        if value != "???":
            assert content(find(words)) == content(compose(loader)(words)), words
        else:
            assert OmegaConf.is_missing(find(words).trainer, "epochs")


def test_many_points_are_composed_once_for_each_choice(loader) -> None:
    counting = Counting(loader)
    find = Alike(loader, counting)
    for seed in range(3):
        for loss in ("kd", "dkd"):
            for epochs in (1, 2):
                words = [f"loss={loss}", f"seed={seed}", f"trainer.epochs={epochs}"]
                words += ["teacher_trainer.epochs=${trainer.epochs}", f"hydra.run.dir='{seed} {loss}'"]
                assert content(find(words)) == content(compose(loader)(words))
    assert counting.count == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["seed=0", "seed=1"], ["seed=2", "seed=1"]),  # the last of two wins
        (
            ["student=led", "student.kwargs=0", "++student.kwargs.a=1"],
            ["student=led", "student.kwargs=1", "++student.kwargs.a=1"],
        ),
        (["student=led", "~student.text", "seed=0"], ["student=led", "~student.text", "seed=1"]),
        (["student=led", "+student.kwargs.a=0", "seed=0"], ["student=led", "+student.kwargs.a=0", "seed=1"]),
    ],
)
def test_where_the_order_may_matter_hydra_composes(loader, first: list[str], second: list[str]) -> None:
    counting = Counting(loader)
    find = Alike(loader, counting)
    for words in (first, second):
        assert content(find(words)) == content(compose(loader)(words))
    assert counting.count == 2


SWEEPS: dict[str, tuple[list[str], list[list[str]]]] = {  # words of every point; those that differ
    "groups": (["seed=1"], [["loss=kd"], ["loss=dkd"], ["loss=kd", "loss.weight=1"], ["loss=kd", "loss.weight=0"]]),
    "groups of a stage": (["trainer.lr=1"], [["teacher_trainer.lr=3"], ["teacher_trainer.lr=4"], ["trainer.lr=2"]]),
    "a mapping": (["student=led"], [["student.kwargs=null"], ["student.kwargs={a:3}"], ["student.kwargs=1"]]),
    "a part": (["student=led"], [["student.kwargs.inside.a=2"], ["student.kwargs.inside.a=3"]]),
    "led elsewhere": (
        ["student=led", "student.kwargs=${student.list.1}", "++student.kwargs.b=3"],
        [["seed=1"], ["seed=2"], ["student.list.0=4"]],
    ),
    "a list": (["student=led"], [["student.list.0=4"], ["student.list.0=5"], ["student.list.1=5"]]),
    "more": (["student=led"], [["+student.more=1"], ["++student.more=1"], ["++student.more=2"], ["~student.text"]]),
    "twice": (["seed=1"], [["loss.weight=0", "seed=2"], ["loss.weight=1", "seed=3"]]),
    "interpolations": (["student=led"], [["student.text=${seed}"], ["student.text=x${.name}"], ["student.text=a"]]),
    "variables": (["++hydra.job.env_set.A=${seed}"], [["seed=1"], ["seed=2"], ["++hydra.job.env_set.A=b"]]),
    "folders": (["hydra.sweep.subdir=${hydra.job.override_dirname}"], [["seed=1"], ["seed=2"], ["seed='a, b'"]]),
    "names": (["hydra.job.config.override_dirname.exclude_keys=[seed]"], [["seed=1"], ["seed=2", "loss.weight=3"]]),
    "presets": (["experiment=named"], [["loss.temperature=3"], ["loss.temperature=4"]]),
    "quotes": ([], [["seed='a=b'"], ['seed="a, \\"b\\""'], ["seed=a\\,b"], ["seed="], ["seed=1_000"]]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_each_point_of_a_sweep_is_what_hydra_composes(loader, name: str) -> None:
    shared, points = SWEEPS[name]
    sweep = compose(loader)(["hydra.job.name=mine"])
    find = Alike(loader, lambda words: loader.load_sweep_config(sweep, words))
    for point in [*points, points[0]]:
        words = [*shared, *point, *winning_overrides([*shared, *point])]
        assert content(find(words)) == content(named(loader.load_sweep_config(sweep, words))), words


def test_what_hydra_refuses_is_refused_in_its_words_and_what_follows_is_right(loader) -> None:
    find, one = Alike(loader, compose(loader)), compose(loader)
    find(["seed=0", "hydra.run.dir=a"])
    for wrong in (["seed=1,2", "hydra.run.dir=a"], ["sed=0", "hydra.run.dir=a"], ["seed=[", "hydra.run.dir=a"]):
        with pytest.raises(HydraException) as refused:
            find(wrong)
        with pytest.raises(HydraException) as expected:
            one(wrong)
        assert str(refused.value) == str(expected.value)
    words = ["seed=5", "hydra.run.dir=b"]
    assert content(find(words)) == content(one(words))


def test_a_folder_that_a_value_names_is_each_points_own(loader) -> None:
    find = Alike(loader, compose(loader))
    folders = [find(["experiment=named", f"loss.temperature={t}"]).hydra.sweep.subdir for t in (1, 2, 1)]
    assert folders == ["t1", "t2", "t1"]


def test_a_pattern_is_there_from_the_second_on_and_makes_what_hydra_makes_also_in_another_process(loader) -> None:
    patterns = Patterns(loader, compose(loader), reference)
    words = [["seed=0", "loss=dkd", f"hydra.run.dir='{name}'"] for name in "abc"]
    assert patterns(words[0]) is None
    for each in words[1:]:
        pattern = pickle.loads(pickle.dumps(patterns(each)))
        assert isinstance(pattern, Pattern)
        config = compose(loader)(each)
        assert content(pattern.config(each)) == content(config)
        assert pattern.yaml == reference(config.hydra)
    assert [patterns(["student=led", "~student.text", f"seed={seed}"]) for seed in range(3)] == [None] * 3


def test_a_choice_of_a_group_is_no_value_wherever_its_yaml_is(loader) -> None:
    words = ["loss=kd", "seed=0", "loss@loss=kd", "hydra.job.name=x"]
    assert Kinds(loader).kind(words) == ("loss=kd", "seed=", "loss@loss=kd", "hydra.job.name=x")
    assert not is_settled(compose(loader)(["loss=kd"]), ["loss="])


def test_no_more_kinds_are_kept_than_a_few(loader) -> None:
    kinds: Kinds[int] = Kinds(loader)
    for number in range(100):
        kinds.keep((str(number),), number)
    assert kinds.take(("99",)) == 99
    assert kinds.take(("0",)) is None


def test_the_time_is_each_points_own_and_what_the_sweep_knows_is_every_points(loader) -> None:
    sweep = compose(loader)(["+name=${now:%f}"])
    find = Alike(loader, lambda words: loader.load_sweep_config(sweep, words))
    words = ["teacher.checkpoint=${now:%s-%f}", "student=led", "student.text=${now:%f}"]
    assert sweep.name
    configs = map(find, ([*words, f"seed={seed}"] for seed in range(3)))
    found = [(config.student.text, config.teacher.checkpoint) for config in configs]
    assert {text for text, _ in found} == {sweep.name}
    assert len({time for _, time in found}) == 3
