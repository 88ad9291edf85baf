"""Gates that look at no gradient: always open, open after some steps, open by chance."""

from __future__ import annotations

import random
from dataclasses import dataclass

from weightspace.errors import RuleError
from weightspace.gates.base import ScheduledGate
from weightspace.kernels.options import number_from_zero, seed_or_none, whole_number


@dataclass(frozen=True, repr=False)
class Always(ScheduledGate):
    """Open at every step: a penalty as everyone knows it. The default of every penalty.

    Example:
        >>> Always().opens(step=0, seed=1)
        True
    """

    def opens(self, step: int, seed: int) -> bool:
        """Yes."""
        del step, seed
        return True


@dataclass(frozen=True, repr=False)
class Delayed(ScheduledGate):
    """Closed for some steps, then open: delayed strong regularization, the predecessor of the coherent gate.

    Args:
        steps: Optimizer steps without the penalty, at least 0.

    Source:
        Park et al. (off, then on; the delays that they used are not known here).

    Example:
        >>> gate = Delayed(100)
        >>> gate.opens(step=99, seed=1), gate.opens(step=100, seed=1)
        (False, True)
    """

    steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settle(steps=whole_number("Delayed", "steps", self.steps, least=0))

    def opens(self, step: int, seed: int) -> bool:
        """Whether enough steps were taken."""
        del seed
        return step >= self.steps


@dataclass(frozen=True, repr=False)
class RandomGate(ScheduledGate):
    """Open by chance: the control that any other gate has to beat at an equal duty cycle.

    The draw is a function of `seed`, the step and the weight's name: alike on every rank and after a resume, and it
    leaves torch's generators alone.

    Args:
        duty: Probability of being open at a step, from 0 to 1.
        seed: Another seed draws other steps.
        scope: `"global"`: all weights of the penalty share one draw.

    Source:
        derived.

    Example:
        >>> gate = RandomGate(0.25)
        >>> sum(gate.opens(step, seed=1) for step in range(4000))
        964
    """

    duty: float
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        duty = number_from_zero("RandomGate", "duty", self.duty)
        if duty > 1.0:
            raise RuleError(f"RandomGate got duty={self.duty!r}; it is a probability: pass a number from 0 to 1.")
        seed = seed_or_none("RandomGate", "seed", self.seed)
        if seed is None:
            raise RuleError("RandomGate got seed=None; pass an integer, so that a resumed run draws the same steps.")
        self._settle(duty=duty, seed=seed)

    def opens(self, step: int, seed: int) -> bool:
        """A draw of its own for every step and weight."""
        return random.Random(f"{self.seed} {step} {seed}").random() < self.duty
