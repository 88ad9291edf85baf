"""Adam on submanifolds of kernels: one second moment for each point, so that steps stay tangent.

    G = gradient_w(g);   m <- beta1 m + (1 - beta1) G;   s <- beta2 s + (1 - beta2) <G, G>_w / dim
    v = (m / (1 - beta1^t)) / (sqrt(s / (1 - beta2^t)) + eps)
    w <- R_w(-lr v);     m <- P_w(m)                           projected to the tangent space of the new point

Adam divides every entry by a scale of its own, which turns a tangent vector out of the tangent space. Here all entries
of a point share one scale, the mean square of its Riemannian gradient over the dimensions of its manifold: `lr` keeps
Adam's meaning, the root mean square change of a coordinate. Source: **derived** from Kingma and Ba 2015; the choice of
one scale a point follows Riemannian adaptive methods (Becigneul and Ganea 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.optim.adam import adam

from weightspace.errors import RuleError
from weightspace.kernels.options import boolean, choice, number_from_zero
from weightspace.kernels.stacking import Workspace
from weightspace.manifolds import Constraint
from weightspace.manifolds._free_steps import Adaptive
from weightspace.optim._submanifold import Group, SubmanifoldOptimizer

_NAME = "SubmanifoldAdam"


class SubmanifoldAdam(SubmanifoldOptimizer):
    """Adam whose constrained weights stay on their manifolds.

    Euclidean groups step exactly as `torch.optim.Adam` (or `AdamW`) does, bit for bit. State is made at construction:
    `step`, `exp_avg`, and `exp_avg_sq`, which has one number for each point of a constrained weight (for products: the
    weight's own shape).

    Args:
        params: Groups of `weightspace.param_groups`, or any groups of torch, with `"manifold"` where there is one.
        lr: Learning rate: the root mean square change of a coordinate in a step.
        betas: Decay of the first and second moment.
        eps: Added to the root of the second moment.
        weight_decay: Of Euclidean groups; constrained ones leave it out: it has no tangent part.
        amsgrad: Use the largest second moment so far.
        maximize: Ascend instead.
        foreach: For Euclidean groups, as in torch.
        decoupled_weight_decay: AdamW's weight decay instead of Adam's.
        update: `"retraction"` or `"geodesic"`.
        check_finite: Raise on NaN or infinite gradients before any weight changes.

    Cost: on spheres and Oblique the memory traffic of SGD with momentum and some blocks of temporary memory; on Stiefel
    at least `11.3 n p^2` flops and one more weight of temporary memory; elsewhere that of the manifold's methods.

    Raises:
        RuleError: An option is out of its range.
        SelectionError: A weight cannot live on its group's manifold.

    Example:
        >>> import weightspace as ws
        >>> w = torch.nn.Parameter(torch.tensor([[1.0, 0.0]]))
        >>> optimizer = SubmanifoldAdam([{"params": [w], "manifold": ws.manifolds.Sphere("kernel")}], lr=0.1)
        >>> w.grad = torch.tensor([[5.0, -7.0]])  # whatever its size: the first step has length lr
        >>> optimizer.step()
        >>> (w[0, 1] / w[0, 0]).item()
        0.1...
    """

    def __init__(  # noqa: PLR0917  # torch's own order
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        decoupled_weight_decay: bool = False,
        update: Literal["retraction", "geodesic"] = "retraction",
        check_finite: bool = True,
    ) -> None:
        if not isinstance(betas, Sequence) or len(betas) != 2 or not all(0 <= b < 1 for b in betas):
            raise RuleError(f"{_NAME} got betas={betas!r}; pass two numbers from 0 up to, not including, 1.")
        defaults = {
            "lr": lr,
            "betas": (float(betas[0]), float(betas[1])),
            "eps": number_from_zero(_NAME, "eps", eps),
            "weight_decay": number_from_zero(_NAME, "weight_decay", weight_decay),
            "amsgrad": boolean(_NAME, "amsgrad", amsgrad),
            "maximize": boolean(_NAME, "maximize", maximize),
            "foreach": foreach,
            "decoupled_weight_decay": boolean(_NAME, "decoupled_weight_decay", decoupled_weight_decay),
            "update": update,
        }
        self._work = Workspace()
        super().__init__(params, defaults, check_finite=boolean(_NAME, "check_finite", check_finite))

    def add_param_group(self, param_group: Group) -> None:
        """Adds a group, as any torch optimizer does, after checking its options."""
        choice(_NAME, "update", {**self.defaults, **param_group}["update"], ("retraction", "geodesic"))
        super().add_param_group(param_group)

    def _new_state(self, parameter: torch.Tensor, group: Group, constraint: Constraint | None) -> dict[str, Any]:
        state: dict[str, Any] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
        pieces = [] if constraint is None else constraint.pieces(0)
        if len(pieces) == 1 and pieces[0].index is None:
            lead = (*pieces[0].view.shape[:-2], 1, 1)
            wide = torch.float32 if parameter.dtype.itemsize < 4 else parameter.dtype
            state["exp_avg_sq"] = torch.zeros(lead, dtype=wide, device=parameter.device)
        else:
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        if group["amsgrad"]:
            state["max_exp_avg_sq"] = torch.zeros_like(state["exp_avg_sq"])
        if constraint is not None:
            state["fallbacks"] = torch.zeros((), dtype=torch.int64)
        return state

    def _step_free(self, group: Group) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        states = [self.state[p] for p in parameters]
        adam(
            parameters,
            [p.grad for p in parameters],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [s["max_exp_avg_sq"] for s in states] if group["amsgrad"] else [],
            [s["step"] for s in states],
            foreach=group["foreach"],
            amsgrad=group["amsgrad"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
            decoupled_weight_decay=group["decoupled_weight_decay"],
        )

    def _step_on(self, parameter: torch.Tensor, group: Group, constraint: Constraint, gradient: torch.Tensor) -> None:
        state = self.state[parameter]
        number = int(state["step"])
        beta1, beta2 = group["betas"]
        t = number + 1
        for piece in constraint.pieces(number):
            x, m = piece.read(parameter), piece.read(state["exp_avg"])
            part = None if piece.index is None else piece  # whose moments are spread over the weight's shape
            adaptive = Adaptive(
                rate=float(group["lr"]) / (1 - beta1**t),
                beta1=beta1,
                beta2=beta2,
                correction=1 - beta2**t,
                eps=group["eps"],
                s=self._remember(state, "exp_avg_sq", part),
                largest=self._remember(state, "max_exp_avg_sq", part) if group["amsgrad"] else None,
                geodesic=group["update"] == "geodesic",
                work=self._work,
            )
            state["fallbacks"] += piece.manifold.adapt(x, m, piece.read(gradient), adaptive)
            self._keep(state, "exp_avg_sq", adaptive.s, part, x)
            if adaptive.largest is not None:
                self._keep(state, "max_exp_avg_sq", adaptive.largest, part, x)
            piece.write(parameter, x)
            piece.write(state["exp_avg"], m)
        state["step"] += 1

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._work = Workspace()

    @staticmethod
    def _remember(state: dict[str, Any], key: str, piece: Any) -> torch.Tensor:
        """The second moments of the points of a piece, `(*lead, 1, 1)`; None for the piece that is the whole weight."""
        return state[key] if piece is None else piece.read(state[key]).mean((-2, -1), keepdim=True)

    @staticmethod
    def _keep(state: dict[str, Any], key: str, value: torch.Tensor, piece: Any, like: torch.Tensor) -> None:
        if piece is not None:  # else it was written in place
            piece.write(state[key], value.expand_as(like).contiguous())
