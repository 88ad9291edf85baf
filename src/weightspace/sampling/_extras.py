"""Packages of the extra "sampling"."""

from __future__ import annotations

from typing import Any

from weightspace import extras
from weightspace.errors import SamplingError


def package(name: str, purpose: str) -> Any:
    """`weightspace.extras.package`, which raises SamplingError."""
    return extras.package(name, purpose, extra="sampling", error=SamplingError)
