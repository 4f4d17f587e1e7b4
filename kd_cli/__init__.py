"""kd: knowledge-distillation experiments, from the command line and from Python.

In a program or a notebook: `import kd_cli as kd`, then `kd.run`, `kd.distill`, `kd.load` and `kd.losses`. Each is
imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kd_cli import losses
    from kd_cli.api.distill import distill
    from kd_cli.api.load import Network, load
    from kd_cli.api.results import Comparison, Trained
    from kd_cli.api.run import run
    from kd_cli.errors import ConfigError, DataError, KDError

__version__ = "0.1.0"
__all__ = (
    "Comparison",
    "ConfigError",
    "DataError",
    "KDError",
    "Network",
    "Trained",
    "__version__",
    "distill",
    "load",
    "losses",
    "run",
)

_MODULES = {"distill": "api.distill", "load": "api.load", "Network": "api.load", "run": "api.run"}
_MODULES |= {"Comparison": "api.results", "Trained": "api.results"}
_MODULES |= dict.fromkeys(("KDError", "ConfigError", "DataError"), "errors")


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "losses":
        return import_module(f"{__name__}.losses")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
