"""A sampler's thermometers during a run: reset when its temperature is reached, logged, and judged."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from weightspace.errors import TemperatureWarning
from weightspace.files import JsonObject
from weightspace.training.optimizers import SAMPLER
from weightspace.training.recipe_sampling import sample_plan
from weightspace.training.schedule import is_heated

if TYPE_CHECKING:
    from weightspace.optim import ConstrainedLangevin, Temperature
    from weightspace.training.session import Session

LEAST_MEASUREMENTS = 20  # fewer say little, and velocities that start from rest take some to warm up
_HOT = "the steps are too long or the minibatches too noisy; take a smaller lr or a larger batch_size"
_COLD_VELOCITIES = "velocities have not warmed up; take more epochs or a larger friction"
_COLD_POSITIONS = (
    "they have not spread over the posterior; take a longer burn-in and more epochs, and give free weights a "
    "weight_decay, without which they have nothing to spread over"
)
_FAR = 0.5  # of the target: the configurational temperature forgets slowly where the weights were


class Thermometers:
    """Reads the thermometers of a run's sampler.

    Args:
        sampler: The optimizer, with `measure_every`.
        is_reset: Whether what was measured before must not count any more, from the steps done.
        settled: Steps after which they are judged: those of the burn-in.
    """

    def __init__(self, sampler: ConstrainedLangevin, is_reset: Callable[[int], bool], *, settled: int) -> None:
        self._settled = settled
        self._sampler = sampler
        self._is_reset = is_reset
        self._warned: set[tuple[str, str]] = set()

    def resets_at(self, step: int) -> bool:
        """Whether the thermometers are reset after so many steps: burn-in has ended, or a cycle's exploration."""
        return self._is_reset(step)

    def reset(self) -> None:
        """Forget what was measured."""
        self._sampler.reset_thermometers()

    def records(self) -> list[JsonObject]:
        """What the log says of every group that has a temperature now and was measured."""
        return [temperature_record(found) for found in self._heated()]

    def judge(self, step: int) -> None:
        """Warn, once for each group and thermometer, of a temperature that is off its target after so many steps."""
        if step < self._settled:
            return
        for found in self._heated():
            for kind, sentence in complaints(found):
                if (found.name, kind) not in self._warned:
                    self._warned.add((found.name, kind))
                    warnings.warn(sentence, TemperatureWarning, stacklevel=2)

    def _heated(self) -> list[Temperature]:
        return [found for found in self._sampler.temperatures() if found.target > 0 and found.measurements]


def thermometers_of(session: Session) -> Thermometers | None:
    """The thermometers of a run; None where its optimizer has none, or `measure_every` is null."""
    recipe = session.recipe
    if recipe.train.optimizer.name != SAMPLER or session.inner.defaults.get("measure_every") is None:
        return None
    per_epoch = len(session.train)
    steps, schedule = recipe.train.epochs * per_epoch, recipe.train.schedule
    burn_in, settled = None, steps // 2
    if recipe.sample is not None:
        burn_in = settled = sample_plan(recipe.sample, recipe.train, per_epoch).burn_in
    if schedule.temperature is not None:
        settled = max(settled, round(schedule.temperature.epochs * per_epoch))

    def is_reset(step: int) -> bool:
        return step == burn_in or is_heated(schedule, step, steps_per_epoch=per_epoch, steps=steps)

    sampler: Any = session.inner
    return Thermometers(sampler, is_reset, settled=settled)


def temperature_record(found: Temperature) -> JsonObject:
    """A group's temperatures as the log has them."""
    return {
        "name": found.name,
        "target": found.target,
        "kinetic": found.kinetic,
        "kinetic_error": found.kinetic_error,
        "configurational": found.configurational,
        "dimension": found.dimension,
        "measurements": found.measurements,
    }


def complaints(found: Temperature) -> list[tuple[str, str]]:
    """What is wrong with a group's temperatures: the thermometer, and a sentence with what to do; empty if nothing is.

    A group that was measured fewer than 20 times is not judged.
    """
    if found.measurements < LEAST_MEASUREMENTS or found.target <= 0:
        return []
    weights = f"the weights on {found.name}" if not found.name.startswith("euclidean") else "the free weights"

    def sentence(kind: str, value: float, advice: str) -> tuple[str, str]:
        text = f"the {kind} temperature of {weights} is {value:.3g}, not {found.target:g} as asked for: {advice}"
        return kind, text

    wrong: list[tuple[str, str]] = []
    is_wild = abs(found.kinetic - found.target) > found.target  # a chain that explodes has no small standard error
    if found.is_off() or is_wild:
        is_hot = found.kinetic > found.target
        wrong.append(sentence("kinetic", found.kinetic, _HOT if is_hot else _COLD_VELOCITIES))
    gap = abs(found.configurational - found.target)
    if math.isfinite(found.configurational) and gap > _FAR * found.target:
        is_hot = found.configurational > found.target
        wrong.append(sentence("configurational", found.configurational, _HOT if is_hot else _COLD_POSITIONS))
    return wrong
