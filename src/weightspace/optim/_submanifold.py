"""What the optimizers on manifolds share: constraints of their parameter groups, kept in force, measured, saved.

A constraint is metadata of a parameter group: a text under `"manifold"`, beside the layout of the channels. So it is in
the `state_dict`, survives sharding wrappers and pickling, and needs no tensor subclass.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.optim import Optimizer

from weightspace.errors import AttachError, RuleError, SelectionError
from weightspace.kernels.parameters import has_same_layout
from weightspace.kernels.points import Channels
from weightspace.manifolds import Constraint, Euclidean, Manifold, parse
from weightspace.optim._finite import gradients_finite, raise_non_finite_named
from weightspace.optim._foreign_state import refusing_foreign_state
from weightspace.optim._group_checks import check_listed_once, check_options, check_saved, refuse_complex
from weightspace.optim._mirrored import Mirrored
from weightspace.optim._stand_ins import writes
from weightspace.optim._twin_inside import Inside, Told
from weightspace.optim._twin_state import adopt, publish
from weightspace.optim._untraced import untraced
from weightspace.optim.verify import PropertyCheck, check_constraint, raise_if_broken
from weightspace.precision import full_precision
from weightspace.sharding import is_sharded

Group = dict[str, Any]
_IDENTITY = ("manifold", "out_axis", "groups", "chains")
# What `load_state_dict` of torch would cast to the weight's dtype.
_OWN_DTYPE = (
    *("fallbacks", "slack", "exp_avg_sq", "max_exp_avg_sq"),
    *("velocity", "angle", "radius", "slack_variables", "slack_velocity", "thermometer", "square_avg"),
)


class SubmanifoldOptimizer(Mirrored):
    """Base of the optimizers whose parameter groups may name a manifold."""

    # Whether the arithmetic of Euclidean groups takes them.
    _takes_sparse = False
    _takes_complex = True

    def __init__(self, params: Any, defaults: dict[str, Any], *, check_finite: bool = True) -> None:
        self._forget()
        self._check_finite = check_finite
        super().__init__(
            params,
            {
                "manifold": Euclidean().text(),
                "out_axis": 0,
                "groups": 1,
                "chains": False,
                **defaults,
                "differentiable": False,
            },
        )

    def _forget(self) -> None:
        # What can be made anew from groups and weights at any time; `state` holds what cannot.
        self._constraints: dict[int, tuple[tuple[object, ...], Constraint | None]] = {}
        self._versions: dict[int, int] = {}
        self.moved: dict[str, float] = {}

    # ------------------------------------------------------------------ for subclasses

    @abstractmethod
    def _new_state(self, parameter: torch.Tensor, group: Group, constraint: Constraint | None) -> dict[str, Any]:
        """The state of a parameter before its first step."""

    @abstractmethod
    def _step_free(self, group: Group) -> None:
        """The step of a Euclidean group: torch's own."""

    @abstractmethod
    def _step_on(self, parameter: torch.Tensor, group: Group, constraint: Constraint, gradient: torch.Tensor) -> None:
        """The step of one constrained weight; `gradient` is dense, in the weight's layout, and read only."""

    # ------------------------------------------------------------------ the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs one optimization step.

        Args:
            closure: Computes the loss and its gradients, and returns the loss.

        Raises:
            NonFiniteGradientError: A gradient holds NaN or infinity; no weight was changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._twin is not None:
            self._twin.step(self, check_finite=self._check_finite)
            return loss
        self._check_gradients()
        self._step_groups()
        return loss

    def _step_groups(self) -> None:
        for group in self.param_groups:
            self._begin(group)
            if self._is_free(group):
                self._step_free(group)
            else:
                self._step_group(group)

    @untraced
    @full_precision()
    def _step_group(self, group: Group) -> None:
        for k, parameter in enumerate(group["params"]):
            if parameter.grad is not None:
                self._step_one(parameter, group, k)

    def _begin(self, group: Group) -> None:
        """Called before the steps of a group."""

    def _manifold_of(self, parameter: torch.Tensor, group: Group) -> Manifold:
        """The manifold of a weight, with every option settled."""
        del parameter
        return parse(group["manifold"])

    def _check_manifold(self, manifold: Manifold) -> None:
        """Raises RuleError for a manifold that this optimizer cannot keep weights on."""
        if manifold.slack_count:
            raise RuleError(
                f"{type(self).__name__} got {manifold.text()}, which keeps slack variables beside the weights; only "
                "ws.optim.ConstrainedLangevin has them (temperature=0 makes it SGD with momentum)."
            )

    def _step_one(self, parameter: torch.Tensor, group: Group, place: int) -> None:
        constraint = self._constraint(parameter, group, place)
        if constraint is None or parameter.grad is None:
            return
        step = int(self.state[parameter]["step"])
        if self._versions.get(id(parameter)) != writes(parameter):  # written to since the last step
            self._put_on(parameter, constraint, step)
        gradient = parameter.grad
        if not has_same_layout(gradient, parameter):
            gradient = torch.empty_like(parameter, dtype=gradient.dtype).copy_(gradient)
        self._step_on(parameter, group, constraint, gradient.neg() if group["maximize"] else gradient)
        self._versions[id(parameter)] = writes(parameter)
        if constraint.is_new_at(step + 1):  # now, so that the next forward pass sees it
            self._put_on(parameter, constraint, step + 1)

    @untraced
    def _check_gradients(self) -> None:
        """Raises for gradients that this step cannot take, before any weight changes."""
        grads: list[torch.Tensor] = []
        for group in self.param_groups:
            takes_sparse = self._takes_sparse and self._is_free(group)
            for parameter in group["params"]:
                grad = parameter.grad
                if grad is not None and grad.layout == torch.strided:
                    grads.append(grad)
                elif grad is not None and not takes_sparse:
                    raise AttachError(
                        f"The gradient of {self._name(parameter)} is sparse ({grad.layout}); {type(self).__name__} "
                        "takes dense ones: build the layer with sparse=False."
                    )
        if self._check_finite and not gradients_finite(grads):
            raise_non_finite_named((name, p) for name, p, _, _ in self._parameters())

    # ------------------------------------------------------------------ constraints

    def _parameters(self) -> Iterator[tuple[str, torch.Tensor, Group, int]]:
        """(name, parameter, group, place in it) of all parameters."""
        number = 0
        for group in self.param_groups:
            names = group.get("param_names")
            for k, parameter in enumerate(group["params"]):
                yield (names[k] if names else f"parameter {number}"), parameter, group, k
                number += 1

    def _name(self, parameter: torch.Tensor) -> str:
        return next((name for name, p, _, _ in self._parameters() if p is parameter), "parameter")

    @staticmethod
    def _is_free(group: Group) -> bool:
        return group["manifold"].startswith("euclidean")

    def _constraint(self, parameter: torch.Tensor, group: Group, place: int) -> Constraint | None:
        """The constraint of a parameter, bound anew if its layout, dtype or device changed."""
        facts = (
            *(group[key] for key in _IDENTITY),
            *(parameter.dtype, parameter.device, parameter.shape, parameter.stride()),
        )
        known = self._constraints.get(id(parameter))
        if known is not None and known[0] == facts:
            return known[1]
        constraint = None
        if not self._is_free(group):
            names = group.get("param_names")
            name = names[place] if names else self._name(parameter)
            constraint = Constraint(
                self._manifold_of(parameter, group),
                parameter,
                Channels(group["out_axis"], group["groups"], group["chains"]),
                name,
            )
            self._versions.pop(id(parameter), None)
        self._constraints[id(parameter)] = (facts, constraint)
        return constraint

    def _put_on(self, parameter: torch.Tensor, constraint: Constraint, step: int = 0) -> None:
        distance = constraint.project_(parameter, step)
        if distance:
            self.moved[constraint.name] = distance
            slack = self.state[parameter].get("slack") if parameter in self.state else None
            if slack is not None:
                slack.copy_(new_slack())
        self._versions[id(parameter)] = writes(parameter)

    def add_param_group(self, param_group: Group) -> None:
        """Adds a group; its weights are moved onto its manifold at once (`moved` says which, and how far).

        Args:
            param_group: As for any torch optimizer, and `manifold`: a manifold or its text; `out_axis` and `groups`,
                where the weights keep their channels (`weightspace.param_groups` fills them in).

        Raises:
            RuleError: `manifold` is none.
            SelectionError: A weight cannot live on it.
        """
        manifold = param_group.get("manifold", Euclidean())
        if isinstance(manifold, str):
            manifold = parse(manifold)
        if not isinstance(manifold, Manifold):
            raise RuleError(f"A parameter group has manifold={manifold!r}; pass one such as ws.manifolds.Sphere().")
        self._check_manifold(manifold)
        check_options(type(self).__name__, {**self.defaults, **param_group})
        check_listed_once(type(self).__name__, param_group["params"])
        super().add_param_group({**param_group, "manifold": manifold.text()})
        group = self.param_groups[-1]
        try:
            self._settle(group)
        except (SelectionError, RuleError, AttachError):
            self.param_groups.pop()
            for parameter in group["params"]:
                self.state.pop(parameter, None)
            raise

    @torch.no_grad()
    def _settle(self, group: Group) -> None:
        for parameter in group["params"]:
            if parameter.is_complex() and not (self._takes_complex and self._is_free(group)):
                refuse_complex(type(self).__name__, self._name(parameter))
        if self._twin is not None or any(is_sharded(p) for p in group["params"]):
            self._mirror(group)
            return
        constraints = [self._constraint(p, group, k) for k, p in enumerate(group["params"])]
        for parameter, constraint in zip(group["params"], constraints, strict=True):
            if constraint is not None:
                self._put_on(parameter, constraint)
            self.state[parameter] = self._new_state(parameter, group, constraint)

    # ------------------------------------------------------------------ sharded weights

    def _inside(self) -> Inside:
        steps = (self._put_on, self._step_groups, self._checks, self._found_here, self._forget)
        self._told = Told()
        return Inside(self, self._constraint, self._new_state, *steps, self._told)

    # ------------------------------------------------------------------ what the user sees

    @torch.no_grad()
    @full_precision()
    def verify(self) -> list[PropertyCheck]:
        """Measures every constraint and raises if one does not hold. Of sharded weights all processes must call it.

        Returns:
            One check for each constrained weight, with its violation and bound; see `Manifold.violation`.

        Raises:
            VerificationError: Names manifold, parameter, violation and bound.
        """
        checks = self._checks() if self._twin is None else self._twin.checks(self)
        raise_if_broken(checks)
        return checks

    def _checks(self) -> list[PropertyCheck]:
        return [
            check_constraint(
                constraint, parameter, int(self.state[parameter]["step"]), self.state[parameter].get("slack")
            )
            for _, parameter, group, k in self._parameters()
            if (constraint := self._constraint(parameter, group, k)) is not None
        ]

    @refusing_foreign_state("optimizers on manifolds", keep=(ValueError,))
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave.

        Raises:
            AttachError: It was saved for other manifolds.
        """
        devices = {
            p: {key: value.device for key, value in self.state[p].items() if isinstance(value, torch.Tensor)}
            for _, p, _, _ in self._parameters()
        }
        found: dict[str, Any] = {}

        def before(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
            found.update(self._checked(state))
            return found

        # Hooks of the user's decide what is loaded and see it loaded: ours come after the one and before the other.
        handles = [
            self.register_load_state_dict_pre_hook(before),
            self.register_load_state_dict_post_hook(lambda _: self._complete(found, devices), prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def _checked(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state that is for these constraints, with their names where it has none: it never takes one away."""
        groups = list(state["param_groups"])
        for k, (mine, saved) in enumerate(zip(self.param_groups, groups, strict=False)):
            for key in _IDENTITY:
                if saved.get(key, mine[key]) != mine[key]:
                    raise AttachError(
                        f"The state was saved with {key}={saved[key]!r}, this group has {mine[key]!r}; build the "
                        "optimizer with the same manifolds first."
                    )
            _check_names(saved, len(mine["params"]))
            groups[k] = {**{key: mine[key] for key in _IDENTITY}, **saved}
            names = mine.get("param_names") or [f"parameter {i}" for i in saved["params"]]
            for i, name, parameter in zip(saved["params"], names, mine["params"], strict=False):
                check_saved(type(self).__name__, name, self.state[parameter], state["state"].get(i, {}))
        return {**state, "param_groups": groups}

    @refusing_foreign_state("optimizers on manifolds")
    @torch.no_grad()
    def _complete(self, state: dict[str, Any], devices: dict[torch.Tensor, dict[str, torch.device]]) -> None:
        """What torch's loading leaves out: dtypes of our own, steps as tensors, what the state lacks."""
        ids = [i for group in state["param_groups"] for i in group["params"]]
        for i, (_, parameter, group, k) in zip(ids, self._parameters(), strict=True):
            saved, own = state["state"].get(i, {}), self.state[parameter]
            own.update(
                {
                    key: saved[key].clone().to(devices[parameter].get(key, parameter.device))
                    for key in _OWN_DTYPE
                    if key in saved
                }
            )
            if not devices[parameter].keys() <= own.keys() and not is_sharded(parameter):
                own.update({**self._new_state(parameter, group, self._constraint(parameter, group, k)), **own})
            if not isinstance(own["step"], torch.Tensor):
                own["step"] = torch.tensor(float(own["step"]))
        if self._twin is not None:
            adopt(self._twin, self)

    def __getstate__(self) -> dict[str, Any]:
        if self._twin is not None:
            publish(self._twin, self)
        # torch keeps only these of an optimizer that is pickled or copied; ours are made anew.
        return {name: getattr(self, name) for name in ("defaults", "state", "param_groups", "_check_finite")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()
        self.__dict__.setdefault("_check_finite", True)
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)
        if self._twin is None and any(is_sharded(p) for group in self.param_groups for p in group["params"]):
            kept = dict(self.state)
            twin = self._mirror(self.param_groups[0])
            self.state.update(kept)
            adopt(twin, self)


def new_slack() -> torch.Tensor:
    """Of a weight before its first step: nothing is known of its violation, no step since its last correction."""
    return torch.tensor([math.inf, 0.0])


def _check_names(saved: Group, count: int) -> None:
    """Names label every later error and the noise of every chain: what stands in a file is looked at first."""
    names = saved.get("param_names")
    if names is not None and not (
        isinstance(names, list | tuple) and len(names) == count and all(isinstance(name, str) for name in names)
    ):
        raise AttachError(f"The state names its parameters {str(names)[:80]}; it should hold {count} names, or none.")
