"""Langevin dynamics with constraints: a sampler of weights, and at temperature 0 constrained SGD with momentum.

Underdamped, for weights q on a manifold M, with tangent velocities v, mean loss L and a Wiener process W tangent to M:

    dq = v dt,   dv = (-grad L - gamma v) dt + sqrt(2 gamma tau) dW + constraint forces,   tau = temperature / num_data

**Law that is sampled**, with respect to the surface measure of M:

    p(q) ~ exp(-L(q) / tau) = exp(-num_data L(q) / temperature)

With L the mean negative log-likelihood over `num_data` examples, temperature 1 is the Bayesian posterior under a
uniform prior on M; `weight_decay` w on free weights is a Gaussian prior of precision `num_data * w / temperature`. The
steps' own bias is of order h^2 in BAOA and OBABO and of order h in OBA and in the overdamped scheme; a minibatch's
gradient adds noise, and with it heat, of its own: the law holds for small `lr`, and the thermometers tell.

| in units of | step | damping |
|---|---|---|
| SGD | lr = h^2 | momentum c = exp(-gamma h) |
| physics | h = sqrt(lr) | gamma = friction |
| overdamped scheme | h = lr | none |

Source: Leimkuhler, Vlaar, Pouchon, Storkey, arXiv 2006.10114: constrained overdamped and underdamped dynamics, with
circle and orthogonality constraints. The overdamped form, slack above 1, noise as a function of the step,
preconditioning and the thermometers are **derived** or textbook; BAOA has the positions of g-BAOAB (Leimkuhler and
Matthews 2016).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from weightspace.errors import AttachError, RuleError
from weightspace.kernels.options import boolean, seed_or_none, whole_number
from weightspace.kernels.points import Channels
from weightspace.kernels.stacking import Workspace
from weightspace.manifolds import Circle, Constraint, Manifold, parse
from weightspace.manifolds._flows import FlowMethod
from weightspace.optim import _thermometer
from weightspace.optim._langevin_flat import free_step
from weightspace.optim._langevin_noise import NoiseSource, shared_seed
from weightspace.optim._langevin_pace import NAME, Scheme, check_group, check_numbers, pace_of
from weightspace.optim._langevin_points import step_points
from weightspace.optim._langevin_scale import adapt, new_scale
from weightspace.optim._langevin_slack import is_shadow, slack_of, step_lifted, step_on_circle
from weightspace.optim._noise_places import places_for, share_of, span_for
from weightspace.optim._submanifold import Group, SubmanifoldOptimizer
from weightspace.optim._thermometer import Temperature, dimension_of
from weightspace.optim._untraced import untraced

_torch: Any = torch  # foreach has no public name; torch's own optimizers use it


class ConstrainedLangevin(SubmanifoldOptimizer):
    """Samples weights, or with `temperature=0` optimizes them, on any manifold of the library, free groups included.

    State is made at construction: `step`; `velocity`, zero at first, and physical, so that it stays right when `lr`
    changes; for constrained weights `fallbacks` (points for which the solver of the constraint failed and shorter steps
    or exact geodesics were taken); for `Circle` `radius` and `slack_variables` (with one of them the velocity is the
    speed along the circle, and 16-bit weights have an `angle` instead).

    Args:
        params: Groups of `weightspace.param_groups`, or any groups of torch, with `"manifold"` where there is one. With
            `"chains": True` the first dimension of every weight counts independent chains; the loss is then the sum of
            the chains' losses.
        lr: Square of the time step: the learning rate of SGD; of the overdamped scheme the time step itself.
        friction: gamma; 1 where `momentum` is not given either.
        temperature: 1 for the posterior, 0 to optimize, below 1 for a cold posterior. Required on purpose.
        num_data: Number of training examples that the mean loss stands for; not needed at temperature 0.
        scheme: `"BAOA"` for sampling, `"OBA"` (the authors' order) to optimize, `"OBABO"`, `"overdamped"`.
        momentum: c, instead of `friction`.
        weight_decay: Adds `weight_decay / 2 |q|^2` to the loss: a Gaussian prior; of no effect where norms are fixed.
        flow: Free motion on matrices: `"rattle"` (`"auto"` too) or `"geodesic"`, exact and slower.
        solver_tolerance: Largest residual of the constraint that RATTLE accepts; None: rounding.
        solver_iterations: After so many RATTLE takes shorter steps.
        preconditioner: `"rmsprop"` scales the steps of free weights by their gradients' size; see `adapt_steps`.
        adapt_steps: Steps during which the preconditioner adapts; then it is frozen, and the law is exact again.
        preconditioner_decay: Of its running mean of squares.
        preconditioner_epsilon: Added to the root of that mean.
        seed: Of the noise; None draws one from torch's generator, and all processes of a distributed run take that of
            the first. Seeds that are given must be alike in all of them.
        generator: Draw the seed from this generator instead.
        measure_every: Read the thermometers every so many steps; None: never. Costs a copy of the weights.
        maximize: Ascend instead.
        check_finite: Raise on NaN or infinite gradients before any weight changes: a look at every gradient.

    All options but `seed`, `generator`, `measure_every` and `check_finite` may differ between groups.

    Raises:
        RuleError: An option is out of its range; a temperature without `num_data`; a manifold whose metric is not that
            of the surrounding space.
        SelectionError: A weight cannot live on its group's manifold.

    Cost: of free weights that of SGD with momentum, and a normal random number for each weight where there is a
    temperature; circles: some ten passes in cache; matrices: two `Manifold.flow` and two projections.

    Example:
        >>> q = torch.nn.Parameter(torch.zeros(20_000))  # as many chains at once, of the law exp(-q^2 / (2 tau))
        >>> sampler = ConstrainedLangevin([q], lr=0.25, temperature=3.0, num_data=12, seed=0)  # tau = 1/4
        >>> for _ in range(60):
        ...     q.grad = q.detach().clone()  # the derivative of q^2 / 2
        ...     sampler.step()
        >>> round(float(q.detach().var()), 2)
        0.25
    """

    _takes_complex = False

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        friction: float | None = None,
        *,
        temperature: float,
        num_data: float | None = None,
        scheme: Scheme = "BAOA",
        momentum: float | None = None,
        weight_decay: float = 0.0,
        flow: FlowMethod = "auto",
        solver_tolerance: float | None = None,
        solver_iterations: int = 30,
        preconditioner: str | None = None,
        adapt_steps: int = 1000,
        preconditioner_decay: float = 0.99,
        preconditioner_epsilon: float = 1e-3,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        measure_every: int | None = None,
        maximize: bool = False,
        check_finite: bool = True,
    ) -> None:
        if seed is None:
            seed = shared_seed(generator)
        defaults = {
            "lr": lr,
            "friction": 1.0 if friction is None and momentum is None else friction,
            "momentum": momentum,
            "temperature": temperature,
            "num_data": num_data,
            "scheme": scheme,
            "weight_decay": weight_decay,
            "flow": flow,
            "solver_tolerance": solver_tolerance,
            "solver_iterations": solver_iterations,
            "preconditioner": preconditioner,
            "adapt_steps": adapt_steps,
            "preconditioner_decay": preconditioner_decay,
            "preconditioner_epsilon": preconditioner_epsilon,
            "seed": seed_or_none(NAME, "seed", seed),
            "draws": 0,
            "measure_every": None if measure_every is None else whole_number(NAME, "measure_every", measure_every),
            "maximize": boolean(NAME, "maximize", maximize),
        }
        check_group(defaults)
        self._noise, self._work = NoiseSource(), Workspace()
        super().__init__(params, defaults, check_finite=boolean(NAME, "check_finite", check_finite))

    # ------------------------------------------------------------------ groups

    def add_param_group(self, param_group: Group) -> None:
        """Adds a group, as any torch optimizer does, after checking its options; see `SubmanifoldOptimizer`."""
        group = dict(param_group)
        if group.get("momentum") is not None:  # in place of the default's friction, and the other way round
            group.setdefault("friction", None)
        elif group.get("friction") is not None:
            group.setdefault("momentum", None)
        check_group({**self.defaults, **group})
        preconditioner = {**self.defaults, **group}["preconditioner"]
        if preconditioner not in (None, "rmsprop"):
            raise RuleError(f"{NAME} got preconditioner={preconditioner!r}; it is 'rmsprop' or None.")
        if preconditioner is not None and not str(group.get("manifold", "euclidean")).lower().startswith("euclidean"):
            raise RuleError(
                f"{NAME} got preconditioner={preconditioner!r} for weights on {group['manifold']}, whose steps have "
                "one scale; give it to free groups only: {'params': ..., 'preconditioner': 'rmsprop'}."
            )
        super().add_param_group(group)

    def _acts_on_rows(self, manifold: Manifold, channels: Channels) -> bool:
        # No step size connects rows; several slack variables a number are not split as weights are.
        return manifold.acts_on_rows(channels) and manifold.slack_count <= 1

    def _check_manifold(self, manifold: Manifold) -> None:
        """Refuses manifolds of another metric, and those whose weights leave them between corrections."""
        if manifold.has_own_metric:
            raise RuleError(
                f"{NAME} got {manifold.text()}: the law is with respect to the surface measure of the surrounding "
                "space; take metric='embedded'."
            )
        if manifold.is_slack:
            raise RuleError(
                f"{NAME} got {manifold.text()}: it corrects its weights at every step; leave out tolerance and every."
            )

    def _manifold_of(self, parameter: torch.Tensor, group: Group) -> Manifold:
        manifold = parse(group["manifold"])
        if not isinstance(manifold, Circle):
            return manifold
        radius = self.state[parameter].get("radius") if parameter in self.state else None
        return manifold.resolved(parameter) if radius is None else replace(manifold, radius=float(radius))

    def _new_state(self, parameter: torch.Tensor, group: Group, constraint: Constraint | None) -> dict[str, Any]:
        state: dict[str, Any] = {"step": torch.tensor(0.0)}
        wide = torch.float32 if parameter.dtype.itemsize < 4 else parameter.dtype
        state["velocity"] = torch.zeros_like(parameter, dtype=wide, memory_format=torch.preserve_format)
        if group["measure_every"] is not None:
            state.update(_thermometer.new_thermometer(parameter))
        if constraint is None:
            if group["preconditioner"] is not None:
                state.update(new_scale(state["velocity"]))
            return state
        state["fallbacks"] = torch.zeros((), dtype=torch.int64)
        manifold = constraint.manifold
        if isinstance(manifold, Circle):
            state["radius"] = torch.tensor(manifold.r, dtype=torch.float64)
        if manifold.slack_count:
            state.update(slack_of(parameter, constraint, wide))
        return state

    # ------------------------------------------------------------------ the step

    @untraced  # noise comes from generators and threads, and free steps are one fused kernel already
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs one step of the dynamics.

        Args:
            closure: Computes the loss and its gradients, and returns the loss.

        Raises:
            NonFiniteGradientError: A gradient holds NaN or infinity; nothing was changed.
            RuleError: A schedule set a number out of its range, or a temperature without `num_data`; nothing was
                changed.
        """
        for group in self.param_groups:
            check_numbers(group)
        return super().step(closure)

    def _begin(self, group: Group) -> None:
        number = next(k for k, g in enumerate(self.param_groups) if g is group)
        told = None if self._told is None else self._told.shares
        shares = [share_of(p) for p in group["params"]] if told is None else told[number]
        places = None if told is None else places_for(group, shares)
        self._noise.begin(group["seed"], number, group["draws"], span_for(group, shares), places)
        group["draws"] += 1

    def _step_free(self, group: Group) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        pace = pace_of(group)
        states = [self.state[p] for p in parameters]
        grads = [p.grad for p in parameters if p.grad is not None]
        if group["maximize"]:
            grads = list(_torch._foreach_neg(grads))  # noqa: SLF001
        if group["weight_decay"]:
            grads = list(_torch._foreach_add(grads, parameters, alpha=group["weight_decay"]))  # noqa: SLF001
        if group["measure_every"] is not None:
            for p, g in zip(parameters, grads, strict=True):
                self._measure(p, group, None, g)
        noise = self._noise.like(parameters) if pace.noise else None
        wide = [p if p.dtype.itemsize >= 4 else p.float() for p in parameters]  # 16 bits lose a velocity's changes
        grads = [g if g.dtype.itemsize >= 4 else g.float() for g in grads]
        if group["preconditioner"] is None:
            free_step(wide, [s["velocity"] for s in states], grads, noise, pace)
        else:
            adapt(wide, states, grads, noise, pace, group)
        for p, w in zip(parameters, wide, strict=True):
            if w is not p:
                p.copy_(w)
        _torch._foreach_add_(
            [s["step"] for s in states], torch.tensor(1.0), alpha=1.0
        )  # a number would be wrapped each time

    def _step_on(self, parameter: torch.Tensor, group: Group, constraint: Constraint, gradient: torch.Tensor) -> None:
        state, pace, manifold = self.state[parameter], pace_of(group), constraint.manifold
        if group["weight_decay"]:
            gradient = torch.add(gradient, parameter, alpha=group["weight_decay"])
        self._measure(parameter, group, constraint, gradient)
        if not pace.h:  # a rate of 0: the beginning of a warm-up, the end of a cosine
            pass
        elif isinstance(manifold, Circle) and manifold.slack == 1:
            step_on_circle(parameter, state, gradient, pace, self._noise, self._work)
        elif manifold.slack_count:
            step_lifted(parameter, state, constraint, gradient, pace, self._noise)
        else:
            noise = self._noise.like([parameter])[0] if pace.noise else None
            step = int(state["step"])
            for piece in constraint.pieces(step):
                x, v, g = (piece.read(t) for t in (parameter, state["velocity"], gradient))
                fallbacks = step_points(piece.manifold, x, v, g, None if noise is None else piece.read(noise), pace)
                piece.write(parameter, x)
                piece.write(state["velocity"], v)
                if fallbacks:
                    state["fallbacks"] += fallbacks
        state["step"] += 1

    def _put_on(self, parameter: torch.Tensor, constraint: Constraint, step: int = 0) -> None:
        """Weights that the user wrote to also need their slack variables anew."""
        super()._put_on(parameter, constraint, step)
        state: dict[str, Any] = self.state.get(parameter, {})
        if constraint.manifold.slack_count and "velocity" in state and not is_shadow(parameter, constraint, state):
            state.update(slack_of(parameter, constraint, state["velocity"].dtype))

    # ------------------------------------------------------------------ what the user sees

    def _checked(self, state: dict[str, Any]) -> dict[str, Any]:
        if any("velocity" not in saved for saved in state["state"].values()):
            raise AttachError(f"The state holds no velocities: it was saved by another optimizer than {NAME}.")
        return super()._checked(state)

    def _measure(
        self, parameter: torch.Tensor, group: Group, constraint: Constraint | None, gradient: torch.Tensor
    ) -> None:
        every, state = group["measure_every"], self.state[parameter]
        if every is None or int(state["step"]) % every:
            return
        measurement = _thermometer.measured(state, parameter, constraint, gradient)
        if self._told is not None and id(parameter) in self._told.pending:
            self._told.pending[id(parameter)] = measurement  # of some rows; those of other processes will be added
        else:
            _thermometer.add(state, measurement)

    def temperatures(self) -> list[Temperature]:
        """Measured temperatures of each group, beside what was asked for; needs `measure_every`.

        They are averages over the latest half (at least) of the time since construction or `reset_thermometers`: reset
        after burn-in.

        Raises:
            RuleError: `measure_every` was not given.
        """
        groups = [group for group in self.param_groups if group["measure_every"] is not None and group["params"]]
        if not groups:
            raise RuleError(f"{NAME} measures no temperatures without measure_every; pass measure_every=10.")
        dimensions = self._dimensions()
        found: dict[int, list[tuple[dict[str, Any], int]]] = {}
        for name, parameter, group, _ in self._parameters():
            found.setdefault(id(group), []).append((self.state[parameter], dimensions[name]))
        return [_thermometer.read(group["manifold"], found[id(group)], group) for group in groups]

    def _found_here(self) -> dict[str, int]:
        """The degrees of freedom of every weight."""
        return {
            name: dimension_of(p, self._constraint(p, group, k), int(self.state[p]["step"]))
            for name, p, group, k in self._parameters()
        }

    def _dimensions(self) -> dict[str, int]:
        """The same of whole weights, whose state is brought up to date."""
        if self._twin is None:
            return self._found_here()
        return {name: sum(parts) for name, parts in self._twin.figures(self).items()}

    def measurements(self) -> dict[str, dict[str, float]]:
        """Figures of every parameter, by name.

        `kinetic_temperature` and `configurational_temperature` (with `measure_every`) in the units of `temperature`,
        and `fallbacks` of constrained ones. Of sharded weights all processes must call it, and `temperatures`.
        """
        dimensions = self._dimensions()
        figures: dict[str, dict[str, float]] = {}
        for name, parameter, group, _ in self._parameters():
            state = self.state[parameter]
            row = {} if "fallbacks" not in state else {"fallbacks": float(state["fallbacks"])}
            if "thermometer" in state and float(state["thermometer"][-1]):
                found = _thermometer.read(name, [(state, dimensions[name])], group)
                row |= {"kinetic_temperature": found.kinetic, "configurational_temperature": found.configurational}
            if row:
                figures[name] = row
        return figures

    @torch.no_grad()
    def reset_thermometers(self) -> None:
        """Forgets the measurements: after burn-in, or when `temperature` was changed."""
        if self._twin is not None:
            self._twin.reset(self)
            return
        for _, parameter, group, _ in self._parameters():
            if group["measure_every"] is not None:
                self.state[parameter].update(_thermometer.new_thermometer(parameter))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._noise, self._work = NoiseSource(), Workspace()
