"""What a run tells while it trains: `metrics.jsonl` always, TensorBoard curves when asked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, final

from weightspace.errors import RunError
from weightspace.training.json_lines import JsonLines

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS_FILE = "metrics.jsonl"
RUN_FILE = "run.json"
"""Recipe, seed, versions: what the command line knows of a run."""
TENSORBOARD_FOLDER = "tensorboard"


@final
class RunLog:
    """Writes the records of a run. Use as a context manager.

    Args:
        run_dir: The run's folder; `metrics.jsonl` in it is appended to, `tensorboard/` holds the curves.
        records: Records that `metrics.jsonl` already holds (a resumed run).
        step: Steps done before (a resumed run): TensorBoard drops what an interrupted process wrote behind them.
        tensorboard: Whether to write TensorBoard curves too.
        silent: Whether to write nothing at all: another process of the run does.

    Raises:
        RunError: The files cannot be written, or TensorBoard is asked for and not installed.
    """

    def __init__(
        self, run_dir: Path, *, records: int = 0, step: int = 0, tensorboard: bool = False, silent: bool = False
    ) -> None:
        self.records = records
        self._curves = _summary_writer(run_dir / TENSORBOARD_FOLDER, step) if tensorboard and not silent else None
        self._lines = None if silent else JsonLines(run_dir / METRICS_FILE)

    def epoch(self, record: Mapping[str, float | int]) -> None:
        """Log the end of an epoch.

        Args:
            record: epoch, step, train_loss, test_loss, test_accuracy (fraction), lr, seconds (training, cumulative).
        """
        self._write({"kind": "epoch", **record})
        if self._curves is not None:
            for name in ("train_loss", "test_loss", "test_accuracy", "lr"):
                self._curves.add_scalar(name, record[name], int(record["step"]))
            self._curves.flush()

    def layers(self, step: int, measurements: Mapping[str, Mapping[str, float]]) -> None:
        """Log what the rules measured at one step.

        Args:
            step: The training step, counted from 1.
            measurements: Parameter name to `{"rho": .., "shrinkage": ..}`.
        """
        for name, values in measurements.items():
            numbers = {key: value for key, value in values.items() if math.isfinite(value)}
            self._write({"kind": "layer", "step": step, "name": name, **numbers})
            if self._curves is not None:
                for key, value in numbers.items():
                    self._curves.add_scalar(f"{key}/{name}", value, step)

    def temperatures(self, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Log what a sampler's thermometers show at one step.

        Args:
            step: The training step, counted from 1.
            records: One a group: `name`, `target`, `kinetic`, `configurational` and so on.
        """
        for record in records:
            self._write({"kind": "temperature", "step": step, **record})
            if self._curves is not None:
                for key in ("kinetic", "configurational"):
                    if math.isfinite(record[key]):
                        self._curves.add_scalar(f"{key}_temperature/{record['name']}", record[key], step)

    def sync(self) -> None:
        """Wait until the records are on the disk; to be called before a checkpoint counts them."""
        if self._lines is not None:
            self._lines.sync()

    def _write(self, record: Mapping[str, object]) -> None:
        if self._lines is not None:
            self._lines.write(record)
        self.records += 1

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lines is not None:
            self._lines.close()
        if self._curves is not None:
            self._curves.close()


def delete_curves(run_dir: Path) -> None:
    """Delete the TensorBoard files of an earlier run, which would be drawn into the curves of the next one."""
    for path in (run_dir / TENSORBOARD_FOLDER).glob("events.out.tfevents.*"):
        path.unlink(missing_ok=True)


def _summary_writer(folder: Path, step: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RunError(
            "TensorBoard is not installed; run pip install tensorboard, or leave out --tensorboard"
        ) from error
    try:
        return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
    except OSError as error:
        raise RunError(f"cannot write TensorBoard files to {folder}: {error.strerror or error}") from error
