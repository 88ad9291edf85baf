"""The gradient under a metric along the output channels: what it does, and what it costs."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

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
    for form, metric in (
        ("ChannelL2", M.ChannelL2(4.0, on=everywhere)),
        ("ChannelSobolev", M.ChannelSobolev(4.0, on=everywhere)),
    ):
        for seed in range(2 if is_quick else 10):
            g = torch.randn(16, 8, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            found, expected = transformed(g, metric), dense_solution(g, form, 4.0)
            cases.append(
                {
                    "metric": form,
                    "seed": seed,
                    "relative_error": float((found - expected).norm() / expected.norm()),
                    "mean_kept": float((found.mean(0) - g.mean(0)).abs().max()),
                    **{
                        f"roughness along {name}": roughness(found, axis) / roughness(g, axis)
                        for name, axis in AXES.items()
                    },
                }
            )
    return {"cases": cases}


def cost(*, is_quick: bool) -> dict[str, Any]:
    """Work and seconds of one transform by number of parameters.

    Work is what does not depend on the machine: the numbers that torch's operations read and write, and the floating
    point operations of matrix products. Seconds are the least of twenty calls, repeated; caches bend their line.
    """
    from weightspace.kernels import Workspace

    inner = 576  # 64 input channels of 3 x 3 taps
    channels = (256, 512, 1024) if is_quick else (256, 512, 1024, 2048, 4096)
    forms = {"ChannelL2": M.ChannelL2(4.0), "ChannelSobolev": M.ChannelSobolev(4.0)}
    work: dict[str, list[float]] = {name: [] for name in forms}
    for count, (name, metric) in itertools.product(channels, forms.items()):
        grad = torch.randn(1, count, inner)
        with Work() as counted:
            metric.apply(grad, torch.empty_like(grad), M.Layout(1, (count,)), Workspace())
        work[name].append(counted.total)
    repetitions: list[dict[str, Any]] = []
    for repetition in range(3 if is_quick else 10):
        seconds: dict[str, list[float]] = {"copy": [], "ChannelL2": [], "ChannelSobolev": []}
        for count in channels:
            grad = torch.randn(1, count, inner)
            out, layout, room = torch.empty_like(grad), M.Layout(1, (count,)), Workspace()
            seconds["copy"].append(least_time(lambda out=out, grad=grad: out.copy_(grad)))
            for name, metric in forms.items():
                call = functools.partial(metric.apply, grad, out, layout, room)
                seconds[name].append(least_time(call))
        repetitions.append({"repetition": repetition, "seconds": seconds})
    return {"parameters": [count * inner for count in channels], "work": work, "repetitions": repetitions}


class Work(TorchDispatchMode):
    """Counts numbers that operations read and write, and twice the multiplications of matrix products, in `total`."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Called by torch for every operation."""
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            self.total += sum(x.numel() for x in tensors)
        if func.overloadpacket in flop_registry:
            self.total += float(flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result))
        return result


def least_time(call: Callable[[], object]) -> float:
    """The least of twenty calls: what the machine does besides only adds."""
    least = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        call()
        least = min(least, time.perf_counter() - started)
    return least
