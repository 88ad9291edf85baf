"""Runs the metrics of one batch of equal weights: one by one, or stacked into one call.

Weights that carry penalties only have no metric: their stand-ins are filled by what is first added to the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from weightspace.kernels import Rule
from weightspace.kernels.parameters import ParameterInfo, has_same_layout
from weightspace.kernels.stacking import Batch, Workspace
from weightspace.metrics import Layout, Metric, mean_energy
from weightspace.metrics.base import is_16_bit
from weightspace.sharding import ALONE, Together

Measured = dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]  # by parameter name: rho, shrinkage, norm before


@dataclass(eq=False)
class Swap:
    """What stands in for one gradient during a step.

    Attributes:
        parameter: The weight.
        gradient: Its loss gradient.
        buffer: Stands in for it; the gradient itself with `inplace`.
        is_filled: Whether the buffer holds the transformed gradient; if not, the loss gradient is what counts so far.
    """

    parameter: nn.Parameter
    gradient: torch.Tensor
    buffer: torch.Tensor
    is_filled: bool = True

    @property
    def data(self) -> torch.Tensor:
        """The loss gradient after metrics and what was added so far."""
        return self.buffer if self.is_filled else self.gradient

    def fill(self) -> None:
        """Makes the buffer hold what counts."""
        if not self.is_filled:
            self.buffer.copy_(self.gradient)
            self.is_filled = True

    def add(self, addition: torch.Tensor, scale: float | torch.Tensor) -> None:
        """Adds `scale * addition`; the first addition also fills the buffer, in the same pass."""
        if isinstance(scale, torch.Tensor):
            fitting = addition.to(self.buffer.dtype)
            torch.addcmul(self.data, fitting, scale.to(self.buffer.dtype), out=self.buffer)
        else:
            torch.add(self.data, addition, alpha=scale, out=self.buffer)
        self.is_filled = True


class BatchTransform:
    """The metrics of one batch, ready to run. The weight-by-weight path is the reference of the stacked one."""

    def __init__(self, batch: Batch, rules: tuple[Rule, ...], work: Workspace) -> None:
        self._batch = batch
        pairs = [(rules[i], view) for i, view in zip(batch.rules, batch.views, strict=True)]
        self._steps = [(rule, view) for rule, view in pairs if isinstance(rule, Metric)]
        self._work = work
        # Made once: at each step of a small model these objects would cost more than the arithmetic.
        self._outs = [[view(b) for _, view in self._steps] for b in batch.buffers]
        self._layouts = [Layout(1, view.grid) for _, view in self._steps]

    def run(
        self,
        witnesses: list[torch.Tensor] | None,
        measured: Measured | None,
    ) -> list[Swap]:
        """Fills the buffers of all weights that have a gradient; the gradients were checked to fit.

        Args:
            witnesses: Receives a flat slice a weight (or stack) that is finite if and only if its gradients are;
                nothing for weights without a metric, which are looked at later. In place it receives 16-bit weights
                only, whose rounding back can overflow: the rest was looked at before.
            measured: Receives `(rho, shrinkage, norm)` by parameter name.

        Returns:
            What to swap; with `inplace` the gradient is its own stand-in.
        """
        batch = self._batch
        if not self._steps:
            return [self._copy_one(k) for k, i in enumerate(batch.infos) if i.parameter.grad is not None]
        live = [(k, g) for k, info in enumerate(batch.infos) if (g := info.parameter.grad) is not None]
        is_whole = len(live) == len(batch.infos)
        if batch.mode == "stacked" and is_whole and all(has_same_layout(g, batch.infos[k].parameter) for k, g in live):
            return self._run_stacked([g for _, g in live], witnesses, measured)
        return [self._run_one(k, g, witnesses, measured) for k, g in live]

    def _copy_one(self, index: int) -> Swap:
        """No metric: the loss gradient itself, which is not copied unless something is added to it."""
        batch, parameter = self._batch, self._batch.infos[index].parameter
        grad = cast("torch.Tensor", parameter.grad)
        if batch.is_inplace:
            return Swap(parameter, grad, grad)
        return Swap(parameter, grad, batch.buffers[index], is_filled=False)

    def _run_one(
        self,
        index: int,
        grad: torch.Tensor,
        witnesses: list[torch.Tensor] | None,
        measured: Measured | None,
    ) -> Swap:
        batch, info = self._batch, self._batch.infos[index]
        source, buffer = grad, grad if batch.is_inplace else batch.buffers[index]
        if not batch.is_inplace and not has_same_layout(grad, info.parameter):
            source = buffer.copy_(grad)
        outs = [view(grad) for _, view in self._steps] if batch.is_inplace else self._outs[index]
        before = _energy(self._steps[0][1](source)[None]) if measured is not None else None
        for (metric, view), out, layout in zip(self._steps, outs, self._layouts, strict=True):
            metric.apply(view(source), out, layout, self._work)
            source = buffer
        if witnesses is not None and (not batch.is_inplace or is_16_bit(grad)):
            witnesses.append(_witness(outs[-1]))
        if measured is not None and before is not None:
            _note(measured, [info], before, outs[-1][None])
        return Swap(info.parameter, grad, buffer)

    def _run_stacked(
        self, grads: list[torch.Tensor], witnesses: list[torch.Tensor] | None, measured: Measured | None
    ) -> list[Swap]:
        batch = self._batch
        count, first = len(grads), self._steps[0][1]
        torch.stack([first(g) for g in grads], out=batch.block.view(count, *first.shape))
        before = _energy(batch.block.view(count, *first.shape)) if measured is not None else None
        for metric, view in self._steps:
            block = batch.stacked(view)
            metric.apply(block, block, Layout(count, view.grid), self._work)
        last = self._steps[-1][1]
        if witnesses is not None:
            witnesses.append(_witness(batch.stacked(last)))
        if measured is not None and before is not None:
            _note(measured, batch.infos, before, batch.block.view(count, *last.shape))
        return [Swap(i.parameter, g, b) for i, g, b in zip(batch.infos, grads, batch.buffers, strict=True)]


def _witness(out: torch.Tensor) -> torch.Tensor:
    """A slice that is finite only if all of `out` is: each entry mixes all entries along the metric's axis."""
    if is_16_bit(out):
        return out.abs().amax().reshape(1)  # rounding back to 16 bits can overflow at any single entry
    return out[:, 0].reshape(-1)


def _energy(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """rho and norm of each weight in `(count, batch, length, inner)`, in at least float32."""
    count = blocks.shape[0]
    wide = blocks.float() if is_16_bit(blocks) else blocks
    return mean_energy(wide.flatten(0, 1), count), torch.linalg.vector_norm(wide.reshape(count, -1), dim=1)


def _note(
    measured: Measured,
    infos: list[ParameterInfo],
    before: tuple[torch.Tensor, torch.Tensor],
    blocks: torch.Tensor,
) -> None:
    rho, norms = before
    wide = blocks.float() if is_16_bit(blocks) else blocks
    after = torch.linalg.vector_norm(wide.reshape(len(infos), -1), dim=1)
    shrinkage = torch.where(norms > 0, after / norms, torch.ones_like(norms))
    for k, info in enumerate(infos):
        measured[info.name] = (rho[k], shrinkage[k], norms[k])


def read_measured(
    measured: Measured, split: Collection[str] = (), together: Together = ALONE
) -> dict[str, dict[str, float]]:
    """The figures as numbers, with one synchronization for each device.

    Args:
        measured: What was measured here.
        split: Names of weights of which other processes measured other parts, alike on all of them.
        together: These processes.
    """
    numbers = iter(read_numbers([figure for figures in measured.values() for figure in figures]))
    found = {name: (next(numbers), next(numbers), next(numbers)) for name in measured}
    figures = {name: {"rho": rho, "shrinkage": shrinkage} for name, (rho, shrinkage, _) in found.items()}
    if not split:
        return figures
    parts = [found.get(name, (0.0, 0.0, 0.0)) for name in split]
    energies = [
        [rho * n**2, (s * n) ** 2, n**2, float(name in found)] for name, (rho, s, n) in zip(split, parts, strict=True)
    ]
    for name, (mean, after, total, count) in zip(
        split, together.sum(torch.tensor(energies, dtype=torch.float64)).tolist(), strict=True
    ):
        if count:
            figures[name] = {
                "rho": mean / total if total else 0.0,
                "shrinkage": math.sqrt(after / total) if total else 1.0,
            }
    return figures


def read_numbers(scalars: Sequence[torch.Tensor]) -> list[float]:
    """0-dimensional tensors as numbers: one copy and one synchronization for each device, not one a tensor."""
    by_device: dict[torch.device, list[int]] = {}
    for k, scalar in enumerate(scalars):
        by_device.setdefault(scalar.device, []).append(k)
    numbers: dict[int, float] = {}
    for places in by_device.values():
        numbers.update(zip(places, torch.stack([scalars[k] for k in places]).tolist(), strict=True))
    return [numbers[k] for k in range(len(scalars))]
