"""A search with Optuna: asks for trials, has them run as points of a sweep, tells what came of them, and goes on later.

All that it knows is in the study's storage. A trial's values are a pure function of the sampler's seed, of the trial's
number and of the trials before it, so a search that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from os.path import relpath
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from kd_cli import console
from kd_cli.config.base import TRIAL
from kd_cli.config.overrides import hydra_quote
from kd_cli.config.recipe import score_name, score_text
from kd_cli.errors import ConfigError
from kd_cli.seeds import derive_seed
from kd_cli.sweeps.point import Point, numbers, selection
from kd_cli.sweeps.search.options import Options
from kd_cli.sweeps.search.space import Axis, Short, grid_of, override_of, size_of
from kd_cli.training.trial_pruner import address, make_pruner, without_password

Start = Callable[[Sequence[Sequence[str]]], Sequence[Point]]  # overrides of several points → what came of each
_GOOD = (TrialState.COMPLETE, TrialState.PRUNED)
_HOPELESS = 3  # points that fail before any other does not: the rest would, too
_ENOUGH = 40  # complete trials: with 20, PED-ANOVA gives an option that decides everything between 44 and 100 %


class Search:
    """One search in an open study.

    Args:
        axes: what is searched.
        fixed: the overrides that all points share.
        storage: the study's URL.
        owner: of several sweeps with one storage each takes up its own trials only.
        seed: of the sampler.

    Raises:
        ConfigError: the study holds another search, or a grid of a continuum is asked for.
    """

    def __init__(
        self,
        study: Study,
        options: Options,
        axes: Sequence[Axis],
        fixed: Sequence[str],
        *,
        storage: str,
        folder: Path,
        owner: str,
        seed: int,
    ) -> None:
        self.study, self.options, self.axes, self.fixed = study, options, axes, list(fixed)
        self._storage, self._folder, self._owner, self._seed = storage, folder, owner, seed
        self._size = size_of(axes)
        self._whole = self._size is not None and self._size <= options.n_trials  # then there is nothing to choose
        self._grid = _shuffled_grid(axes, seed) if options.sampler == "grid" or self._whole else []
        self._check_same()
        done = (trial for trial in self._trials() if trial.state in _GOOD)
        self._known: dict[tuple[str, ...], Point] = {self._point(trial): self._record(trial) for trial in done}

    @property
    def points(self) -> list[Point]:
        """What came of every point, those of an earlier process too."""
        return list(self._known.values())

    def run(self, start: Start, at_once: int) -> None:
        """Runs trials until there are enough of them, or the user stops.

        Args:
            at_once: how many of the points that `start` is given run at the same time.
        """
        if self._whole:
            asked = f"hydra.sweeper.n_trials={self.options.n_trials}"
            count = f"{self._size} points in all"
            console.notice(f"the search has {count}: for {asked} there is nothing to choose; each is tried once")
        for batch in self._batches(at_once):
            statuses = self._evaluate(batch, start)
            if statuses & {"interrupted", "not started"}:
                return
            if len(self._known) >= _HOPELESS and {point["status"] for point in self.points} == {"failed"}:
                console.notice("the search ends here: every point so far failed, so the others would, too")
                return
            self._say_progress()

    def summary(self, command: Callable[[Sequence[str]], str]) -> dict[str, Any]:
        """`optuna_results`: what the search found.

        Args:
            command: what to type to run a point by itself, given its overrides.
        """
        select_by = next((selection(point)[1] for point in self.points if point["status"] == "completed"), "top1")
        return {
            "study": self.study.study_name,
            "storage": without_password(self._storage),
            "sampler": self.options.sampler,
            "pruner": self.options.pruner,
            "objective": score_name(select_by),
            "direction": "minimize" if select_by == "nll" else "maximize",
            "points": dict(Counter(point["status"] for point in self.points)),
            "best": self._best(command),
            "importances": self._importances(),
        }

    def _batches(self, at_once: int) -> Iterator[list[Trial]]:
        begun = self._take_up()
        left = self.options.n_trials - sum(trial.state in _GOOD for trial in self._trials()) - len(begun)
        if begun:
            yield begun
        while (count := min(left, at_once, self._untried())) > 0:
            yield [self._ask() for _ in range(count)]
            left -= count

    def _take_up(self) -> list[Trial]:
        """What earlier processes left: the trials that were running go on, those that failed are tried again."""
        trials = self._trials()
        mine = [trial for trial in trials if self._is_mine(trial)]
        begun = [trial for trial in mine if trial.state == TrialState.RUNNING]
        settled = {self._point(trial) for trial in trials if trial.state != TrialState.FAIL}
        for trial in mine:
            if self._point(trial) not in settled:
                settled.add(self._point(trial))
                self.study.enqueue_trial(trial.params)
        return [Trial(self.study, trial._trial_id) for trial in begun]

    def _ask(self) -> Trial:
        trials = self._trials()
        seed = derive_seed(self._seed, "trial", len(trials)) % 2**32
        sampler: BaseSampler = RandomSampler(seed)
        if self.options.sampler == "tpe":
            sampler = TPESampler(seed=seed, n_startup_trials=self.options.n_startup_trials)
        self.study.sampler, self.study.pruner = Short(sampler), make_pruner(**self.options.pruning)  # TPE asks it, too
        if not any(trial.state == TrialState.WAITING for trial in trials):
            self._enqueue_next({self._point(trial) for trial in trials})
        trial = self.study.ask({axis.key: axis.distribution for axis in self.axes})
        trial.set_user_attr("sweep", self._owner)
        return trial

    def _enqueue_next(self, tried: Collection[tuple[str, ...]]) -> None:
        """The next point of a grid."""
        for params in self._grid:
            if self._overrides(params) not in tried:
                self.study.enqueue_trial(dict(params))
                return

    def _evaluate(self, batch: Sequence[Trial], start: Start) -> set[str]:
        """Runs what is new in a batch and tells all of it; the statuses of its points."""
        new = {point: trial for trial in reversed(batch) if (point := self._overrides(trial.params)) not in self._known}
        started = [[*self.fixed, *point, self._address(trial)] for point, trial in reversed(new.items())]
        for point, record in zip(reversed(new), start(started) if started else (), strict=True):
            self._known[point] = json.loads(json.dumps(record, default=str))
        records = [self._known[self._overrides(trial.params)] for trial in batch]
        for trial, record in zip(batch, records, strict=True):
            self._tell(trial, record)
        return {record["status"] for record in records}

    def _tell(self, trial: Trial, point: Point) -> None:
        """A trial that was interrupted is told nothing: it goes on at the next start.

        One that diverged counts as pruned, from which the sampler learns where not to look.
        """
        value, status = selection(point)[0], point["status"]
        if status in ("interrupted", "not started"):
            return
        place = {"place": relpath(point["folder"], self._folder)} if "folder" in point else {}
        trial.set_user_attr("point", {**point, **place})
        if status == "completed" and value is not None:
            self.study.tell(trial, value)
        else:
            self.study.tell(trial, state=TrialState.PRUNED if status in ("pruned", "diverged") else TrialState.FAIL)

    def _address(self, trial: Trial) -> str:
        text = address(self._storage, self.study.study_name, trial._trial_id, self.options.pruning)
        return f"++hydra.job.env_set.{TRIAL}={hydra_quote(text)}"

    def _overrides(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(override_of(axis.key, params.get(axis.key)) for axis in self.axes)

    def _point(self, trial: FrozenTrial) -> tuple[str, ...]:
        return self._overrides({**trial.system_attrs.get("fixed_params", {}), **trial.params})

    def _is_mine(self, trial: FrozenTrial) -> bool:
        return bool(trial.user_attrs.get("sweep") == self._owner)

    def _record(self, trial: FrozenTrial) -> Point:
        """What came of a trial; its folder is where the sweep's folder is now."""
        point: Point = trial.user_attrs["point"]
        if not self._is_mine(trial):
            return point
        place = point.get("place") or Path(point.get("folder", "")).name  # of an earlier kd
        moved = {key: str(self._folder / place) for key in ("folder", "run") if key in point}
        return {**point, **moved}

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _untried(self) -> int:
        return self.options.n_trials if self._size is None else self._size - len(self._known)

    def _check_same(self) -> None:
        """An unfinished search goes on only as it began; how many trials, which sampler and pruner may change."""
        mine = _what(self.axes, self.fixed)
        there = self.study.user_attrs.get("search", mine)
        if there != mine:
            changed = ", ".join(
                [f"{word} there" for word in there if word not in mine]
                + [f"{word} here" for word in mine if word not in there]
            )
            raise ConfigError(
                f"the study {self.study.study_name!r} in {without_password(self._storage)} is another search "
                f"({changed}); choose another folder (hydra.sweep.dir=DIR) or another name (hydra.sweeper.study_name)"
            )
        self.study.set_user_attr("search", mine)

    def _say_progress(self) -> None:
        tried, best = [self._point(trial) for trial in self._trials() if trial.state in _GOOD], self._best_trial()
        if best is not None:
            done, again = len(set(tried)), len(tried) - len(set(tried))
            repeated = f" ({again} of them were of a point that had been tried)" if again else ""
            count = (
                f"{done} of {self._size} points" if self._whole else f"{len(tried)} of {self.options.n_trials} trials"
            )
            values = " ".join(self._point(best))
            point = self._record(best)
            said = score_text(point.get("distilled", point), selection(point)[1])
            console.say(f"search     {count}{repeated}; best {said}: {values}")

    def _best_trial(self) -> FrozenTrial | None:
        complete = [trial for trial in self._trials() if trial.state == TrialState.COMPLETE]
        return max(complete, key=lambda trial: (trial.values[0], -trial.number), default=None)

    def _best(self, command: Callable[[Sequence[str]], str]) -> dict[str, Any] | None:
        trial = self._best_trial()
        if trial is None:
            return None
        point = self._record(trial)
        (test, val, gain), (score, select_by) = numbers(point), selection(point)
        return {
            "trial": trial.number,
            "point": point["point"],
            "params": trial.params,
            "val_top1": val,
            "said": score_text(point.get("distilled", point), select_by),
            "as_good": sum(selection(other)[0] == score for other in self.points if other["status"] == "completed") - 1,
            "test_top1": test,
            "gain": gain,
            "run": point.get("run"),
            "command": command([*self.fixed, *self._point(trial)]),
        }

    def _importances(self) -> dict[str, float]:
        """How much each option matters among the better trials (PED-ANOVA); nothing where that would be noise."""
        complete = [trial for trial in self._trials() if trial.state == TrialState.COMPLETE]
        if len(complete) < _ENOUGH or len({trial.value for trial in complete}) == 1 or len(self.axes) == 1:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        return {key: round(value, 3) for key, value in found.items()}


def default_name(axes: Sequence[Axis], fixed: Sequence[str]) -> str:
    """A study's name, which is another one for another search: a folder may hold several."""
    return f"kd-{hashlib.sha256(' '.join(_what(axes, fixed)).encode()).hexdigest()[:6]}"


def _what(axes: Sequence[Axis], fixed: Sequence[str]) -> list[str]:
    return sorted([*fixed, *(f"{axis.key}={axis.text}" for axis in axes)])


def _shuffled_grid(axes: Sequence[Axis], seed: int) -> list[Mapping[str, Any]]:
    """All points, in an order that a search of fewer trials may stop in anywhere."""
    grid = grid_of(axes)
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    random.Random(seed).shuffle(points)
    return list(points)
