"""One step of a pair and a loss, before anything is trained: does it work, what does it read, what does it cost?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kd_cli.arithmetic import arithmetic, refusing
from kd_cli.config.base import Config, Launch
from kd_cli.data.base import Data
from kd_cli.experiments.build import build_network, build_peer, build_task
from kd_cli.experiments.preflight import open_data, prepare
from kd_cli.experiments.setup import Setup, make_setup
from kd_cli.experiments.stem import note_stem
from kd_cli.metrics.cost import count_flops
from kd_cli.models.base import count_parameters
from kd_cli.runs.records import network_name
from kd_cli.seeds import derive_seed, seed_dropout
from kd_cli.training.host_reads import host_reads
from kd_cli.training.task import Distillation, Supervised, Task
from kd_cli.types import Batch

_IMAGES = 16  # enough for batch statistics, few enough for a large teacher on a processor
_REPEATS = 3


def try_pair(config: Config, _: Launch) -> dict[str, Any]:
    """Builds student, teacher (with random weights) and loss, and runs one forward and backward pass of a real batch.

    Raises:
        ConfigError: the loss cannot work on this pair, or on another one of a procedure; the message says why.
        DataError: a given teacher does not fit.
    """
    setup = make_setup(config, None)
    device, recipe, seed, data = setup.device, setup.recipes["distilled"], setup.seed, open_data(setup)
    prepare(setup, data, setup.given)
    size = min(_IMAGES, recipe.batch_size, data.spec.num_train)
    batch = next(iter(data.train_batches(seed=seed, epoch=0, batch_size=size, device=device)))
    student = build_network(setup.student, "student", seed, data, device)
    teacher = _teacher(setup, data)
    for role, options, network in (("student", setup.student, student), ("teacher", setup.teacher, teacher)):
        if network is not None:
            note_stem(role, options, network, batch.images)
    with arithmetic(recipe.precision, recipe.deterministic, device), refusing("a step of this pair", "trainer"):
        baseline_seconds = _step_seconds(Supervised(student), batch)
        task = build_task(setup.loss, student, teacher, data, recipe)
        features = _features(task, batch.images)
        seconds = _step_seconds(task, batch)
        seed_dropout(derive_seed(seed, "dropout"), device)
        with host_reads() as waits:
            step = task.train()(batch)
            step.loss.backward()
    return {
        "loss": setup.loss["name"],
        "teacher": task.method.teacher,
        "images": size,
        "networks": {
            role: _facts(network_name(options), network, batch.images)
            for role, options, network in (("student", setup.student, student), ("teacher", setup.teacher, teacher))
            if network is not None
        },
        "features": features,
        "layers": {name: list(tensor.shape) for name, tensor in task.method.named_parameters()},
        "memory": {name: list(tensor.shape) for name, tensor in task.method.named_buffers()},
        "optimizers": [type(optimizer).__name__ for optimizer in task.optimizers()],
        "deployed_parameters": count_parameters(task.deployed),
        "weighted_terms": {name: float(term) for name, term in step.terms.items()},
        "host_reads": sorted(set(waits)),
        "step_ms": round(1000 * seconds, 3),
        "baseline_step_ms": round(1000 * baseline_seconds, 3),
    }


def _teacher(setup: Setup, data: Data) -> nn.Module | None:
    if setup.kind == "none":
        return None
    build = build_peer if setup.kind == "trained" else partial(build_network, role="teacher", learns=False)
    return build(setup.teacher, seed=setup.seed, data=data, device=setup.device)


def _features(task: Distillation, images: Tensor) -> list[dict[str, Any]]:
    """The pairs of features that the method compares, in its order."""
    student, teacher = task.example(images)
    names = list(student.features), list(teacher.features)
    rows = max(map(len, names))
    return [
        {
            **_shape("student", names[0], student.features, position - rows),
            **_shape("teacher", names[1], teacher.features, position - rows),
        }
        for position in range(rows)
    ]


def _shape(role: str, names: list[str], features: Mapping[str, Tensor], back: int) -> dict[str, Any]:
    """Counted from the deepest feature, as they are matched."""
    if -back > len(names):
        return {role: None, f"{role}_shape": None}
    return {role: names[back], f"{role}_shape": list(features[names[back]].shape[1:])}


def _facts(name: str | None, network: nn.Module, images: Tensor) -> dict[str, Any]:
    return {
        "name": name,
        "parameters": count_parameters(network),
        "flops_per_image": count_flops(network, images),
        "taps": list(getattr(network, "taps", {})),
    }


def _step_seconds(task: Task, batch: Batch) -> float:
    """The fastest of a few forward and backward passes: the first one also warms up."""
    return min(_timed(lambda: _step(task, batch)) for _ in range(_REPEATS + 1))


def _step(task: Task, batch: Batch) -> None:
    task.train()(batch).loss.backward()
    task.zero_grad(set_to_none=True)
    if batch.images.is_cuda:
        torch.cuda.synchronize()


def _timed(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
