"""Column "resume": runs killed with signal 9 at random moments end with the same bits as runs that were left alone."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file

from reliability.findings import METHODS, Finding
from reliability.kills import Attempt, Kill, attempt
from reliability.resume_trials import TRIALS, Trial, train_or_sample
from weightspace.files import read_json
from weightspace.training.json_lines import read_json_lines

KILLS = 20  # of every method at least
QUICK_KILLS = 3
EVERY = 2  # steps between two checkpoints
_NOT_COMPARED = {"seconds", "seconds_per_step", "crc32"}
_LEFTOVERS = "*.tmp"


@dataclass
class Killed:
    """What came of killing one trial again and again.

    Attributes:
        trial: Its name.
        seed: Of the moments.
        kills: Processes that were killed before they ended.
        during_a_write: Those that left a half-written file.
        runs: Runs that were finished in spite of them.
        different: What was not equal, by run; empty if all is.
    """

    trial: str
    seed: int
    kills: int = 0
    during_a_write: int = 0
    runs: int = 0
    different: list[str] = field(default_factory=list[str])


def measure(*, quick: bool) -> list[Finding]:
    """Kills every trial of every method, in turns, until each method has had its kills."""
    return [_of_method(method, kills=QUICK_KILLS if quick else KILLS, quick=quick) for method in METHODS]


def _of_method(method: str, *, kills: int, quick: bool) -> Finding:
    trials = [trial for trial in TRIALS if trial.method == method][: 1 if quick else None]
    share = -(-kills // len(trials))
    found = [kill_at_random(trial, kills=share, seed=k) for k, trial in enumerate(trials)]
    total, runs = sum(f.kills for f in found), sum(f.runs for f in found)
    equal = runs - sum(bool(f.different) for f in found)
    writing = sum(f.during_a_write for f in found)
    text = f"{total} kills, {equal} of {runs} runs bit-equal"
    details = {"kills": total, "kills during a write": writing, "runs": runs, "trials": [vars(f) for f in found]}
    return Finding(method, text, holds=equal == runs and total >= kills, details=details)


def kill_at_random(trial: Trial, *, kills: int, seed: int) -> Killed:
    """Kills a trial until it has been killed so often and the last run is finished; compares every finished run.

    The moments are drawn evenly between the beginning of a process and the time that an undisturbed one takes, so that
    the building of the model, steps and the writing of files are all met.
    """
    moments = random.Random(seed)  # noqa: S311 - reproducible moments, no secrets
    found = Killed(trial.name, seed)
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        attempt(train_or_sample, whole, trial, None)
        longest = attempt(train_or_sample, Path(name) / "timed", trial, EVERY).seconds
        expected = outcome(whole)
        while found.kills < kills:
            folder = Path(name) / f"run-{found.runs}"
            while _is_killed(folder, trial, moments.uniform(0.0, longest), found):
                pass
            found.runs += 1
            found.different += [f"run {found.runs}: {text}" for text in unequal(outcome(folder), expected)]
    return found


def _is_killed(folder: Path, trial: Trial, after: float, found: Killed) -> bool:
    ended = attempt(train_or_sample, folder, trial, EVERY, kill=Kill(after))
    found.kills += ended.is_killed
    found.during_a_write += ended.is_killed and any(folder.rglob(_LEFTOVERS))
    return ended.is_killed


def kill_everywhere(
    start: Callable[[Path], None],
    function: Callable[..., Any],
    arguments: Sequence[Any],
    expected: dict[str, Any],
    *,
    resume: Callable[..., Any] | None = None,
    power_cut: bool = False,
    first: int = 1,
    step: int = 1,
) -> tuple[int, list[str]]:
    """Kills a process before each of its file operations in turn, resumes, and compares what comes of it.

    Args:
        start: Makes the folder as the process finds it.
        function: The process, as in `attempt`.
        arguments: Of it.
        expected: `outcome` of an undisturbed run.
        resume: What goes on after the kill; None: the same function.
        power_cut: Whether what was not synced is lost too.
        first: The first operation to die before.
        step: 1 for every operation; 2 for every second one, and so on.

    Returns:
        How many kills, and what was not equal.
    """
    different: list[str] = []
    kills = 0
    with tempfile.TemporaryDirectory() as name:
        while True:
            at = first + step * kills
            folder = Path(name) / str(at)
            start(folder)
            ended: Attempt = attempt(function, folder, *arguments, kill=Kill(at=at, power_cut=power_cut))
            if not ended.is_killed:
                return kills, different
            kills += 1
            attempt(resume or function, folder, *arguments)
            texts = [*unequal(outcome(folder), expected), *(f"{p.name} is left" for p in folder.rglob(_LEFTOVERS))]
            different += [f"operation {at}: {text}" for text in texts]


def outcome(folder: Path) -> dict[str, Any]:
    """What a finished run, or its chains, leaves: every file's content but for times; checkpoints only by their number."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.name == "metrics.jsonl":
            found[name] = [_without_times(record) for record in read_json_lines(path)]
        elif path.suffix == ".json" and path.name != "run.json":
            found[name] = _without_times(read_json(path))
        elif path.suffix == ".safetensors" and not path.name.startswith("checkpoint-"):
            # Not the file's bytes: safetensors writes the notes of its header in any order.
            found[name] = {key: (str(t.dtype), list(t.shape), _bytes(t)) for key, t in load_file(path).items()}
    return found


def unequal(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Where two outcomes differ."""
    missing = [f"{name} is only in one" for name in sorted(one.keys() ^ other.keys())]
    return missing + [f"{name} differs" for name in sorted(one.keys() & other.keys()) if one[name] != other[name]]


def _without_times(record: Any) -> Any:
    """Without times, and without the check sums of files, whose headers are in any order."""
    if isinstance(record, list):
        return [_without_times(entry) for entry in cast("list[Any]", record)]
    if not isinstance(record, dict):
        return record
    entries = cast("dict[str, Any]", record)
    return {key: _without_times(value) for key, value in entries.items() if key not in _NOT_COMPARED}


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
