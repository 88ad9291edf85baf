"""One page of a report as the template shows it."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path

_PIXELS, _DRAWN = 100, 160  # an inch on the page, and in the file (`weightspace.figures`)


@dataclass(frozen=True)
class Page:
    """All that the template shows, as plain text: the template escapes every value."""

    title: str
    description: str
    verdict: list[str]
    warnings: list[str]
    facts: list[tuple[str, str]]
    recipe: str
    images: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    columns: list[str] = field(default_factory=list[str])
    rows: list[list[str]] = field(default_factory=list[list[str]])
    baseline_row: int | None = None
    notes: list[str] = field(default_factory=list[str])
    arms: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    layer_columns: list[str] = field(default_factory=list[str])
    layer_rows: list[list[str]] = field(default_factory=list[list[str]])
    diagnostics: list[list[str]] = field(default_factory=list[list[str]])


def image_of(path: Path, title: str, caption: str) -> dict[str, str]:
    """A PNG file as the template shows it, as wide as it was drawn: 100 px an inch."""
    content = path.read_bytes()
    width = int.from_bytes(content[16:20], "big") * _PIXELS // _DRAWN
    data = base64.b64encode(content).decode("ascii")
    return {"name": path.stem, "title": title, "caption": caption, "data": data, "width": str(width)}
