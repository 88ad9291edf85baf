"""Which runs of a comparison are left, and in which order they are handed out.

Tuning runs come first, all arms in turn; the final runs of an arm join as soon as its own tuning is complete, and start
when no tuning run is left to hand out. So the arms also take turns in the final stage, seed by seed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from pathlib import Path

from weightspace.compare.notes import settings_text
from weightspace.compare.plan import Arm, Job, Plan, final_jobs, tuning_jobs
from weightspace.compare.records import read_result
from weightspace.compare.results import tuning_choice


class Schedule:
    """The runs that have no whole result yet.

    Args:
        plan: The comparison's plan.
        run_dir: Its folder: runs with a whole result in it are never handed out.
        chance: Accuracy that a diverged tuning run counts with.
        tell: Called with a sentence when tuning has chosen.

    Attributes:
        done: Runs that are finished, now or before.
    """

    def __init__(self, plan: Plan, run_dir: Path, *, chance: float, tell: Callable[[str], None]) -> None:
        self._plan, self._run_dir, self._chance, self._tell = plan, run_dir, chance, tell
        self.done = 0
        self._ready: list[tuple[tuple[int, ...], int, Job]] = []
        self._arms = {arm.name: arm for arm in plan.arms}
        self._tuning_left: dict[str, int] = {}  # tuning runs that an arm's final runs wait for
        for arm in plan.arms:
            self._tuning_left[arm.name] = self._add(tuning_jobs(plan, arm))
            if not self._tuning_left[arm.name]:
                self._add_final_runs(arm)

    def __len__(self) -> int:
        """Runs that can start now."""
        return len(self._ready)

    def take(self) -> Job:
        """The next run to start; it is not handed out again."""
        return heapq.heappop(self._ready)[-1]

    def again(self, job: Job) -> None:
        """Hand out a run once more whose worker was lost: before all that come after it."""
        heapq.heappush(self._ready, (job.order, -1, job))

    def finished(self, job: Job) -> None:
        """Count a run that has its whole result now, and add the arm's final runs behind its last tuning run."""
        self.done += 1
        if job.stage == "tune":
            self._tuning_left[job.arm] -= 1
            if not self._tuning_left[job.arm]:
                self._add_final_runs(self._arms[job.arm])

    def _add(self, jobs: tuple[Job, ...]) -> int:
        """Queue the jobs that have no whole result; their number."""
        left = [job for job in jobs if read_result(self._run_dir, job) is None]
        self.done += len(jobs) - len(left)
        for job in left:
            heapq.heappush(self._ready, (job.order, len(self._ready), job))
        return len(left)

    def _add_final_runs(self, arm: Arm) -> None:
        choice, _ = tuning_choice(self._run_dir, self._plan, arm, self._chance)
        left = self._add(final_jobs(self._plan, arm, choice.trial if choice is not None else None))
        if choice is not None and left:
            self._tell(f"{arm.name}: tuning chose {settings_text(choice.trial.settings)}")
