"""Copies of kd that torchrun or srun has started, with `devices=` typed: they train one network together.

The first one composes the configuration and says it to the others, as `train_on` does to those that it starts.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kd_cli import machine
from kd_cli.config.base import Config, Launch
from kd_cli.config.devices import check_possible
from kd_cli.errors import ConfigError, DivergedError, KDError, Terminated
from kd_cli.launch.rank import plain_launch, read_launch, silent, train_as_rank

Do = Callable[[Config, Launch], Mapping[str, Any]]

_ASKED = "kd/asked"  # the store's key
_FIRST_PORT, _PORTS = 20_000, 40_000
_SAME_ON_ALL = (ConfigError, DivergedError, Terminated)  # the first one says it


def take_part(job: str, compose: Callable[[Do], Mapping[str, Any]], extends: Path | None) -> Mapping[str, Any]:
    """What the job returns, in the first copy; in the others nothing, when it is done.

    Args:
        compose: gives what `Do` does with the composed configuration.
        extends: as of `Launch`.

    Raises:
        KDError: what went wrong.
    """
    from torch.distributed.rendezvous import rendezvous

    _describe_slurm()
    store, rank, world = next(iter(rendezvous("env://")))
    if rank:
        return _follow(store, job, rank, world)
    try:
        return compose(lambda config, launch: _lead(store, world, job, config, replace(launch, extends=extends)))
    except BaseException:
        store.set(_ASKED, "")  # whoever waits for it waits in vain
        raise


def _lead(store: Any, world: int, job: str, config: Config, launch: Launch) -> Mapping[str, Any]:
    if config["devices"] not in ("auto", world):
        raise ConfigError(
            f"devices: {config['devices']} is not the number of copies of kd that were started, {world}; type "
            f"devices={world}"
        )
    config = {**config, "devices": world}
    check_possible(config, world)
    store.set(_ASKED, json.dumps({"config": config, "launch": plain_launch(launch)}, default=str))
    return train_as_rank(job, config, launch, store=store, rank=0, world_size=world)


def _follow(store: Any, job: str, rank: int, world: int) -> Mapping[str, Any]:
    text = store.get(_ASKED).decode()
    if not text:
        sys.exit(ConfigError.exit_code)
    asked = json.loads(text)
    try:
        with silent():
            train_as_rank(job, asked["config"], read_launch(asked["launch"]), store=store, rank=rank, world_size=world)
    except Exception as error:
        those = machine.ranks()
        if isinstance(error, _SAME_ON_ALL) or (those is not None and those.lost(error)):
            sys.exit(error.exit_code if isinstance(error, KDError) else KDError.exit_code)
        raise
    return {}


def _describe_slurm() -> None:
    """What torchrun says in the environment, of the tasks of a step of Slurm's."""
    says = os.environ
    if "RANK" in says:
        return
    says["RANK"], says["LOCAL_RANK"] = says["SLURM_PROCID"], says.get("SLURM_LOCALID", "0")
    says["WORLD_SIZE"] = says["SLURM_STEP_NUM_TASKS"]
    step = f"{says.get('SLURM_JOB_ID', '0')}{says.get('SLURM_STEP_ID', '0')}"
    says.setdefault("MASTER_PORT", str(_FIRST_PORT + int(re.sub(r"\D", "", step)) % _PORTS))
    says.setdefault("MASTER_ADDR", first_node(says.get("SLURM_STEP_NODELIST", "localhost")))


def first_node(nodes: str) -> str:
    """The first of Slurm's list of nodes: `gpu[03-07,12]` → `gpu03`, `login,gpu[1-2]` → `login`."""
    found = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)
    return f"{found[1]}{found[2] or ''}" if found else "localhost"
