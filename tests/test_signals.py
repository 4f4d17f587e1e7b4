"""A request to end keeps its exit code and is not lost, wherever in Python it comes."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

IN_EXEC = """
import sys
from kd_cli.signals import heeding
try:
    with heeding():
        exec("import os, time; os.kill(os.getpid(), {number}); time.sleep(30)")
except BaseException as error:
    print(type(error).__name__)
sys.exit(130)
"""

IN_DESTRUCTOR = """
import os, time
from kd_cli.signals import heeding
class Fragile:
    def __del__(self):
        os.kill(os.getpid(), {number})
        for _ in range(1000):
            pass
try:
    with heeding():
        Fragile()
        time.sleep(30)
except BaseException as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "CtrlC"), (signal.SIGTERM, "Terminated")])
def test_it_is_raised_once_and_the_exit_code_is_ours_although_it_comes_in_an_exec(
    number: signal.Signals, name: str
) -> None:
    done = ended(IN_EXEC.format(number=int(number)))
    assert (done.returncode, done.stdout.split()) == (130, [name])


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "CtrlC"), (signal.SIGTERM, "Terminated")])
def test_it_is_made_again_where_python_drops_it(number: signal.Signals, name: str) -> None:
    assert ended(IN_DESTRUCTOR.format(number=int(number))).stdout.split() == [name]


def ended(code: str) -> subprocess.CompletedProcess[str]:
    """A program that Ctrl-C reaches even where it is ignored (`nohup`)."""
    reachable = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    return subprocess.run([sys.executable, "-c", reachable + code], capture_output=True, text=True, timeout=60)
