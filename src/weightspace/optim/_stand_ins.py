"""The buffers that stand in for `p.grad` during a step, and the loss gradients that come back afterwards."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from weightspace.errors import AttachError
from weightspace.kernels.parameters import ParameterInfo
from weightspace.optim._transform import Swap
from weightspace.sharding import is_sharded, local_part


class StandIns:
    """What was swapped for the step in progress; empty between steps, unless a step raised."""

    def __init__(self) -> None:
        self._swapped: list[tuple[nn.Parameter, torch.Tensor, torch.Tensor, int]] = []

    def put(self, swaps: Iterable[Swap]) -> None:
        """Makes every buffer its parameter's gradient, or none if one of them cannot be."""
        self._swapped = [(s.parameter, s.gradient, s.buffer, writes(s.buffer)) for s in swaps]
        try:
            for parameter, _, buffer, _ in self._swapped:
                parameter.grad = buffer
        except RuntimeError:
            self.take_back()
            raise

    def take_back(self) -> None:
        """Puts the loss gradients back, except where `p.grad` was assigned anew."""
        for parameter, grad, buffer, _ in self._swapped:
            if parameter.grad is buffer:
                parameter.grad = grad
        self._swapped.clear()

    def refuse_if_written(self, infos: Iterable[ParameterInfo]) -> None:
        """Raises AttachError if a stand-in that a failed step left behind was written to since.

        `backward()` adds to whatever `p.grad` is. In a stand-in that is a sum of a transformed and a loss gradient,
        from which neither taking it nor taking it back would make a correct step.
        """
        for parameter, grad, buffer, version in self._swapped:
            if parameter.grad is buffer and grad is not buffer and writes(buffer) != version:
                name = next((info.name for info in infos if info.held is parameter), "a weight")
                raise AttachError(
                    f"A step raised and left stand-ins such as that of {name} in p.grad, which were written to since, "
                    "as backward() and zero_grad(set_to_none=False) do; call rules.restore_gradients(), zero_grad() "
                    "and backward() again (restore_gradients() right after a step that raised avoids this)."
                )


def writes(tensor: torch.Tensor) -> int:
    """How often a tensor was written to; fused optimizers and writes to `.data` do not count."""
    count = tensor._version  # noqa: SLF001  # autograd's own count of writes; torch has no public name for it
    return count + local_part(tensor)._version if is_sharded(tensor) else count  # noqa: SLF001  # each counts its own
