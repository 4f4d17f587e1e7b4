"""What can be known to be wrong with a whole configuration before torch is imported, which takes seconds."""

from __future__ import annotations

from typing import get_args

from kd_cli.config import Config, Stage, stage_recipe
from kd_cli.data.common import COMMON, Common
from kd_cli.errors import ConfigError
from kd_cli.plan import check_numbers
from kd_cli.recipe import check_possible
from kd_cli.registry import bind_options


def check_early(config: Config) -> None:
    """Finds what the commands would find as well, later.

    Raises:
        ConfigError: options of the data, of a procedure or of a recipe that are not possible here.
    """
    dataset, what = config["dataset"], f"dataset {config['dataset']['name']!r}"
    shared = {key: value for key, value in dataset.items() if key in COMMON}
    try:
        Common(**bind_options(Common, shared, where="dataset", what=what))
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from error
    check_numbers(config)
    recipes = [stage_recipe(config, stage) for stage in get_args(Stage)]
    for recipe in recipes if len(set(recipes)) == 1 else ():  # else it depends on which of them the command trains
        check_possible(recipe, validation=dataset.get("val_fraction") != 0, on_cuda=config["device"] != "cpu")
