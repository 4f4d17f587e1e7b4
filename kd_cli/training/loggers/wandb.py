"""Weights & Biases: one of its runs for each of ours, on a server or offline. https://docs.wandb.ai"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from kd_cli.runs.folder import RunDir
from kd_cli.runs.provenance import rerun_line
from kd_cli.training.loggers.base import LOGGERS, final_numbers, origin, parameters

_ID = re.compile(r"[a-z0-9]{8,64}")  # what we make; whatever else a record holds is not ours


@LOGGERS.register("wandb")
class WandB:
    """Options and origin as its config, the numbers of each epoch by step, those of the result as its summary.

    Args:
        run: keeps the id of its run at W&B, so that a resumed one goes on there.
        project: what W&B files the run under.
        entity: whose project; null: as W&B is set up.
        mode: online, offline (`wandb sync` sends it later), or null: as W&B is set up (`WANDB_MODE`).
    """

    package = "wandb"

    def __init__(
        self,
        run: RunDir,
        project: str = "kd",
        entity: str | None = None,
        mode: Literal["online", "offline"] | None = None,
    ) -> None:
        self._run, self._mode = run, mode
        self._place: dict[str, Any] = {"project": project, "entity": entity}
        self._theirs: Any = None
        self._first = 0

    def begin(self, records: Sequence[Mapping[str, float]]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would report home
        import wandb

        facts = origin(self._run)
        # Neither the user's code nor the screen is sent; several runs of this process may be open at once.
        settings = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True)
        self._theirs = wandb.init(
            **self._place,
            id=self._known_id(),
            name=self._run.path.resolve().name,
            dir=str(self._run.path),
            config={**parameters(self._run), **{key: str(value) for key, value in facts.items()}},
            group=_name_of(facts.get("kd.sweep") or facts.get("kd.comparison")),
            job_type=str(facts["kd.stage"]),
            notes=rerun_line(self._run.record),
            mode=self._mode,
            resume="allow",
            reinit="create_new",
            settings=settings,
        )
        # What a server has already it does not take again; offline each process writes all there is.
        self._first = self._theirs.step
        for record in records:
            self.epoch(record)

    def epoch(self, record: Mapping[str, float]) -> None:
        step = int(record["epoch"])
        if step >= self._first:  # a resumed run trains its last epoch again, to the same numbers
            self._theirs.log({name: value for name, value in record.items() if name != "epoch"}, step=step)

    def finish(self, result: Mapping[str, Any]) -> None:
        self._theirs.summary.update(final_numbers(result))

    def close(self, status: str) -> None:
        if self._theirs is not None:
            self._theirs.summary["kd.status"] = status
            self._theirs.finish(exit_code=0 if status == "completed" else 1)

    def _known_id(self) -> str:
        known = self._run.record.get("wandb", {})
        if {key: known.get(key) for key in self._place} == self._place and _ID.fullmatch(str(known.get("id"))):
            return str(known["id"])
        new = uuid.uuid4().hex
        self._run.note(wandb={**self._place, "id": new})
        return new


def _name_of(folder: Any) -> str | None:
    return None if folder is None else folder.name
