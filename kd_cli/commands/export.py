"""kd export: a saved network as a file that runs elsewhere, checked, with a script and a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kd_cli import console
from kd_cli.errors import ConfigError
from kd_cli.launch.options import ConfigDir, File, Json, WhichEpoch, Words

PANEL = "Results"


Format = Literal["onnx", "pt2", "safetensors"]


def command(
    run: Annotated[
        Path, typer.Argument(help="A run, or a checkpoint in it; of a comparison: its student.", show_default=False)
    ],
    overrides: Annotated[
        Words, typer.Argument(metavar="OVERRIDE", help="Where its data are now: dataset.root=DIR.", show_default=False)
    ] = None,
    format: Annotated[Format, typer.Option(help="ONNX, PyTorch's torch.export, or bare weights.")] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="Static int8, for ONNX; its accuracy is measured.")] = False,
    out: Annotated[
        File, typer.Option(metavar="DIR", help="The folder to write.", show_default="RUN/export/FORMAT")
    ] = None,
    which: WhichEpoch = None,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """Export a network as ONNX, PyTorch or bare weights: checked on real images, with a script and a model card."""
    console.setup(as_json=json)
    if int8 and format != "onnx":
        raise ConfigError(f"--int8 is for --format onnx, not {format}; leave one of them out")
    if not run.exists():
        raise ConfigError(f"there is no run {run}; kd list runs shows what is there")
    if format == "onnx":
        from kd_cli.export.to_onnx import check_installed

        check_installed()
    from kd_cli.export.write import export
    from kd_cli.saved.network import Saved

    saved = Saved(_one(run), which=which, overrides=overrides or [], config_dirs=config_dir or [])
    folder = out or (saved.source.run or run) / "export" / (format + ("-int8" if int8 else ""))
    report = export(saved, format, quantised=int8, folder=folder)
    _present(report)
    console.emit(report)


def _one(path: Path) -> Path:
    """A run; of a comparison its distilled student."""
    from kd_cli.runs.folder import expand

    runs = expand(path)
    if runs == [path]:
        return path
    names = ", ".join(str(path / run.name) for run in runs if run.name != "distilled")
    if path / "distilled" not in runs:
        raise ConfigError(f"{path} is a comparison without a distilled student; name one of its runs: {names}")
    console.notice(f"{path} is a comparison: its distilled student is exported; to export another, name it: {names}")
    return path / "distilled"


def _present(report: Mapping[str, Any]) -> None:
    from kd_cli.runs.records import network_name

    results, checks = report["results"], report["checks"]
    test = "" if results["test_top1"] is None else f", {results['test_top1']:.2f} % on test"
    console.say(f"network  {report['stage']} {network_name(report['model'])}, epoch {report['epoch']}{test}")
    console.say(f"input    {report['input']}{'' if report['format'] == 'safetensors' else ', normalised inside'}")
    parity = checks["parity"]["max_abs_difference"].items()
    differences = ", ".join(f"{each:.1e} (batch {size})" for size, each in parity)
    console.say(
        f"parity   largest difference of a float32 logit from PyTorch's on test images: {differences}; "
        f"allowed {checks['parity']['tolerance']:.1e}"
    )
    if report["format"] == "onnx":
        columns = ("", "KB", "test top-1 %", "ms per image")
        console.table("One image at a time, on this machine", columns, _rows(report), left=("",))
    if "int8" in checks:
        int8 = checks["int8"]
        console.say(
            f"int8     calibrated on {int8['calibration']['images']} training images; chooses the same class as "
            f"float32 for {int8['same_class']:.2f} % of the test images"
        )
    console.say(f"written  {console.short_path(report['folder'])}: {', '.join([*report['files'], 'README.md'])}")


def _rows(report: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """PyTorch, and each variant of the file that was made."""
    int8, full = report["checks"].get("int8", {}), report["variants"]["float32"]
    speed = full.get("milliseconds_pytorch")
    rows: list[tuple[Any, ...]] = [("PyTorch", None, report["results"]["test_top1"], _text(speed))]
    for name, each in report["variants"].items():
        label, size = f"ONNX Runtime, {name}", f"{each['bytes'] / 1000:,.0f}"
        rows.append((label, size, int8.get(f"{name}_test_top1"), _text(each.get("milliseconds"))))
    return rows


def _text(milliseconds: float | None) -> str | None:
    return None if milliseconds is None else f"{milliseconds:.3f}"
