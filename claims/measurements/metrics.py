"""The gradient under a metric along the output channels: what it does, and what it costs."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

import weightspace as ws

M = ws.metrics
AXES = {"out": 0, "in": 1}


def transformed(gradient: Tensor, metric: Any) -> Tensor:
    """What SGD with learning rate 1 subtracts from a kernel with this loss gradient."""
    layer = nn.Conv2d(gradient.shape[1], gradient.shape[0], gradient.shape[2], bias=False).to(gradient.dtype)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    ws.attach(optimizer, layer, metric)
    layer.weight.grad = gradient.clone()
    optimizer.step()
    return before - layer.weight.detach()


def dense_solution(gradient: Tensor, form: str, smoothing: float) -> Tensor:
    """The same by a dense linear system along the output channels: the metric's matrix times G equals the gradient."""
    count = gradient.shape[0]
    eye, mean = torch.eye(count, dtype=gradient.dtype), torch.full((count, count), 1 / count, dtype=gradient.dtype)
    steps = torch.diff(eye, dim=0)
    matrix = mean + smoothing * (eye - mean) if form == "ChannelL2" else eye + smoothing * steps.T @ steps
    return torch.linalg.solve(matrix, gradient.flatten(1)).reshape(gradient.shape)


def roughness(gradient: Tensor, axis: int) -> float:
    """Energy of differences between neighbors along an axis, over the energy."""
    return float(gradient.diff(dim=axis).square().sum() / gradient.square().sum())


def directions(*, is_quick: bool) -> dict[str, Any]:
    """Random gradients, both metrics: error against the dense system; roughness along output and input channels, after over before."""
    cases = []
    everywhere = ws.on.everything
    for form, metric in (("ChannelL2", M.ChannelL2(4.0, on=everywhere)), ("ChannelSobolev", M.ChannelSobolev(4.0, on=everywhere))):
        for seed in range(2 if is_quick else 10):
            g = torch.randn(16, 8, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            found, expected = transformed(g, metric), dense_solution(g, form, 4.0)
            cases.append(
                {
                    "metric": form,
                    "seed": seed,
                    "relative_error": float((found - expected).norm() / expected.norm()),
                    "mean_kept": float((found.mean(0) - g.mean(0)).abs().max()),
                    **{f"roughness along {name}": roughness(found, axis) / roughness(g, axis) for name, axis in AXES.items()},
                }
            )
    return {"cases": cases}


def cost(*, is_quick: bool) -> dict[str, Any]:
    """Seconds of one transform by number of parameters: the least of some calls, repeated; the exponent is fitted later."""
    inner = 576  # 64 input channels of 3 x 3 taps
    channels = (256, 512, 1024) if is_quick else (256, 512, 1024, 2048, 4096)
    forms = {"ChannelL2": M.ChannelL2(4.0), "ChannelSobolev": M.ChannelSobolev(4.0)}
    repetitions: list[dict[str, Any]] = []
    for repetition in range(3 if is_quick else 7):
        seconds: dict[str, list[float]] = {name: [] for name in forms}
        for count in channels:
            grad = torch.randn(1, count, inner)
            for name, metric in forms.items():
                seconds[name].append(_least_time(metric, grad))
        repetitions.append({"repetition": repetition, "seconds": seconds})
    return {"parameters": [count * inner for count in channels], "repetitions": repetitions}


def _least_time(metric: Any, grad: Tensor) -> float:
    """The least of ten calls: what the machine does besides only adds."""
    from weightspace.kernels import Workspace

    out, layout, room = torch.empty_like(grad), M.Layout(1, (grad.shape[1],)), Workspace()
    least = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        metric.apply(grad, out, layout, room)
        least = min(least, time.perf_counter() - started)
    return least
