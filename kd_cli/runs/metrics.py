"""The records of a training's epochs, as two files: one for programs, one for people and spreadsheets."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_cli.errors import DataError
from kd_cli.storage.files import open_regular, write_text


def write_metrics(run: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes metrics.jsonl and metrics.csv, each whole or not at all."""
    names = list(dict.fromkeys(name for row in records for name in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, names)
    writer.writeheader()
    writer.writerows(records)
    write_text(run / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in records))
    write_text(run / "metrics.csv", table.getvalue())


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, in the order of epochs; none if there is no such file.

    Raises:
        DataError: it is damaged.
    """
    path = run / "metrics.jsonl"
    try:
        with open_regular(path) as file:
            rows = [json.loads(line) for line in file]
        if not all(isinstance(row, dict) and isinstance(row["epoch"], int) for row in rows):
            raise ValueError("not a record of an epoch")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}); kd resume {run} makes it again from a checkpoint") from error
    return rows
