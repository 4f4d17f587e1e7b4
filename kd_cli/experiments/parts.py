"""The parts of a comparison, each in its folder; those that several points of a sweep have are trained once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kd_cli.config.base import STAGE_TRAINER, Config
from kd_cli.config.plan import Training
from kd_cli.runs.folder import RunDir
from kd_cli.runs.identity import config_digest
from kd_cli.runs.sweep_folder import shared_folder

_OF_ALL = ("dataset", "seed", "device", "plugins")  # what every training depends on
_DIGITS = 12  # of a digest, in a folder's name


def open_part(comparison: Path, training: Training, identity: Mapping[str, Any], config: Config) -> RunDir:
    """Takes the folder of a part. A teacher or baseline that other points of the sweep have too is theirs as well.

    Its folder is then a link into the sweep's folder, and whoever comes second waits until the first is done.

    Raises:
        ConfigError: as `RunDir.open`.
    """
    folder = comparison / training.name
    if training.stage == "distilled" or training.group is not None:
        return RunDir.open(folder, identity, config, exact=True)
    own = _what_it_depends_on(config, training)
    digest = config_digest({**own, "model": training.model, "training_seed": training.seed})
    _share(folder, f"{training.stage}-{digest[:_DIGITS]}")
    return RunDir.open(folder, identity, own, exact=True, wait=folder.is_symlink())


def _what_it_depends_on(config: Config, training: Training) -> Config:
    keys = (*_OF_ALL, training.role, STAGE_TRAINER[training.stage])
    return {key: config[key] for key in config if key in keys}


def _share(folder: Path, name: str) -> None:
    """Makes the folder of a part of a sweep's point a link, unless it was begun as a folder of its own."""
    shared = shared_folder(folder.parent)
    if shared is None or (folder.exists() and not folder.is_symlink()):
        return
    with suppress(OSError):  # no links on this disk: the part is trained for this point alone
        (shared / name).mkdir(parents=True, exist_ok=True)
        if not folder.is_symlink():
            folder.symlink_to(os.path.relpath(shared / name, folder.parent))
