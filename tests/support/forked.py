"""`kd …` in processes that start at once: forked from this one, which has imported torch and read a configuration."""

from __future__ import annotations

import importlib
import io
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from unittest.mock import patch

from omegaconf import OmegaConf

from kd_cli.cli import main
from kd_cli.config.compose import compose, conf_dir
from tests.conftest import SMALL, Outcome
from tests.support.sample import ALL

for name in ("kd_cli.launch.hydra_app", "kd_cli.experiments.check", "kd_cli.sweeps.launchers"):
    importlib.import_module(name)
# The parser of overrides is slow until it has read some.
compose(["loss=kd", "trainer.epochs=1", "student=mlp", "student.hidden=[8]", "plugins=[a.py]"])


def _warm_up() -> None:
    """Reads and imports what most commands need; tests.support.memory keeps it for all that are forked."""
    for path in sorted(conf_dir().rglob("*.yaml")):
        OmegaConf.load(path)
    logger = logging.getLogger("kd")
    before = logger.handlers[:], logger.propagate, logger.level
    for command in ("train-teacher", "run"):
        with (
            patch.object(sys, "argv", ["kd", command, "--dry-run", *SMALL]),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
            suppress(SystemExit),
        ):
            main()
    logger.handlers[:], logger.propagate = before[:2]
    logger.setLevel(before[2])


if not ALL:
    _warm_up()


@dataclass
class Forked:
    """A process that runs one command line.

    Args:
        pid: its number.
        printed: the files in memory that its standard output and standard error go to.
    """

    pid: int
    printed: tuple[int, int]
    outcome: Outcome | None = field(default=None)

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        os.kill(self.pid, number)

    def ended(self) -> Outcome:
        """Waits for its end. The exit code is negative if a signal killed it."""
        if self.outcome is None:
            _, status = os.waitpid(self.pid, 0)
            texts = []
            for number in self.printed:
                with os.fdopen(number) as stream:
                    stream.seek(0)
                    texts.append(stream.read())
            self.outcome = Outcome(os.waitstatus_to_exitcode(status), *texts)
        return self.outcome


def fork(
    *words: str,
    before: Callable[[], object] | None = None,
    main: Callable[[], None] = main,
    printed: tuple[int, int] | None = None,
) -> Forked:
    """Starts `kd …` in the working directory of this process and with its environment.

    Args:
        before: called in the new process first.
        main: of another program.
        printed: the files for what it prints, in place of some in memory.
    """
    printed = printed or (os.memfd_create("out"), os.memfd_create("err"))
    with warnings.catch_warnings():  # Python ≥ 3.12 warns of threads, of which pytest-xdist has some
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            os._exit(_run(words, before, main, printed))
        finally:
            os._exit(70)
    return Forked(pid, printed)


def run(*words: str, before: Callable[[], object] | None = None, code: int = 0) -> Outcome:
    """`kd …` in a process of its own, to its end; the exit code must be the one that the test expects."""
    outcome = fork(*words, before=before).ended()
    assert outcome.code == code, f"exit code {outcome.code}\n{outcome.out}\n{outcome.err}"
    return outcome


def _run(
    words: tuple[str, ...],
    before: Callable[[], object] | None,
    main: Callable[[], None],
    printed: tuple[int, int],
) -> int:
    for number, file in zip((1, 2), printed, strict=True):
        os.dup2(file, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.argv = ["kd", *words]
    try:
        if before is not None:
            before()
        main()
    except SystemExit as left:
        return int(left.code or 0)
    except BaseException:
        traceback.print_exc()
        return 70  # EX_SOFTWARE
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0
