"""How far a run is, and how warm, from the end of its `metrics.jsonl`: another process may be writing it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from weightspace.files import JsonObject
from weightspace.training.logs import METRICS_FILE

_TAIL = 16_384  # bytes: more than what one measured step writes of a small network


def last_records(folder: Path) -> list[JsonObject]:
    """The last whole records of a run, oldest first; none where there are none yet."""
    try:
        with (folder / METRICS_FILE).open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - _TAIL))
            lines = stream.read().split(b"\n")
    except OSError:
        return []
    found: list[JsonObject] = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # cut at the front, or being written
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def last_step(folder: Path) -> int:
    """The last step that a run has told of; 0 before the first."""
    steps = [record["step"] for record in last_records(folder) if isinstance(record.get("step"), int)]
    return max(steps, default=0)


def progress_text(folders: Sequence[Path]) -> str:
    """The chains that are being sampled, and their temperatures: kinetic and configurational of the last measurement.

    >>> progress_text([])
    ''
    """
    return "; ".join(f"{folder.name}{_warmth(folder)}" for folder in folders)


def temperature_text(folder: Path) -> str:
    """The temperatures of a run, for the end of a progress line; empty where none were measured."""
    return _warmth(folder)


def _warmth(folder: Path) -> str:
    found = {r["name"]: r for r in last_records(folder) if r.get("kind") == "temperature" and "name" in r}
    parts = [f"{_number(r.get('kinetic'))}/{_number(r.get('configurational'))}" for r in found.values()]
    targets = {_number(record.get("target")) for record in found.values()}
    return f" T {' '.join(parts)} (asked {', '.join(sorted(targets))})" if parts else ""


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "–"
