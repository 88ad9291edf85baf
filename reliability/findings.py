"""One measured cell of the table in docs/reliability.md, and where findings are kept between runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from weightspace.files import read_json, write_json_atomically

METHODS = ("singular values", "channel gradients", "gated penalties", "submanifolds", "constrained Langevin")
KEPT = Path(__file__).parents[1] / "docs" / "reliability"


@dataclass(frozen=True)
class Finding:
    """What was measured of one method.

    Attributes:
        method: One of `METHODS`, or "all" for what does not depend on the method.
        text: What the table's cell says: a number with its unit, short.
        holds: Whether it is what we claim.
        details: Everything needed to judge it: counts, errors by case, seeds.
    """

    method: str
    text: str
    holds: bool
    details: dict[str, Any] = field(default_factory=dict)


def keep(column: str, findings: list[Finding], *, command: str, machine: str, folder: Path = KEPT) -> None:
    """Writes the findings of a column to `folder/column.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"command": command, "machine": machine, "findings": [asdict(finding) for finding in findings]}
    write_json_atomically(folder / f"{column}.json", record)


def kept(column: str, folder: Path = KEPT) -> dict[str, Any] | None:
    """What `keep` wrote, or None."""
    path = folder / f"{column}.json"
    return dict(read_json(path)) if path.exists() else None
