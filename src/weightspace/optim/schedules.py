"""Learning rates that satisfy the conditions of convergence, and a check of those that may not.

Stochastic gradient descent converges almost surely if, besides conditions on loss and manifold, the rates satisfy

    sum_t gamma_t = infinity    and    sum_t gamma_t^2 < infinity            (Robbins and Monro 1951; Bonnabel 2013)

`PowerDecayLR`, gamma_0 / (1 + b t)^a, does for 1/2 < a <= 1. Schedules that end, or that are constant, do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.optim import Optimizer, lr_scheduler

from weightspace.errors import RuleError
from weightspace.kernels.options import positive_number


class PowerDecayLR(lr_scheduler.LRScheduler):
    """gamma_0 / (1 + rate * t)^exponent, t in calls of `step()`.

    Args:
        optimizer: Any torch optimizer.
        rate: b: at t = 1/b the decay begins.
        exponent: a, above 1/2 and at most 1 for convergence; smaller ones are accepted, and
            `convergence_conditions` says what they break.
        last_epoch: As in torch.

    Raises:
        RuleError: `rate` or `exponent` is no positive number.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> schedule = PowerDecayLR(optimizer, rate=1.0, exponent=1.0)
        >>> for _ in range(3):
        ...     optimizer.step()
        ...     schedule.step()
        >>> optimizer.param_groups[0]["lr"]
        0.25
    """

    def __init__(self, optimizer: Optimizer, rate: float, exponent: float = 0.75, last_epoch: int = -1) -> None:
        self.rate = positive_number("PowerDecayLR", "rate", rate)
        self.exponent = positive_number("PowerDecayLR", "exponent", exponent)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rates of the present step, in closed form."""
        return [power_decay(float(base), self.last_epoch, self.rate, self.exponent) for base in self.base_lrs]


def power_decay(base: float, step: int, rate: float, exponent: float) -> float:
    """base / (1 + rate * step)^exponent.

    Example:
        >>> power_decay(1.0, 3, 1.0, 0.5)
        0.5
    """
    return base / (1.0 + rate * step) ** exponent


@dataclass(frozen=True)
class Conditions:
    """Whether a schedule satisfies the conditions of convergence.

    Attributes:
        sum_diverges: The sum of the rates is infinite: every minimum can be reached. None if it is not known.
        squares_converge: The sum of their squares is finite: the noise dies out. None if it is not known.
        reason: One sentence.
    """

    sum_diverges: bool | None
    squares_converge: bool | None
    reason: str

    @property
    def hold(self) -> bool:
        """True if both are known to hold."""
        return bool(self.sum_diverges and self.squares_converge)


_ENDING = "its rates fall geometrically or to zero, so their sum is finite: weights may stop before a minimum"
_ENDLESS = "its rates do not fall to zero for good, so the sum of their squares is infinite: weights keep trembling"
_GEOMETRIC = ("StepLR", "ExponentialLR", "PolynomialLR", "CosineAnnealingLR", "OneCycleLR")
_CONSTANT = ("ConstantLR", "LinearLR", "MultiStepLR", "CosineAnnealingWarmRestarts", "CyclicLR", "ReduceLROnPlateau")


def convergence_conditions(
    schedule: lr_scheduler.LRScheduler | str | None, exponent: float | None = None
) -> Conditions:
    """Which conditions of convergence a schedule satisfies if it runs for ever.

    Args:
        schedule: A scheduler of torch or of this library; None or `"constant"` for none; of recipes also the names
            `"power"` (with `exponent`), `"cosine"` and `"step"`.
        exponent: Of `"power"`.

    Example:
        >>> convergence_conditions(None).reason[:40]
        'a constant rate: the sum of squares is i'
        >>> convergence_conditions("power", exponent=0.75).hold
        True
    """
    if isinstance(schedule, PowerDecayLR) or schedule == "power":
        return _of_power(schedule.exponent if isinstance(schedule, PowerDecayLR) else exponent)
    if schedule is None or schedule == "constant":
        return Conditions(True, False, "a constant rate: the sum of squares is infinite, so weights keep trembling")
    name = schedule if isinstance(schedule, str) else type(schedule).__name__
    if name in (*_GEOMETRIC, "cosine"):
        return Conditions(False, True, f"{name}: {_ENDING}")
    if name in (*_CONSTANT, "step"):
        return Conditions(True, False, f"{name}: {_ENDLESS}")
    return Conditions(None, None, f"{name}: its rates are not known here; PowerDecayLR satisfies both conditions")


def _of_power(exponent: float | None) -> Conditions:
    if exponent is None:
        raise RuleError("convergence_conditions('power') needs its exponent.")
    diverges, converge = exponent <= 1, exponent > 0.5
    told = f"exponent {exponent:g}: " + (
        "both conditions hold" if diverges and converge else "it must be above 1/2 and at most 1 for both conditions"
    )
    return Conditions(diverges, converge, told)
