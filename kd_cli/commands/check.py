"""kd check: does this loss work on this pair, what does it read, what does a step cost?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd_cli import console
from kd_cli.launch.hydra_command import hydra_command

PANEL = "Experiments"


def present(result: Mapping[str, Any]) -> None:
    """Networks, features, layers of the loss, terms and cost."""
    console.say()
    networks = result["networks"]
    columns = ("", "network", "parameters", "FLOPs per image", "taps")
    rows = [
        (role, each["name"], each["parameters"], each["flops_per_image"], " ".join(each["taps"]))
        for role, each in networks.items()
    ]
    console.table("Networks", columns, rows, left=("", "network", "taps"))
    if result["features"]:
        names = ("student", "student_shape", "teacher", "teacher_shape")
        shapes = [[_text(row[name]) for name in names] for row in result["features"]]
        console.table(f"Features that {result['loss']} reads", [name.replace("_", " ") for name in names], shapes)
    owned = [("learned", name, _text(shape)) for name, shape in result["layers"].items()]
    owned += [("memory", name, _text(shape)) for name, shape in result["memory"].items()]
    if owned:
        console.table(f"Tensors of {result['loss']}", ("", "name", "shape"), owned, left=("", "name"))
    for name in result["optimizers"]:
        console.say(f"{result['loss']} has an optimizer of its own: {name}")
    _say_step(result)


def _say_step(result: Mapping[str, Any]) -> None:
    terms = ", ".join(f"{name} {value:.4g}" for name, value in result["weighted_terms"].items())
    ratio = result["step_ms"] / result["baseline_step_ms"]
    console.say(f"first loss  {terms} (weighted as in the loss; teacher and student with random weights)")
    console.say(
        f"cost        {result['step_ms']:.0f} ms per step of {result['images']} images, "
        f"{ratio:.1f} times a step without the loss and the teacher"
    )
    if result["host_reads"]:
        waits = ", ".join(result["host_reads"])
        console.say(f"on a GPU    steps are no CUDA graphs: {waits} makes the program wait for the device")
    console.say(f"{result['loss']} works on this pair.", style="bold")


def _text(value: Any) -> str:
    return "–" if value is None else " × ".join(map(str, value)) if isinstance(value, list) else str(value)


command = hydra_command(
    "check",
    "Try one step of a teacher, a student and a loss: shapes, layers, cost; nothing is trained.",
    "kd_cli.experiments.check:try_pair",
    present,
    trains=False,
)
