"""The fast step on Stiefel: the reference's step, on the manifold after any number of steps, within its stated bounds."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch

from weightspace.manifolds import _stiefel_step
from weightspace.manifolds._moves import Motion, Moved, move
from weightspace.manifolds._stiefel_step import Rows, stiefel_move
from weightspace.manifolds.stiefel import Stiefel

SHAPES = [(1, 4, 9), (1, 9, 4), (1, 5, 5), (1, 150, 130), (1, 130, 150), (3, 4, 6), (2, 3, 5, 4)]


def excess(x: torch.Tensor) -> float:
    """|X^T X - I|_F, the largest of a batch, in float64; rows of wide matrices."""
    x = x.double()
    small = x @ x.mT if x.shape[-2] < x.shape[-1] else x.mT @ x
    return torch.linalg.matrix_norm(small - torch.eye(small.shape[-1])).max().item()


def stepped(manifold: Stiefel, x: torch.Tensor, d: torch.Tensor, **options: Any) -> Moved:
    moved = stiefel_move(manifold, x, d, Motion(**options))
    assert moved is not None
    return moved


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("retraction", ["polar", "qr"])
@pytest.mark.parametrize("metric", ["embedded", "canonical"])
def test_agrees_with_the_reference(shape: tuple[int, ...], retraction: Any, metric: Any) -> None:
    manifold = Stiefel(retraction=retraction, metric=metric)
    start = manifold.random_uniform(shape, like=torch.zeros(0, dtype=torch.float64))
    products = [(), tuple(range(len(shape) - 2))]
    for step_size, product, gain, size in itertools.product(("plain", "curvature"), products, (1.0, 0.9), (0.02, 2.0)):
        grad, momentum = torch.randn(2, *shape, dtype=torch.float64) * size
        results: list[tuple[torch.Tensor, torch.Tensor, Moved]] = []
        for step in (move, stiefel_move):
            x, d = start.clone(), momentum.clone()
            motion = Motion(
                rate=0.1, step_size=step_size, product=product, grad=grad, decay=0.8, gain=gain, distance_bound=0.7
            )
            moved = step(manifold, x, d, motion)
            assert moved is not None
            results.append((x, d, moved))
        (x, d, slow), (fast_x, fast_d, fast) = results
        torch.testing.assert_close(fast_x, x, rtol=0, atol=1e-12)
        torch.testing.assert_close(fast_d, d, rtol=0, atol=1e-13)
        torch.testing.assert_close(fast.squared, slow.squared, rtol=1e-10, atol=0)
        torch.testing.assert_close(fast.factor, slow.factor, rtol=1e-10, atol=0)
        assert excess(fast_x) < 1e-12
        assert fast.slack is None


@pytest.mark.parametrize("shape", [(1, 4, 9), (3, 4, 6)])
def test_a_given_factor_is_used(shape: tuple[int, ...]) -> None:
    manifold, d = Stiefel(), torch.randn(shape, dtype=torch.float64)
    x = manifold.random_uniform(shape, like=d)
    fast, slow = x.clone(), x.clone()
    motion = Motion(rate=0.3, step_size="curvature", factor=torch.full((1,), 3.0, dtype=torch.float64))
    stiefel_move(manifold, fast, d, motion)
    move(manifold, slow, d, motion)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-13)


def test_geodesics_are_left_to_the_reference() -> None:
    x, d = Stiefel().random_uniform((1, 4, 2)), torch.randn(1, 4, 2)
    before = x.clone(), d.clone()
    assert stiefel_move(Stiefel(), x, d, Motion(rate=0.1, geodesic=True, grad=torch.ones_like(d))) is None
    assert torch.equal(x, before[0])
    assert torch.equal(d, before[1])


def test_memory_that_cannot_be_viewed_as_one_batch() -> None:
    manifold = Stiefel("slice")
    weight = torch.randn(4, 3, 5, 3, dtype=torch.float64)
    x = weight.transpose(0, 1)
    x.copy_(manifold.project(x))
    d = torch.randn_like(x)
    expected = x.clone()
    move(manifold, expected, d, Motion(rate=0.1))
    stepped(manifold, x, d, rate=0.1)
    torch.testing.assert_close(weight.transpose(0, 1), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("is_wide", [True, False])
@pytest.mark.parametrize("size", [1, 63, 128, 129, 300])
def test_split_products_are_the_whole_products(is_wide: bool, size: int) -> None:
    rows = Rows(is_wide)
    wide = torch.randn(size, 310, dtype=torch.float64)
    u = wide if is_wide else wide.mT.contiguous()
    torch.testing.assert_close(rows.gram_excess(u), wide @ wide.mT - torch.eye(size))
    lower = torch.randn(size, size, dtype=torch.float64).tril()
    out = torch.empty_like(u)
    rows.lower_mixed(lower, u, out)
    torch.testing.assert_close(out if is_wide else out.mT, lower @ wide)


def test_no_matrix_of_the_larger_side_is_formed() -> None:
    x = torch.ones(1, 400_000, 2) / 400_000**0.5  # its square would take 640 GB
    x[0, ::2, 1] *= -1
    for manifold in (Stiefel(), Stiefel(retraction="qr", metric="canonical")):
        stepped(manifold, x, torch.randn_like(x) / 1000, rate=0.1, step_size="curvature")
        assert excess(x) < 2e-5  # sums of 400,000 terms in float32


@pytest.mark.parametrize("retraction", ["polar", "qr"])
@pytest.mark.parametrize("shape", [(1, 6, 20), (1, 20, 6), (4, 5, 7)])
def test_a_huge_step_falls_back_and_stays_on_the_manifold(retraction: Any, shape: tuple[int, ...]) -> None:
    manifold = Stiefel(retraction=retraction)
    for size in (1e1, 1e6, 1e25):
        x = manifold.random_uniform(shape)
        d = torch.zeros(shape)
        d[0, 0] = size * torch.randn(shape[-1])  # one row: a step of low rank, badly conditioned
        moved = stepped(manifold, x, d, rate=1.0)
        assert moved.fallbacks == 1
        assert excess(x) < 1e-6


@pytest.mark.parametrize("options", [{}, {"retraction": "qr"}, {"tolerance": 1e-3}, {"every": 3}])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_gives_nan_and_no_crash(options: dict[str, Any], bad: float) -> None:
    manifold = Stiefel(**options)
    x, d = manifold.random_uniform((2, 5, 8)), torch.randn(2, 5, 8)
    d[0, 1, 1] = bad
    slack = None
    for _ in range(4):
        slack = stepped(manifold, x, d, rate=0.01, step_size="curvature", slack=slack).slack
    assert x[0].isnan().all()
    assert excess(x[1]) < 1e-2


def test_a_zero_momentum_moves_nothing() -> None:
    x = Stiefel().random_uniform((1, 8, 30), like=torch.zeros(0, dtype=torch.float64))
    before = x.clone()
    stepped(Stiefel(), x, torch.zeros_like(x), rate=0.1, step_size="curvature")
    torch.testing.assert_close(x, before, rtol=0, atol=1e-14)


# ---------------------------------------------------------------------- long runs


def run(manifold: Stiefel, shape: tuple[int, ...], steps: int) -> float:
    """Steps with momentum on noise and a pull off the manifold; the largest violation that was seen on the way."""
    x = manifold.random_uniform(shape)
    d, pull = torch.zeros(shape), 0.2 * x.clone()
    worst = 0.0
    motion = Motion(rate=0.05, decay=0.9)
    for step in range(steps):
        motion.grad = torch.randn(shape) / 30 + pull
        moved = stiefel_move(manifold, x, d, motion)
        assert moved is not None
        if step % 50 == 0 or step > steps - 20:
            worst = max(worst, manifold.violation(x).max().item())
    return worst


@pytest.mark.parametrize("options", [{}, {"retraction": "qr"}, {"metric": "canonical"}])
def test_stays_on_the_manifold(options: dict[str, Any]) -> None:
    assert run(Stiefel(**options), (1, 8, 27), 2000) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"retraction": "qr"}, {"metric": "canonical"}])
@pytest.mark.parametrize("shape", [(1, 8, 27), (1, 16, 4)])
def test_stays_on_the_manifold_for_1e5_steps(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    assert run(Stiefel(**options), shape, 100_000) < 1e-6


# ---------------------------------------------------------------------- tolerance and every


@pytest.mark.parametrize("metric", ["embedded", "canonical"])
def test_the_violation_grows_as_derived(metric: Any) -> None:
    """F' = F + a (A F + F A^T) + a^2 V V^T without a correction, however far from the manifold."""
    manifold = Stiefel(metric=metric, every=1000)
    y = manifold.random_uniform((4, 9), like=torch.zeros(0, dtype=torch.float64))
    y += 0.02 * torch.randn_like(y)
    d, eye, a = torch.randn_like(y), torch.eye(4, dtype=torch.float64), 0.07
    product = d @ y.mT
    mixing = (product + product.mT) / 2 if metric == "embedded" else product.mT
    v = d - mixing @ y
    before = y @ y.mT - eye
    expected = before + a * (mixing @ before + before @ mixing.mT) + a**2 * v @ v.mT
    slack = torch.tensor([before.norm().item(), 0.0])
    moved = stepped(manifold, y, d, rate=a, slack=slack)
    torch.testing.assert_close(y @ y.mT - eye, expected, rtol=0, atol=1e-14)
    assert moved.slack is not None
    assert moved.slack[0] >= expected.norm()
    stated = before.norm() * (1 + 2 * a * mixing.norm()) + a**2 * v.norm() ** 2
    torch.testing.assert_close(moved.slack[0], stated.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("metric", ["embedded", "canonical"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 7, 20), (1, 20, 7), (6, 6), (3, 4, 5)])
@pytest.mark.parametrize(
    "options", [{"tolerance": 1e-4}, {"tolerance": 1e-2}, {"every": 7}, {"tolerance": 1e-2, "every": 3}]
)
def test_the_stated_bounds_hold(
    metric: Any, dtype: torch.dtype, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    manifold = Stiefel(metric=metric, **options)
    x = manifold.random_uniform(shape, like=torch.zeros(0, dtype=dtype))
    slack, corrections, steps = None, 0, 150
    for step in range(steps):
        # The same direction for a while, and one that points along x: errors of the manifold feed on themselves.
        if step % 30 == 0:
            noise = torch.randn(shape, dtype=dtype) / 20
        d = noise - (0.5 if step % 60 < 30 else -0.5) * x  # pyright: ignore[reportPossiblyUnboundVariable]  # set at 0
        moved = stepped(manifold, x, d, rate=0.1, step_size="curvature", slack=slack)
        slack = moved.slack
        assert slack is not None
        bound, age = slack.tolist()
        corrections += age == 0
        assert excess(x) <= bound
        assert manifold.violation(x).max() <= bound
        if manifold.tolerance is not None:
            assert manifold.violation(x).max() <= manifold.tolerance
        if manifold.every > 1:
            assert age < manifold.every
            if age == 0:
                assert excess(x) < 2e-6
    assert corrections >= steps // manifold.every if manifold.every > 1 else corrections > 0
    assert corrections < steps / 2 or manifold.tolerance == 1e-4  # which a single of these steps may exceed


def test_the_whole_tolerance_is_used_and_no_more() -> None:
    """One vector, whose norm grows by exactly what the bound says."""
    manifold = Stiefel(tolerance=1e-2)
    x, slack = manifold.random_uniform((1, 1, 6), like=torch.zeros(0, dtype=torch.float64)), None
    worst = 0.0
    for _ in range(400):
        d = torch.randn_like(x)
        d = manifold.project_tangent(x / x.norm(), d)
        slack = stepped(manifold, x, d / d.norm(), rate=0.01, slack=slack).slack
        worst = max(worst, manifold.violation(x).item())
    assert 0.98e-2 < worst <= 1e-2


def test_every_k_corrects_earlier_rather_than_leave_the_reach_of_a_correction() -> None:
    manifold = Stiefel(every=1000)
    x, d, slack = manifold.random_uniform((1, 5, 9)), torch.randn(1, 5, 9), None
    for _ in range(50):
        moved = stepped(manifold, x, d, rate=0.1, slack=slack)
        slack = moved.slack
        assert moved.fallbacks == 0
        assert excess(x) <= _stiefel_step.SAFE
    assert slack is not None
    assert slack[1] < 50


def test_unknown_or_foreign_slack_is_measured() -> None:
    manifold = Stiefel(tolerance=1e-3)
    x = manifold.random_uniform((1, 5, 9)) * 1.2
    moved = stepped(manifold, x, torch.zeros(1, 5, 9), rate=0.1)  # nothing known: measured, found far, corrected
    assert moved.slack is not None
    assert moved.slack[1] == 0
    assert excess(x) < 1e-6


def test_steps_resume_bit_exactly_with_their_slack() -> None:
    manifold = Stiefel(tolerance=3e-4, every=9)
    x, d, slack = manifold.random_uniform((1, 5, 9)), torch.zeros(1, 5, 9), None
    grads = torch.randn(40, 1, 5, 9) / 10
    saved = None
    for step, grad in enumerate(grads):
        if step == 20:
            assert slack is not None
            saved = x.clone(), d.clone(), slack.clone()
        slack = stepped(manifold, x, d, rate=0.1, grad=grad, decay=0.9, slack=slack).slack
    assert saved is not None
    x2, d2, slack2 = saved
    for grad in grads[20:]:
        slack2 = stepped(manifold, x2, d2, rate=0.1, grad=grad, decay=0.9, slack=slack2).slack
    assert torch.equal(x, x2)
    assert slack is not None
    assert slack2 is not None
    assert torch.equal(slack, slack2)


def test_looser_steps_descend_alike() -> None:
    """Brockett: minimize tr(X^T A X N), whose minimum is known; looseness does not move the minimum beyond itself."""
    values, weights = torch.arange(8.0, dtype=torch.float64), torch.tensor([2.0, 1.0], dtype=torch.float64)
    best = (values[:2] * weights).sum()
    for options in ({}, {"tolerance": 1e-3}, {"every": 5}):
        manifold = Stiefel(**options)
        x = manifold.random_uniform((8, 2), generator=torch.Generator().manual_seed(3), like=values)
        d, slack = torch.zeros_like(x), None
        for _ in range(600):
            grad = 2 * values[:, None] * x * weights
            slack = stepped(manifold, x, d, rate=0.02, grad=grad, decay=0.5, slack=slack).slack
        on = dataclasses.replace(manifold, tolerance=None, every=1).project(x)
        assert (on.mT @ (values[:, None] * on) @ torch.diag(weights)).trace() < best + 1e-3
