"""kd profile: what networks cost: size, FLOPs, memory, time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from kd_cli import console
from kd_cli.commands.list import choices
from kd_cli.errors import ConfigError
from kd_cli.launch.options import ConfigDir, Count, Device, File, Json, is_path
from kd_cli.report.plots.files import check_picture, save_picture

PANEL = "Results"
_Count = Annotated[
    Count, typer.Option(min=1, help="Of networks without a run.", show_default="as in the first run, or CIFAR-10's")
]


def command(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN MODEL OVERRIDE",
            show_default=False,
            help="Runs, comparisons, checkpoints, or names of networks.",
        ),
    ],
    batch_sizes: Annotated[str, typer.Option(help="Images per pass; 1 is always measured.")] = "1,8,64,256",
    seconds: Annotated[
        float, typer.Option(min=0, help="Of passes for each network and batch size, but at least five passes.")
    ] = 1.0,
    threads: Annotated[
        Count,
        typer.Option(min=1, help="Of the processor.", show_default="as PyTorch chooses, or OMP_NUM_THREADS"),
    ] = None,
    device: Device = "auto",
    image_size: _Count = None,
    channels: _Count = None,
    classes: _Count = None,
    picture: Annotated[File, typer.Option(help="Draw accuracy against cost: .png or .svg.", show_default=False)] = None,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """Measure what networks cost: parameters, bytes, FLOPs, memory, latency, images per second."""
    console.setup(as_json=json)
    sizes, words = _sizes(batch_sizes), list(dict.fromkeys(word for word in targets if is_path(word)))
    if not words:
        raise ConfigError("name a run or a network: kd profile outputs/…; kd profile resnet56 resnet20")
    if picture:
        check_picture(picture, "--picture")
    from kd_cli.evaluation import efficiency
    from kd_cli.machine import pick_device
    from kd_cli.metrics import cost as profiling

    place, folders = pick_device(device), config_dir or []
    subjects = efficiency.open_subjects(
        words,
        efficiency.Shape(image_size, channels, classes),
        overrides=[word for word in targets if not is_path(word)],
        config_dirs=folders,
        known=[choice["name"] for choice in choices("student", folders)],
        device=place,
    )
    console.say(f"measuring {', '.join(subject.name for subject in subjects)} on {place}")
    with profiling.threads(threads) as count:
        result = efficiency.measure(subjects, batch_sizes=sizes, seconds=seconds, device=place)
    result = {**profiling.machine(place, count), **result}
    _print(result)
    if picture:
        _draw(picture, result["networks"])
    console.emit(result)


def _sizes(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    wrong = [word for word in words if not word.isdigit() or not int(word)]
    if wrong or not words:
        raise ConfigError(f"--batch-sizes: {wrong[0] if wrong else text!r} is no number of images; type 1,8,64")
    return sorted({1, *map(int, words)})


def _print(result: Mapping[str, Any]) -> None:
    rows, reference = result["networks"], result["reference"]
    console.table(
        f"Size, and how many times smaller than {reference}",
        ("network", "test %", "parameters", "smaller", "file", "smaller", "fp16", "int8", "FLOPs", "fewer"),
        [_size(row) for row in rows],
        left=("network",),
    )
    console.table(
        f"One image, and how many times better than {reference}",
        ("network", "memory", "less", "latency ms", "quartiles", "faster"),
        [_one(row) for row in rows],
        left=("network",),
    )
    sizes = [speed["batch_size"] for speed in rows[0]["speed"][1:]]
    if sizes:
        console.table(
            "Images per second (quartiles)",
            ("network", *(f"in batches of {size}" for size in sizes)),
            [(row["name"], *map(_rate, row["speed"][1:])) for row in rows],
            left=("network",),
        )
    for row in rows:
        if row["measured_as"] != row["name"]:
            console.say(f"{row['name']} is the same network as {row['measured_as']}: measured once.")
    console.say("file: as it is, fp32; fp16 and int8: the same weights written so, their accuracy is not measured.")
    console.say("FLOPs: of convolutions and matrix products for one image; multiplication and addition are two.")
    console.say(
        f"{result['device']} ({result['device_name']}), {result['threads']} "
        f"thread{'s' if result['threads'] > 1 else ''}, PyTorch {result['torch']}"
    )


def _size(row: Mapping[str, Any]) -> list[Any]:
    sizes = [f"{_short(row['bytes'][kind])}B" for kind in ("fp32", "fp16", "int8")]
    ratios = row["ratios"]
    head = [row["name"], row["test_top1"], row["parameters"], _times(ratios["parameters"]), sizes[0]]
    return [*head, _times(ratios["bytes"]), *sizes[1:], _short(row["flops_per_image"]), _times(ratios["flops"])]


def _one(row: Mapping[str, Any]) -> list[Any]:
    one, ratios = row["speed"][0], row["ratios"]
    memory = None if one["peak_memory_bytes"] is None else f"{_short(one['peak_memory_bytes'])}B"
    first, third = one["quartiles_ms"]
    digits = 4 if first < 1 else 2
    times = f"{one['median_ms']:.{digits}f}", f"{first:.{digits}f} – {third:.{digits}f}"
    return [row["name"], memory, _times(ratios["memory"]), *times, _times(ratios["latency"])]


def _rate(speed: Mapping[str, Any]) -> str:
    slow, fast = (1000 * speed["batch_size"] / quartile for quartile in reversed(speed["quartiles_ms"]))
    return f"{speed['images_per_second']:,.0f} ({slow:,.0f} – {fast:,.0f})"


def _short(number: float) -> str:
    """Three digits and a prefix: `5.26 M`."""
    power = min(4, (len(str(int(number))) - 1) // 3)
    return f"{number / 1000**power:.3g} {('', 'k', 'M', 'G', 'T')[power]}"


def _times(ratio: float | None) -> str | None:
    return None if ratio is None else f"×{ratio:.3g}" if ratio < 100 else f"×{ratio:,.0f}"


def _draw(picture: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    from kd_cli.report.charts.costs import cost_chart

    known = [row for row in rows if row["test_top1"] is not None]
    left_out = [row["name"] for row in rows if row["test_top1"] is None]
    if left_out:
        console.notice(f"{', '.join(left_out)} have no test accuracy on record: they are not in {picture}")
    if not known:
        raise ConfigError("--picture: nothing to draw without an accuracy; name a completed run")
    save_picture(cost_chart(known), picture)
    console.say(f"{console.short_path(picture)} is drawn")
