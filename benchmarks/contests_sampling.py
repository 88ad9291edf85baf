"""Contests of Langevin steps: free weights, orthonormal matrices, and many chains at once."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

import weightspace as ws
from benchmarks.contests import Contest, Entrant, Floor, Running
from benchmarks.langevin_step import flat_sets
from benchmarks.placed import placed
from benchmarks.timing import device
from weightspace.manifolds import Stiefel

STEP = 1e-4  # the step's h^2, so that its noise is small beside the weights
CHAINS, CHAIN_SHAPE = 1000, (8, 4)
Shapes = Sequence[tuple[int, ...]]


class Ready:
    """Stands for a loss whose gradients are in place."""

    def backward(self) -> None:
        """Nothing."""

    def item(self) -> float:
        """No matter."""
        return 0.0


def moved(weights: Sequence[torch.Tensor], call: Callable[[], object], sigma: float) -> float:
    """How far the standard deviation of a step is from what it should be, as a share; by one step without gradients."""
    before = [w.detach().double().clone() for w in weights]
    call()
    step = torch.cat([(w.detach().double() - b).flatten() for w, b in zip(weights, before, strict=True)])
    return abs(float(step.square().mean().sqrt()) / sigma - 1)


def free_weights(shapes: Shapes) -> list[torch.nn.Parameter]:
    """Zero, with zero gradients: a step is its noise."""
    found = [torch.nn.Parameter(torch.zeros(shape, device=device())) for shape in shapes]
    for weight in found:
        weight.grad = torch.zeros_like(weight)
    return found


def flat(make: Callable[[list[torch.nn.Parameter]], Callable[[], object]], *, quick: bool) -> Running:
    """Free weights; the noise of a step has standard deviation sqrt(STEP)."""
    weights = free_weights(flat_sets(quick=True)["ResNet-20"][: 8 if quick else None])
    placed()
    call = make(weights)
    return Running(call, lambda: moved(weights, call, STEP**0.5))


def ours(groups: Any, **options: Any) -> Callable[[], object]:
    """The overdamped scheme with the same noise as geoopt's sampler: `sqrt(2 lr / num_data) = sqrt(STEP)`."""
    return ws.optim.ConstrainedLangevin(
        groups, lr=STEP / 2, temperature=1.0, num_data=1, scheme="overdamped", seed=0, **options
    ).step


def geoopt(weights: Sequence[torch.Tensor]) -> Callable[[], object]:
    """Its sampler, which maximizes a log-probability; it writes down a float a step, which is forgotten here."""
    sampler = importlib.import_module("geoopt.samplers").RSGLD(weights, epsilon=STEP)
    sampler.burnin = True
    return lambda: sampler.step(Ready)


def by_hand(weights: Sequence[torch.Tensor]) -> Callable[[], object]:
    """SGLD in two lines a weight."""

    @torch.no_grad()
    def step() -> None:
        for weight in weights:
            if weight.grad is not None:
                weight.add_(weight.grad, alpha=-STEP / 2)
            weight.add_(torch.randn_like(weight), alpha=STEP**0.5)

    return step


def flat_entrants(quick: bool) -> list[Entrant]:
    """pytorch_optimizer has no sampler."""
    return [
        Entrant("`ConstrainedLangevin`, overdamped", "ours", partial(flat, ours, quick=quick)),
        Entrant("geoopt `RSGLD`", "peer", partial(flat, geoopt, quick=quick), "geoopt"),
        Entrant("torch: gradient, `randn_like`", "by hand", partial(flat, by_hand, quick=quick)),
    ]


def orthonormal(shape: tuple[int, ...]) -> torch.Tensor:
    """Columns of the last two dimensions."""
    torch.manual_seed(0)
    return torch.linalg.qr(torch.randn(shape))[0].contiguous().to(device())


def violation(weight: torch.Tensor) -> float:
    """Largest error of a singular value, from float64."""
    values = torch.linalg.svdvals(weight.detach().double())
    return float((values - 1).abs().max())


def on_stiefel(kind: str, shape: tuple[int, ...], *, chains: bool = False) -> Running:
    """Tall matrices with orthonormal columns, or a stack of them; gradients are zero, noise moves."""
    weight = orthonormal(shape)
    placed()
    if kind == "ours":
        own = torch.nn.Parameter(weight)
        own.grad = torch.zeros_like(own)
        group: dict[str, Any] = {"params": [own], "manifold": Stiefel()} | ({"chains": True} if chains else {})
        return Running(ours([group]), lambda: violation(own))
    package = importlib.import_module("geoopt")
    manifold = package.CanonicalStiefel() if kind == "canonical" else package.EuclideanStiefel()
    peer = package.ManifoldParameter(weight, manifold=manifold)
    peer.grad = torch.zeros_like(peer)
    return Running(geoopt([peer]), lambda: violation(peer))


def stiefel_entrants(quick: bool) -> list[Entrant]:
    """geoopt's canonical variant is the one whose retraction it calls reversible."""
    shape = (36, 4) if quick else (1152, 128)
    return [
        Entrant("`ConstrainedLangevin`, overdamped, `Stiefel()`", "ours", partial(on_stiefel, "ours", shape)),
        Entrant("geoopt `RSGLD`, `CanonicalStiefel`", "peer", partial(on_stiefel, "canonical", shape), "geoopt"),
        Entrant("geoopt `RSGLD`, `EuclideanStiefel`", "peer", partial(on_stiefel, "euclidean", shape), "geoopt"),
    ]


def loop(kind: str, chains: int) -> Running:
    """One optimizer a chain."""
    alone = [on_stiefel(kind, CHAIN_SHAPE) for _ in range(chains)]
    return Running(lambda: [one.call() for one in alone], lambda: max(one.error() for one in alone if one.error))


def chain_entrants(quick: bool, chains: int = CHAINS) -> list[Entrant]:
    """Stacks of chains and loops over chains."""
    chains = 20 if quick else chains
    shape = (chains, *CHAIN_SHAPE)
    stacked = partial(on_stiefel, shape=shape, chains=True)
    return [
        Entrant("`ConstrainedLangevin`, `chains=True`", "ours", partial(stacked, "ours")),
        Entrant("geoopt `RSGLD`, `CanonicalStiefel`, stacked", "peer", partial(stacked, "canonical"), "geoopt"),
        Entrant("geoopt `RSGLD`, `CanonicalStiefel`, a loop", "peer", partial(loop, "canonical", chains), "geoopt"),
    ]


def flat_floor(quick: bool) -> Floor:
    """Of the weights."""
    count = sum(math.prod(s) for s in flat_sets(quick=True)["ResNet-20"][: 8 if quick else None])
    return Floor("weight and gradient read, weight written; normal numbers for nothing", bytes=12.0 * count)


def stiefel_floor(quick: bool) -> Floor:
    """Half of a Gram matrix for the tangent part of what moves, the product, and the same for the retraction."""
    n, p = (36, 4) if quick else (1152, 128)
    words = "tangent part of gradient and noise together 4np², a retraction 3np²"
    return Floor(words, bytes=12.0 * n * p, flops=7.0 * n * p**2)


def chain_floor(quick: bool) -> Floor:
    """Of the weights of all chains."""
    count = (20 if quick else CHAINS) * math.prod(CHAIN_SHAPE)
    return Floor("weight and gradient read, weight written; normal numbers for nothing", bytes=12.0 * count)


STIEFEL_ERROR = "largest error of a singular value after the timed steps"
CONTESTS = [
    Contest(
        "langevin-free",
        "Langevin step, free weights",
        "A step of overdamped Langevin dynamics: gradient and normal numbers.",
        "ResNet-20, 59 tensors, 0.27 million weights",
        "of the standard deviation of a step, as a share",
        0.02,
        flat_entrants,
        flat_floor,
    ),
    Contest(
        "langevin-stiefel",
        "Langevin step, orthonormal matrix",
        "A step of overdamped Langevin dynamics on the matrices with orthonormal columns.",
        "one 1152 x 128 matrix",
        STIEFEL_ERROR,
        1e-5,
        stiefel_entrants,
        stiefel_floor,
    ),
    Contest(
        "chains",
        "Many chains",
        "The same step for many chains at once, each a small orthonormal matrix.",
        f"{CHAINS:,} chains of one {CHAIN_SHAPE[0]} x {CHAIN_SHAPE[1]} matrix",
        STIEFEL_ERROR,
        1e-5,
        chain_entrants,
        chain_floor,
    ),
]
