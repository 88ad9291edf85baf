"""Penalties on the numbers of weights: added to the gradient, or applied after the optimizer's step; and their watch.

Nothing is copied for a penalty that acts after the step, and nothing at all happens where a gate is closed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from weightspace.errors import VanishedWeightsWarning
from weightspace.kernels.points import Channels
from weightspace.optim._gates import Gated, Pair, dot
from weightspace.optim._lookahead import Rate
from weightspace.optim._transform import Swap, read_numbers
from weightspace.penalties import Penalty, WeightPenalty

_WATCH_EVERY = 50  # steps between two looks at whether weights vanished: one reduction each
_VANISHED = 1e-6  # of the largest number at attach: what decays never reaches zero exactly
_CHATTER = 2.0  # steps of the penalty alone


@dataclass(eq=False)
class WeightTask(Gated):
    """One penalty on the numbers of one weight.

    Attributes:
        start: The weight before the step in progress, where the penalty asks for it.
        reach: The largest absolute number of the weight when the rule was attached.
    """

    start: torch.Tensor | None = None
    reach: torch.Tensor = field(default_factory=lambda: torch.zeros(()))

    def __post_init__(self) -> None:
        super().__post_init__()
        weight = self.info.parameter.detach()
        self.reach = torch.linalg.vector_norm(weight, torch.inf)
        if self.rule.needs_start:
            self.start = torch.empty_like(weight)

    @property
    def rule(self) -> WeightPenalty:
        """The penalty."""
        return as_weight_penalty(self.penalty)

    @property
    def channels(self) -> Channels:
        """Where the weight keeps its channels."""
        return Channels(self.info.out_axis, self.info.groups)

    def value(self) -> torch.Tensor:
        """R of the present weight."""
        return self.rule.value(self.info.parameter.detach(), self.channels)

    def zeros(self) -> torch.Tensor:
        """Share of the weight's numbers that are exactly zero."""
        return (self.info.parameter.detach() == 0).sum() / self.info.parameter.numel()

    def products(self, gradient: torch.Tensor, scale: float | torch.Tensor) -> Pair:
        """`(<g, R>, <R, R>)` with the penalty's gradient R times `scale`."""
        own = self.rule.gradient(self.info.parameter.detach(), self.channels)
        return dot(gradient, own) * scale, dot(own, own) * scale * scale

    def add_to(self, swap: Swap, scale: float | torch.Tensor) -> None:
        """Adds the penalty's gradient, if the gate is open."""
        if self.is_open is False:
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
        return (self.reach * _VANISHED).clamp_min(chatter)


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
        group = groups.get(id(task.info.parameter))
        if group is not None:
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

    def look(self, tasks: Iterable[WeightTask], optimizer: Optimizer, steps: int) -> None:
        """Every `_WATCH_EVERY` steps: one reduction a weight, one synchronization for each device.

        Args:
            tasks: The penalties on weights.
            optimizer: Knows the learning rates.
            steps: Steps taken, this one included.
        """
        if steps % _WATCH_EVERY:
            return
        groups = groups_of(optimizer)
        held = [t for t in tasks if t.penalty.weight > 0 and id(t.info.parameter) in groups]
        gaps = [
            torch.linalg.vector_norm(t.info.parameter.detach(), torch.inf) - t.floor(groups[id(t.info.parameter)])
            for t in held
        ]
        found: dict[str, WeightTask] = {}
        for task, gap in zip(held, read_numbers(gaps), strict=True):
            if gap <= 0.0:
                found[task.info.name] = task
        self.vanished = {name: self.vanished.get(name, steps) for name in found}
        fresh = [name for name in found if name not in self._told]
        if fresh:
            self._told.update(fresh)
            _warn(fresh, found[fresh[0]].penalty, steps)

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


def _gated(is_open: bool | torch.Tensor, amount: float | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The amount where the gate is open, else 0, without asking the device."""
    wide = torch.float32 if like.dtype.itemsize < 4 else like.dtype
    return torch.as_tensor(is_open, device=like.device).to(wide) * amount
