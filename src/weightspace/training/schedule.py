"""Learning-rate schedules per step: linear warm-up, then constant, cosine to zero, or steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from weightspace.training.recipe import OptimizerSettings, ScheduleSettings


def lr_factor(schedule: ScheduleSettings, step: int, *, steps_per_epoch: int, steps: int) -> float:
    """The factor on the base learning rate for one step.

    Args:
        schedule: The recipe's schedule; its epochs may be fractions.
        step: Steps done before this one: 0 for the first.
        steps_per_epoch: Steps in an epoch.
        steps: Steps in the whole run.

    Returns:
        A number in [0, 1]. Warm-up rises linearly and reaches 1 after `warmup_epochs`; cosine falls to 0 at `steps`.

    >>> from weightspace.training.recipe import ScheduleSettings
    >>> cosine = ScheduleSettings(name="cosine")
    >>> [round(lr_factor(cosine, step, steps_per_epoch=2, steps=4), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.name == "cosine":
        done = (step - warmup) / max(1, steps - warmup)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    if schedule.name == "step":
        passed = sum(step >= round(milestone * steps_per_epoch) for milestone in schedule.milestones)
        return schedule.gamma**passed
    return 1.0


def rate_setter(
    optimizer: torch.optim.Optimizer,
    settings: OptimizerSettings,
    schedule: ScheduleSettings,
    *,
    steps_per_epoch: int,
    steps: int,
) -> Callable[[int], None] | None:
    """What sets the learning rate of a step, to be called before it; None where the rate never changes.

    The rate is a function of the step, so there is no state to save. A scheduler of torch's wraps the optimizer's step
    and costs 8 µs more in every step.

    Args:
        optimizer: The torch optimizer whose learning rates are set.
        settings: Its settings: the base learning rate.
        schedule: The recipe's schedule.
        steps_per_epoch: Steps in an epoch.
        steps: Steps in the whole run.

    Returns:
        A function of the steps done before.
    """
    if schedule.name == "constant" and not schedule.warmup_epochs:
        return None

    def set_rate(step: int) -> None:
        rate = settings.lr * lr_factor(schedule, step, steps_per_epoch=steps_per_epoch, steps=steps)
        for group in optimizer.param_groups:
            group["lr"] = rate

    return set_rate
