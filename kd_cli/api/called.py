"""Around every call from a program: what belongs to the whole process is at the end as the program has it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kd_cli import console, errors
from kd_cli.arithmetic import handed_back
from kd_cli.errors import Interrupted, KDError, describe_error

_one_at_a_time = threading.RLock()  # random numbers, Hydra and PyTorch's switches are the process's


@contextmanager
def alone(*, quiet: bool) -> Iterator[None]:
    """No other call works meanwhile; logging and PyTorch's switches are the program's afterwards."""
    with _one_at_a_time, console.in_program(quiet=quiet), handed_back():
        yield


@contextmanager
def called(*, quiet: bool) -> Iterator[None]:
    """As `alone`, and Hydra and random numbers are the program's afterwards, too.

    Args:
        quiet: nothing but notices is said.

    Raises:
        KDError: also where the command line would describe another error as one of them.
        KeyboardInterrupt: the program was interrupted; the message says how to go on.
    """
    drawn_on = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with alone(quiet=quiet), _own_hydra(), torch.random.fork_rng(drawn_on), _told():
        yield


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except Interrupted as error:  # a loop that goes on after a KDError must not go on after Ctrl-C
        raise KeyboardInterrupt(str(error)) from None
    except KDError:
        raise
    except Exception as error:
        problem = describe_error(error)
        kind = getattr(errors, problem.title, None)
        if kind is None:
            raise
        raise kind(problem.text) from error


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Copies of what Hydra and OmegaConf have for the whole process; the program may be a Hydra application itself."""
    from hydra._internal.hydra import Hydra  # noqa: F401 - some of it is stored when this is imported
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.plugins import Plugins
    from hydra.core.singleton import Singleton
    from omegaconf.basecontainer import BaseContainer

    Plugins.instance()  # for the program, too: some plugins store what they have when they are imported, and only then
    before, resolvers = Singleton._instances, BaseContainer._resolvers
    Singleton._instances, BaseContainer._resolvers = copy.deepcopy(before), dict(resolvers)
    for kind in (GlobalHydra, HydraConfig):
        Singleton._instances.pop(kind, None)
    try:
        yield
    finally:
        Singleton._instances, BaseContainer._resolvers = before, resolvers
