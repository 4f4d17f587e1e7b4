"""kd.run: what the command line does, in the process of a program that stays as it was."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from dataclasses import FrozenInstanceError, asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch

import kd_cli as kd_api
from kd_cli import arithmetic
from kd_cli.api import called as around
from tests.conftest import SMALL

BAD = {
    ("loss=kdd",): kd_api.ConfigError,
    ("loss.temprature=1",): kd_api.ConfigError,
    ("trainer.epochs=x",): kd_api.ConfigError,
    ("seed=1,2",): kd_api.ConfigError,
    ("device=cuda:77",): kd_api.ConfigError,
    ("dataset.val_fraction=0.0001",): kd_api.DataError,
    ("student=linear", "loss=fitnet"): kd_api.ConfigError,
}


def test_importing_it_loads_neither_torch_nor_hydra() -> None:
    code = "import sys, kd_cli as kd; dir(kd); kd.KDError; kd.losses; dir(kd.losses)\n"
    code += "print(sorted({'torch', 'hydra', 'omegaconf', 'typer', 'rich', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_name_is_there_and_no_other() -> None:
    assert all(getattr(kd_api, name) is not None for name in kd_api.__all__)
    assert set(kd_api.__all__) <= set(dir(kd_api))
    with pytest.raises(AttributeError, match="has no attribute 'runn'"):
        _ = kd_api.runn


def test_a_comparison_has_the_bits_and_the_fields_of_the_command_line(kd) -> None:
    printed = kd("run", *SMALL, "--json").json
    result = kd_api.run(SMALL, quiet=True)
    assert {name: trained.weights_sha256 for name, trained in result.networks.items()} == {
        name: printed[name]["weights_sha256"] for name in ("teacher", "baseline", "distilled")
    }
    own = asdict(result) | {name: asdict(each) for name, each in result.networks.items()}
    del own["networks"]
    assert printed.keys() <= own.keys()
    assert (result.gain, result.seed) == (printed["gain"], printed["seed"])
    assert result.distilled.run == result.run / "distilled"
    assert json.loads((result.run / "result.json").read_text())["gain"] == result.gain
    assert all(printed[name].keys() <= own[name].keys() for name in result.networks)
    with pytest.raises(FrozenInstanceError):
        result.gain = 100.0  # type: ignore[misc]


def test_a_single_training_gives_every_field_of_its_record(kd) -> None:
    printed = kd("train-baseline", *SMALL, "--json").json
    result = kd_api.run(SMALL, command="train-baseline", quiet=True)
    changing = {"run", "train_seconds"}
    kept = {key: value for key, value in asdict(result).items() if key not in changing}
    assert {key: kept[key] for key in printed.keys() - changing} == {
        key: value for key, value in printed.items() if key not in changing
    }
    assert result.run.parent.parent == Path("outputs").absolute()


def test_a_folder_is_gone_on_with_and_gives_what_is_there() -> None:
    first = kd_api.run(SMALL, command="train-teacher", folder="with = and, it's", quiet=True)
    again = kd_api.run(SMALL, command="train-teacher", folder="with = and, it's", quiet=True)
    assert again == first
    taught = kd_api.run([*SMALL, 'teacher.checkpoint="with = and, it\'s"'], command="distill", quiet=True)
    assert (taught.stage, taught.loss) == ("distilled", "kd")
    with pytest.raises(kd_api.ConfigError, match="holds another run"):
        kd_api.run([*SMALL, "seed=1"], command="train-teacher", folder="with = and, it's", quiet=True)


def test_calls_in_any_thread_give_the_same_bits() -> None:
    found: list[Any] = []
    call = lambda: found.append(kd_api.run(SMALL, command="train-baseline", quiet=True))  # noqa: E731
    torch.rand(3)  # where the program's random numbers stand is no matter
    call()
    threads = [threading.Thread(target=call) for _ in range(2)]  # at the same time: one waits for the other
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len({each.weights_sha256["best"] for each in found}) == 1
    assert len({each.run for each in found}) == 3


@pytest.mark.parametrize("words", BAD, ids=" ".join)
def test_a_mistake_is_the_error_that_the_command_line_shows(kd, words: tuple[str, ...]) -> None:
    with pytest.raises(BAD[words]) as caught:
        kd_api.run([*SMALL, *words])
    assert type(caught.value) is BAD[words]
    shown = kd("run", *SMALL, *words, code=caught.value.exit_code)
    assert "".join(str(caught.value).split()) in "".join(shown.message.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"overrides": "loss=kd"}, "overrides: 'loss=kd' is not a list"),
        ({"overrides": ["-m", "seed=0,1"]}, "-m is an option of the command line"),
        ({"overrides": ["hydra.mode=MULTIRUN"]}, "a sweep is a loop"),
        ({"command": "distil"}, "did you mean 'distill'"),
        ({"config_dirs": ["nowhere"]}, "no folder nowhere"),
    ],
)
def test_what_is_no_single_run_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(kd_api.ConfigError, match=said):
        kd_api.run(**options)
    assert not list(Path().rglob("run.json"))


def test_a_folder_of_yaml_is_searched() -> None:
    Path("mine/student").mkdir(parents=True)
    Path("mine/student/tiny.yaml").write_text("name: mlp\nhidden: [3]\ndropout: 0.0\n")
    words = [word for word in SMALL if "student" not in word]
    small = kd_api.run([*words, "student=tiny"], command="train-baseline", config_dirs=["mine"], quiet=True)
    assert small.parameters == 3 * (3 * 16 * 16 + 1) + 10 * 4


def surroundings() -> dict[str, Any]:
    """What of this process belongs to its program."""
    from hydra.core.singleton import Singleton
    from omegaconf.basecontainer import BaseContainer

    root, own = logging.getLogger(), logging.getLogger("kd")
    return {
        "argv": list(sys.argv),
        "environment": dict(os.environ),
        "directory": Path.cwd(),
        "handlers": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)},
        "hook": sys.unraisablehook,
        "logging": [(each.level, each.propagate, each.disabled, list(each.handlers)) for each in (root, own)],
        "hydra": {kind: vars(each).copy() for kind, each in Singleton._instances.items()},
        "resolvers": dict(BaseContainer._resolvers),
        "random": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "stdout": sys.stdout,
        "switches": [torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic],
    }


@pytest.mark.parametrize("words", [(), ("loss=kdd",), ("student=linear", "loss=fitnet")], ids=str)
def test_the_process_is_afterwards_as_it_was(words: tuple[str, ...]) -> None:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    Path("app").mkdir()
    Path("app/main.yaml").write_text("answer: 42\n")
    logging.getLogger().addHandler(handler := logging.FileHandler("mine.log", mode="w"))
    with initialize_config_dir(str(Path("app").absolute()), version_base="1.2"):  # the program is a Hydra application
        before = surroundings()
        try:
            kd_api.run([*SMALL, *words], quiet=True)
        except kd_api.KDError:
            assert words
        assert surroundings() == before
        assert compose("main").answer == 42
        logging.getLogger().warning("still there")
    GlobalHydra.instance().clear()
    handler.close()
    assert Path("mine.log").read_text() == "still there\n"


def test_switches_of_pytorch_are_handed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for _ in range(2):  # the second time, too: it remembers nothing that the program may have changed
        with around.called(quiet=True):
            arithmetic.start_cuda()
            assert not torch.backends.cudnn.allow_tf32
            assert not torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.benchmark
        assert torch.get_deterministic_debug_mode() == 0


def test_a_program_may_set_the_precision_in_the_newer_way() -> None:
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this PyTorch has one way")
    code = (
        "import torch, kd_cli as kd\nfrom kd_cli import arithmetic\nfrom kd_cli.api.called import called\n"
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'\n"
        "with called(quiet=True): arithmetic.start_cuda()\nprint(torch.backends.cuda.matmul.fp32_precision)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "tf32\n"


def test_what_is_said_goes_to_standard_output_and_can_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    kd_api.run(SMALL, command="train-baseline")
    assert "baseline   epoch 2/2" in capsys.readouterr().out
    kd_api.run([*SMALL, "student=linear", "loss=dkd"], command="train-baseline", quiet=True)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "loss has no effect" in printed.err  # a notice is no progress


def test_an_interrupted_call_is_an_interrupt_that_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from kd_cli.console import Watcher

    def interrupt(self: Watcher, record: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Watcher, "epoch", interrupt)
        with pytest.raises(KeyboardInterrupt, match="kd resume run"):
            kd_api.run(SMALL, command="train-baseline", folder="run", quiet=True)
    assert json.loads(Path("run/run.json").read_text())["status"] == "interrupted"
    went_on = kd_api.run(SMALL, command="train-baseline", folder="run", quiet=True)
    assert went_on.weights_sha256 == kd_api.run(SMALL, command="train-baseline", quiet=True).weights_sha256


def test_an_error_of_somebody_elses_code_is_itself() -> None:
    Path("broken.py").write_text(
        "from kd_cli.losses.base import LOSSES, Distiller\n"
        "@LOSSES.register('broken')\nclass Broken(Distiller):\n"
        "    def forward(self, student, teacher, batch):\n        raise ZeroDivisionError('mine')\n"
    )
    Path("mine/loss").mkdir(parents=True)
    Path("mine/loss/broken.yaml").write_text(
        "name: broken\nce_weight: 1.0\nweight: 1.0\nwarmup_epochs: 0.0\ndecay_epochs: null\n"
    )
    with pytest.raises(ZeroDivisionError, match="mine"):
        kd_api.run([*SMALL, "plugins=[./broken.py]", "loss=broken"], config_dirs=["mine"], quiet=True)


def test_a_plugin_that_is_edited_between_two_calls_is_the_edited_one() -> None:
    def hidden(units: int) -> int:
        Path("edited.py").write_text(
            "import math\nfrom torch import nn\nfrom kd_cli.models.base import MODELS\n"
            "@MODELS.register('edited')\ndef edited(image_shape, num_classes):\n"
            f"    layers = nn.Linear(math.prod(image_shape), {units}), nn.Linear({units}, num_classes)\n"
            "    return nn.Sequential(nn.Flatten(), *layers)\n"
        )
        Path("mine/student").mkdir(parents=True, exist_ok=True)
        Path("mine/student/edited.yaml").write_text("name: edited\n")
        small = [word for word in SMALL if not word.startswith("student.")]
        words = [*small, "plugins=[./edited.py]", "student=edited"]
        run = kd_api.run(words, command="train-baseline", config_dirs=["mine"], quiet=True)
        return int(kd_api.load(run.run).module[1].out_features)

    assert [hidden(4), hidden(4), hidden(7)] == [4, 4, 7]  # within one second, and of one size


def test_results_have_no_field_that_is_not_documented() -> None:
    for kind in (kd_api.Trained, kd_api.Comparison):
        documented = (kind.__doc__ or "").partition("Args:")[2]
        assert all(f"{each.name}:" in documented or f"{each.name}," in documented for each in fields(kind))
