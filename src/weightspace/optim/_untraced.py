"""Keeps `torch.compile` out of what it cannot compile well: algorithms that choose their way by numbers they see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])

_torch: Any = torch  # the lazy form has no public name; torch's own optimizers use it


def untraced(function: F) -> F:
    """`torch.compiler.disable` that loads the compiler, which takes seconds, at the first call instead of at import.

    Inside a compiled step the function runs as it is, between two compiled parts. Cost: a microsecond a call.
    """
    return _torch._disable_dynamo(function)  # noqa: SLF001
