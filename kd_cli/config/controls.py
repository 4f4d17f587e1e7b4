"""What distillation's gain must be more than: the same comparison with something else in the teacher's place."""

from __future__ import annotations

from typing import Any

from kd_cli.config.base import Config
from kd_cli.config.plan import TAUGHT, procedures
from kd_cli.errors import ConfigError, suggest

NONE = "none"
CONTROLS = ("label_smoothing", "longer", *TAUGHT)


def check_control(config: Config) -> None:
    """Refuses a control that there is not, or one of more than a teacher and a student.

    Raises:
        ConfigError: it says what to type instead.
    """
    control = config.get("control", NONE)
    if control not in (NONE, *CONTROLS):
        raise ConfigError(f"control: there is no {control!r}{suggest(str(control), (NONE, *CONTROLS))}")
    asked = procedures(config)
    if control != NONE and asked:
        raise ConfigError(
            f"control: {control} stands for one teacher and one student, and {asked[0]} makes more of them; "
            "type control=none"
        )


def controlled(config: Config) -> Config:
    """The configuration as a control has it, which is what its run records; once more changes nothing."""
    control = config.get("control", NONE)
    if control == "label_smoothing":
        return config | {"loss": {"name": "label_smoothing"}}
    if control == "longer":
        return config | {"loss": {"name": "kd", "ce_weight": 1.0, "weight": 0.0}, "distill_trainer": _longer(config)}
    return config


def _longer(config: Config) -> dict[str, Any]:
    """The baseline's recipe for its own epochs and the teacher's; the drops of the rate are put off in proportion."""
    own, more = config["baseline_trainer"], config["teacher_trainer"]["epochs"]
    factor = 1 + more / own["epochs"]
    later: dict[str, dict[str, Any]] = {
        "step": {"step_size": round(factor * own["step_size"])},
        "multistep": {"milestones": [round(factor * epoch) for epoch in own["milestones"]]},
    }
    recipe: dict[str, Any] = own | later.get(own["schedule"], {}) | {"epochs": own["epochs"] + more}
    return recipe
