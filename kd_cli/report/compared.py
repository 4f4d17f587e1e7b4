"""What was compared at one setting, over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from kd_cli.config.controls import NONE
from kd_cli.metrics.significance import PairedGain, paired_gain
from kd_cli.report.settings import brief
from kd_cli.report.tables import STAGES


@dataclass(frozen=True)
class Setting:
    """What was compared at one setting of the keys that vary, over seeds.

    Args:
        name: `loss.temperature=4`; empty where nothing varies.
        settings: the keys and their values.
        runs: role → seed → the run's row of results.json.
    """

    name: str
    settings: Mapping[str, Any]
    runs: Mapping[str, Mapping[int, Mapping[str, Any]]]

    def values(self, role: str, key: str = "test_top1") -> dict[int, float]:
        """Seed → a number of the role's run, where there is one."""
        return {seed: run[key] for seed, run in self.runs[role].items() if run.get(key) is not None}

    def mean(self, role: str, key: str = "test_top1") -> float | None:
        """Mean over seeds; None where there is no number."""
        numbers = list(self.values(role, key).values())
        return fmean(numbers) if numbers else None

    def said(self, role: str, key: str = "test_top1") -> str:
        """`97.02 ± 0.21 %`: mean and standard deviation; of losses in nats."""
        numbers, digits, unit = list(self.values(role, key).values()), 2, "%"
        if key == "val_loss":
            digits, unit = 4, "nats"
        spread = f" ± {stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
        return f"{fmean(numbers):.{digits}f}{spread} {unit}"

    def gain(self) -> PairedGain | None:
        """Distilled − baseline, paired by seed; None with fewer than two seeds."""
        return difference(self.values("distilled"), self.values("baseline"))

    @property
    def is_control(self) -> bool:
        """Whether something else has the distillation's place."""
        return bool(self.settings.get("control", NONE) != NONE)

    def stands_for(self, other: Setting) -> bool:
        """Whether they differ in nothing but the control."""
        one, two = ({key: brief(each) for key, each in of.settings.items() if key != "control"} for of in (self, other))
        return one == two


def settings_of(results: Mapping[str, Any]) -> list[Setting]:
    """The groups of results.json with the runs behind them."""
    runs = {run["id"]: run for run in results["runs"]}
    compared = {each["id"]: each for each in results["comparisons"]}
    found = []
    for group in results["groups"]:
        members = [compared[name] for name in group["comparisons"]]
        roles = {role: {each["seed"]: runs[each[role]] for each in members if each.get(role)} for role in STAGES}
        found.append(Setting(group["name"], group["settings"], roles))
    return found


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> PairedGain | None:
    """first − second, paired by seed; None with fewer than two common seeds."""
    differences = [value - second[seed] for seed, value in first.items() if seed in second]
    return paired_gain(differences) if len(differences) > 1 else None
