"""A step of our optimizers on manifolds, beside plain SGD."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

import weightspace as ws
from benchmarks.manifolds_kernels import LEARNING_RATE, MOMENTUM, Contestant, Kernels, Work, stepper
from benchmarks.placed import placed
from weightspace.manifolds import Manifold, Oblique, Orthogonal, Sphere, Stiefel

REFERENCE = "`torch.optim.SGD(foreach=True)`"
TIGHT, RARE = 1e-3, 4
ADAM_LEARNING_RATE = 1e-3  # its unit is a weight's own size

SGD = Work("4N", 4)  # momentum: two; update: two
UNIT, UNIT_ADAM, UNIT_ATTACHED = Work("10N", 10), Work("14N", 14), Work("24N", 24)
# Gradient 4np²; Gram matrix of X + V, symmetric, np² at least; its inverse root times X + V 2np²; terms of p³ are left out.
FLOOR = Work("7np²", count=lambda n, p: 7 * n * p**2)
# Of what is executed the products are counted. Small matrices are not cut into blocks: their Gram matrix takes 2np².
STEP = Work("7 to 8np²", counted_steps=1)
TRIANGULAR = Work("5 to 8np²", counted_steps=1)
LOOSE = Work("4 to 8np²", counted_steps=RARE)
EVERY = Work(f"(4·{RARE - 1} + 8)/{RARE} np²", counted_steps=RARE)
# Gradient, retraction, projection of the momentum; `attach` also takes the tangent part of the displacement.
ADAM = ATTACHED = Work("from 11.3np²", counted_steps=1)
ATTACHED_ADAM = Work("from 15.3np²", counted_steps=1)
# By formula: small matrices are multiplied elementwise.
SMALL = Work("8np²", count=lambda n, p: 8 * n * p**2)


def plain_sgd(kernels: Kernels, *, fused: bool = False) -> Contestant:
    """SGD with momentum on free kernels."""
    weights = [w.clone().requires_grad_() for w in kernels.weights]
    placed()
    kind: dict[str, bool] = {"fused": True} if fused else {"foreach": True}
    optimizer = torch.optim.SGD(weights, lr=LEARNING_RATE, momentum=MOMENTUM, **kind)
    name = REFERENCE.replace("foreach", "fused") if fused else REFERENCE
    return Contestant(name, kernels, stepper(optimizer, weights), lambda: weights, SGD, "none")


def submanifold(name: str, kernels: Kernels, manifold: Manifold, work: Work, **options: Any) -> Contestant:
    """`SubmanifoldSGD`, or with `adam=True` its twin."""
    model = kernels.model()
    placed()
    groups = ws.param_groups(model, {ws.on.convs: manifold})
    if options.pop("adam", False):
        optimizer: torch.optim.Optimizer = ws.optim.SubmanifoldAdam(groups, lr=ADAM_LEARNING_RATE, **options)
    else:
        optimizer = ws.optim.SubmanifoldSGD(groups, lr=LEARNING_RATE, momentum=MOMENTUM, **options)
    weights = list(model.parameters())
    return Contestant(name, kernels, stepper(optimizer, weights), lambda: weights, work, manifold.grouping)


def attached(name: str, kernels: Kernels, manifold: Manifold, work: Work, *, adam: bool = False) -> Contestant:
    """`attach` on torch's own optimizer."""
    model = kernels.model()
    weights = list(model.parameters())
    placed()
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(weights, lr=ADAM_LEARNING_RATE, foreach=True)
        if adam
        else torch.optim.SGD(weights, lr=LEARNING_RATE, momentum=MOMENTUM, foreach=True)
    )
    ws.attach(optimizer, model, replace(manifold, on=ws.on.convs))
    return Contestant(name, kernels, stepper(optimizer, weights), lambda: weights, work, manifold.grouping)


def on_spheres(kernels: Kernels) -> list[Contestant]:
    """Filters of norm 1."""
    return [
        submanifold('`Sphere("filter")`, `step_size="plain"`', kernels, Sphere("filter"), UNIT, step_size="plain"),
        submanifold('`Sphere("filter")`, `step_size="curvature"`', kernels, Sphere("filter"), UNIT),
        submanifold('`Oblique()`, `step_size="plain"`', kernels, Oblique(), UNIT, step_size="plain"),
        submanifold('`Oblique()`, `step_size="curvature"`', kernels, Oblique(), UNIT),
        submanifold('`SubmanifoldAdam`, `Sphere("filter")`', kernels, Sphere("filter"), UNIT_ADAM, adam=True),
        attached('`attach(SGD(foreach=True), Sphere("filter"))`', kernels, Sphere("filter"), UNIT_ATTACHED),
    ]


def on_stiefel(kernels: Kernels) -> list[Contestant]:
    """Kernels as matrices with orthonormal rows or columns."""
    plain: dict[str, Any] = {"step_size": "plain"}
    return [
        submanifold('`Stiefel()`, `step_size="plain"`', kernels, Stiefel(), STEP, **plain),
        submanifold('`Stiefel()`, `step_size="curvature"`', kernels, Stiefel(), STEP),
        submanifold('`Stiefel(retraction="qr")`', kernels, Stiefel(retraction="qr"), TRIANGULAR, **plain),
        submanifold('`Stiefel(metric="canonical")`', kernels, Stiefel(metric="canonical"), STEP, **plain),
        submanifold(f"`Stiefel(tolerance={TIGHT:g})`", kernels, Stiefel(tolerance=TIGHT), LOOSE, **plain),
        submanifold(f"`Stiefel(every={RARE})`", kernels, Stiefel(every=RARE), EVERY, **plain),
        submanifold("`SubmanifoldAdam`, `Stiefel()`", kernels, Stiefel(), ADAM, adam=True),
        attached("`attach(SGD(foreach=True), Stiefel())`", kernels, Stiefel(), ATTACHED),
        attached("`attach(Adam(foreach=True), Stiefel())`", kernels, Stiefel(), ATTACHED_ADAM, adam=True),
    ]


def on_slices(kernels: Kernels) -> list[Contestant]:
    """Hundreds of thousands of small matrices; what is on which manifold is the table's business, not the error's."""
    plain: dict[str, Any] = {"step_size": "plain"}
    if isinstance(kernels.manifold, Sphere):
        return [
            submanifold('`Sphere("slice")`, `step_size="plain"`', kernels, kernels.manifold, UNIT, **plain),
            submanifold('`Sphere("slice")`, `step_size="curvature"`', kernels, kernels.manifold, UNIT),
        ]
    if isinstance(kernels.manifold, Oblique):
        return [submanifold('`Oblique("slice")`, `step_size="plain"`', kernels, kernels.manifold, UNIT, **plain)]
    orthogonal = Orthogonal("slice")
    return [
        submanifold('`Stiefel("slice")`, `step_size="plain"`', kernels, kernels.manifold, SMALL, **plain),
        submanifold('`Stiefel("slice")`, `step_size="curvature"`', kernels, kernels.manifold, SMALL),
        submanifold('`Orthogonal("slice")`, `step_size="plain"`', kernels, orthogonal, SMALL, **plain),
    ]
