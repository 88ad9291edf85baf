"""Interleaved timing: the contestants take turns, so that what else the machine does hits all of them alike."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Timing:
    """Median seconds of one contestant, and the quartiles of its ratio to the reference, turn by turn."""

    seconds: float
    ratio: float
    lower: float
    upper: float

    def cells(self) -> str:
        """Two Markdown cells: milliseconds, ratio with quartiles."""
        return f"{self.seconds * 1e3:.3g} | {self.ratio:.2f} ({self.lower:.2f}–{self.upper:.2f})"


def interleave(
    contestants: Mapping[str, Callable[[], object]],
    reference: str,
    *,
    rounds: int = 60,
    warm_up: int = 5,
    seconds: float = 60.0,
    fewest: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times every contestant once a round.

    Args:
        contestants: What to call, by name.
        reference: The name that ratios are taken to.
        rounds: Rounds to keep.
        warm_up: Rounds to throw away.
        seconds: Stop early after this long, with the rounds there are (at least `fewest`).
        fewest: Rounds to keep at least.
        clock: Reads seconds; `time.process_time` counts the processor's, of all threads, on a CPU that others use too.
    """
    times = turns(contestants, rounds=rounds, warm_up=warm_up, seconds=seconds, fewest=fewest, clock=clock)
    return {name: compared(own, times[reference]) for name, own in times.items()}


def turns(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 60,
    warm_up: int = 5,
    seconds: float = 60.0,
    fewest: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every contestant, turn by turn; the arguments are those of `interleave`."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    begin = time.perf_counter()
    for turn in range(rounds + warm_up):
        for name, call in contestants.items():
            synchronize()
            start = clock()
            call()
            synchronize()
            if turn >= warm_up:
                times[name].append(clock() - start)
        if time.perf_counter() - begin > seconds and turn >= warm_up + fewest - 1:
            break
    return times


def compared(own: Sequence[float], reference: Sequence[float]) -> Timing:
    """The median of `own`, and the quartiles of its ratio to the reference's; where one has fewer turns, the first."""
    ratios = [a / b for a, b in zip(own, reference, strict=False)]
    lower, middle, upper = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return Timing(statistics.median(own), middle, lower, upper)


_chosen: list[torch.device] = []  # what `choose_device` was told, if it was


def synchronize() -> None:
    """Waits for the accelerator, if there is one in use."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def device() -> torch.device:
    """What was chosen; else the accelerator if there is one, else the CPU."""
    return _chosen[0] if _chosen else torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_device(name: str | None) -> None:
    """Everything is measured on this device from now on; None leaves it to what there is."""
    _chosen[:] = [] if name is None else [torch.device(name)]


def machine() -> str:
    """One line that says where a number was measured."""
    if device().type == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = lines[0] if lines else name
    count = torch.get_num_threads()
    return f"{name}, {count} thread{'s' if count > 1 else ''}, torch {torch.__version__}"


def gemm_rate(side: int = 1024, clock: Callable[[], float] = time.perf_counter) -> float:
    """Floating-point operations a second of a float32 matrix product with the present number of threads."""
    left, right = torch.randn(side, side, device=device()), torch.randn(side, side, device=device())
    out = torch.empty_like(left)
    calls = {"product": lambda: torch.mm(left, right, out=out)}
    timing = interleave(calls, "product", rounds=20, warm_up=2, clock=clock)["product"]
    return 2 * side**3 / timing.seconds


@contextmanager
def threads(count: int) -> Generator[None]:
    """So many threads for torch inside; the old number afterwards."""
    old = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(old)


def copy_bandwidth(mib: int = 45, clock: Callable[[], float] = time.perf_counter) -> float:
    """Bytes moved a second (read plus written) by a plain copy of as many bytes as ResNet-18's kernels hold."""
    source = torch.randn(mib * 2**18, device=device())
    target = torch.empty_like(source)
    timing = interleave({"copy": lambda: target.copy_(source)}, "copy", rounds=40, clock=clock)["copy"]
    return 2 * source.numel() * source.element_size() / timing.seconds
