"""Weights of a network from elsewhere, given as a file: torchvision's and timm's downloads, your own."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kd_cli.errors import DataError, listed
from kd_cli.models.state_dict import read_state_dict, without_prefixes
from kd_cli.storage.tensors import check_names, check_numbers
from kd_cli.taps import published_taps

log = logging.getLogger("kd")

_COUNTER = ".num_batches_tracked"  # files from before PyTorch 0.4.1 have none
_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")  # as published: norm.1 is norm1 now
_VIT = "encoder.pos_embedding"  # torchvision's
_FILTERS = ("checkpoint_filter_fn", "_filter_fn")  # by which timm reads published files of its networks

Tensors = dict[str, Tensor]


def load_pretrained(network: nn.Module, path: str, num_classes: int) -> None:
    """Puts the weights of a file into a network, but for layers whose shapes depend on the data.

    A classifier for another number of classes, or one that an encoder's file does not have, and a first convolution for
    other channels keep their random weights; a notice names them.

    Args:
        path: of a .safetensors file, or of one by `torch.save` that holds nothing but tensors.
        num_classes: K.

    Raises:
        ValueError: it is missing, cannot be read safely, or belongs to another network.
    """
    try:
        own, loaded = network.state_dict(), read_for(network, Path(path).expanduser())
        kept, missing = _depending_on_data(network, own, loaded, num_classes), _no_classifier(network, own, loaded)
        fitting = {name: tensor for name, tensor in loaded.items() if _module(name) not in kept}
        check_names(fitting, {name: own[name] for name in own if _module(name) not in kept | missing}, Path(path))
        check_numbers(loaded, own, Path(path))
    except DataError as error:
        raise ValueError(f"pretrained: {error}") from error
    network.load_state_dict(fitting, strict=False)
    if kept:
        log.warning("%s: %s learned on other data; random weights are kept there", path, ", ".join(sorted(kept)))
    if missing:
        log.warning("%s has no classifier (%s); random weights are kept there", path, "".join(missing))


def read_for(network: nn.Module, path: Path) -> Tensors:
    """The weights of a file under the names, and on the grid, of this network; a notice says what was done to them.

    As torchvision and timm load what they publish: names of an older version, auxiliary heads that the network does
    not have, position embeddings of another grid, counters of batches that are missing. Names and shapes may still be
    those of another network.

    Raises:
        DataError: it is missing, or cannot be read safely.
    """
    tensors, own = read_state_dict(path), network.state_dict()
    tensors = _plainly_named(tensors, own)
    steps = () if _fits(tensors, own) else (_renamed, _by_timm, _resampled, _without_heads, _classifier_renamed)
    notes = []
    for step in steps:
        tensors, note = step(network, tensors, own)
        notes += [note] if note else []
    if notes:
        log.warning("%s: %s", path, "; ".join(notes))
    return tensors | {name: own[name].new_zeros(()) for name in own.keys() - tensors.keys() if name.endswith(_COUNTER)}


def _plainly_named(tensors: Tensors, own: Mapping[str, Tensor]) -> Tensors:
    """Without what scripts put before all names, as far as the network does not have that itself."""
    variants = [tensors]
    while (shorter := without_prefixes(variants[-1])).keys() != variants[-1].keys():
        variants.append(shorter)
    return max(variants, key=lambda each: len(each.keys() & own.keys()))


def _renamed(network: nn.Module, tensors: Tensors, own: Mapping[str, Tensor]) -> tuple[Tensors, str]:
    del network
    new = {name: _DENSENET.sub(r"\1\2.", name) for name in tensors if name not in own}
    new = {name: to for name, to in new.items() if to in own}
    note = f"{len(new)} names of an older version were renamed (such as {min(new)})" if new else ""
    return {new.get(name, name): tensor for name, tensor in tensors.items()}, note


def _classifier_renamed(network: nn.Module, tensors: Tensors, own: Mapping[str, Tensor]) -> tuple[Tensors, str]:
    """Where nothing but one linear layer at the top has another name there than here."""
    there, here = tensors.keys() - own.keys(), own.keys() - tensors.keys()
    old, new = ({_module(name) for name in names if not name.endswith(_COUNTER)} for names in (there, here))
    layer = dict(network.named_children()).get("".join(new))
    if len(old) != 1 or not isinstance(layer, nn.Linear):
        return tensors, ""
    (before,), (after,) = old, new
    renamed = {name: f"{after}{name.removeprefix(before)}" for name in there}
    if set(renamed.values()) != {name for name in here if not name.endswith(_COUNTER)}:
        return tensors, ""
    note = f"the classifier is called {after} here, and {before} there"
    return {renamed.get(name, name): tensor for name, tensor in tensors.items()}, note


def _by_timm(network: nn.Module, tensors: Tensors, own: Mapping[str, Tensor]) -> tuple[Tensors, str]:
    """What timm does to published files of this family."""
    home = type(network).__module__
    known = [getattr(sys.modules[home], name, None) for name in _FILTERS] if home.startswith("timm.") else []
    change: Any = next(filter(callable, known), None)
    if change is None:
        return tensors, ""
    try:
        made = dict(change({name: _single(tensor) for name, tensor in tensors.items()}, network))
    except Exception:  # it is made for files of that family, and this may be any
        return tensors, ""
    resampled = [name for name in made if name in tensors and made[name].shape != tensors[name].shape]
    renamed = [name for name in made if name not in tensors and name in own]
    dropped = [name for name in tensors if name not in made and not renamed]
    done = {"resampled": resampled, "renamed": renamed, "left out": dropped}
    return made, "; ".join(f"{listed(sorted(names))} {what}, as timm does" for what, names in done.items() if names)


def _resampled(network: nn.Module, tensors: Tensors, own: Mapping[str, Tensor]) -> tuple[Tensors, str]:
    there, here = tensors.get(_VIT), own.get(_VIT)
    if there is None or here is None or there.shape == here.shape or not hasattr(network, "patch_size"):
        return tensors, ""
    from torchvision.models.vision_transformer import interpolate_embeddings

    sizes = int(network.image_size), int(network.patch_size)  # type: ignore[arg-type]
    try:
        made = interpolate_embeddings(*sizes, {_VIT: _single(there)})[_VIT]
    except (ValueError, RuntimeError):  # no square grid: it is refused by its shape
        return tensors, ""
    counts = f"{there.shape[1] - 1} to {here.shape[1] - 1} patches"
    return tensors | {_VIT: made}, f"the position embeddings were resampled from {counts}, as torchvision does"


def _without_heads(network: nn.Module, tensors: Tensors, own: Mapping[str, Tensor]) -> tuple[Tensors, str]:
    """Without the auxiliary heads of GoogLeNet, Inception and their like, which only help in training."""
    tops = {name.partition(".")[0] for name in tensors.keys() - own.keys()}
    heads = sorted(top for top in tops if top.lower().startswith("aux"))
    if not heads:
        return tensors, ""
    note = f"{listed(heads)}: auxiliary heads, which this network does not have, were left out"
    if getattr(network, "transform_input", True) is False:
        note += "; with the weights that torchvision publishes, type student.kwargs.transform_input=true (or teacher.…)"
    return {name: tensor for name, tensor in tensors.items() if name.partition(".")[0] not in heads}, note


def _depending_on_data(network: nn.Module, own: Mapping[str, Tensor], loaded: Tensors, num_classes: int) -> set[str]:
    """The first convolution, and what has a row for each class, where theirs are of other shapes here and there."""
    differing = {name for name in loaded.keys() & own.keys() if loaded[name].shape != own[name].shape}
    first = next((name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)), None)
    by_class = {name for name in differing if _differs_in_classes(loaded[name], own[name], num_classes)}
    classifiers = set(map(_module, by_class)) if len({len(loaded[name]) for name in by_class}) == 1 else set()
    return {_module(name) for name in differing if _module(name) in classifiers | {first}}


def _no_classifier(network: nn.Module, own: Mapping[str, Tensor], loaded: Tensors) -> set[str]:
    """The classifier, where a file has all of an encoder and nothing of it."""
    path = published_taps(network).get("embedding", "").removesuffix(":in")
    names = {name for name in own if _module(name) == path}
    return {path} if names and own.keys() - loaded.keys() == names else set()


def _differs_in_classes(there: Tensor, here: Tensor, num_classes: int) -> bool:
    return here.dim() > 0 and here.shape[0] == num_classes and there.shape[1:] == here.shape[1:]


def _fits(tensors: Tensors, own: Mapping[str, Tensor]) -> bool:
    return tensors.keys() == own.keys() and all(tensors[name].shape == own[name].shape for name in own)


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _module(name: str) -> str:
    return name.rpartition(".")[0]
