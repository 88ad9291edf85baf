"""The state of a twin as its optimizer's: DTensors beside the weights, so that any number of processes can read it.

| state tensor | where the weight is in rows | where an owner steps the whole weight |
|---|---|---|
| of the weight's shape | a DTensor around the twin's own memory | a DTensor, scattered when the state is asked for |
| one number a point | a DTensor, split as the points are | the same tensor on all processes |
| more numbers than the weight | | a DTensor, split along its first dimension |
| step, radius, bounds, thermometers | the same on all processes | the same |
| counts of fallbacks | summed over the processes | the same |
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from weightspace.kernels.points import row_axis
from weightspace.sharding import Item, ShardLayout, is_sharded, layout_of, local_part, sharded_like

if TYPE_CHECKING:
    from weightspace.optim._mirrored import Mirrored
    from weightspace.optim._twin import Twin
    from weightspace.optim._twin_parts import Part
    from weightspace.optim._twin_weights import TwinWeights

# What is the same on all processes, whatever its shape; counts add up.
_ALIKE = frozenset({"step", "slack", "radius", "thermometer"})
_COUNT = "fallbacks"

Fact = tuple[str, Any]


@torch.no_grad()
def publish(twin: TwinWeights, outer: Mirrored, some: Iterable[Part] | None = None) -> None:
    """Brings the outer optimizer's state up to date. All processes call it.

    Args:
        twin: Whose state it is.
        outer: Its optimizer.
        some: Parts of these weights only; all by default.
    """
    parts = list(twin.parts() if some is None else some)
    split = [part for part in parts if part.layout is not None]
    known = twin.together.merged({part.number: _facts(part) for part in split}) if split else []
    items: list[Item] = []
    for part in parts:
        if part.layout is None:
            outer.state[part.held] = part.state if part.kind == "plain" else _of_copy(part)
            continue
        counted = sum(int(facts[part.number].get(_COUNT, ("", 0))[1]) for facts in known)
        count = int(outer.state[part.held].get(_COUNT, 0)) + counted if part.held in outer.state else counted
        fresh: dict[str, Any] = {}
        for key, fact in known[part.owner][part.number].items():
            fresh[key] = torch.tensor(count) if key == _COUNT else _seen(part, key, fact, items)
        if _COUNT in part.state:
            part.state[_COUNT].zero_()
        outer.state[part.held] = fresh
    twin.exchange.scatter(items)


def link(part: Part, outer: Mirrored) -> None:
    """Lets the outer state share memory again with tensors of rows that a step made anew."""
    if part.kind != "rows" or part.tensor is None:
        return
    for key, (tensor, _) in part.wrapped.items():
        now = part.state.get(key)
        if now is not tensor and isinstance(now, torch.Tensor):
            outer.state[part.held][key] = _wrapped(part, key, now, tuple(part.held.shape), 0)


@torch.no_grad()
def adopt(twin: Twin, outer: Mirrored) -> None:
    """Takes what was loaded into the outer optimizer's state. All processes call it."""
    items: list[Item] = []
    twin.sync(outer)
    for part in twin.parts():
        loaded = outer.state[part.held]
        part.wrapped.clear()
        if part.layout is None:
            fresh = loaded if part.kind == "plain" else {k: _own_copy(v) for k, v in loaded.items()}
        else:
            fresh = {key: _taken(part, part.layout, key, value, items) for key, value in loaded.items()}
        if part.tensor is None:
            part.state = {"step": fresh["step"]}
            continue
        if _COUNT in fresh and part.layout is not None:
            fresh[_COUNT] = torch.zeros((), dtype=torch.int64)
        part.state = twin.inner.state[part.tensor] = fresh
    twin.exchange.gather(items)
    twin.complete()
    publish(twin, outer)


def _facts(part: Part) -> dict[str, Fact]:
    """What others must know of the state that this process has."""
    if not part.speaks:
        return {_COUNT: ("alike", part.state[_COUNT])} if _COUNT in part.state else {}
    return {key: _fact(part, key, value) for key, value in part.state.items()}


def _fact(part: Part, key: str, value: Any) -> Fact:
    if key == _COUNT or not isinstance(value, torch.Tensor):
        return "alike", value
    if key in _ALIKE or part.tensor is None:
        return "alike", value.detach().cpu().clone()
    if value.shape == part.tensor.shape:
        return "weight", value.dtype
    if part.kind == "rows":
        return "points", (value.dtype, tuple(value.shape))
    if value.numel() > part.tensor.numel():
        return "own", (value.dtype, tuple(value.shape))
    return "here", value.detach().cpu().clone()


def _seen(part: Part, key: str, fact: Fact, items: list[Item]) -> Any:
    """What the outer state holds of one entry."""
    kind, value = fact
    layout, held, local = part.layout, part.held, part.local
    if layout is None or kind == "alike":
        return value.clone() if isinstance(value, torch.Tensor) else value
    if kind == "here":
        return value.to(local.device)
    if kind == "weight" and part.kind == "rows":
        mine = part.state.get(key)
        if part.tensor is None or not isinstance(mine, torch.Tensor):
            mine = torch.empty(layout.part_shape(layout.rank), dtype=value, device=local.device)
        return _wrapped(part, key, mine, layout.shape, layout.dim)
    if kind == "points":
        dtype, first = value  # of process 0
        dim = row_axis(part.channels)
        shape = (*first[:dim], layout.shape[0], *first[dim + 1 :])
        mine = part.state.get(key)
        if part.tensor is None or not isinstance(mine, torch.Tensor):
            mine = torch.empty((*shape[:dim], 0, *shape[dim + 1 :]), dtype=dtype, device=local.device)
        return sharded_like(mine, held, shape, dim)
    dtype, shape = (value, layout.shape) if kind == "weight" else value
    own = ShardLayout(shape, layout.dim if kind == "weight" else 0, layout.rank, layout.ranks, layout.group)
    mine = torch.empty(own.part_shape(own.rank), dtype=dtype, device=local.device)
    whole = part.state[key] if part.tensor is not None else None
    items.append(Item(own, part.owner, mine, whole))
    return sharded_like(mine, held, shape, own.dim)


def _wrapped(part: Part, key: str, mine: torch.Tensor, shape: tuple[int, ...], dim: int) -> torch.Tensor:
    known = part.wrapped.get(key)
    if known is None or known[0] is not mine:
        known = part.wrapped[key] = (mine, sharded_like(mine, part.held, shape, dim))
    return known[1]


def _taken(part: Part, layout: ShardLayout, key: str, value: Any, items: list[Item]) -> Any:
    """One loaded entry as this process steps with it; whole tensors arrive with the exchange."""
    if not isinstance(value, torch.Tensor):
        return value
    if is_sharded(value):
        found = layout_of(value, f"{key} of {part.name}")
        if found is not None and part.kind == "rows" and found.dim in (0, row_axis(part.channels)):
            return local_part(value.detach()).clone()
        if found is not None and part.kind != "rows":
            local = local_part(value.detach())
            whole = (
                torch.empty(found.shape, dtype=local.dtype, device=local.device) if part.tensor is not None else None
            )
            items.append(Item(found, part.owner, local, whole))
            return whole
        value = value.full_tensor()  # type: ignore[attr-defined]
    if part.kind != "rows" or key in _ALIKE or not value.ndim:
        return value.clone()
    dim = layout.dim if tuple(value.shape) == layout.shape else row_axis(part.channels)
    return value.narrow(dim, *layout.rows(layout.rank)).clone()


def _of_copy(part: Part) -> dict[str, Any]:
    """The state of a weight that every process holds whole."""
    shape = tuple(part.held.shape)
    return {
        key: sharded_like(value, part.held)
        if isinstance(value, torch.Tensor) and tuple(value.shape) == shape
        else value
        for key, value in part.state.items()
    }


def _own_copy(value: Any) -> Any:
    return local_part(value.detach()).clone() if isinstance(value, torch.Tensor) else value
