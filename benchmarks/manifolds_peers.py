"""The same steps by other packages, as far as they are installed: geoopt, geotorch, POGO, and torch's parametrizations.

Every peer is given points in the shape that it wants (tall or wide matrices, rows), so that what is timed is its best.
NVIDIA's Emerging-Optimizers is here as its published formula only: the package that the registry offers under its name
is not the project's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations

from benchmarks.manifolds_kernels import LEARNING_RATE, MOMENTUM, Contestant, Kernels, Work, stepper
from benchmarks.placed import placed

Tensors = list[torch.Tensor]
Layout = Callable[[torch.Tensor], torch.Tensor]


def package(name: str) -> Any:
    """The module, or None with a printed reason."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"{name} is left out: {error}. Install it with: pip install weightspace[bench]")
        return None


def rows(weight: torch.Tensor) -> torch.Tensor:
    """`(c_out, c_in*k*k)`."""
    return weight.flatten(1)


def tall(weight: torch.Tensor) -> torch.Tensor:
    """As a matrix with at least as many rows as columns."""
    matrix = weight.flatten(1)
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT.contiguous()


def wide(weight: torch.Tensor) -> torch.Tensor:
    """A batch of one matrix with at most as many rows as columns."""
    return tall(weight).mT.contiguous()[None]


def whole(weight: torch.Tensor) -> torch.Tensor:
    """As it is: 4-D."""
    return weight


def _untall(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Undoes `tall` and `wide`."""
    value = value.reshape(value.shape[-2:])
    matrix = like.flatten(1)
    return (value if value.shape == matrix.shape else value.mT).reshape(like.shape)


def optimized(
    name: str,
    kernels: Kernels,
    layout: Layout,
    make: Callable[[Tensors], torch.optim.Optimizer],
    *,
    work: Work,
    grouping: str,
    wrap: Callable[[torch.Tensor], torch.Tensor] = nn.Parameter,
) -> Contestant:
    """A peer's optimizer on parameters of its own layout."""
    parameters = [wrap(layout(w).clone()) for w in kernels.weights]
    gradients = [[layout(g) for g in turn] for turn in kernels.gradients]
    placed()

    def weights() -> Tensors:
        return [_untall(p.detach(), w) if p.ndim < 4 else p for p, w in zip(parameters, kernels.weights, strict=True)]

    step = stepper(make(parameters), parameters)
    return Contestant(name, kernels, step, weights, work, grouping, gradients)


def _geoopt_sgd(geoopt: Any, parameters: Tensors) -> torch.optim.Optimizer:
    return geoopt.optim.RiemannianSGD(parameters, lr=LEARNING_RATE, momentum=MOMENTUM)


UNIT, UNIT_FORMULA = Work("15N", 15), Work("13N", 13)
# Projection 4np², QR with Q formed 4np² - 4/3 p³, transport of the momentum 4np².
QR = Work("12np² - 4/3 p³", count=lambda n, p: 12 * n * p**2 - 4 / 3 * p**3)
# Projection through n x n, the n x n Cayley matrix, its action and solution for 2p columns.
CANONICAL = Work("16n²p + 2/3 n³", count=lambda n, p: 16 * n**2 * p + 2 / 3 * n**3)
POGO = Work("12np²", count=lambda n, p: 12 * n * p**2)  # six products, one after another
# Orders of magnitude: forward, and twice that backward.
MAPS = {
    "householder": Work("≈ 12np²", count=lambda n, p: 12 * n * p**2),
    "cayley": Work("≈ 2n³ + 6n²p", count=lambda n, p: 2 * n**3 + 6 * n**2 * p),
    "matrix_exp": Work("≈ 60n³", count=lambda n, _: 60 * n**3),
}


def geoopt_spheres(kernels: Kernels) -> list[Contestant]:
    """`geoopt.Sphere` on rows."""
    geoopt = package("geoopt")
    if geoopt is None:
        return []
    wrap = partial(geoopt.ManifoldParameter, manifold=geoopt.Sphere())
    make = partial(_geoopt_sgd, geoopt)
    return [optimized("geoopt `Sphere`", kernels, rows, make, work=UNIT, grouping="rows", wrap=wrap)]


def geoopt_stiefel(kernels: Kernels, *, canonical: bool) -> list[Contestant]:
    """`geoopt.Stiefel`: by default the canonical one."""
    geoopt = package("geoopt")
    if geoopt is None:
        return []
    wrap = partial(geoopt.ManifoldParameter, manifold=geoopt.Stiefel(canonical=canonical))
    make = partial(_geoopt_sgd, geoopt)
    name = "geoopt `Stiefel()` (default)" if canonical else "geoopt `EuclideanStiefel()`"
    work = CANONICAL if canonical else QR
    return [optimized(name, kernels, tall, make, work=work, grouping="matrix", wrap=wrap)]


def geoopt_slices(kernels: Kernels) -> list[Contestant]:
    """`geoopt` on 4-D kernels, which it takes for batches of slices; 1x1 kernels are left free."""
    geoopt = package("geoopt")
    if geoopt is None:
        return []
    found: list[Contestant] = []
    for canonical, work in ((True, CANONICAL), (False, QR)):
        manifold = geoopt.Stiefel(canonical=canonical)

        def wrap(weight: torch.Tensor, manifold: Any = manifold) -> torch.Tensor:
            return (
                geoopt.ManifoldParameter(weight, manifold=manifold)
                if weight[0, 0].numel() > 1
                else nn.Parameter(weight)
            )

        name = "geoopt `Stiefel()` (default), 4-D" if canonical else "geoopt `EuclideanStiefel()`, 4-D"
        make = partial(_geoopt_sgd, geoopt)
        found.append(optimized(name, kernels, whole, make, work=work, grouping="slice", wrap=wrap))
    return found


def pogo(kernels: Kernels) -> list[Contestant]:
    """POGO with momentum, on wide matrices; on slices as one batch a kernel."""
    module = package("pogo")
    if module is None:
        return []
    if kernels.is_sliced:
        chosen = kernels.constrained()
        gradients = [[g[k] for k in chosen] for g in kernels.gradients]
        kernels = type(kernels)(kernels.name, kernels.manifold, [kernels.weights[k] for k in chosen], gradients)
    options: dict[str, Any] = {"flatten_fn": lambda x: x.flatten(0, 1)} if kernels.is_sliced else {}

    def make(parameters: Tensors) -> torch.optim.Optimizer:
        return module.POGO(parameters, package("pogo.base").SGD(momentum=MOMENTUM), lr=LEARNING_RATE, **options)

    layout, name = (whole, "POGO, 3x3 and 7x7 kernels only") if kernels.is_sliced else (wide, "POGO")
    grouping = kernels.manifold.grouping
    return [optimized(name, kernels, layout, make, work=POGO, grouping=grouping)]


class ObliqueSGDFormula(torch.optim.Optimizer):
    """Momentum, tangent projection and normalization of rows, as Emerging-Optimizers publishes them; written here."""

    def __init__(self, params: Sequence[torch.Tensor], lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step."""
        for group in self.param_groups:
            for weight in group["params"]:
                buffer = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
                buffer.mul_(group["momentum"]).add_(weight.grad)
                along = (weight * buffer).sum(1, keepdim=True)
                weight.add_(torch.add(buffer, weight * along, alpha=-1), alpha=-group["lr"])
                nn.functional.normalize(weight, dim=1, out=weight)


def oblique_formula(kernels: Kernels) -> list[Contestant]:
    """Emerging-Optimizers' `ObliqueSGD`."""
    make = partial(ObliqueSGDFormula, lr=LEARNING_RATE, momentum=MOMENTUM)
    name = "formula of NVIDIA's `ObliqueSGD`, written here"
    return [optimized(name, kernels, rows, make, work=UNIT_FORMULA, grouping="rows")]


def parametrized(
    name: str, kernels: Kernels, register: Callable[[nn.Linear], object], work: Work, grouping: str
) -> Contestant:
    """A parametrization: its forward, its backward, an SGD step."""
    layers: list[nn.Linear] = []
    for weight in kernels.weights:
        matrix = rows(weight)
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(matrix.clone())
        layers.append(layer)
    placed()
    for layer in layers:
        register(layer)
    trained = [p for layer in layers for p in layer.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=LEARNING_RATE, momentum=MOMENTUM, foreach=True)
    gradients = [[rows(g) for g in turn] for turn in kernels.gradients]

    def take_step(turn: Tensors) -> None:
        for layer, gradient in zip(layers, turn, strict=True):
            layer.weight.backward(gradient)
        optimizer.step()
        optimizer.zero_grad()

    def weights() -> Tensors:
        with torch.no_grad():
            return [layer.weight for layer in layers]

    return Contestant(name, kernels, take_step, weights, work, grouping, gradients)


def weight_norm(layer: nn.Linear) -> None:
    parametrizations.weight_norm(layer)
    layer.parametrizations.weight.original0.requires_grad_(requires_grad=False)  # the norm: it stays 1


def sphere_parametrizations(kernels: Kernels) -> list[Contestant]:
    """torch's `weight_norm` with its norms frozen at 1, and `geotorch.sphere`."""
    found = [parametrized("torch `weight_norm`, norms frozen", kernels, weight_norm, UNIT, "rows")]
    geotorch = package("geotorch")
    if geotorch is not None:
        register = partial(geotorch.sphere, tensor_name="weight")
        found.append(parametrized("geotorch `sphere`", kernels, register, UNIT, "rows"))
    return found


def orthogonal_parametrizations(kernels: Kernels) -> list[Contestant]:
    """torch's `orthogonal` by its three maps, and geotorch's, which is the exponential."""
    found = [
        parametrized(
            f"torch `orthogonal`, {kind}",
            kernels,
            partial(parametrizations.orthogonal, orthogonal_map=kind),
            work,
            "matrix",
        )
        for kind, work in MAPS.items()
    ]
    geotorch = package("geotorch")
    if geotorch is not None:
        register = partial(geotorch.orthogonal, tensor_name="weight")
        found.append(parametrized("geotorch `orthogonal`", kernels, register, MAPS["matrix_exp"], "matrix"))
    return found
