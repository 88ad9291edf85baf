"""What happens inside a worker process: load the data once, then train one job after the other.

Workers are spawned, not forked: CUDA and thread pools do not survive a fork. A worker ignores Ctrl-C (the parent
decides and kills it) and ends itself when the parent is gone.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from weightspace.compare.plan import HOLD_OUT_SEED, Job
from weightspace.compare.results import read_result
from weightspace.errors import RunError, WeightspaceError
from weightspace.training.data import ImageData
from weightspace.training.files import JsonObject
from weightspace.training.recipe import Recipe

TrainFunction = Callable[..., JsonObject]
LoadFunction = Callable[[Recipe], ImageData]
DataInfo = dict[str, Any]

_loaded: dict[tuple[object, ...], tuple[ImageData, DataInfo]] = {}


@dataclass(frozen=True)
class Order:
    """One job with all that a worker needs to do it.

    Attributes:
        job: The job.
        run_dir: Folder of the comparison.
        validation_fraction: Part of the training set held out in the tuning stage.
        data_checksum: What earlier runs of this comparison were trained on; None when that is not known yet, or when
            the job's arm sets data of its own.
        train: The training function, `weightspace.training.loop.train_run` but for tests.
        load: Gives a recipe's data.
    """

    job: Job
    run_dir: Path
    validation_fraction: float
    data_checksum: str | None
    train: TrainFunction
    load: LoadFunction


@dataclass(frozen=True)
class Outcome:
    """What came of a job: its result and facts about its data, or the error's one sentence and its traceback."""

    job: Job
    data: DataInfo | None = None
    error: str = ""
    traceback: str = ""


def start_worker(threads: int, counter: Synchronized[int], devices: tuple[str, ...]) -> None:
    """Prepare a worker process: threads, its own GPU, no Ctrl-C, and an end when the parent ends.

    Args:
        threads: Threads that torch may use in this process.
        counter: Shared number of workers started so far.
        devices: GPUs to hand out in turn, as `CUDA_VISIBLE_DEVICES` writes them; empty for none.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if devices:
        with counter.get_lock():
            number = counter.value
            counter.value += 1
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    import torch

    torch.set_num_threads(threads)


def do_job(order: Order) -> Outcome:
    """Train one job from scratch into its folder. Never raises: an error comes back as text.

    What an interrupted run left in the folder is deleted first.
    """
    job = order.job
    try:
        info = _train(order)
    except WeightspaceError as error:
        return Outcome(job, error=str(error), traceback=traceback.format_exc())
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the parent reports a bug with the job's name
        return Outcome(job, error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
    return Outcome(job, data=info)


def _train(order: Order) -> DataInfo:
    job = order.job
    data, info = _whole_data(order)
    if order.data_checksum is not None and info["checksum"] != order.data_checksum:
        raise RunError(
            f"the data '{job.recipe.data.name}' found now ({info['source']}) are not those that this comparison "
            "was started with; restore those, or compare into a new folder"
        )
    if job.stage == "tune":
        data = data.hold_out(order.validation_fraction, seed=HOLD_OUT_SEED)
    directory = order.run_dir / job.directory
    if directory.exists():
        shutil.rmtree(directory)
    order.train(job.recipe, directory, seed=job.seed, data=data)
    if read_result(order.run_dir, job) is None:
        raise RunError(f"training ended without a whole result.json in {directory}")
    return info


def data_key(recipe: Recipe) -> tuple[object, ...]:
    """What decides the images of a recipe: equal keys load once."""
    data = recipe.data
    return (data.name, data.root, data.train_size, data.test_size)


def describe_data(data: ImageData) -> DataInfo:
    """Facts about a data set for `compare.json`: name, source, sizes, classes and a check sum of every byte.

    Cost: one pass over the images, 0.1 s for CIFAR-10.
    """
    digest = hashlib.sha256()
    for tensor in (data.train_images, data.train_labels, data.test_images, data.test_labels):
        digest.update(tensor.contiguous().numpy().data)
    return {
        "name": data.name,
        "label": data.label,
        "source": data.source,
        "train": len(data.train_labels),
        "test": len(data.test_labels),
        "classes": data.num_classes,
        "checksum": f"sha256:{digest.hexdigest()}",
    }


def _whole_data(order: Order) -> tuple[ImageData, DataInfo]:
    key = data_key(order.job.recipe)
    if key not in _loaded:
        data = order.load(order.job.recipe)
        _loaded.clear()  # an arm with data of its own: keep one set in memory, not all
        _loaded[key] = (data, describe_data(data))
    return _loaded[key]


def _end_with_parent() -> None:
    """Wait until the parent process is gone, however it ended, and end at once: nobody would read the result."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
