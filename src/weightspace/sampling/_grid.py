"""Which steps of a run are sampled: a pure function of the step, so that a resumed run samples as a whole one does."""

from __future__ import annotations

from dataclasses import dataclass

from weightspace.errors import SamplingError


@dataclass(frozen=True)
class Grid:
    """The steps that are candidates, numbered 1, 2, 3, ... over the run.

    Without a cycle: `burn_in + every`, `burn_in + 2 every`, ... With one: counted back from the end of each cycle
    (steps `1 .. cycle`, `cycle + 1 .. 2 cycle`, ...) every `every` steps, `per_cycle` of them, none up to `burn_in`.

    Attributes:
        burn_in: Steps at the beginning that give no sample.
        every: Steps between two samples.
        cycle: Steps of a cycle, or None.
        per_cycle: Samples of a cycle, or None.

    >>> grid = Grid(burn_in=10, every=5)
    >>> [step for step in range(31) if grid.number(step)], grid.number(20)
    ([15, 20, 25, 30], 2)
    >>> [step for step in range(21) if Grid(every=3, cycle=10, per_cycle=2).number(step)]
    [7, 10, 17, 20]
    """

    burn_in: int = 0
    every: int = 1
    cycle: int | None = None
    per_cycle: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that name no grid."""
        for name, least in (("burn_in", 0), ("every", 1), ("cycle", 1), ("per_cycle", 1)):
            value = getattr(self, name)
            if value is None and name in {"cycle", "per_cycle"}:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise SamplingError(f"{name} is {value!r}; give a whole number of at least {least}")
        if (self.cycle is None) != (self.per_cycle is None):
            given, missing = ("per_cycle", "cycle") if self.cycle is None else ("cycle", "per_cycle")
            raise SamplingError(f"{given} is given without {missing}; give both or none")

    def number(self, step: int) -> int | None:
        """The number of a step among the candidates, from 1 (with a cycle: counted from step 1, burn-in or not).

        Returns:
            The number; None if the step is no candidate.

        Raises:
            SamplingError: `step` is no whole number, or negative.
        """
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise SamplingError(f"step is {step!r}; give the number of finished optimizer steps, 0, 1, 2, ...")
        if step <= self.burn_in:
            return None
        if self.cycle is None or self.per_cycle is None:
            number, rest = divmod(step - self.burn_in, self.every)
            return number if rest == 0 else None
        finished, place = divmod(step - 1, self.cycle)
        back, rest = divmod(self.cycle - 1 - place, self.every)
        in_a_cycle = min(self.per_cycle, (self.cycle - 1) // self.every + 1)
        return finished * in_a_cycle + in_a_cycle - back if rest == 0 and back < in_a_cycle else None
