"""What a search may try: Hydra's sweeps as Optuna's distributions.

loss.kl_weight=choice(0.1,0.5,0.9)      one of these (0.1,0.5,0.9 is the same)
student.width=range(8,65,8)             8, 16, …, 64
loss.temperature=interval(1,20)         any number from 1 to 20; int(interval(1,20)): a whole one
trainer.lr=tag(log,interval(1e-4,1e-2)) even in its logarithm
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from kd_cli.errors import ConfigError, offer, suggest

_DIGITS = 3  # of a number that is searched in its logarithm, and decimals of an interval's width


@dataclass(frozen=True)
class Axis:
    """One searched option.

    Args:
        key: as it is typed: `loss.temperature`.
        text: the sweep, as it is typed: `interval(1,20)`.
        distribution: Optuna's.
    """

    key: str
    text: str
    distribution: BaseDistribution

    @property
    def first(self) -> str:
        """One override of them all: its smallest value."""
        kind = self.distribution
        if isinstance(kind, IntDistribution | FloatDistribution):
            return override_of(self.key, kind.low)
        return self.words()[0]

    def words(self) -> list[str]:
        """Every value as an override; nothing of a continuum."""
        return [override_of(self.key, value) for value in self.values() or ()]

    def check_kind(self, example: Any) -> None:
        """Refuses fractions for an option that is a whole number: `example`."""
        if isinstance(self.distribution, FloatDistribution) and isinstance(example, int) and example is not True:
            raise ConfigError(
                f"{self.key}: {self.text} has fractions, and {self.key} is a whole number; "
                f"type {offer(self.key, f'int({self.text})')}"
            )

    def values(self) -> list[Any] | None:
        """All of them; None: a continuum."""
        kind = self.distribution
        if isinstance(kind, CategoricalDistribution):
            return list(kind.choices)
        if isinstance(kind, IntDistribution):
            return list(range(kind.low, kind.high + 1, kind.step))
        assert isinstance(kind, FloatDistribution)
        if kind.step is None:
            return None
        return [short(kind.low + i * kind.step, kind) for i in range(round((kind.high - kind.low) / kind.step) + 1)]


def read_axes(overrides: Sequence[Any], group_options: Callable[[str], Sequence[str]]) -> list[Axis]:
    """The searched ones among Hydra's parsed overrides.

    Args:
        group_options: the choices of a config group; nothing for an option.

    Raises:
        ConfigError: a space that cannot be searched.
    """
    searched = [override for override in overrides if override.is_sweep_override()]
    return [_axis(override, group_options(override.key_or_group)) for override in searched]


def override_of(key: str, value: Any) -> str:
    """A value as an override: text as Hydra wrote it, numbers so that they are read as they are."""
    return f"{key}={value!r}" if isinstance(value, float) else f"{key}={value}"


def short(value: float, kind: FloatDistribution) -> float:
    """A number as it is tried, shown and remembered: with no more digits than matter in its interval."""
    if kind.step is not None:
        return float(f"{value:.10g}")
    if kind.log:
        rounded = float(f"{value:.{_DIGITS}g}")
    else:
        rounded = round(value, _DIGITS - math.floor(math.log10(kind.high - kind.low)))
    return rounded if kind.low <= rounded <= kind.high else value


class Short(BaseSampler):
    """A sampler whose numbers have no more digits than matter: what is run, shown and remembered is the same."""

    def __init__(self, sampler: BaseSampler) -> None:
        self._sampler = sampler

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        sampled = self._sampler.sample_relative(study, trial, search_space).items()
        return {key: _shortened(value, search_space[key]) for key, value in sampled}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        value = self._sampler.sample_independent(study, trial, param_name, param_distribution)
        return _shortened(value, param_distribution)


def _shortened(value: Any, kind: BaseDistribution) -> Any:
    return short(value, kind) if isinstance(kind, FloatDistribution) else value


def size_of(axes: Sequence[Axis]) -> int | None:
    """How many points there are; None: a continuum."""
    sizes = [None if (values := axis.values()) is None else len(values) for axis in axes]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def grid_of(axes: Sequence[Axis]) -> Mapping[str, list[Any]]:
    """Every value of every option. Raises ConfigError: an option with a continuum of values."""
    grid = {axis.key: axis.values() for axis in axes}
    for axis in axes:
        if grid[axis.key] is None:
            raise ConfigError(
                f"{axis.key}: sampler=grid cannot try all of {axis.text}; type {offer(axis.key, 'choice(a,b,c)')}, or "
                "hydra.sweeper.sampler=tpe"
            )
    return {key: values for key, values in grid.items() if values is not None}


def _axis(override: Any, options: Sequence[str]) -> Axis:
    key = override.get_key_element()
    text = override.input_line.partition("=")[2]
    tags: set[str] = getattr(override.value(), "tags", set())
    if tags - {"log"}:
        tag = min(tags - {"log"})
        raise ConfigError(f"{key}: {text} has the tag {tag!r}{suggest(tag, ['log'])}")
    if override.is_choice_sweep():
        return Axis(key, text, _choice(override, key, text, options))
    if options:
        example = offer(key, f"choice({options[0]},…)")
        raise ConfigError(f"{key}: {text} is not possible, since {key} is a group; type {example}")
    low, high, step = _bounds(override, key, text)
    if "log" in tags and low <= 0:
        raise ConfigError(f"{key}: {text} has no logarithm at {low:g}; let it begin above 0, or leave log out")
    if "log" in tags and step not in (None, 1):
        example = offer(key, f"tag(log,interval({low:g},{high:g}))")
        raise ConfigError(f"{key}: {text} cannot have steps and a logarithm; type {example}")
    if isinstance(low, int) and isinstance(high, int):
        return Axis(key, text, IntDistribution(low, high, log="log" in tags, step=int(step or 1)))
    return Axis(key, text, FloatDistribution(low, high, log="log" in tags, step=step))


def _choice(override: Any, key: str, text: str, options: Sequence[str]) -> CategoricalDistribution:
    if "log" in getattr(override.value(), "tags", set()):
        example = offer(key, "tag(log,interval(0.1,1))")
        raise ConfigError(f"{key}: {text} names its values, so log changes nothing; type {example}")
    choices = list(dict.fromkeys(override.sweep_string_iterator()))
    for choice in choices:
        if options and choice not in options:
            raise ConfigError(f"{key}: there is no {key} {choice!r}{suggest(choice, options)}")
    return CategoricalDistribution(choices)


def _bounds(override: Any, key: str, text: str) -> tuple[Any, Any, Any]:
    """Lowest and highest value, both of which are tried, and the step between two values where there is one."""
    sweep = override.value()
    if override.is_range_sweep():
        values = sorted(override.sweep_iterator())
        return values[0], values[-1], abs(sweep.step)
    low, high = sweep.start, sweep.end
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise ConfigError(f"{key}: {text} is no interval; type {offer(key, 'interval(1,2)')}, the lower one first")
    return low, high, None
