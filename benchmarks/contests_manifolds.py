"""Contests of steps on manifolds: unit filters, orthonormal matrices, slices; SGD with momentum and Adam."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations

from benchmarks import manifolds_peers as peers
from benchmarks import manifolds_step as ours
from benchmarks.contests import Contest, Entrant, Floor, Kind, Running
from benchmarks.manifolds_kernels import LEARNING_RATE, MOMENTUM, Contestant, Kernels, Shape, kernels, resnet18_shapes
from weightspace.manifolds import Manifold, Oblique, Sphere, Stiefel

FLOAT32 = 1e-5  # what a step that corrects in float32 keeps to
LOOSE = 1e-3  # Björck, Cholesky and POGO stop here or drift a little, and are let through
STEM_AND_LAYER_1, WITH_LAYER_2, WITH_LAYER_3 = 5, 10, 15
PLAIN: dict[str, Any] = {"step_size": "plain"}
Build = Callable[[Kernels], Contestant]
Shapes = tuple[Shape, ...]
Maker = Callable[[Manifold, Shapes], Entrant]
ADAM = 1e-3


def ready(build: Build, manifold: Manifold, shapes: Shapes) -> Running:
    """A contestant on kernels of these shapes."""
    made = build(on_manifold(manifold, shapes))
    return Running(made, None if made.grouping == "none" else made.error)


@lru_cache(maxsize=2)
def on_manifold(manifold: Manifold, shapes: Shapes) -> Kernels:
    """Made once a contest: contestants copy what they change."""
    return kernels("kernels", shapes, manifold)


def entrant(name: str, kind: Kind, build: Build, package: str = "") -> Maker:
    """Still to be told on which kernels."""
    return lambda manifold, shapes: Entrant(name, kind, partial(ready, build, manifold, shapes), package)


def submanifold(name: str, manifold: Manifold, **options: Any) -> Maker:
    """Ours, an optimizer of its own."""
    return entrant(name, "ours", lambda k: ours.submanifold(name, k, manifold, ours.UNIT, **options))


def attached(name: str, manifold: Manifold, *, adam: bool = False) -> Maker:
    """Ours, on torch's optimizer."""
    return entrant(name, "ours", lambda k: ours.attached(name, k, manifold, ours.UNIT, adam=adam))


def geoopt_adam(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    """Its twin of Adam."""
    return importlib.import_module("geoopt").optim.RiemannianAdam(parameters, lr=ADAM)


def geoopt_sgd(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    """Its twin of SGD."""
    return importlib.import_module("geoopt").optim.RiemannianSGD(parameters, lr=LEARNING_RATE, momentum=MOMENTUM)


def geoopt(name: str, make_manifold: Callable[[Any], Any], layout: Any, *, adam: bool = False) -> Maker:
    """geoopt's optimizers on points in the layout that it wants."""

    def build(k: Kernels) -> Contestant:
        package = importlib.import_module("geoopt")
        manifold = make_manifold(package)

        def wrap(weight: torch.Tensor) -> torch.Tensor:
            if k.is_sliced and weight[0, 0].numel() == 1:
                return nn.Parameter(weight)
            return package.ManifoldParameter(weight, manifold=manifold)

        make = geoopt_adam if adam else geoopt_sgd
        return peers.optimized(name, k, layout, make, work=peers.QR, grouping=k.manifold.grouping, wrap=wrap)

    return entrant(name, "peer", build, "geoopt")


def pogo(name: str, base: Callable[[Any], Any], rate: float) -> Maker:
    """POGO with a base optimizer, on wide matrices or on slices."""

    def build(k: Kernels) -> Contestant:
        if k.is_sliced:
            chosen = k.constrained()
            gradients = [[g[i] for i in chosen] for g in k.gradients]
            k = Kernels(k.name, k.manifold, [k.weights[i] for i in chosen], gradients)
        options: dict[str, Any] = {"flatten_fn": lambda x: x.flatten(0, 1)} if k.is_sliced else {}
        module = importlib.import_module("pogo")

        def make(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
            return module.POGO(parameters, base(importlib.import_module("pogo.base")), lr=rate, **options)

        layout = peers.whole if k.is_sliced else peers.wide
        return peers.optimized(name, k, layout, make, work=peers.POGO, grouping=k.manifold.grouping)

    return entrant(name, "peer", build, "pogo")


def parametrized(name: str, register: Callable[[nn.Linear], object], package: str = "") -> Maker:
    """A parametrization: forward, backward, a step of SGD."""
    return entrant(
        name, "peer", lambda k: peers.parametrized(name, k, register, peers.UNIT, k.manifold.grouping), package
    )


def by_geotorch(function: str) -> Callable[[nn.Linear], object]:
    """One of its functions."""
    return lambda layer: getattr(importlib.import_module("geotorch"), function)(layer, tensor_name="weight")


def by_torch(kind: str) -> Callable[[nn.Linear], object]:
    """torch's `orthogonal` by one of its maps."""
    return partial(parametrizations.orthogonal, orthogonal_map=kind)


def by_torchlip(layer: nn.Linear) -> object:
    """What its `SpectralLinear` does to its weight: one step of a power iteration, then Björck's iteration."""
    utils = importlib.import_module("deel.torchlip.utils")
    parametrizations.spectral_norm(layer, name="weight", eps=1e-3)
    return utils.bjorck_norm(layer, name="weight", eps=1e-3)


def by_orthogonium(params: str) -> Callable[[nn.Linear], object]:
    """What its `OrthoLinear` does to its weight, with one of the package's settings."""

    def register(layer: nn.Linear) -> None:
        settings = getattr(importlib.import_module("orthogonium.reparametrizers"), params)
        shape = (layer.out_features, layer.in_features)
        register_ = nn.utils.parametrize.register_parametrization
        register_(layer, "weight", settings.spectral_normalizer(weight_shape=shape).to(layer.weight.device))
        register_(layer, "weight", settings.orthogonalizer(weight_shape=shape))

    return register


def formula(k: Kernels) -> Contestant:
    """Momentum, tangent projection and normalization of rows, as one writes them."""
    return peers.oblique_formula(k)[0]


REFERENCE = [
    entrant(ours.REFERENCE, "reference", ours.plain_sgd),
    entrant("`torch.optim.SGD(fused=True)`", "reference", partial(ours.plain_sgd, fused=True)),
]


def unit_sgd() -> list[Maker]:
    """Unit filters, SGD."""
    return [
        submanifold('`SubmanifoldSGD`, `Sphere("filter")`', Sphere("filter"), **PLAIN),
        submanifold("`SubmanifoldSGD`, `Oblique()`", Oblique(), **PLAIN),
        submanifold('`SubmanifoldSGD`, `Sphere("filter")`, `step_size="curvature"`', Sphere("filter")),
        attached('`attach(SGD, Sphere("filter"))`', Sphere("filter")),
        geoopt("geoopt `RiemannianSGD`, `Sphere`", lambda g: g.Sphere(), peers.rows),
        parametrized("torch `weight_norm`, norms frozen", peers.weight_norm),
        parametrized("geotorch `sphere`", by_geotorch("sphere"), "geotorch"),
        entrant("torch: momentum, project, normalize (NVIDIA's `ObliqueSGD`)", "by hand", formula),
        *REFERENCE,
    ]


def unit_adam() -> list[Maker]:
    """Unit filters, Adam."""
    return [
        submanifold('`SubmanifoldAdam`, `Sphere("filter")`', Sphere("filter"), adam=True),
        attached('`attach(Adam, Sphere("filter"))`', Sphere("filter"), adam=True),
        geoopt("geoopt `RiemannianAdam`, `Sphere`", lambda g: g.Sphere(), peers.rows, adam=True),
    ]


def orthonormal_sgd() -> list[Maker]:
    """Orthonormal matrices, SGD, those who form no n x n matrices."""
    return [
        submanifold("`SubmanifoldSGD`, `Stiefel()`", Stiefel(), **PLAIN),
        submanifold('`SubmanifoldSGD`, `Stiefel()`, `step_size="curvature"`', Stiefel()),
        submanifold('`SubmanifoldSGD`, `Stiefel(retraction="qr")`', Stiefel(retraction="qr"), **PLAIN),
        attached("`attach(SGD, Stiefel())`", Stiefel()),
        geoopt("geoopt `RiemannianSGD`, `EuclideanStiefel`", lambda g: g.EuclideanStiefel(), peers.tall),
        pogo("POGO", lambda base: base.SGD(momentum=MOMENTUM), LEARNING_RATE),
        parametrized("orthogonium Cholesky", by_orthogonium("CHOLESKY_ORTHO_PARAMS"), "orthogonium"),
        *REFERENCE[:1],
    ]


def orthonormal_part() -> list[Maker]:
    """Those who form n x n matrices too."""
    canonical: Callable[[Any], Any] = lambda g: g.Stiefel()  # noqa: E731  # one of two that are handed over
    return [
        submanifold("`SubmanifoldSGD`, `Stiefel()`", Stiefel(), **PLAIN),
        attached("`attach(SGD, Stiefel())`", Stiefel()),
        geoopt("geoopt `RiemannianSGD`, `Stiefel` (its default)", canonical, peers.tall),
        geoopt("geoopt `RiemannianSGD`, `EuclideanStiefel`", lambda g: g.EuclideanStiefel(), peers.tall),
        pogo("POGO", lambda base: base.SGD(momentum=MOMENTUM), LEARNING_RATE),
        *(parametrized(f"torch `orthogonal`, {kind}", by_torch(kind)) for kind in peers.MAPS),
        parametrized("geotorch `orthogonal`", by_geotorch("orthogonal"), "geotorch"),
        parametrized("deel-torchlip Björck", by_torchlip, "deel.torchlip"),
        parametrized("orthogonium Björck (its default)", by_orthogonium("DEFAULT_ORTHO_PARAMS"), "orthogonium"),
        parametrized("orthogonium QR", by_orthogonium("QR_ORTHO_PARAMS"), "orthogonium"),
        parametrized("orthogonium Cholesky", by_orthogonium("CHOLESKY_ORTHO_PARAMS"), "orthogonium"),
    ]


def orthonormal_adam() -> list[Maker]:
    """Orthonormal matrices, Adam."""
    euclidean: Callable[[Any], Any] = lambda g: g.EuclideanStiefel()  # noqa: E731
    return [
        submanifold("`SubmanifoldAdam`, `Stiefel()`", Stiefel(), adam=True),
        attached("`attach(Adam, Stiefel())`", Stiefel(), adam=True),
        geoopt("geoopt `RiemannianAdam`, `EuclideanStiefel`", euclidean, peers.tall, adam=True),
        pogo("POGO with its `VectorAdam`", lambda base: base.VectorAdam(), LEARNING_RATE),
    ]


def sliced() -> list[Maker]:
    """Every 3x3 slice a point."""
    return [
        submanifold('`SubmanifoldSGD`, `Stiefel("slice")`', Stiefel("slice"), **PLAIN),
        submanifold('`SubmanifoldSGD`, `Stiefel("slice")`, `step_size="curvature"`', Stiefel("slice")),
        geoopt("geoopt `RiemannianSGD`, `Stiefel` (its default), 4-D", lambda g: g.Stiefel(), peers.whole),
        geoopt("geoopt `RiemannianSGD`, `EuclideanStiefel`, 4-D", lambda g: g.EuclideanStiefel(), peers.whole),
        pogo("POGO, 3x3 and 7x7 kernels only", lambda base: base.SGD(momentum=MOMENTUM), LEARNING_RATE),
        *REFERENCE[:1],
    ]


def shapes_of(layers: int | None, *, quick: bool) -> Shapes:
    """ResNet-18's kernels, or those of the first layers."""
    return tuple(resnet18_shapes(8 if quick else 64)[:layers])


def floor_of(manifold: Manifold, shapes: Shapes) -> Floor:
    """Bytes of SGD's own step, Adam's too (one second moment a point), and for matrices the products besides."""
    count = sum(torch.Size(s).numel() for s in shapes)
    if not isinstance(manifold, Stiefel) or manifold.grouping == "slice":
        return Floor("weight, gradient and momentum read, weight and momentum written", bytes=20.0 * count)
    words = "products of a step that is corrected every time, 7np² for n x p matrices"
    sides = [sorted((s[0], math.prod(s[1:]))) for s in shapes]
    return Floor(words, bytes=20.0 * count, flops=float(sum(7 * n * p**2 for p, n in sides)))


def contest(
    name: str,
    title: str,
    question: str,
    build: Callable[[], Sequence[Maker]],
    manifold: Manifold,
    *,
    layers: int | None = None,
    tolerance: float = FLOAT32,
) -> Contest:
    """On the kernels of ResNet-18, or on the first layers."""
    count = sum(torch.Size(s).numel() for s in shapes_of(layers, quick=False))
    part = "ResNet-18" if layers is None else f"the first {layers} layers of ResNet-18"
    return Contest(
        name,
        title,
        question,
        f"{len(resnet18_shapes()[:layers])} kernels of {part}, {count / 1e6:.2f} million weights",
        "largest violation after the timed steps: of a norm or a singular value from 1",
        tolerance,
        lambda quick: [make(manifold, shapes_of(layers, quick=quick)) for make in build()],
        lambda quick: floor_of(manifold, shapes_of(layers, quick=quick)),
    )


CONTESTS = [
    contest(
        "unit-sgd",
        "Unit filters, SGD",
        "A step of SGD with momentum that keeps every filter at norm 1.",
        unit_sgd,
        Sphere("filter"),
    ),
    contest(
        "unit-adam",
        "Unit filters, Adam",
        "A step of Adam that keeps every filter at norm 1.",
        unit_adam,
        Sphere("filter"),
    ),
    contest(
        "orthonormal-sgd",
        "Orthonormal matrices, SGD",
        "A step of SGD with momentum that keeps the filters of every layer orthonormal.",
        orthonormal_sgd,
        Stiefel(),
        layers=WITH_LAYER_3,
        tolerance=LOOSE,
    ),
    contest(
        "orthonormal-part",
        "Orthonormal matrices, parametrizations too",
        "The same, with parametrizations: their forward and backward pass and the step.",
        orthonormal_part,
        Stiefel(),
        layers=STEM_AND_LAYER_1,
        tolerance=LOOSE,
    ),
    contest(
        "orthonormal-adam",
        "Orthonormal matrices, Adam",
        "A step of Adam that keeps the filters of every layer orthonormal.",
        orthonormal_adam,
        Stiefel(),
        layers=WITH_LAYER_3,
        tolerance=LOOSE,
    ),
    contest(
        "orthonormal-slices",
        "Orthonormal slices",
        "A step of SGD with momentum that keeps every 3x3 (7x7) slice of a kernel orthonormal.",
        sliced,
        Stiefel("slice"),
        layers=WITH_LAYER_2,
        tolerance=LOOSE,
    ),
]
