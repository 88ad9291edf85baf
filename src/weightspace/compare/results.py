"""Reads a comparison's folder, finished or not, and computes the numbers of its table.

Only `compare.json` and the `result.json` files are read: what is on disk is the truth, so that table and report can be
made at any time, also while the comparison is running.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from weightspace.compare.plan import Arm, Plan, final_jobs, make_plan, tuning_jobs
from weightspace.compare.records import (
    COMPARE_FILE,
    accuracy_of,
    chance_of,
    loss_of,
    perplexity_of,
    read_facts,
    read_result,
)
from weightspace.compare.statistics import Estimate, holm, mean_interval, paired_difference
from weightspace.compare.trials import Choice, choose, value_at
from weightspace.errors import RunError
from weightspace.files import JsonObject
from weightspace.training.recipe import Recipe

__all__ = ["COMPARE_FILE", "ArmResult", "Comparison", "TrialResult", "read_comparison", "tuning_choice", "value_at"]


@dataclass(frozen=True)
class TrialResult:
    """One tuning trial of one arm: mean validation accuracy (0 to 1) and loss over its seeds, and how many diverged."""

    number: int
    settings: Mapping[str, Any]
    accuracy: float
    loss: float
    diverged: int


@dataclass(frozen=True)
class ArmResult:
    """Everything the table says about one arm.

    Attributes:
        arm: The arm.
        settings: The tuned paths with the values that the final runs use.
        choice: What tuning chose; None for an arm that is not tuned or whose tuning is not complete.
        trials: The complete trials.
        accuracy: Seed to test accuracy, 0 to 1; a diverged run counts as chance level.
        diverged_seeds: Seeds of the final runs that diverged.
        tuning_diverged: Diverged tuning runs.
        estimate: Mean test accuracy with its interval; None before the first final run.
        difference: Paired difference to the baseline over the seeds that both have; None for the baseline itself.
        adjusted_p: Holm-adjusted p-value of the difference.
        seconds_per_step: That of the fastest final run that did not diverge; None without one. Runs do the same work,
            so what makes one slower is what else the machine did.
        time_ratio: `seconds_per_step` over the baseline's.
        missing: Jobs of this arm without a whole result.
        perplexity: Of text: seed to test perplexity; a diverged run counts as guessing. Empty for images.
    """

    arm: Arm
    settings: Mapping[str, Any]
    choice: Choice | None
    trials: tuple[TrialResult, ...]
    accuracy: Mapping[int, float]
    diverged_seeds: tuple[int, ...]
    tuning_diverged: int
    estimate: Estimate | None
    difference: Estimate | None
    adjusted_p: float | None
    seconds_per_step: float | None
    time_ratio: float | None
    missing: tuple[str, ...]
    perplexity: Mapping[int, float] = field(default_factory=dict[int, float])

    @property
    def recipe(self) -> Recipe:
        """What the final runs train: the arm's recipe with the tuned values, as far as these are known."""
        return self.arm.recipe.with_overrides(self.choice.trial.settings) if self.choice else self.arm.recipe

    @property
    def diverged(self) -> int:
        """Number of final runs that diverged."""
        return len(self.diverged_seeds)


@dataclass(frozen=True)
class Comparison:
    """A comparison as far as it has come. `facts` is `compare.json`; `chance` the accuracy of guessing."""

    run_dir: Path
    plan: Plan
    facts: JsonObject
    chance: float
    arms: tuple[ArmResult, ...]

    @property
    def baseline(self) -> ArmResult:
        """The arm that all others are compared with."""
        return next(arm for arm in self.arms if arm.arm.name == self.plan.settings.baseline)

    @property
    def is_text(self) -> bool:
        """Whether the data are text: its tables have the perplexity."""
        return is_text(self.plan)

    @property
    def level(self) -> float:
        """Confidence level of every interval."""
        return self.plan.settings.level

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of all jobs without a whole result."""
        return tuple(name for arm in self.arms for name in arm.missing)


def read_comparison(run_dir: Path) -> Comparison:
    """Read a comparison's folder.

    Args:
        run_dir: Folder with `compare.json`.

    Raises:
        RunError: It is not a comparison's folder, or `compare.json` is damaged.
    """
    if not (run_dir / COMPARE_FILE).exists():
        raise RunError(f"{run_dir} is not a comparison: it has no {COMPARE_FILE}; pass the folder given to `compare`")
    facts, recipe = read_facts(run_dir)
    plan, chance = make_plan(recipe, facts["slugs"]), chance_of(facts)
    arms = [_read_arm(run_dir, plan, arm, chance) for arm in plan.arms]
    return Comparison(run_dir, plan, facts, chance, _compared(arms, plan))


def tuning_choice(run_dir: Path, plan: Plan, arm: Arm, chance: float) -> tuple[Choice | None, tuple[TrialResult, ...]]:
    """The best trial of an arm, once all its tuning runs are there, and the complete trials so far.

    Args:
        run_dir: Folder of the comparison.
        plan: Its plan.
        arm: A tuned arm; any other gives `(None, ())`.
        chance: Accuracy that a diverged run counts with.
    """
    by_trial: dict[int, list[JsonObject]] = {}
    for job in tuning_jobs(plan, arm):
        result = read_result(run_dir, job)
        if result is not None and job.trial is not None:
            by_trial.setdefault(job.trial, []).append(result)
    complete: list[TrialResult] = []
    for trial in arm.trials:
        results = by_trial.get(trial.number, [])
        if len(results) == len(plan.tuning_seeds):
            accuracy = statistics.fmean(accuracy_of(result, chance) for result in results)
            loss = statistics.fmean(loss_of(result) for result in results)
            diverged = sum(result["status"] == "diverged" for result in results)
            complete.append(TrialResult(trial.number, trial.settings, accuracy, loss, diverged))
    if not complete or len(complete) < len(arm.trials):
        return None, tuple(complete)
    scores = [(trial.accuracy, trial.loss) for trial in complete]
    return choose(arm.trials, scores, by_loss=is_text(plan)), tuple(complete)


def is_text(plan: Plan) -> bool:
    """Whether a comparison's data are text, so that perplexity is what its models are judged by."""
    return plan.recipe.data.context is not None


def _read_arm(run_dir: Path, plan: Plan, arm: Arm, chance: float) -> ArmResult:
    choice, trials = tuning_choice(run_dir, plan, arm, chance)
    missing = [job.name for job in tuning_jobs(plan, arm) if read_result(run_dir, job) is None]
    jobs = final_jobs(plan, arm, choice.trial if choice is not None else None)
    # Without a complete tuning stage no final run can have been asked for: any that is there belongs to another choice.
    can_be_final = choice is not None or not arm.tuned
    results = {job.seed: read_result(run_dir, job) if can_be_final else None for job in jobs}
    missing += [job.name for job in jobs if results[job.seed] is None]
    found = {seed: result for seed, result in results.items() if result is not None}
    accuracy = {seed: accuracy_of(result, chance) for seed, result in found.items()}
    perplexity = {seed: perplexity_of(result, chance) for seed, result in found.items()} if is_text(plan) else {}
    times = [
        float(r["seconds_per_step"]) for r in found.values() if r["status"] == "done" and r.get("seconds_per_step")
    ]
    return ArmResult(
        arm=arm,
        settings=_settings(plan, arm, choice),
        choice=choice,
        trials=trials,
        accuracy=accuracy,
        diverged_seeds=tuple(seed for seed, result in found.items() if result["status"] == "diverged"),
        tuning_diverged=sum(trial.diverged for trial in trials),
        estimate=mean_interval(list(accuracy.values()), level=plan.settings.level) if accuracy else None,
        difference=None,
        adjusted_p=None,
        seconds_per_step=min(times, default=None),
        time_ratio=None,
        missing=tuple(missing),
        perplexity={seed: value for seed, value in perplexity.items() if value is not None},
    )


def _compared(arms: Sequence[ArmResult], plan: Plan) -> tuple[ArmResult, ...]:
    """The arms with their differences to the baseline, Holm's adjustment over all of them, and time ratios."""
    baseline = next(arm for arm in arms if arm.arm.name == plan.settings.baseline)
    differences: list[Estimate | None] = []
    for arm in arms:
        seeds = [seed for seed in arm.accuracy if seed in baseline.accuracy]
        values, reference = [arm.accuracy[s] for s in seeds], [baseline.accuracy[s] for s in seeds]
        compared = arm is not baseline and bool(seeds)
        differences.append(paired_difference(values, reference, level=plan.settings.level) if compared else None)
    adjusted = holm([d.p_value if d is not None else None for d in differences])
    unit = baseline.seconds_per_step
    return tuple(
        replace(
            arm,
            difference=difference,
            adjusted_p=p_value,
            time_ratio=arm.seconds_per_step / unit if arm.seconds_per_step and unit else None,
        )
        for arm, difference, p_value in zip(arms, differences, adjusted, strict=True)
    )


def _settings(plan: Plan, arm: Arm, choice: Choice | None) -> dict[str, Any]:
    """Values of the tuned paths: the chosen ones, or the recipe's own; the learning rate where nothing is tuned."""
    if choice is not None:
        return dict(choice.trial.settings)
    if arm.tuned:
        return {}
    paths = list(plan.trials[0].settings) if plan.trials else ["train.optimizer.lr"]
    return {path: value for path in paths if (value := value_at(arm.recipe.to_dict(), path)) is not None}
