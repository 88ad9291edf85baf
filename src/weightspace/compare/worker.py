"""What happens inside a worker process: load the data once, then train one job after the other.

Workers are spawned, not forked: CUDA and thread pools do not survive a fork. A worker ignores Ctrl-C (the parent
decides and kills it) and ends itself when the parent is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightspace.compare.directory import INCOMING_FOLDER, set_aside
from weightspace.compare.plan import HOLD_OUT_SEED, Job
from weightspace.compare.records import finished_run, read_result
from weightspace.errors import RunError, WeightspaceError
from weightspace.files import JsonObject, reason_of, write_bytes_atomically
from weightspace.training.data import Data
from weightspace.training.recipe import Recipe

TrainFunction = Callable[..., JsonObject]
LoadFunction = Callable[[Recipe], Data]
DataInfo = dict[str, Any]

_loaded: dict[str, Data] = {}  # by check sum


@dataclass(frozen=True)
class Order:
    """One job with all that a worker needs to do it.

    Attributes:
        job: The job.
        run_dir: Folder of the comparison.
        validation_fraction: Part of the training set held out in the tuning stage.
        data_checksum: What all runs of this comparison are trained on.
        train: The training function, `weightspace.training.loop.train_run` but for tests.
        load: Gives a recipe's data.
    """

    job: Job
    run_dir: Path
    validation_fraction: float
    data_checksum: str
    train: TrainFunction
    load: LoadFunction


@dataclass(frozen=True)
class Outcome:
    """What came of a job: a whole result in its folder, or the error's one sentence and its traceback.

    Attributes:
        job: The job.
        error: The sentence; empty for none.
        traceback: Of the error.
        files: Of the job's folder, by name and `/`, when it was done where the comparison's folder is not.
    """

    job: Job
    error: str = ""
    traceback: str = ""
    files: tuple[tuple[str, bytes], ...] = ()


def start_worker(threads: int, gpu: str | None) -> None:
    """Prepare a worker process: threads, its own GPU, no Ctrl-C, and an end when the parent ends.

    Args:
        threads: Threads that torch may use in this process.
        gpu: The GPU that it may use, as `CUDA_VISIBLE_DEVICES` writes it; None for all or none.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    import torch

    torch.set_num_threads(threads)


def do_job(order: Order) -> Outcome:
    """Train one job from scratch into its folder. Never raises: an error comes back as text.

    What an interrupted run left in the folder is deleted first; a finished run of other settings is set aside.
    """
    job = order.job
    try:
        _train(order)
    except WeightspaceError as error:
        return Outcome(job, error=str(error), traceback=traceback.format_exc())
    except OSError as error:  # a full disk, a folder that went away: no bug
        where = f" ({error.filename})" if error.filename else ""
        return Outcome(job, error=f"{reason_of(error)}{where}", traceback=traceback.format_exc())
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the parent reports a bug with the job's name
        return Outcome(job, error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
    return Outcome(job)


def do_job_elsewhere(order: Order) -> Outcome:
    """Train one job in a temporary folder and bring its files along: for workers that may be on other machines.

    A worker that is lost, or only seems to be, has then written nothing where another one trains the same job.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="weightspace-") as folder:
            outcome = do_job(replace(order, run_dir=Path(folder)))
            root = Path(folder) / order.job.directory
            paths = [] if outcome.error else [path for path in sorted(root.rglob("*")) if path.is_file()]
            files = tuple((path.relative_to(root).as_posix(), path.read_bytes()) for path in paths)
    except OSError as error:
        return Outcome(order.job, error=reason_of(error), traceback=traceback.format_exc())
    return replace(outcome, files=files)


def deliver(outcome: Outcome, run_dir: Path) -> None:
    """Put the files that a job brought along into its folder, all of them or none.

    Raises:
        RunError: They cannot be written, or their names lead elsewhere.
    """
    directory = run_dir / outcome.job.directory
    incoming = run_dir / INCOMING_FOLDER
    try:
        shutil.rmtree(incoming, ignore_errors=True)
        for name, content in outcome.files:
            path = incoming / name
            if not path.resolve().is_relative_to(incoming.resolve()):
                raise RunError(f"the run '{outcome.job.name}' brought a file named '{name}', which is none of its own")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes_atomically(path, content)
        make_room(run_dir, outcome.job)
        directory.parent.mkdir(parents=True, exist_ok=True)
        incoming.rename(directory)
    except OSError as error:
        raise RunError(f"cannot write the files of '{outcome.job.name}' to {directory}: {reason_of(error)}") from error


def make_room(run_dir: Path, job: Job) -> None:
    """Empty a job's folder: what an interrupted run left is deleted, a finished run of other settings set aside.

    Raises:
        OSError: It cannot be deleted or moved.
    """
    directory = run_dir / job.directory
    if finished_run(directory) is not None:
        set_aside(run_dir, job.directory)
    elif directory.exists():
        shutil.rmtree(directory)


def _train(order: Order) -> None:
    job = order.job
    data = _data_of(order)
    if job.stage == "tune":
        data = data.hold_out(order.validation_fraction, seed=HOLD_OUT_SEED)
    directory = order.run_dir / job.directory
    make_room(order.run_dir, job)
    order.train(job.recipe, directory, seed=job.seed, data=data)
    if read_result(order.run_dir, job) is None:
        raise RunError(
            f"training ended without a whole result.json in {directory}; a function given as train= must write one"
        )


def check_data(info: DataInfo, checksum: str | None) -> None:
    """Refuse other images than those that the comparison was started with.

    Args:
        info: `describe_data` of what was found now.
        checksum: That of the comparison, or None at its start.

    Raises:
        RunError: They are not the same.
    """
    if checksum is not None and info["checksum"] != checksum:
        raise RunError(
            f"the data '{info['name']}' found now ({info['source']}) are not those that this comparison "
            "was started with; restore those, or compare into a new folder"
        )


def describe_data(data: Data) -> DataInfo:
    """Facts about a data set for `compare.json`: name, source, sizes, classes and a check sum of every byte.

    Cost: one pass over the images, 0.1 s for CIFAR-10.
    """
    return data.describe()


def _data_of(order: Order) -> Data:
    """The comparison's images: loaded and checked at a worker's first job, kept for the others."""
    if order.data_checksum not in _loaded:
        data = order.load(order.job.recipe)
        check_data(describe_data(data), order.data_checksum)
        _loaded[order.data_checksum] = data
    return _loaded[order.data_checksum]


def _end_with_parent() -> None:
    """Wait until the parent process is gone, however it ended, and end at once: nobody would read the result."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
