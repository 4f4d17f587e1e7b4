"""`kd export`: a folder with the model, a script that runs it and a model card, written whole or not at all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch

from kd_cli import console
from kd_cli.errors import ConfigError, KDError
from kd_cli.export import int8, to_onnx, trace, weights
from kd_cli.export.card import infer_script, model_card
from kd_cli.export.deployed import CPU, Subject, subject_of
from kd_cli.export.parity import parity
from kd_cli.export.results import recorded_results
from kd_cli.metrics.evaluate import evaluating
from kd_cli.saved.network import Saved
from kd_cli.storage.files import file_digest, read_json, whole_folder, write_json, write_text

Report = dict[str, Any]

_WRITERS: Mapping[str, tuple[str, Callable[[Path, Subject], None]]] = {
    "onnx": (to_onnx.FILE, to_onnx.write_onnx),
    "pt2": (trace.PT2, trace.write_pt2),
    "safetensors": (weights.FILE, weights.write_weights),
}
_WARM_UP, _TIMED = 10, 50  # calls
_NOTABLE_DROP = 1.0  # points of test top-1 that int8 may cost before it is said


def export(saved: Saved, kind: str, *, quantised: bool, folder: Path) -> Report:
    """Writes a folder and checks what is in it.

    Args:
        kind: onnx, pt2 or safetensors.
        quantised: static int8, for onnx.
        folder: a new one, or an earlier export, which is replaced.

    Returns:
        What config.json says, with `checks`, `results` and the SHA-256 of each of the `files`.

    Raises:
        ConfigError: nothing is on record about the network, or the folder holds something else.
        DataError: its data are missing or are others.
        KDError: the network cannot be exported, or is not the same afterwards; nothing is written.
    """
    _check_free(folder)
    subject = subject_of(saved)
    results = recorded_results(saved)
    top1 = {key: results[key] for key in ("test_top1", "val_top1")}
    facts = {**subject.facts, **top1, "format": kind, "int8": quantised}
    subject = Subject(saved, subject.data, facts)
    if facts["checked_on"] != facts["data_fingerprint"]:
        console.notice("these are not the images of the training (another fingerprint): the checks are done on them")
    empty = not folder.parent.exists()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(folder) as temporary:
            return _filled(temporary, subject, results) | {"folder": str(folder)}
    except OSError as error:
        raise KDError(f"{folder} cannot be written ({error.strerror or error}); choose another: --out DIR") from error
    finally:
        with suppress(OSError):  # it holds something
            if empty:
                folder.parent.rmdir()


def _check_free(folder: Path) -> None:
    there = folder.is_dir() and any(folder.iterdir())
    made_by = (read_json(folder / "config.json") or {}).get("made_by")
    if folder.is_file() or (there and made_by != "kd export"):
        raise ConfigError(f"{folder} holds something that kd export did not write; choose another: --out DIR")


def _filled(folder: Path, subject: Subject, results: Mapping[str, Any]) -> Report:
    facts = subject.facts
    name, write = _WRITERS[facts["format"]]
    file = folder / name
    write(folder, subject)
    write_text(folder / "infer.py", infer_script(facts))
    write_json(folder / "config.json", facts)
    checks: Report = {"parity": parity(folder, subject)}
    variants = {"float32": _measured(file, subject)}
    if facts["int8"]:
        variants |= _int8(folder, file, subject, checks)
    files = {name: file_digest(folder / name) for name in (file.name, "infer.py")}
    report = {**facts, "checks": checks, "variants": variants, "files": files}
    write_json(folder / "config.json", report)
    files["config.json"] = file_digest(folder / "config.json")
    write_text(folder / "README.md", model_card(subject, report, results))
    return report | {"results": results}


def _measured(file: Path, subject: Subject) -> Report:
    """Size, and for ONNX Runtime beside PyTorch the time of one image."""
    measured: Report = {"bytes": file.stat().st_size}
    if subject.facts["format"] == "onnx":
        session, network = to_onnx.Session(file), subject.deployed()
        measured["milliseconds"] = _milliseconds(session, subject)
        with evaluating(network):
            measured["milliseconds_pytorch"] = _milliseconds(network, subject)
    return measured


def _int8(folder: Path, file: Path, subject: Subject, checks: Report) -> Report:
    """Quantises the file; what that costs in accuracy and saves otherwise."""
    full, before = int8.measure(file, subject)
    calibration = int8.quantise(folder, subject)
    small, after = int8.measure(file, subject)
    checks["int8"] = {
        "float32_test_top1": full,
        "int8_test_top1": small,
        "same_class": round(100 * float((before == after).double().mean()), 2),
        "calibration": calibration,
        "max_abs_difference": parity(folder, subject, tolerance=math.inf)["max_abs_difference"],
    }
    to_onnx.put_facts(file, {**subject.facts, "int8_test_top1": small})
    if full - small > _NOTABLE_DROP:
        console.notice(f"int8 costs {full - small:.2f} points of test top-1 ({full:.2f} → {small:.2f} %)")
    return {"int8": {"bytes": file.stat().st_size, "milliseconds": _milliseconds(to_onnx.Session(file), subject)}}


def _milliseconds(network: Callable[[torch.Tensor], torch.Tensor], subject: Subject) -> float:
    """Median time of one test image, after a warm-up."""
    (batch,) = subject.data.pixels("test", [torch.zeros(1, dtype=torch.int64)], CPU)
    image, times = batch.images.contiguous(), []
    for _ in range(_WARM_UP + _TIMED):
        start = time.perf_counter()
        network(image)
        times.append(time.perf_counter() - start)
    return round(1000 * median(times[_WARM_UP:]), 4)
