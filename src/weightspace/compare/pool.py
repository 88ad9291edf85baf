"""The workers of a comparison: how many, with which GPU, and the signals that stop them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from weightspace.errors import RecipeError, RunError
from weightspace.training.environment import usable_cores
from weightspace.training.interrupt import Interrupted

_ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "mps")


class ComparisonInterrupted(Interrupted):
    """A signal stopped the comparison; everything finished is on disk. `exit_code` is what a shell expects."""


@contextmanager
def signals(run_dir: Path, again: str) -> Generator[None, None, None]:
    """Turn Ctrl-C and SIGTERM into `ComparisonInterrupted`. Only the main thread can: elsewhere nothing changes.

    Args:
        run_dir: Folder of the comparison, for the message.
        again: What continues it, in words.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, _frame: FrameType | None) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)  # the workers are being killed: a second signal gains nothing
        raise ComparisonInterrupted(f"interrupted; finished runs are kept in {run_dir}, and {again} continues", number)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def worker_count(asked: int | None, jobs: int, devices: Devices) -> int:
    """Worker processes to start: as asked, else one per accelerator, else one per usable core; never more than jobs.

    Raises:
        RunError: Fewer than one is asked for.
    """
    refuse_count(asked)
    return min(asked or devices.count or usable_cores(), jobs)


def refuse_count(asked: int | None) -> None:
    """Raises RunError for fewer than one worker."""
    if asked is not None and asked < 1:
        raise RunError(f"a comparison needs at least one worker, got {asked}; leave it out for one per core or GPU")


@dataclass(frozen=True)
class Devices:
    """The accelerators of a comparison.

    Attributes:
        count: How many; 0 when the processor does the work.
        cuda: Those that workers take in turn, as `CUDA_VISIBLE_DEVICES` writes them; empty for other kinds.
    """

    count: int
    cuda: tuple[str, ...] = ()


def find_devices(accelerator: str) -> Devices:
    """The accelerators that `--accelerator` means on this machine.

    Args:
        accelerator: "auto" (a GPU if there is one), "cpu", "cuda" (or "gpu"), "mps".

    Raises:
        RecipeError: An unknown name, or an accelerator that this machine does not have.
    """
    import torch

    if accelerator not in _ACCELERATORS:
        raise RecipeError(f"cannot use the accelerator '{accelerator}'; known are {', '.join(_ACCELERATORS)}")
    has_mps = torch.backends.mps.is_available()
    cuda = _gpus() if torch.cuda.is_available() and accelerator in {"auto", "cuda", "gpu"} else ()
    if cuda:
        return Devices(len(cuda), cuda)
    if has_mps and accelerator in {"auto", "gpu", "mps"}:
        return Devices(1)
    if accelerator in {"cuda", "gpu", "mps"}:
        raise RecipeError(f"cannot use the accelerator '{accelerator}': this machine has none that torch can use")
    return Devices(0)


def _gpus() -> tuple[str, ...]:
    import torch

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen:
        return tuple(part.strip() for part in chosen.split(",") if part.strip())
    return tuple(str(number) for number in range(torch.cuda.device_count()))
