"""Many small LAPACK problems at once: a single-threaded worker for each core, not many threads on each matrix."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")

LARGE = 1024  # rows of a matrix from which on LAPACK's own threads pay

# torch's thread count belongs to the process: two calls that both change it must not restore each other's value.
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Workers:
    """As many single-threaded workers as the caller's torch may use threads; see `workers`."""

    count: int

    def map(
        self, function: Callable[[Task], Result], tasks: Sequence[Task], *, side: int, spread: bool = True
    ) -> list[Result]:
        """`[function(task) for task in tasks]`, over the workers if `spread`.

        torch releases Python's lock inside LAPACK, so threads suffice. A single task runs in place, with all threads if
        `side`, the smaller side of its matrices, is at least `LARGE`.

        Raises:
            Exception: The first one that a task raised.
        """
        size = min(self.count, len(tasks))
        if size > 1 and spread:
            with ThreadPoolExecutor(size, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                return list(pool.map(function, tasks))
        if side < LARGE:
            return [function(task) for task in tasks]
        torch.set_num_threads(self.count)
        try:
            return [function(task) for task in tasks]
        finally:
            torch.set_num_threads(1)


@contextmanager
def workers() -> Generator[Workers]:
    """Inside, torch has one thread in the whole process; the caller's count is restored afterwards, errors or not.

    Everything between the LAPACK calls is small too, and waiting for a second thread costs more than it brings. Not
    reentrant: inside, a second `workers()` of the same thread never returns, one of another thread waits.
    """
    with _one_at_a_time:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield Workers(threads)
        finally:
            torch.set_num_threads(threads)
