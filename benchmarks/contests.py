"""The frame of side-by-side measurements: a contest asks one question, contestants answer it, and are timed in turns.

    answer     a contestant's error, measured in float64, is at most the contest's tolerance; who errs more is shown,
               and is nobody's rival
    ratio      best rival's time / our time, turn by turn; median and quartiles
    verdict    first: even the lower quartile is above 1; behind: even the upper one is below 1; level: in between
    floor      what the question costs at least: bytes at the rate of a copy or sum, flops at that of a matrix product,
               whichever takes longer

What is measured is a plain dictionary, as it stands in docs/benchmarks/contests.json.
"""

from __future__ import annotations

import importlib
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from benchmarks.timing import compared, device, turns

Kind = Literal["ours", "peer", "by hand", "reference"]
Clock = Literal["wall", "cpu"]
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
SLOW_SHARE, SLOW_TURNS = 0.1, 3  # who takes more than this share of the time budget in one call takes so many turns
BELOW = 1e-6  # an error so far below zero is rounding; further below, a bound is none
ALONE = "alone"


@dataclass(frozen=True)
class Running:
    """A contestant with its weights and gradients in place.

    Attributes:
        call: What is timed.
        error: How far the answer is from what was asked, from float64; after the calls.
    """

    call: Callable[[], object]
    error: Callable[[], float] | None = None


@dataclass(frozen=True)
class Entrant:
    """Who takes part.

    Attributes:
        name: As in the table, in Markdown.
        kind: "ours"; "peer", a package; "by hand", what one writes with torch alone; "reference", something else that
            is no answer, for scale.
        build: Makes it ready to run.
        package: The module that it needs besides torch.
    """

    name: str
    kind: Kind
    build: Callable[[], Running]
    package: str = ""


@dataclass(frozen=True)
class Floor:
    """What the question costs at least, and why, in words."""

    words: str
    bytes: float = 0.0
    flops: float = 0.0

    def seconds(self, rates: Rates) -> float:
        """Whichever takes longer."""
        return max(self.bytes / rates.bandwidth, self.flops / rates.flops)


@dataclass(frozen=True)
class Rates:
    """What this machine does: bytes a second of a copy or a sum in place (read plus written), flops a second of a product."""

    bandwidth: float
    flops: float


@dataclass(frozen=True)
class Contest:
    """A question and those who answer it.

    Attributes:
        name: For the command line.
        title: A few words.
        question: What is asked, in plain words.
        size: Of what.
        error: What the error is, in words.
        tolerance: Errors up to this are answers.
        entrants: All of them, small if told so.
        floor: Of the question, small if told so; None where nothing simple bounds it.
    """

    name: str
    title: str
    question: str
    size: str
    error: str
    tolerance: float
    entrants: Callable[[bool], Sequence[Entrant]]
    floor: Callable[[bool], Floor] | None = None

    def entrant(self, name: str, *, quick: bool) -> Entrant:
        """By its name."""
        return next(entrant for entrant in self.entrants(quick) if entrant.name == name)


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        clock: "wall", or "cpu": the processor's time of this process, where others use the machine.
        seconds: For the turns of one contest, about.
        rounds: Turns at most.
        quick: Small, to see that it runs.
        peak: The peak memory of a contestant in MiB, by the contest's name and its own; None leaves memory out.
    """

    clock: Clock = "wall"
    seconds: float = 12.0
    rounds: int = 60
    quick: bool = False
    peak: Callable[[str, str], float | None] | None = None


@dataclass
class _Answer:
    """One contestant's record."""

    name: str
    kind: str
    package: str
    times: list[float] = field(default_factory=list[float])
    error: float | None = None
    peak_mib: float | None = None
    why_not: str = ""

    def record(self) -> dict[str, Any]:
        """As in the file; seconds become milliseconds."""
        row = asdict(self)
        times = row.pop("times")
        row["turns"], row["ms"] = len(times), statistics.median(times) * 1e3 if times else None
        return row


def measured_rates(settings: Settings) -> Rates:
    """The best of many calls, with the present threads and clock: a floor must not rise because the machine is busy."""
    rows, side = (1, 64) if settings.quick else (45, 1024)
    source, matrix = torch.randn(rows, 2**18, device=device()), torch.randn(side, side, device=device())
    target, product = torch.empty_like(source), torch.empty_like(matrix)
    calls: dict[str, Callable[[], object]] = {
        "copy": lambda: target.copy_(source),
        "sum": lambda: target.add_(source),
        "product": lambda: torch.mm(matrix, matrix, out=product),
    }
    best = {
        name: min(times) for name, times in turns(calls, rounds=30, warm_up=3, clock=CLOCKS[settings.clock]).items()
    }
    # A copy also reads the lines that it overwrites; what is changed in place was read anyway.
    bandwidth = max(8.0 / best["copy"], 12.0 / best["sum"]) * source.numel()
    return Rates(bandwidth, 2.0 * side**3 / best["product"])


def missing(package: str) -> str:
    """Why a package cannot be used; empty if it can."""
    if not package:
        return ""
    try:
        importlib.import_module(package)
    except Exception as error:  # noqa: BLE001  # a peer may fail in any way when it is imported
        return f"{type(error).__name__}: {error}"
    return ""


def measure(contest: Contest, settings: Settings, rates: Rates) -> dict[str, Any]:
    """Times every contestant in turns, then asks for errors and memory; the record as in the file."""
    entrants = list(contest.entrants(settings.quick))
    answers = {e.name: _Answer(e.name, e.kind, e.package) for e in entrants}
    running = {e.name: ready for e in entrants if (ready := _ready(e, answers[e.name])) is not None}
    _take_turns(running, answers, settings)
    for name, ready in running.items():
        if ready.error is not None and not answers[name].why_not:
            answers[name].error = ready.error()
    running.clear()
    if settings.peak is not None:
        for answer in answers.values():
            if not answer.why_not:
                answer.peak_mib = settings.peak(contest.name, answer.name)
    floor = None if contest.floor is None else contest.floor(settings.quick)
    return {
        "title": contest.title,
        "question": contest.question,
        "size": contest.size,
        "error": contest.error,
        "tolerance": contest.tolerance,
        "floor": None if floor is None else {**asdict(floor), "ms": 1e3 * floor.seconds(rates)},
        "contestants": [answer.record() for answer in answers.values()],
        **judged(list(answers.values()), contest.tolerance),
    }


def _ready(entrant: Entrant, answer: _Answer) -> Running | None:
    answer.why_not = missing(entrant.package)
    if answer.why_not:
        return None
    try:
        return entrant.build()
    except Exception as error:
        if entrant.kind == "ours":
            raise
        answer.why_not = f"failed: {type(error).__name__}: {error}"
        return None


def _take_turns(running: Mapping[str, Running], answers: Mapping[str, _Answer], settings: Settings) -> None:
    """A first call each, which is not counted; three turns of all; then turns of all but the slow until time is up."""
    clock, calls = CLOCKS[settings.clock], dict[str, Callable[[], object]]()
    for name, ready in running.items():
        try:
            ready.call()
        except Exception as error:
            if answers[name].kind == "ours":
                raise
            answers[name].why_not = f"failed: {type(error).__name__}: {error}"
            continue
        calls[name] = ready.call
    begin = time.perf_counter()
    found = turns(calls, rounds=SLOW_TURNS, warm_up=0, seconds=math.inf, clock=clock)
    quick_ones = {name: call for name, call in calls.items() if min(found[name]) < SLOW_SHARE * settings.seconds}
    left = settings.seconds - (time.perf_counter() - begin)
    more = turns(quick_ones, rounds=settings.rounds - SLOW_TURNS, warm_up=0, seconds=left, fewest=2, clock=clock)
    for name, times in found.items():
        answers[name].times = times + more.get(name, [])


def judged(answers: Sequence[_Answer], tolerance: float) -> dict[str, Any]:
    """Who is ours, who the best rival, the quartiles of rival / ours, and the verdict."""
    able = [a for a in answers if a.times and is_answer(a.error, tolerance)]
    our_own = [a for a in able if a.kind == "ours"]
    rivals = [a for a in able if a.kind in {"peer", "by hand"}]
    if not our_own:
        return {"ours": None, "rival": None, "ratio": None, "verdict": "no answer of ours"}
    ours = min(our_own, key=lambda a: statistics.median(a.times))
    if not rivals:
        return {"ours": ours.name, "rival": None, "ratio": None, "verdict": ALONE}
    rival = min(rivals, key=lambda a: statistics.median(a.times))
    timing = compared(rival.times, ours.times)
    return {
        "ours": ours.name,
        "rival": rival.name,
        "ratio": [timing.lower, timing.ratio, timing.upper],
        "verdict": verdict(timing.lower, timing.upper),
    }


def is_answer(error: float | None, tolerance: float) -> bool:
    """Whether an error counts as an answer; who has none is trusted."""
    return error is None or -BELOW <= error <= tolerance


def verdict(lower: float, upper: float) -> str:
    """From the quartiles of rival / ours."""
    return "first" if lower > 1 else "behind" if upper < 1 else "level"
