"""Column "resume": runs killed with signal 9 at random moments end with the same bits as runs that were left alone."""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reliability.cases import cases
from reliability.findings import METHODS, Finding
from reliability.kills import Kill, attempt
from reliability.outcomes import outcome, unequal
from reliability.resume_faults import SCENARIOS, kill_everywhere
from reliability.resume_scripts import THROUGH, resumed_differences
from reliability.resume_trials import TRIALS, Trial, train_or_sample

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
        runs: Runs that were killed at least once, and finished.
        different: What was not equal, by run; empty if all is.
    """

    trial: str
    seed: int
    kills: int = 0
    during_a_write: int = 0
    runs: int = 0
    different: list[str] = field(default_factory=list[str])


def measure(*, quick: bool) -> list[Finding]:
    """Kills every trial of every method until each method has had its kills; then one run at every file operation."""
    found = [_of_method(method, quick=quick) for method in METHODS]
    return [*found, _of_file_operations(quick=quick)]


def _of_method(method: str, *, quick: bool) -> Finding:
    kills = QUICK_KILLS if quick else KILLS
    trials = [trial for trial in TRIALS if trial.method == method][: 1 if quick else None]
    share = -(-kills // len(trials))
    found = [kill_at_random(trial, kills=share, seed=k) for k, trial in enumerate(trials)]
    total, runs = sum(f.kills for f in found), sum(f.runs for f in found)
    equal = runs - sum(len({text.split(":")[0] for text in f.different}) for f in found)
    scripts = _scripts(method, quick=quick)
    unequal_scripts = {name: texts for name, texts in scripts.items() if texts}
    details: dict[str, Any] = {
        "kills": total,
        "kills during a write": sum(f.during_a_write for f in found),
        "runs": runs,
        "scripts": len(scripts),
        "scripts that differ": unequal_scripts,
        "trials": [vars(f) for f in found],
    }
    text = f"{total} kills: {equal} of {runs} runs bit-equal"
    return Finding(method, text, holds=equal == runs and total >= kills and not unequal_scripts, details=details)


def _scripts(method: str, *, quick: bool) -> dict[str, list[str]]:
    """What differs in scripts without the trainer that stop and go on, by case and kind of file."""
    mine = [case for case in cases() if case.method == method][: 2 if quick else None]
    return {f"{case.name}, {kind}": resumed_differences(case, kind) for case in mine for kind in THROUGH}


def _of_file_operations(*, quick: bool) -> Finding:
    found = {s.name: kill_everywhere(s, step=7 if quick else 1) for s in SCENARIOS[: 1 if quick else None]}
    kills = sum(number for number, _ in found.values())
    different = [text for _, texts in found.values() for text in texts]
    details = {"kills by scenario": {name: number for name, (number, _) in found.items()}, "different": different}
    return Finding("all", f"{kills} kills at file operations", holds=not different, details=details)


def kill_at_random(trial: Trial, *, kills: int, seed: int) -> Killed:
    """Kills a trial until it has been killed so often and the last run is finished; compares every finished run.

    The moments are drawn evenly between the beginning of a process and the time that an undisturbed one takes, so that
    the building of the model, steps and the writing of files are all met.
    """
    moments = random.Random(seed)
    found = Killed(trial.name, seed)
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        attempt(train_or_sample, whole, trial, None)
        longest = attempt(train_or_sample, Path(name) / "timed", trial, EVERY).seconds
        expected = outcome(whole)
        while found.kills < kills:
            before = found.kills
            folder = Path(name) / f"run-{before}-{found.runs}"
            while _is_killed(folder, trial, moments.uniform(0.0, longest), found):
                pass
            found.runs += found.kills > before  # one that ended before its moment shows nothing
            found.different += [f"run {found.runs}: {text}" for text in unequal(outcome(folder), expected)]
            shutil.rmtree(folder)
    return found


def _is_killed(folder: Path, trial: Trial, after: float, found: Killed) -> bool:
    ended = attempt(train_or_sample, folder, trial, EVERY, kill=Kill(after))
    found.kills += ended.is_killed
    found.during_a_write += ended.is_killed and any(folder.rglob(_LEFTOVERS))
    return ended.is_killed
