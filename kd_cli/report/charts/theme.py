"""How charts look: colours by name, so that the page can change them (dark mode, print) without drawing again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kd_cli.report.plots.files import COLOURS

# Name → (light, dark). The page has them as CSS variables; a picture has the light ones written into it.
# Text and its background keep a contrast of at least 4.5 in both modes, links and verdicts included.
TOKENS: Mapping[str, tuple[str, str]] = {
    "page": ("#ffffff", "#14181d"),
    "raised": ("#f6f8fa", "#1c2229"),
    "ink": ("#1f2328", "#e4e8ec"),
    "muted": ("#59636e", "#a2acb7"),
    "line": ("#d5dae0", "#39424d"),
    "grid": ("#e8ebee", "#2a323b"),
    "accent": ("#0a5f96", "#6cb6ea"),
    "good": ("#1a6b3c", "#5fc98d"),
    "bad": ("#a4332b", "#f28b82"),
    "warn": ("#7a5200", "#e3b341"),
    "heat": ("#0072b2", "#4fa6de"),
    "gain": ("#0072b2", "#56b4e9"),
    "loss": ("#d55e00", "#ee7a2a"),
    **{f"series-{index}": (colour, colour) for index, colour in enumerate(COLOURS)},
    f"series-{COLOURS.index('#000000')}": ("#000000", "#f0f3f6"),
}

WRITTEN_ON = 0.55  # opacity of the strongest cell that holds a number: the ink keeps its contrast on it

# Colours for what is neither a teacher nor a baseline, the distilled network's first.
SERIES = tuple(f"var(--series-{index})" for index in range(2, len(COLOURS)))
STAGE_COLOURS = {"teacher": "var(--series-0)", "baseline": "var(--series-1)", "distilled": "var(--series-2)"}
STAGE_DASHES: Mapping[str, list[int]] = {"teacher": [8, 3], "baseline": [3, 3]}

INK, MUTED, LINE, GRID = "var(--ink)", "var(--muted)", "var(--line)", "var(--grid)"

CONFIG: Mapping[str, Any] = {
    "background": "transparent",
    "font": "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', Arial, sans-serif",
    "view": {"stroke": LINE},
    "axis": {
        "labelColor": INK,
        "titleColor": INK,
        "domainColor": LINE,
        "tickColor": LINE,
        "gridColor": GRID,
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelLimit": 150,
    },
    "legend": {
        "labelColor": INK,
        "titleColor": INK,
        "labelFontSize": 12,
        "labelLimit": 220,
        "orient": "bottom",
        "symbolBaseFillColor": MUTED,
    },
    "title": {"color": INK, "subtitleColor": MUTED, "anchor": "start", "fontSize": 13, "fontWeight": "normal"},
    "text": {"color": INK},
}


def light(specification: Mapping[str, Any]) -> dict[str, Any]:
    """The same specification with the light colours in place of their names, for a picture."""
    text = json.dumps(specification)
    for name, (colour, _) in TOKENS.items():
        text = text.replace(f"var(--{name})", colour)
    plain: dict[str, Any] = json.loads(text)
    plain.setdefault("config", {})["background"] = "white"
    return plain
