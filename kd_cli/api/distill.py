"""kd.distill: networks, data and losses of a program's own, through the same training as the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from kd_cli.api.called import called
from kd_cli.api.own import OfLogits, own_data, own_loss, own_networks
from kd_cli.api.results import Trained, trained
from kd_cli.api.run import Folder, as_word, checked_words, folder_word
from kd_cli.config.overrides import override_key
from kd_cli.errors import ConfigError
from kd_cli.launch.hydra_app import run_once
from kd_cli.losses.base import Distiller
from kd_cli.registry import OWN

Loss = str | OfLogits | Distiller


def distill(
    student: nn.Module,
    teacher: nn.Module | None,
    train: Any,
    val: Any,
    test: Any,
    *,
    loss: Loss | Mapping[str, Any] = "kd",
    trainer: str | Mapping[str, Any] = "default",
    dataset: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    folder: Folder | None = None,
    overrides: Sequence[str] = (),
    quiet: bool = False,
) -> Trained:
    """Trains a copy of `student` with a copy of `teacher`, as `kd distill` does; both stay as they are.

    Args:
        student: images [B, C, H, W], normalised as `dataset` says → logits [B, K]; training begins with its weights.
        teacher: likewise; None for a loss that asks none.
        train, val, test: give (image, label) by number: a PIL image, an array [H, W, C] or a tensor [C, H, W] of
            uint8, all of one size, and a whole number. `val` None: a tenth of each class of `train` validates.
        loss: the name of a method; a function of (student_logits [B, K], teacher_logits [B, K], labels [B]) that
            returns a scalar; a Distiller; or a mapping with one of them as `name`, and options.
        trainer: the name of a recipe, or options of the default one.
        dataset: options that all data sets have: `mean`, `std`, `augment`, `val_fraction`, `in_memory`, …
        classes: K names, in label order; None: those of `train.classes`, or the numbers.
        seed: of the order of images, augmentation and dropout.
        folder: of the run; the same call goes on there, or gives the result that is there. None: a new one.
        overrides: anything else that `kd distill` takes: `["device=cpu", "teacher.mean=[0.5]"]`.
        quiet: nothing but notices is printed.

    Raises:
        ConfigError, DataError, KDError: as `kd.run`.
    """
    for role, module in (("student", student), ("teacher", teacher)):
        if not isinstance(module, nn.Module) and not (role == "teacher" and module is None):
            raise ConfigError(f"{role}: {module!r} is no nn.Module; kd.run([…]) takes networks by their names")
    method, options = _method(loss)
    words = [f"dataset={OWN}", f"student={OWN}_student", f"teacher={OWN}_teacher", "teacher.ready=true"]
    words += [f"loss={method if isinstance(method, str) else OWN}", *_options("loss", options)]
    words += [f"trainer={trainer}"] if isinstance(trainer, str) else _options("trainer", trainer)
    words += [*_options("dataset", dataset or {}), as_word("seed", seed), *_others(overrides), *folder_word(folder)]
    with (
        called(quiet=quiet),
        own_networks(student, teacher),
        own_data(train, val, test, classes),
        own_loss(None if isinstance(method, str) else method),
    ):
        return trained(run_once("kd_cli.experiments.experiment:distill", "distill", words))


def _method(loss: Loss | Mapping[str, Any]) -> tuple[Loss, Mapping[str, Any]]:
    """The method and its options."""
    if not isinstance(loss, Mapping):
        loss = {"name": loss}
    name = loss.get("name")
    if not (isinstance(name, str) or callable(name)):
        raise ConfigError(f"loss: {name!r} is no name of a method, no function and no Distiller")
    return name, {key: value for key, value in loss.items() if key != "name"}


def _options(group: str, options: Mapping[str, Any]) -> list[str]:
    return [as_word(f"{group}.{key}", value) for key, value in options.items()]


def _others(overrides: Sequence[str]) -> list[str]:
    """Raises a ConfigError for what would take the place of an argument."""
    words = checked_words(overrides)
    for word in words:
        if override_key(word) in ("dataset", "student", "teacher", "loss", "experiment", "study"):
            raise ConfigError(f"overrides: {word} is not possible here; it is an argument of kd.distill, or of kd.run")
    return words
