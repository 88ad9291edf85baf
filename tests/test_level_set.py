"""LevelSet: equal to the manifolds whose equations it is given, exact where they are linear, clear about bad functions."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import weightspace as ws
from manifold_cases import close, flat, order
from weightspace.errors import RuleError, SelectionError
from weightspace.manifolds import Constraint, LevelSet, Manifold, Sphere, Stiefel, parse
from weightspace.manifolds import _equations as equations
from weightspace.manifolds._flows import Solver

WIDE = torch.empty(0, dtype=torch.float64)


def unit_norm(q: torch.Tensor) -> torch.Tensor:
    return q.square().sum() - 1.0


def orthonormal_columns(q: torch.Tensor) -> torch.Tensor:
    rows, columns = torch.triu_indices(q.shape[1], q.shape[1])
    return (q.mT @ q - torch.eye(q.shape[1]).to(q))[rows, columns]


def fixed_sums(q: torch.Tensor) -> torch.Tensor:
    return q.sum(0) - 1.0


def capped_norm(q: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    return q.square().sum() + s.square().sum() - 4.0


TWINS = [
    pytest.param(LevelSet(unit_norm), Sphere("matrix"), (3, 2, 3), id="sphere"),
    pytest.param(LevelSet(orthonormal_columns), Stiefel(), (3, 4, 2), id="stiefel"),
]


def exact_sums(x: torch.Tensor) -> torch.Tensor:
    """The nearest matrices whose columns sum to 1."""
    return x - (x.sum(-2, keepdim=True) - 1.0) / x.shape[-2]


# ---------------------------------------------------------------- twins


@pytest.mark.parametrize(("m", "twin", "shape"), TWINS)
def test_points_tangents_and_steps_are_those_of_the_manifold_with_these_equations(
    m: LevelSet, twin: Manifold, shape: tuple[int, ...]
) -> None:
    x = twin.random_uniform(shape, like=WIDE)
    u, far = torch.randn_like(x), torch.randn_like(x)
    v = twin.project_tangent(x, u)
    assert m.dim(*shape[-2:]) == twin.dim(*shape[-2:])
    close(m.project_tangent(x, u), v)
    close(m.project_tangent(x, m.project_tangent(x, u)), v)
    close(m.gradient(x, u), v)
    close(m.project(far), twin.project(far), 1e-9)
    close(m.project(x), x)
    close(m.geodesic(x, 0.2 * v), twin.geodesic(x, 0.2 * v), 1e-9)
    close(m.geodesic(x, v, 0.0), x, 0.0)
    assert order(lambda t: flat(m.retract(x, t * v) - twin.geodesic(x, v, t))) > 2.8
    small = twin.geodesic(x, 1e-4 * v) * (1 + 1e-5)  # near the manifold a Newton step is the distance
    torch.testing.assert_close(m.violation(small), torch.full(shape[:1], 1e-5, dtype=torch.float64), rtol=1e-3, atol=0)
    assert bool(m.violation(x).max() < m.bound(x.dtype, *shape[-2:]))


@pytest.mark.parametrize(("m", "twin", "shape"), TWINS)
def test_flows_are_of_second_order_reversible_and_fall_back(
    m: LevelSet, twin: Manifold, shape: tuple[int, ...]
) -> None:
    x = twin.random_uniform(shape, like=WIDE)
    v = twin.random_tangent(x) / 3
    for part in ("point", "velocity"):
        assert (
            order(lambda t, p=part: flat(getattr(m.flow(x, v, t), p) - getattr(twin.flow(x, v, t, "geodesic"), p)))
            > 2.8
        )
    close(m.flow(x, v, 0.2, "geodesic").velocity, twin.flow(x, v, 0.2, "geodesic").velocity, 1e-8)
    there = m.flow(x, v, 0.3)
    back = m.flow(there.point, -there.velocity, 0.3)
    assert there.fallbacks == 0
    close(back.point, x)
    close(back.velocity, -v)
    fast = m.flow(x, 100 * v, 1.0, solver=Solver(iterations=6))
    assert fast.fallbacks == len(x)
    assert float(m.violation(fast.point).max()) < 1e-12
    assert fast.point.isfinite().all()


def test_rattle_with_the_equations_of_stiefel_is_rattle_on_stiefel():
    x = Stiefel().random_uniform((4, 5, 2), like=WIDE)
    v = Stiefel().random_tangent(x)
    ours, twin = LevelSet(orthonormal_columns).flow(x, v, 0.1), Stiefel().flow(x, v, 0.1, "rattle")
    close(ours.point, twin.point)
    close(ours.velocity, twin.velocity)


def test_the_law_on_a_sphere_is_that_of_von_mises_and_fisher():
    """exp(kappa x_0) on S^2 at kappa = 2: E x_0 = coth 2 - 1/2, with an error of h^2 and 4 sigma."""
    chains = 1000
    w = nn.Parameter(Sphere().random_uniform((chains, 1, 3), like=WIDE))
    group = {"params": [w], "manifold": LevelSet(unit_norm, "kernel"), "chains": True}
    sampler = ws.optim.ConstrainedLangevin([group], lr=0.09, temperature=0.5, num_data=1, seed=1)
    force = torch.zeros_like(w)
    force[..., 0] = -1.0
    total = torch.zeros(chains, dtype=torch.float64)
    for k in range(45):
        w.grad = force
        sampler.step()
        if k >= 20:
            total += w.detach()[:, 0, 0] / 25
    error = float(total.std()) / math.sqrt(chains)
    assert abs(float(total.mean()) - (1 / math.tanh(2.0) - 0.5)) < 4 * error + 0.005
    sampler.verify()


# ---------------------------------------------------------------- linear equations


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_fixed_column_sums_are_exact(dtype: torch.dtype):
    m = LevelSet(fixed_sums)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    tolerance = 1e-13 if dtype == torch.float64 else 4 * torch.finfo(dtype).eps
    given_x = x.to(dtype)
    close(m.project(given_x).double(), exact_sums(given_x.double()), tolerance)
    assert m.project(given_x).dtype == m.project_tangent(given_x, given_x).dtype == dtype
    at = m.project(x)
    v = m.project_tangent(at, torch.randn_like(x))
    close(v.sum(-2), torch.zeros(2, 3, dtype=x.dtype))
    close(m.geodesic(at, v, 2.0), at + 2 * v, 1e-11)
    flow = m.flow(at, v, 10.0)
    close(flow.point, at + 10 * v, 1e-12)
    close(flow.velocity, v, 1e-12)
    assert flow.fallbacks == 0


@pytest.mark.parametrize("make", ["SubmanifoldSGD", "SubmanifoldAdam", "attach", "ConstrainedLangevin"])
def test_every_optimizer_keeps_the_sums(make: str):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    manifold = LevelSet(fixed_sums, on=ws.on.linears)
    groups = ws.param_groups(model, {ws.on.linears: manifold})
    keeper = None
    if make == "attach":
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        keeper = ws.attach(optimizer, model, manifold)
    elif make == "ConstrainedLangevin":
        optimizer = keeper = ws.optim.ConstrainedLangevin(groups, lr=0.01, temperature=1.0, num_data=100, seed=0)
    else:
        optimizer = keeper = getattr(ws.optim, make)(groups, lr=0.01)
    x = torch.randn(32, 6)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), torch.arange(32) % 3)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    keeper.verify()
    close(model[2].weight.detach().sum(0), torch.ones(8), 1e-5)
    assert make == "ConstrainedLangevin" or losses[-1] < losses[0]


# ---------------------------------------------------------------- slack


def test_slack_completes_a_weight_that_is_within_and_others_are_moved():
    m = LevelSet(capped_norm, "filter", slack=1)
    assert m.slack_count == 1
    assert m.dim(1, 5) == 4
    x = torch.tensor([[[1.0, 1.0]], [[0.0, 0.0]], [[2.0, 0.0]]], dtype=torch.float64)
    row = m.lift(x)
    torch.testing.assert_close(
        row[..., -1, -1], torch.tensor([math.sqrt(2), 2.0, 0.0], dtype=torch.float64), atol=1e-6, rtol=0
    )
    assert float(m.shadow_violation(x).max()) < 1e-9
    beyond = torch.tensor([[[3.0, 4.0]]], dtype=torch.float64)
    assert float(m.shadow_violation(beyond)) > 0.1
    close(m.shadow_project(beyond), 0.4 * beyond, 1e-6)
    with pytest.raises(RuleError, match="no slack variables were found that complete the weight"):
        m.lift(beyond)


def test_a_norm_cap_holds_while_the_sampler_runs_and_its_free_law_is_known():
    """A point of S^3 of radius 2 whose fourth coordinate is hidden: E |w|^2 = 3/4 of 4, every coordinate 1 each."""
    chains = 1000
    w = nn.Parameter(
        0.5 * torch.randn(chains, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    )
    group = {"params": [w], "manifold": LevelSet(capped_norm, "kernel", slack=1), "chains": True}
    sampler = ws.optim.ConstrainedLangevin([group], lr=0.25, temperature=1.0, num_data=1, seed=2)
    for _ in range(40):
        w.grad = torch.zeros_like(w)
        sampler.step()
    sampler.verify()
    square = w.detach().square().sum((-2, -1))
    assert float(square.max()) <= 4.0 + 1e-9
    assert abs(float(square.mean()) - 3.0) < 4 * float(square.std()) / math.sqrt(chains)


# ---------------------------------------------------------------- names and values


def test_it_is_a_value_named_by_its_function():
    m = LevelSet(fixed_sums, "filter")
    assert m == LevelSet("fixed_sums", "filter") == parse(m.text()) == pickle.loads(pickle.dumps(m)) == copy.copy(m)
    assert hash(m) == hash(LevelSet(fixed_sums, "filter"))
    assert m != LevelSet(fixed_sums)
    assert m.text() == "levelset(fixed_sums, grouping=filter)"
    assert LevelSet(capped_norm, slack=2).text() == "levelset(capped_norm, slack=2)"
    assert parse("levelset(capped_norm, slack=2)") == LevelSet(capped_norm, slack=2)
    assert str(LevelSet(fixed_sums, name="sums").text()) == "levelset(sums)"
    assert LevelSet(lambda q: q.sum(0), name="zero_sums").name == "zero_sums"


def test_names_that_the_program_has_not_defined_are_never_looked_for_elsewhere():
    LevelSet(fixed_sums)
    for text in ("levelset(os)", "levelset(fixd_sums)", "levelset(system)"):
        with pytest.raises(RuleError, match="names a function that this program has not defined"):
            parse(text)
    with pytest.raises(RuleError, match="the nearest is 'fixed_sums'"):
        parse("levelset(fixd_sums)")
    with pytest.raises(RuleError, match=r"write it as 'levelset\(name\)'"):
        parse("levelset(3)")


def test_a_name_has_one_function_and_a_new_definition_replaces_the_old_one():
    def first(q: torch.Tensor) -> torch.Tensor:
        return q.sum(0)

    LevelSet(first, name="taken")
    with pytest.raises(RuleError, match="has that name; pass another one as name="):
        LevelSet(unit_norm, name="taken")
    LevelSet(first, name="taken")
    with pytest.raises(RuleError, match="called '<lambda>'; pass name= with a word"):
        LevelSet(lambda q: q.sum(0))


def test_a_state_names_it_and_resumes():
    w = nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    twin = nn.Parameter(torch.zeros(4, 3))
    first, second = (
        ws.optim.SubmanifoldSGD([{"params": [p], "manifold": LevelSet(fixed_sums)}], lr=0.1, momentum=0.9)
        for p in (w, twin)
    )
    for k in range(4):
        if k == 2:
            with torch.no_grad():
                twin.copy_(w)
            second.load_state_dict(copy.deepcopy(first.state_dict()))
        for p, optimizer in ((w, first), (twin, second)):
            p.grad = torch.sin(torch.arange(12.0).view(4, 3) + k)
            optimizer.step()
    assert torch.equal(w, twin)


# ---------------------------------------------------------------- bad functions, any shape


def not_torch(q: torch.Tensor) -> float:
    return float(q.sum())


def cut_off(q: torch.Tensor) -> torch.Tensor:
    return q.detach().sum(0)


def not_a_number(q: torch.Tensor) -> torch.Tensor:
    return torch.log(-q.square().sum())


def twice(q: torch.Tensor) -> torch.Tensor:
    return torch.stack([q.sum(), 2 * q.sum()])


def too_many(q: torch.Tensor) -> torch.Tensor:
    return q - 1.0


def a_pair(q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return q.sum(), q.sum()


def float32_constant(q: torch.Tensor) -> torch.Tensor:
    return torch.ones(1, q.shape[0]) @ q


def for_three_rows(q: torch.Tensor) -> torch.Tensor:
    return (q - torch.zeros(3, 1)).sum().unsqueeze(0)


def nothing(q: torch.Tensor) -> torch.Tensor:
    return q.flatten()[:0]


def no_solution(q: torch.Tensor) -> torch.Tensor:
    return q.square().sum() + 1.0


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (not_torch, "cannot be computed and differentiated on 4 x 3 points"),
        (cut_off, r"3 equations depend on each other \(the Jacobian has rank 0\)"),
        (not_a_number, "values or derivatives are NaN or infinite"),
        (twice, r"2 equations depend on each other \(the Jacobian has rank 1\)"),
        (too_many, "12 equations leave 12 numbers nothing to move in"),
        (a_pair, "returned tuple; it must return a tensor of residuals|must only return Tensors"),
        (float32_constant, "in torch.float64"),
        (for_three_rows, "on 4 x 3 points"),
        (nothing, "returned no residuals"),
    ],
)
def test_functions_that_are_no_equations_are_told_when_they_meet_a_weight(function, sentence):
    with pytest.raises(SelectionError, match=sentence):
        Constraint(LevelSet(function), torch.zeros(4, 3), ws.kernels.Channels(), "weight")


def test_points_without_solution_tangent_space_or_number_are_told():
    with pytest.raises(RuleError, match=r"levelset\(no_solution\): the projection failed for 2 of 2 points"):
        LevelSet(no_solution).project(torch.ones(2, 4, 3))
    with pytest.raises(RuleError, match="has not full rank at a point"):
        LevelSet(unit_norm).project_tangent(torch.zeros(1, 2, 2), torch.ones(1, 2, 2))
    with pytest.raises(RuleError, match="they hold NaN or infinity"):
        LevelSet(unit_norm).project(torch.full((1, 2, 2), math.nan))
    assert math.isnan(float(LevelSet(unit_norm).violation(torch.full((2, 2), math.nan))))
    assert math.isinf(float(LevelSet(unit_norm).violation(torch.zeros(2, 2))))
    close(LevelSet(unit_norm).project(torch.zeros(1, 2, 2)).norm(), torch.ones(()), 1e-6)
    with pytest.raises(RuleError, match="no way to draw uniform points"):
        LevelSet(unit_norm).random_uniform((1, 2, 2))
    assert LevelSet(unit_norm).stein_field(torch.eye(2) / 2**0.5, torch.ones(2, 2))[1].isnan()


@pytest.mark.parametrize("bad", [None, 3])
def test_what_is_no_function_is_refused(bad):
    with pytest.raises(RuleError, match=r"pass one of a point|pass a function of a point"):
        LevelSet(bad)


@settings(max_examples=10, deadline=None)
@given(
    lead=st.lists(st.integers(0, 3), max_size=2),
    n=st.integers(2, 6),
    p=st.integers(1, 4),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_any_shape_and_scale(lead: list[int], n: int, p: int, scale: float):
    m = LevelSet(fixed_sums)
    x = scale * torch.randn(*lead, n, p, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = m.project(x)
    assert y.shape == x.shape
    assert m.violation(y).shape == tuple(lead)
    close(
        torch.cat([(y - exact_sums(x)).flatten() / max(1.0, scale), torch.zeros(1, dtype=x.dtype)]),
        torch.zeros(1, dtype=x.dtype),
        1e-9,
    )
    assert m.dim(n, p) == (n - 1) * p


def test_a_mutant_that_steps_along_the_normals_of_the_new_point_is_not_reversible(monkeypatch):
    """What makes RATTLE reversible is J(x)^T in the position's equation: with J(y)^T it is a projection."""

    def projection(eqs, start, normals, tolerance, iterations):
        del normals
        return equations.nearest_points(eqs, start, tolerance, iterations)

    x = Stiefel().random_uniform((3, 4, 2), like=WIDE)
    v = Stiefel().random_tangent(x)
    m = LevelSet(orthonormal_columns)
    monkeypatch.setattr("weightspace.manifolds._level_set_motion.along_normals", projection)
    there = m.flow(x, v, 0.3)
    back = m.flow(there.point, -there.velocity, 0.3)
    assert float((back.point - x).abs().max()) > 1e-4
