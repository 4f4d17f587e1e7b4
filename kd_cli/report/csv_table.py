"""results.csv: a row for each run, for spreadsheets and programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

_COLUMNS = (
    *("id", "name", "stage", "status", "data", "network", "loss", "seed"),
    *("test_top1", "test_top1_last", "val_top1", "test_nll", "best_epoch", "epochs", "parameters", "train_seconds"),
)
_CHOSEN = ("select_by", "val_balanced_accuracy", "val_macro_f1", "val_loss")  # where top-1 does not choose the epoch
_SCORES = ("top5", "brier", "ece", "mce", "agreement", "agreement_when_wrong", "kl")
_SPEED = ("flops_per_image", "latency_ms", "images_per_second", "bytes")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_text(results: Mapping[str, Any]) -> str:
    """Runs by rows; a distilled run also has its gain over the baseline and the share of the gap recovered."""
    axes = list(results["axes"])
    chosen = [
        key for key in _CHOSEN if any(run.get("select_by") and run.get(key) is not None for run in results["runs"])
    ]
    names = [*_COLUMNS, *chosen, *axes, "gain", "recovered", *_SCORES, *_SPEED]
    names += ["started", "ended", "error", "run", "rerun"]
    compared = {each["distilled"]: each for each in results["comparisons"]}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_cell(name) for name in names])
    for run in results["runs"]:
        own = compared.get(run["id"], {})
        row = {**run, **(run["scores"] or {}), **(run["speed"] or {}), **run["settings"]}
        row |= {key: own.get(key) for key in ("gain", "recovered")}
        writer.writerow([_cell(row.get(name)) for name in names])
    return text.getvalue()


def _cell(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula is put behind an apostrophe; numbers stay numbers."""
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
