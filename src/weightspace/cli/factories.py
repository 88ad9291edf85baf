"""Models that a function of the user's makes: `module:factory` on the command line."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from weightspace.errors import InspectionError

if TYPE_CHECKING:
    from torch import nn


def make_model(target: str, arguments: dict[str, Any]) -> tuple[nn.Module, Any]:
    """Calls a user's function.

    Args:
        target: `"module:function"`; modules beside the user are found, as `python -m` finds them.
        arguments: For the function, by keyword.

    Returns:
        The model that it returns, and its example input or None.

    Raises:
        InspectionError: There is no such function, it fails, or it returns something else.
    """
    import torch

    factory = _factory(target)
    try:
        made = factory(**arguments)
    except Exception as error:  # whatever a user's factory raises
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise InspectionError(
            f"{target}({given}) failed: {type(error).__name__}: {error}; give its arguments with --option NAME=VALUE."
        ) from error
    pair = cast("tuple[Any, ...]", made) if isinstance(made, tuple) else (made, None)
    if len(pair) != 2 or not isinstance(pair[0], torch.nn.Module):
        raise InspectionError(
            f"{target} returned a {type(made).__name__}; it should return a torch module, or a module and an example."
        )
    return pair[0], pair[1]


def _factory(target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ImportError as error:
        raise InspectionError(
            f"cannot import {module_name}: {error}; check the name and the folder you are in."
        ) from error
    except AttributeError:
        raise InspectionError(f"{module_name} has no {attribute}; name a function that returns a model.") from None
    except Exception as error:  # whatever a user's module raises; ValueError and TypeError: it is no module's name
        raise InspectionError(
            f"importing {module_name!r} failed: {type(error).__name__}: {error}; name a module and a function of it."
        ) from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise InspectionError(f"{target} is a {type(found).__name__}; name a function that returns a model.")
    return found
