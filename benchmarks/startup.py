"""What `kd distill` does before its first step, in this build and in another one: calls, files, time."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import ROOT, before_others

_TRAIN = ("train-teacher", "dataset=mnist_mini", "trainer.epochs=1", "--json")
_DISTILL = ("distill", "dataset=mnist_mini", "trainer.epochs=1", "--json")  # with the teacher that is there

# Runs kd until an optimizer is about to step, and writes what happened until then.
_PROBE = '''
import importlib.util, json, os, sys, time
package, begun, report, counting = sys.argv[1], float(sys.argv[2]), sys.argv[3], sys.argv[4] == "count"
sys.argv = ["kd", *sys.argv[5:]]
calls, files = 0, set()

def within(path):
    return path.startswith(package)

def count(frame, event, argument):
    global calls
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(package) and code.co_flags & 1 and code.co_name[0] != "<":
        calls += 1
        files.add(code.co_filename)

def first_step(optimizer, arguments, keywords):
    seconds, frame, path = time.time() - begun, sys._getframe(), []
    sys.setprofile(None)
    while frame:
        path.append(frame.f_code.co_filename)
        frame = frame.f_back
    imported = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    straight = set(filter(within, path))
    facts = {"seconds": seconds, "calls": calls, "called": len(files), "imported": sum(map(within, imported))}
    with open(report, "w") as file:
        json.dump(facts | {"straight": sorted(straight)}, file)
    os._exit(0)

class Watch:
    """Asks for the hook as soon as there are optimizers; importing torch is a part of what is measured."""
    def find_spec(self, name, path=None, target=None):
        if name != "torch.optim.optimizer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def run(module):
            execute(module)
            module.register_optimizer_step_pre_hook(first_step)
        spec.loader.exec_module = run
        return spec

sys.meta_path.insert(0, Watch())
if counting:
    sys.setprofile(count)
from kd_cli.cli import main
main()
'''


@dataclass(frozen=True)
class Build:
    """A checkout and a folder with a finished teacher of it, whose answers are in its cache."""

    checkout: Path
    folder: Path

    @property
    def _surroundings(self) -> dict[str, str]:
        threads = os.environ.get("OMP_NUM_THREADS", "1")
        cache = str(self.folder / "cache")
        return {**os.environ, "PYTHONPATH": before_others(self.checkout), "KD_CACHE": cache, "OMP_NUM_THREADS": threads}

    def prepare(self) -> None:
        """Trains a teacher and a student."""
        self.folder.mkdir()
        for words in (_TRAIN, _DISTILL):
            self._run([sys.executable, "-m", "kd_cli", *words])

    def start(self, *, counting: bool) -> dict[str, Any]:
        """Distils until the first step.

        Args:
            counting: calls, which takes time.
        """
        report, package = self.folder / "report.json", str(self.checkout / "kd_cli") + os.sep
        words = [package, repr(time.time()), str(report), "count" if counting else "time", *_DISTILL]
        self._run([sys.executable, "-c", _PROBE, *words])
        facts: dict[str, Any] = json.loads(report.read_text())
        report.unlink()
        return facts

    def _run(self, words: Sequence[str]) -> None:
        done = subprocess.run(words, cwd=self.folder, env=self._surroundings, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{self.checkout}: exit code {done.returncode}\n{done.stderr}")

    def facts(self) -> dict[str, int]:
        """What needs no clock."""
        package = self.checkout / "kd_cli"
        files = list(package.rglob("*.py"))
        counted = self.start(counting=True)
        return {
            "entries at the top of kd_cli/": sum(not path.name.startswith("__pycache__") for path in package.iterdir()),
            "files from cli.main to optimizer.step()": len(counted["straight"]),
            "own calls before the first step": counted["calls"],
            "files with a call before it": counted["called"],
            "files imported before it": counted["imported"],
            "lines of kd_cli/": sum(path.read_text().count("\n") for path in files),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--beside", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument("--repeats", type=int, default=7, help="starts of each that are timed (%(default)s)")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="kd-startup-") as name:
        checkouts = [*([args.beside.resolve()] if args.beside else []), ROOT]
        builds = [Build(checkout, Path(name, str(place))) for place, checkout in enumerate(checkouts)]
        for build in builds:
            build.prepare()
        counted = [build.facts() for build in builds]
        for fact in counted[0]:
            print(f"{fact:42}", *(f"{facts[fact]:>8,}" for facts in counted))
        seconds: list[list[float]] = [[] for _ in builds]
        for turn in range(args.repeats):
            order = list(enumerate(builds))
            for place, build in order if turn % 2 == 0 else reversed(order):
                seconds[place].append(build.start(counting=False)["seconds"])
        middles = [median(each) for each in seconds]
        print(f"{'seconds from start to first step, median':42}", *(f"{middle:>8.2f}" for middle in middles))
        if args.beside:
            print(f"{'ratio':42} {middles[1] / middles[0]:>17.2f}")


if __name__ == "__main__":
    main()
