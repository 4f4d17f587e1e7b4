"""One point of a sweep: its record, whether it was done, failed or did not start."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_cli.config.recipe import score_name, score_of
from kd_cli.errors import Interrupted, KDError, Pruned, Terminated, describe_error
from kd_cli.runs.records import is_number, sound_result
from kd_cli.storage.files import read_json, write_json

if TYPE_CHECKING:
    from kd_cli.sweeps.worker import Work

Point = Mapping[str, Any]

LOG = "log.txt"  # in the folder of a point: what it said, or, where it said it on the screen, why it failed

KEPT = "stopped; what was trained is kept"
PENDING = ("queued", "running")  # of a job that goes on
FINE = ("completed", "ready", "pruned", *PENDING)
_RECORDED = ("status", "error", "exit_code", "val_top1")  # of a point whose job is elsewhere; a result has its own file
_ENDS = ("completed", "failed", "diverged", "pruned", "interrupted", "not started")


def logged(start: Callable[[], Point], log: Path) -> Point:
    """Runs it; what went wrong is left in the log, too."""
    try:
        return start()
    except Exception as error:
        with suppress(OSError):
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(describe_error(error).text + "\n\n" + "".join(traceback.format_exception(error)))
        raise


def attempt(label: str, start: Callable[[], Point]) -> Point:
    """Runs one point; whatever goes wrong is in its record, so that the others run."""
    try:
        return {"point": label, "status": "completed", **start()}
    except (Interrupted, Terminated) as error:
        return {**failed(label, error), "status": "interrupted"}
    except Pruned as error:
        return {"point": label, "status": "pruned", "error": str(error), "val_top1": error.val_top1}
    except Exception as error:
        return failed(label, error)


def point_names(first: int, count: int) -> list[str]:
    """`point 3 of 4`, of each in a batch; `first` is how many points earlier batches had."""
    return [f"point {number} of {first + count}" for number in range(first + 1, first + count + 1)]


def not_started(label: str) -> Point:
    """The record of a point whose turn did not come."""
    return {"point": label, "status": "not started", "error": "the sweep was stopped before it"}


def failed(label: str, error: Exception, exit_code: int | None = None) -> Point:
    """The record of a point that did not finish."""
    problem = describe_error(error)
    status = "diverged" if problem.exit_code == 4 else "failed"
    return {"point": label, "status": status, "error": problem.text, "exit_code": exit_code or problem.exit_code}


def outcome_file(paths: Any) -> Path:
    """Where a job says what came of its point: beside submitit's own, which is a pickle, and read by nobody.

    Args:
        paths: submitit's, of the job.
    """
    result: Path = paths.result_pickle
    return result.with_suffix(".json")


def record_point(point: Point, path: Path) -> None:
    """Leaves what came of a point for whoever asks later."""
    write_json(path, {key: point[key] for key in _RECORDED if key in point})


def recorded_point(work: Work, path: Path) -> Point | None:
    """What was left of a point; None where there is nothing, or what kd did not write."""
    facts = read_json(path) or {}
    if facts.get("status") not in _ENDS:
        return None
    if facts["status"] == "completed":
        result = sound_result(work.folder)
        return None if result is None else {"point": work.label, "status": "completed", **result}
    known = {key: facts[key] for key in ("exit_code", "val_top1") if is_number(facts.get(key))}
    return {"point": work.label, "status": facts["status"], "error": str(facts.get("error")), **known}


def is_fine(point: Point) -> bool:
    """Whether it needs nobody: it is done, or its job goes on and the user does not want to wait for it."""
    return point["status"] in FINE and not point.get("exit_code")


def check_points(points: Sequence[Point]) -> None:
    """Raises a KDError if a point failed, so that the exit code says so."""
    bad = [point for point in points if not is_fine(point)]
    if bad:
        counts = Counter(point["status"] for point in bad)
        kinds = ", ".join(f"{count} {status}" for status, count in counts.items())
        codes = {point.get("exit_code") for point in bad}
        kind = next((kind for kind in (Interrupted, Terminated) if kind.exit_code in codes), KDError)
        raise kind(f"{len(bad)} of {len(points)} points did not finish: {kinds}")


def selection(point: Point) -> tuple[float | None, str]:
    """The validation score that chooses among points (more is better; None where there is none), and its name."""
    chosen = point.get("distilled", point)
    select_by = str(chosen.get("select_by", "top1"))
    return (score_of(chosen, select_by) if chosen.get(score_name(select_by)) is not None else None), select_by


def numbers(point: Point) -> tuple[Any, Any, Any]:
    """Test and validation accuracy in percent, and the gain over the baseline; None where there is none."""
    chosen = point.get("distilled", point)
    return chosen.get("test_top1"), chosen.get("val_top1"), point.get("gain")
