"""What networks are worth on other data, as transfer.json and results.json have it."""

from __future__ import annotations

# metric → how people call it
METRIC_NAMES = {"zero_shot": "zero-shot", "zero_shot_open": "zero-shot, all classes", "probe": "linear probe"}
