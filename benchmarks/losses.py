"""What each loss costs: its training step beside `kd`'s, in one process and in turns; prints a Markdown table.

    python -m benchmarks.losses [NAME …]

resnet32x4 → resnet8x4 (`deit_token`: → vit_tiny) at 32 pixels, 100 classes, the teacher's answers at hand. In each turn
every loss takes a few steps (forward, backward, optimizer), and `kd` takes as many right before it: their ratio is one
sample. `alone` is the loss's own forward and backward, from what the student said to the gradients that it gets, beside
that of kd. Memory is what a step holds at its peak and what the loss itself owns, above that of kd.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import torch
from omegaconf import OmegaConf
from torch import nn

from kd_cli.config.recipe import Recipe
from kd_cli.losses.base import LOSSES, build_loss
from kd_cli.machine import keep_freed_memory
from kd_cli.models.base import MODELS
from kd_cli.taps import Tapped
from kd_cli.training.task import Distillation
from kd_cli.training.update import Updater
from kd_cli.types import Batch, DataSpec, Outputs

CONF, CPU = Path(__file__).resolve().parent.parent / "conf" / "loss", torch.device("cpu")
CLASSES, TRAIN = 100, 50_000
# conf/trainer/cifar240.yaml at a fiftieth of its rate: the teacher is an untrained network, whose features are large
RECIPE = Recipe(optimizer="sgd", lr=0.001, momentum=0.9, weight_decay=5e-4)


@dataclass(frozen=True)
class Pair:
    """What is measured on.

    Args:
        teacher, student: registered models.
        distilled: the student has a distillation token.
        size: pixels of an image.
        batch: images.
    """

    teacher: str = "resnet32x4"
    student: str = "resnet8x4"
    distilled: bool = False
    size: int = 32
    batch: int = 64

    def of(self, loss: str) -> Pair:
        """The pair for a loss: `deit_token` needs a student with the token."""
        return replace(self, student="vit_tiny", distilled=True) if loss == "deit_token" else self

    def network(self, name: str) -> nn.Module:
        torch.manual_seed(0)
        options = {"distilled": True} if self.distilled and name == self.student else {}
        network = MODELS.build({"name": name, **options}, num_classes=CLASSES, in_channels=3, image_size=self.size)
        return network.to(memory_format=torch.channels_last)

    def images(self) -> Batch:
        random = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, 3, self.size, self.size, generator=random)
        labels = torch.randint(CLASSES, (self.batch,), generator=random)
        return Batch(images.to(memory_format=torch.channels_last), labels, torch.arange(self.batch))


class AtHand:
    """A teacher's answer to the one batch that there is."""

    def __init__(self, said: Outputs) -> None:
        self.said = said

    def begin(self, epoch: int) -> None:
        """It is ready."""

    def __call__(self, batch: Batch) -> Outputs:  # noqa: ARG002 - there is one
        return self.said


class Side:
    """One loss of its yaml, a student, and what updates both.

    Args:
        name: of the loss.
        pair: the networks.
        teacher: frozen; a loss that trains it is given a copy.
        batch: that every step learns from.
    """

    def __init__(self, name: str, pair: Pair, teacher: nn.Module, batch: Batch) -> None:
        options = dict(OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml")))
        method, mix = build_loss(options)
        spec = DataSpec(CLASSES, TRAIN, (3, pair.size, pair.size), tuple(map(str, range(CLASSES))))
        asked = copy.deepcopy(teacher) if method.teacher == "trained" else teacher
        self.batch, self.name = batch, name
        self.task = Distillation(pair.network(pair.student), asked, method, mix, spec, name=name)
        if method.teacher != "trained":
            self.task.cache = AtHand(self.task.ask(batch.images))
        self.updater = Updater(self.task, RECIPE, CPU, updates=1, behind=False, where="trainer")
        self.updater.train()
        self.updater.go_to(0, [RECIPE.lr])

    def step(self) -> None:
        """One update of the training."""
        self.updater.begin(0, RECIPE.lr)
        self.updater.learn_from([self.batch])

    def alone(self) -> Callable[[], None]:
        """The loss without the student: from what that said, as leaves, to their gradients."""
        with torch.no_grad():
            said = Tapped(self.task.network, self.task.method.taps)(self.batch.images)
            theirs = self.task.ask(self.batch.images)
        logits = said.logits.detach().requires_grad_()
        features = {tap: feature.detach().requires_grad_() for tap, feature in said.features.items()}
        ours = Outputs(logits, features, said.classifier)

        def loss() -> None:
            for learned in (logits, *features.values(), *self.task.method.parameters()):
                learned.grad = None
            self.task.method(ours, theirs, self.batch).backward()

        return loss

    def peak_mb(self) -> float:
        """10⁶ bytes that a step holds at most beyond what is there before it, and the method's own tensors."""
        self.step()
        return (_peak_of(self.step) + _bytes(self.task.method.parameters()) + _bytes(self.task.method.buffers())) / 1e6


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _peak_of(action: Callable[[], None]) -> int:
    """The largest number of bytes of tensors that an action has made and not freed yet."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        action()
    assert profiled.profiler is not None
    events = profiled.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@dataclass
class Cost:
    """What one loss took.

    Args:
        steps: seconds of its steps.
        ratios: each divided by kd's right before it.
        alone: seconds of the loss without the student.
        extra_mb: above kd's.
    """

    steps: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    extra_mb: float = 0.0


def measure(names: Sequence[str], pair: Pair, turns: int, steps: int) -> Mapping[str, Cost]:
    """All losses in turns, forwards and backwards."""
    batch, teacher = pair.images(), pair.network(pair.teacher).eval()
    kd = {each: Side("kd", each, teacher, batch) for each in {pair.of(name) for name in names}}
    costs = {name: Cost() for name in names}
    for name in names:
        say(f"memory of {name}")
        costs[name].extra_mb = Side(name, pair.of(name), teacher, batch).peak_mb() - kd[pair.of(name)].peak_mb()
    for turn in range(turns):
        say(f"turn {turn + 1} of {turns}")
        for name in names if turn % 2 == 0 else reversed(names):
            _turn(Side(name, pair.of(name), teacher, batch), kd[pair.of(name)], costs[name], steps)
    return costs


def _turn(side: Side, kd: Side, cost: Cost, steps: int) -> None:
    alone = side.alone()
    seconds_of(side.step, 1)  # what is made once
    before = seconds_of(kd.step, steps)
    cost.steps.append(seconds_of(side.step, steps))
    cost.ratios.append(cost.steps[-1] / before)
    seconds_of(alone, 1)
    cost.alone.append(seconds_of(alone, steps))


def seconds_of(action: Callable[[], None], times: int) -> float:
    """Of one, as the least of several."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return min(taken)


def table(costs: Mapping[str, Cost]) -> str:
    """Markdown, the dearest first."""
    lines = [
        "| `loss=` | step, beside kd's | step, ms | the loss alone, ms | extra memory, MB |",
        "|---|---|---|---|---|",
    ]
    for name, cost in sorted(costs.items(), key=lambda item: -median(item[1].ratios)):
        ratio = f"{median(cost.ratios):.2f} [{min(cost.ratios):.2f} – {max(cost.ratios):.2f}]"
        own = f"{1e3 * median(cost.steps):.0f} | {1e3 * median(cost.alone):.1f}"
        lines.append(f"| `{name}` | {ratio} | {own} | {cost.extra_mb:.0f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None, pair: Pair | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = sorted(LOSSES.names())
    parser.add_argument("names", nargs="*", metavar="NAME", help="of losses; all unless some are given")
    parser.add_argument("--turns", type=int, default=5, help="of all losses (%(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="of a loss in a turn; the quickest counts (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(%(default)s)")
    args = parser.parse_args(arguments)
    unknown = [name for name in args.names if name not in every]
    if unknown:
        parser.error(f"there is no loss {unknown[0]!r}; there are {', '.join(every)}")
    keep_freed_memory()  # as kd does
    torch.set_num_threads(args.threads)
    print(table(measure(args.names or every, pair or Pair(), args.turns, args.steps)))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
