"""The `kd` command: finds the commands, shows errors, sets the exit code."""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from kd_cli import __version__, commands, console
from kd_cli.errors import ConfigError, Interrupted, Problem, describe_error
from kd_cli.launch.hydra_command import Info
from kd_cli.machine import keep_freed_memory
from kd_cli.signals import heeding


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"kd {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Knowledge-distillation experiments whose numbers can be believed."""


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """Typer would turn Ctrl-C into a silent exit; main shows it."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None

    return run


def make_app(words: Sequence[str]) -> typer.Typer:
    """The commands that a command line needs: the one that it names; all where help, a hint or completion is wanted."""
    app = typer.Typer(
        name="kd",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    names = [module.name for module in pkgutil.iter_modules(commands.__path__)]
    named = [name for name in names if words and _typed(name) == words[0]]
    modules = [importlib.import_module(f"{commands.__name__}.{name}") for name in named or names]
    for module in sorted(modules, key=lambda module: (module.PANEL, module.__name__)):
        name = _typed(module.__name__.rpartition(".")[2])
        app.command(name, rich_help_panel=module.PANEL)(_interruptible(module.command))
    return app


def _typed(module: str) -> str:
    """A command as it is typed: `train_teacher` → `train-teacher`, `import_` → `import`."""
    return module.rstrip("_").replace("_", "-")


def main() -> None:
    """Runs one command line and leaves with its exit code."""
    keep_freed_memory()
    with heeding():
        _run()


def _run() -> None:
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        make_app(sys.argv[1:])(_with_info_value(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(_show(Interrupted("interrupted")))
    except SystemExit as left:
        if left.code == ConfigError.exit_code and "--json" in sys.argv:  # Typer's own usage errors
            console.setup(as_json=True)
            _emit(Problem("UsageError", "wrong usage; standard error says more", ConfigError.exit_code))
        raise
    except BrokenPipeError:  # the reader of our output left: `kd list runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if full:
            raise
        sys.exit(_show(error))


def _show(error: BaseException) -> int:
    problem = describe_error(error)
    console.panel(problem.title, problem.text)
    _emit(problem)
    return problem.exit_code


def _emit(problem: Problem) -> None:
    console.emit({"error": {"type": problem.title, "message": problem.text, "exit_code": problem.exit_code}})


def _with_info_value(arguments: list[str]) -> list[str]:
    """Hydra's `--info` may stand alone, Typer's options may not."""
    values = {info.value for info in Info}
    kept = []
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        kept += [word, "all"] if word in ("--info", "-i") and following not in values else [word]
    return kept
