"""Masks as a state that needs no pickle: one bit a number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypedDict, cast

import torch
from torch import Tensor

from weightspace.compress._places import pack, unpack
from weightspace.errors import CompressError, nearest

_VERSION = 1


class Entry(TypedDict):
    """The mask of one weight: its shape, and eight numbers to a byte, 1 for what is kept, in row-major order."""

    shape: list[int]
    kept: Tensor


class State(TypedDict):
    """All masks."""

    version: int
    masks: dict[str, Entry]


def write_state(dropped: Mapping[str, Tensor]) -> State:
    """The state of masks (True for a zero)."""
    masks: dict[str, Entry] = {
        name: {"shape": list(mask.shape), "kept": pack(~mask.reshape(-1))} for name, mask in dropped.items()
    }
    return {"version": _VERSION, "masks": masks}


def read_state(state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """What is dropped of each weight.

    Args:
        state: As `write_state` made it, or something else.
        shapes: Of the model's parameters.

    Raises:
        CompressError: It is something else, newer, or of another model.
    """
    version, masks = (state.get("version"), state.get("masks")) if isinstance(state, Mapping) else (None, None)
    if not isinstance(version, int) or not isinstance(masks, Mapping):
        raise CompressError("This is no state of masks; pass what masks.state_dict() gave.")
    if version > _VERSION:
        raise CompressError(f"The state has version {version}, this weightspace reads {_VERSION}: update weightspace.")
    return {name: _read(name, entry, shapes) for name, entry in cast("Mapping[str, Any]", masks).items()}


def _read(name: str, entry: Any, shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
    if name not in shapes:
        raise CompressError(
            f"The state masks {name}, which the model does not have{nearest(name, shapes)}; load it into the "
            "model that it was saved from."
        )
    shape = shapes[name]
    kept = entry.get("kept") if isinstance(entry, Mapping) else None
    if kept is None or list(entry.get("shape", ())) != list(shape):
        raise CompressError(
            f"The state's mask of {name} has not the shape {shape} that the model's weight has; it is of another model."
        )
    n = math.prod(shape)
    if not isinstance(kept, Tensor) or kept.dtype != torch.uint8 or kept.shape != (-(-n // 8),):
        raise CompressError(f"The state's mask of {name} is damaged: it is not {-(-n // 8)} bytes.")
    return unpack(kept)[:n].view(shape) == 0
