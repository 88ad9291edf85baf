"""Files of shrunk models: the smaller tensors, and what to change in the model's own code to hold them.

One file of `save_sparse`, so zeros cost little and 8 bits are possible. Its metadata name every number in a module that
shrinking changed (`out_channels`, `in_features`, `num_features`, `groups`, ...), so the model that its own code builds
is cut to size and takes the weights. Nothing is unpickled.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.compress._coding import Bits
from weightspace.compress.sparse_files import content_of, read_sparse
from weightspace.errors import CompressError
from weightspace.files import write_bytes_atomically

_CHANGES = "changes"
_MOST = 1 << 40  # no layer has more channels; a longer number would fail somewhere in torch


def save_shrunk(small: nn.Module, model: nn.Module, path: str | Path, *, bits: Bits = None) -> Path:
    """Write a shrunk model.

    Args:
        small: What `shrink` made: `shrunk.model`.
        model: The model that it was made from, or another of the same shape.
        path: The file; written whole or not at all.
        bits: None keeps every bit, 8 rounds as `save_sparse` does.

    Returns:
        `path`.

    Raises:
        CompressError: The two have different modules, or what `save_sparse` refuses.
        RunError: The file cannot be written.
    """
    names, others = [name for name, _ in small.named_modules()], [name for name, _ in model.named_modules()]
    if names != others:
        raise CompressError("the shrunk model and the model have different modules; give the model that was shrunk")
    changes = {
        name: found
        for (name, new), (_, old) in zip(small.named_modules(), model.named_modules(), strict=True)
        if (found := _changed_numbers(new, old))
    }
    content, _ = content_of(small, bits, {_CHANGES: json.dumps(changes, separators=(",", ":"))})
    write_bytes_atomically(Path(path), content)
    return Path(path)


def load_shrunk(model: nn.Module, path: str | Path) -> nn.Module:
    """Read a shrunk model.

    Args:
        model: The model as its own code builds it, with any weights; left as it is.
        path: A file of `save_shrunk`.

    Returns:
        A copy with the smaller tensors of the file and the training mode of `model`.

    Raises:
        CompressError: The file is damaged or foreign, or belongs to another model.
    """
    state, changes = _read(Path(path))
    small = copy.deepcopy(model)
    modules = dict(small.named_modules())
    for name, numbers in changes.items():
        if name not in modules:
            raise CompressError(f"{path} belongs to another model: this one has no {name}")
        for attribute, value in numbers.items():
            present = vars(modules[name]).get(attribute)  # no property, no flag such as `training`
            if not isinstance(present, int) or isinstance(present, bool):
                raise CompressError(f"{path} belongs to another model: {name} has no number {attribute}")
            setattr(modules[name], attribute, value)
    for key, tensor in state.items():
        owner, _, leaf = key.rpartition(".")
        if owner not in modules:
            raise CompressError(f"{path} belongs to another model: this one has no {owner}")
        try:
            _resize(modules[owner], leaf, tensor)
        except (RuntimeError, KeyError) as error:  # integers as a parameter; a name that is taken
            raise CompressError(f"{path} belongs to another model: {key} cannot be {tensor.dtype} there") from error
    try:
        small.load_state_dict(state)
    except RuntimeError as error:
        raise CompressError(f"{path} belongs to another model: {' '.join(str(error).split())}") from error
    return small


def _changed_numbers(new: nn.Module, old: nn.Module) -> dict[str, int]:
    """Whole numbers among a module's attributes that shrinking changed."""
    return {
        name: value
        for name, value in vars(new).items()
        if isinstance(value, int) and not isinstance(value, bool) and vars(old).get(name) != value
    }


def _resize(module: nn.Module, leaf: str, like: Tensor) -> None:
    """Make room for a tensor: a parameter or buffer of its shape. A folded bias may be new."""
    present: Any = getattr(module, leaf, None)
    if isinstance(present, Tensor) and present.shape == like.shape:
        return
    is_buffer = leaf in dict(module.named_buffers(recurse=False))
    target = present if isinstance(present, Tensor) else next(module.parameters(recurse=False), like)
    empty = torch.empty(like.shape, dtype=like.dtype, device=target.device)
    if is_buffer:
        module.register_buffer(leaf, empty)
    elif isinstance(present, Tensor) or leaf == "bias":
        requires_grad = present.requires_grad if isinstance(present, Tensor) else True
        module.register_parameter(leaf, nn.Parameter(empty, requires_grad=requires_grad))


def _read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Mapping[str, int]]]:
    state, header = read_sparse(path)
    if _CHANGES not in header:
        raise CompressError(f"{path} holds no shrunk model but a whole one; read it with load_sparse()")
    try:
        changes = json.loads(header[_CHANGES])
        return state, {str(name): {str(k): _whole(v) for k, v in numbers.items()} for name, numbers in changes.items()}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise CompressError(f"{path} is damaged: its list of changes cannot be read ({error})") from error


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -_MOST <= value <= _MOST:
        raise ValueError(f"{value!r} is no size")
    return value
