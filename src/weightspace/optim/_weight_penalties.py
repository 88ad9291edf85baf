"""Penalties on the numbers of weights: added to the gradient, or applied after the optimizer's step; and their watch.

Nothing is copied for a penalty that acts after the step, and nothing at all happens where a gate is closed.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch.optim import Optimizer

from weightspace.errors import VanishedWeightsWarning
from weightspace.kernels.points import Channels
from weightspace.kernels.stacking import Workspace
from weightspace.optim import _blocks, _gates
from weightspace.optim._foreach import can_see, see
from weightspace.optim._gates import Gated, Number, Pair, dot
from weightspace.optim._lookahead import Rate
from weightspace.optim._transform import Swap, read_numbers
from weightspace.penalties import Penalty, WeightPenalty
from weightspace.sharding import ALONE, Together

_WATCH_EVERY = 50  # steps between two looks at whether weights vanished: one reduction each
_VANISHED = 1e-6  # of the largest number at attach: what decays never reaches zero exactly
_CHATTER = 2.0  # steps of the penalty alone
_SMALL = 0.1  # of the largest number at attach: behind a gate, a weight that is small from the start lives


@dataclass(eq=False)
class WeightTask(Gated):
    """One penalty on the numbers of one weight.

    Attributes:
        start: The weight before the step in progress, where the penalty asks for it.
        reach: The largest absolute number of the weight when the rule was attached.
        seen: `<g, g>`, `<g, R>`, `<R, R>` of the step in progress, where the first look found them.
        sum: `g + R` of the step in progress, where the first look on an accelerator made it.
        is_written: Whether the stand-in of the step in progress holds the sum already, for the gate to decide on.
    """

    start: torch.Tensor | None = None
    reach: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    seen: tuple[Number, Number, Number] | None = None
    sum: torch.Tensor | None = None
    is_written: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        weight = self.info.parameter.detach()
        self.reach = _largest(weight)
        if self.rule.needs_start:
            self.start = torch.empty_like(weight)

    @cached_property
    def rule(self) -> WeightPenalty:
        """The penalty."""
        return as_weight_penalty(self.penalty)

    @cached_property
    def channels(self) -> Channels:
        """Where the weight keeps its channels."""
        return Channels(self.info.out_axis, self.info.groups)

    def value(self) -> torch.Tensor:
        """R of the present weight."""
        return self.rule.value(self.info.parameter.detach(), self.channels)

    def zeros(self) -> torch.Tensor:
        """Share of the weight's numbers that are exactly zero; of a sharded weight, what its part here adds to it."""
        return (self.info.parameter.detach() == 0).sum() / self.info.held.numel()

    def products(self, gradient: torch.Tensor, scale: float | torch.Tensor) -> Pair:
        """`(<g, R>, <R, R>)` with the penalty's gradient R times `scale`."""
        own = self.rule.gradient(self.info.parameter.detach(), self.channels)
        return dot(gradient, own) * scale, dot(own, own) * scale * scale

    def look(
        self, gradient: torch.Tensor, swap: Swap | None, scale: float | torch.Tensor, work: Workspace
    ) -> float | None:
        """One pass over weight and gradient that does what the step will need of them: the only one if all goes well.

        It leaves the inner products that a gate asks for in `seen`, and writes the sum into the stand-in if the gate
        is open or, where it has to be asked yet, was open last time: a guess that costs one write where it is wrong.

        Returns:
            A number that is finite only if the gradient is; None if this weight has no such pass.
        """
        weight, looks_at = self.info.parameter.detach(), self.penalty.gate.looks_at
        is_free = swap is not None and not swap.is_filled and not self.rule.is_proximal and self.is_open is True
        target = swap.buffer if swap is not None and is_free and looks_at in ("nothing", "total") else None
        others = (gradient,) if target is None else (gradient, target)
        if not self.rule.is_elementwise or isinstance(scale, torch.Tensor) or not _fits(weight, *others):
            return None
        if looks_at == "total":
            self.seen = found = _blocks.compare(self.rule, weight, gradient, scale, work=work, out=target)
            self.is_written = target is not None
            return found[0]
        if target is None:
            return None
        self.is_written = True
        return _blocks.add(self.rule, weight, gradient, scale, work=work, out=target)

    def forget_step(self) -> None:
        """Nothing was looked at yet."""
        self.seen, self.sum, self.is_written = None, None, False

    def add_to(self, swap: Swap, scale: float | torch.Tensor, work: Workspace) -> None:
        """Adds the penalty's gradient, if the gate is open."""
        if self.is_open is False:
            return
        if self.is_written:
            swap.is_filled = True
            return
        if self.sum is not None and isinstance(self.is_open, torch.Tensor):
            torch.where(self.is_open, self.sum, swap.data, out=swap.buffer)
            swap.is_filled, self.sum = True, None
            return
        weight = self.info.parameter.detach()
        is_plain = self.rule.is_elementwise and self.is_open is True
        if is_plain and not isinstance(scale, torch.Tensor) and _fits(weight, swap.data, swap.buffer):
            _blocks.add(self.rule, weight, swap.data, scale, work=work, out=swap.buffer)
            swap.is_filled = True
            return
        own = self.rule.gradient(self.info.parameter.detach(), self.channels)
        swap.add(own, scale if self.is_open is True else _gated(self.is_open, scale, own))

    def settle(self, lr: Rate, found_inf: torch.Tensor | None) -> None:
        """What happens after the step, if the gate was open and the step was not skipped."""
        if self.is_open is False:
            return
        weight = self.info.parameter.detach()
        amount = lr * (self.penalty.weight * self.penalty.every)
        if self.is_open is not True:
            amount = _gated(self.is_open, amount, weight)
        if found_inf is not None:
            amount = amount * (1.0 - found_inf.to(weight.device).reshape(()))
        if self.rule.is_elementwise and _fits(weight, *(() if self.start is None else (self.start,))):
            _blocks.shrink(self.rule, weight, amount, self.start)
            return
        self.rule.shrink_(weight, amount, self.channels, self.start)

    def move(self, lr: Rate) -> None:
        """The step that the penalty alone would make."""
        weight, amount = self.info.parameter.detach(), lr * (self.penalty.weight * self.penalty.every)
        if self.rule.is_proximal:
            self.rule.shrink_(weight, amount, self.channels, weight.clone())
        else:
            weight.sub_(self.rule.gradient(weight, self.channels) * amount)

    def floor(self, group: dict[str, Any]) -> torch.Tensor:
        """The size below which the weight counts as vanished."""
        chatter, lr, momentum = 0.0, group["lr"], group.get("momentum", 0.0)
        if not self.rule.is_proximal and "betas" not in group and isinstance(momentum, float | int) and momentum < 1:
            chatter = _CHATTER * self.rule.chatter(float(lr), float(momentum))
        if not self.is_ungated:
            return torch.maximum(self.reach * _VANISHED, (self.reach * _SMALL).clamp_max(chatter))
        return (self.reach * _VANISHED).clamp_min(chatter)


def first_look(
    tasks: Iterable[WeightTask],
    others: Iterable[int],
    swaps: Mapping[int, Swap],
    grad_scale: torch.Tensor | None,
    work: Workspace,
) -> dict[int, Number]:
    """`WeightTask.look` where one penalty alone acts on a weight.

    Args:
        tasks: Those that are due.
        others: The weights, by identity, on which operator penalties act at this step.
        swaps: By identity of the weight.
        grad_scale: See `Penalties.act`.
        work: Scratch memory.

    Returns:
        By identity of the weight, a number that is finite only if its loss gradient is.
    """
    tasks = list(tasks)
    acting = Counter([*others, *(id(task.info.parameter) for task in tasks)])
    alone = [task for task in tasks if acting[id(task.info.parameter)] == 1]
    found: dict[int, Number] = dict(_look_together(alone, swaps, grad_scale))
    for task in alone:
        key, swap = id(task.info.parameter), swaps.get(id(task.info.parameter))
        gradient = task.info.parameter.grad if swap is None else swap.data
        if task.seen is None and gradient is not None:
            witness = task.look(gradient, swap, task.scale(grad_scale), work)
            if witness is not None and (swap is None or not swap.is_filled):
                found[key] = witness
    return found


def _look_together(
    tasks: Iterable[WeightTask], swaps: Mapping[int, Swap], grad_scale: torch.Tensor | None
) -> dict[int, torch.Tensor]:
    """On accelerators, for gates that compare with the sum: all weights of a penalty, device and dtype in one go."""
    groups: dict[tuple[int, torch.device, torch.dtype], list[tuple[WeightTask, torch.Tensor, torch.Tensor]]] = {}
    for task in tasks if grad_scale is None else ():
        weight, swap = task.info.parameter.detach(), swaps.get(id(task.info.parameter))
        gradient = task.info.parameter.grad if swap is None else swap.data
        is_asked = task.penalty.gate.looks_at == "total" and not _gates.is_read_at_once(weight.device)
        if is_asked and gradient is not None and can_see(task.rule, weight, gradient):
            groups.setdefault((task.index, weight.device, weight.dtype), []).append((task, weight, gradient))
    found: dict[int, torch.Tensor] = {}
    for members in groups.values():
        first = members[0][0]
        scale = first.penalty.weight * first.penalty.every
        looks = see(first.rule, [w for _, w, _ in members], [g for _, _, g in members], scale)
        for (task, _, _), seen in zip(members, looks, strict=True):
            task.seen, task.sum = seen.products, None if task.rule.is_proximal else seen.sum
            found[id(task.info.parameter)] = seen.norm
    return found


def as_weight_penalty(penalty: Penalty) -> WeightPenalty:
    """The same object, known to be one of these."""
    if not isinstance(penalty, WeightPenalty):
        raise TypeError(f"{penalty} is no penalty on the numbers of a weight.")
    return penalty


def settle(tasks: Iterable[WeightTask], optimizer: Optimizer) -> None:
    """Applies what acts after the step, with the learning rate of each weight's parameter group."""
    groups = groups_of(optimizer)
    found_inf = getattr(optimizer, "found_inf", None)
    for task in tasks:
        group = groups.get(id(task.info.held))
        if group is not None and task.info.parameter.numel():
            task.settle(group["lr"], found_inf)


def groups_of(optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """The parameter group of every parameter, by identity."""
    return {id(p): group for group in optimizer.param_groups for p in group["params"]}


class Watch:
    """Notices weights that a penalty has made zero altogether, and says so once.

    Attributes:
        vanished: Weights that are zero now, with the number of steps after which that was seen first.
    """

    def __init__(self) -> None:
        self.vanished: dict[str, int] = {}
        self._told: set[str] = set()

    def look(self, tasks: Iterable[WeightTask], optimizer: Optimizer, steps: int, together: Together = ALONE) -> None:
        """Every `_WATCH_EVERY` steps: one reduction a weight, one synchronization for each device.

        Args:
            tasks: The penalties on weights.
            optimizer: Knows the learning rates.
            steps: Steps taken, this one included.
            together: The processes that hold parts of the weights.
        """
        if steps % _WATCH_EVERY:
            return
        groups = groups_of(optimizer)
        held = [t for t in tasks if t.penalty.weight > 0 and id(t.info.held) in groups]
        gaps = read_numbers([_largest(t.info.parameter.detach()) - t.floor(groups[id(t.info.held)]) for t in held])
        found: dict[str, WeightTask] = {}
        for task, gap in zip(held, together.max(torch.tensor(gaps, dtype=torch.float64)).tolist(), strict=True):
            if gap <= 0.0:
                found[task.info.name] = task
        self.vanished = {name: self.vanished.get(name, steps) for name in found}
        fresh = [name for name in found if name not in self._told]
        if fresh:
            self._told.update(fresh)
            _warn(fresh, found[fresh[0]].penalty, steps)

    def state(self) -> dict[str, Any]:
        """What it knows: numbers and text."""
        return {"vanished": dict(self.vanished), "told": sorted(self._told)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Knows what `state` told; nothing where it comes from an earlier version."""
        self.vanished, self._told = dict(state.get("vanished", {})), set(state.get("told", ()))

    def copy_from(self, other: Watch) -> None:
        """Knows what another one knows."""
        self.load(other.state())

    def clear(self) -> None:
        """Forgets everything."""
        self.vanished.clear()
        self._told.clear()


def _warn(names: list[str], penalty: Penalty, steps: int) -> None:
    layer = names[0].removesuffix(".weight")
    others = f" and of {len(names) - 1} other layers" if len(names) > 1 else ""
    warnings.warn(
        f"all weights of {layer}{others} are zero since step {steps}: strength above tolerance; lower the weight of "
        f"{penalty}, or give it a gate such as weightspace.gates.Coherent() (weightspace tolerance finds the level).",
        VanishedWeightsWarning,
        stacklevel=2,
    )


def _largest(weight: torch.Tensor) -> torch.Tensor:
    """The largest absolute number; 0 of none."""
    return torch.linalg.vector_norm(weight, torch.inf) if weight.numel() else weight.new_zeros(())


def _fits(weight: torch.Tensor, *others: torch.Tensor) -> bool:
    """Whether a pass in blocks serves them; on an accelerator every block would be a launch."""
    return _gates.is_read_at_once(weight.device) and _blocks.in_blocks(weight, *others)


def _gated(is_open: bool | torch.Tensor, amount: float | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The amount where the gate is open, else 0, without asking the device."""
    wide = torch.float32 if like.dtype.itemsize < 4 else like.dtype
    return torch.as_tensor(is_open, device=like.device).to(wide) * amount
