"""Raw values from the files beside the results pages, and the measures that most numbers share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from claims.intervals import Interval, paired, student
from claims.model import Measure

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


class Sources:
    """Parsed source files by their path relative to docs/, read once.

    Args:
        docs: Folder of the documentation.
        instead: Files to read in the place of committed ones, by the committed path: those of a new run.
    """

    def __init__(self, docs: Path = DOCS, instead: Mapping[str, Path] | None = None) -> None:
        self.docs = docs
        self.instead = dict(instead or {})
        self._read: dict[str, Any] = {}

    def path(self, source: str) -> Path:
        """Where it is read from."""
        return self.instead.get(source, self.docs / source)

    def exists(self, source: str) -> bool:
        """Whether it is there: results that are still being measured are not."""
        return self.path(source).is_file()

    def __getitem__(self, source: str) -> Any:
        if source not in self._read:
            self._read[source] = json.loads(self.path(source).read_text(encoding="utf-8"))
        return self._read[source]


def by_seed(table: Any, arm: str, key: str = "accuracy") -> dict[int, float]:
    """Values of an arm of a comparison's table.json by seed: "accuracy", or "perplexity" where there is one.

    Raises:
        KeyError: No such arm.
    """
    for row in table["arms"]:
        if row["name"] == arm:
            return {int(seed): float(value) for seed, value in row[key].items()}
    raise KeyError(f"no arm {arm!r}; there are {[row['name'] for row in table['arms']]}")


def shared(one: Mapping[int, float], other: Mapping[int, float], first: int = 0) -> tuple[list[float], list[float]]:
    """Values of both for the seeds that both have, from seed `first` on."""
    seeds = sorted(seed for seed in set(one) & set(other) if seed >= first)
    return [one[s] for s in seeds], [other[s] for s in seeds]


def accuracy(arm: str) -> Measure:
    """Test accuracy of an arm of a comparison, %."""

    def measure(table: Any, level: float) -> Interval:
        return student(list(by_seed(table, arm).values()), level).scaled(100)

    return measure


def accuracy_difference(arm: str, baseline: str, *, first_seed: int = 0) -> Measure:
    """Paired difference of two arms of a comparison, points."""

    def measure(table: Any, level: float) -> Interval:
        return paired(*shared(by_seed(table, arm), by_seed(table, baseline), first_seed), level).scaled(100)

    return measure


def cells(sweep: Any, gate: str) -> dict[float, list[float]]:
    """Accuracies of the seeds of a gate of a tolerance.json, by strength; "no penalty" has the strength 0."""
    found = {float(c["strength"]): [float(a) for a in c["accuracies"]] for c in sweep["cells"] if c["gate"] == gate}
    if not found:
        raise KeyError(f"no gate {gate!r}; there are {sorted({c['gate'] for c in sweep['cells']})}")
    return found


def mean_over(values: Mapping[float, Sequence[float]], strengths: Sequence[float], first: int = 0) -> list[float]:
    """Mean over the strengths, seed by seed, from seed `first` on."""
    rows = zip(*(values[strength][first:] for strength in strengths), strict=True)
    return [sum(row) / len(strengths) for row in rows]


def largest(find: Callable[[Any], Sequence[float]]) -> Measure:
    """Largest of the values that `find` picks: a bound on errors, exact for the cases that were tried."""

    def measure(found: Any, level: float) -> Interval:
        values = find(found)
        return Interval(max(values), max(values), max(values), len(values))

    return measure
