"""Contests of gradient metrics: a transformed gradient and a step of SGD with momentum on ResNet-18's kernels."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

import weightspace as ws
from benchmarks import contests_kernels
from benchmarks.contests import Contest, Entrant, Floor, Running
from benchmarks.contests_kernels import SIZE
from benchmarks.placed import placed
from weightspace.kernels import Rule

SMOOTHING = 4.0
RATE = 1e-3
ERROR = "largest error of the first step, over its largest number"
Step = Callable[[], object]
Make = Callable[[nn.Module], Step]
Exact = Callable[[torch.Tensor], torch.Tensor]


def kernels(*, quick: bool) -> nn.Sequential:
    """Kernels that are zero, so that the first step is the gradient as it was transformed."""
    return contests_kernels.kernels(std=0.0, gradient=1.0, quick=quick)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """The same for all."""
    return contests_kernels.sgd(model, RATE)


def stepping(make: Make, exact: Exact, *, quick: bool) -> Running:
    """A step; its error is that of a first step from zero."""

    def error() -> float:
        model = kernels(quick=quick)
        wanted = [exact(p.grad.double()) for p in model.parameters() if p.grad is not None]
        make(model)()
        found = [p.detach().double() / -RATE for p in model.parameters()]
        return max(float((f - w).abs().max() / w.abs().max()) for f, w in zip(found, wanted, strict=True))

    model = kernels(quick=quick)
    placed()
    return Running(make(model), error)


def attached(rule: Rule, **options: bool) -> Make:
    """Ours."""

    def make(model: nn.Module) -> Step:
        optimizer = sgd(model)
        ws.attach(optimizer, model, rule, **options)
        return optimizer.step

    return make


def transformed(function: Callable[[torch.Tensor, torch.Tensor], object]) -> Make:
    """By hand: `function(gradient, out)`; the gradient itself is kept, so that the next turn has the same work."""

    def make(model: nn.Module) -> Step:
        optimizer, weights = sgd(model), list(model.parameters())
        gradients = [p.grad for p in weights if p.grad is not None]
        buffers = [torch.empty_like(g) for g in gradients]

        def step() -> None:
            for weight, gradient, buffer in zip(weights, gradients, buffers, strict=True):
                function(gradient, buffer)
                weight.grad = buffer
            optimizer.step()

        return step

    return make


def centralized_by_peer(model: nn.Module, *, as_list: bool) -> Step:
    """pytorch_optimizer's function, in place: once done, doing it again changes nothing."""
    function = importlib.import_module("pytorch_optimizer").centralize_gradient
    optimizer = sgd(model)
    gradients = [p.grad for p in model.parameters()]

    def step() -> None:
        if as_list:
            function(gradients)
        else:
            for gradient in gradients:
                function(gradient)
        optimizer.step()

    return step


def plain(*, quick: bool) -> Running:
    """SGD on gradients as they are."""
    model = kernels(quick=quick)
    placed()
    return Running(sgd(model).step)


def centralize(gradient: torch.Tensor) -> torch.Tensor:
    """Every filter's mean away."""
    return gradient - gradient.mean(dim=(1, 2, 3), keepdim=True)


def channel_mean(gradient: torch.Tensor) -> torch.Tensor:
    """The mean over output channels stays, what deviates is damped."""
    mean = gradient.mean(0, keepdim=True)
    return mean + (gradient - mean) / SMOOTHING


def channel_mean_by_hand(gradient: torch.Tensor, out: torch.Tensor) -> None:
    """The same in two calls."""
    torch.lerp(gradient.mean(0, keepdim=True), gradient, 1 / SMOOTHING, out=out)


def difference_matrix(count: int, *, like: torch.Tensor) -> torch.Tensor:
    """`I + lambda D^T D` with free ends."""
    matrix = torch.eye(count, dtype=like.dtype, device=like.device)
    steps = matrix[1:] - matrix[:-1]
    return matrix + SMOOTHING * steps.mT @ steps


def sobolev(gradient: torch.Tensor) -> torch.Tensor:
    """Solved densely."""
    flat = gradient.flatten(1)
    return torch.linalg.solve(difference_matrix(len(flat), like=flat), flat).reshape(gradient.shape)


def sobolev_by_hand(gradient: torch.Tensor, out: torch.Tensor, *, inverses: dict[int, torch.Tensor]) -> None:
    """A product with the inverse matrix, which is computed once."""
    flat = gradient.flatten(1)
    if len(flat) not in inverses:
        inverses[len(flat)] = torch.linalg.inv(difference_matrix(len(flat), like=flat.double())).to(flat.dtype)
    torch.mm(inverses[len(flat)], flat, out=out.view(flat.shape))


def laplacian(gradient: torch.Tensor) -> torch.Tensor:
    """Along the flattened gradient, by its transform, as its authors do."""
    flat = gradient.flatten()
    factors = torch.arange(len(flat) // 2 + 1, dtype=flat.dtype, device=flat.device) * torch.pi / len(flat)
    spectrum = torch.fft.rfft(flat) / (1 + 4 * factors.sin().square())
    return torch.fft.irfft(spectrum, len(flat)).reshape(gradient.shape)


def laplacian_by_hand(gradient: torch.Tensor, out: torch.Tensor, *, factors: dict[int, torch.Tensor]) -> None:
    """The same with the factors computed once."""
    flat = gradient.flatten()
    n = len(flat)
    if n not in factors:
        angles = torch.arange(n // 2 + 1, dtype=torch.float64, device=flat.device) * torch.pi / n
        factors[n] = (1 / (1 + 4 * angles.sin().square())).to(flat.dtype)
    out.view(-1).copy_(torch.fft.irfft(torch.fft.rfft(flat) * factors[n], n))


def floor(quick: bool) -> Floor:
    """Of a step of SGD with momentum: nothing that a transformation adds has to leave the cache."""
    count = sum(p.numel() for p in kernels(quick=quick).parameters())
    return Floor("weight, gradient and momentum read, weight and momentum written", bytes=20.0 * count)


def contest(
    name: str, title: str, question: str, exact: Exact, *, ours: dict[str, Make], by_hand: dict[str, Make]
) -> Contest:
    """A metric beside what one writes with torch."""

    def entrants(quick: bool) -> list[Entrant]:
        found = [Entrant(n, "ours", partial(stepping, make, exact, quick=quick)) for n, make in ours.items()]
        if name == "centralization":
            for label, as_list in (("a list", True), ("one by one", False)):
                make = partial(centralized_by_peer, as_list=as_list)
                build = partial(stepping, make, exact, quick=quick)
                peer = f"pytorch_optimizer `centralize_gradient`, {label}"
                found.append(Entrant(peer, "peer", build, "pytorch_optimizer"))
        found += [Entrant(n, "by hand", partial(stepping, make, exact, quick=quick)) for n, make in by_hand.items()]
        return [*found, Entrant("SGD(fused=True) alone", "reference", partial(plain, quick=quick))]

    return Contest(
        name, title, f"{question} Then a step of `SGD(momentum=0.9, fused=True)`.", SIZE, ERROR, 1e-4, entrants, floor
    )


def centralize_by_hand(gradient: torch.Tensor, out: torch.Tensor) -> None:
    """One mean, one difference."""
    torch.sub(gradient, gradient.mean(dim=(1, 2, 3), keepdim=True), out=out)


M = ws.metrics
CONTESTS = [
    contest(
        "centralization",
        "Gradient centralization",
        "Take every filter's mean out of its gradient.",
        centralize,
        ours={
            "`attach(SGD, GradientCentralization())`": attached(M.GradientCentralization()),
            "the same, `inplace=True`": attached(M.GradientCentralization(), inplace=True),
            "the same, `inplace=True, check_finite=False`": attached(
                M.GradientCentralization(), inplace=True, check_finite=False
            ),
        },
        by_hand={"torch: mean, subtract": transformed(centralize_by_hand)},
    ),
    contest(
        "channel-l2",
        "ChannelL2",
        "Damp what deviates from the mean gradient of all output channels by 4.",
        channel_mean,
        ours={
            "`attach(SGD, ChannelL2())`": attached(M.ChannelL2(smoothing=SMOOTHING, on=ws.on.convs)),
            "the same, `check_finite=False`": attached(
                M.ChannelL2(smoothing=SMOOTHING, on=ws.on.convs), check_finite=False
            ),
        },
        by_hand={"torch: mean, lerp": transformed(channel_mean_by_hand)},
    ),
    contest(
        "channel-sobolev",
        "ChannelSobolev",
        "Smooth the gradient along the output channels: solve with the second difference.",
        sobolev,
        ours={"`attach(SGD, ChannelSobolev())`": attached(M.ChannelSobolev(smoothing=SMOOTHING, on=ws.on.convs))},
        by_hand={"torch: product with the inverse": transformed(partial(sobolev_by_hand, inverses={}))},
    ),
    contest(
        "laplacian",
        "LaplacianSmoothing",
        "Smooth the gradient along the flattened weight.",
        laplacian,
        ours={"`attach(SGD, LaplacianSmoothing())`": attached(M.LaplacianSmoothing(smoothing=1.0))},
        by_hand={"torch: `rfft`, divide, `irfft`": transformed(partial(laplacian_by_hand, factors={}))},
    ),
]
