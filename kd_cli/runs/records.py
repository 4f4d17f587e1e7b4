"""What runs left on disk must be like before anything is made of it: anybody may have written it.

It is data: nothing in it is resolved, imported or called.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kd_cli.errors import DataError
from kd_cli.storage.files import read_json, read_record, read_text

_LARGEST_IMAGE = 2**14  # pixels of a side

Fits = Callable[[Any], bool]


def run_record(run: Path) -> dict[str, Any]:
    """run.json, of which all that a network is rebuilt from is of its kind; empty where there is none.

    Raises:
        DataError: it is damaged.
    """
    path = run / "run.json"
    remedy = (
        "Restore it from a copy, or choose another folder, hydra.run.dir=DIR; "
        "its weights alone can be used as a .safetensors file"
    )
    record = read_record(path, remedy) or {}
    check_kinds(record, _RUN, path)
    return record


def run_result(run: Path) -> dict[str, Any] | None:
    """result.json, likewise; None where there is none. Raises DataError: it is damaged."""
    path = run / "result.json"
    result = read_record(path, "Remove it and give the run's command again (kd show): its checkpoints are judged anew")
    if result is not None and "best_epoch" in result:
        check_kinds(result, _RESULT, path, whole=True)
    return result


def sound_record(run: Path) -> dict[str, Any] | None:
    """run.json without what is not of its kind, for tables that one damaged run shall not stop; None if it is none."""
    return _sound(read_json(run / "run.json"), _LISTED)


def sound_result(run: Path) -> dict[str, Any] | None:
    """result.json, likewise."""
    return _sound(read_json(run / "result.json"), _SCORED)


def read_config(run: Path) -> dict[str, Any]:
    """config.yaml, which was resolved before it was written: what looks like an interpolation in it is text.

    Raises:
        DataError: missing, damaged, or no mapping.
    """
    from kd_cli.storage.yaml import parse_record

    path = run / "config.yaml"
    try:
        config = parse_record(read_text(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); it is missing, damaged or not kd's") from error
    if not isinstance(config, dict):
        raise DataError(f"{path} is no configuration: it is damaged or not kd's")
    return {str(key): value for key, value in config.items()}


def network_name(model: Any) -> Any:
    """A network's own name, by its options on record: `mobilenet_v3_small`, not the `torchvision` that made it."""
    match model:
        case {"name": "torchvision" | "timm", "model": str(own)}:
            return own
        case {"name": "external", "kwargs": {"model_name": str(own)}}:
            return own
        case {"name": "external", "callable": str(function)} | {"name": _, "network": str(function)}:
            return re.split(r"[.:]", function)[-1]
        case {"name": "onnx", "file": str(file)}:
            return Path(file).name
        case {"name": name}:
            return name
    return None


def need(facts: Mapping[str, Any], key: str, where: object) -> Any:
    """A fact without which nothing goes on.

    Args:
        where: whose record it is, for the message.

    Raises:
        DataError: it is not there.
    """
    if facts.get(key) is None:
        raise DataError(f"{where}: its record does not say {key!r}; it is damaged or not kd's")
    return facts[key]


def _sound(facts: dict[str, Any] | None, kinds: Mapping[str, Fits]) -> dict[str, Any] | None:
    if facts is None:
        return None
    return {key: value for key, value in facts.items() if key not in kinds or kinds[key](value)}


def check_kinds(record: Mapping[str, Any], kinds: Mapping[str, Fits], path: Path, *, whole: bool = False) -> None:
    """Refuses a record with a value that kd never writes there.

    Args:
        whole: every key must be there.

    Raises:
        DataError: naming the key and the value.
    """
    for key, fits in kinds.items():
        if key not in record and whole:
            raise DataError(f"{path} is damaged: it has no {key}")
        if key in record and not fits(record[key]):
            raise DataError(f"{path} is damaged: {key} cannot be {reprlib.repr(record[key])}")


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**40


def is_sides(value: Any, count: int = 2) -> bool:
    """Height and width in pixels; with a count of 3, channels before them."""
    sides = value if isinstance(value, list) else []
    return len(sides) == count and all(type(side) is int and 0 < side <= _LARGEST_IMAGE for side in sides)


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


def is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def is_options(value: Any) -> bool:
    """`{name: …, option: value}`."""
    return isinstance(value, dict) and is_text(value.get("name"))


def is_network(value: Any) -> bool:
    """A network's options, and among them how it is shown the images."""
    if not is_options(value):
        return False
    shown = [value.get(key) for key in ("mean", "std")]
    return all(each is None or each == "data" or is_number(each) or is_numbers(each) for each in shown)


def is_graft(value: Any, depth: int = 8) -> bool:
    """As `weights.graft_of` gives it: a loss and the one teacher that it took a part of, which may have a graft too."""
    match value:
        case {"loss": loss, "teacher": {"models": [model], "grafts": [inner]}}:
            return depth > 0 and is_options(loss) and is_options(model) and is_graft(inner, depth - 1)
    return isinstance(value, dict) and not value


def _is_data(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    seen = value.get("preprocessing")
    normal = isinstance(seen, dict) and is_numbers(seen.get("mean")) and is_numbers(seen.get("std"))
    sized = isinstance(seen, dict) and is_sides(seen.get("image_size", [1, 1])) and _is_geometry(seen)
    named = is_texts(value.get("classes")) and is_text(value.get("name")) and is_text(value.get("fingerprint"))
    return normal and sized and named and is_sides(value.get("image_shape"), 3) and is_count(value.get("num_train", 1))


def _is_geometry(seen: Mapping[str, Any]) -> bool:
    """How files became images of one size, where that is on record."""
    if "resize" not in seen:
        return True
    shorter, sides = seen["resize"], seen.get("image_size", [0, 1])
    square = sides[0] == sides[1] and is_count(shorter) and shorter >= sides[0]
    return bool(square and seen.get("interpolation") in ("bilinear", "bicubic"))


def _is_teacher(value: Any) -> bool:
    if not isinstance(value, dict) or not is_texts(value.get("sources")) or not is_texts(value.get("sha256")):
        return False
    lists = [value.get(key) for key in ("models", "grafts")]
    if not all(isinstance(each, list) and len(each) == len(value["sources"]) for each in (value["sha256"], *lists)):
        return False
    return all(isinstance(options, dict) for each in lists for options in each or [])


def _is_rows(value: Any) -> bool:
    """Of epochs 1, 2, …, each with plain numbers."""
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        return False
    numbers = all(type(each) in (int, float) for row in value for each in row.values())
    return numbers and [row.get("epoch") for row in value] == list(range(1, len(value) + 1))


_RUN: Mapping[str, Fits] = {
    "command": is_text,
    "arguments": is_texts,
    "directory": is_text,
    "stage": lambda value: value is None or is_text(value),
    "model": is_network,
    "loss": is_options,
    "data": _is_data,
    "teacher": _is_teacher,
    "specialist": lambda value: (
        value is None or (isinstance(value, list) and value != [] and all(map(is_count, value)))
    ),
}
STATE: Mapping[str, Fits] = {
    "records": _is_rows,
    "optimizer": is_mapping,
    "scaler": is_mapping,
    "seen": is_count,
    "seconds": is_number,
}
EXPORT: Mapping[str, Fits] = {
    "model": is_network,
    "graft": is_graft,
    "epoch": lambda value: value is None or is_count(value),
    "weights_sha256": is_text,
    "classes": is_texts,
    "channels": is_count,
    "image_size": is_sides,
    "mean": is_numbers,
    "std": is_numbers,
}
_RESULT: Mapping[str, Fits] = {
    **dict.fromkeys(("best_epoch", "epochs"), is_count),
    "weights_sha256": lambda value: is_mapping(value) and is_text(value.get("best")) and is_text(value.get("last")),
}
_LISTED: Mapping[str, Fits] = {
    **dict.fromkeys(("packages", "data", "teacher", "model", "loss", "machine", "mlflow", "wandb"), is_mapping),
    "arguments": is_texts,
    "resumed": lambda value: isinstance(value, list),
    **dict.fromkeys(("stage", "status", "started"), lambda value: value is None or is_text(value)),
}
_SCORED: Mapping[str, Fits] = {
    **dict.fromkeys(("teacher", "baseline", "distilled", "weights_sha256", "recipe_differences"), is_mapping),
    **dict.fromkeys(("test_top1", "val_top1", "gain"), lambda value: value is None or is_number(value)),
    **dict.fromkeys(("seed", "best_epoch", "epochs"), lambda value: value is None or is_count(value)),
}
