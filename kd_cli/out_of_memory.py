"""Memory that does not suffice: what needed it, and what to type instead. kd takes no smaller batch by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from traceback import clear_frames

from kd_cli.errors import ConfigError, OutOfMemory, missing_memory


@contextmanager
def needing_memory(what: str, remedy: str) -> Iterator[None]:
    """Says which part of the work was out of memory, on a processor or an accelerator.

    Args:
        what: needs it.
        remedy: what makes it need less.

    Raises:
        OutOfMemory: `what` does not fit.
    """
    try:
        yield
    except Exception as error:
        missing = missing_memory(error)
        if missing is None:
            raise
        clear_frames(error.__traceback__)  # what was made so far would be kept with them, and the end needs memory too
        raise OutOfMemory(f"{what} does not fit into memory{missing}. {remedy}") from error


@contextmanager
def countable(what: str) -> Iterator[None]:
    """Refuses numbers that torch cannot count with: no machine has so much memory.

    Args:
        what: the configuration key of what is made from those numbers.

    Raises:
        ConfigError: in the place of what torch raises.
    """
    try:
        yield
    except (OverflowError, RuntimeError, TypeError) as error:
        if "overflow" not in str(error).lower():
            raise
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{what}: no machine has memory for numbers this large ({reason}); type smaller ones"
        ) from error
