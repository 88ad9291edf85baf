"""State that is sharded over processes, whole and back: checkpoints hold whole tensors, whatever wrote them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from weightspace.sharding import is_sharded, layout_of, sharded_like


def whole(value: Any, *, keep: bool) -> Any:
    """Nested state with every DTensor whole on the CPU, tensor by tensor. Collective where there are DTensors.

    Args:
        value: Dicts, lists and tuples of tensors and anything else.
        keep: Whether this process wants the result; otherwise sharded tensors become None and take no memory.

    Returns:
        The same nesting; what is not sharded is passed through, not copied.

    Cost: every process receives every sharded tensor once; one of them is in memory at a time where it is not kept.
    """
    if isinstance(value, Tensor):
        if not is_sharded(value):
            return value
        full = cast("Any", value.detach()).full_tensor()
        return full.to("cpu") if keep else None
    if isinstance(value, Mapping):
        return {key: whole(entry, keep=keep) for key, entry in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        entries = [whole(entry, keep=keep) for entry in cast("Sequence[Any]", value)]
        return entries if isinstance(value, list) else tuple(entries)
    return value


def sharded_as(value: Any, template: Any) -> Any:
    """Nested whole state with those tensors sharded that are so in a template; nothing is sent.

    Args:
        value: Whole state, the same on all processes.
        template: State of the same nesting. What it lacks stays whole.

    Returns:
        State that can be loaded where the template was taken.
    """
    if isinstance(value, Tensor):
        return _sharded(value, template) if isinstance(template, Tensor) and is_sharded(template) else value
    if isinstance(value, Mapping):
        known = cast("Mapping[Any, Any]", template) if isinstance(template, Mapping) else {}
        return {key: sharded_as(entry, known.get(key)) for key, entry in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        values = cast("Sequence[Any]", value)
        others = cast("Sequence[Any]", template) if isinstance(template, list | tuple) else ()
        entries = [sharded_as(entry, others[k] if k < len(others) else None) for k, entry in enumerate(values)]
        return entries if isinstance(value, list) else tuple(entries)
    return value


def optimizer_state_as(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole state of an optimizer, sharded as its parameters are.

    torch's optimizers make their state in their first step, so that there is no template before: what has the shape of
    its parameter is sharded like it.

    Args:
        state: `state_dict()` of an optimizer, whole.
        optimizer: What it is to be loaded into.
    """
    now = optimizer.state_dict()["state"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries: dict[Any, Any] = {}
    for number, found in state["state"].items():
        parameter = parameters[number] if number < len(parameters) else None
        made = now.get(number, {})
        entries[number] = {
            key: sharded_as(value, made[key] if key in made else _like(value, parameter))
            for key, value in found.items()
        }
    return {**state, "state": entries}


def _like(value: Any, parameter: Tensor | None) -> Tensor | None:
    same = isinstance(value, Tensor) and parameter is not None and value.shape == parameter.shape and value.ndim > 0
    return parameter if same else None


def _sharded(value: Tensor, like: Tensor) -> Tensor:
    """Every process has the whole tensor and keeps its part."""
    layout = layout_of(like, "a tensor of the checkpoint")
    part = value if layout is None else layout.cut(value, layout.rank)
    return sharded_like(part.to(like.device, copy=True).contiguous(), like)
