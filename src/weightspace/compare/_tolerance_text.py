"""A sweep of strengths in words: its sentences, its table, and the page that holds both."""

from __future__ import annotations

import math

from weightspace.compare.tolerance import Cell, Tolerance
from weightspace.gates.theory import largest_strength, tolerance_level

START = 0.5  # of the chain in the picture: half of what its factors should become
_LEGEND = (
    "Test accuracy, the mean over seeds; `x`: collapsed. *open*: share of the steps at which the gate was open, the "
    "mean over weights. *zeros*: exact zeros among all weights, which only `application: proximal` makes. *gone*: "
    "weights (kernels or matrices) that vanished altogether."
)
_POWERS = {"L1": 1, "GroupL1": 1, "ElasticNet": 1}  # what is linear in the size of a weight near zero; others: 2


def verdict_lines(tolerance: Tolerance) -> list[str]:
    """What the sweep found: one sentence for each gate, after what is measured against what."""
    base = tolerance.baseline
    first = (
        f"Without the penalty: {_percent(base.accuracy)} (guessing: {_percent(tolerance.chance)}). "
        f"Below {_percent(tolerance.threshold)}, half way, a network has collapsed."
    )
    if not tolerance.learns:
        more = "no tolerance level can be told; give it more epochs or another learning rate."
        return [f"{first} It hardly learns in this budget even without the penalty, so {more}"]
    levels = [(gate, tolerance.level(gate).text()) for gate in tolerance.gates if tolerance.of(gate)]
    lines = [first, *(f"{gate}: tolerance level {text}." for gate, text in levels)]
    if len(base.accuracies) == 1:
        lines.append("One seed: an octave is what such a sweep can tell, accuracies that are close it cannot.")
    if tolerance.missing:
        lines.append(f"Not finished: {len(tolerance.missing)} arms lack runs, the first is '{tolerance.missing[0]}'.")
    return lines


def theory_lines(tolerance: Tolerance) -> list[str]:
    """The scalar theory beside the measurement: two sentences."""
    power = _POWERS.get(tolerance.rule, 2)
    depth = max(tolerance.depth, power)
    level, largest = tolerance_level(depth, START, power), largest_strength(depth, power)
    kind = "L1" if power == 1 else "weight decay"
    gap = math.log2(largest / level)
    picture = (
        f"In the scalar picture, {depth} equal factors (this network has {tolerance.depth} layers with weights) that "
        f"start at {START:g} of what they should become learn under {kind} that is always on up to a strength of "
        f"{level:.3g}, and under one that sets in when they have learned up to {largest:.3g}: {gap:.1f} octaves more."
    )
    limits = (
        "It shows why a gate can help and predicts no number of this network: strengths are in other units, its layers "
        "are no equal factors, and no start is known for them; that there is a gap, and that depth widens it, is what "
        "carries over."
    )
    return [picture, limits]


def table_cells(tolerance: Tolerance) -> tuple[list[str], list[list[list[str]]]]:
    """The table: one row for each strength, one column for each gate.

    Returns:
        The headings; and the rows of cells of lines: accuracy with `x` where it collapsed, how often the gate was open,
        zeros, weights that vanished. Empty where nothing was trained.
    """
    gates = [gate for gate in tolerance.gates if tolerance.of(gate)]
    cells = {(cell.gate, cell.strength): cell for cell in tolerance.cells}
    strengths = sorted({cell.strength for gate in gates for cell in tolerance.of(gate)})
    rows = [
        [[f"{strength:g}"], *(_lines(tolerance, cells.get((gate, strength))) for gate in gates)]
        for strength in strengths
    ]
    return ["strength", *gates], rows


def markdown(tolerance: Tolerance, plot: str) -> str:
    """The whole page.

    Args:
        tolerance: What was found.
        plot: File name of the plot, beside the page.
    """
    headings, rows = table_cells(tolerance)
    seeds = len(tolerance.baseline.accuracies)
    lines = [
        f"# Tolerance level of {tolerance.model} under {tolerance.rule}: {tolerance.name}",
        "",
        f"{tolerance.data}; {tolerance.depth} layers with weights; {seeds} seed{'s' if seeds > 1 else ''}.",
        "",
        *(f"- {line}" for line in verdict_lines(tolerance)),
        "",
        f"![test accuracy against strength, one curve for each gate]({plot})",
        "",
        "| " + " | ".join(headings) + " |",
        "|" + "---|" * len(headings),
        *("| " + " | ".join("<br>".join(cell) for cell in row) + " |" for row in rows),
        "",
        _LEGEND,
        "",
        "## Why",
        "",
        " ".join(theory_lines(tolerance)),
        "",
    ]
    return "\n".join(lines)


def _lines(tolerance: Tolerance, cell: Cell | None) -> list[str]:
    if cell is None:
        return []
    found = [f"{_percent(cell.accuracy)}{' x' if tolerance.learns and tolerance.collapsed(cell) else ''}"]
    if cell.duty is not None:
        found.append(f"open {_percent(cell.duty)}")
    if cell.zeros > 0:
        found.append(f"zeros {_percent(cell.zeros)}")
    if cell.vanished:
        found.append(f"gone {len(cell.vanished)}")
    if cell.diverged:
        found.append(f"diverged {cell.diverged}")
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
