"""README.md and infer.py of an export: a model card in the form that model hubs read, and a script beside the file.

Every number in the card is on record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kd_cli.config.base import STAGE_TRAINER
from kd_cli.data.decode import reading_source
from kd_cli.export.deployed import Subject
from kd_cli.runs.provenance import rerun_line
from kd_cli.runs.records import network_name

Facts = Mapping[str, Any]

_NEEDS = {
    "onnx": "numpy pillow onnxruntime",
    "pt2": "numpy pillow torch",
    "safetensors": "numpy pillow torch kd-cli",
}
_KINDS = {"onnx": "ONNX", "pt2": "PyTorch export", "safetensors": "safetensors"}


def infer_script(facts: Facts) -> str:
    """A Python file that runs beside the model and needs nothing but what it names."""
    return _filled("infer.py.j2", facts, file=f"model.{facts['format']}", reading=reading_source())


def model_card(subject: Subject, report: Facts, results: Facts) -> str:
    """The whole card.

    Args:
        report: what config.json says.
        results: as `recorded_results` gives them.
    """
    record, config = subject.saved.source.record, subject.saved.recorded
    options = dict(config["dataset"])
    if "root" in options:  # the folder's name, not where it was
        options["root"] = Path(options["root"]).name
    how = ", ".join([report["stage"], _KINDS[report["format"]], *(["int8"] if report["int8"] else [])])
    return _filled(
        "card.md.j2",
        report,
        report=report,
        results=results,
        record=record,
        title=f"{network_name(report['model'])} on {report['dataset']} ({how})",
        network=network_name(report["model"]),
        tags=["image-classification", *(["knowledge-distillation", report["loss"]] if report["loss"] else [])],
        top1=report["checks"].get("int8", {}).get("int8_test_top1", results["test_top1"]),
        size="{} × {}".format(*report["image_size"]),
        options=options,
        recipe=config.get(STAGE_TRAINER.get(report["stage"], "trainer"), {}),
        rerun=rerun_line(record),
        packages=[f"{name} {version}" for name, version in record.get("packages", {}).items() if version],
        torch=torch.__version__,
    )


def _filled(template: str, facts: Facts, **words: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(json=json.dumps, thousands="{:,}".format)
    trust = ", trust_external=True" if facts["model"]["name"] == "external" else ""
    kind = facts["format"]
    return environment.get_template(template).render(kind=kind, needs=_NEEDS[kind], trust=trust, **words)
