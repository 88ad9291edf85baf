"""Contests of penalties on the numbers of weights, and of pruning."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import weightspace as ws
from benchmarks import contests_kernels
from benchmarks.contests import Contest, Entrant, Floor, Kind, Running
from benchmarks.contests_kernels import SIZE
from benchmarks.manifolds_kernels import MOMENTUM
from benchmarks.placed import placed
from weightspace.compress import prune
from weightspace.penalties import L1, L2, CautiousWeightDecay, Penalty

RATE, STRENGTH, ZEROS = 0.01, 1e-3, 0.9
Exact = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Make = Callable[[nn.Module], Callable[[], object]]


def kernels(*, quick: bool) -> nn.Sequential:
    """Gradients are small, so that hundreds of steps change the work little."""
    return contests_kernels.kernels(std=0.05, gradient=1e-3, quick=quick)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """The same for all."""
    return contests_kernels.sgd(model, RATE)


def stepping(make: Make, exact: Exact, *, quick: bool) -> Running:
    """A step; its error is that of a first step, over the largest weight."""

    def error() -> float:
        model, worst = kernels(quick=quick), 0.0
        weights = list(model.parameters())
        wanted = [exact(p.detach().double(), p.grad.double()) for p in weights if p.grad is not None]
        make(model)()
        for found, right in zip(weights, wanted, strict=True):
            worst = max(worst, float((found.detach().double() - right).abs().max() / right.abs().max()))
        return worst

    model = kernels(quick=quick)
    placed()
    return Running(make(model), error)


def attached(penalty: Penalty, *, check_finite: bool = True) -> Make:
    """Ours."""

    def make(model: nn.Module) -> Callable[[], object]:
        optimizer = sgd(model)
        ws.attach(optimizer, model, penalty, check_finite=check_finite)
        return optimizer.step

    return make


def after_step(
    change: Callable[[list[torch.Tensor], list[torch.Tensor]], object], *, needs_start: bool = False
) -> Make:
    """By hand: what happens to the weights after the step, given those before."""

    def make(model: nn.Module) -> Callable[[], object]:
        optimizer, weights = sgd(model), list(model.parameters())

        @torch.no_grad()
        def step() -> None:
            start = [w.detach().clone() for w in weights] if needs_start else []
            optimizer.step()
            change([w.detach() for w in weights], start)

        return step

    return make


def soft_threshold(weights: list[torch.Tensor], start: list[torch.Tensor]) -> None:
    """The proximal step of L1."""
    del start
    for weight in weights:
        weight.copy_(nn.functional.softshrink(weight, RATE * STRENGTH))


def decay(weights: list[torch.Tensor], start: list[torch.Tensor]) -> None:
    """Decoupled weight decay."""
    del start
    foreach: Any = torch
    foreach._foreach_mul_(weights, 1 - RATE * STRENGTH)  # foreach has no public name


def cautious(weights: list[torch.Tensor], start: list[torch.Tensor]) -> None:
    """Decay where the step went towards zero."""
    for weight, before in zip(weights, start, strict=True):
        weight.sub_(before * ((weight - before) * before <= 0), alpha=RATE * STRENGTH)


def sgdw(model: nn.Module) -> Callable[[], object]:
    """pytorch_optimizer's SGD with decoupled decay."""
    package = importlib.import_module("pytorch_optimizer")
    return package.SGDW(
        model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=STRENGTH, weight_decouple=True
    ).step


def exact_l1(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """In float64."""
    after = weight - RATE * gradient
    return after.sign() * (after.abs() - RATE * STRENGTH).clamp(min=0)


def exact_decay(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """In float64; before or after the step, `1 - a` or `1 / (1 + a)`, agree to 1e-7 of the weight here."""
    return (weight - RATE * gradient) / (1 + RATE * STRENGTH)


def exact_cautious(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """In float64."""
    return weight - RATE * gradient - RATE * STRENGTH * weight * (gradient * weight >= 0)


def weight_contest(
    name: str,
    title: str,
    question: str,
    exact: Exact,
    penalty: Penalty,
    *,
    others: Sequence[tuple[str, Kind, Make, str]],
) -> Contest:
    """A penalty on the numbers of weights beside what else does it: (name, kind, how, package)."""

    def entrants(quick: bool) -> list[Entrant]:
        label = f"`attach(SGD, {type(penalty).__name__}())`"
        found = [
            Entrant(label, "ours", partial(stepping, attached(penalty), exact, quick=quick)),
            Entrant(
                "the same, `check_finite=False`",
                "ours",
                partial(stepping, attached(penalty, check_finite=False), exact, quick=quick),
            ),
        ]
        found += [
            Entrant(n, kind, partial(stepping, make, exact, quick=quick), package) for n, kind, make, package in others
        ]
        alone = Entrant("SGD(fused=True) alone", "reference", lambda: Running(sgd(kernels(quick=quick)).step))
        return [*found, alone]

    return Contest(
        name, title, question, SIZE, "largest error of the first step, over the largest weight", 1e-5, entrants, floor
    )


def floor(quick: bool) -> Floor:
    """Of a step of SGD with momentum."""
    count = sum(p.numel() for p in kernels(quick=quick).parameters())
    return Floor("weight, gradient and momentum read, weight and momentum written", bytes=20.0 * count)


# --------------------------------------------------------------------------- pruning


def pruning(prune_model: Callable[[nn.Module], object], *, quick: bool) -> Running:
    """Prunes the same weights anew each time; copying them in is timed too, it is the same for all."""
    model = kernels(quick=quick)
    start = [p.detach().clone() for p in model.parameters()]
    placed()

    def call() -> None:
        with torch.no_grad():
            for weight, value in zip(model.parameters(), start, strict=True):
                weight.copy_(value)
        prune_model(model)

    def error() -> float:
        call()
        flat = torch.cat([value.flatten() for value in start]).abs().double()
        threshold = flat.sort().values[int(ZEROS * len(flat)) - 1]
        wrong = sum(
            int(((p == 0) != (value.abs() <= threshold)).sum())
            for p, value in zip(model.parameters(), start, strict=True)
        )
        return wrong / len(flat)

    return Running(call, error)


def by_torch(model: nn.Module) -> None:
    """torch's own, made permanent."""
    places = [(layer, "weight") for layer in model.children()]
    torch_prune.global_unstructured(places, pruning_method=torch_prune.L1Unstructured, amount=ZEROS)
    for layer, name in places:
        torch_prune.remove(layer, name)


@torch.no_grad()
def by_kthvalue(model: nn.Module) -> None:
    """By hand: the threshold of all magnitudes."""
    weights = list(model.parameters())
    sizes = torch.cat([w.abs().flatten() for w in weights])
    threshold = sizes.kthvalue(int(ZEROS * len(sizes))).values
    for weight in weights:
        weight.mul_(weight.abs() > threshold)


def pruning_entrants(quick: bool) -> list[Entrant]:
    """All prune 90 % of all weights together."""
    ours = partial(prune, ratio=ZEROS)
    return [
        Entrant("`ws.compress.prune`", "ours", partial(pruning, ours, quick=quick)),
        Entrant("torch `prune.global_unstructured`, `remove`", "peer", partial(pruning, by_torch, quick=quick)),
        Entrant("torch: `kthvalue`, multiply", "by hand", partial(pruning, by_kthvalue, quick=quick)),
    ]


def pruning_floor(quick: bool) -> Floor:
    """Two readings, one writing, and the copy."""
    count = sum(p.numel() for p in kernels(quick=quick).parameters())
    words = "weights copied in (8 bytes), read to find the threshold, read and written once more"
    return Floor(words, bytes=20.0 * count)


CONTESTS = [
    weight_contest(
        "l1",
        "L1, proximal",
        "A step of SGD, then a soft threshold on every weight.",
        exact_l1,
        L1(STRENGTH, application="proximal"),
        others=[("torch: `softshrink`", "by hand", after_step(soft_threshold), "")],
    ),
    weight_contest(
        "decay",
        "Decoupled weight decay",
        "A step of SGD with momentum, and weight decay that momentum does not see.",
        exact_decay,
        L2(STRENGTH, application="proximal"),
        others=[
            ("pytorch_optimizer `SGDW`", "peer", sgdw, "pytorch_optimizer"),
            ("torch: multiply after the step", "by hand", after_step(decay), ""),
        ],
    ),
    weight_contest(
        "cautious-decay",
        "Cautious weight decay",
        "A step of SGD with momentum, and weight decay where the step goes towards zero.",
        exact_cautious,
        CautiousWeightDecay(STRENGTH),
        others=[("torch: compare, subtract", "by hand", after_step(cautious, needs_start=True), "")],
    ),
    Contest(
        "pruning",
        "Pruning",
        "Set the smallest 90 % of all weights together to zero.",
        SIZE,
        "share of weights that are zero and should not be, or the other way round",
        1e-5,
        pruning_entrants,
        pruning_floor,
    ),
]
