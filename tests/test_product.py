"""Products: who gets which channels, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightspace.errors import RuleError, SelectionError
from weightspace.kernels import Channels
from weightspace.manifolds import Constraint, Product, Sphere, Stiefel, ZeroMeanSphere, parse
from weightspace.manifolds._moves import Motion, curvature_factor

PARTS = (Sphere("slice"), Sphere("slice", radius=2.0), Sphere("slice", radius=3.0))


@given(
    count=st.integers(3, 40),
    shares=st.none() | st.tuples(*[st.floats(0.01, 100)] * 3),
    assignment=st.sampled_from(["fixed", "random"]),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_every_channel_goes_to_one_part_and_no_part_gets_nothing(count, shares, assignment, seed, epoch):
    product = Product(PARTS, shares=shares, assignment=assignment, seed=seed)
    parts = product.assign(count, "layer.weight", epoch)
    assert sorted(torch.cat(parts).tolist()) == list(range(count))
    assert all(len(p) >= 1 for p in parts)
    expected = [count * share / sum(shares or (1, 1, 1)) for share in shares or (1, 1, 1)]
    if min(expected) >= 1:  # else one channel is taken from the others
        assert all(abs(len(p) - e) < 1 + 1e-9 for p, e in zip(parts, expected, strict=True))
    again = product.assign(count, "layer.weight", epoch)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))


def test_fixed_assignments_are_in_order_and_random_ones_differ_by_weight_seed_and_draw():
    fixed = Product(PARTS)
    assert [p.tolist() for p in fixed.assign(6)] == [[0, 1], [2, 3], [4, 5]]
    draws = {
        tuple(Product(PARTS, assignment="random", seed=seed).assign(30, name, epoch)[0].tolist())
        for seed in (0, 1)
        for name in ("a", "b")
        for epoch in (0, 1)
    }
    assert len(draws) == 8


@pytest.mark.parametrize(
    ("over", "shape", "norms"),
    [
        ("input", (4, 6, 3, 3), lambda w: w.norm(dim=(2, 3))[:, [0, 2, 4]].mean(0)),
        ("output", (6, 4, 3, 3), lambda w: w.norm(dim=(2, 3))[[0, 2, 4]].mean(1)),
        ("slice", (2, 3, 3, 3), lambda w: w.norm(dim=(2, 3)).flatten()[[0, 2, 4]]),
    ],
)
def test_each_part_acts_on_its_own_channels(over, shape, norms):
    weight = torch.randn(shape)
    constraint = Constraint(Product(PARTS, over=over), weight, Channels())
    constraint.project_(weight)
    torch.testing.assert_close(norms(weight), torch.tensor([1.0, 2.0, 3.0]))
    assert constraint.violation(weight) < 1e-6
    weight[0, 0] *= 1.5
    assert constraint.violation(weight) == pytest.approx(0.5, rel=1e-5)


def test_a_product_has_one_step_size_over_all_factors():
    weight = torch.randn(4, 6, 3, 3, dtype=torch.float64)
    constraint = Constraint(Product((Sphere("slice"), Stiefel("slice"))), weight, Channels())
    constraint.project_(weight)
    gradient = torch.randn(4, 6, 3, 3, dtype=torch.float64)
    tangent = gradient.clone()
    constraint.gradient_(weight, tangent)
    moved = constraint.move(weight, gradient, Motion(0.1, "curvature"))
    torch.testing.assert_close(moved.squared, tangent.square().sum())
    torch.testing.assert_close(moved.factor, curvature_factor(tangent.square().sum(), 1.0, 0.0))
    assert constraint.violation(weight) < 1e-12


def test_texts_round_trip():
    product = Product(
        (Sphere("slice", radius=2.0), ZeroMeanSphere("slice")),
        over="slice",
        shares=(1, 2),
        assignment="random",
        seed=3,
        every=10,
    )
    assert parse(product.text()) == product
    assert "sphere(slice, radius=2.0)" in product.text()
    assert str(product).startswith("Product(sphere(slice, radius=2.0), zeromeansphere(slice), over=slice")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Product((Sphere("slice"),)), "pass at least two manifolds"),
        (lambda: Product("sphere(slice)"), "pass at least two manifolds"),
        (lambda: Product((Product(PARTS), Sphere())), "that are no products themselves"),
        (lambda: Product((3, Sphere())), "got the part 3"),
        (lambda: Product(PARTS, shares=(1, 2)), "2 shares for 3 parts"),
        (lambda: Product(PARTS, shares=(1, 2, 0)), "shares=0"),
        (lambda: Product(PARTS, over="rows"), "over='rows'"),
        (lambda: Product(PARTS, every=5), "every=5 with assignment='fixed'"),
        (lambda: Product(PARTS).project(torch.ones(3, 3)), "A Product has no points of one kind"),
    ],
)
def test_refusals(make, said):
    with pytest.raises(RuleError, match=said):
        make()


def test_weights_that_cannot_be_shared_out_are_named():
    with pytest.raises(SelectionError, match=r"conv has 2 input channels or slices for 3 parts"):
        Constraint(Product(PARTS), torch.randn(4, 2, 3, 3), Channels(), "conv")
    with pytest.raises(SelectionError, match="grouped kernel"):
        Constraint(Product(PARTS), torch.randn(8, 4, 3, 3), Channels(0, 2), "conv")
    with pytest.raises(SelectionError, match="1x1 kernel"):
        Constraint(Product(PARTS), torch.randn(8, 4, 1, 1), Channels(), "conv")
