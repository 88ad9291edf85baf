"""Packages that come with an extra: imported when they are needed, with one sentence when they are missing."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from weightspace.errors import SamplingError


def package(name: str, purpose: str) -> Any:
    """Import a package of the extra "sampling".

    Args:
        name: The package, as it is imported.
        purpose: What it is needed for, in words.

    Raises:
        SamplingError: It is not installed, or broken; says what to type.

    >>> package("json", "reading").__name__
    'json'
    >>> package("no_such_package", "A trace plot")
    Traceback (most recent call last):
    weightspace.errors.SamplingError: A trace plot needs no_such_package; pip install "weightspace[sampling]"
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ArviZ announces its next version to everybody who imports it
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SamplingError(f'{purpose} needs {error.name or name}; pip install "weightspace[sampling]"') from error
    except Exception as error:  # scientific packages built against another numpy fail with errors of many kinds
        reason = f"{type(error).__name__}: {error}"
        raise SamplingError(f"{purpose} needs {name}, which does not import here ({reason}); repair it") from error
