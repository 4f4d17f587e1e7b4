"""TensorBoard: curves and hyperparameters in the run's folder. https://www.tensorflow.org/tensorboard"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kd_cli.runs.folder import RunDir
from kd_cli.training.loggers.base import LOGGERS, final_numbers, parameters

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


@LOGGERS.register("tensorboard")
class TensorBoard:
    """Scalars by epoch; at the end the options beside the final numbers, for the page HPARAMS.

    Args:
        run: its folder gets a folder `tensorboard`.
    """

    package = "tensorboard"

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._writer: SummaryWriter | None = None

    def begin(self, records: Sequence[Mapping[str, float]]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # From epoch 1 on, what an earlier process has written is void: readers drop it, and nothing is there twice.
        self._writer = SummaryWriter(str(self._run.path / FOLDER), purge_step=1)
        for record in records:
            self.epoch(record)

    def epoch(self, record: Mapping[str, float]) -> None:
        assert self._writer is not None
        for name, value in record.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, int(record["epoch"]))
        self._writer.flush()  # a killed process would take what waits with it

    def finish(self, result: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard.summary import hparams

        assert self._writer is not None
        numbers = final_numbers(result)
        known = {key: value for key, value in parameters(self._run).items() if value is not None}
        options = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in known.items()}
        for summary in hparams(options, numbers):
            self._writer._get_file_writer().add_summary(summary)  # add_hparams would open a run of its own
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, int(result.get("best_epoch", 0)))

    def close(self, status: str) -> None:  # noqa: ARG002 - it has no place for it
        if self._writer is not None:
            self._writer.close()
