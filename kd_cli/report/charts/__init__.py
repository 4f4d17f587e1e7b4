"""The charts of a report: each is made from `results` alone, and is drawn by the page or as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_cli.report.charts.chart import Chart
from kd_cli.report.charts.classes import class_charts
from kd_cli.report.charts.confusion import confusion_charts
from kd_cli.report.charts.costs import cost_charts
from kd_cli.report.charts.curves import curves_chart
from kd_cli.report.charts.reliability import reliability_chart
from kd_cli.report.charts.sweep import axis_chart, gain_chart, transfer_chart
from kd_cli.report.plots.files import save_picture
from kd_cli.report.readable import readable

__all__ = ["Chart", "axis_chart", "charts_of", "save_pictures"]


def charts_of(results: Mapping[str, Any]) -> list[Chart]:
    """Every chart that there are numbers for, in the page's order."""
    charts = [
        axis_chart(results),
        gain_chart(results),
        transfer_chart(results),
        curves_chart(results),
        *cost_charts(results),
        reliability_chart(results),
        *confusion_charts(results),
        *class_charts(results),
    ]
    return [chart for chart in charts if chart is not None]


def save_pictures(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes each chart as .png and .svg."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for chart in charts_of(readable(results)):
        for suffix in (".png", ".svg"):
            paths.append(folder / f"{chart.id}{suffix}")
            save_picture(chart, paths[-1])
    return paths
