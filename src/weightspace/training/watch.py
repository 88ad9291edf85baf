"""What a sampling run does between steps: keep weights, reset and read thermometers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import nn

if TYPE_CHECKING:
    from weightspace.training.logs import RunLog
    from weightspace.training.thermometers import Thermometers


class SampleKeeper(Protocol):
    """Whoever keeps the weights of some steps; `weightspace sample` puts them into a store."""

    def wants(self, step: int) -> bool:
        """Whether the weights after so many steps are to be kept."""
        ...

    def keep(self, step: int, module: nn.Module) -> None:
        """Keep them."""
        ...

    def truncate(self, step: int) -> None:
        """Forget those of later steps: the run goes on from here."""
        ...


class Watch:
    """Looks after the samples and thermometers of a run; a run without both has none.

    Args:
        module: The model.
        keeper: Gets the weights.
        thermometers: Of the optimizer.
    """

    def __init__(self, module: nn.Module, keeper: SampleKeeper | None, thermometers: Thermometers | None) -> None:
        self._module = module
        self._keeper = keeper
        self._thermometers = thermometers

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to look after."""
        return self._keeper is not None or self._thermometers is not None

    def begin(self, step: int) -> None:
        """The run goes on after so many steps."""
        if self._keeper is not None:
            self._keeper.truncate(step)

    def wants(self, step: int) -> bool:
        """Whether something is to be done after so many steps."""
        kept = self._keeper is not None and self._keeper.wants(step)
        return kept or (self._thermometers is not None and self._thermometers.resets_at(step))

    def act(self, step: int) -> None:
        """Do it."""
        if self._keeper is not None and self._keeper.wants(step):
            self._keeper.keep(step, self._module)
        if self._thermometers is not None and self._thermometers.resets_at(step):
            self._thermometers.reset()

    def log(self, step: int, log: RunLog) -> None:
        """Write the temperatures of every group."""
        if self._thermometers is not None:
            log.temperatures(step, self._thermometers.records())

    def judge(self, step: int) -> None:
        """Warn of temperatures that are off their target after so many steps."""
        if self._thermometers is not None:
            self._thermometers.judge(step)
