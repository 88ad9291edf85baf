"""Batches of equal weights and their buffers: one block of memory a batch, run one by one or as one stacked call.

Which of the two is faster was measured (benchmarks/metrics_step.py): on a CPU, arithmetic that writes straight from
each gradient into its buffer wins once a weight has some hundred thousand elements, because stacking reads and writes
everything once more; below that one stacked call wins. The limit for accelerators, where a launch costs more than a
small copy, is an estimate: no accelerator was at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal

import torch

from weightspace.kernels.parameters import ParameterInfo, gradient_dtype
from weightspace.kernels.views import View

Mode = Literal["single", "stacked"]
Batching = Literal["auto", "single", "stacked"]

STACK_BELOW_ON_CPU = 100_000  # elements a weight
STACK_BELOW_ON_ACCELERATOR = 1 << 20


class Workspace:
    """Temporary buffers that are allocated once and lent again: fresh large tensors cost page faults on a CPU.

    It also keeps small constants, so that they are freed with the rules that needed them.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}
        self._lent: dict[tuple[str, tuple[int, ...], torch.dtype, torch.device], torch.Tensor] = {}
        self._constants: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}

    def lend(self, tag: str, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """An uninitialised buffer of `shape` with dtype and device of `like`, valid until the tag is lent again."""
        dtype, device = like.dtype, like.device
        lent = self._lent.get((tag, shape, dtype, device))
        if lent is not None:
            return lent
        size = math.prod(shape)
        buffer = self._buffers.get((tag, dtype, device))
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, dtype=dtype, device=device)
            self._buffers[tag, dtype, device] = buffer
            self._lent.clear()  # slices of the smaller buffer would keep it alive
        lent = self._lent[tag, shape, dtype, device] = buffer[:size].view(shape)
        return lent

    def constant(self, tag: str, like: torch.Tensor, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The constant `tag` for the dtype and device of `like`; `make()` is called once for each of these.

        Args:
            tag: Names the constant with everything that it depends on.
            like: Whose dtype and device the constant serves; `make()` decides which it has itself.
            make: Computes it.
        """
        key = (tag, like.dtype, like.device)
        constant = self._constants.get(key)
        if constant is None:
            constant = self._constants[key] = make()
        return constant

    def keep(self, kinds: set[tuple[torch.dtype, torch.device]]) -> None:
        """Gives back what serves a dtype and device that no gradient has any more; float32 serves the 16-bit ones."""
        devices = {device for _, device in kinds}
        for store in (self._buffers, self._constants):
            for key in list(store):
                _, dtype, device = key
                if (dtype, device) not in kinds and not (dtype == torch.float32 and device in devices):
                    del store[key]
        self._lent.clear()

    def clear(self) -> None:
        """Gives all buffers and constants back."""
        for store in (self._buffers, self._lent, self._constants):
            store.clear()


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
    blocks: dict[object, torch.Tensor] | None = None,
    alone: Collection[str] = (),
) -> list[Batch]:
    """Groups routed parameters into batches and allocates their buffers.

    Args:
        routed: For each parameter its views and rule indices.
        batching: `"auto"` takes the measured choice of the device.
        inplace: Allocate no buffers; gradients will be overwritten. Such batches always run one by one.
        blocks: Memory of earlier batches, which is taken again where it is large enough, and into which new memory is
            entered; what no batch needs any more is dropped. Batches made earlier from it are then void.
        alone: Names of parameters that get a batch and memory of their own: those whose buffers stand in at some steps
            only. A compiled step is compiled anew whenever other gradients share memory.

    Cost: one gradient's memory for every routed parameter, none with `inplace`.
    """
    groups: dict[object, list[tuple[ParameterInfo, tuple[View, ...], tuple[int, ...]]]] = {}
    for item in routed:
        info, _, rules = item
        parameter = info.parameter
        dtype = gradient_dtype(parameter)
        key = (info.shape, parameter.stride(), dtype, parameter.dtype, parameter.device, rules, info.kind)
        key = (*key, info.name) if info.name in alone else key
        groups.setdefault(key, []).append(item)
    memory = {} if blocks is None else blocks
    for key in set(memory) - set(groups):
        del memory[key]
    batches: list[Batch] = []
    for key, members in groups.items():
        infos = [info for info, _, _ in members]
        first = infos[0].parameter
        mode = "single" if inplace else choose_mode(first.numel(), len(infos), first.device, batching)
        block = _block(memory, key, 0 if inplace else len(infos), first)
        buffers = [row.as_strided(first.shape, first.stride(), row.storage_offset()) for row in block]
        batches.append(Batch(infos, members[0][1], members[0][2], mode, block, buffers))
    return batches


def _block(memory: dict[object, torch.Tensor], key: object, count: int, like: torch.Tensor) -> torch.Tensor:
    held = memory.get(key)
    if held is None or held.shape[0] < count:
        held = torch.empty((count, like.numel()), dtype=gradient_dtype(like), device=like.device)
        memory[key] = held
    return held[:count]
