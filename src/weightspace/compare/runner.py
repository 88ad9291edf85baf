"""Runs a comparison: jobs in persistent worker processes, resumable at any moment.

A job's folder holds a whole `result.json` or does not count; so nothing has to be undone when the comparison is
interrupted, a worker dies or the machine loses power. The final runs of an arm start as soon as its own tuning is
complete.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from weightspace.compare.directory import ERRORS_FILE, locked, now, open_comparison
from weightspace.compare.plan import Arm, Job, Plan, final_jobs, make_plan, tuning_jobs
from weightspace.compare.pool import gpus, signals, worker_count, workers_of
from weightspace.compare.results import COMPARE_FILE, read_result, tuning_choice
from weightspace.compare.table import settings_text, write_tables
from weightspace.compare.worker import (
    LoadFunction,
    Order,
    Outcome,
    TrainFunction,
    data_key,
    do_job,
)
from weightspace.errors import RunError
from weightspace.training.environment import usable_cores
from weightspace.training.files import JsonObject, write_json_atomically, write_text_atomically
from weightspace.training.loop import train_run
from weightspace.training.recipe import Recipe
from weightspace.training.session import load_recipe_data

Progress = Callable[[str, int, int], None]
"""Called with (what just happened, finished runs, all runs)."""


def run_comparison(
    recipe: Recipe,
    run_dir: Path,
    *,
    workers: int | None = None,
    command: str = "",
    progress: Progress | None = None,
    train: TrainFunction = train_run,
    load: LoadFunction = load_recipe_data,
) -> Path:
    """Run, or continue, the comparison that a recipe describes, and write its tables.

    Args:
        recipe: A recipe with a `compare` part.
        run_dir: Folder of the comparison: empty, missing, or one where this recipe was started before.
        workers: Processes that train at the same time. None: one per GPU, or one per CPU core where there is no GPU.
            The cores are shared evenly among the workers' threads.
        command: The command line, for the report.
        progress: Called after every finished run with (what happened, finished runs, all runs).
        train: Trains one run; must be importable by name, as it goes to other processes.
        load: Gives a recipe's images, likewise.

    Returns:
        `run_dir`, which now holds `compare.json`, `arms/`, `table.json` and `table.md`.

    Raises:
        RecipeError: The recipe describes no comparison.
        RunError: The folder belongs to another recipe or cannot be written; a run failed (its traceback is in
            `errors.txt`); a worker process died.
        ComparisonInterrupted: Ctrl-C or SIGTERM; the same command continues.
    """
    plan = make_plan(recipe)
    devices = gpus()
    count = worker_count(workers, plan.total, devices)
    threads = max(1, usable_cores() // count)
    with locked(run_dir):
        facts = open_comparison(recipe, run_dir, command=command, workers=count, threads=threads)
        comparison = _Running(plan, run_dir, facts, train, load, progress)
        if comparison.ready:
            with signals(run_dir), workers_of(count, threads, devices) as pool:
                comparison.run(pool, count)
        facts["finished"] = now()
        write_json_atomically(run_dir / COMPARE_FILE, facts)
        write_tables(run_dir)
    return run_dir


class _Running:
    """The state of one call: which jobs are ready, and what came of the others."""

    def __init__(  # noqa: PLR0917 - made in one place only
        self,
        plan: Plan,
        run_dir: Path,
        facts: JsonObject,
        train: TrainFunction,
        load: LoadFunction,
        progress: Progress | None,
    ) -> None:
        self.plan, self.run_dir, self.facts = plan, run_dir, facts
        self.train, self.load, self.progress = train, load, progress
        self.arms = {arm.name: arm for arm in plan.arms}
        self.reference = data_key(self.arms[plan.settings.baseline].recipe)
        self.ready: list[tuple[tuple[int, ...], int, Job]] = []
        self.waiting: dict[str, int] = {}  # tuning runs that an arm's final runs wait for
        self.done = 0
        self.failed: list[Outcome] = []
        for arm in plan.arms:
            self.waiting[arm.name] = self._add(tuning_jobs(plan, arm))
            if not self.waiting[arm.name]:
                self._add_final(arm)

    def run(self, pool: ProcessPoolExecutor, count: int) -> None:
        """Keep `count` jobs in the pool until all are done, or until the running ones are after a failure."""
        running: dict[Future[Outcome], Job] = {}
        self._tell(f"{self.done} of {self.plan.total} runs were finished before" if self.done else "starting")
        try:
            while running or (self.ready and not self.failed):
                while self.ready and len(running) < count and not self.failed:
                    job = heapq.heappop(self.ready)[-1]
                    running[pool.submit(do_job, self._order(job))] = job
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in sorted(finished, key=lambda future: running[future].order):
                    outcome = future.result()
                    del running[future]
                    self._collect(outcome)
        except BrokenProcessPool as error:
            names = "; ".join(job.name for job in running.values())
            raise RunError(
                f"a worker process was killed while training ({names}), perhaps for lack of memory; "
                "run the same command again to continue, with fewer workers if it happens again"
            ) from error
        if self.failed:
            self._report_failures()

    def _add(self, jobs: tuple[Job, ...]) -> int:
        """Queue the jobs that have no whole result; their number."""
        left = [job for job in jobs if read_result(self.run_dir, job) is None]
        self.done += len(jobs) - len(left)
        for job in left:
            heapq.heappush(self.ready, (job.order, len(self.ready), job))
        return len(left)

    def _add_final(self, arm: Arm) -> None:
        choice, _ = tuning_choice(self.run_dir, self.plan, arm, self._chance())
        if choice is not None:
            self._tell(f"{arm.name}: tuning chose {settings_text(choice.trial.settings)}")
        self._add(final_jobs(self.plan, arm, choice.trial if choice is not None else None))

    def _collect(self, outcome: Outcome) -> None:
        if outcome.data is None:
            self.failed.append(outcome)
            self._tell(f"FAILED {outcome.job.name}: {outcome.error}")
            return
        if "checksum" not in self.facts["data"] and data_key(outcome.job.recipe) == self.reference:
            self.facts["data"] = outcome.data
            write_json_atomically(self.run_dir / COMPARE_FILE, self.facts)
        self.done += 1
        result = read_result(self.run_dir, outcome.job) or {}
        self._tell(f"{outcome.job.name}: {_summary(result)}")
        if outcome.job.stage == "tune":
            self.waiting[outcome.job.arm] -= 1
            if not self.waiting[outcome.job.arm]:
                self._add_final(self.arms[outcome.job.arm])

    def _order(self, job: Job) -> Order:
        known = self.facts["data"].get("checksum") if data_key(job.recipe) == self.reference else None
        return Order(job, self.run_dir, self.plan.validation_fraction, known, self.train, self.load)

    def _chance(self) -> float:
        return 1.0 / int(self.facts["data"].get("classes") or 10)

    def _report_failures(self) -> None:
        text = "\n".join(
            f"{outcome.job.name} ({outcome.job.directory})\n{outcome.traceback}" for outcome in self.failed
        )
        write_text_atomically(self.run_dir / ERRORS_FILE, text)
        first = self.failed[0]
        more = f" (and {len(self.failed) - 1} more)" if len(self.failed) > 1 else ""
        raise RunError(
            f"the run '{first.job.name}' failed{more}: {first.error.rstrip('.')}; the traceback is in "
            f"{self.run_dir / ERRORS_FILE}, finished runs are kept, and the same command continues"
        )

    def _tell(self, text: str) -> None:
        if self.progress is not None:
            self.progress(text, self.done, self.plan.total)


def _summary(result: JsonObject) -> str:
    if result.get("status") == "diverged":
        return f"diverged ({result.get('reason')})"
    return f"{100 * float(result.get('test_accuracy') or 0.0):.2f} %"
