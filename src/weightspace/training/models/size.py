"""How much memory a model would take, counted before a number of it is made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn

from weightspace.errors import RecipeError

# Below these no model of ours is large; above, it is built once without memory, which takes milliseconds.
_WIDE, _MANY = 2048, 64


def refuse_absurd(name: str, builder: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> None:
    """Refuse a model whose weights alone exceed the memory of this machine.

    Args:
        name: Of the model.
        builder: Makes it.
        arguments: For the builder.

    Raises:
        RecipeError: It is too large; the sentence says what it would need.
    """
    numbers = _numbers(list(arguments.values()))
    if max(numbers, default=0) <= _WIDE and len(numbers) <= _MANY:
        return
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = builder(**arguments)
        needed = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    except (RuntimeError, OverflowError, TypeError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(
            f'Model "{name}" with these options is larger than torch can count; make it smaller.'
        ) from error
    if needed > (memory := machine_memory()):
        raise RecipeError(
            f'Model "{name}" with these options needs {in_words(needed)} for its weights alone, and this machine has '
            f"{in_words(memory)} of memory; make it smaller."
        )


def machine_memory() -> int:
    """Bytes of this machine's memory; a terabyte where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 1 << 40


def in_words(size: int) -> str:
    """Bytes as people read them.

    >>> in_words(795010 * 4), in_words(4 * 10**15)
    ('3.2 MB', '4,000.0 TB')
    """
    for factor, unit in ((10**12, "TB"), (10**9, "GB")):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size / 10**6:,.1f} MB"


def _numbers(values: list[Any]) -> list[int]:
    found: list[int] = []
    for value in values:
        if isinstance(value, list | tuple):
            found += _numbers(list(cast("list[Any]", value)))
        elif isinstance(value, int):
            found.append(value)
    return found
