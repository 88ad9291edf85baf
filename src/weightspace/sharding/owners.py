"""Which process computes on which whole matrix: each one once, the load shared out evenly."""

from __future__ import annotations

from collections.abc import Sequence


def share_out(costs: Sequence[float], ranks: int, loads: list[float] | None = None) -> list[int]:
    """For each job the process that does it: the longest job first, to whom has least to do.

    A function of the costs alone, so that all processes agree without a word. The largest load is at most 4/3 of the
    best possible (Graham 1969).

    Args:
        costs: Of the jobs, in any unit.
        ranks: Number of processes.
        loads: What each process has to do already; brought up to date.

    Example:
        >>> share_out([4.0, 1.0, 3.0, 1.0, 1.0], 2)
        [0, 1, 1, 0, 1]
    """
    loads = [0.0] * ranks if loads is None else loads
    owners = [0] * len(costs)
    for job in sorted(range(len(costs)), key=lambda k: (-costs[k], k)):
        owners[job] = rank = min(range(ranks), key=lambda r: (loads[r], r))
        loads[rank] += costs[job]
    return owners


def matrix_cost(shape: Sequence[int]) -> float:
    """Of a factorization of a weight as a matrix of its first dimension: `n p min(n, p)`.

    Example:
        >>> matrix_cost((8, 3, 3, 3))  # 8 by 27
        1728.0
    """
    rows = shape[0] if shape else 1
    columns = 1
    for n in shape[1:]:
        columns *= n
    return float(rows * columns * min(rows, columns))
