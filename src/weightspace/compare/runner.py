"""Runs a comparison: jobs handed to an engine's workers, resumable at any moment.

A job's folder holds a whole `result.json` or does not count; so nothing has to be undone when the comparison is
interrupted or the machine loses power, and a run whose worker dies is done again.
"""

from __future__ import annotations

import functools
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from weightspace.compare.directory import ERRORS_FILE, remove_leftovers, write_errors
from weightspace.compare.engines import Engine, Losses, WorkerLost, open_engine
from weightspace.compare.execution import ON_THIS_MACHINE, Execution
from weightspace.compare.opening import open_comparison
from weightspace.compare.plan import Job, make_plan
from weightspace.compare.pool import signals
from weightspace.compare.records import COMPARE_FILE, chance_of, now, read_result
from weightspace.compare.schedule import Schedule
from weightspace.compare.table import write_tables
from weightspace.compare.worker import (
    LoadFunction,
    Order,
    Outcome,
    TrainFunction,
    check_data,
    deliver,
    describe_data,
    do_job,
    do_job_elsewhere,
)
from weightspace.errors import RunError
from weightspace.files import JsonObject, write_json_atomically
from weightspace.training.environment import versions
from weightspace.training.lock import locked
from weightspace.training.loop import train_run
from weightspace.training.recipe import Recipe
from weightspace.training.session import load_recipe_data

LOADING = "loading the data"  # told before anything else, and the one thing told that is no news for a log


def run_comparison(
    recipe: Recipe,
    run_dir: Path,
    how: Execution = ON_THIS_MACHINE,
    *,
    train: TrainFunction = train_run,
    load: LoadFunction = load_recipe_data,
) -> Path:
    """Run, or continue, the comparison that a recipe describes, and write its tables.

    Args:
        recipe: A recipe with a `compare` part.
        run_dir: Folder of the comparison: empty, missing, or one where this recipe was started before.
        how: Who carries out the runs; `progress` hears of every finished one.
        train: Trains one run; must be importable by name, as it goes to other processes.
        load: Gives a recipe's images, likewise.

    Returns:
        `run_dir`, which now holds `compare.json`, `arms/`, `table.json` and `table.md`.

    Raises:
        RecipeError: The recipe describes no comparison, or one whose arms do not share their images; there is no such
            engine or accelerator.
        DataError: The data are not there or damaged. They are loaded once before the first worker starts.
        RunError: The folder belongs to another recipe or cannot be written; a run failed (its traceback is in
            `errors.txt`); the worker of one run was lost three times; the engine is not there.
        ComparisonInterrupted: Ctrl-C or SIGTERM; the same command continues.
    """
    total = make_plan(recipe).total  # a recipe without a comparison is refused before anything is touched
    how.checked()
    if how.accelerator != "auto":
        train = functools.partial(train, accelerator=how.accelerator)
    with locked(run_dir, "running a comparison"), signals(run_dir, how.again):
        remove_leftovers(run_dir)
        session = {"at": now(), "command": how.command, "versions": versions(), "accelerator": how.accelerator}
        facts = open_comparison(recipe, run_dir, session)
        comparison = _Running(run_dir, facts, how, train, load)
        schedule = comparison.schedule()
        if schedule:
            with open_engine(how, jobs=total) as chosen:
                facts |= {"engine": how.engine.name, "workers": chosen.count, "threads": chosen.threads}
                write_json_atomically(run_dir / COMPARE_FILE, facts)
                comparison.run(schedule, chosen)
        if comparison.losses.counts:
            facts["lost_workers"] = comparison.losses.counts
        facts["finished"] = now()
        write_json_atomically(run_dir / COMPARE_FILE, facts)
        write_tables(run_dir)
    return run_dir


@dataclass
class _Running:
    """One call of `run_comparison`: its folder and functions, and what came of its runs."""

    run_dir: Path
    facts: JsonObject
    how: Execution
    train: TrainFunction
    load: LoadFunction
    done: int = 0
    data_checked: bool = False
    failed: list[Outcome] = field(default_factory=list[Outcome])
    losses: Losses = field(default_factory=Losses)

    def __post_init__(self) -> None:
        self.plan = make_plan(Recipe.from_dict(self.facts["recipe"]), self.facts["slugs"])

    def schedule(self) -> Schedule:
        """The runs that are left. Loads the data if there are any, then writes `compare.json`."""
        if "classes" not in self.facts["data"]:
            self._load_data()  # how many there are decides what a diverged run counts
        schedule = Schedule(self.plan, self.run_dir, chance=chance_of(self.facts), tell=self._tell)
        self.done = schedule.done
        if schedule:
            self._load_data()
        write_json_atomically(self.run_dir / COMPARE_FILE, self.facts)
        with suppress(OSError):  # an old error; the table does not read it
            (self.run_dir / ERRORS_FILE).unlink(missing_ok=True)
        return schedule

    def run(self, schedule: Schedule, engine: Engine) -> None:
        """Keep the engine's workers busy until all is done, or until the running jobs are after a failure."""
        running: dict[Future[Outcome], Job] = {}
        work = do_job if engine.shares_folders else do_job_elsewhere
        self._tell(f"{self.done} of {self.plan.total} runs were finished before" if self.done else "starting")
        while running or (schedule and not self.failed):
            while schedule and len(running) < engine.count and not self.failed:
                job = schedule.take()
                running[engine.submit(work, self._order(job))] = job
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in sorted(finished, key=lambda future: running[future].order):
                job = running.pop(future)
                try:
                    outcome = future.result()
                except WorkerLost as error:
                    self._lost(job, error, schedule)
                else:
                    self._collect(outcome, schedule)
        if self.failed:
            self._report_failures()

    def _lost(self, job: Job, error: WorkerLost, schedule: Schedule) -> None:
        """A run whose worker is gone is done again, a few times."""
        if self.losses.again(job.name):
            self._tell(f"{job.name}: its worker was lost ({error}); the run is done again")
            schedule.again(job)
        else:
            sentence = self.losses.sentence(error)
            self.failed.append(Outcome(job, error=sentence, traceback=f"{sentence}\n"))
            self._tell(f"FAILED {job.name}: {sentence}")

    def _load_data(self) -> None:
        """Load the images once before any worker does: what is wrong with them is one sentence at the start.

        This also fills the cache of decoded images, which the workers then read.
        """
        if self.data_checked:
            return
        self._tell(LOADING)
        info = describe_data(self.load(self.plan.recipe))
        check_data(info, self.facts["data"].get("checksum"))
        self.facts["data"], self.data_checked = info, True

    def _collect(self, outcome: Outcome, schedule: Schedule) -> None:
        if outcome.error:
            self.failed.append(outcome)
            self._tell(f"FAILED {outcome.job.name}: {outcome.error}")
            return
        if outcome.files:
            deliver(outcome, self.run_dir)
        self.done += 1
        self._tell(f"{outcome.job.name}: {_summary(read_result(self.run_dir, outcome.job) or {})}")
        schedule.finished(outcome.job)

    def _order(self, job: Job) -> Order:
        checksum = str(self.facts["data"]["checksum"])
        return Order(job, self.run_dir, self.plan.validation_fraction, checksum, self.train, self.load)

    def _report_failures(self) -> None:
        text = "\n".join(
            f"{outcome.job.name} ({outcome.job.directory})\n{outcome.traceback}" for outcome in self.failed
        )
        where = write_errors(self.run_dir, text)
        first = self.failed[0]
        more = f" (and {len(self.failed) - 1} more)" if len(self.failed) > 1 else ""
        raise RunError(
            f"the run '{first.job.name}' failed{more}: {first.error.rstrip('.')}; {where}"
            f"finished runs are kept, and {self.how.again} continues"
        )

    def _tell(self, text: str) -> None:
        self.how.tell(text, self.done, self.plan.total)


def _summary(result: JsonObject) -> str:
    if result.get("status") == "diverged":
        return f"diverged ({result.get('reason')})"
    perplexity = result.get("perplexity")
    of_text = f", perplexity {float(perplexity):.3f}" if isinstance(perplexity, int | float) else ""
    return f"{100 * float(result.get('test_accuracy') or 0.0):.2f} %{of_text}"
