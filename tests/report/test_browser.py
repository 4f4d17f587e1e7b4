"""The report in a real browser: what is drawn, what a reader can do with it, and what it must never do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kd_cli.console import printable
from kd_cli.report.charts import charts_of
from kd_cli.report.findings import findings
from kd_cli.report.page import write_page
from kd_cli.report.readable import readable
from tests.support import report_samples as samples

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install kd-cli[browser]")

WIDTHS = (360, 768, 1280)
LIMIT = 3_000_000  # bytes of a page
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


@dataclass
class Opened:
    """A page of the browser, with all that it asked for and complained of."""

    page: Any
    results: dict[str, Any]
    size: int
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def rows(self, chart: str) -> list[dict[str, Any]]:
        """What the drawing holds, without Vega's own marks."""
        found = self.page.evaluate("id => kdViews[id].data('rows')", chart)
        return [{key: value for key, value in row.items() if not key.startswith("Symbol")} for row in found]

    def lines(self, chart: str) -> int:
        """Lines that are drawn."""
        return self.page.locator(f"#{chart} g.mark-line path:visible").count()

    def choose(self, script: str, *given: Any) -> Any:
        return self.page.evaluate(script, *given)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path, args=QUIET)
        yield chromium
        chromium.close()


@dataclass(frozen=True)
class Written:
    """A page on the disk, with what it was written from."""

    path: Path
    results: dict[str, Any]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    """Writes the page of a case, once for all tests."""
    folder = tmp_path_factory.mktemp("reports")

    @cache
    def write(name: str) -> Written:
        path = folder / name / "report.html"
        path.parent.mkdir()
        results = CASES[name]()
        write_page(results, path)
        return Written(path, results)

    return write


@pytest.fixture
def show(browser: Any, written: Callable[[str], Written]) -> Iterator[Callable[..., Opened]]:
    """Opens the page of a case from the disk."""
    contexts = []

    def open_page(name: str, *, scheme: str = "light", width: int = 1280) -> Opened:
        page = written(name)
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
        contexts.append(context)
        opened = Opened(context.new_page(), page.results, page.path.stat().st_size)
        opened.page.on("console", lambda message: opened.complaints.append(message.text))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.goto(page.path.as_uri())
        opened.page.wait_for_selector("html[data-drawn]", timeout=30_000)
        return opened

    yield open_page
    for context in contexts:
        context.close()


def sweep() -> dict[str, Any]:
    """Five temperatures in few epochs."""
    return samples.results(seeds=2, epochs=5, classes=4)


def long_settings() -> dict[str, Any]:
    """As sweeps over networks and folders call their points."""
    axis = {
        "dataset.root": ["/data/pets/training_224_resized", "/data/pets/training_224_cropped"],
        "student.callable": ["torchvision.models.mobilenet_v3_small", "timm.create_model"],
        "loss.temperature": [2.0, 4.0],
    }
    found = samples.results(axis, seeds=3, epochs=3, classes=3)
    return found | {"findings": findings(found)}


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "a sweep": sweep,
    "a small sweep": lambda: samples.results({"loss.temperature": [1, 2]}, seeds=2, epochs=3, classes=3),
    "two axes": lambda: samples.results({"loss.temperature": [1, 2, 5], "loss.weight": [0.1, 0.5, 0.9]}, seeds=2),
    "names": lambda: samples.results({"loss": ["kd", "dkd"]}, seeds=2),
    "one comparison": lambda: samples.results({}, seeds=1),
    "one point": lambda: samples.results({}, seeds=1, epochs=1, classes=2),
    "nothing": samples.empty,
    "unknown": lambda: samples.unknown(sweep()),
    "long settings": long_settings,
    "hostile": lambda: samples.results({"loss.temperature": [1, 2]}, seeds=2, name=samples.HOSTILE),
    "200 classes": lambda: samples.results({"loss.temperature": [1, 2]}, seeds=2, classes=200),
    "100 runs": lambda: samples.results({"loss.temperature": list(range(1, 33))}, epochs=25),
}


@pytest.mark.parametrize("name", CASES)
def test_each_chart_is_drawn_from_its_rows_and_nothing_is_loaded_or_complained_of(name: str, show: Any) -> None:
    opened = show(name)
    assert opened.complaints == []
    assert [url.split("/")[-1] for url in opened.requests] == ["report.html"]
    assert opened.size < LIMIT
    charts = charts_of(readable(opened.results))
    assert bool(charts) == (name != "nothing")
    for chart in charts:
        marks = opened.page.locator(f"#{chart.id} svg g.mark-group path, #{chart.id} svg g.mark-group text").count()
        assert marks > 5, chart.id
        columns = {key for row in chart.rows for key in row}
        assert opened.rows(chart.id) == [{key: row.get(key) for key in columns} for row in chart.rows], chart.id


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["a sweep", "hostile"])
def test_the_page_never_scrolls_sideways(name: str, width: int, show: Any) -> None:
    opened = show(name, width=width)
    assert opened.choose("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [360, 1280, 1300])
@pytest.mark.parametrize("name", ["a sweep", "long settings"])
def test_the_verdicts_are_seen_without_scrolling_and_the_first_finding_is_short(
    name: str, width: int, show: Any
) -> None:
    opened = show(name, width=width)
    cells = "[...document.querySelectorAll('.verdict, #section-comparison tbody th')]"
    assert 0 < max(opened.choose(f"{cells}.map(cell => cell.getBoundingClientRect().right)")) < width
    lines = opened.choose("document.querySelector('.findings li').getClientRects()[0].height / 24.8")
    assert lines < (3.1 if width > 1000 else 8.1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["a small sweep", "nothing"])
def test_axe_finds_nothing_serious(name: str, scheme: str, show: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    opened = show(name, scheme=scheme)
    opened.choose("document.querySelectorAll('details').forEach(details => { details.open = true })")
    found = Axe().run(opened.page).response["violations"]
    assert [
        (issue["id"], issue["nodes"][0]["html"]) for issue in found if issue["impact"] in ("serious", "critical")
    ] == []


def test_the_charts_hold_what_results_json_holds(show: Any) -> None:
    opened = show("a sweep")
    results = opened.results
    for row in opened.rows("gains"):
        group = next(group for group in results["groups"] if group["name"] == row["group"])
        assert [row[key] for key in ("mean", "low", "high")] == pytest.approx(
            [group["gain"][key] for key in ("mean", "low", "high")]
        )
    single = [row for row in opened.rows("curves") if row["role"] == "run"]
    assert len(single) == sum(len(run["curves"]["epoch"]) for run in results["runs"])
    for row in single:
        run = next(run for run in results["runs"] if run["name"] == row["run"])
        assert row["val_top1"] == pytest.approx(run["curves"]["val_top1"][row["epoch"] - 1])
    points = {(row["x"], row["network"]): row["mean"] for row in opened.rows("axis")}
    for group in results["groups"]:
        assert points[group["settings"]["loss.temperature"], "distilled"] == pytest.approx(
            group["distilled"]["test_top1"]["mean"]
        )
    assert points[None, "baseline"] == pytest.approx(results["groups"][0]["baseline"]["test_top1"]["mean"])


def test_hostile_names_are_text_and_nothing_else(show: Any) -> None:
    opened = show("hostile")
    assert opened.choose("window.hacked") is None
    assert opened.page.locator("img[src=x]").count() == 0
    assert opened.page.locator("h1").inner_text() == printable(samples.HOSTILE) + "outputs/temperature"
    assert "\x1b" not in opened.page.content()
    assert "\u202e" not in opened.page.content()
    for details in opened.page.locator("details summary").all():
        details.click()
    assert opened.choose("window.hacked") is None


def test_boxes_hide_and_show_lines_by_keyboard(show: Any) -> None:
    opened = show("a sweep")
    before = opened.lines("curves")
    box = opened.page.locator("#curves [data-toggle]").first
    box.focus()
    opened.page.keyboard.press("Space")
    opened.page.wait_for_function("kdViews.curves.signal('hidden').length === 1")
    assert opened.lines("curves") == before - 1
    opened.page.locator("#curves button[data-all=false]").press("Enter")
    opened.page.wait_for_function("kdViews.curves.signal('hidden').length === 7")
    assert opened.lines("curves") == 0
    opened.page.locator("#curves button[data-all=true]").press("Enter")
    opened.page.locator("#curves [data-signal=single]").check()
    opened.page.wait_for_function("kdViews.curves.signal('single') && kdViews.curves.signal('hidden').length === 0")
    assert opened.lines("curves") == before + len(opened.results["runs"])


def test_another_measure_changes_the_curves_and_their_scale(show: Any) -> None:
    opened = show("a sweep")
    top = opened.choose("kdViews.curves.scale('y').domain()[1]")
    opened.page.get_by_label("training loss").check()
    opened.page.wait_for_function(
        "kdViews.curves.signal('metric') === 'train_loss' && kdViews.curves.scale('y').domain()[1] < 10"
    )
    assert top > 50
    assert "training loss" in opened.page.locator("#curves .drawing").text_content()


def test_curves_zoom_by_button_and_by_wheel_and_come_back(show: Any) -> None:
    opened = show("a sweep")
    span = "(() => { const d = kdViews.curves.scale('x').domain(); return d[1] - d[0] })()"
    whole = opened.choose(span)
    opened.page.get_by_role("button", name="Zoom in").press("Enter")
    opened.page.wait_for_function(f"{span} < {whole}")
    assert opened.choose(span) < 0.7 * whole
    opened.page.get_by_role("button", name="Whole chart").click()
    opened.page.wait_for_function(f"{span} >= {whole}")
    assert opened.choose(span) == whole
    opened.page.locator("#curves .drawing").scroll_into_view_if_needed()
    opened.page.locator("#curves .drawing").hover()
    opened.page.keyboard.down("Control")
    opened.page.mouse.wheel(0, -400)
    opened.page.keyboard.up("Control")
    opened.page.wait_for_function(f"{span} !== {whole}")
    assert opened.choose(span) < whole


def test_pointing_at_a_bar_shows_its_numbers(show: Any) -> None:
    opened = show("a sweep")
    opened.page.locator("#gains g.mark-rect path").first.hover()
    shown = opened.page.locator("#tip").inner_text()
    assert "loss.temperature=1" in shown
    assert f"{opened.results['groups'][0]['gain']['mean']:+.2f}" in shown.replace("−", "-")


def test_behind_each_chart_is_a_table_of_its_rows(show: Any) -> None:
    opened = show("a sweep")
    for chart in charts_of(readable(opened.results)):
        figure = opened.page.locator(f"#{chart.id}")
        figure.locator("details.data summary").press("Enter")
        opened.page.wait_for_function("id => document.querySelector(`#${id} tbody`)", arg=chart.id)
        assert figure.locator("tbody tr").count() == min(500, len(chart.rows))
        assert figure.locator(".drawing").locator("..").get_attribute("aria-label") == chart.alt


def test_copy_puts_the_command_on_the_clipboard(show: Any) -> None:
    opened = show("a sweep")
    opened.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened.page.locator("footer [data-copy]").click()
    opened.page.get_by_text("Copied", exact=True).wait_for()
    assert opened.choose("navigator.clipboard.readText()") == opened.results["command"]


def test_the_button_turns_the_page_dark_and_back(show: Any) -> None:
    opened = show("a sweep")
    style = "(selector, name) => getComputedStyle(document.querySelector(selector))[name]"
    colours = f"[({style})('body', 'backgroundColor'), ({style})('#gains svg text', 'fill')]"
    light = opened.choose(colours)
    button = opened.page.get_by_role("button", name="Dark")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    dark = opened.choose(colours)
    assert all(one != other for one, other in zip(light, dark, strict=True))
    button.click()
    assert opened.choose(colours) == light


def test_paper_has_the_charts_in_light_colours_without_controls(show: Any) -> None:
    opened = show("a sweep", scheme="dark")
    opened.page.emulate_media(media="print")
    assert not opened.page.locator(".controls").first.is_visible()
    assert not opened.page.locator("nav").is_visible()
    assert opened.page.locator("#axis svg").is_visible()
    opened.page.set_viewport_size({"width": 720, "height": 1000})
    assert opened.choose("document.documentElement.scrollWidth") <= 720
    colour = opened.choose("getComputedStyle(document.querySelector('#axis svg text')).fill")
    assert sum(map(int, re.findall(r"\d+", colour)[:3])) < 200
    assert opened.page.pdf(format="A4").count(b"/Type /Page\n") > 3


def test_no_runs_make_a_page_that_says_so(show: Any) -> None:
    opened = show("nothing")
    assert opened.page.get_by_role("heading", name="There are no runs").is_visible()
    assert opened.page.locator("h1").count() == 1


def test_the_data_in_the_page_is_plain_json(show: Any) -> None:
    opened = show("hostile")
    text = opened.page.locator("#data").text_content()
    assert "<" not in text
    assert json.loads(text)[0]["id"] == "axis"
