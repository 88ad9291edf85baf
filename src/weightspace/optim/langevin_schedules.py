"""Schedules of learning rate, friction and temperature: factors as functions of the step, and what applies them.

| factor | formula, k steps done |
|---|---|
| `ramp` | from one number to another in n steps, straight, and there it stays |
| `cosine` | end + (1 - end) (1 + cos(pi k / n)) / 2, and there it stays |
| `cyclical` | (1 + cos(pi (k mod n) / n)) / 2: begins anew every n steps |
| `is_exploring` | true in the first share of a cycle, where a cyclical sampler's temperature is 0 |

A cycle begins with a large learning rate and no noise, which finds a new region; as the rate falls, it samples there.
Source: Zhang, Li, Zhang, Chen, Wilson, arXiv 1902.03932 (cyclical; their share of exploration is 0.8); the others are
textbook. A schedule is a function of the step, so a resumed run has nothing to restore but the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

from weightspace.errors import RuleError
from weightspace.kernels.options import number_from_zero, whole_number

Factor = Callable[[int], float]


def constant(step: int, value: float = 1.0) -> float:
    """The same at every step.

    Example:
        >>> constant(100, 0.5)
        0.5
    """
    del step
    return value


def ramp(step: int, steps: int, start: float, end: float) -> float:
    """From `start` at step 0 in a straight line to `end` at step `steps`, and `end` after it.

    Example:
        >>> [ramp(step, 4, 0.0, 1.0) for step in (0, 1, 4, 9)]
        [0.0, 0.25, 1.0, 1.0]
    """
    return start + min(1.0, step / steps) * (end - start)


def cosine(step: int, steps: int, end: float = 0.0) -> float:
    """From 1 at step 0 along half a cosine to `end` at step `steps`, and `end` after it.

    Example:
        >>> [round(cosine(step, 4), 3) for step in (0, 1, 2, 4, 9)]
        [1.0, 0.854, 0.5, 0.0, 0.0]
    """
    return end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / steps)))


def cyclical(step: int, cycle: int) -> float:
    """`cosine` within each cycle of so many steps.

    Example:
        >>> [round(cyclical(step, 2), 3) for step in range(5)]
        [1.0, 0.5, 1.0, 0.5, 1.0]
    """
    return cosine(step % cycle, cycle)


def is_exploring(step: int, cycle: int, exploration: float = 0.8) -> bool:
    """Whether the step after `step` others is in the first share of its cycle; the last step of a cycle never is.

    Example:
        >>> [is_exploring(step, cycle=5, exploration=0.6) for step in range(6)]
        [True, True, True, False, False, True]
    """
    return step % cycle < min(cycle - 1, round(exploration * cycle))


def takes_sample(step: int, cycle: int, exploration: float = 0.8, every: int = 1) -> bool:
    """Whether the weights after the step that follows `step` others are a sample.

    That is not while a cycle explores; in the rest of it every so many steps, so that its last step gives one.

    Example:
        >>> [step for step in range(20) if takes_sample(step, cycle=10, exploration=0.6, every=2)]
        [7, 9, 17, 19]
    """
    return not is_exploring(step, cycle, exploration) and (cycle - 1 - step % cycle) % every == 0


class LangevinSchedule:
    """Multiplies learning rate, friction or temperature of every group by factors of the step.

    Like a scheduler of torch it sets the values of the first step when it is made and those of the next one at
    `step()`. What it leaves out it does not touch: one of torch's schedulers may have the learning rate. What is
    multiplied is what a group had when the schedule first met it, kept in the group as `initial_lr` and so on; so it is
    in the optimizer's `state_dict`, and groups that are added later have their own.

    Args:
        optimizer: A `ConstrainedLangevin`; with `lr` alone any torch optimizer.
        lr: Factor of the learning rate: a function of the number of steps done.
        friction: Factor of the friction.
        temperature: Factor of the temperature.

    Raises:
        RuleError: No factor is given, a group has no such number (`momentum` was given instead of `friction`), or a
            factor is no finite number from 0 (of friction: above 0).

    Example:
        >>> import torch, functools
        >>> from weightspace.optim import ConstrainedLangevin
        >>> w = torch.nn.Parameter(torch.zeros(3))
        >>> sampler = ConstrainedLangevin([w], lr=0.1, temperature=1.0, num_data=100)
        >>> warming = LangevinSchedule(sampler, temperature=functools.partial(ramp, steps=2, start=0.0, end=1.0))
        >>> for _ in range(3):
        ...     print(sampler.param_groups[0]["temperature"])
        ...     warming.step()  # after sampler.step()
        0.0
        0.5
        1.0
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        lr: Factor | None = None,
        friction: Factor | None = None,
        temperature: Factor | None = None,
    ) -> None:
        given = {"lr": lr, "friction": friction, "temperature": temperature}
        self._factors: dict[str, Factor] = {name: f for name, f in given.items() if f is not None}
        if not self._factors:
            raise RuleError("LangevinSchedule got nothing to schedule; pass lr=, friction= or temperature=.")
        for name, factor in self._factors.items():
            if not callable(factor):
                raise RuleError(
                    f"LangevinSchedule got {name}={factor!r}; pass a function of the step such as "
                    "lambda step: cosine(step, 1000), whose value multiplies."
                )
        self._optimizer = optimizer
        self.steps = 0
        self._apply()

    def step(self) -> None:
        """Sets the values of the next step; call it after the optimizer's."""
        self.steps += 1
        self._apply()

    def state_dict(self) -> dict[str, int]:
        """The number of steps done; the factors are the program's."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on at the step that `state_dict` told; load the optimizer's state first.

        Raises:
            RuleError: There is no whole number of steps in it.
        """
        self.steps = whole_number("LangevinSchedule", "steps", state.get("steps"), least=0)
        self._apply()

    def _apply(self) -> None:
        values = {name: self._value(name) for name in self._factors}
        for number, group in enumerate(self._optimizer.param_groups):
            for name, value in values.items():
                if group.get(name) is None:
                    hint = "; it has momentum instead: build the optimizer with friction" if name == "friction" else ""
                    raise RuleError(f"LangevinSchedule was to set {name}, which group {number} has not{hint}.")
                initial = group.setdefault(f"initial_{name}", group[name])
                if hasattr(group[name], "fill_"):  # a compiled step reads the rate from a tensor
                    if initial is group[name]:
                        initial = group[f"initial_{name}"] = group[name].clone()
                    group[name].fill_(float(initial) * value)
                else:
                    group[name] = float(initial) * value

    def _value(self, name: str) -> float:
        value = number_from_zero("LangevinSchedule", f"a factor of {name}", self._factors[name](self.steps))
        if name == "friction" and not value:
            raise RuleError(f"LangevinSchedule got 0 as the factor of friction at step {self.steps}; keep it above 0.")
        return value


class CyclicalSchedule(LangevinSchedule):
    """Cyclical sampling: the learning rate falls to zero in each cycle; first there is no noise, then there is.

    Args:
        optimizer: A `ConstrainedLangevin`, built with the largest learning rate and the temperature of its samples.
        cycle: Steps of a cycle.
        exploration: Share of a cycle without noise, from 0 to below 1.
        every: Steps between two samples of a cycle; its last step always gives one.

    Raises:
        RuleError: An option is out of its range.

    Example:
        >>> import torch
        >>> from weightspace.optim import ConstrainedLangevin
        >>> w = torch.nn.Parameter(torch.zeros(3))
        >>> sampler = ConstrainedLangevin([w], lr=0.1, temperature=1.0, num_data=100)
        >>> cycles = CyclicalSchedule(sampler, cycle=4, exploration=0.5)
        >>> taken = []
        >>> for k in range(8):
        ...     # loss.backward(); sampler.step()
        ...     if cycles.takes_sample:
        ...         taken.append((k, sampler.param_groups[0]["temperature"]))
        ...     cycles.step()
        >>> taken
        [(2, 1.0), (3, 1.0), (6, 1.0), (7, 1.0)]
    """

    def __init__(self, optimizer: Optimizer, cycle: int, *, exploration: float = 0.8, every: int = 1) -> None:
        self.cycle = whole_number("CyclicalSchedule", "cycle", cycle)
        self.exploration = number_from_zero("CyclicalSchedule", "exploration", exploration)
        if self.exploration >= 1.0:
            raise RuleError(
                f"CyclicalSchedule got exploration={exploration!r}; it must be below 1: a share of a cycle."
            )
        self.every = whole_number("CyclicalSchedule", "every", every)
        super().__init__(
            optimizer,
            lr=lambda step: cyclical(step, self.cycle),
            temperature=lambda step: 0.0 if is_exploring(step, self.cycle, self.exploration) else 1.0,
        )

    @property
    def takes_sample(self) -> bool:
        """Whether the weights after the optimizer's step, and before `step()`, are a sample."""
        return takes_sample(self.steps, self.cycle, self.exploration, self.every)
