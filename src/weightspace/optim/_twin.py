"""Steps of optimizers on manifolds for weights that `fully_shard` made DTensors: by a twin that has plain tensors.

The twin is an optimizer of the same class over this process's parts (`_twin_parts`). Rows are stepped where they are,
and nothing is sent but a flag that gradients are finite. Of a weight with N numbers that is stepped as a whole, an
owner keeps the weight and its state; a step brings the gradient there and the weight back: N (R - 1) / R numbers each
on R processes, one exchange for all weights, in which flags travel along. Every matrix is computed on once.

Gathering everything everywhere would move N (R - 1) numbers a step, and compute on every matrix R times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from weightspace.errors import AttachError
from weightspace.optim import _thermometer, _twin_state
from weightspace.optim._finite import gradients_finite, raise_non_finite_named
from weightspace.optim._twin_parts import Part
from weightspace.optim._twin_weights import TwinWeights
from weightspace.optim._untraced import untraced
from weightspace.sharding import Item, ShardLayout

if TYPE_CHECKING:
    from weightspace.optim._mirrored import Mirrored
    from weightspace.optim.verify import PropertyCheck

_NOT_FINITE, _WRITTEN = 1, 2


class Twin(TwinWeights):
    """The twin of an optimizer, and how the two talk. Every method is a collective."""

    # ------------------------------------------------------------------ the step

    @untraced
    @torch.no_grad()
    def step(self, outer: Mirrored, *, check_finite: bool) -> None:
        """One step of all weights that have a gradient.

        Args:
            outer: The optimizer.
            check_finite: Look at every gradient first.

        Raises:
            NonFiniteGradientError: A gradient of some process is not finite; on all of them, and no weight was changed.
        """
        self.sync(outer)
        parts = [part for part in self.parts() if part.held.grad is not None]
        gradients = [part.gradient() for part in parts]
        self._bring(outer, parts, gradients, check_finite=check_finite)
        due = self._due(parts)
        error = self._step_parts(parts, due)
        self._merge_measured(due)
        for number, group in enumerate(self.inner.param_groups):
            if "draws" in group:
                outer.param_groups[number]["draws"] = group["draws"]
        self._share_weights(parts, error)
        for part in parts:
            if part.tensor is None:
                part.state["step"] += 1
            _twin_state.link(part, outer)

    def _bring(
        self,
        outer: Mirrored,
        parts: Sequence[Part],
        gradients: Sequence[torch.Tensor],
        *,
        check_finite: bool,
    ) -> None:
        """Brings gradients to where they are needed, and weights that others wrote to; raises if one is not finite."""
        for part, gradient in zip(parts, gradients, strict=True):
            if gradient.layout != torch.strided:
                raise AttachError(
                    f"The gradient of {part.name} is sparse; beside weights that fully_shard sharded it must be dense: "
                    "build the layer with sparse=False."
                )
        finite = not check_finite or gradients_finite([g for g in gradients if g.numel()])
        is_written = any(part.is_written for part in self.parts())
        items: list[Item] = []
        arrived: list[tuple[Part, torch.Tensor]] = []
        for part, gradient in zip(parts, gradients, strict=True):
            whole = None
            if part.tensor is not None and part.kind == "whole":
                whole = torch.empty(part.tensor.shape, dtype=gradient.dtype, device=gradient.device)
            if part.tensor is not None and part.kind != "plain":
                arrived.append((part, gradient if whole is None else whole))
            items += part.items(gradient, whole)
        flags = self._ask(items, (not finite) * _NOT_FINITE + is_written * _WRITTEN, check_finite=check_finite)
        if any(flag & _NOT_FINITE for flag in flags):
            self.together.agree(None if finite else _not_finite(parts, gradients))
        if any(flag & _WRITTEN for flag in flags):
            self._renew(outer)
        for part, gradient in arrived:
            if part.tensor is not None:
                part.tensor.grad = gradient

    def _ask(self, items: list[Item], flag: int, *, check_finite: bool) -> list[int]:
        """Gathers, and asks every process for its flag by the way; without whole parts nothing else need be sent."""
        together = self.together
        if together.is_alone:
            return [flag]
        if not items:
            if not check_finite and not any(part.points for part in self.parts()):
                return [flag]
            return [int(together.max(torch.tensor([float(flag & _NOT_FINITE), float(flag & _WRITTEN)])).sum())]
        own, all_flags = self._flag_items(items[0].part, flag)
        self.exchange.gather([*items, *own])
        return [round(f) for f in all_flags.tolist()]

    def _flag_items(self, like: torch.Tensor, flag: int) -> tuple[list[Item], torch.Tensor]:
        """Items by which every process tells all others a small number when something is gathered anyway."""
        t = self.together
        layout = ShardLayout((t.ranks,), 0, t.rank, t.ranks, t.group)
        mine, found = like.new_full((1,), flag), like.new_zeros(t.ranks)
        return [Item(layout, r, mine, found if r == t.rank else None) for r in range(t.ranks)], found

    def _step_parts(self, parts: Sequence[Part], due: Sequence[Part]) -> Exception | None:
        told = self.inside.told
        told.shares = {k: [p.share() for p in group] for k, group in enumerate(self.groups)}
        told.pending = {id(part.tensor): None for part in due}
        try:
            self.inside.step()
        except Exception as error:
            if not any(part.kind == "whole" for part in parts):
                raise
            return error  # once the others, who wait for this process's weights, have these
        finally:
            told.shares = None
            for part in parts:
                if part.tensor is not None and part.kind != "plain":
                    part.tensor.grad = None
        return None

    def _share_weights(self, parts: Sequence[Part], error: Exception | None) -> None:
        items = [i for part in parts for i in part.items(part.local, part.tensor)]
        if items:
            t = self.together
            layout = ShardLayout((t.ranks,), 0, t.rank, t.ranks, t.group)
            failed = [items[0].part.new_zeros(1) for _ in range(t.ranks)]
            own = items[0].part.new_full((t.ranks,), float(error is not None))
            self.exchange.scatter(
                [*items, *(Item(layout, r, failed[r], own if r == t.rank else None) for r in range(t.ranks))]
            )
            if any(torch.cat(failed).tolist()):
                t.agree(error)
        for part in parts:
            part.known = part.memory

    # ------------------------------------------------------------------ thermometers of rows

    def _due(self, parts: Sequence[Part]) -> list[Part]:
        """Rows whose thermometers are read at this step."""
        due: list[Part] = []
        for group, members in zip(self.inner.param_groups, self.groups, strict=True):
            every = group.get("measure_every")
            if every is not None:
                due += [p for p in members if p in parts and p.kind == "rows" and int(p.state["step"]) % every == 0]
        return due

    def _merge_measured(self, due: Sequence[Part]) -> None:
        if not due:
            return
        nothing = torch.zeros(3, dtype=torch.float64)
        found = [self.inside.told.pending.get(id(part.tensor)) for part in due]
        sums = self.together.sum(torch.stack([nothing if f is None else f for f in found]))
        for part, measurement in zip(due, sums, strict=True):
            if part.tensor is not None:
                _thermometer.add(part.state, measurement)

    # ------------------------------------------------------------------ what the user sees

    def checks(self, outer: Mirrored) -> list[PropertyCheck]:
        """The checks of all processes: of rows the one nearest to its bound."""
        self.sync(outer)
        self._pull_weights(self._written())
        with self.together.agreeing():
            own = {check.parameters[0]: check for check in self.inside.checks()}
        found = self.collect(own)
        return [max(found[p.name], key=_nearness) for p in self.parts() if found[p.name]]

    def figures(self, outer: Mirrored) -> dict[str, list[Any]]:
        """What the processes measured of their parts, by name; the outer state is brought up to date."""
        self.sync(outer)
        found = self.collect(self.inside.figures())
        _twin_state.publish(self, outer)
        return found

    def reset(self, outer: Mirrored) -> None:
        """Forgets the thermometers' measurements."""
        for group, parts in zip(self.inner.param_groups, self.groups, strict=True):
            for part in parts:
                if group.get("measure_every") is not None and part.tensor is not None:
                    part.state.update(_thermometer.new_thermometer(part.tensor))
        _twin_state.publish(self, outer)

    def complete(self) -> None:
        """After a state was loaded: adds what it lacks, and lets every weight be looked at again."""
        self.inside.forget()
        for part in self.parts():
            part.known = None
            if part.tensor is not None:
                part.state.update({**self._new_state(part, part.tensor), **part.state})

    def collect(self, own: dict[str, Any]) -> dict[str, list[Any]]:
        """For each weight what the processes found that step something of it, alike on all of them."""
        split = {part.name for part in self.parts() if part.layout is not None}
        others = self.together.merged({name: value for name, value in own.items() if name in split})
        return {
            part.name: [facts[part.name] for facts in (others if part.name in split else [own]) if part.name in facts]
            for part in self.parts()
        }


def _nearness(check: PropertyCheck) -> float:
    return float("inf") if check.error != check.error else check.error / check.bound  # NaN


def _not_finite(parts: Sequence[Part], gradients: Sequence[torch.Tensor]) -> Exception:
    """The error of a gradient of this process."""
    stand_ins: list[tuple[str, torch.Tensor]] = []
    for part, gradient in zip(parts, gradients, strict=True):
        stand_in = torch.empty_like(gradient)
        stand_in.grad = gradient
        stand_ins.append((part.name, stand_in))
    try:
        raise_non_finite_named(stand_ins)
    except Exception as error:  # noqa: BLE001  # raised by `Together.agree`
        return error
    return RuntimeError("a gradient that was not finite became finite")
