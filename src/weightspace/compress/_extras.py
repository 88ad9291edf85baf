"""Packages of the extras that compressing needs."""

from __future__ import annotations

from typing import Any

from weightspace import extras
from weightspace.errors import CompressError


def package(name: str, purpose: str, *, extra: str = "compress") -> Any:
    """`weightspace.extras.package`, which raises CompressError."""
    return extras.package(name, purpose, extra=extra, error=CompressError)
