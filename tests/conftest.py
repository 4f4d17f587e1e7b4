"""What every test may use: the command line, run in this process, in a folder of its own."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from kd_cli.cli import main
from tests.support.advice import unreadable
from tests.support.memory import remember
from tests.support.sample import ALL, in_share

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported: the tests' processes have one core each

ROOT = Path(__file__).resolve().parent.parent
if not ALL:
    remember()
collect_ignore = [] if find_spec("optuna") else ["sweeps/test_search.py"]  # all of it is about an extra

# module → what it calls the components that users can add to
REGISTRIES = {
    "kd_cli.losses.base": "LOSSES",
    "kd_cli.models.base": "MODELS",
    "kd_cli.data.base": "DATASETS",
    "kd_cli.data.augment": "AUGMENTATIONS",
    "kd_cli.training.loggers.base": "LOGGERS",
}

# The smallest experiment that still learns something.
SMALL = (
    "dataset=synthetic",
    "dataset.num_train=300",
    "dataset.num_test=100",
    "teacher=mlp",
    "student=mlp",
    "student.hidden=[8]",
    "trainer.epochs=2",
    "trainer.batch_size=50",
)

# The points of a sweep in the test's own process, which is quicker than processes for such small ones.
HERE = "hydra/launcher=basic"


@dataclass(frozen=True)
class Outcome:
    """What a command line printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def message(self) -> str:
        """Standard error without the panel's frame and line breaks."""
        return " ".join(self.err.replace("│", " ").split())


@contextmanager
def started(*words: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """`kd` in a process group of its own, killed at the end. Ctrl-C reaches it even if it is ignored here (`nohup`)."""
    reachable = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-m", "kd_cli", *words]
    process = subprocess.Popen(command, text=True, preexec_fn=reachable, start_new_session=True, **options)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(process: subprocess.Popen[str], *paths: str) -> None:
    """Until there are files of these names or patterns; the cores are left to the process."""
    while not all(list(Path().glob(path)) for path in paths):
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.01)
        assert process.returncode is None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    others = [each for each in items if each.get_closest_marker("slow") and not in_share(each.nodeid)]
    config.hook.pytest_deselected(items=others)
    items[:] = [each for each in items if each not in set(others)]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory, a cache and an environment that no other test sees."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "150")
    for name in ("kd", None):  # a command line that ran in this process has taken them for its notices
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "propagate", True)
        monkeypatch.setattr(logger, "handlers", [])
        logger.setLevel(logging.NOTSET if name else logging.WARNING)
    for name in ("HYDRA_FULL_ERROR", "CI", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _forget_plugins() -> Iterator[None]:
    """Each test is a user of its own: what another one registered is not there."""
    yield
    for module, name in REGISTRIES.items():
        components = getattr(sys.modules.get(module), name, None)  # a test that needs no torch imports none
        for each in list(components._components) if components else ():
            if not components._components[each].__module__.startswith("kd_cli."):
                del components._components[each]


@pytest.fixture
def kd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs `kd …`; the exit code must be the one that the test expects."""

    def run(*arguments: str, code: int = 0) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["kd", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        printed = capsys.readouterr()
        outcome = Outcome(int(left.value.code or 0), printed.out, printed.err)
        assert outcome.code == code, f"exit code {outcome.code}\n{printed.out}\n{printed.err}"
        assert not unreadable(outcome.message), outcome.message
        return outcome

    return run


def run_in(folder: Path, *words: str) -> Path:
    """Runs `kd …` for a fixture that several tests share; the run is in the folder `run` of `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("KD_CACHE", str(folder / "cache"))
        patch.setattr(sys, "argv", ["kd", *words, f"hydra.run.dir={folder / 'run'}"])
        with pytest.raises(SystemExit) as left:
            main()
    assert not left.value.code
    return folder / "run"


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Here and in the processes: sums depend on how many threads share them."""
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `kd run` of small networks, to be read and not changed."""
    colours = ("dataset.mean=[0.4,0.5,0.6]", "dataset.std=[0.2,0.3,0.25]")
    return run_in(tmp_path_factory.mktemp("comparison"), "run", *SMALL, *colours, "loss=kd")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `kd train-teacher`, to be read and not changed."""
    return run_in(tmp_path_factory.mktemp("trained"), "train-teacher", *SMALL)


@pytest.fixture
def teacher(trained: Path, tmp_path: Path) -> dict[str, Any]:
    """A copy of it where teachers are looked for; its result."""
    run = shutil.copytree(trained, tmp_path / "outputs" / "trained")
    return json.loads((run / "result.json").read_text()) | {"run": str(run)}


@pytest.fixture
def real_data() -> Path:
    folder = Path(os.environ.get("KD_DATA", ""))
    if "KD_DATA" not in os.environ or not (folder / "MNIST").is_dir():
        pytest.skip("needs the real archives: set KD_DATA to the folder they were unpacked to")
    return folder
