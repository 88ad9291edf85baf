"""Fast free and adaptive steps against the reference, written with a manifold's geometry alone."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import weightspace as ws
from weightspace.kernels.points import Channels
from weightspace.kernels.stacking import Workspace
from weightspace.manifolds import Constraint, Manifold, Oblique, Sphere, Stiefel, ZeroMeanSphere, _row_blocks
from weightspace.manifolds._free_steps import Adaptive, FreeStep, adapt, follow

MANIFOLDS: list[Manifold] = [
    Sphere("filter"),
    Sphere("filter", radius=3.0),
    Sphere("kernel"),
    Sphere("slice"),
    ZeroMeanSphere("filter"),
    Oblique(),
    Oblique(by="column"),
    Stiefel(),
    Stiefel(metric="canonical"),
    Stiefel(retraction="qr"),
    Stiefel("slice"),
]
SHAPES = [(4, 3, 3, 3), (40, 3, 3, 3), (7, 5, 2, 2), (1, 6, 3, 3)]


def points_of(manifold: Manifold, shape: tuple[int, ...], seed: int) -> tuple[tuple[int, ...], torch.Generator]:
    assume(shape[0] > 1 or not (isinstance(manifold, Oblique) and manifold.by == "column"))  # each column is one number
    view = manifold.points_of(torch.zeros(shape), Channels())
    return view.shape, torch.Generator().manual_seed(seed)


def drawn(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(MANIFOLDS),
    st.sampled_from(SHAPES),
    st.integers(0, 99),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1e-3, 0.3, 50.0]),
    st.sampled_from([1 << 19, 30]),
)
def test_followed_steps_are_the_references(manifold, shape, seed, is_tangent, has_tangent, size, block):
    shape, generator = points_of(manifold, shape, seed)
    x = manifold.random_uniform(shape, generator=generator, like=torch.empty(0, dtype=torch.float64))
    u, m, g = (drawn(shape, generator) for _ in range(3))
    u = size * (manifold.project_tangent(x, u) if is_tangent else u)
    m = manifold.project_tangent(x, m) if has_tangent else m
    ends, momenta, counts = [], [], []
    with mock.patch.object(_row_blocks, "BLOCK", block):
        for way in (follow, type(manifold).follow):
            y, carried = x + u, m.clone()
            counts.append(way(manifold, x.clone(), y, FreeStep([carried], is_tangent, has_tangent)))
            ends.append(y)
            momenta.append(carried)
        out = torch.empty_like(x)
        manifold.gradient_into(x, g, out, Workspace())
        manifold.gradient_into(x, same := g.clone(), same, Workspace())
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(momenta[1], momenta[0], rtol=1e-9, atol=1e-10)
    assert counts[0] == counts[1] or size > 1 or min(shape[-2:]) == 1
    for found in (out, same):
        torch.testing.assert_close(found, manifold.gradient(x, g), rtol=1e-10, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(MANIFOLDS),
    st.sampled_from(SHAPES),
    st.integers(0, 99),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1 << 19, 30]),
)
def test_adaptive_steps_are_the_references(manifold, shape, seed, amsgrad, geodesic, block):
    shape, generator = points_of(manifold, shape, seed)
    like = torch.empty(0, dtype=torch.float64)
    x = manifold.random_uniform(shape, generator=generator, like=like)
    m = manifold.project_tangent(x, drawn(shape, generator))
    g = drawn(shape, generator)
    s, largest = (drawn((*shape[:-2], 1, 1), generator).square() for _ in range(2))
    found = []
    with mock.patch.object(_row_blocks, "BLOCK", block):
        for way in (adapt, type(manifold).adapt):
            own = [t.clone() for t in (x, m, s, largest)]
            adaptive = Adaptive(0.05, 0.9, 0.99, 0.3, 1e-8, own[2], own[3] if amsgrad else None, geodesic)
            way(manifold, own[0], own[1], g, adaptive)
            found.append(own)
    for fast, plain in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e25])
def test_rows_too_short_or_too_long_for_squares(size):
    """A float32 square of them leaves the range; y = size * e is a direction all the same."""
    manifold = Sphere("filter")
    x = torch.nn.functional.normalize(torch.ones(1, 20, 1, 8), dim=-1)
    y = torch.zeros_like(x)
    y[..., 0] = size
    manifold.follow(x, y, FreeStep(is_tangent=True))
    torch.testing.assert_close(y, manifold.project(torch.eye(8)[:1].expand(1, 20, 1, 8) * size))


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=lambda m: m.text())
def test_channels_last_weights_and_gradients_of_another_layout(manifold):
    torch.manual_seed(0)
    weight = torch.randn(8, 5, 3, 3).to(memory_format=torch.channels_last)
    constraint = Constraint(manifold, weight, Channels())
    constraint.project_(weight)
    g = torch.randn(8, 5, 3, 3)
    out = torch.empty_like(weight)
    constraint.gradient_into(weight, g, out, Workspace())
    again = g.to(memory_format=torch.channels_last)
    constraint.gradient_(weight, again)
    torch.testing.assert_close(out, again)


@pytest.mark.parametrize(
    ("make", "sums"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), True),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1), False),
        (lambda p: torch.optim.Adam(p, lr=0.1), True),
        (lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1), True),
        (lambda p: torch.optim.NAdam(p, lr=0.1), True),
        (lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9), False),
    ],
)
@pytest.mark.parametrize("manifold", [Sphere("filter"), Stiefel()], ids=lambda m: m.text())
def test_momenta_end_tangent_and_are_said_to_be_so_only_where_they_are(make, sums, manifold):
    """What `_sums_tangent` promises of torch's optimizers is looked at in their own state before it is used."""
    from weightspace.optim._manifolds import _sums_tangent, momentum_keys

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(5, 4, 3, bias=False))
    weight = model[0].weight
    optimizer = make(model.parameters())
    assert (id(weight) in _sums_tangent(optimizer)) is sums
    rules = ws.attach(optimizer, model, manifold.__class__(manifold.grouping, on=ws.on.convs))
    constraint = Constraint(manifold, weight, Channels())
    (key,) = momentum_keys(optimizer)
    for _ in range(4):
        before = weight.detach().clone()
        held = optimizer.state[weight].get(key)
        held = None if held is None else held.clone()
        weight.grad = torch.randn_like(weight)
        gradient = weight.grad.clone()
        optimizer.step()
        momentum = optimizer.state[weight][key]
        projected = momentum.clone()
        constraint.project_tangent_(weight.detach(), projected)
        torch.testing.assert_close(projected, momentum, atol=1e-5, rtol=1e-5)
        assert torch.equal(weight.grad, gradient)
        if held is not None and isinstance(optimizer, torch.optim.Adam):
            constraint.gradient_(before, gradient)
            expected = 0.9 * held + 0.1 * gradient
            constraint.project_tangent_(weight.detach(), expected)
            torch.testing.assert_close(momentum, expected, atol=1e-5, rtol=1e-5)
    assert rules.verify()
