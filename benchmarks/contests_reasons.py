"""Why ours is not first, contest by contest: a sentence or two each, shown where the verdict is not "first"."""

from __future__ import annotations

REASONS: dict[str, str] = {}
