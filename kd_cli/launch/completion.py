"""Tab completion of overrides, answered by Hydra's own completion engine."""

from __future__ import annotations

import os
from collections.abc import Sequence

from kd_cli.config.compose import conf_dir
from kd_cli.config.search_path import install_search_path


def complete(command: str, words: Sequence[str], incomplete: str, config_dirs: Sequence[str] = ()) -> list[str]:
    """What can follow: groups, options and their values.

    Args:
        command: `train-teacher`.
        words: the overrides before the one that is being typed.
        incomplete: that one. Bash breaks words at `=`: of `loss=k` it hands over `k`, and `loss` and `=` among
            `words`.
        config_dirs: the user's folders of yaml.
    """
    done, prefix = _join(words, incomplete)
    try:
        install_search_path(config_dirs)
        found = _ask_hydra(command.replace("-", "_"), done, prefix + incomplete)
    except Exception:  # a half-typed line composes to nothing; the shell must not show a traceback
        return []
    return [text[len(prefix) :] for text in found if text.startswith(prefix)]


def _join(words: Sequence[str], incomplete: str) -> tuple[list[str], str]:
    joined: list[str] = []
    for word in words:
        if joined and (word == "=" or joined[-1].endswith("=")):
            joined[-1] += word
        else:
            joined.append(word)
    lone_equals = not incomplete and os.environ.get("COMP_WORDS", "").split()[-1:] == ["="]  # Typer shows it as ""
    if joined and lone_equals and not joined[-1].endswith("="):
        joined[-1] += "="
    if joined and joined[-1].endswith("="):
        return joined[:-1], joined[-1]
    return joined, ""


def _ask_hydra(config_name: str, words: Sequence[str], incomplete: str) -> list[str]:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        plugin = DefaultCompletionPlugin(GlobalHydra.instance().config_loader())
        line = " ".join([*words, incomplete])
        return list(plugin._query(config_name=config_name, line=line if incomplete else line.rstrip() + " "))
