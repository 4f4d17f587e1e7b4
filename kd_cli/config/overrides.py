"""The words of a Hydra command line: options with a value, flags, overrides."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from kd_cli.config.base import STAGE_TRAINER, Stage
from kd_cli.config.recipe import Recipe
from kd_cli.registry import OWN

_WITH_VALUE = ("--config-dir", "--config-name")
VALUE_FOLLOWS = ("--config-dir", "--config-name", "--cfg", "--info", "--package")
# As winning_overrides adds them, and as the points of a sweep have them.
_ADDED = re.compile(rf"(?:{'|'.join(STAGE_TRAINER.values())})\.(\w+)=\$\\?\{{trainer\.\1\\?\}}")


def option_values(arguments: Sequence[str], option: str) -> list[str]:
    """The values given to an option in a list of arguments: `--config-dir DIR`."""
    return [value for name, value in itertools.pairwise(arguments) if name == option]


def override_words(arguments: Sequence[str]) -> list[str]:
    """The words that are neither options nor an option's value."""
    pairs = zip(["", *arguments], arguments, strict=False)
    return [word for before, word in pairs if not word.startswith("-") and before not in VALUE_FOLLOWS]


def typed_overrides(arguments: Sequence[str], hydra: Any) -> list[str]:
    """The overrides of one run that the user typed, and none that `winning_overrides` added."""
    from hydra.types import RunMode

    alone = hydra.mode == RunMode.RUN  # then an interpolation is as typed; of a point it is quoted
    return without_added(arguments, words_of(hydra)["task"] if alone else hydra.overrides.task)


def without_added(arguments: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Those of a run's overrides that `winning_overrides` did not add to the arguments."""
    added = {override_key(override) for override in winning_overrides(arguments)}  # by key: Hydra resolves the values
    return [override for override in overrides if override_key(override) not in added]


def only_typed(arguments: Sequence[str]) -> list[str]:
    """Those of a run's recorded arguments that kd takes from the user alone, since they can name code.

    Its own yaml and modules (`--config-dir`, `plugins=`, `callable`), Hydra's options, and resolvers, which may look at
    the environment.
    """
    values = {place + 1 for place, word in enumerate(arguments) if word in _WITH_VALUE}
    return [word for place, word in enumerate(arguments) if place in values or _can_name_code(word)]


def is_own(arguments: Sequence[str]) -> bool:
    """Whether these are a run's arguments that a program has begun with networks of its own."""
    return f"dataset={OWN}" in arguments


def resume_command(run: Path | str, arguments: Sequence[str]) -> str:
    """What to type to go on with a run, with those of its arguments that `only_typed` gives."""
    if is_own(arguments):
        return f"kd.distill(…, folder={str(run)!r}), in the program, with the same arguments"
    return " ".join(["kd resume", *map(shlex.quote, [str(run), *only_typed(arguments)])])


def _can_name_code(word: str) -> bool:
    key = override_key(word)
    named = "hydra" in key or "plugins" in key or "callable" in word or "_target_" in word
    return word.startswith("-") or named or re.search(r"\$\{[^}]*:", word) is not None


def flags(arguments: Sequence[str]) -> list[str]:
    folders = [str(Path(folder).resolve()) for folder in option_values(arguments, "--config-dir")]
    names = option_values(arguments, "--config-name")
    values = [*(("--config-dir", folder) for folder in folders), *(("--config-name", name) for name in names)]
    return [word for pair in values for word in pair]


def recipe_key(stage: Stage | None, arguments: Sequence[str]) -> str:
    """The key by which a stage's recipe is best changed: `trainer`, or its own where the user has typed that."""
    where = STAGE_TRAINER[stage] if stage else "trainer"
    typed = [override_key(word) for word in arguments]
    return where if any(key.partition(".")[0] in (where, f"trainer@{where}") for key in typed) else "trainer"


def winning_overrides(arguments: Sequence[str]) -> list[str]:
    """Overrides that let what is typed of `trainer` win over what a preset sets for one stage.

    `trainer.epochs=1` becomes `teacher_trainer.epochs=${trainer.epochs}` as well, and so for each stage, unless that
    stage's own option is typed too. `trainer=NAME` does this for every option.
    """
    typed = {override_key(word) for word in arguments if "=" in word and not word.startswith("-")}
    keys = [field.name for field in fields(Recipe) if {"trainer", f"trainer.{field.name}"} & typed]
    return [
        f"{where}.{key}=${{trainer.{key}}}"
        for where in STAGE_TRAINER.values()
        for key in keys
        if not {f"{where}.{key}", f"trainer@{where}"} & typed
    ]


def words_of(hydra: Any) -> Mapping[str, list[str]]:
    """The overrides that a configuration's node `hydra` lists as `hydra` and as `task`, as they are.

    Hydra's own lists would give what the interpolations stand for, and of a sweep not all stand for something yet.
    """
    from omegaconf import OmegaConf

    listed: Any = OmegaConf.to_container(hydra.overrides, resolve=False)
    return {name: listed[name] for name in ("hydra", "task")}


def name_by_overrides(hydra: Any) -> None:
    """Has `${hydra.job.override_dirname}` name what was typed, and nothing that `winning_overrides` added."""
    named = hydra.job.config.override_dirname
    lines = sorted(
        word
        for word in words_of(hydra)["task"]
        if override_key(word).partition("@")[0] not in named.exclude_keys and not _ADDED.fullmatch(word)
    )
    hydra.job.override_dirname = named.item_sep.join(lines).replace("=", named.kv_sep)


def override_key(override: str) -> str:
    """The key of an override: `+loss.temperature=4` → `loss.temperature`."""
    return override.lstrip("+~").partition("=")[0]


def hydra_quote(text: str) -> str:
    """A value that Hydra's grammar takes as it stands, whatever is in it; a shell's single quotes fit around it."""
    quoted = re.sub(r'(\\*)("|\Z)', lambda found: 2 * found[1] + (r"\"" if found[2] else ""), text)
    return f'"{quoted}"'
