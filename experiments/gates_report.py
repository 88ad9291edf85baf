"""Does coherence beat delay and chance? `python -m experiments.gates_report FOLDER ... [--out FILE]`.

Reads the `tolerance.json` of sweeps (`weightspace tolerance RECIPE --out FOLDER`) and prints for each of them a table of
test accuracies, then paired differences of test accuracy between gates, seed by seed: the mean over those strengths at which the penalty that is
always on has collapsed, and, apart from it, over those at which it has not. Intervals are Student's over seeds, and
p-values Holm-adjusted over all comparisons printed for collapsed strengths.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from weightspace.compare.statistics import Estimate, holm, paired_difference
from weightspace.compare.tolerance import TOLERANCE_FILE, Tolerance, load_tolerance
from weightspace.files import write_text_atomically

ALWAYS = "always"
PAIRS = (
    ("coherent-total", "random as total"),
    ("coherent-history", "random as history by layer"),
    ("coherent-total", "delayed half"),
    ("coherent-history", "delayed half"),
    ("coherent-previous", "delayed half"),
    ("delayed half", "delayed quarter"),
)


def since(found: Tolerance, seed: int) -> Tolerance:
    """The same with the runs of this seed and later ones only."""
    return replace(found, cells=tuple(replace(cell, accuracies=cell.accuracies[seed:]) for cell in found.cells))


def means(found: Tolerance, gate: str, strengths: Sequence[float]) -> list[float]:
    """For each seed the accuracy in percent, mean over strengths."""
    cells = [cell for cell in found.of(gate) if cell.strength in strengths]
    return [100 * fmean(values) for values in zip(*(cell.accuracies for cell in cells), strict=True)]


def difference(found: Tolerance, pair: tuple[str, str], strengths: Sequence[float]) -> Estimate | None:
    """The paired difference of two gates; None where one of them was not trained at these strengths."""
    shared = [s for s in strengths if all(any(c.strength == s for c in found.of(gate)) for gate in pair)]
    if not shared:
        return None
    return paired_difference(means(found, pair[0], shared), means(found, pair[1], shared), level=found.confidence)


def collapsed_strengths(found: Tolerance) -> tuple[list[float], list[float]]:
    """Strengths at which the penalty that is always on has collapsed, and the others."""
    cells = found.of(ALWAYS)
    return (
        [cell.strength for cell in cells if found.collapsed(cell)],
        [cell.strength for cell in cells if not found.collapsed(cell)],
    )


def table(sweeps: Sequence[Tolerance]) -> str:
    """One row for each sweep and pair."""
    above = {(f.name, f.rule, p): difference(f, p, collapsed_strengths(f)[0]) for f in sweeps for p in PAIRS}
    found = {key: estimate for key, estimate in above.items() if estimate is not None}
    adjusted = dict(zip(found, holm([estimate.p_value for estimate in found.values()]), strict=True))
    rows = [
        "| sweep | collapsed at | difference | where always-on has collapsed, points | adjusted p | where it has not |",
        "|:---|:---|:---|---:|---:|---:|",
    ]
    for sweep in sweeps:
        collapsed, learned = collapsed_strengths(sweep)
        for pair in PAIRS:
            key = (sweep.name, sweep.rule, pair)
            below = difference(sweep, pair, learned)
            if key not in found and below is None:
                continue
            cells = [
                f"{sweep.name}, {sweep.rule}",
                ", ".join(f"{s:g}" for s in collapsed) or "none",
                " − ".join(pair),
                written(found.get(key)),
                _p(adjusted.get(key)),
                written(below),
            ]
            rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def accuracies(found: Tolerance) -> str:
    """One row for each gate: its tolerance level; by strength the accuracy, how often it was open, x for a collapse."""
    strengths = sorted({cell.strength for cell in found.cells if cell.strength})
    base = found.baseline
    rows = [
        f"| {found.name}, {found.rule} | tolerance level | {' | '.join(f'{s:g}' for s in strengths)} |",
        f"|:---|:---|{'---:|' * len(strengths)}",
        f"| no penalty | – | {100 * base.accuracy:.1f} |" + " |" * (len(strengths) - 1),
    ]
    for gate in found.gates:
        cells = {cell.strength: cell for cell in found.of(gate)}
        row = [gate, found.level(gate).text()]
        for strength in strengths:
            cell = cells.get(strength)
            if cell is None:
                row.append("")
                continue
            is_open = "" if cell.duty is None else f" ({100 * cell.duty:.0f} %)"
            row.append(f"{100 * cell.accuracy:.1f}{' x' if found.collapsed(cell) else ''}{is_open}")
        rows.append("| " + " | ".join(row) + " |")
    return "\n".join(rows) + "\n"


def written(estimate: Estimate | None) -> str:
    """Mean and interval."""
    if estimate is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:+.1f}"
    return f"{estimate.mean:+.1f} ({estimate.low:+.1f} to {estimate.high:+.1f})"


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def main(arguments: list[str] | None = None) -> None:
    """Prints the table, or writes it."""
    parser = argparse.ArgumentParser(prog="python -m experiments.gates_report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="folders with tolerance.json")
    parser.add_argument("--out", type=Path, default=None, help="write a file instead of printing")
    parser.add_argument("--from-seed", type=int, default=0, help="leave earlier seeds out (default: %(default)s)")
    options = parser.parse_args(arguments)
    sweeps = [since(load_tolerance(folder / TOLERANCE_FILE), options.from_seed) for folder in options.folders]
    text = "\n".join([*(accuracies(sweep) for sweep in sweeps), table(sweeps)])
    if options.out is None:
        print(text, end="")
    else:
        write_text_atomically(options.out, text)


if __name__ == "__main__":
    main()
