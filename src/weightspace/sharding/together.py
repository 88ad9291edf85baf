"""What processes that hold parts of the same weights must decide together.

Every method is a collective: all processes of the group call it, in the same order.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

K = TypeVar("K")

_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Together:
    """The processes that share weights; a process that holds all of its weights is alone, and nothing is sent.

    Attributes:
        group: The process group; None alone.
        rank: This process in it.
        ranks: Processes in it.
        device: Where numbers are sent from.
    """

    group: Any = None
    rank: int = 0
    ranks: int = 1
    device: torch.device = _CPU

    @property
    def is_alone(self) -> bool:
        """Whether there is nobody to ask."""
        return self.group is None

    def sum(self, numbers: torch.Tensor) -> torch.Tensor:
        """The sums over all processes, a new tensor."""
        return self._reduced(numbers, torch.distributed.ReduceOp.SUM) if self.group is not None else numbers

    def max(self, numbers: torch.Tensor) -> torch.Tensor:
        """The largest of all processes, a new tensor."""
        return self._reduced(numbers, torch.distributed.ReduceOp.MAX) if self.group is not None else numbers

    def any(self, flag: bool) -> bool:
        """Whether it is so for any process; waits for the device."""
        if self.group is None:
            return flag
        return bool(self.max(torch.tensor(float(flag))))

    def agree(self, error: Exception | None) -> None:
        """Raises on all processes if one of them failed: without it the others would wait for that one for ever.

        Raises:
            Exception: The process's own error; on the others one of the same class, naming the process.
        """
        if self.group is None:
            if error is not None:
                raise error
            return
        if not self.any(error is not None):
            return
        messages: list[tuple[type[Exception], str] | None] = [None] * self.ranks
        torch.distributed.all_gather_object(
            messages, None if error is None else (type(error), str(error)), group=self.group
        )
        if error is not None:
            raise error
        for rank, message in enumerate(messages):
            if message is not None:
                raise message[0](f"rank {rank}: {message[1]}")

    @contextmanager
    def agreeing(self, *, when: bool = True) -> Generator[None, None, None]:
        """What the body raises on one process is raised on all, at its end; see `agree`.

        Args:
            when: Without it an error is raised here only: for bodies that cannot fail on one process alone.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            if self.group is None or not when:
                raise
            error = raised
        if self.group is not None and when:
            self.agree(error)

    def merged(self, facts: dict[K, Any]) -> list[dict[K, Any]]:
        """What every process knows, by rank; small things only."""
        if self.group is None:
            return [facts]
        found: list[dict[K, Any]] = [{}] * self.ranks
        torch.distributed.all_gather_object(found, facts, group=self.group)
        return found

    def _reduced(self, numbers: torch.Tensor, operation: Any) -> torch.Tensor:
        sent = numbers.detach().to(self.device, copy=True)
        torch.distributed.all_reduce(sent, operation, group=self.group)
        return sent.to(numbers.device)


ALONE = Together()
"""A process that has nobody to agree with: every decision is its own."""
