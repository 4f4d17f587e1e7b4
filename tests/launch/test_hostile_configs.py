"""Configurations and records that somebody else wrote: they are data, and code is run where `plugins=` names it only.

Each of them tries to make a file `ran`, to show a secret of the environment, or to take time and memory without end.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from kd_cli.config.overrides import only_typed
from kd_cli.errors import ConfigError
from kd_cli.models.imported import check_arguments, find_callable
from kd_cli.storage.files import read_json
from kd_cli.storage.yaml import check_file, parse_record, yaml_text
from tests.conftest import HERE, SMALL, Outcome

SECRET = "no-one-may-read-this"
TOUCH = "{_target_: subprocess.run, args: [touch, ran]}"
SHELL = "{(): subprocess.run, args: [touch, ran]}"


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_SECRET", SECRET)


@pytest.fixture
def harmless(kd: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Runs a command line that must be refused, and must have done nothing."""

    def run(*words: str, codes: tuple[int, ...] = (2, 3)) -> Outcome:
        for code in codes[:-1]:
            try:
                outcome = kd(*words, code=code)
                break
            except AssertionError:
                continue
        else:
            outcome = kd(*words, code=codes[-1])
        assert not Path("ran").exists()
        assert "Traceback" not in outcome.err
        assert SECRET not in outcome.out + outcome.err
        return outcome

    return run


# --- yaml that grows

BOMBS = {
    "aliases": "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
    "mappings": "a0: &a0 {k: x}\n"
    + "".join(f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}\n" for i in range(1, 12)),
    "merge keys": "a0: &a0 {k: x}\n"
    + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)),
    "an alias inside of itself": "a: &a [*a]\n",
    "levels": "[" * 100_000,
    "levels of mappings": "{a: " * 100_000,
    "values": "[" + "x," * 400_000 + "]",
    "bytes": "a: " + "x" * 5_000_000,
    "no yaml": "a: [b\nc: d",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_yaml_that_would_grow_is_refused_before_anything_of_it_is_built(bomb: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(BOMBS[bomb])
    tracemalloc.start()
    with pytest.raises(ConfigError, match=r"bomb\.yaml"):
        check_file(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 * len(BOMBS[bomb]) + 2_000_000
    with pytest.raises(ValueError, match=r"line|levels|bytes"):
        parse_record(BOMBS[bomb])
    assert len(BOMBS) == 9


def test_anchors_of_a_person_stay_possible_and_are_no_part_of_a_record(tmp_path: Path) -> None:
    text = "mean: &half [0.5]\nstd: *half\n"
    (tmp_path / "mine.yaml").write_text(text)
    check_file(tmp_path / "mine.yaml")
    with pytest.raises(ValueError, match=r"line 2: the alias \*half"):
        parse_record(text)


def test_interpolations_and_tags_in_a_record_are_text_or_refused() -> None:
    assert parse_record("a: ${oc.env:TEST_SECRET}\nb: {_target_: os.system}") == {
        "a": "${oc.env:TEST_SECRET}",
        "b": {"_target_": "os.system"},
    }
    for tag in ("!!python/object/apply:os.system ['touch ran']", "!!python/name:os.system", "!mine x"):
        with pytest.raises(ValueError, match=r"the tag .* is not possible here"):
            parse_record(f"a: {tag}")
    assert not Path("ran").exists()


TEXTS = (
    *(
        "",
        " ",
        "~",
        "null",
        "y",
        "N",
        "yes",
        "off",
        "True",
        "=",
        "<<",
        "@x",
        "- a",
        "a: b",
        "a #b",
        "'q'",
        "two\nlines",
    ),
    *("017", "08", "0o17", "0x1f", "0b1", "1_000", "1e3", "1.", "+.5", "-inf", ".inf", "nan", "12:30", "2026-01-01"),
    *("ü 日本", "\x85", "\u2028", "😀", "a " * 100, "[b]", "{a}", "!tag", "&a", "*b", "%c", "trailing "),
)


def test_a_configuration_on_record_is_read_as_it_was_by_kd_and_by_omegaconf() -> None:
    shared = [0.5, 1e-5, None, True, float("inf")]
    values = {"texts": list(TEXTS), "mean": shared, "std": shared, "none": {}, "k: e": [[]]}
    text = yaml_text(values)
    assert parse_record(text) == OmegaConf.to_container(OmegaConf.create(text)) == values
    for number in ("0o17", "1e3"):  # quoted, as yaml 1.2 and OmegaConf take them for numbers
        assert f"- '{number}'\n" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: 010", "line 1: yaml would read 010 as 8; write 8 for that, 10 for that number, or quotes"),
        ("a: 1\nbatch_size: 1:30", "line 2: yaml would read 1:30 as 90; write 90 for that, or quotes"),
        ("a: [-0_17]", "yaml would read -0_17 as -15; write -15 for that, -_17 for that number"),
        ("a: 1:30.5", "yaml would read 1:30.5 as 90.5; write 90.5 for that, or quotes"),
        ("{00: a}", "yaml would read 00 as 0; write 0 for that, 0 for that number"),
        ("a: !!int 010", "yaml would read 010 as 8"),
    ],
)
def test_a_number_that_yaml_reads_otherwise_than_hydra_is_refused_in_a_file_too(
    text: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_file(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    "value", ["'010'", '"1:30"', "10", "0", "0.10", "1_000", "0x10", "1e3", "a:1", "12:99", "-0", "|\n  010"]
)
def test_a_number_that_is_what_it_seems_is_read(value: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"a: {value}")
    check_file(tmp_path / "mine.yaml")


@pytest.mark.parametrize("where", ["preset", "search path", "primary"])
def test_no_file_of_the_user_says_eight_where_it_writes_010(kd: Callable[..., Outcome], where: str) -> None:
    """Whichever way a yaml comes into a configuration."""
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/octal.yaml").write_text("# @package _global_\ntrainer: {epochs: 010}\n")
    Path("mine/octal.yaml").write_text("defaults: [run, _self_]\ntrainer: {epochs: 010}\n")
    words = {
        "preset": ("--config-dir", "mine", "experiment=octal"),
        "search path": ("hydra.searchpath=[file://mine]", "experiment=octal"),
        "primary": ("--config-dir", "mine", "--config-name", "octal"),
    }[where]
    assert "octal.yaml cannot be read: line 2: yaml would read 010 as 8" in kd("run", *SMALL, *words, code=2).message


JSON = {
    "no object": "[1]",
    "deep": '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep behind a text": '{"a": "]]]]", "b": ' + '{"a":' * 500 + "1" + "}" * 501,
    "long numbers": '{"a": ' + "9" * 100_000 + "}",
    "quotes without end": '{"a": "' + '\\"' * 200_000,
    "not UTF-8": b"\xff\xfe{}",
}


@pytest.mark.parametrize("name", JSON)
def test_json_that_kd_did_not_write_is_no_record(name: str, tmp_path: Path) -> None:
    text = JSON[name]
    (tmp_path / "run.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert read_json(tmp_path / "run.json") is None


@pytest.mark.parametrize("name", ["pipe", "zeros", "folder", "large"])
def test_a_record_that_has_no_end_is_no_record(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    if name == "pipe":
        os.mkfifo(path)
    elif name == "zeros":
        path.symlink_to("/dev/zero")
    elif name == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(50_000_000_000)
    assert read_json(path) is None


# --- what may name code

CALLABLES = (
    "os.system",
    "os:system",
    "subprocess.run",
    "builtins.exec",
    "builtins.eval",
    "torch.load",
    "torch.hub.load",
    "torch.utils.cpp_extension.load_inline",
    "torch.nn.Sequential",
    "torchvision.datasets.utils.os.remove",
    "torchvision.datasets.utils.extract_archive",
    "torchvision.models.os.system",
    "torchvision.models:list_models",
    "torchvision.models._api:load_state_dict_from_url",
    "timm.models._helpers.load_checkpoint",
    "timm.models.load_state_dict",
    "timm.models.torch.load",
    "timm.models:torch.load",
    "kd_cli.commands.study.command",
    "evil.build",
)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * path.startswith(("torchvision", "timm"))) for path in CALLABLES],
)
def test_a_configuration_names_no_function_but_those_that_make_networks(path: str, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("open('ran', 'w')\ndef build(num_classes): ...\n")
    with pytest.raises(ValueError, match="callable: "):
        find_callable(path)
    assert not Path("ran").exists()
    assert len(CALLABLES) == 20


@pytest.mark.slow  # imports timm and torchvision
@pytest.mark.parametrize("path", ["timm.create_model", "timm.models.resnet18", "torchvision.models.resnet18"])
def test_functions_that_make_networks_are_called(path: str) -> None:
    assert callable(find_callable(path))


def test_functions_of_modules_named_by_plugins_are_called(tmp_path: Path) -> None:
    from kd_cli.plugins import load_plugins

    mine = tmp_path / "mine_of_this_test.py"
    mine.write_text("import os\nfrom os import system\ndef build(num_classes): return 1\n")
    with pytest.raises(ValueError, match=r"add plugins=\[mine_of_this_test\]"):
        find_callable("mine_of_this_test.build")
    load_plugins([str(mine)])
    assert find_callable("mine_of_this_test.build")(2) == 1
    with pytest.raises(ValueError, match=r"code of posix.*plugins=\[posix\]"):  # that module has it from another
        find_callable("mine_of_this_test.system")
    with pytest.raises(ValueError, match="is not a package"):
        find_callable("mine_of_this_test:os.system")


@pytest.mark.parametrize(
    "arguments",
    [
        {"model_name": "hf-hub:somebody/something"},
        {"model_name": "local-dir:there"},
        {"model_name": "resnet18", "checkpoint_path": "evil.pth"},
        {"model_name": "resnet18", "pretrained_cfg": {"file": "evil.pth"}},
        {"model_name": "resnet18", "pretrained_cfg_overlay": {"custom_load": True}},
    ],
)
def test_files_that_timm_would_unpickle_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="pretrained=FILE"):
        check_arguments("timm.create_model", arguments)


# --- folders of yaml

PRESETS = {
    "a callback": f"hydra: {{callbacks: {{x: {TOUCH}}}}}",
    "callbacks from a resolver": "hydra: {callbacks: '${oc.create:{x: {_target_: os.getcwd}}}'}",
    "a factory of handlers": f"hydra: {{job_logging: {{version: 1, handlers: {{x: {SHELL}}}}}}}",
    "a factory of formatters": f"hydra: {{hydra_logging: {{version: 1, formatters: {{x: {SHELL}}}}}}}",
    "a class of a handler": "hydra: {job_logging: {version: 1, handlers: {x: {class: evil.Handler}}}}",
    "a handler that calls": "hydra: {job_logging: {version: 1, handlers: {x: {class: logging.handlers.HTTPHandler}}}}",
    "an external object": "hydra: {job_logging: {version: 1, handlers: {x: {class: logging.StreamHandler, "
    "stream: 'ext://evil.stream'}}}}",
    "a log elsewhere": "hydra: {job_logging: {version: 1, handlers: {x: {class: logging.FileHandler, filename: ran}}}}",
    "a launcher": "hydra: {launcher: {_target_: subprocess.run, args: [touch, ran]}}",
    "inside a launcher": f"hydra: {{launcher: {{n_jobs: {TOUCH}}}}}",
    "inside a sweeper": f"hydra: {{sweeper: {{params: {{seed: {TOUCH}}}}}}}",
    "a library for other programs": "hydra: {job: {env_set: {LD_PRELOAD: ./evil.so}}}",
    "the search path of programs": "hydra: {job: {env_set: {PATH: .}}}",
    "Python's start": "hydra: {job: {env_set: {PYTHONSTARTUP: evil.py}}}",
    "git's programs": "hydra: {job: {env_set: {GIT_EXTERNAL_DIFF: ./evil}}}",
    "Hydra's own files elsewhere": "hydra: {output_subdir: ../../elsewhere}",
    "another folder to work in": "hydra: {job: {chdir: true}}",
    "a network": "student: {name: external, callable: os.system, kwargs: {command: touch ran}}",
    "a target in an option": f"loss: {{temperature: {TOUCH}}}",
    "a target as a network": f"student: {TOUCH}",
    "an object of yaml": "seed: !!python/object/apply:os.system ['touch ran']",
    **{f"bomb: {name}": bomb for name, bomb in BOMBS.items() if name != "an alias inside of itself"},
}
COMMANDS = {
    "a package": ["hydra.searchpath=[pkg://evil]"],
    "a choice that is a path": ["experiment=../../presets/experiment/evil"],
    "a callback": ["+hydra.callbacks.x._target_=subprocess.run", "+hydra.callbacks.x.args=[touch,ran]"],
    "a launcher": ["hydra.launcher._target_=subprocess.run"],
    "a handler": ["hydra/job_logging=default", "hydra.job_logging.handlers.file.filename=ran"],
    "a package of a group": ["+loss@hydra.callbacks.x=kd"],
    "a network": ["student=external", "student.callable=os.system", "+student.kwargs.command='touch ran'"],
    "a module": ["student=external", "student.callable=evil.build"],
    "an assistant": ["assistants=[{name: external, callable: os.system, kwargs: {command: touch ran}}]"],
}


def write_preset(text: str) -> None:
    folder = Path("presets", "experiment")
    folder.mkdir(parents=True)
    (folder / "evil.yaml").write_text(f"# @package _global_\n{text}\n")
    Path("evil.py").write_text("open('ran', 'w')\n")


@pytest.mark.slow  # 28 command lines: 8 s
@pytest.mark.parametrize("name", PRESETS)
def test_a_folder_of_yaml_runs_nothing(name: str, harmless: Callable[..., Outcome]) -> None:
    write_preset(PRESETS[name])
    assert harmless("run", "--config-dir", "presets", "experiment=evil", *SMALL[:3]).out == ""
    assert len(PRESETS) == 29


@pytest.mark.slow  # nine command lines: 3 s
@pytest.mark.parametrize("name", COMMANDS)
def test_an_override_runs_nothing(
    name: str, harmless: Callable[..., Outcome], monkeypatch: Any, tmp_path: Path
) -> None:
    write_preset(f"hydra: {{callbacks: {{x: {TOUCH}}}}}")
    monkeypatch.syspath_prepend(str(tmp_path))
    harmless("train-baseline" if name != "an assistant" else "run", *SMALL[:3], *COMMANDS[name])
    assert len(COMMANDS) == 9


@pytest.mark.slow  # four command lines: 2 s
@pytest.mark.parametrize("launcher", ["basic", "process"])
@pytest.mark.parametrize("name", ["a factory of handlers", "the search path of programs"])
def test_a_swept_preset_runs_nothing(name: str, launcher: str, harmless: Callable[..., Outcome]) -> None:
    write_preset(PRESETS[name])
    (Path("presets") / "experiment" / "good.yaml").write_text("# @package _global_\nseed: 1\n")
    words = ("train-baseline", "-m", "--config-dir", "presets", "experiment=good,evil", f"hydra/launcher={launcher}")
    told = harmless(*words, *SMALL, codes=(1, 2, 3)).message
    assert "hydra" in told


def test_a_clusters_script_is_typed(kd: Callable[..., Outcome]) -> None:
    from omegaconf import OmegaConf

    from kd_cli.config.hydra_checks import check_hydra

    logs = {"version": 1}
    node: dict[str, Any] = {"callbacks": {}, "job_logging": logs, "hydra_logging": logs, "output_subdir": None}
    words = {"hydra": ["hydra.launcher.setup=[module load x]"], "task": []}
    node |= {"sweeper": {}, "job": {"env_set": {}}, "overrides": words}
    check_hydra(OmegaConf.create(node | {"launcher": {"setup": ["module load x"]}}))
    for launcher in ({"additional_parameters": {"x": 1}}, {"partition": "a\ntouch ran"}):
        with pytest.raises(ConfigError, match=r"hydra\.launcher\."):
            check_hydra(OmegaConf.create(node | {"launcher": launcher}))


def test_plugins_say_whose_code_is_run(kd: Callable[..., Outcome]) -> None:
    Path("mine.py").write_text("open('ran', 'w')\n")
    shown = kd("train-baseline", *SMALL, "plugins=[mine.py]", "trainer.epochs=1")
    assert f"plugins: the code of {Path('mine.py').resolve()} is run" in shown.message
    assert Path("ran").exists()


# --- records of runs


def damage(run: Path, file: str, change: Callable[[dict[str, Any]], object]) -> None:
    facts = json.loads((run / file).read_text())
    change(facts)
    (run / file).write_text(json.dumps(facts))


def setting(file: str, **facts: Any) -> Callable[[Path], None]:
    return lambda run: damage(run, file, lambda known: known.update(facts))


def config(old: str, new: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        text = (run / "config.yaml").read_text()
        assert old in text
        (run / "config.yaml").write_text(text.replace(old, new, 1))

    return change


def written(file: str, text: str) -> Callable[[Path], None]:
    return lambda run: (run / file).write_text(text) and None


def pipe(file: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (run / file).unlink()
        os.mkfifo(run / file)

    return change


SHOWN = ["show", "RUN"]
JUDGED = ["evaluate", "RUN", "dataset.seed=3"]
TAUGHT = ["distill", *SMALL, "teacher.checkpoint=RUN"]
RECORDS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "an interpolation of the environment": (config("name: synthetic", "name: ${oc.env:TEST_SECRET}"), JUDGED),
    "an interpolation inside an option": (config("noise: 1.0", "noise: ${oc.env:TEST_SECRET}"), JUDGED),
    "a target": (config("noise: 1.0", f"noise: {TOUCH}"), JUDGED),
    "an object of yaml": (config("noise: 1.0", "noise: !!python/object/apply:os.system [touch ran]"), JUDGED),
    "a bomb": (written("config.yaml", BOMBS["aliases"]), JUDGED),
    "a bomb that is shown": (written("config.yaml", BOMBS["merge keys"]), SHOWN),
    "no mapping": (written("config.yaml", "[1, 2]"), SHOWN),
    "no data set": (written("config.yaml", "seed: 1"), JUDGED),
    "a pipe as configuration": (pipe("config.yaml"), JUDGED),
    "a pipe as metrics": (pipe("metrics.jsonl"), SHOWN),
    "a pipe as record": (pipe("run.json"), SHOWN),
    "a deep record": (written("run.json", JSON["deep"]), SHOWN),  # type: ignore[arg-type]
    "a stage that is a list": (setting("run.json", stage=["teacher"]), SHOWN),
    "data that are a list": (setting("run.json", data=[]), SHOWN),
    "images without end": (setting("run.json", data={"classes": ["a"], "image_shape": [3, 10**9, 10**9]}), JUDGED),
    "images of one size": (setting("run.json", data={"classes": ["a"] * 10, "image_shape": [3]}), ["profile", "RUN"]),
    "no classes": (setting("run.json", data={"image_shape": [3, 16, 16]}), JUDGED),
    "no model": (setting("run.json", model=None), JUDGED),
    "a model without a name": (setting("run.json", model={"name": 1}), TAUGHT),
    "a model of code": (setting("run.json", model={"name": "external", "callable": "os.system"}), JUDGED),
    "a model of code that teaches": (setting("run.json", model={"name": "external", "callable": "os.system"}), TAUGHT),
    "a network of timm that reads a file": (
        setting("run.json", model={"name": "timm", "model": "test_vit", "kwargs": {"checkpoint_path": "evil.pth"}}),
        JUDGED,
    ),
    "a graft without a teacher": (setting("run.json", grafted=True, loss={"name": "simkd"}), JUDGED),
    "a result of the wrong kind": (setting("result.json", weights_sha256=[]), JUDGED),
    "a result without an epoch": (written("result.json", '{"best_epoch": null}'), JUDGED),
    "an epoch that is a path": (setting("result.json", best_epoch="../../.."), TAUGHT),
    "metrics that are lists": (written("metrics.jsonl", "[1]\n"), TAUGHT),
    "metrics that are no numbers": (written("metrics.jsonl", '{"epoch": "x"}\n'), SHOWN),
    "metrics without end": (written("metrics.jsonl", "[" * 100_000), SHOWN),
    "exported": (config("noise: 1.0", f"noise: {TOUCH}"), ["export", "RUN", "--format", "safetensors"]),
    "predicted": (config("noise: 1.0", f"noise: {TOUCH}"), ["predict", "RUN", "--test", "2"]),
    "another command": (setting("run.json", command="cache"), ["resume", "RUN"]),
    "no command": (setting("run.json", command=None), ["resume", "RUN"]),
    "arguments that are a text": (setting("run.json", arguments="-m"), ["resume", "RUN"]),
    **{
        f"resumed with {word}": (setting("run.json", arguments=[*SMALL, word]), ["resume", "RUN"])
        for word in (
            "plugins=[evil.py]",
            "+hydra.callbacks.x._target_=os.getcwd",
            "hydra.launcher._target_=os.getcwd",
            "hydra.run.dir=elsewhere",
            "student.callable=os.system",
            "dataset.noise=${oc.env:TEST_SECRET}",
            "assistants=[{name: external, callable: os.system}]",
            "+loss@hydra.callbacks.x=kd",
            "-m",
            "experiment=../../evil",
        )
    },
    "resumed with a folder": (setting("run.json", arguments=["--config-dir", "evil", *SMALL]), ["resume", "RUN"]),
}


@pytest.mark.slow  # 44 command lines: 15 s
@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_data(name: str, harmless: Callable[..., Outcome], trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "RUN"
    shutil.copytree(trained, run)
    Path("evil.py").write_text("open('ran', 'w')\n")
    change, words = RECORDS[name]
    change(run)
    if words[0] == "resume":
        setting("run.json", directory=str(tmp_path))(run)  # where evil.py is
    outcome = harmless(*words)
    assert "Error" in outcome.err
    assert harmless("list", "runs", "--outputs", ".", codes=(0,))
    assert len(RECORDS) == 45


@pytest.mark.slow  # reads 45 folders of a run: 3 s
def test_a_report_of_hostile_records_is_written_all_the_same(
    harmless: Callable[..., Outcome], trained: Path, tmp_path: Path
) -> None:
    for number, (change, _) in enumerate(RECORDS.values()):
        shutil.copytree(trained, tmp_path / "all" / str(number))
        change(tmp_path / "all" / str(number))
    shutil.copytree(trained, tmp_path / "all" / "good")
    harmless("report", "all", "--out", "report", codes=(0,))
    rows = json.loads(Path("report", "results.json").read_text())["runs"]
    good = [row for row in rows if Path(row["run"]).name == "good"]
    assert [row["status"] for row in good] == ["completed"]
    assert "</html>" in Path("report", "report.html").read_text()


def test_what_can_name_code_is_taken_from_the_user_alone() -> None:
    own = ["dataset=synthetic", "loss.temperature=4", "+trainer.epochs=${teacher_trainer.epochs}", "seed=1"]
    named = ["--config-dir", "/there", "plugins=[mine.py]", "++hydra.verbose=true", "a=${oc.env:HOME}", "~plugins"]
    assert only_typed([*own, *named]) == named


def test_a_run_with_plugins_goes_on_when_they_are_typed_again(kd: Callable[..., Outcome], monkeypatch: Any) -> None:
    Path("mine.py").write_text("")
    words = ("train-baseline", *SMALL, "plugins=[mine.py]", "hydra.run.dir=there")
    kd(*words)
    Path("there", "result.json").unlink()
    refused = kd("resume", "there", code=2).message
    assert "kd resume there 'plugins=[mine.py]'" in refused
    assert "made without it" in kd("resume", "there", "plugins=[other.py]", code=2).message
    elsewhere = Path("elsewhere").resolve()
    elsewhere.mkdir()
    here = Path.cwd()
    monkeypatch.chdir(elsewhere)
    assert f"cd {here} && kd resume" in kd("resume", "../there", "plugins=[mine.py]", code=2).message
    monkeypatch.chdir(here)
    assert kd("resume", "there", "plugins=[mine.py]", "--json").json["epochs"] == 2


def test_no_program_that_a_repository_names_is_run() -> None:
    import subprocess

    from kd_cli.runs.provenance import provenance

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True, capture_output=True)

    git("init", "-q")
    Path("file").write_text("one\n")
    Path(".gitattributes").write_text("file filter=e=vil diff=evil\n")
    git("add", "-A")
    git("commit", "-qm", "one")
    for name in ("filter.e=vil.clean", "filter.e=vil.process", "diff.evil.textconv", "diff.external", "core.fsmonitor"):
        git("config", name, "touch ran; cat")
    git("config", "filter.e=vil.required", "true")
    Path("file").write_text("two\n")
    facts = provenance("run", [])
    assert "+two" in facts["git_diff"]
    assert not Path("ran").exists()


def test_a_sweep_of_more_points_than_can_be_listed_is_refused(kd: Callable[..., Outcome]) -> None:
    refused = kd("train-baseline", "-m", HERE, *SMALL, "seed=range(0,1000000000)", code=2)
    assert "points" in refused.message
