"""What the callbacks of all trainers share: the options of `attach`, and figures as trainers log them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

from weightspace.errors import AttachError
from weightspace.kernels import Rule
from weightspace.optim import Rules, attach

Batching = Literal["auto", "single", "stacked"]
PREFIX = "weightspace"


class Waiting:
    """Rules that wait for an optimizer, and are in force on it from `attach` on.

    Args:
        rules: As for `weightspace.attach`.
        measure_every: Figures on each k-th step, from the first on; None for none.
        check_finite: As for `weightspace.attach`; likewise the others.
        inplace: Overwrite `p.grad`.
        batching: How equal weights are run.
    """

    def __init__(
        self,
        *rules: Rule,
        measure_every: int | None = None,
        check_finite: bool = True,
        inplace: bool = False,
        batching: Batching = "auto",
    ) -> None:
        self.given = rules
        self.measure_every = measure_every
        self._in_force: Rules | None = None
        self._told = 0  # steps at the latest figures
        self.attach_to: Callable[..., Rules] = functools.partial(
            attach, measure_every=measure_every, check_finite=check_finite, inplace=inplace, batching=batching
        )

    @property
    def in_force(self) -> Rules | None:
        """The rules, once they are attached."""
        return self._in_force

    @in_force.setter
    def in_force(self, rules: Rules) -> None:
        self._in_force = rules
        self._told = rules.steps

    def the_rules(self, when: str) -> Rules:
        """The rules in force.

        Args:
            when: What attaches them, for the error.

        Raises:
            AttachError: They are not in force yet.
        """
        if self._in_force is None:
            raise AttachError(f"These rules are on no optimizer yet: {when} attaches them; ask again after it began.")
        return self._in_force

    def new_figures(self) -> dict[str, float]:
        """What was measured since the last call, as `{"weightspace/PARAMETER/FIGURE": value}`; mostly nothing.

        Reading figures waits for the device, so it is done on measured steps only.
        """
        rules, every = self._in_force, self.measure_every
        if rules is None or every is None or rules.steps == self._told or (rules.steps - 1) % every:
            return {}
        self._told = rules.steps
        return {
            f"{PREFIX}/{name}/{figure}": value
            for name, figures in rules.measurements.items()
            for figure, value in figures.items()
        }
