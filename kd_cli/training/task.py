"""Tasks: what one batch is asked of a network. The trainer knows nothing else."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_cli.losses.base import Distiller, Mix
from kd_cli.losses.common import at_least_float32
from kd_cli.out_of_memory import needing_memory
from kd_cli.taps import Tapped
from kd_cli.types import Batch, DataSpec, Outputs, Step

_REMEDY = (
    "Type teacher_cache=false: it is then asked at every step. If that is too much, too, a smaller trainer.batch_size."
)


class Answering(Protocol):
    """Answers in a teacher's place."""

    def begin(self, epoch: int) -> None: ...  # makes ready what an epoch needs

    def __call__(self, batch: Batch) -> Outputs: ...


class Task(nn.Module):
    """A batch → Step. Every parameter of a task is trained, and all of its state is in the checkpoint.

    Attributes:
        network: the network whose layers the recipe names.
        deployed: the network that is evaluated and saved.
    """

    network: nn.Module

    @property
    def deployed(self) -> nn.Module:
        raise NotImplementedError

    def begin(self, epoch: int) -> None:
        """What is to be done before the first step of an epoch, and again where a training goes on inside it."""

    def forward(self, batch: Batch) -> Step:
        """The loss of one batch."""
        raise NotImplementedError

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Optimizers of parameters that the trainer's own one leaves alone; their rates are their own."""
        return ()


class Supervised(Task):
    """A network learns from the labels.

    Args:
        network: images [B, C, H, W] → logits [B, K].
        label_smoothing: ε in [0, 1).
        class_weights: as of `cross_entropy`.
    """

    def __init__(self, network: nn.Module, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.network = network
        self.label_smoothing, self.class_weights = label_smoothing, class_weights

    @property
    def deployed(self) -> nn.Module:
        return self.network

    def forward(self, batch: Batch) -> Step:
        logits: Tensor = batch.shown(self.network)
        loss = label_loss(logits, batch, self.label_smoothing, self.class_weights)
        return Step(loss, logits, {"ce": loss.detach()})


class Distillation(Task):
    """A student learns from the labels and from a teacher: a frozen one, or one that learns beside it.

    Args:
        student: images [B, C, H, W] → logits [B, K].
        teacher: the same; None for a method that asks none. It is frozen here, unless the method trains it too.
        method: the distillation method; it is bound here if it has a weight.
        mix: weights of the labels and of the method.
        data: K, N and the image shape.
        name: of the method, in the terms of a step.
        label_smoothing: ε of the cross-entropy with the labels.
        class_weights: as of `cross_entropy`.
        mixed: whether images are made of two, and have the labels of both.
        views: of each image in a batch; None: as many as the method needs.
        ask_in: images per forward pass of a frozen teacher. A smaller batch is filled up: another number of images
            may be given to other kernels, which round otherwise, and the cache's answers would not be the same bits.

    Raises:
        ValueError: if the method cannot work on this pair, misses a teacher or a view, or reads the label of an image
            that has two.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        method: Distiller,
        mix: Mix,
        data: DataSpec,
        *,
        name: str = "distill",
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        ask_in: int = 1,
        mixed: bool = False,
        views: int | None = None,
    ) -> None:
        super().__init__()
        if teacher is None and mix.weight and method.teacher != "none":
            raise ValueError(f"{name} asks a teacher, and there is none")
        if mix.weight and views is not None and method.views not in (1, views):
            raise ValueError(
                f"it compares {method.views} views of each image, and a batch has {views}; type "
                f"dataset.repeats={method.views} dataset.augment=weak_strong"
            )
        self.network = student
        self.method = method
        self.mix = mix
        self.name = name
        self.label_smoothing, self.class_weights = label_smoothing, class_weights
        self.ask_in = ask_in
        self.cache: Answering | None = None  # answers in the teacher's place
        self.peer = teacher if method.teacher == "trained" and mix.weight else None
        if teacher is not None and self.peer is None:
            teacher.eval().requires_grad_(False)
        reads = bool(mix.weight)
        self._student = Tapped(student, method.taps if reads else ())
        self._teacher = None if teacher is None else Tapped(teacher, method.teacher_taps if reads else ())
        device = next(student.parameters()).device
        if mix.weight:  # a method without a word asks for nothing, and there may be no teacher to bind it to
            # Not zeros, of which a fresh network makes zeros: methods look at what becomes of the features.
            images = torch.linspace(-1, 1, 2 * prod(data.image_shape), device=device).view(2, *data.image_shape)
            example = self.example(images)
            method.bind(*example, data)
            if mixed:
                _check_reads_no_label(method, *example, images)
        method.to(device)
        # In a tuple, because a module in an attribute would be saved a second time.
        self._deployed = (method.deploy(student, teacher) if mix.weight else student,)

    @property
    def deployed(self) -> nn.Module:
        return self._deployed[0]

    @property
    def grafted(self) -> bool:
        """Whether the method made another network of the student."""
        return self.deployed is not self.network

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        return self.method.optimizers() if self.mix.weight else ()

    def begin(self, epoch: int) -> None:
        if self.cache is not None and self.mix.weight_at(epoch):
            with needing_memory("what the teacher says of all training images", _REMEDY):
                self.cache.begin(epoch)

    def forward(self, batch: Batch) -> Step:
        student = batch.shown(self._student)
        weight = batch.at(self.mix.weight_at)
        terms: dict[str, Tensor] = {}
        if self.mix.ce_weight:
            ce = label_loss(student.logits, batch, self.label_smoothing, self.class_weights)
            terms["ce"] = self.mix.ce_weight * ce
        if weight:
            teacher = batch.shown(self.ask) if self.cache is None else self.cache(batch)
            said = self.method.named_terms(student, teacher, batch)
            terms |= {f"{self.name}_{name}".rstrip("_"): weight * term for name, term in said.items()}
        loss = sum(terms.values(), start=torch.zeros((), device=student.logits.device))
        return Step(loss, student.logits, {name: term.detach() for name, term in terms.items()})

    def example(self, images: Tensor) -> tuple[Outputs, Outputs]:
        """What student and teacher say of images [B, C, H, W] in eval mode, without a gradient."""
        with _evaluating(self.network, self.peer), torch.no_grad():
            return self._student(images), self._ask(images)

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        """The features that the method reads from the teacher."""
        return () if self._teacher is None else self._teacher.taps

    def ask(self, images: Tensor) -> Outputs:
        """What the teacher says of training images [B, C, H, W], in a forward pass of `ask_in` of them."""
        size = len(images)
        if self.peer is not None or size >= self.ask_in:
            return self._ask(images)
        said = self._ask(torch.cat([images] * -(-self.ask_in // size))[: self.ask_in])  # cat keeps channels last
        features = {tap: feature[:size] for tap, feature in said.features.items()}
        return Outputs(said.logits[:size], features, said.classifier)

    def _ask(self, images: Tensor) -> Outputs:
        if self._teacher is None:
            return Outputs(images.new_zeros(len(images), 0))
        if self.peer is not None:
            return self._teacher(images)
        with torch.no_grad():  # not inference mode: losses save the teacher's outputs for their backward pass
            return self._teacher(images)


class _Unlabelled(Batch):
    """A batch that tells whoever reads its labels."""

    def __getattribute__(self, name: str) -> Any:
        if name == "labels":
            raise ValueError(
                "it reads the label of each image, and mixup and cutmix give an image two; take a loss that does not, "
                "or leave them out of dataset.augment"
            )
        return super().__getattribute__(name)


def _check_reads_no_label(method: Distiller, student: Outputs, teacher: Outputs, images: Tensor) -> None:
    """Asks a copy for its loss, so that nothing of the method has changed afterwards."""
    numbers = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    tried = copy.deepcopy(method).to(images.device).eval()
    drawn_on = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(drawn_on), torch.no_grad():
        tried.named_terms(student, teacher, _Unlabelled(images, numbers, numbers))


@contextmanager
def _evaluating(*networks: nn.Module | None) -> Iterator[None]:
    """Eval mode, which keeps running statistics and random state as they are; the modes are put back afterwards."""
    modes = [(network, network.training) for network in networks if network is not None]
    for network, _ in modes:
        network.eval()
    try:
        yield
    finally:
        for network, was_training in modes:
            network.train(was_training)


def label_loss(
    logits: Tensor, batch: Batch, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy of logits [B, K] with a batch's labels; of mixed images with both, by their shares."""
    own = cross_entropy(logits, batch.labels, label_smoothing, class_weights, each=batch.mixed is not None)
    if batch.mixed is None:
        return own
    other = cross_entropy(logits, batch.mixed.labels, label_smoothing, class_weights, each=True)
    share = batch.mixed.share
    total = (own * share + other * (1 - share)).sum()
    if class_weights is None:
        return total / len(logits)
    weight = class_weights.to(total.dtype)
    return total / (weight[batch.labels] * share + weight[batch.mixed.labels] * (1 - share)).sum()


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    *,
    each: bool = False,
) -> Tensor:
    """Cross-entropy of logits [B, K] with labels [B], mean over the batch, in float32 at least.

    Args:
        class_weights: [K]: the mean is weighted, each image by its label's; None: all alike.
        each: image's own, [B], and not the mean.
    """
    logits = at_least_float32(logits)
    weight = None if class_weights is None else class_weights.to(logits.dtype)
    reduction = "none" if each else "mean"
    return F.cross_entropy(logits, labels, weight, label_smoothing=label_smoothing, reduction=reduction)
