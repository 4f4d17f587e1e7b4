"""kd show: one run, from what it was told to what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from kd_cli import console
from kd_cli.launch.options import Json

PANEL = "Results"


def command(
    run: Annotated[Path, typer.Argument(help="The folder of a run.", show_default=False)], json: Json = False
) -> None:
    """Show a run: configuration, metrics, result and provenance."""
    console.setup(as_json=json)
    from kd_cli.errors import ConfigError
    from kd_cli.runs.checkpoint import damage_by_averaging
    from kd_cli.runs.folder import status_of
    from kd_cli.runs.identity import flatten
    from kd_cli.runs.metrics import read_metrics
    from kd_cli.runs.provenance import rerun_line
    from kd_cli.runs.records import read_config, run_record, run_result

    record = run_record(run)
    if not record:
        raise ConfigError(f"{run} holds no run (no run.json); kd list runs shows what is there")
    config = read_config(run) if (run / "config.yaml").exists() else {}
    metrics, result = read_metrics(run), run_result(run)
    record["status"] = status_of(run)
    if damage := damage_by_averaging(run):
        console.notice(damage)
        record["damage"] = damage
    _table("Configuration", _without_repeats(flatten(config)))
    if metrics:
        columns = list(metrics[0])
        rows = [[_short(row.get(name)) for name in columns] for row in metrics]
        console.table("Metrics", columns, rows)
    if result:
        _table("Result", flatten(result))
    shown = {key: value for key, value in flatten(record).items() if not key.startswith(("arguments", "data.classes"))}
    _table("Provenance", shown)
    console.say(f"made by: {rerun_line(record)}")
    console.emit({"run": str(run), "config": config, "metrics": metrics, "result": result, "provenance": record})


def _table(title: str, values: Mapping[str, Any]) -> None:
    rows = [(key, "–" if value is None else str(value)) for key, value in values.items()]
    console.table(title, ("key", "value"), rows, left=("key", "value"))


def _without_repeats(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without the stages' options that say the same as `trainer`."""
    repeated = {key for key in config if config.get(f"trainer.{key.partition('_trainer.')[2]}", ...) == config[key]}
    return {key: value for key, value in config.items() if key not in repeated}


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1 else value
