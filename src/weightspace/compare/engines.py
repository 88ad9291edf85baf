"""Engines: they take jobs, give futures, and may lose workers. Which runs are done again is the caller's to say.

`local` starts processes on this machine (`engines_local`), `ray` hands jobs to a Ray cluster (`engines_ray`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from weightspace.compare.execution import Execution
from weightspace.compare.pool import find_devices, worker_count
from weightspace.files import JsonObject
from weightspace.training.environment import usable_cores

T = TypeVar("T")
MOST_LOSSES = 3  # of one run: what kills its worker three times will kill the fourth


class WorkerLost(Exception):  # noqa: N818 - no error of a job: the job says nothing, its process is gone
    """The process that did a job was killed, or its machine went away; the text says what is known."""


class Engine(Protocol):
    """Where jobs are done.

    Attributes:
        count: Jobs that can run at the same time.
        threads: Threads of each.
        shares_folders: Whether jobs can write to this machine's folders. Otherwise they bring their files back.
    """

    count: int
    threads: int
    shares_folders: bool

    def submit(self, function: Callable[..., T], *arguments: object) -> Future[T]:
        """Have `function(*arguments)` done by a worker; both must be importable and picklable there.

        Returns:
            Its result, its exception, or `WorkerLost`.
        """
        ...

    def interrupt(self) -> None:
        """Ask the running jobs to save their state and stop."""
        ...


@contextmanager
def open_engine(how: Execution, *, jobs: int) -> Generator[Engine, None, None]:
    """An engine that is stopped at once when the body raises, and ends in peace otherwise.

    Args:
        how: Which, how many workers and on what.
        jobs: How many there will be.

    Raises:
        RecipeError: The accelerator is not there.
        RunError: Fewer than one worker is asked for, or the cluster cannot be reached.
    """
    if how.engine.name == "ray":
        from weightspace.compare.engines_ray import ray_engine

        with ray_engine(how.engine.address, workers=how.workers, jobs=jobs, accelerator=how.accelerator) as engine:
            yield engine
        return
    from weightspace.compare.engines_local import local_engine

    devices = find_devices(how.accelerator)
    count = worker_count(how.workers, jobs, devices)
    with local_engine(count, max(1, usable_cores() // count), devices.cuda) as engine:
        yield engine


@dataclass
class Losses:
    """How often the worker of each run was lost.

    Attributes:
        counts: By the run's name.
    """

    counts: JsonObject = field(default_factory=dict)

    def again(self, name: str) -> bool:
        """Count one more loss; whether the run is worth doing again."""
        self.counts[name] = self.counts.get(name, 0) + 1
        return self.counts[name] < MOST_LOSSES

    def sentence(self, error: WorkerLost) -> str:
        """Why a run is given up."""
        return (
            f"its worker was lost {MOST_LOSSES} times ({error}), perhaps for lack of memory; use fewer --workers if it "
            "happens again"
        )


def relay(
    source: Future[T],
    translate: Callable[[BaseException], BaseException],
    delay: Callable[[BaseException], float] = lambda _: 0.0,
) -> Future[T]:
    """A future with the outcome of another one and a translation of its exception.

    Args:
        source: The other one.
        translate: Gives the exception to raise for one.
        delay: Seconds to keep an exception back.
    """
    target: Future[T] = Future()
    target.set_running_or_notify_cancel()

    def pass_on(done: Future[T]) -> None:
        error = WorkerLost("the job was cancelled") if done.cancelled() else done.exception()
        if error is None:
            target.set_result(done.result())
        elif seconds := delay(error):
            timer = threading.Timer(seconds, target.set_exception, [translate(error)])
            timer.daemon = True
            timer.start()
        else:
            target.set_exception(translate(error))

    source.add_done_callback(pass_on)
    return target
