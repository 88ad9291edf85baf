"""Kills a run before every single file operation in turn: all the states that a killed process can leave behind."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reliability.kills import Kill, attempt
from reliability.outcomes import outcome, unequal
from reliability.resume_trials import CHAINS, SHORT, train_anew, train_by_command, train_or_sample

_EVERY = 2  # steps between two checkpoints
_MIDWAY = 25  # a file operation in the middle of the short run


@dataclass(frozen=True)
class Call:
    """A function of a folder in a process of its own, with its other arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    kill: Kill | None = None

    def __call__(self, folder: Path, kill: Kill | None = None) -> bool:
        """Calls it; whether it was killed."""
        return attempt(self.function, folder, *self.arguments, kill=kill or self.kill).is_killed


_RUN = Call(train_or_sample, (SHORT, _EVERY))
_SAMPLE = Call(train_or_sample, (CHAINS, _EVERY))


@dataclass(frozen=True)
class Scenario:
    """What is killed before each of its file operations, and what goes on then.

    Attributes:
        name: For details.
        killed: What is killed.
        resumed: What goes on.
        before: What has been in the folder before.
        power_cut: Whether records that were not synced are lost too.
        step: 1: every operation; 3: every third, for what has many.
    """

    name: str
    killed: Call = _RUN
    resumed: Call = _RUN
    before: Call | None = None
    power_cut: bool = False
    step: int = 1


_COMMAND, _COMMAND_RESUMED = (Call(train_by_command, (SHORT, _EVERY, resume)) for resume in (False, True))
SCENARIOS = (
    Scenario("a run"),
    Scenario("a run, the power cut", power_cut=True),
    Scenario("a run that goes on", before=Call(train_or_sample, (SHORT, _EVERY), Kill(at=_MIDWAY))),
    Scenario("a run in the place of a finished one", Call(train_anew, (SHORT, _EVERY)), before=_RUN),
    Scenario("the command line", _COMMAND, _COMMAND_RESUMED),
    Scenario("two chains", _SAMPLE, _SAMPLE, step=3),
)


def kill_everywhere(scenario: Scenario, *, step: int = 1) -> tuple[int, list[str]]:
    """Kills a process before each of its file operations in turn, goes on, and compares with an undisturbed run.

    Args:
        scenario: What is killed.
        step: Leaves out more operations: 5 tries every fifth of the scenario's.

    Returns:
        How many kills, and what was not equal: nothing, if every state can be gone on from.
    """
    different: list[str] = []
    kills = 0
    with tempfile.TemporaryDirectory() as name:
        start = Path(name) / "start"
        start.mkdir()
        if scenario.before is not None:
            scenario.before(start)
        whole = Path(name) / "whole"
        scenario.resumed(whole)
        expected = outcome(whole)
        while True:
            at = 1 + scenario.step * step * kills
            folder = Path(name) / f"killed-{at}"
            shutil.copytree(start, folder)
            if not scenario.killed(folder, Kill(at=at, power_cut=scenario.power_cut)):
                return kills, different
            kills += 1
            scenario.resumed(folder)
            texts = [*unequal(outcome(folder), expected), *(f"{p.name} is left" for p in folder.rglob("*.tmp"))]
            different += [f"{scenario.name}, operation {at}: {text}" for text in texts]
