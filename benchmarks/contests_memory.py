"""Peak memory of a contestant: how much its calls need on top of weights and gradients.

On a CPU in a fresh process: growth of the largest resident size while the contestant is made from weights and gradients
that are in place, and called twice. A small one of its kind has run before, so that libraries are loaded. On CUDA:
growth of `torch.cuda.max_memory_allocated`, in this process.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from benchmarks.contests import Entrant
from benchmarks.memory import largest_resident_mebibytes
from benchmarks.placed import LISTENERS
from benchmarks.timing import choose_device, device

CALLS = 2
PATIENCE = 120.0  # seconds for one contestant


def peak_of(*, quick: bool) -> Callable[[str, str], float | None]:
    """Measures contestants by the contest's name and their own, on the device in use."""
    if device().type == "cuda":
        return lambda contest, name: on_accelerator(contest, name, quick=quick)
    threads = torch.get_num_threads()
    return lambda contest, name: in_fresh_process(contest, name, quick=quick, threads=threads)


def in_fresh_process(contest: str, name: str, *, quick: bool, threads: int) -> float | None:
    """In a child of a process that has imported everything and done nothing; None if that did not come to an end."""
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload(["benchmarks.contests_list", "scipy.linalg"])
    with context.Pool(1, maxtasksperchild=1) as pool, suppress(multiprocessing.TimeoutError):
        return pool.apply_async(resident_growth, (contest, name, quick, threads)).get(PATIENCE)
    return None


def resident_growth(contest: str, name: str, quick: bool, threads: int) -> float:
    """Of this process, in MiB."""
    from benchmarks.contests_list import CONTESTS

    torch.set_num_threads(threads)
    choose_device("cpu")
    small = CONTESTS[contest].entrant(name, quick=True).build()
    small.call()
    gc.collect()
    before = made_and_called(CONTESTS[contest].entrant(name, quick=quick), forget_the_past)
    return max(0.0, largest_resident_mebibytes() - before)


def made_and_called(entrant: Entrant, begin: Callable[[], float]) -> float:
    """What `begin` said when the first weights and gradients were in place, or before all if nobody said so."""
    sizes: list[float] = []
    LISTENERS.append(lambda: sizes.append(begin()) if not sizes else None)
    try:
        before = begin()
        call = entrant.build().call
    finally:
        LISTENERS.pop()
    for _ in range(CALLS):
        call()
    return sizes[0] if sizes else before


def forget_the_past() -> float:
    """Gives free memory back and lets the peak begin anew, where Linux can; the resident size then, in MiB."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    return largest_resident_mebibytes()


def on_accelerator(contest: str, name: str, *, quick: bool) -> float:
    """Growth of what torch has allocated, in MiB."""
    from benchmarks.contests_list import CONTESTS

    def begin() -> float:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())

    before = made_and_called(CONTESTS[contest].entrant(name, quick=quick), begin)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
