"""Measures that the gradient of every penalty is the derivative of its value."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch

from weightspace.kernels.points import Channels
from weightspace.operators import ConvGeometry, ConvOperator
from weightspace.optim._operator_penalties import PenaltyTask
from weightspace.optim._penalties import Penalties
from weightspace.optim._weight_penalties import WeightTask
from weightspace.optim.verify import PropertyCheck
from weightspace.penalties import CautiousWeightDecay, Memory, OperatorPenalty, WeightPenalty

_CHANNELS, _SIZE = 8, 6  # of the layers that are measured: milliseconds each
_SCALES = (0.3, 1.0, 3.0)  # of the weight: a hinge should be active at one of them
_STEP = 1e-5
_BOUND = 1e-5  # relative; a wrong factor is off by far more
_SETTLE = 60  # evaluations after which at the latest remembered vectors have converged
_AMOUNT = 0.1
_WHAT_PROX = "that its step minimizes amount * R(u) + |u - w|^2 / 2 (stationarity of what is not zero)"
_WHAT = "that its gradient is the derivative of its value along a random direction (central difference in float64)"


def measure_penalties(penalties: Penalties) -> list[PropertyCheck]:
    """One check (two for a proximal penalty) for each penalty and kind of layer."""
    return [*_measure_operators(penalties), *_measure_weights(penalties)]


def _measure_operators(penalties: Penalties) -> list[PropertyCheck]:
    """One check for each penalty and kind of layer: kernel, stride, dilation, padding and groups as routed.

    Channels are cut to about `_CHANNELS` (their ratio stays), images to the kernel's reach or `_SIZE`. Weights are
    random.

    Cost: some tens of evaluations on a small layer, for each.
    """
    groups: dict[tuple[int, ConvGeometry], list[PenaltyTask]] = {}
    for task in (task for task in penalties.tasks if task.is_here):
        groups.setdefault((task.index, _small(task)), []).append(task)
    return [
        PropertyCheck(
            str(tasks[0].penalty),
            tuple(task.info.name for task in tasks),
            _WHAT,
            max(_errors(tasks[0].rule, geometry)),
            _BOUND,
        )
        for (_, geometry), tasks in groups.items()
    ]


def _measure_weights(penalties: Penalties) -> list[PropertyCheck]:
    """Penalties on the numbers of weights, on random weights of the routed shapes, in float64."""
    groups: dict[tuple[int, tuple[int, ...], Channels], list[WeightTask]] = {}
    for task in penalties.weight_tasks:
        groups.setdefault((task.index, tuple(task.info.held.shape), task.channels), []).append(task)
    checks: list[PropertyCheck] = []
    for (_, shape, channels), tasks in groups.items():
        rule, names = tasks[0].rule, tuple(task.info.name for task in tasks)
        generator = torch.Generator("cpu").manual_seed(0)
        weight, direction = torch.randn(2, *shape, generator=generator, dtype=torch.float64, device="cpu")
        direction /= torch.linalg.vector_norm(direction)
        checks.append(PropertyCheck(str(rule), names, _WHAT, _slope_error(rule, weight, direction, channels), _BOUND))
        if rule.is_proximal and not isinstance(rule, CautiousWeightDecay):
            checks.append(PropertyCheck(str(rule), names, _WHAT_PROX, _proximal_error(rule, weight, channels), _BOUND))
    return checks


def _slope_error(rule: WeightPenalty, weight: torch.Tensor, direction: torch.Tensor, channels: Channels) -> float:
    step = 1e-6  # so short that hardly a number crosses zero, where an L1 norm has its kink
    ends = [float(rule.value(weight + sign * step * direction, channels)) for sign in (1.0, -1.0)]
    gradient = rule.gradient(weight, channels)
    expected, found = (ends[0] - ends[1]) / (2 * step), float((gradient * direction).sum())
    scale = max(abs(expected), float(torch.linalg.vector_norm(gradient)) / max(1, weight.numel()) ** 0.5, 1e-12)
    return abs(found - expected) / scale


def _proximal_error(rule: WeightPenalty, weight: torch.Tensor, channels: Channels) -> float:
    """Where the proximal step `u` of `v` is not zero, `v - u = a dR/du`, relative to the largest number of `v`."""
    moved = weight.clone()
    rule.shrink_(moved, _AMOUNT, channels)
    wrong = (weight - moved - _AMOUNT * rule.gradient(moved, channels))[moved != 0]
    return float(wrong.abs().max() / weight.abs().max()) if wrong.numel() else 0.0


def _small(task: PenaltyTask) -> ConvGeometry:
    """The geometry of a small layer of the same kind."""
    geometry = task.operator_at(task.fitting_size(_SIZE)).geometry
    g = geometry.groups
    rows, columns = geometry.out_channels // g, geometry.in_channels // g
    shrink = max(1.0, min(rows, columns) / _CHANNELS, max(rows, columns) / (3 * _CHANNELS))
    groups = min(g, 2)
    return replace(
        geometry,
        out_channels=groups * max(1, round(rows / shrink)),
        in_channels=groups * max(1, round(columns / shrink)),
        groups=groups,
    )


def _errors(penalty: OperatorPenalty, geometry: ConvGeometry) -> Iterator[float]:
    generator = torch.Generator("cpu").manual_seed(0)
    for scale in _SCALES:
        pair = torch.randn(2, *geometry.weight_shape, generator=generator, dtype=torch.float64, device="cpu")
        weight = pair[0] * (scale / max(1, geometry.weight_shape[1]) ** 0.5)
        yield _error(penalty, ConvOperator(weight, geometry), pair[1] / torch.linalg.vector_norm(pair[1]))


def _error(penalty: OperatorPenalty, operator: ConvOperator, direction: torch.Tensor) -> float:
    """Relative error of the slope; of the weight's own scale where value and slope vanish."""
    memory = Memory()
    _, gradient = penalty.evaluate(operator, memory)
    for _ in range(_SETTLE if memory.vectors else 0):
        before, (_, gradient) = gradient, penalty.evaluate(operator, memory)
        if float((gradient - before).norm()) <= 1e-9 * float(gradient.norm()):
            break
    step = _STEP * float(torch.linalg.vector_norm(operator.weight))
    ends: list[float] = []
    for sign in (1.0, -1.0):
        shifted = operator.with_weight(operator.weight + sign * step * direction)
        ends.append(float(penalty.evaluate(shifted, copy.deepcopy(memory))[0]))
    expected = (ends[0] - ends[1]) / (2 * step)
    found = float((gradient * direction).sum())
    # Along some directions the slope happens to be small: compared with the whole gradient.
    scale = max(abs(expected), float(torch.linalg.vector_norm(gradient)) / direction.numel() ** 0.5, 1e-12)
    return abs(found - expected) / scale
