"""Finds NaN and infinity in gradients, with one synchronization, and says where they are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from weightspace.errors import NonFiniteGradientError
from weightspace.kernels.parameters import ParameterInfo

_SMALL = 1 << 14  # numbers: from here on a copy into fresh memory costs more than a call


def all_finite(pieces: Iterable[torch.Tensor]) -> bool:
    """One reduction and one synchronization for each device and dtype, however many pieces there are."""
    groups: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for piece in pieces:
        groups.setdefault((piece.device, piece.dtype), []).append(piece)
    return all(_is_finite(torch.cat(group)) for group in groups.values())


def gradients_finite(grads: Iterable[torch.Tensor]) -> bool:
    """Whether no gradient holds NaN or infinity: one synchronization for each device and dtype, one pass over memory.

    Small ones are summed as one: a call for each costs more than the copy.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for grad in grads:
        groups.setdefault((grad.device, grad.dtype), []).append(grad)
    return all(_sums_finite(group) or all(bool(g.isfinite().all()) for g in group) for group in groups.values())


def _sums_finite(group: Sequence[torch.Tensor]) -> bool:
    small = [g.flatten() for g in group if g.numel() < _SMALL]
    pieces = [sum_of(g) for g in group if g.numel() >= _SMALL]
    if small:
        pieces.append(sum_of(torch.cat(small)))
    return math.isfinite(sum_of(torch.cat(pieces)) if len(pieces) > 1 else pieces[0])


def _is_finite(values: torch.Tensor) -> bool:
    # A sum is one pass where isfinite().all() is five; only a sum that overflows takes the longer look.
    return math.isfinite(sum_of(values)) or bool(values.isfinite().all())


def sums(infos: Iterable[ParameterInfo]) -> list[torch.Tensor]:
    """For each gradient its sum, in at least float32: not finite if any entry is not."""
    grads = (info.parameter.grad for info in infos)
    return [sum_of(g) for g in grads if g is not None]


def sum_of(values: torch.Tensor) -> torch.Tensor:
    """The sum as a tensor of one element, in at least float32: 16-bit sums would overflow."""
    if values.is_complex():
        values = torch.view_as_real(values)
    return values.sum(dtype=torch.float32 if values.dtype.itemsize < 4 else values.dtype).reshape(1)


def raise_non_finite(infos: Iterable[ParameterInfo]) -> None:
    """Raises NonFiniteGradientError for the first gradient that holds NaN or infinity, if there is one."""
    raise_non_finite_named((info.name, info.parameter) for info in infos)


def raise_non_finite_named(parameters: Iterable[tuple[str, torch.Tensor]]) -> None:
    """The same for names and parameters."""
    for name, parameter in parameters:
        grad = parameter.grad
        if grad is None or bool(grad.isfinite().all()):
            continue
        nan, inf = int(grad.isnan().sum()), int(grad.isinf().sum())
        raise NonFiniteGradientError(
            f"The gradient of {name} holds {nan} NaN and {inf} infinite of {grad.numel()} values; no weight was "
            "changed. Lower the learning rate, clip gradients, or use a GradScaler with 16-bit precision."
        )


def raise_overflow(*, inplace: bool) -> None:
    """Raises NonFiniteGradientError for gradients that were finite before they were transformed."""
    lost = " inplace=True overwrote the gradients: call zero_grad() and backward() again." if inplace else ""
    raise NonFiniteGradientError(
        f"A transformed gradient overflowed although every gradient is finite; no weight was changed.{lost}"
    )
