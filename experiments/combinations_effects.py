"""Effects and interactions of a factorial experiment, exact contrasts of cells over paired seeds.

Every question is a *contrast*: a weighted sum of cells, computed seed by seed, so that what a seed does to all cells
alike cancels. Its mean has a two-sided Student interval and a t-test over the seeds that all of its cells have; p-values
are Holm-adjusted within each family of questions. With `y(a, b, c)` a cell's value and 0 for "none":

    difference      y(a, b, c) - y(0, 0, 0)                     does the cell differ from the plain one?
    over best part  y(a, b, c) - y(best cell with a part of it) is the combination worth more than its best part?
    effect          mean over b, c of y(a, b, c) - y(0, b, c)    what does a level do on average?
    interaction     y(a, b, c) - y(a, 0, c) - y(0, b, c) + y(0, 0, c)
                    alone: c = 0; averaged: the mean over c      more (+) or less (-) than the sum of the two?
    gate            y(a, b, gated) - y(a, b, always)             what does the gate change here?

The best part is the one with the highest mean of the same runs, which flatters the part: "worth more" is understated.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from weightspace.compare.statistics import Estimate, holm, mean_interval, paired_difference

FACTORS = ("metric", "manifold", "penalty")
NONE = "none"
Levels = tuple[str, ...]
Values = Mapping[Levels, Mapping[int, float]]
"""Seed to value, of every cell."""
Contrast = Mapping[Levels, float]
Words = tuple[str, str]
BETTER: Words = ("better", "worse")
TOGETHER: Words = ("help together", "fight")
OPEN = "not told apart"


@dataclass(frozen=True)
class Design:
    """The levels of each factor, "none" first, which penalty is the gated form of which, and the cells there are.

    Attributes:
        levels: In the order of `FACTORS`.
        gates: A penalty's name to that of its gated form.
        values: What was measured; cells without a run do not count as there.
        level: Confidence level.
        sign: 1 where higher is better (accuracy), -1 where lower is (loss). Means keep the sign of the quantity.
    """

    levels: tuple[Levels, ...]
    gates: Mapping[str, str]
    values: Values
    level: float = 0.95
    sign: int = 1

    @property
    def all_cells(self) -> list[Levels]:
        """Every combination of levels, there or not."""
        return list(itertools.product(*self.levels))

    @property
    def plain(self) -> Levels:
        """The cell without any rule."""
        return (NONE,) * len(self.levels)

    def has(self, cells: Iterable[Levels]) -> bool:
        """Whether all of these cells have runs."""
        return all(self.values.get(cell) for cell in cells)

    def estimate(self, contrast: Contrast | None) -> Estimate | None:
        """Mean of a contrast over the seeds that all of its cells have; None without a contrast, a cell or a seed."""
        if not contrast or not self.has(contrast):
            return None
        seeds = sorted(set.intersection(*(set(self.values[cell]) for cell in contrast)))
        if not seeds:
            return None
        plus, minus = (
            [sum(sign * w * self.values[cell][seed] for cell, w in contrast.items() if sign * w > 0) for seed in seeds]
            for sign in (1, -1)
        )
        return paired_difference(plus, minus, level=self.level)

    def mean_of(self, cell: Levels) -> Estimate | None:
        """Mean of one cell with its interval."""
        runs = self.values.get(cell)
        return mean_interval([runs[seed] for seed in sorted(runs)], level=self.level) if runs else None

    def best_part(self, cell: Levels) -> Levels | None:
        """Of the cells that have some but not all rules of this one, plain included, that with the best mean.

        None for cells with fewer than two rules, which have no parts but the plain cell.
        """
        if sum(level != NONE for level in cell) < 2:
            return None
        parts = [part for part in itertools.product(*({level, NONE} for level in cell)) if part != cell]
        means = {part: estimate.mean for part in parts if (estimate := self.mean_of(part)) is not None}
        return max(sorted(means), key=lambda part: self.sign * means[part]) if means else None


def minus(one: Levels, other: Levels) -> Contrast:
    """The difference of two cells."""
    return {one: 1.0, other: -1.0}


def averaged(contrasts: Iterable[Contrast], design: Design) -> Contrast | None:
    """The mean of those contrasts whose cells are all there; None if none is."""
    complete = [contrast for contrast in contrasts if design.has(contrast)]
    total: dict[Levels, float] = {}
    for contrast in complete:
        for cell, weight in contrast.items():
            total[cell] = total.get(cell, 0.0) + weight / len(complete)
    return {cell: weight for cell, weight in total.items() if weight} or None


def put(cell: Levels, changes: Mapping[int, str]) -> Levels:
    """A cell with some of its levels replaced, by position."""
    return tuple(changes.get(place, level) for place, level in enumerate(cell))


def effect(design: Design, factor: int, level: str) -> Contrast | None:
    """A level against none, averaged over all levels of the other factors."""
    others = [cell for cell in design.all_cells if cell[factor] == level]
    return averaged((minus(cell, put(cell, {factor: NONE})) for cell in others), design)


def interaction(cell: Levels, first: int, second: int) -> Contrast:
    """Difference of differences of two of a cell's levels, at its own level of the third factor."""
    return {
        cell: 1.0,
        put(cell, {first: NONE}): -1.0,
        put(cell, {second: NONE}): -1.0,
        put(cell, {first: NONE, second: NONE}): 1.0,
    }


def interactions(design: Design) -> list[dict[str, Any]]:
    """All pairs of levels of different factors, alone and averaged over the third; verdicts by adjusted p-values."""
    found: list[dict[str, Any]] = []
    for first, second in itertools.combinations(range(len(design.levels)), 2):
        for a, b in itertools.product(design.levels[first][1:], design.levels[second][1:]):
            here = put(design.plain, {first: a, second: b})
            over = [cell for cell in design.all_cells if cell[first] == a and cell[second] == b]
            found.append(
                {
                    "factors": [FACTORS[first], FACTORS[second]],
                    "levels": [a, b],
                    "alone": design.estimate(interaction(here, first, second)),
                    "averaged": design.estimate(averaged((interaction(c, first, second) for c in over), design)),
                }
            )
    for kind in ("alone", "averaged"):
        adjusted(found, kind, design, TOGETHER)
    return found


def gates(design: Design) -> list[dict[str, Any]]:
    """What the gate changes in every cell of metric and manifold, for each penalty that has a gated form."""
    found: list[dict[str, Any]] = []
    for always, gated in design.gates.items():
        for metric, manifold in itertools.product(*design.levels[:2]):
            contrast = minus((metric, manifold, gated), (metric, manifold, always))
            found.append(
                {"penalty": always, "metric": metric, "manifold": manifold, "change": design.estimate(contrast)}
            )
    adjusted(found, "change", design)
    return found


def adjusted(rows: list[dict[str, Any]], key: str, design: Design, words: Words = BETTER) -> None:
    """Turns the estimates of one family into plain values, with Holm's adjustment and a verdict."""
    estimates: list[Estimate | None] = [row[key] for row in rows]
    p_values = holm([None if e is None else e.p_value for e in estimates])
    for row, estimate, p in zip(rows, estimates, p_values, strict=True):
        row[key] = None
        if estimate is not None:
            is_told = p is not None and p < 1 - design.level
            verdict = words[0 if design.sign * estimate.mean > 0 else 1] if is_told else OPEN
            row[key] = interval(estimate) | {"p": estimate.p_value, "p_holm": p, "verdict": verdict}


def interval(estimate: Estimate) -> dict[str, Any]:
    """Mean, ends and number of seeds."""
    return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high, "n": estimate.n}


def family(design: Design, names: Mapping[Levels, str], build: Callable[[Levels], Contrast | None]) -> dict[str, Any]:
    """One contrast for every cell that is there, adjusted together."""
    rows = [{"cell": cell, "found": design.estimate(build(cell))} for cell in names if cell != design.plain]
    adjusted(rows, "found", design)
    return {names[row["cell"]]: row["found"] for row in rows}


def effects(design: Design, names: Mapping[Levels, str]) -> dict[str, Any]:
    """Every question of the module about one quantity.

    Args:
        design: Levels and values.
        names: Of the cells that there are, in the order of the tables.
    """
    levels = [
        {"factor": FACTORS[factor], "level": level, "effect": design.estimate(effect(design, factor, level))}
        for factor, all_levels in enumerate(design.levels)
        for level in all_levels[1:]
    ]
    adjusted(levels, "effect", design)
    parts = {cell: design.best_part(cell) for cell in names}
    means = {name: design.mean_of(cell) for cell, name in names.items()}
    return {
        "means": {name: None if mean is None else interval(mean) for name, mean in means.items()},
        "differences": family(design, names, lambda cell: minus(cell, design.plain)),
        "best parts": {names[cell]: names[part] for cell, part in parts.items() if part is not None},
        "over best part": family(design, names, lambda cell: minus(cell, part) if (part := parts[cell]) else None),
        "effects": levels,
        "interactions": interactions(design),
        "gates": gates(design),
    }
