"""The tolerance level of a network: the strength of a penalty above which it stops learning, under every gate.

A sweep trains the recipe without the penalty, and with it at strengths an octave apart under each gate. An arm has
*collapsed* where its mean accuracy is below half way between guessing and the arm without the penalty. The tolerance
level of a gate lies between the last strength before its first collapse and that collapse: the sweep says no more.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightspace.compare._sweep import (
    BASELINE,
    SweepArm,
    comparison_recipe,
    duties,
    kept_arms,
    like_arms,
    own_arms,
    results_in,
    sweep_of,
)
from weightspace.compare.execution import ON_THIS_MACHINE, Execution
from weightspace.compare.records import accuracy_of, chance_of, read_facts
from weightspace.compare.runner import run_comparison
from weightspace.compare.statistics import mean_interval
from weightspace.compare.worker import LoadFunction, TrainFunction
from weightspace.errors import RunError
from weightspace.files import JsonObject, read_json
from weightspace.training.loop import train_run
from weightspace.training.recipe import Recipe
from weightspace.training.session import load_recipe_data

TOLERANCE_FILE = "tolerance.json"
_FORMAT = 1


@dataclass(frozen=True)
class Cell:
    """One gate at one strength, over its seeds.

    Attributes:
        gate: Name of the gate; `BASELINE` without the penalty.
        strength: The penalty's `weight`; 0 for the baseline.
        accuracies: Test accuracy of each seed, 0 to 1; a diverged run counts as guessing.
        low: Lower end of the Student-t interval of the mean; None with one seed.
        high: Upper end.
        duty: Share of the steps at which the gate was open, mean over weights and seeds; None where it has no gate.
        duty_by_weight: The same for each weight by name, mean over seeds.
        zeros: Share of exact zeros among all weights at the end, mean over seeds.
        vanished: Weights that were zero altogether in any seed.
        diverged: Runs that diverged.
    """

    gate: str
    strength: float
    accuracies: tuple[float, ...]
    low: float | None
    high: float | None
    duty: float | None
    duty_by_weight: dict[str, float]
    zeros: float
    vanished: tuple[str, ...]
    diverged: int

    @property
    def accuracy(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.accuracies)


@dataclass(frozen=True)
class Level:
    """Where a gate's tolerance level lies.

    Attributes:
        gate: The gate.
        learns_up_to: Largest strength below the first collapse; None if it collapsed at the smallest one tried.
        collapses_at: Smallest strength at which it collapsed; None if it never did.
        again: Strengths above that at which it learns again: a gate that stays closed leaves the network alone.
    """

    gate: str
    learns_up_to: float | None
    collapses_at: float | None
    again: tuple[float, ...] = ()

    def text(self) -> str:
        """In words.

        >>> Level("always", 0.001, 0.002).text()
        'between 0.001 and 0.002'
        >>> Level("always", None, 0.002).text(), Level("always", 0.016, None).text()
        ('below 0.002', 'above 0.016')
        """
        if self.collapses_at is None:
            return f"above {self.learns_up_to:g}" if self.learns_up_to is not None else "not known"
        if self.learns_up_to is None:
            return f"below {self.collapses_at:g}"
        again = f", and learns again at {', '.join(f'{s:g}' for s in self.again)}" if self.again else ""
        return f"between {self.learns_up_to:g} and {self.collapses_at:g}{again}"


@dataclass(frozen=True)
class Tolerance:
    """What a sweep found.

    Attributes:
        name: Name of the recipe.
        rule: Name of the swept rule.
        model: Name of the model.
        depth: Its layers with weights.
        data: The data set in words.
        chance: Accuracy of guessing.
        confidence: Level of the intervals.
        gates: Names in the recipe's order.
        cells: One for each gate and strength, and the baseline first.
        missing: Arms without all their runs.
        recipe: The recipe with its sweep, as plain values.
    """

    name: str
    rule: str
    model: str
    depth: int
    data: str
    chance: float
    confidence: float
    gates: tuple[str, ...]
    cells: tuple[Cell, ...]
    missing: tuple[str, ...]
    recipe: JsonObject

    @property
    def baseline(self) -> Cell:
        """The arm without the penalty."""
        return next(cell for cell in self.cells if cell.gate == BASELINE)

    @property
    def threshold(self) -> float:
        """Half way between guessing and the arm without the penalty: below it an arm has collapsed."""
        return (self.chance + self.baseline.accuracy) / 2

    @property
    def learns(self) -> bool:
        """Whether the arm without the penalty learns at all: at least half again as good as guessing."""
        return self.baseline.accuracy >= 1.5 * self.chance

    def of(self, gate: str) -> tuple[Cell, ...]:
        """The cells of a gate, by strength."""
        return tuple(sorted((cell for cell in self.cells if cell.gate == gate), key=lambda cell: cell.strength))

    def collapsed(self, cell: Cell) -> bool:
        """Whether the arm stopped learning."""
        return cell.accuracy < self.threshold

    def level(self, gate: str) -> Level:
        """Where the gate's tolerance level lies."""
        cells = self.of(gate)
        first = next((index for index, cell in enumerate(cells) if self.collapsed(cell)), len(cells))
        return Level(
            gate,
            learns_up_to=cells[first - 1].strength if first > 0 else None,
            collapses_at=cells[first].strength if first < len(cells) else None,
            again=tuple(cell.strength for cell in cells[first:] if not self.collapsed(cell)),
        )

    def to_json(self) -> JsonObject:
        """Everything, and what follows from it: threshold, means and levels."""
        values = asdict(self)
        values["cells"] = [
            {**asdict(cell), "accuracy": cell.accuracy, "collapsed": self.collapsed(cell)} for cell in self.cells
        ]
        levels = {gate: asdict(self.level(gate)) for gate in self.gates if self.of(gate)}
        return {"format": _FORMAT, **values, "threshold": self.threshold, "levels": levels}


def run_tolerance(
    recipe: Recipe,
    run_dir: Path,
    how: Execution = ON_THIS_MACHINE,
    *,
    train: TrainFunction = train_run,
    load: LoadFunction = load_recipe_data,
) -> Tolerance:
    """Run, or continue, the sweep that a recipe describes.

    First all arms but those of gates that are like others, then these. A folder where it was started before is
    continued; strengths and gates may have been added.

    Args:
        recipe: A recipe with a `sweep` part; its `compare` part is ignored.
        run_dir: Folder of the sweep: empty, missing, or one where this recipe was started before.
        how: Who carries out the runs; `progress` hears of every finished one.
        train: Trains one run.
        load: Gives a recipe's images.

    Raises:
        RecipeError: The recipe describes no sweep, or a rule does not fit.
        RunError: See `weightspace.compare.run_comparison`.
        ComparisonInterrupted: Ctrl-C or SIGTERM; the same command continues.
    """
    steps = _steps(recipe, load)
    own = own_arms(sweep_of(recipe), steps=steps)
    train_all = functools.partial(run_comparison, run_dir=run_dir, how=how, train=train, load=load)
    plan, results = results_in(run_dir)
    begun = like_arms(recipe, own, results)
    begun += kept_arms(recipe, plan, begun)
    train_all(comparison_recipe(recipe, [*own, *begun]))
    _, results = results_in(run_dir)
    if (every := like_arms(recipe, own, results)) != begun:
        train_all(comparison_recipe(recipe, [*own, *every]))
    return read_tolerance(recipe, run_dir, steps=steps)


def read_tolerance(recipe: Recipe, run_dir: Path, *, steps: int) -> Tolerance:
    """What the sweep in a folder has found, finished or not.

    Args:
        recipe: The recipe with its sweep.
        run_dir: The folder.
        steps: Steps of a run.

    Raises:
        RunError: The folder holds no sweep, or its arm without the penalty has no whole run yet.
    """
    plan, results = results_in(run_dir)
    if plan is None or BASELINE not in results:
        raise RunError(f"{run_dir} holds no finished run of the arm '{BASELINE}'; run the sweep there first")
    sweep = sweep_of(recipe)
    facts, _ = read_facts(run_dir)
    chance = chance_of(facts)
    own = own_arms(sweep, steps=steps)
    arms = [*own, *like_arms(recipe, own, results)]
    return Tolerance(
        name=recipe.name,
        rule=str(sweep.rule["rule"]),
        model=recipe.model.name,
        depth=len(results[BASELINE][0]["weights"]["layers"]),
        data=str(facts["data"].get("label") or recipe.data.name),
        chance=chance,
        confidence=sweep.level,
        gates=tuple(sweep.gates),
        cells=tuple(_cell(recipe, arm, results[arm.name], chance, sweep.level) for arm in arms if arm.name in results),
        missing=tuple(arm.name for arm in arms if arm.name not in results),
        recipe=recipe.to_dict(),
    )


def load_tolerance(path: Path) -> Tolerance:
    """What `tolerance.json` holds.

    Raises:
        RunError: It is no such file, or damaged.
    """
    values = read_json(path)
    try:
        cells = tuple(_cell_of(entry) for entry in values["cells"])
        names = ("name", "rule", "model", "depth", "data", "chance", "confidence", "recipe")
        gates, missing = tuple(values["gates"]), tuple(values["missing"])
        return Tolerance(**{name: values[name] for name in names}, gates=gates, missing=missing, cells=cells)
    except (KeyError, TypeError) as error:
        raise RunError(f"{path} is no result of `weightspace tolerance` ({error}); run it again to write it") from error


def _cell_of(entry: dict[str, Any]) -> Cell:
    derived = {"accuracy", "collapsed", "accuracies", "vanished"}
    values = {key: value for key, value in entry.items() if key not in derived}
    return Cell(**values, accuracies=tuple(entry["accuracies"]), vanished=tuple(entry["vanished"]))


def _cell(recipe: Recipe, arm: SweepArm, results: Sequence[JsonObject], chance: float, level: float) -> Cell:
    accuracies = tuple(accuracy_of(result, chance) for result in results)
    estimate = mean_interval(list(accuracies), level=level)
    duty, layers = duties(recipe, results)
    return Cell(
        gate=arm.gate,
        strength=arm.strength,
        accuracies=accuracies,
        low=estimate.low,
        high=estimate.high,
        duty=duty,
        duty_by_weight=layers,
        zeros=statistics.fmean(float(result["weights"]["zeros"]) for result in results),
        vanished=tuple(sorted({name for result in results for name in result["vanished"]})),
        diverged=sum(result["status"] == "diverged" for result in results),
    )


def _steps(recipe: Recipe, load: LoadFunction) -> int:
    """Steps of a run, which decide a delay that is a share of it."""
    known = recipe.data.train_size if recipe.data.context is None else None  # of a text it counts tokens, not windows
    samples = known or load(recipe).samples
    return recipe.train.epochs * max(1, samples // recipe.train.batch_size)
