"""Batches of equal weights and their buffers: one block of memory a batch, run one by one or as one stacked call.

Which of the two is faster was measured (benchmarks/metrics.py): on a CPU, arithmetic that writes straight from each
gradient into its buffer wins once a weight has some two hundred thousand elements, because stacking reads and writes
everything once more; below that one stacked call wins. The limit for accelerators, where a launch costs more than a
small copy, is an estimate: no accelerator was at hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from weightspace.kernels.parameters import ParameterInfo
from weightspace.kernels.views import View

Mode = Literal["single", "stacked"]
Batching = Literal["auto", "single", "stacked"]

STACK_BELOW_ON_CPU = 200_000  # elements a weight
STACK_BELOW_ON_ACCELERATOR = 1 << 20


class Workspace:
    """Temporary buffers that are allocated once and lent again: fresh large tensors cost page faults on a CPU."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}

    def lend(self, tag: str, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """An uninitialised buffer of `shape` with dtype and device of `like`, valid until the tag is lent again."""
        size = math.prod(shape)
        key = (tag, like.dtype, like.device)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, dtype=like.dtype, device=like.device)
            self._buffers[key] = buffer
        return buffer[:size].view(shape)

    def clear(self) -> None:
        """Gives all buffers back."""
        self._buffers.clear()


@dataclass
class Batch:
    """Weights of one shape, layout, dtype and device under the same rules, with buffers that stand in for gradients.

    Attributes:
        infos: The parameters.
        views: One view a rule, in the order in which the rules act.
        rules: Indices of the rules.
        mode: Whether the batch runs weight by weight or as one stacked tensor.
        block: Memory of all buffers, `(len(infos), numel)`; empty if gradients are changed in place.
        buffers: One tensor a parameter with the parameter's shape and strides, slices of `block`.
    """

    infos: list[ParameterInfo]
    views: tuple[View, ...]
    rules: tuple[int, ...]
    mode: Mode
    block: torch.Tensor
    buffers: list[torch.Tensor] = field(default_factory=list[torch.Tensor])

    @property
    def is_inplace(self) -> bool:
        """True if there are no buffers and gradients are overwritten."""
        return not self.buffers

    def stacked(self, view: View) -> torch.Tensor:
        """The whole block as `(count * batch, length, inner)`."""
        outer, length, inner = view.shape
        return self.block.view(len(self.infos) * outer, length, inner)


def choose_mode(numel: int, count: int, device: torch.device, batching: Batching = "auto") -> Mode:
    """Single or stacked, by the measured crossover of the device.

    Example:
        >>> choose_mode(1_024, 8, torch.device("cpu")), choose_mode(500_000, 8, torch.device("cpu"))
        ('stacked', 'single')
    """
    if batching != "auto":
        return batching
    limit = STACK_BELOW_ON_CPU if device.type == "cpu" else STACK_BELOW_ON_ACCELERATOR
    return "stacked" if count > 1 and numel < limit else "single"


def make_batches(
    routed: list[tuple[ParameterInfo, tuple[View, ...], tuple[int, ...]]],
    *,
    batching: Batching = "auto",
    inplace: bool = False,
) -> list[Batch]:
    """Groups routed parameters into batches and allocates their buffers.

    Args:
        routed: For each parameter its views and rule indices.
        batching: `"auto"` takes the measured choice of the device.
        inplace: Allocate no buffers; gradients will be overwritten. Such batches always run one by one.

    Cost: one gradient's memory for every routed parameter, none with `inplace`.
    """
    groups: dict[object, list[tuple[ParameterInfo, tuple[View, ...], tuple[int, ...]]]] = {}
    for item in routed:
        info, _, rules = item
        parameter = info.parameter
        key = (info.shape, parameter.stride(), parameter.dtype, parameter.device, rules, info.kind)
        groups.setdefault(key, []).append(item)
    batches: list[Batch] = []
    for members in groups.values():
        infos = [info for info, _, _ in members]
        first = infos[0].parameter
        numel = first.numel()
        mode = "single" if inplace else choose_mode(numel, len(infos), first.device, batching)
        block = torch.empty((0 if inplace else len(infos), numel), dtype=first.dtype, device=first.device)
        buffers = (
            [] if inplace else [row.as_strided(first.shape, first.stride(), row.storage_offset()) for row in block]
        )
        batches.append(Batch(infos, members[0][1], members[0][2], mode, block, buffers))
    return batches
