"""kd transfer: what saved networks are worth on data that they were not made for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from kd_cli import console
from kd_cli.config.overrides import override_key
from kd_cli.errors import ConfigError
from kd_cli.launch.options import ConfigDir, Device, Json, WhichEpoch, split_targets
from kd_cli.registry import convert
from kd_cli.report.tables import METRIC_NAMES, gain_sentence, mean_text

PANEL = "Results"

_USELESS = ("dataset.mean", "dataset.std", "dataset.augment")


def command(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN OVERRIDE",
            show_default=False,
            help="Runs of several seeds, then the other data: dataset=digits, or transfer=mnist_to_digits.",
        ),
    ],
    probe: Annotated[bool, typer.Option(help="Fit a linear classifier on the frozen features.")] = True,
    tap: Annotated[
        Optional[str],  # noqa: UP045 - Typer reads it on Python 3.10
        typer.Option(help="The probe's features: stage2, layer3, …", show_default="embedding"),
    ] = None,
    which: WhichEpoch = None,
    device: Device = "auto",
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """Try saved networks on other data: zero-shot over shared classes, and a linear probe of their features."""
    console.setup(as_json=json)
    runs, overrides = split_targets(targets, "transfer")
    found = transfer_runs(runs, overrides, config_dir or [], which=which, probe=probe, tap=tap, device=device)
    present(found)
    console.emit(found)


def transfer_runs(
    runs: Sequence[Path],
    overrides: Sequence[str],
    config_dirs: Sequence[str] = (),
    *,
    which: str | None = None,
    probe: bool = True,
    tap: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """What saved networks are worth on other data.

    Args:
        overrides: `transfer=mnist_to_digits` and its like.

    Returns:
        `dataset`; `networks`: a row for each; `roles`: means over seeds; `gain`: metric → the paired gain.
    """
    from kd_cli.config.compose import compose
    from kd_cli.data.base import load_dataset
    from kd_cli.evaluation.transfer import made_with, summary, transfer
    from kd_cli.machine import pick_device
    from kd_cli.plugins import load_plugins
    from kd_cli.saved.network import Saved

    of_data, of_networks = _divided(overrides)
    chosen = compose(of_data, config_name="transfer", config_dirs=config_dirs)
    shared = convert(chosen["shared"], Mapping[str, Sequence[Any]], "shared")
    if not probe and not shared:
        raise ConfigError("nothing is left to do: name shared classes with transfer=…, or leave --no-probe out")
    load_plugins(chosen["plugins"])
    data, where = load_dataset(chosen["dataset"]), pick_device(device)
    rows, settings = [], []
    for run in runs:
        saved = Saved(run, which=which, overrides=of_networks, config_dirs=config_dirs)
        if saved.source.record.get("specialist"):
            console.notice(f"{console.short_path(run)} is left out: a specialist knows a few classes only")
            continue
        rows.append(transfer(saved, data, shared, tap=tap, probe=probe, device=where))
        settings.append(made_with(saved))
    if not rows:
        raise ConfigError("no network is left; name a run that is no specialist: kd list runs")
    found = summary(rows, settings)
    known = _metrics(rows[0])
    gains = {key: vars(gain) | {"verdict": gain.verdict} for key, gain in found.get("gain", {}).items() if key in known}
    roles = {
        name: {key: value for key, value in role.items() if key in known or key not in METRIC_NAMES}
        for name, role in found.get("roles", {}).items()
    }
    return {"dataset": data.name, "networks": rows, "roles": roles, "gain": gains}


def present(found: Mapping[str, Any]) -> None:
    """The table of the networks, and that of the means over seeds."""
    _show(found["networks"], found["dataset"])
    _show_summary(found["networks"], found)


def _divided(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those about the other data, and those about the networks."""
    keys = {word: override_key(word) for word in overrides}
    for word in (word for word in overrides if keys[word] in _USELESS):
        console.notice(f"{word} has no effect: images are normalised as each network's were, and not augmented")
    about = ("dataset", "transfer", "shared", "plugins")
    of_data = [word for word in overrides if keys[word].partition(".")[0] in about]
    return of_data, [word for word in overrides if word not in of_data or keys[word] == "plugins"]


def _show(rows: Sequence[Mapping[str, Any]], dataset: str) -> None:
    columns = ["role", "seed", *_columns(rows[0]), "run"]
    cells = [[row["role"], row["seed"], *_columns(row).values(), console.short_path(row["run"])] for row in rows]
    console.table(f"Top-1 in percent on the test images of {dataset}", columns, cells, left=("role", "run"))
    if "zero_shot" in rows[0]:
        said = rows[0]["zero_shot"]
        console.say(
            f"Zero-shot: {said['images']:,} images of {len(said['per_class'])} shared classes; a guess among these is "
            f"right in {said['chance']:.2f} %, among all of the network's classes in {said['chance_open']:.2f} %."
        )
    if not all(row.get("probe", {}).get("converged", True) for row in rows):
        console.notice("a linear probe did not come to rest; its accuracy may be a little off")


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    from kd_cli.evaluation.transfer import value

    found: dict[str, Any] = {METRIC_NAMES[metric]: value(row, metric) for metric in _metrics(row)}
    if "probe" in row:
        found |= {"features": row["probe"]["features"], "penalty": f"{row['probe']['penalty']:g}"}
    return found


def _metrics(row: Mapping[str, Any]) -> list[str]:
    """What a row has; the answers among all classes only where these are not the shared ones."""
    said = row.get("zero_shot", {})
    missing = {"zero_shot": not said, "zero_shot_open": said.get("chance_open") == said.get("chance")}
    return [metric for metric in METRIC_NAMES if not missing.get(metric, metric not in row)]


def _show_summary(rows: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> None:
    roles = found.get("roles", {})
    if all(role["seeds"] < 2 for role in roles.values()):
        return
    metrics = _metrics(rows[0])
    cells = [[name, role["seeds"], *(mean_text(role.get(each)) for each in metrics)] for name, role in roles.items()]
    heads = [METRIC_NAMES[metric] for metric in metrics]
    console.table("Over seeds, mean ± std", ["role", "seeds", *heads], cells, left=("role",))
    for metric in metrics:
        if metric in found["gain"]:
            console.say(gain_sentence(metric, found["gain"][metric]))
