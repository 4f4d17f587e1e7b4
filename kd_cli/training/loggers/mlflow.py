"""MLflow: one of its runs for each of ours, in a SQLite database or on a server. https://mlflow.org"""

from __future__ import annotations

import fcntl
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_cli.runs.folder import RunDir
from kd_cli.runs.provenance import rerun_line
from kd_cli.storage.files import read_json
from kd_cli.training.loggers.base import LOGGERS, final_numbers, origin, parameters

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Metric
    from mlflow.tracking import MlflowClient

_LONGEST = 500  # characters of a parameter: servers of MLflow 1 refuse more
_BATCH = 100  # parameters that MLflow takes at a time
_ENDS = {"completed": "FINISHED", "interrupted": "KILLED"}  # everything else has failed
_SQLITE = "sqlite:///"
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


@LOGGERS.register("mlflow")
class MLflow:
    """Options as parameters, numbers of each epoch and of the result as metrics, origin and status as tags.

    Args:
        run: keeps the id of its run at MLflow, so that a resumed one goes on there.
        tracking_uri: a database, or a server.
        experiment: what MLflow files the run under; made if it is not there.
    """

    package = "mlflow"

    def __init__(self, run: RunDir, tracking_uri: str, experiment: str = "kd") -> None:
        self._run, self._uri, self._experiment = run, _absolute(tracking_uri), experiment
        self._client: MlflowClient | None = None
        self._id = ""
        self._logged: set[int] = set()

    def begin(self, records: Sequence[Mapping[str, float]]) -> None:
        client, experiment = _open(self._uri, self._experiment)
        known = self._run.record.get("mlflow", {})
        if known.get("tracking_uri") == self._uri and _is_there(client, known["run_id"]):
            self._id = known["run_id"]
            client.update_run(self._id, status="RUNNING")
            self._logged = {metric.step for metric in client.get_metric_history(self._id, "train_loss")}
        else:
            self._id = client.create_run(experiment.experiment_id, run_name=self._run.path.resolve().name).info.run_id
            self._run.note(mlflow={"tracking_uri": self._uri, "experiment": self._experiment, "run_id": self._id})
        self._client = client
        self._describe(client)
        for record in records:
            self.epoch(record)

    def epoch(self, record: Mapping[str, float]) -> None:
        step = int(record["epoch"])
        if step not in self._logged:  # a resumed run trains its last epoch again, to the same numbers
            self._write({name: value for name, value in record.items() if name != "epoch"}, step)

    def finish(self, result: Mapping[str, Any]) -> None:
        self._write(final_numbers(result), int(result.get("best_epoch", 0)))

    def close(self, status: str) -> None:
        if self._client is not None:
            self._client.set_tag(self._id, "kd.status", status)
            self._client.set_terminated(self._id, _ENDS.get(status, "FAILED"))

    def _write(self, numbers: Mapping[str, float], step: int) -> None:
        assert self._client is not None
        self._client.log_batch(self._id, metrics=_metrics(numbers, step))

    def _describe(self, client: MlflowClient) -> None:
        from mlflow.entities import Param, RunTag

        options = [Param(key, str(value)[:_LONGEST]) for key, value in parameters(self._run).items()]
        for start in range(0, len(options), _BATCH):
            client.log_batch(self._id, params=options[start : start + _BATCH])
        client.log_batch(self._id, tags=[RunTag(key, str(value)) for key, value in tags(self._run).items()])


def tags(run: RunDir) -> dict[str, Any]:
    """Where a run comes from. A part has its comparison as its parent, unless several points of a sweep share it."""
    above = read_json(run.path.resolve().parent / "run.json") or {}
    facts = {
        "mlflow.source.name": rerun_line(run.record),
        "mlflow.source.git.commit": run.record.get("git_commit"),
        "mlflow.parentRunId": above.get("mlflow", {}).get("run_id"),
        "kd.status": run.record.get("status"),
    }
    return {key: value for key, value in facts.items() if value is not None} | origin(run)


def _absolute(uri: str) -> str:
    """MLflow keeps an open database under its name, whatever the working directory was."""
    return f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).absolute()}" if uri.startswith(_SQLITE) else uri


def _open(uri: str, name: str) -> tuple[MlflowClient, Experiment]:
    """The client and the experiment, made by one process at a time."""
    with _quiet(), _alone(uri):
        from mlflow.tracking import MlflowClient

        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            experiment = client.get_experiment(client.create_experiment(name))
    return client, experiment


def _is_there(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException:
        return False


def _metrics(numbers: Mapping[str, float], step: int) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(name, float(value), int(1000 * time.time()), step) for name, value in numbers.items()]


@contextmanager
def _quiet() -> Iterator[None]:
    """MLflow neither reports home nor talks about its tables; its dependencies' warnings are not ours."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Waits for its turn: two processes that make the tables of one database get in each other's way."""
    if not uri.startswith(_SQLITE):
        yield
        return
    path = Path(uri.removeprefix(_SQLITE))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
