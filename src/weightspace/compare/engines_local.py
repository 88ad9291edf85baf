"""Worker processes on this machine, each in a pool of its own: one that is killed takes no other one with it.

A `ProcessPoolExecutor` with several workers ends all of them when one is killed, and cannot say whose job it was.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from weightspace.compare.engines import WorkerLost, relay
from weightspace.compare.worker import start_worker

T = TypeVar("T")


class _Slot:
    """A place for one worker process, which is started when a job comes and again after it was lost."""

    def __init__(self, threads: int, gpu: str | None) -> None:
        self._arguments = (threads, gpu)  # its successor gets the same GPU
        self._executor = self._start()
        self.future: Future[Any] | None = None

    @property
    def is_free(self) -> bool:
        """Whether the last job it got has ended."""
        return self.future is None or self.future.done()

    @property
    def processes(self) -> list[BaseProcess]:
        """The worker, if it has started."""
        # Public only from Python 3.14 on (kill_workers, terminate_workers).
        return list((self._executor._processes or {}).values())  # noqa: SLF001

    def submit(self, function: Callable[..., T], *arguments: object) -> Future[T]:
        """Have a job done, by a new worker if the last one was lost."""
        try:
            self.future = self._executor.submit(function, *arguments)
        except BrokenProcessPool:
            self.stop()
            self._executor = self._start()
            self.future = self._executor.submit(function, *arguments)
        return self.future

    def stop(self, *, wait: bool = True) -> None:
        """Let the worker end after its job."""
        self._executor.shutdown(wait=wait, cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, mp_context=context, initializer=start_worker, initargs=self._arguments)


class LocalEngine:
    """Worker processes of this machine; see `weightspace.compare.engines.Engine`.

    Args:
        count: How many.
        threads: Threads of each.
        gpus: GPUs to hand out in turn, as `CUDA_VISIBLE_DEVICES` writes them; empty for none.
    """

    shares_folders = True

    def __init__(self, count: int, threads: int, gpus: Sequence[str] = ()) -> None:
        self.count, self.threads = count, threads
        self._slots = [_Slot(threads, gpus[place % len(gpus)] if gpus else None) for place in range(count)]

    def submit(self, function: Callable[..., T], *arguments: object) -> Future[T]:
        """Have a job done by the first worker that is free; behind others, if none is."""
        slot = next((slot for slot in self._slots if slot.is_free), self._slots[0])
        return relay(slot.submit(function, *arguments), _lost_or_error)

    def interrupt(self) -> None:
        """Send SIGTERM to all workers."""
        for process in self._processes():
            with suppress(OSError):
                process.terminate()

    def kill(self) -> None:
        """End all workers at once."""
        for process in self._processes():
            process.kill()
        self.close()

    def close(self) -> None:
        """Let all workers end in peace."""
        for slot in self._slots:
            slot.stop(wait=False)
        for slot in self._slots:
            slot.stop()

    def _processes(self) -> list[BaseProcess]:
        return [process for slot in self._slots for process in slot.processes]


@contextmanager
def local_engine(count: int, threads: int, gpus: Sequence[str] = ()) -> Generator[LocalEngine, None, None]:
    """Workers of this machine, killed at once when the body raises.

    Args:
        count: How many.
        threads: Threads of each.
        gpus: GPUs to hand out in turn; empty for none.
    """
    engine = LocalEngine(count, threads, gpus)
    try:
        yield engine
    except BaseException:
        engine.kill()
        raise
    engine.close()


def _lost_or_error(error: BaseException) -> BaseException:
    return WorkerLost("its process was killed") if isinstance(error, BrokenProcessPool) else error
