"""Comparisons: arms x seeds at an equal tuning budget, with paired intervals.

`run_comparison` trains what a recipe's `compare` part describes, `comparison_table` prints the result,
`read_comparison` reads a comparison's folder, finished or not.
"""

from __future__ import annotations

from weightspace.compare.execution import EngineChoice, Execution, Progress
from weightspace.compare.pool import ComparisonInterrupted
from weightspace.compare.results import ArmResult, Comparison, read_comparison
from weightspace.compare.runner import run_comparison
from weightspace.compare.statistics import Estimate, holm, mean_interval, paired_difference
from weightspace.compare.table import comparison_table, write_tables

__all__ = [
    "ArmResult",
    "Comparison",
    "ComparisonInterrupted",
    "EngineChoice",
    "Estimate",
    "Execution",
    "Progress",
    "comparison_table",
    "holm",
    "mean_interval",
    "paired_difference",
    "read_comparison",
    "run_comparison",
    "write_tables",
]
