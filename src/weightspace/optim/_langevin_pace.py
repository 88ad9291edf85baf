"""The numbers of one Langevin step, from what a parameter group says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from weightspace.errors import RuleError
from weightspace.kernels.options import choice, number_from_zero, positive_number, whole_number
from weightspace.manifolds._flows import FLOW_METHODS, FlowMethod, Solver

Scheme = Literal["BAOA", "OBA", "OBABO", "overdamped"]
SCHEMES: tuple[Scheme, ...] = ("BAOA", "OBA", "OBABO", "overdamped")
NAME = "ConstrainedLangevin"


@dataclass(frozen=True)
class Pace:
    """One step in physical units.

    Attributes:
        scheme: The order of its parts.
        h: Time step; `sqrt(lr)`, of the overdamped scheme `lr` itself.
        decay: c, what O leaves of a velocity; 0 for the overdamped scheme.
        noise: Standard deviation of what O adds to a velocity, `sqrt(tau (1 - c^2))`; of the overdamped scheme of what
            is added to a position, `sqrt(2 tau h)`.
        flow: How points move freely.
        solver: Of the flow.
    """

    scheme: Scheme
    h: float
    decay: float
    noise: float
    flow: FlowMethod = "auto"
    solver: Solver = Solver()  # noqa: RUF009  # frozen

    @property
    def is_overdamped(self) -> bool:
        """True for the scheme without velocities."""
        return self.scheme == "overdamped"

    @property
    def is_rattle(self) -> bool:
        """True where points of a matrix manifold move by RATTLE."""
        return not self.is_overdamped and self.flow != "geodesic"


@dataclass(frozen=True)
class LangevinUnits:
    """One step size and damping, in the units of SGD and in those of physics.

    Attributes:
        lr: Learning rate of SGD, `h^2`.
        momentum: c, what a step leaves of the momentum, `exp(-friction h)`.
        time_step: h.
        friction: gamma, in 1 / time; infinite for `momentum=0`.
    """

    lr: float
    momentum: float
    time_step: float
    friction: float


def langevin_units(lr: float, *, friction: float | None = None, momentum: float | None = None) -> LangevinUnits:
    """Converts between learning rate and momentum of SGD, and time step and friction: `h^2 = lr`, `c = exp(-gamma h)`.

    Raises:
        RuleError: Not exactly one of `friction` and `momentum`, or a number is out of range.

    Example:
        >>> units = langevin_units(0.1, momentum=0.9)
        >>> round(units.time_step, 4), round(units.friction, 4)
        (0.3162, 0.3332)
        >>> round(langevin_units(0.09, friction=1.0).momentum, 4)
        0.7408
    """
    if (friction is None) == (momentum is None):
        raise RuleError(f"langevin_units got friction={friction!r} and momentum={momentum!r}; pass one of them.")
    h = math.sqrt(positive_number("langevin_units", "lr", lr))
    if momentum is not None:
        c = _momentum("langevin_units", momentum)
        return LangevinUnits(lr, c, h, -math.log(c) / h if c else math.inf)
    gamma = positive_number("langevin_units", "friction", friction)
    return LangevinUnits(lr, math.exp(-gamma * h), h, gamma)


def pace_of(group: Mapping[str, Any]) -> Pace:
    """The numbers of a group's next step.

    Raises:
        RuleError: A temperature above 0 without `num_data` (a schedule may have raised it).
    """
    lr, tau, scheme = float(group["lr"]), tau_of(group), group["scheme"]
    solver = Solver(group["solver_tolerance"], group["solver_iterations"])
    if scheme == "overdamped":
        return Pace(scheme, lr, 0.0, math.sqrt(2.0 * tau * lr), group["flow"], solver)
    h = math.sqrt(lr)
    c = float(group["momentum"]) if group["momentum"] is not None else math.exp(-float(group["friction"]) * h)
    return Pace(scheme, h, c, math.sqrt(tau * (1.0 - c * c)), group["flow"], solver)


def check_numbers(group: Mapping[str, Any]) -> None:
    """Raises RuleError for numbers that a schedule may have set out of their range."""
    if group["friction"] is not None and group["momentum"] is not None:
        raise RuleError(
            f"{NAME} has friction={group['friction']:g} and momentum={group['momentum']:g} at this step; a schedule "
            "may set the one that the sampler was built with: pass cycle_momentum=False to OneCycleLR or CyclicLR."
        )
    for name in ("lr", "temperature", "friction", "momentum"):
        value = group[name]
        if value is not None and not 0.0 <= float(value) < math.inf:
            raise RuleError(f"{NAME} has {name}={float(value):g} at this step; a schedule must keep it at 0 or above.")
    if group["scheme"] not in SCHEMES:
        raise RuleError(f"{NAME} has scheme={group['scheme']!r} at this step; choose one of {', '.join(SCHEMES)}.")
    tau_of(group)


def tau_of(group: Mapping[str, Any]) -> float:
    """`temperature / num_data`: the temperature in units of the mean loss.

    Raises:
        RuleError: There is a temperature, but no `num_data`.
    """
    temperature = float(group["temperature"])
    if temperature <= 0.0:
        return 0.0
    if group["num_data"] is None:
        raise RuleError(
            f"{NAME} got temperature={temperature:g} without num_data, the number of training examples that the mean "
            "loss stands for; pass num_data=len(train_set), or temperature=0 to optimize."
        )
    return temperature / float(group["num_data"])


def check_group(group: Mapping[str, Any]) -> None:
    """Raises RuleError for a group whose options are out of range or contradict each other."""
    for name in ("temperature", "weight_decay"):
        number_from_zero(NAME, name, float(group[name]) if hasattr(group[name], "item") else group[name])
    choice(NAME, "scheme", group["scheme"], SCHEMES)
    choice(NAME, "flow", group["flow"], FLOW_METHODS)
    if group["num_data"] is not None:
        positive_number(NAME, "num_data", group["num_data"])
    if group["friction"] is not None and group["momentum"] is not None:
        raise RuleError(
            f"{NAME} got friction={group['friction']!r} and momentum={group['momentum']!r}; pass one of them: "
            "momentum = exp(-friction * sqrt(lr))."
        )
    if group["momentum"] is not None:
        _momentum(NAME, group["momentum"])
    elif group["scheme"] != "overdamped":
        friction = group["friction"]
        if isinstance(friction, int | float) and not isinstance(friction, bool) and friction <= 0:
            raise RuleError(
                f"{NAME} got friction={friction!r} with scheme={group['scheme']!r}, which needs a friction above 0: "
                "without it nothing brings velocities to their temperature."
            )
        positive_number(NAME, "friction", friction)
    if group["solver_tolerance"] is not None:
        positive_number(NAME, "solver_tolerance", group["solver_tolerance"])
    whole_number(NAME, "solver_iterations", group["solver_iterations"])
    whole_number(NAME, "adapt_steps", group["adapt_steps"], least=0)
    positive_number(NAME, "preconditioner_epsilon", group["preconditioner_epsilon"])
    if number_from_zero(NAME, "preconditioner_decay", group["preconditioner_decay"]) >= 1.0:
        raise RuleError(f"{NAME} got preconditioner_decay={group['preconditioner_decay']!r}; it must be below 1.")
    tau_of(group)


def _momentum(rule: str, value: object) -> float:
    number = number_from_zero(rule, "momentum", value)
    if number >= 1.0:
        raise RuleError(f"{rule} got momentum={value!r}; it must be below 1.")
    return number
