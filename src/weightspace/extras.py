"""Packages that come with an extra: imported when they are needed, with one sentence when they are missing."""

from __future__ import annotations

import importlib
import warnings
from typing import Any


def package(name: str, purpose: str, *, extra: str, error: type[Exception]) -> Any:
    """Import a package of an extra.

    Args:
        name: The package, as it is imported.
        purpose: What it is needed for, in words.
        extra: The extra of weightspace that installs it.
        error: Raised if it is not installed, or broken; says what to type.

    >>> package("json", "reading", extra="train", error=RuntimeError).__name__
    'json'
    >>> package("no_such_package", "flying", extra="train", error=RuntimeError)
    Traceback (most recent call last):
    RuntimeError: flying needs no_such_package; pip install "weightspace[train]"
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ArviZ announces its next version to everybody who imports it
            return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        raise error(f'{purpose} needs {missing.name or name}; pip install "weightspace[{extra}]"') from missing
    except Exception as broken:  # what imports all else that is installed fails where that is broken, in many ways
        reason = f"{type(broken).__name__}: {broken}"
        raise error(f"{purpose} needs {name}, which does not import here ({reason}); repair it") from broken
