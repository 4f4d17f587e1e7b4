"""The report's page and charts, as far as they can be judged without a browser."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kd_cli.report.charts import axis_chart, charts_of, save_pictures
from kd_cli.report.charts.theme import TOKENS, WRITTEN_ON
from kd_cli.report.page import json_for_html, page
from kd_cli.report.readable import readable
from tests.support import report_samples as samples


def brightness(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it; 4.5 is enough for small text."""
    light, dark = sorted((brightness(one), brightness(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "muted", "accent", "good", "bad", "warn"])
@pytest.mark.parametrize("behind", ["page", "raised"])
def test_text_stands_out_from_what_is_behind_it(name: str, behind: str, mode: int) -> None:
    assert contrast(TOKENS[name][mode], TOKENS[behind][mode]) >= 4.5


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("colour", ["heat", "gain", "loss"])
def test_numbers_stand_out_from_the_strongest_cell_they_are_written_on(colour: str, mode: int) -> None:
    page, cell = ([int(TOKENS[name][mode][place : place + 2], 16) for place in (1, 3, 5)] for name in ("page", colour))
    mixed = [round((1 - WRITTEN_ON) * back + WRITTEN_ON * front) for back, front in zip(page, cell, strict=True)]
    assert contrast(TOKENS["ink"][mode], "#{:02x}{:02x}{:02x}".format(*mixed)) >= 4.5


def test_json_in_the_page_ends_no_script_and_comes_back_whole() -> None:
    value = {"name": samples.HOSTILE, "number": 0.1}
    text = json_for_html(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == value


def test_control_characters_and_what_is_no_number_are_gone() -> None:
    value = {"a\x1b[31m": ["\u202eb", float("nan"), float("inf"), 1.5, None, True, [1, 2]]}
    assert readable(value) == {"a\ufffd[31m": ["\ufffdb", None, None, 1.5, None, True, [1, 2]]}


def test_one_numeric_axis_is_drawn_as_lines_with_what_never_changes_as_a_reference() -> None:
    results = samples.results(seeds=2, epochs=1)
    chart = axis_chart(results)
    assert chart is not None
    assert [row["x"] for row in chart.rows if row["network"] == "distilled"] == [1, 2, 5, 10, 20]
    assert [row["role"] for row in chart.rows if row["network"] == "baseline"] == ["reference"]
    assert chart.alt.startswith("Line plot")


@pytest.mark.slow
def test_labels_leave_out_the_groups_of_keys_so_that_what_differs_is_not_cut_off(tmp_path: Path) -> None:
    save_pictures(samples.results(seeds=2, epochs=1), tmp_path)
    for name in ("gains", "cost-parameters"):
        drawn = (tmp_path / f"{name}.svg").read_text()
        texts = [text for text in re.findall(r"<text[^>]*>([^<]*)", drawn) if "temperature=" in text]
        assert texts
        assert not [text for text in texts if "loss.temperature" in text]


def test_a_baseline_that_changes_along_the_axis_is_a_line_of_its_own() -> None:
    results = samples.results(seeds=2, epochs=1)
    for index, group in enumerate(results["groups"]):
        group["baseline"]["test_top1"]["mean"] += index
    chart = axis_chart(results)
    assert chart is not None
    assert [row["role"] for row in chart.rows if row["network"] == "baseline"] == ["point"] * 5


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        ({"loss.temperature": [1, 2], "loss.weight": [0.1, 0.9]}, "Heat map of 4 points"),
        ({"loss": ["kd", "dkd", "at"]}, "Dots with error bars"),
        ({"student.bias": [True, False]}, "Dots with error bars"),
        ({}, "Dots with error bars"),
        ({"a": [1, 2], "b": [1, 2], "c": [1, 2]}, "Dots with error bars"),
    ],
)
def test_the_axes_decide_how_a_sweep_is_drawn(axis: dict[str, list[Any]], words: str) -> None:
    chart = axis_chart(samples.results(axis, seeds=2, epochs=1))
    assert chart is not None
    assert chart.alt.startswith(words)


def test_without_runs_there_is_no_chart() -> None:
    assert axis_chart(samples.empty()) is None
    assert charts_of(samples.empty()) == []


def test_a_heat_map_has_a_row_for_each_group_with_its_gain() -> None:
    results = samples.results({"loss.temperature": [1, 2], "loss.weight": [0.1, 0.9]}, seeds=2, epochs=1)
    chart = axis_chart(results)
    assert chart is not None
    for row, group in zip(chart.rows, results["groups"], strict=True):
        assert (row["x"], row["y"]) == tuple(map(str, group["settings"].values()))
        assert row["mean"] == pytest.approx(group["distilled"]["test_top1"]["mean"])
        assert row["gain"] == pytest.approx(group["gain"]["mean"])


def test_curves_are_the_mean_and_the_standard_deviation_of_their_runs() -> None:
    results = samples.results({}, seeds=3, epochs=4)
    curves = next(chart for chart in charts_of(results) if chart.id == "curves")
    runs = [run for run in results["runs"] if run["stage"] == "distilled"]
    for epoch in range(1, 5):
        values = [run["curves"]["val_top1"][epoch - 1] for run in runs]
        (row,) = (
            row for row in curves.rows if (row["role"], row["group"], row["epoch"]) == ("mean", "distilled", epoch)
        )
        mean = sum(values) / 3
        assert row["val_top1"] == pytest.approx(mean)
        assert row["val_top1_std"] == pytest.approx((sum((value - mean) ** 2 for value in values) / 2) ** 0.5)


def test_of_many_lines_eight_are_shown_each_in_its_own_colour() -> None:
    results = samples.results({"loss.temperature": list(range(1, 31))}, seeds=1, epochs=2)
    curves = next(chart for chart in charts_of(results) if chart.id == "curves")
    shown = [toggle for toggle in curves.toggles if toggle.shown]
    assert len(curves.toggles) == 32
    assert [toggle.name for toggle in shown][:2] == ["teacher", "baseline"]
    assert len({toggle.colour for toggle in shown}) == len(shown) == 8


def test_two_classes_of_one_name_stay_two_rows_of_the_matrix() -> None:
    results = samples.results({}, seeds=1, epochs=1, classes=3)
    results["classes"] = ["same", "same", "other"]
    matrix = next(chart for chart in charts_of(results) if chart.id == "confusion-1-baseline")
    counts = results["groups"][0]["confusion"]["baseline"]
    assert [[row["images"] for row in matrix.rows if row["row"] == line] for line in range(3)] == counts


def test_of_two_hundred_classes_only_the_mistakes_are_drawn_and_the_worst_are_named() -> None:
    results = samples.results({}, seeds=1, epochs=1, classes=200)
    charts = {chart.id: chart for chart in charts_of(results)}
    matrix, pairs = charts["confusion-1-baseline"], charts["confusion-1-baseline-pairs"]
    assert all(row["images"] and row["truth"] != row["predicted"] for row in matrix.rows)
    assert len(matrix.rows) <= 2_500
    most = max(row["images"] for row in matrix.rows)
    assert pairs.rows[0]["images"] == most
    assert len(charts["classes-1"].rows) == 30


@pytest.mark.slow
def test_a_hundred_long_runs_make_a_page_under_three_megabytes() -> None:
    results = samples.results({"loss.temperature": list(range(1, 33))}, epochs=100)
    assert len(page(results).encode()) < 3_000_000


def test_nothing_in_the_page_points_outside_of_it() -> None:
    text = unescape(page(samples.results(seeds=1, epochs=1)))
    written = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)  # Vega's own code has addresses in it
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", written)
    assert "url(" not in written
    assert "default-src 'none'" in written
    assert "unsafe" not in written


def test_what_networks_are_worth_on_other_data_has_its_section() -> None:
    results = samples.results({}, seeds=1, epochs=1)
    assert "On other data" not in page(results)
    results["transfer"] = {
        "dataset": "digits",
        "roles": {"teacher": {"seeds": 3, "probe": {"mean": 91.5, "std": 0.25}}},
    }
    text = page(results)
    assert "On other data" in text
    assert "91.50 ± 0.25" in text


def test_pictures_are_written_in_light_colours(tmp_path: Path) -> None:
    results = samples.results({}, seeds=1, epochs=1, classes=2)
    for name in ("reliability", "confusion", "per_class", "curves", "speed"):
        for run in results["runs"]:
            run[name] = None
    results["groups"][0] |= {"confusion": None, "per_class_gain": None}
    paths = save_pictures(results, tmp_path / "pictures")
    assert {path.suffix for path in paths} == {".png", ".svg"}
    assert {path.stem for path in paths} >= {"axis", "gains"}
    for path in paths:
        if path.suffix == ".svg":
            assert "var(--" not in path.read_text()
        else:
            with Image.open(path) as image:
                assert image.getpixel((0, 0)) == (255, 255, 255)
