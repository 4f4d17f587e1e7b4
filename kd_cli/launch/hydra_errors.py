"""What is wrong with the words and the yaml files that Hydra is given, where Hydra itself does not name the culprit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException

from kd_cli.errors import ConfigError, offer, suggest


def explain(error: Exception, words: Sequence[str], folders: Sequence[Path]) -> ConfigError | None:
    """Names the word or the file that Hydra complains of, and what to type instead; None where Hydra says it well.

    Args:
        words: the overrides that were typed.
        folders: where yaml is looked for.

    Raises:
        ConfigError: for a launcher that is not there.
    """
    try:
        overrides = [_parsed(word) for word in words]
    except ConfigError as better:
        return better
    if isinstance(error, yaml.MarkedYAMLError):
        return ConfigError(_yaml_text(error))
    if isinstance(error, UnicodeDecodeError):
        return ConfigError(f"{_undecodable(folders)} is not UTF-8 ({error.reason}); save it as UTF-8")
    if isinstance(error, MissingConfigException) and "/" not in (name := str(error.missing_cfg_file)):
        known = {path.stem for folder in folders for path in folder.glob("*.yaml")}
        return ConfigError(f"--config-name: there is no configuration {name!r}{suggest(name, known)}")
    if isinstance(error, MissingConfigException) and str(error.missing_cfg_file).startswith("hydra/launcher/"):
        from kd_cli.sweeps.launchers import check_launcher

        check_launcher(str(error.missing_cfg_file).rpartition("/")[2])
    text = next((text for said, text in _TEXTS.items() if said in str(error)), None)
    return ConfigError(text(overrides, folders)) if text else None


def _parsed(word: str) -> Override:
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{word}: {reason}; type KEY=VALUE. A value that holds = or , or brackets needs quotes of its own: "
            "key=\"'a=b'\""
        ) from error
    if not override.key_or_group or (override.key_or_group == "hydra" and override.package is None):
        raise ConfigError(f"{word}: there is no key; type KEY=VALUE, for an option of Hydra hydra.KEY=VALUE")
    return override


def _group_text(overrides: Sequence[Override], folders: Sequence[Path]) -> str:
    """Hydra says of a group only that its choice is no word."""
    for override in overrides:
        known = {path.stem for folder in folders for path in (folder / override.key_or_group).glob("*.yaml")}
        if known and not isinstance(override.value(), str):
            group, value = override.key_or_group, override.get_value_element_as_str()
            names = ", ".join(sorted(known))
            return f"{group}: there is no {group} {value!r}; type {offer(group, 'NAME')}. Known: {names}"
    return "a group was not given a name; type GROUP=NAME"


def _interval_text(overrides: Sequence[Override], _folders: Sequence[Path]) -> str:
    """Hydra names no word."""
    word, key = next(((each.input_line, each.key_or_group) for each in overrides if each.is_interval_sweep()), ("", ""))
    remedy = f"type {offer(key, '1,2,3')}, or hydra/sweeper=optuna to search"
    return f"{word}: a grid cannot try all numbers of an interval; {remedy}"


def _several_text(overrides: Sequence[Override], folders: Sequence[Path]) -> str:
    """Hydra's advice is about any key and any value."""
    override = next(each for each in overrides if each.is_sweep_override())
    key, values = override.key_or_group, str(override.input_line).partition("=")[2]
    is_group = any((folder / key).is_dir() for folder in folders)
    one = "" if is_group or "(" in values else f"; type {offer(key, f'[{values}]')} for one list"
    return f"{override.input_line}: these are several values; type -m, too, for a run with each{one}"


def _hydra_sweep_text(overrides: Sequence[Override], _folders: Sequence[Path]) -> str:
    word = next(each.input_line for each in overrides if each.is_sweep_override() and each.is_hydra_override())
    return f"{word}: a sweep is over options of kd, and Hydra's have one value; type what varies itself: seed=0,1"


# What Hydra says, and what says it better.
_TEXTS: Mapping[str, Callable[[Sequence[Override], Sequence[Path]], str]] = {
    "Config group override must be": _group_text,
    "does not support sweep type": _interval_text,
    "Ambiguous value for argument": _several_text,
    "requires --multirun": _several_text,
    "Sweeping over Hydra's configuration": _hydra_sweep_text,
}


def _yaml_text(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    place = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{place}{error.problem}; correct the file: yaml indents with spaces, and a key stands once"


def _undecodable(folders: Sequence[Path]) -> str:
    for path in (path for folder in folders for path in sorted(folder.rglob("*.yaml")) if path.is_file()):
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return str(path)
    return "a yaml file"
