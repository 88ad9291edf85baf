"""SGD on submanifolds of kernels.

For every constrained weight w, with derivative g of the loss at w:

    m <- momentum * m + (1 - dampening) * g                    ambient: an ordinary momentum buffer
    v = gradient_w(m)                                          its Riemannian gradient: the tangent projection
    w <- R_w(-(gamma / r) v)                                   retraction, or the exponential map

with r = 1 (`step_size="plain"`) or, for `step_size="curvature"` and R = |v| over the factors of a product,

    r = sqrt(max{1, R^2 max{(2 rho + R)^2, 1 + c (rho + R)}}),   c = sqrt(-lower bound of the sectional curvature)

so that beyond R = 0.414 (for rho = 1, c = 0) the length of a step is gamma / (2 + R), however steep the loss is.

Source: Ozay and Okatani, arXiv 1610.07008: SGD with momentum in the ambient space, tangent projection, exponential map
or retraction, on sphere, oblique and Stiefel submanifolds of kernels. The form of r is **derived** after Bonnabel 2013
(theorem 2); the paper's own form is not at hand.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.optim.sgd import sgd

from weightspace.errors import RuleError
from weightspace.kernels.options import boolean, choice, number_from_zero, positive_number
from weightspace.kernels.stacking import Workspace
from weightspace.manifolds import Constraint
from weightspace.manifolds._moves import Motion, Moved, StepSize
from weightspace.optim._submanifold import Group, SubmanifoldOptimizer, new_slack
from weightspace.optim._untraced import untraced

Transport = Literal["ambient", "projection", "norm"]
_NAME = "SubmanifoldSGD"


class SubmanifoldSGD(SubmanifoldOptimizer):
    """SGD with momentum whose constrained weights stay on their manifolds.

    Euclidean groups step exactly as `torch.optim.SGD` does, bit for bit. State is made at construction: `step`,
    `momentum_buffer` (with momentum), `fallbacks` (points that needed an exact retraction) and, for manifolds that
    correct now and then only, `slack` (a bound on the violation, and the steps since the last correction).

    Args:
        params: Groups of `weightspace.param_groups`, or any groups of torch, with `"manifold"` where there is one.
        lr: Learning rate gamma. On a manifold a step without momentum has Frobenius length at most `lr * R / r`.
        momentum: Factor of the momentum buffer.
        dampening: Dampening of momentum; not applied at the first step, as in torch.
        weight_decay: Of Euclidean groups. On these manifolds its gradient has no tangent part (they fix norms), so
            constrained groups leave it out.
        nesterov: Nesterov momentum.
        maximize: Ascend instead.
        foreach: For Euclidean groups, as in torch.
        step_size: `"curvature"` divides the step by r; `"plain"` does not.
        update: `"retraction"` (cheaper) or `"geodesic"`, the exponential map.
        transport: What happens to the momentum buffer: `"ambient"` leaves it as it is and projects it when it is used
            (the paper's way); `"projection"` keeps its tangent part only, projected to every new point; `"norm"` also
            gives it its length back, and is slower. The last two accumulate Riemannian gradients.
        distance_bound: rho, a bound on the distance to the minimum; at most 1 is meant for unit spheres.
        check_finite: Raise on NaN or infinite gradients before any weight changes: a look at every gradient.

    All of them but `check_finite` may differ between groups.

    Raises:
        RuleError: An option is out of its range.
        SelectionError: A weight cannot live on its group's manifold.

    Example:
        >>> import weightspace as ws
        >>> w = torch.nn.Parameter(torch.tensor([[3.0, 0.0]]))  # moved onto the unit circle: (1, 0)
        >>> optimizer = SubmanifoldSGD([{"params": [w], "manifold": ws.manifolds.Sphere("kernel")}], lr=1.0)
        >>> w.grad = torch.tensor([[5.0, -1.0]])  # its tangent part is (0, -1); R = 1, so r = R (2 + R) = 3
        >>> optimizer.step()
        >>> w.data * torch.linalg.vector_norm(torch.tensor([1.0, 1 / 3]))
        tensor([[1.0000, 0.3333]])
    """

    _takes_sparse = True

    def __init__(  # noqa: PLR0917  # torch's own order
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        step_size: StepSize = "curvature",
        update: Literal["retraction", "geodesic"] = "retraction",
        transport: Transport = "ambient",
        distance_bound: float = 1.0,
        check_finite: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": number_from_zero(_NAME, "momentum", momentum),
            "dampening": dampening,
            "weight_decay": number_from_zero(_NAME, "weight_decay", weight_decay),
            "nesterov": boolean(_NAME, "nesterov", nesterov),
            "maximize": boolean(_NAME, "maximize", maximize),
            "foreach": foreach,
            "step_size": step_size,
            "update": update,
            "transport": transport,
            "distance_bound": distance_bound,
        }
        if nesterov and (momentum <= 0 or dampening != 0):
            raise RuleError(f"{_NAME} got nesterov=True; it needs momentum above 0 and dampening=0.")
        self._work = Workspace()
        self._figures: dict[int, Moved] = {}
        super().__init__(params, defaults, check_finite=boolean(_NAME, "check_finite", check_finite))

    def add_param_group(self, param_group: Group) -> None:
        """Adds a group, as any torch optimizer does, after checking its options."""
        options = {**self.defaults, **param_group}
        choice(_NAME, "step_size", options["step_size"], ("plain", "curvature"))
        choice(_NAME, "update", options["update"], ("retraction", "geodesic"))
        choice(_NAME, "transport", options["transport"], ("ambient", "projection", "norm"))
        positive_number(_NAME, "distance_bound", options["distance_bound"])
        if options["nesterov"] and options["transport"] != "ambient":
            raise RuleError(f"{_NAME} got nesterov=True with transport={options['transport']!r}; take 'ambient'.")
        super().add_param_group(param_group)

    def _new_state(self, parameter: torch.Tensor, group: Group, constraint: Constraint | None) -> dict[str, Any]:
        state: dict[str, Any] = {"step": torch.tensor(0.0)}
        if group["momentum"]:
            state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        if constraint is not None:
            state["fallbacks"] = torch.zeros((), dtype=torch.int64)
            if constraint.is_slack:
                state["slack"] = new_slack()
        return state

    def _step_free(self, group: Group) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        states = [self.state[p] for p in parameters]
        buffers = self._buffers(states, group) if group["momentum"] else []
        sgd(
            parameters,
            [p.grad for p in parameters],
            buffers,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            foreach=group["foreach"],
        )
        for state, buffer in zip(states, buffers, strict=False):
            state["momentum_buffer"] = buffer
        for state in states:
            state["step"] += 1

    @staticmethod
    @untraced
    def _buffers(states: list[dict[str, Any]], group: Group) -> list[torch.Tensor | None]:
        """The momentum buffers of Euclidean weights, as torch takes them.

        At its first step torch's buffer is the gradient itself, undampened: that is what None asks for. Without
        dampening the zeros that the buffer holds give the same.
        """
        if not group["dampening"]:
            return [s.get("momentum_buffer") for s in states]
        return [s.get("momentum_buffer") if s["step"].item() else None for s in states]

    def _step_on(self, parameter: torch.Tensor, group: Group, constraint: Constraint, gradient: torch.Tensor) -> None:
        state = self.state[parameter]
        step, momentum = int(state["step"]), group["momentum"]
        motion = Motion(
            rate=float(group["lr"]),
            step_size=group["step_size"],
            distance_bound=group["distance_bound"],
            geodesic=group["update"] == "geodesic",
            decay=momentum,
            gain=1.0 if step == 0 else 1.0 - group["dampening"],
            work=self._work,
            # Rounding of 16-bit weights is not in the bound: their violation is measured at every step.
            slack=state.get("slack") if parameter.dtype.itemsize >= 4 else None,
        )
        if not momentum:
            moved = constraint.move(parameter, gradient, motion, step)
        else:
            buffer = state.get("momentum_buffer")
            if buffer is None:  # momentum was switched on after construction
                buffer = state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            motion.grad = gradient
            motion.keeps_tangent = group["transport"] == "projection" and constraint.keeps_tangent
            if group["transport"] != "ambient" and not motion.keeps_tangent:
                keeps_norm = group["transport"] == "norm"
                moved = constraint.carry(parameter, buffer, motion, step, keeps_norm=keeps_norm)
            elif group["nesterov"]:
                motion.accumulate(buffer)
                motion.grad = None
                moved = constraint.move(parameter, torch.add(gradient, buffer, alpha=momentum), motion, step)
            else:
                moved = constraint.move(parameter, buffer, motion, step)
        state["step"] += 1
        if moved.slack is not None:
            state["slack"].copy_(moved.slack)
        if moved.fallbacks:
            state["fallbacks"] += moved.fallbacks
        self._figures[id(parameter)] = moved

    def measurements(self) -> dict[str, dict[str, float]]:
        """Figures of the latest step of every constrained weight; reading them synchronizes.

        `R`: norm of the Riemannian gradient (with momentum: of the direction) over all points, `r`: the largest factor
        that steps were divided by, both for the curvature step size; `fallbacks`: steps so far that needed an exact
        retraction. A weight whose `R` stays near zero has stopped moving. Sharded weights: collective.
        """
        if self._twin is None:
            return self._found_here()
        found = {name: rows for name, rows in self._twin.figures(self).items() if rows}
        counts = {name: float(self.state[p].get("fallbacks", 0)) for name, p, _, _ in self._parameters()}
        return {name: _merged(rows, counts[name]) for name, rows in found.items()}

    def _found_here(self) -> dict[str, dict[str, float]]:
        figures: dict[str, dict[str, float]] = {}
        for name, parameter, group, k in self._parameters():
            constraint = self._constraint(parameter, group, k)
            moved = self._figures.get(id(parameter))
            if constraint is None or moved is None:
                continue
            row = figures[name] = {"fallbacks": float(self.state[parameter]["fallbacks"])}
            if moved.squared is not None:
                row["R"] = float(moved.squared.clamp(min=0).sum().sqrt())
            if moved.factor is not None:
                row["r"] = float(moved.factor.max())
        return figures

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._work = Workspace()
        self._figures = {}


def _merged(rows: list[dict[str, float]], fallbacks: float) -> dict[str, float]:
    """Figures of one weight from those of its rows."""
    merged = {"fallbacks": fallbacks}
    if "R" in rows[0]:
        merged["R"] = sum(row["R"] ** 2 for row in rows) ** 0.5
    if "r" in rows[0]:
        merged["r"] = max(row["r"] for row in rows)
    return merged
