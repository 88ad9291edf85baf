"""Do two models compute the same? Outputs are compared in float64, where rounding is out of the way."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.errors import CompressError

Inputs = tuple[Any, ...]


def as_inputs(example: Any) -> Inputs:
    """What a model is called with: a tensor, or a tuple or list of arguments.

    Raises:
        CompressError: It is something else.
    """
    inputs = tuple(example) if isinstance(example, tuple | list) else (example,)
    if not any(isinstance(entry, Tensor) for entry in inputs):
        raise CompressError(
            f"the example input is a {type(example).__name__}; give a tensor, or a tuple of the model's arguments"
        )
    return inputs


def probes(inputs: Inputs, count: int, *, seed: int = 0) -> list[Inputs]:
    """The example, and `count` random inputs of its shapes with twice its spread; integer tensors stay as they are."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def drawn(entry: Any) -> Any:
        if not isinstance(entry, Tensor) or not entry.is_floating_point():
            return entry
        noise = torch.randn(entry.shape, generator=generator, device="cpu").to(entry)
        spread = entry.std(correction=0) if entry.numel() else entry.new_ones(())
        return 2 * (spread if float(spread) > 0 else 1.0) * noise + entry.mean()

    return [inputs, *(tuple(drawn(entry) for entry in inputs) for _ in range(count))]


def doubled(model: nn.Module) -> nn.Module:
    """A copy in float64 and evaluation mode."""
    return copy.deepcopy(model).double().eval()


def outputs(model: nn.Module, given: Sequence[Inputs], *, double: bool = True) -> list[list[Tensor]]:
    """All tensors that a model returns for each input; no gradients."""
    with torch.no_grad():
        return [
            [entry.detach() for entry in _tensors(model(*(_cast(entry, double=double) for entry in inputs)))]
            for inputs in given
        ]


def relative_difference(one: Sequence[Sequence[Tensor]], other: Sequence[Sequence[Tensor]]) -> float:
    """The largest difference of an entry, relative to the largest entry; infinity if shapes or NaNs differ."""
    worst = 0.0
    for left, right in zip(one, other, strict=True):
        if [entry.shape for entry in left] != [entry.shape for entry in right]:
            return float("inf")
        for a, b in zip(left, right, strict=True):
            if not a.numel():
                continue
            x, y = a.double(), b.double()
            if not torch.equal(x.isfinite(), y.isfinite()):
                return float("inf")
            finite = x.isfinite()
            scale = float(x[finite].abs().max()) if bool(finite.any()) else 0.0
            gap = float((x - y)[finite].abs().max()) if bool(finite.any()) else 0.0
            worst = max(worst, gap / scale if scale else gap)
    return worst


def _cast(entry: Any, *, double: bool) -> Any:
    return entry.double() if double and isinstance(entry, Tensor) and entry.is_floating_point() else entry


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for entry in output.values():
            yield from _tensors(entry)
    elif isinstance(output, list | tuple):
        for entry in output:
            yield from _tensors(entry)
