"""Tables and pictures of `experiments.certified`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def line(record: dict[str, Any]) -> str:
    """One run, for the log."""
    certified = ", ".join(f"{record['certified'][i]:.3f}" for i in (4, 10, 20, 40))
    return (
        f"{record['arm']}, seed {record['seed']}: accuracy {record['accuracy']:.3f}, certified at 0.1, 0.25, 0.5, 1: "
        f"{certified}; attacked {record['attacked']}; L <= {record['bound']:.3f}, >= {record['stretch']:.3f}; "
        f"{record['violations']} violations, {record.get('implied_violations', '')} implied; "
        f"{record['milliseconds']:.0f} ms"
    )


def write(results: dict[str, Any], folder: Path) -> None:
    """Written below."""
