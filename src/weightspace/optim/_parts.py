"""What this process computes on where `fully_shard` made weights DTensors: parts, plain tensors that stand for them.

| part | of a weight | on a process | what moves at a step |
|---|---|---|---|
| rows | whose rows (filters) no rule connects | its own rows, the memory of the DTensor | nothing |
| whole | of which a rule sees more | everything on one owner, nothing on the others | see below |

A whole part's gradient comes to its owner and the stand-in goes back (2 N numbers for N in the weight, all weights in
one exchange); a penalty brings the weight along (3 N). A manifold keeps the weight on its owner, and after the step
brings weight and momentum there and back (6 N, with one momentum). Every matrix is computed on once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from weightspace.errors import AttachError
from weightspace.kernels import Route, Rule
from weightspace.kernels.parameters import ParameterInfo
from weightspace.kernels.points import Channels
from weightspace.optim._part import Part
from weightspace.optim._transform import Swap
from weightspace.penalties import WeightPenalty
from weightspace.sharding import (
    ALONE,
    Exchange,
    Item,
    ShardLayout,
    Together,
    is_sharded,
    layout_of,
    local_gradient,
    local_part,
    matrix_cost,
    sharded_like,
    share_out,
)


class Parts:
    """The parts of all sharded weights of a plan; none where nothing is sharded, and then nothing is ever sent.

    Attributes:
        together: The processes that share the weights.
        exchange: Moves whole parts.
        parts: In the order of the routes, alike on all processes.
    """

    def __init__(self) -> None:
        self.together: Together = ALONE
        self.exchange = Exchange()
        self.parts: list[Part] = []
        self._known: dict[object, Part] = {}

    # ------------------------------------------------------------------ routing

    def build(self, rules: Sequence[Rule], routes: Iterable[Route]) -> tuple[Route, ...]:
        """The routes as this process follows them: sharded weights are replaced by their parts.

        Raises:
            AttachError: A weight is sharded in a way that rules cannot follow.
        """
        found = tuple(routes)
        sharded = [r for r in found if r.rules and is_sharded(r.info.parameter)]
        layouts = {r.info.name: layout_of(r.info.parameter, r.info.name) for r in sharded}
        self._join(sharded, layouts)
        whole = [r for r in sharded if layouts[r.info.name] is not None and not _splits(r, rules, layouts[r.info.name])]
        owners = dict(
            zip(
                (r.info.name for r in whole),
                share_out([matrix_cost(r.info.shape) for r in whole], self.together.ranks),
                strict=True,
            )
        )
        self.parts = [
            self._part(r, layouts[r.info.name], owners.get(r.info.name), tuple(rules[i] for i in r.rules))
            for r in sharded
        ]
        here = {part.info.name: part.info for part in self.parts}
        return tuple(_as_here(r, here.get(r.info.name), rules) for r in found)

    def _join(self, routes: Sequence[Route], layouts: Mapping[str, ShardLayout | None]) -> None:
        split = [(r.info, layout) for r in routes if (layout := layouts[r.info.name]) is not None]
        if not split:
            self.together = ALONE
            return
        first, layout = split[0]
        for info, other in split:
            if other.group is not layout.group:
                raise AttachError(
                    f"{info.name} and {first.name} are sharded over different groups of processes; one optimizer's "
                    "rules act on weights of one group: give each group an optimizer of its own."
                )
        self.together = Together(layout.group, layout.rank, layout.ranks, first.parameter.device)

    def _part(self, route: Route, layout: ShardLayout | None, owner: int | None, rules: tuple[Rule, ...]) -> Part:
        held = route.info.parameter
        local = local_part(held.detach())
        key = (route.info.name, id(held), local.dtype, local.device, owner, rules)
        known = self._known.get(key)
        if known is not None:
            known.follow()
            return known
        if owner is None:
            tensor = local
        elif layout is not None and layout.rank == owner:
            tensor = torch.empty(layout.shape, dtype=local.dtype, device=local.device)
        else:
            tensor = local.new_empty((0, *held.shape[1:]))
        parameter = nn.Parameter(tensor, requires_grad=held.requires_grad)
        info = replace(route.info, parameter=parameter, origin=held, is_split=layout is not None)
        part = Part(info, layout, owner, rules, torch.empty_like(local) if owner is not None else local.new_empty(0))
        self._known = {k: p for k, p in self._known.items() if k[0] != route.info.name}  # type: ignore[index]
        self._known[key] = part
        return part

    # ------------------------------------------------------------------ before the step

    @torch.no_grad()
    def pull(self, step: int) -> bool:
        """Fills the parts' gradients, and the weights that may have changed.

        Returns:
            Whether a constrained weight was written to from outside since the last step, on any process.
        """
        if not self.parts:
            return False
        is_written = self._ask_written()
        items: list[Item] = []
        for part in self.parts:
            grad = part.info.held.grad
            if grad is None or not part.acts_at(step):
                part.info.parameter.grad = None
                continue
            local = local_gradient(grad, part.info.held)
            if part.owner is None:
                part.follow()
                part.info.parameter.grad = local
                continue
            weight = part.info.parameter
            weight.grad = torch.empty_like(weight) if weight.grad is None else weight.grad
            items += part.item(local, weight.grad)
            if part.needs_weight and (not part.is_constrained or is_written):
                items += part.item(part.local, weight.detach())
        self.exchange.gather(items)
        return is_written

    def _ask_written(self) -> bool:
        kept = [part for part in self.parts if part.is_constrained]
        return bool(kept) and self.together.any(any(p.known is None or not torch.equal(p.known, p.local) for p in kept))

    @torch.no_grad()
    def pull_weights(self) -> None:
        """Brings all whole parts to their owners."""
        self.exchange.gather([i for p in self.parts for i in p.item(p.local, p.info.parameter.detach())])

    @torch.no_grad()
    def push_weights(self) -> None:
        """Shares out the weights that manifolds or penalties may have changed, and notes that all know them now."""
        moved = [part for part in self.parts if part.moves_after]
        self.exchange.scatter([i for p in moved for i in p.item(p.local, p.info.parameter.detach())])
        for part in moved:
            if part.is_constrained:
                part.known = part.local.clone() if part.known is None else part.known.copy_(part.local)

    @torch.no_grad()
    def stand_ins(self, swaps: Iterable[Swap], lent: Iterable[str]) -> list[Swap]:
        """What stands in for the gradients of the DTensors and of all other weights.

        Args:
            swaps: Of the parts and of all other weights.
            lent: Names of the weights that need stand-ins, alike on all processes.
        """
        if not self.parts:
            return list(swaps)
        by_part = {id(swap.parameter): swap for swap in swaps}
        names, items, found = set(lent), list[Item](), list[Swap]()
        for part in self.parts:
            swap, held = by_part.pop(id(part.info.parameter), None), part.info.held
            if part.info.name not in names or held.grad is None or part.info.parameter.grad is None:
                continue
            if part.owner is not None:
                if swap is not None:
                    swap.fill()
                items += part.item(part.stand_in, None if swap is None else swap.buffer)
                found.append(Swap(held, held.grad, part.as_sharded(part.stand_in)))
            elif swap is not None and swap.is_filled:
                found.append(Swap(held, held.grad, part.as_sharded(swap.buffer)))
        self.exchange.scatter(items)
        return [*found, *by_part.values()]

    # ------------------------------------------------------------------ after the step

    @torch.no_grad()
    def pull_stepped(self, optimizer: Optimizer, keys: Sequence[str]) -> None:
        """Brings to the owners where the optimizer put their weights, and what it keeps of constrained ones."""
        items: list[Item] = []
        for part in self.parts:
            part.states.clear()
            if not part.moves_after:
                continue
            items += part.item(part.local, part.info.parameter.detach())
            for key, state in self._momentum(part, optimizer, keys):
                if part.owner is None:
                    part.states[key] = local_part(state)
                    continue
                whole = part.like_weight()
                if whole is not None:
                    whole = part.states[key] = whole.to(state.dtype)
                items += part.item(local_part(state), whole)
        self.exchange.gather(items)

    @torch.no_grad()
    def push_stepped(self, optimizer: Optimizer, keys: Sequence[str]) -> None:
        """Shares out what the owners made of them."""
        items = [
            item
            for part in self.parts
            for key, state in self._momentum(part, optimizer, keys)
            for item in part.item(local_part(state), part.states.get(key))
        ]
        self.exchange.scatter(items)
        self.push_weights()

    @staticmethod
    def _momentum(part: Part, optimizer: Optimizer, keys: Sequence[str]) -> list[tuple[str, torch.Tensor]]:
        state: dict[str, Any] = optimizer.state.get(part.info.held, {}) if part.is_constrained else {}
        shape = part.info.held.shape
        return [
            (k, t) for k in keys if isinstance(t := state.get(k), torch.Tensor) and is_sharded(t) and t.shape == shape
        ]

    def states_of(self, info: ParameterInfo, optimizer: Optimizer) -> Mapping[str, Any]:
        """The optimizer's state of a weight, of a sharded one what belongs to its part."""
        if info.origin is None:
            return optimizer.state.get(info.parameter, {})
        return next((part.states for part in self.parts if part.info is info), {})

    # ------------------------------------------------------------------ what a gate looks at twice

    @torch.no_grad()
    def gradients(self, infos: Iterable[ParameterInfo]) -> dict[int, torch.Tensor]:
        """New tensors with the present gradients of some weights as their rules see them, by identity of the part."""
        wanted = {id(info) for info in infos}
        found: dict[int, torch.Tensor] = {}
        items: list[Item] = []
        for part in self.parts:
            if id(part.info) not in wanted:
                continue
            fresh = found[id(part.info.parameter)] = torch.zeros_like(part.info.parameter)
            grad = part.info.held.grad
            if grad is None:
                continue
            local = local_gradient(grad, part.info.held)
            items += part.item(local, fresh)
            if part.owner is None:
                fresh.copy_(local)
        self.exchange.gather(items)
        return found

    @torch.no_grad()
    def scatter_weights(self, infos: Iterable[ParameterInfo]) -> None:
        """Shares out the present whole parts of some weights."""
        wanted = {id(info) for info in infos}
        chosen = [part for part in self.parts if id(part.info) in wanted]
        self.exchange.scatter([i for p in chosen for i in p.item(p.local, p.info.parameter.detach())])

    # ------------------------------------------------------------------ tensors that are saved

    def shared(self, info: ParameterInfo, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of a part's shape as a DTensor like the weight; collective for whole parts."""
        part = self._of(info)
        if part is None:
            return tensor
        if part.owner is None:
            return sharded_like(tensor, info.held)
        local = torch.empty_like(part.local, dtype=tensor.dtype)
        self.exchange.scatter(part.item(local, tensor))
        return sharded_like(local, info.held)

    def taken(self, info: ParameterInfo, tensor: torch.Tensor) -> torch.Tensor:
        """The part of what `shared` gave, or of a whole plain tensor; collective for DTensors of whole parts."""
        part = self._of(info)
        if part is None or part.layout is None:
            return local_part(tensor)
        if not is_sharded(tensor):
            if part.owner is None:
                return part.layout.cut(tensor, part.layout.rank)
            return tensor if part.is_here else tensor.new_empty(info.parameter.shape)
        if part.owner is None:
            return local_part(tensor)
        whole = torch.empty_like(info.parameter, dtype=tensor.dtype)
        self.exchange.gather(part.item(local_part(tensor), whole))
        return whole

    def _of(self, info: ParameterInfo) -> Part | None:
        return next((part for part in self.parts if part.info is info), None)

    def where(self) -> dict[str, str]:
        """For the table: where each sharded weight is computed on."""
        return {p.info.name: "rows on each rank" if p.owner is None else f"whole on rank {p.owner}" for p in self.parts}

    def clear(self) -> None:
        """Forgets everything and frees the memory."""
        self.parts = []
        self._known.clear()
        self.together = ALONE


def _splits(route: Route, rules: Sequence[Rule], layout: ShardLayout | None) -> bool:
    """Whether every rule acts on rows alone, and rows are what the processes hold."""
    channels = Channels(route.info.out_axis, route.info.groups)
    acting = [rules[i] for i in route.rules]
    if layout is not None and layout.dim != 0:
        return all(isinstance(rule, WeightPenalty) and rule.is_elementwise for rule in acting)
    return all(rule.acts_on_rows(channels) for rule in acting)


def _as_here(route: Route, info: ParameterInfo | None, rules: Sequence[Rule]) -> Route:
    if info is None:
        return route
    # A part without numbers has no views; its penalties still decide and count with all others.
    views = tuple(rules[i].view_for(info) for i in route.rules) if info.parameter.numel() else ()
    return replace(route, info=info, views=views)
