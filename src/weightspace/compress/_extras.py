"""Packages that come with an extra: imported when they are needed, with one sentence when they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from weightspace.errors import CompressError


def package(name: str, purpose: str, *, extra: str = "compress") -> Any:
    """Import a package of an extra.

    Args:
        name: The package, as it is imported.
        purpose: What it is needed for, in words.
        extra: The extra of weightspace that installs it.

    Raises:
        CompressError: It is not installed, or broken; says what to type.

    >>> package("json", "reading").__name__
    'json'
    >>> package("no_such_package", "flying")
    Traceback (most recent call last):
    weightspace.errors.CompressError: flying needs no_such_package; pip install "weightspace[compress]"
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise CompressError(f'{purpose} needs {error.name or name}; pip install "weightspace[{extra}]"') from error
    except Exception as error:  # Torch-Pruning imports what else is installed, and fails if that is broken
        reason = f"{type(error).__name__}: {error}"
        raise CompressError(f"{purpose} needs {name}, which does not import here ({reason}); repair it") from error
