"""Losses of a comparison's final runs, beside its table of accuracies: `python -m experiments.comparison_losses RUN_DIR`.

Prints a Markdown table: mean training loss (over the last epoch, while it was trained) and test loss of each arm with
Student's interval over seeds, and paired differences of the test loss to one arm or several.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from weightspace.compare.plan import final_jobs
from weightspace.compare.records import read_result
from weightspace.compare.results import ArmResult, Comparison, read_comparison
from weightspace.compare.statistics import Estimate, mean_interval, paired_difference


def losses(comparison: Comparison, arm: ArmResult, key: str) -> list[float]:
    """One loss of the final runs that are there, by seed."""
    jobs = final_jobs(comparison.plan, arm.arm, arm.choice.trial if arm.choice else None)
    results = [read_result(comparison.run_dir, job) for job in jobs]
    return [float(result[key]) for result in results if result is not None]


def table(comparison: Comparison, against: Sequence[str]) -> str:
    """One row an arm; against which arms test losses are compared."""
    lines = [
        f"| arm | training loss | test loss | n |{''.join(f' test loss minus {name} |' for name in against)}",
        f"|:---|---:|---:|---:|{'---:|' * len(against)}",
    ]
    found = {arm.arm.name: losses(comparison, arm, "test_loss") for arm in comparison.arms}
    for arm in comparison.arms:
        mine = found[arm.arm.name]
        cells = [
            arm.arm.name,
            written(mean_interval(losses(comparison, arm, "train_loss"))),
            written(mean_interval(mine)),
            str(len(mine)),
        ]
        for name in against:
            shared = min(len(mine), len(found[name]))  # seeds are in order, the last ones may be missing
            is_same = name == arm.arm.name
            cells.append("–" if is_same else written(paired_difference(mine[:shared], found[name][:shared]), sign="+"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def written(estimate: Estimate, sign: str = "") -> str:
    """Mean and interval."""
    text = f"{estimate.mean:{sign}.3f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} ({estimate.low:{sign}.3f} to {estimate.high:{sign}.3f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.comparison_losses", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="folder of a comparison")
    parser.add_argument("--against", action="append", help="an arm; repeatable (default: the baseline)")
    options = parser.parse_args(arguments)
    comparison = read_comparison(options.run_dir)
    print(table(comparison, options.against or [comparison.baseline.arm.name]), end="")


if __name__ == "__main__":
    main()
