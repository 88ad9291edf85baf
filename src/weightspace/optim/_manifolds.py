"""Constraints on the weights of any torch optimizer: project the gradient, let it step, retract, carry its momentum.

    before the step   p.grad's stand-in <- Riemannian gradient of (metric(loss gradient) + penalties);   x0 <- x
    the step          x <- x0 + u, whatever the optimizer makes of it
    after it          x <- R_x0(P_x0(u));   momentum <- P_x(P_x0(momentum))

P removes what leads off the manifold: an elementwise scaling as Adam's, weight decay (which is normal to every manifold
here), what momentum kept of other tangent spaces. P_x0 is left out where it changes nothing: the steps of SGD and the
momenta of SGD and Adam are tangent unless weight decay was added to the gradient. Cost: one copy of each constrained
weight, beside its geometry; temporary memory of the largest of them, or some blocks.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from weightspace.errors import AttachError, RuleError
from weightspace.kernels import Route, Rule
from weightspace.kernels.parameters import ParameterInfo, has_same_layout
from weightspace.kernels.points import Channels
from weightspace.kernels.stacking import Workspace
from weightspace.manifolds import Constraint, Manifold
from weightspace.manifolds._free_steps import FreeStep
from weightspace.optim._parts import Parts
from weightspace.optim._stand_ins import writes
from weightspace.optim._transform import Swap, read_numbers
from weightspace.optim.verify import PropertyCheck, check_constraint
from weightspace.sharding import Together

# State tensors that are sums of past gradients, by class; second moments are scales, not directions.
_MOMENTUM: dict[str, tuple[str, ...]] = {
    "SGD": ("momentum_buffer",),
    "RMSprop": ("momentum_buffer",),
    "Muon": ("momentum_buffer",),
    "Adam": ("exp_avg",),
    "AdamW": ("exp_avg",),
    "NAdam": ("exp_avg",),
    "RAdam": ("exp_avg",),
    "Adamax": ("exp_avg",),
    "Adagrad": (),
    "Adafactor": (),
    "SubmanifoldSGD": ("momentum_buffer",),
    "SubmanifoldAdam": ("exp_avg",),
}
_DECLARED = "weightspace_momentum"
# Momenta of exactly these are sums of gradients, to which weight decay is added first unless it is decoupled.
_SUMS_TANGENT = (
    torch.optim.SGD,
    *(torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax),
)
# These add weight decay to the gradient before they scale it entry by entry, unless it is decoupled.
_SCALES_DECAY = ("Adam", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad")


@dataclass(eq=False)
class ManifoldTask:
    """One constraint on one weight.

    Attributes:
        info: The weight.
        index: Place of the manifold among the rules.
        constraint: The manifold, bound to the weight's layout.
        start: Where the weight was before the step in progress.
        writes: How often the weight had been written to when it was last known to be on the manifold.
        fallbacks: Points that needed an exact retraction.
        norm: Of the Riemannian gradient at the latest measured step.
    """

    info: ParameterInfo
    index: int
    constraint: Constraint
    start: torch.Tensor
    writes: int = -1
    fallbacks: int = 0
    norm: torch.Tensor | None = None


class Manifolds:
    """All constraints of a plan.

    Attributes:
        tasks: One for each constrained weight.
        moved: How far weights were moved onto their manifolds from outside, relative to their norms, by name.
        fallbacks_before: Points that needed an exact retraction before the run went on from a state, by weight.
    """

    def __init__(self) -> None:
        self.tasks: list[ManifoldTask] = []
        self.moved: dict[str, float] = {}
        self.fallbacks_before: dict[str, int] = {}
        self._names: list[tuple[str, bool]] = []
        self._open: list[ManifoldTask] = []
        self._work = Workspace()

    @torch.no_grad()
    def build(self, rules: Sequence[Rule], routes: Iterable[Route], step: int = 0) -> None:
        """Takes over a routing and moves weights onto their manifolds."""
        self.tasks, self._names = [], []
        self._work.clear()  # of layouts that may be gone
        for route in routes:
            for index in route.rules:
                rule = rules[index]
                if isinstance(rule, Manifold):
                    self._names.append((route.info.name, route.info.is_split))
                    if route.views:  # other processes hold the rest
                        self.tasks.append(_task(route.info, index, rule))
        self.enforce(step)

    def tell_moved(self, together: Together) -> None:
        """Lets all processes know what was moved, of weights that they hold parts of: the farthest part."""
        for facts in together.merged(dict(self.moved)) if not together.is_alone else ():
            for name, distance in facts.items():
                self.moved[name] = max(distance, self.moved.get(name, 0.0))

    @torch.no_grad()
    def enforce(self, step: int, *, is_loading: bool = False, is_written: bool = False) -> None:
        """Moves weights that were written to from outside back onto their manifolds; `is_written`: look at all.

        While a state is loaded the step is not known yet: manifolds that depend on it wait for the next step.
        """
        for task in self.tasks:
            if is_loading and task.constraint.manifold.is_changing:
                continue
            weight = task.info.parameter
            if is_written or task.writes != writes(weight):
                distance = task.constraint.project_(weight, step)
                if distance:
                    self.moved[task.info.name] = distance
                task.writes = writes(weight)

    def before(self, swaps: Iterable[Swap], step: int, *, must_measure: bool = False) -> None:
        """Projects the stand-ins of this step, and notes where its weights are; `must_measure`: and their norms."""
        self.enforce(step)
        stand_ins = {id(swap.parameter): swap for swap in swaps}
        self._open = []
        for task in self.tasks:
            swap = stand_ins.get(id(task.info.parameter))
            if swap is not None:
                weight, buffer = task.info.parameter, swap.buffer
                if not has_same_layout(swap.data, weight):
                    swap.fill()
                task.constraint.gradient_into(weight, swap.data, buffer, self._work, step)
                swap.is_filled = True
                task.start.copy_(weight)
                if must_measure:
                    task.norm = torch.linalg.vector_norm(buffer.float() if buffer.dtype.itemsize < 4 else buffer)
                self._open.append(task)

    def after(self, optimizer: Optimizer, step: int, parts: Parts) -> None:
        """Puts the weights that stepped back onto their manifolds, and their momentum into the new tangent spaces."""
        keys, tangent, sums = momentum_keys(optimizer), _steps_tangent(optimizer), _sums_tangent(optimizer)
        for task in self._open:
            weight = task.info.parameter
            # Not by the count of writes: fused optimizers and those that write to p.data leave it alone.
            if torch.equal(task.start, weight):  # a step that was skipped
                continue
            held = id(task.info.held)
            state = parts.states_of(task.info, optimizer)
            momenta = [m for k in keys if isinstance(m := state.get(k), torch.Tensor) and m.shape == weight.shape]
            alike = [m if has_same_layout(m, weight) else _as_laid_out(m, weight) for m in momenta]
            free = FreeStep(alike, held in tangent, held in sums, self._work)
            task.fallbacks += task.constraint.follow_(task.start, weight, free, step)
            task.writes = writes(weight)
            for m, carried in zip(momenta, alike, strict=True):
                if m is not carried:
                    m.copy_(carried)
        self._open = []
        for task in self.tasks:
            if task.constraint.is_new_at(step + 1):  # now, so that the next forward pass sees it
                task.constraint.project_(task.info.parameter, step + 1)
                task.writes = writes(task.info.parameter)

    def norms(self, together: Together) -> dict[str, float]:
        """Norms of the Riemannian gradients at the latest measured step; one synchronization for each device."""
        measured = [(task.info.name, task.norm) for task in self.tasks if task.norm is not None]
        found = dict(zip((name for name, _ in measured), read_numbers([norm for _, norm in measured]), strict=True))
        split = [name for name, is_split in self._names if is_split]
        if together.is_alone or not split:
            return found
        own = torch.tensor([[found.get(name, 0.0) ** 2, float(name in found)] for name in split], dtype=torch.float64)
        for name, (squared, count) in zip(split, together.sum(own).tolist(), strict=True):
            if count:
                found[name] = math.sqrt(squared)
        return found

    def fallbacks(self, together: Together) -> dict[str, int]:
        """Points that needed an exact retraction, by weight."""
        found = {task.info.name: task.fallbacks for task in self.tasks}
        split = [name for name, is_split in self._names if is_split]
        if split and not together.is_alone:
            own = torch.tensor([found.get(name, 0) for name in split], dtype=torch.float64)
            found |= {name: int(n) for name, n in zip(split, together.sum(own).tolist(), strict=True)}
        return {name: number + self.fallbacks_before.get(name, 0) for name, number in found.items()}

    def load_fallbacks(self, found: Mapping[str, int]) -> None:
        """Counts on from what `fallbacks` gave."""
        self.fallbacks_before = {name: int(number) for name, number in found.items()}
        for task in self.tasks:
            task.fallbacks = 0

    def measure(self, step: int) -> list[PropertyCheck]:
        """One check for each constrained weight."""
        return [check_constraint(task.constraint, task.info.parameter, step) for task in self.tasks]

    def clear(self) -> None:
        """Forgets everything."""
        self.tasks, self._names, self._open = [], [], []
        self._work.clear()
        self.moved.clear()


def _task(info: ParameterInfo, index: int, manifold: Manifold) -> ManifoldTask:
    if manifold.slack_count:
        raise RuleError(
            f"attach() got {manifold.text()}, which keeps slack variables beside the weights; only "
            "ws.optim.ConstrainedLangevin has them (temperature=0 makes it SGD with momentum)."
        )
    weight = info.parameter.detach()
    constraint = Constraint(manifold, weight, Channels(info.out_axis, info.groups), info.name)
    return ManifoldTask(info, index, constraint, torch.empty_like(weight, memory_format=torch.preserve_format))


def _steps_tangent(optimizer: Optimizer) -> set[int]:
    """The parameters whose steps lie in the tangent space already: those of SGD without weight decay."""
    return _sums_tangent(optimizer) if type(optimizer) is torch.optim.SGD else set()


def _sums_tangent(optimizer: Optimizer) -> set[int]:
    """The parameters whose momentum lies in the tangent space at which the step began, as the gradients do."""
    if type(optimizer) not in _SUMS_TANGENT:
        return set()
    return {
        id(p)
        for group in optimizer.param_groups
        if not group["weight_decay"] or group.get("decoupled_weight_decay")
        for p in group["params"]
    }


def _as_laid_out(momentum: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(weight, dtype=momentum.dtype).copy_(momentum)


# ---------------------------------------------------------------- what fits


def momentum_keys(optimizer: Optimizer) -> tuple[str, ...]:
    """The names of the state tensors that are momentum.

    Raises:
        AttachError: This optimizer's state is not known.
    """
    declared = getattr(optimizer, _DECLARED, None)
    if declared is not None:
        return tuple(declared)
    for cls in type(optimizer).__mro__:
        if cls.__name__ in _MOMENTUM:
            return _MOMENTUM[cls.__name__]
    raise AttachError(
        f"What {type(optimizer).__name__} keeps between steps is not known, so its momentum cannot be carried along a "
        f"manifold; use one of {', '.join(_MOMENTUM)}, or set optimizer.{_DECLARED} to the names of its state tensors "
        "that are sums of past gradients (an empty tuple if there are none) before attach()."
    )


def check_constraints(optimizer: Optimizer, routes: Iterable[Route], rules: Sequence[Rule]) -> None:
    """Raises or warns about what optimizer and constraints do to each other.

    Raises:
        AttachError: The optimizer's state is not known, or the optimizer constrains a weight itself.
    """
    constrained = {
        id(route.info.parameter): (route.info.name, rules[index])
        for route in routes
        for index in route.rules
        if isinstance(rules[index], Manifold)
    }
    if not constrained:
        return
    momentum_keys(optimizer)
    for name, rule in constrained.values():
        if isinstance(rule, Manifold) and rule.is_slack:
            raise RuleError(
                f"{rule} on {name} corrects now and then only, which needs the steps of SubmanifoldSGD; use that "
                "optimizer, or leave tolerance and every out."
            )
    names = {cls.__name__ for cls in type(optimizer).__mro__}
    for group in optimizer.param_groups:
        here = [constrained[id(p)] for p in group["params"] if id(p) in constrained]
        if not here:
            continue
        name, rule = here[0]
        manifold = group.get("manifold", "euclidean")
        if not str(manifold).startswith("euclidean"):
            raise AttachError(
                f"{name} is on {manifold} in this {type(optimizer).__name__} already and cannot be put on {rule} too; "
                "constrain it in one place."
            )
        coupled = group.get("weight_decay") and not group.get("decoupled_weight_decay") and "AdamW" not in names
        if coupled and names & set(_SCALES_DECAY):
            warnings.warn(
                f"{type(optimizer).__name__} adds weight_decay={group['weight_decay']:g} to the gradient of {name} and "
                f"scales the sum entry by entry, so it turns steps on {rule}, whose norm it cannot change; set "
                "weight_decay=0 for constrained weights, or decouple it as AdamW does.",
                UserWarning,
                stacklevel=4,
            )


# ---------------------------------------------------------------- after load_state_dict


class Reproject:
    """A hook on a model: weights that `load_state_dict` wrote are moved onto their manifolds. A copy does nothing."""

    def __init__(self, manifolds: Manifolds, steps: torch.Tensor) -> None:
        self._manifolds = weakref.ref(manifolds)
        self._steps = steps

    def __call__(self, module: nn.Module, incompatible: Any) -> None:
        manifolds = self._manifolds()
        if manifolds is not None:
            manifolds.enforce(int(self._steps), is_loading=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> object:
        return ignore_load

    def __reduce__(self) -> tuple[Any, ...]:
        return _ignoring, ()


def ignore_load(module: nn.Module, incompatible: Any) -> None:
    """What stands in copies of a model where a `Reproject` stood."""


def _ignoring() -> object:
    return ignore_load
