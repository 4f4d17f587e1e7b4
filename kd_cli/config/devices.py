"""`devices=N`: on how many devices, each with a process of its own, a network is trained."""

from __future__ import annotations

from kd_cli.config.base import STAGE_TRAINER, Config
from kd_cli.errors import ConfigError
from kd_cli.machine import has_cuda_driver


def count_devices(config: Config) -> int:
    """How many processes a training has.

    Raises:
        ConfigError: devices that are not there, or something that only one process can do.
    """
    asked = config["devices"]
    if asked == 1:
        return 1
    there = _accelerators(str(config["device"]))
    count = asked if isinstance(asked, int) else max(1, there or 0)
    if there is not None and count > there:
        raise ConfigError(f"devices: {count} are not on this machine, there are {there}; type devices={there}")
    if count > 1:
        check_possible(config, count)
    return count


def _accelerators(device: str) -> int | None:
    """CUDA devices that a training can have; None: it runs on the processor, which can have any number of processes."""
    if device.startswith("cuda:") or device == "mps":
        return 1
    if device == "cpu" or not has_cuda_driver():
        return None
    import torch

    return torch.cuda.device_count() or None


def check_possible(config: Config, count: int) -> None:
    """Finds what is not done by several processes.

    Raises:
        ConfigError: what to type instead.
    """
    for where in ("trainer", *STAGE_TRAINER.values()):
        recipe = config[where]
        if recipe["batch_size"] < count:
            raise ConfigError(
                f"devices: {count} are more than a batch has images ({where}.batch_size={recipe['batch_size']}); type "
                f"devices={recipe['batch_size']} or fewer"
            )
        for key, value, instead in (("compile", True, "false"), ("cuda_graphs", True, "auto")):
            if recipe[key] is value:
                raise ConfigError(
                    f"{where}.{key}: true is not possible with devices={count}; type {where}.{key}={instead}"
                )
