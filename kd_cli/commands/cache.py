"""kd cache: what is kept on disk so that it need not be computed again."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kd_cli import console
from kd_cli.errors import ConfigError, DataError
from kd_cli.launch.options import Json, Words
from kd_cli.storage.files import matching, read_json

PANEL = "Results"


# What a file of data is, by a tensor that it has.
_KINDS = {"images": "decoded images", "stamps": "checked headers", "names": "index of files"}
Action = Literal["list", "verify", "clear"]


def command(
    action: Annotated[Action, typer.Argument(help="List it, check every file's checksum, or remove it.")] = "list",
    entries: Annotated[
        Words, typer.Argument(metavar="ENTRY", help="Only these, as kd cache lists them.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """List, verify or clear what is kept on disk: teachers' answers, images, indexes. Losing it costs only time."""
    console.setup(as_json=json)
    from kd_cli.storage.cache import cache_folder

    folders = (cache_folder() / kind for kind in ("teacher", "data"))
    rows = _chosen([_row(path) for folder in folders for path in matching(folder, "[!.]*")], entries or [])
    if action == "clear":
        _clear(rows)
        return
    columns = ["entry", "kind", "of", "data", "taps", "kept", "answers", "shards", "MB", "last used"]
    if action == "verify":
        columns.append("state")
        rows = [row | {"state": _state(Path(row["path"]))} for row in rows]
    if rows:
        cells = [[row[name] for name in columns] for row in rows]
        console.table(f"cache in {cache_folder()}", columns, cells, left=(*columns[:7], "last used", "state"))
    else:
        console.say(f"nothing is kept in {cache_folder()}")
    console.emit({"folder": str(cache_folder()), "entries": rows})
    damaged = [row["entry"] for row in rows if row.get("state") == "damaged"]
    if damaged:
        raise DataError(
            f"damaged: {', '.join(damaged)}. A run would notice and make it again; or remove it:\n"
            f"kd cache clear {' '.join(damaged)}"
        )


def _row(path: Path) -> dict[str, Any]:
    from kd_cli.report.records import mapping
    from kd_cli.runs.records import network_name
    from kd_cli.storage.cache import folder_size, last_used

    about: Mapping[str, Any] = (read_json(path / "about.json") or {}) if path.is_dir() else {}
    taps = about.get("taps")
    size = folder_size(path)
    return {
        "entry": path.stem[:16],
        "kind": "teacher's answers" if path.is_dir() else _kind(path),
        "of": network_name(about.get("teacher")),
        "data": mapping(about.get("data")).get("name"),
        "taps": ", ".join(["logits", *map(str, taps)]) if isinstance(taps, list) else None,
        "kept": _kept(about),
        "answers": _answers(path),
        "shards": sum(len(matching(view, "*.rows")) for view in _views(path)) if path.is_dir() else None,
        "MB": round(size / 1e6, 2),
        "last used": time.strftime("%Y-%m-%d %H:%M", time.localtime(last_used(path))),
        "path": str(path),
    }


def _kind(path: Path) -> str:
    from kd_cli.storage.tensors import names_in

    try:
        names = names_in(path)
    except DataError:
        return "damaged"
    return next((kind for name, kind in _KINDS.items() if name in names), "unknown")


def _kept(about: Mapping[str, Any]) -> str | None:
    """What of an answer is kept: `exact`, or `top 10, float16`."""
    from kd_cli.report.records import mapping

    kept = mapping(about.get("kept"))
    parts = [f"top {kept['top_k']}"] if kept.get("top_k") else []
    parts += [str(kept["dtype"])] if kept.get("dtype") else []
    return ", ".join(parts) or ("exact" if "kept" in about else None)


def _answers(path: Path) -> str | None:
    """About which images: `train, val`, or of how many views of augmented ones."""
    names = sorted(each.stem for each in (*matching(path, "*.safetensors"), *_views(path)))
    views = sum(name.startswith("seed-") for name in names)
    plain = [name for name in names if not name.startswith("seed-")]
    return ", ".join([*plain, *([f"{views} augmented views"] if views else [])]) or None


def _views(path: Path) -> Sequence[Path]:
    """The folders of shards in an entry."""
    return [each for each in matching(path, "*") if each.is_dir()]


def _files(path: Path) -> Sequence[Path]:
    return matching(path, "*.safetensors") if path.is_dir() else [path]


def _chosen(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    unknown = [name for name in names if name not in {row["entry"] for row in rows}]
    if unknown:
        raise ConfigError(f"there is no entry {unknown[0]!r} in the cache; kd cache shows what is there")
    return [row for row in rows if not names or row["entry"] in names]


def _state(path: Path) -> str:
    from kd_cli.storage.cache import read_cached, shards_in

    whole = all(read_cached(file) for file in _files(path)) and (path.is_file() or _is_about(path))
    whole = whole and all(shards_in(view).is_whole() for view in _views(path))
    return "whole" if whole else "damaged" if path.exists() else "removed meanwhile"


def _is_about(path: Path) -> bool:
    """Whether about.json says what the name of its folder was made of."""
    from kd_cli.storage.cache import entry_name

    return entry_name(read_json(path / "about.json") or {}) == path.name


def _clear(rows: Iterable[Mapping[str, Any]]) -> None:
    removed = []
    for row in rows:
        path = Path(row["path"])
        gone = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # at once: what a run is adding cannot hold it up
        try:
            path.rename(gone)
            shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        except FileNotFoundError:  # another process was quicker
            shutil.rmtree(gone, ignore_errors=True)
        except OSError as error:
            raise DataError(f"{path} cannot be removed: {error.strerror}") from error
        removed.append(row)
    console.say(f"entries removed: {len(removed)}, {sum(row['MB'] for row in removed):.2f} MB")
    console.emit({"removed": [row["entry"] for row in removed]})
