"""What a logger is to `kd`: a Callback that writes a training's numbers where another program shows them.

The registered class is given `run`, the run's folder; everything else in its signature is an option of its yaml. A
package that it needs it names in `package`, and imports in `begin`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from kd_cli import console
from kd_cli.errors import ConfigError
from kd_cli.registry import Registry
from kd_cli.runs.folder import RunDir
from kd_cli.runs.identity import flatten
from kd_cli.runs.records import read_config
from kd_cli.storage.files import read_json
from kd_cli.training.callbacks import Callback

LOGGERS: Registry[Callback | None] = Registry("logger", "kd_cli.training.loggers", injected=("run",))

_FINAL = ("test_top1", "test_top1_last", "test_nll", "best_epoch", "parameters", "train_seconds", "gain", "seconds")


@LOGGERS.register("none")
def none() -> None:
    """No logger: the run's folder has its numbers anyway."""


def check_logger(options: Mapping[str, Any]) -> None:
    """Finds what is wrong with a logger before anything is trained.

    Raises:
        ConfigError: unknown logger or option, or a package that is not installed.
    """
    LOGGERS.check(options)
    package = getattr(LOGGERS.component(options["name"]), "package", None)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"logger={options['name']} needs the package {package}, which is not installed: "
            f"pip install 'kd-cli[{package}]'"
        )


def make_loggers(options: Mapping[str, Any], run: RunDir) -> list[Callback]:
    """The callbacks that log a run: none or one."""
    logger = None if run.follows else LOGGERS.build(options, run=run)
    return [] if logger is None else [Tolerated(options["name"], logger)]


class Tolerated:
    """A logger whose failure costs what it would have logged, and never the run.

    Args:
        name: of the logger, for the notice.
    """

    def __init__(self, name: str, logger: Callback) -> None:
        self.logger = logger
        self._name = name
        self._works = True

    def begin(self, records: Sequence[Mapping[str, float]]) -> None:
        self._try(lambda: self.logger.begin(records))

    def epoch(self, record: Mapping[str, float]) -> None:
        self._try(lambda: self.logger.epoch(record))

    def finish(self, result: Mapping[str, Any]) -> None:
        self._try(lambda: self.logger.finish(result))

    def close(self, status: str) -> None:
        if self._works:
            self._try(lambda: self.logger.close(status))
        else:
            with suppress(Exception):  # it has been said that it failed
                self.logger.close(status)

    def _try(self, tell: Callable[[], None]) -> None:
        if not self._works:
            return
        try:
            tell()
        except Exception as error:
            self._works = False
            lines = str(error).splitlines() or [""]
            console.notice(
                f"logger={self._name} failed and logs no more of this run, which goes on: "
                f"{type(error).__name__}: {lines[0]}"
            )


def final_numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a result by name: `test_top1`, `best_val_top1`; of a comparison `gain`, `distilled.test_top1`."""
    numbers = {key: result[key] for key in _FINAL if key in result}
    if result.get("val_top1") is not None:  # the name of each epoch's own
        numbers["best_val_top1"] = result["val_top1"]
    parts = {name: part for name, part in result.items() if isinstance(part, Mapping) and "test_top1" in part}
    return numbers | {f"{name}.test_top1": part["test_top1"] for name, part in parts.items()}


def origin(run: RunDir) -> dict[str, Any]:
    """Where a run stands: its folder, stage, seed, comparison, sweep and point, as far as there are any."""
    from kd_cli.runs.sweep_folder import read_sweep

    folder, record = run.path.resolve(), run.record
    whole = folder if read_json(folder.parent / "run.json") is None else folder.parent
    sweep = next((each for each in whole.parents[:2] if read_sweep(each)), None)
    facts = {
        "kd.run": folder,
        "kd.stage": record.get("stage") or "comparison",
        "kd.seed": record.get("seed"),
        "kd.comparison": None if whole == folder else whole,
        "kd.sweep": sweep,
        "kd.point": whole.name if sweep == whole.parent else None,
    }
    return {key: value for key, value in facts.items() if value is not None}


def parameters(run: RunDir) -> dict[str, Any]:
    """The options that made a run: `loss.temperature` → 4.0. Where it is logged is not one of them."""
    return {key: value for key, value in flatten(read_config(run.path)).items() if not key.startswith("logger.")}
