"""Passes over weights and gradients in blocks that stay in a CPU's cache, so that memory is read once for all of it.

What an L1 penalty behind a gate needs of a layer are `<g, g>`, `<g, R>`, `<R, R>`, whether g is finite, and `g + R`:
seven passes over memory one after the other, three (g, w, the sum) in blocks. Fresh tensors of a layer's size would
cost more than all of these in page faults: the penalty's gradient lives in one block of scratch memory.

The reference is the plain way, `WeightPenalty.gradient`, `dot`, `Swap.add`. It serves accelerators, other dtypes,
penalties that see more than single numbers, and layouts with gaps. Additions are equal bit for bit, inner products to
rounding (these are summed in float64 over blocks).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from weightspace.kernels.parameters import has_same_layout
from weightspace.kernels.points import Channels
from weightspace.kernels.stacking import Workspace
from weightspace.penalties import WeightPenalty
from weightspace.penalties.weights import Amount

Triple = tuple[float, float, float]  # <g, g>, <g, o>, <o, o>
# Measured on ResNet-18: below 128k a call costs more than its arithmetic (with two threads, starting these does), from
# 256k to 1M numbers all sizes are alike; this is the smallest of them.
BLOCK = 1 << 18
_DTYPES = (torch.float32, torch.float64)


def in_blocks(first: torch.Tensor, *others: torch.Tensor) -> bool:
    """Whether tensors can be passed over together: on the CPU, of one dtype, without gaps, equal indices together."""
    if first.device.type != "cpu" or first.dtype not in _DTYPES or first.numel() == 0:
        return False
    if not all(t.dtype == first.dtype and t.device == first.device and has_same_layout(t, first) for t in others):
        return False
    return first.is_contiguous() or _in_memory_order(first).is_contiguous()


def blocks(first: torch.Tensor, *others: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Flat views of the same numbers of all tensors, `BLOCK` at a time; they passed `in_blocks`."""
    tensors = (first, *others)
    flat = [t.view(-1) if t.is_contiguous() else _in_memory_order(t).view(-1) for t in tensors]
    if first.numel() <= BLOCK:
        return iter([tuple(flat)])
    return zip(*(t.split(BLOCK) for t in flat), strict=True)


def products(gradient: torch.Tensor, other: torch.Tensor) -> Triple:
    """`<g, g>`, `<g, o>`, `<o, o>`, both read once."""
    gg = go = oo = 0.0
    for g, o in blocks(gradient, other):
        gg += float(torch.dot(g, g))
        go += float(torch.dot(g, o))
        oo += float(torch.dot(o, o))
    return gg, go, oo


def compare(
    rule: WeightPenalty,
    weight: torch.Tensor,
    gradient: torch.Tensor,
    scale: float,
    *,
    work: Workspace,
    out: torch.Tensor | None = None,
) -> Triple:
    """`<g, g>`, `<g, R>`, `<R, R>` for `R = scale dR/dw`; weight and gradient are read once.

    Args:
        rule: An elementwise penalty.
        weight: The weight.
        gradient: The loss gradient.
        scale: What the penalty's gradient is multiplied with.
        work: Scratch memory.
        out: Receives `g + R` in the same pass, if given.
    """
    scratch = _scratch(work, weight)
    gg = gr = rr = 0.0
    for w, g, *target in blocks(weight, gradient, *(() if out is None else (out,))):
        own = rule.gradient_into(w, scratch[: w.numel()])
        gg += float(torch.dot(g, g))
        gr += float(torch.dot(g, own))
        rr += float(torch.dot(own, own))
        for o in target:
            torch.add(g, own, alpha=scale, out=o)
    return gg, gr * scale, rr * scale * scale


def add(
    rule: WeightPenalty,
    weight: torch.Tensor,
    gradient: torch.Tensor,
    scale: float,
    *,
    work: Workspace,
    out: torch.Tensor,
) -> float:
    """`out = g + scale dR/dw`, which may be `g` itself; returns the sum of g, not finite if any number of it is not."""
    scratch, total = _scratch(work, weight), 0.0
    for w, g, o in blocks(weight, gradient, out):
        total += float(g.sum())
        torch.add(g, rule.gradient_into(w, scratch[: w.numel()]), alpha=scale, out=o)
    return total


def shrink(rule: WeightPenalty, weight: torch.Tensor, amount: Amount, start: torch.Tensor | None) -> None:
    """What an elementwise penalty does after the step, block by block."""
    for w, *before in blocks(weight, *(() if start is None else (start,))):
        rule.shrink_(w, amount, Channels(), *before)


def _scratch(work: Workspace, like: torch.Tensor) -> torch.Tensor:
    return work.lend("penalty", (min(BLOCK, like.numel()),), like)


def _in_memory_order(tensor: torch.Tensor) -> torch.Tensor:
    """Dimensions by falling stride, those of size one last."""
    order = sorted(range(tensor.ndim), key=lambda d: -tensor.stride(d) if tensor.shape[d] > 1 else 1)
    return tensor.permute(order)
