"""TensorBoard, MLflow and W&B are told what the run's own records say, of resumed runs too, and cannot do harm."""

from __future__ import annotations

import inspect
import json
import struct
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from kd_cli.config.recipe import Recipe
from kd_cli.errors import Interrupted
from kd_cli.runs.folder import RunDir
from kd_cli.runs.metrics import read_metrics
from kd_cli.training.callbacks import Callback
from kd_cli.training.fit import fit
from kd_cli.training.loggers.base import LOGGERS, make_loggers
from kd_cli.training.task import Supervised
from tests.conftest import HERE, SMALL
from tests.support.small import CPU, make_data, make_student, read_yaml, yaml_names

LOG_EPOCHS = """
import sys
from pathlib import Path
from kd_cli.training.loggers.base import make_loggers
from kd_cli.runs.folder import RunDir

config = {"logger": {"name": "mlflow", "tracking_uri": "sqlite:///outputs/mlflow.db"}}
with RunDir.open(Path(sys.argv[1]), {"command": "distill"}, config, exact=True) as run:
    (logger,) = make_loggers(config["logger"], run)
    logger.begin([])
    for epoch in range(1, 11):
        logger.epoch({"epoch": epoch, "train_loss": 1 / epoch})
    logger.close("completed")
"""


class Interruption:
    """Ctrl-C at the end of an epoch, before its checkpoint is written."""

    def __init__(self, epoch: int) -> None:
        self.at = epoch

    def begin(self, records: Any) -> None:
        pass

    def epoch(self, record: Any) -> None:
        if record["epoch"] == self.at:
            raise Interrupted("Ctrl-C")

    def finish(self, result: Any) -> None:
        pass

    def close(self, status: str) -> None:
        pass


def train(folder: Path, logger: Mapping[str, Any], *others: Callback) -> None:
    config = {"logger": logger, "loss": {"name": "none"}}
    with RunDir.open(folder, {"command": "train-baseline"}, config, exact=True) as run:
        callbacks = [*make_loggers(config["logger"], run), *others]
        facts = {"stage": "baseline", "seed": 0}
        fit(Supervised(make_student()), make_data(), run, Recipe(epochs=3), facts, device=CPU, callbacks=callbacks)


def train_and_resume(folder: Path, logger: Mapping[str, Any]) -> None:
    """Interrupted in its second epoch, which it has logged and not saved."""
    with pytest.raises(Interrupted):
        train(folder, logger, Interruption(epoch=2))
    train(folder, logger)


def events(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run / "tensorboard")).Reload()


def curve(run: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value, rel=1e-6)) for event in events(run).Scalars(name)]


def recorded(run: Path, name: str) -> list[tuple[int, float]]:
    return [(row["epoch"], row[name]) for row in read_metrics(run)]


def mlflow_client() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        return MlflowClient(f"sqlite:///{Path('outputs/mlflow.db').absolute()}")


def mlflow_runs() -> list[Any]:
    """What MLflow's own client reads back."""
    client = mlflow_client()
    return list(client.search_runs([client.get_experiment_by_name("kd").experiment_id]))


def history(run: Any, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in mlflow_client().get_metric_history(run.info.run_id, name)]


def test_every_logger_has_a_yaml_that_lists_its_options() -> None:
    assert yaml_names("logger") == LOGGERS.names()
    for name in LOGGERS.names():
        options = set(inspect.signature(LOGGERS.component(name)).parameters) - {"run"}
        assert set(read_yaml("logger", name)) == {"name", *options}


@pytest.mark.parametrize("name", ["mlflow", "tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_is_told_of_before_anything_is_trained(kd, monkeypatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    said = kd("run", *SMALL, f"logger={name}", code=2).message
    assert f"pip install 'kd-cli[{name}]'" in said
    assert not list(Path().rglob("run.json"))


def test_tensorboard_has_every_epoch_the_options_and_the_result_and_the_training_is_the_same(kd) -> None:
    kd("train-baseline", *SMALL, "hydra.run.dir=plain")
    result = kd("train-baseline", *SMALL, "logger=tensorboard", "hydra.run.dir=logged", "--json").json
    run = Path("logged")
    for name in ("train_loss", "val_top1", "lr"):
        assert curve(run, name) == recorded(run, name)
    assert events(run).Scalars("test_top1")[0].value == pytest.approx(result["test_top1"])
    plugin = events(run).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"trainer.batch_size" in plugin
    assert b"logger" not in plugin
    weights = [load_file(each / "checkpoints" / "epoch-0002" / "model.safetensors") for each in (Path("plain"), run)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_tensorboard_has_each_epoch_of_a_resumed_run_once(tmp_path: Path) -> None:
    train_and_resume(tmp_path / "run", {"name": "tensorboard"})
    assert [step for step, _ in curve(tmp_path / "run", "train_loss")] == [1, 2, 3]
    assert curve(tmp_path / "run", "seconds") == recorded(tmp_path / "run", "seconds")


def test_tensorboard_gets_the_epochs_before_it_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path / "run", {"name": "none"}, Interruption(epoch=2))
    train(tmp_path / "run", {"name": "tensorboard"})
    assert curve(tmp_path / "run", "val_top1") == recorded(tmp_path / "run", "val_top1")


@pytest.mark.slow
def test_mlflow_has_the_points_of_a_sweep_their_parts_below_them_and_shared_parts_beside_them(kd) -> None:
    shown = kd("run", "-m", HERE, *SMALL, "loss.temperature=1,2", "logger=mlflow", "hydra.sweep.dir=swept")
    assert "mlflow" not in (shown.out + shown.err).lower()
    sweep, points = Path("swept").absolute(), ("loss.temperature=1", "loss.temperature=2")
    found = {run.data.tags["kd.run"]: run for run in mlflow_runs()}
    shared = [str(part) for part in (sweep / "parts").iterdir()]
    assert set(found) == {*shared, *(f"{sweep}/{point}{part}" for point in points for part in ("", "/distilled"))}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    for point in points:
        whole, student = found[f"{sweep}/{point}"], found[f"{sweep}/{point}/distilled"]
        result = json.loads((sweep / point / "result.json").read_text())
        assert student.data.tags["mlflow.parentRunId"] == whole.info.run_id
        assert student.data.tags["kd.point"] == whole.data.tags["kd.point"] == point
        assert whole.data.metrics["gain"] == result["gain"]
        assert whole.data.metrics["distilled.test_top1"] == result["distilled"]["test_top1"]
        assert student.data.metrics["test_top1"] == result["distilled"]["test_top1"]
        assert student.data.params["loss.temperature"] == point.partition("=")[2]
        assert not any(key.startswith("logger") for key in student.data.params)
        assert history(student, "val_top1") == recorded(sweep / point / "distilled", "val_top1")
    for part in shared:
        assert not {"mlflow.parentRunId", "kd.point"} & set(found[part].data.tags)
        assert found[part].data.tags["kd.sweep"] == str(sweep)
        assert not any(key.startswith("loss") for key in found[part].data.params)


def test_mlflow_goes_on_with_the_run_of_a_resumed_one_and_has_each_epoch_once(tmp_path: Path) -> None:
    options = {"name": "mlflow", "tracking_uri": "sqlite:///outputs/mlflow.db"}
    with pytest.raises(Interrupted):
        train(tmp_path / "run", options, Interruption(epoch=2))
    (stopped,) = mlflow_runs()
    assert (stopped.info.status, stopped.data.tags["kd.status"]) == ("KILLED", "interrupted")
    train(tmp_path / "run", options)
    (resumed,) = mlflow_runs()
    assert resumed.info.run_id == stopped.info.run_id
    assert (resumed.info.status, resumed.data.tags["kd.status"]) == ("FINISHED", "completed")
    assert history(resumed, "train_loss") == recorded(tmp_path / "run", "train_loss")


def chunks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Kind and content of the pieces of W&B's offline file, which is a LevelDB log with a header of its own."""
    data, place = path.read_bytes(), 7
    while place + 7 <= len(data):
        if (left := 2**15 - place % 2**15) < 7:  # no room for a header: the next block
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        yield kind, data[place + 7 : place + 7 + size]
        place += 7 + size


def wandb_records(path: Path) -> list[Any]:
    """What W&B's own message type makes of its offline file."""
    from wandb.proto import wandb_internal_pb2

    records, whole = [], b""
    for kind, piece in chunks(path):
        whole += piece
        if kind in (1, 4):  # the only piece of a record, or its last
            records.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return records


def items(update: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in update}


def wandb_files(run: Path) -> list[Path]:
    return sorted((run / "wandb").glob("offline-run-*/*.wandb"))


def wandb_history(path: Path, name: str) -> list[tuple[int, float]]:
    rows = [record.history for record in wandb_records(path) if record.WhichOneof("record_type") == "history"]
    return [(row.step.num, items(row.item)[name]) for row in rows]


def of_kind(path: Path, kind: str) -> list[Any]:
    return [getattr(record, kind) for record in wandb_records(path) if record.WhichOneof("record_type") == kind]


def test_wandb_offline_has_every_epoch_the_options_and_the_result_of_each_part(kd) -> None:
    pytest.importorskip("wandb")
    shown = kd("run", *SMALL, "logger=wandb", "logger.mode=offline", "hydra.run.dir=there")
    assert "wandb" not in (shown.out + shown.err).lower()
    result = json.loads(Path("there/result.json").read_text())
    for part in ("teacher", "baseline", "distilled"):
        run = Path("there") / part
        (path,) = wandb_files(run)
        for name in ("train_loss", "val_top1", "lr"):
            assert wandb_history(path, name) == recorded(run, name)
        told = {key: value for summary in of_kind(path, "summary") for key, value in items(summary.update).items()}
        assert told["test_top1"] == result[part]["test_top1"]
        assert told["kd.status"] == "completed"
        (begun,) = of_kind(path, "run")
        options = items(begun.config.update)
        assert (begun.project, begun.run_group, begun.job_type) == ("kd", "there", part)
        assert options["dataset.num_train"] == 300
        assert options["kd.comparison"] == str(Path("there").absolute())
        assert not any(key.startswith("logger") for key in options)
        assert [record.exit_code for record in of_kind(path, "exit")] == [0]
    (path,) = wandb_files(Path("there"))
    told = {key: value for summary in of_kind(path, "summary") for key, value in items(summary.update).items()}
    assert told["gain"] == result["gain"]


def test_wandb_goes_on_with_the_run_of_a_resumed_one_whose_last_file_has_every_epoch_once(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    train_and_resume(tmp_path / "run", {"name": "wandb", "mode": "offline"})
    stopped, resumed = wandb_files(tmp_path / "run")
    begun, again = (of_kind(path, "run")[0] for path in (stopped, resumed))
    assert begun.run_id == again.run_id == json.loads((tmp_path / "run/run.json").read_text())["wandb"]["id"]
    assert [step for step, _ in wandb_history(stopped, "train_loss")] == [1, 2]
    assert wandb_history(resumed, "train_loss") == recorded(tmp_path / "run", "train_loss")
    assert [record.exit_code for path in (stopped, resumed) for record in of_kind(path, "exit")] == [1, 0]


@pytest.mark.parametrize("known", [{"id": "../../../elsewhere", "project": "kd", "entity": None}, {"id": ["x"]}, {}])
def test_an_id_that_kd_did_not_make_is_not_taken_from_a_record(tmp_path: Path, known: dict[str, Any]) -> None:
    from kd_cli.training.loggers.wandb import WandB

    with RunDir.open(tmp_path / "run", {"command": "distill"}, {"logger": {"name": "wandb"}}, exact=True) as run:
        run.note(wandb=known)
        made = WandB(run)._known_id()
        assert made.isalnum()
        assert len(made) == 32
        assert WandB(run)._known_id() == made
        assert WandB(run, project="other")._known_id() != made


@pytest.mark.slow  # both import MLflow
def test_processes_that_begin_at_the_same_time_make_one_database(tmp_path: Path) -> None:
    names = ("first", "second")
    processes = [
        subprocess.Popen([sys.executable, "-c", LOG_EPOCHS, name], stderr=subprocess.PIPE, text=True) for name in names
    ]
    assert [process.communicate()[1] for process in processes] == ["", ""]
    found = {run.info.run_name: run for run in mlflow_runs()}
    assert set(found) == set(names)
    for run in found.values():
        assert [step for step, _ in history(run, "train_loss")] == list(range(1, 11))


def test_a_logger_that_fails_costs_its_log_and_not_the_run(kd) -> None:
    Path("file").write_text("no folder\n")
    words = ("logger=mlflow", "logger.tracking_uri=sqlite:///file/mlflow.db", "hydra.run.dir=there")
    shown = kd("train-baseline", *SMALL, *words)
    assert shown.message.count("logger=mlflow failed") == 1
    assert json.loads(Path("there/run.json").read_text())["status"] == "completed"
