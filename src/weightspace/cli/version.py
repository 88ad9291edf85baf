"""`weightspace --version`: needs torch only, so that it answers where extras are missing."""

from __future__ import annotations

from weightspace.training.environment import versions


def version_line() -> str:
    """One line with the versions of weightspace, torch and Python."""
    found = versions()
    return f"weightspace {found['weightspace']} (torch {found['torch']}, python {found['python']})"
