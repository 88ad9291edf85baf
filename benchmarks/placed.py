"""The moment at which a contestant's weights and gradients are in place, and its own part begins: memory counts from here."""

from __future__ import annotations

from collections.abc import Callable

LISTENERS: list[Callable[[], object]] = []


def placed() -> None:
    """Whoever makes a contestant says so before it makes optimizers, buffers or parametrizations."""
    for listener in LISTENERS:
        listener()
