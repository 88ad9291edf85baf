"""The sampler samples what it says: known laws, exact laws of the discrete steps, orders in the time step, mutants."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from langevin_cases import (
    LAWS,
    ORDER,
    SCHEMES,
    UNDERDAMPED,
    Make,
    Parts,
    budget,
    check_circle,
    check_gaussian,
    check_law,
    check_stein,
    check_symplectic,
    check_uniform,
    experiment,
    known,
    linear_law,
    rattle,
    spoiled,
    within,
)
from weightspace.files import read_json
from weightspace.manifolds import (
    Circle,
    Euclidean,
    Manifold,
    Oblique,
    Orthogonal,
    Product,
    Sphere,
    Stiefel,
    ZeroMeanSphere,
)
from weightspace.manifolds._flows import Flow
from weightspace.optim import ConstrainedLangevin

D = torch.float64

# manifold, shape of one chain's weight, dimension
SPACES: dict[str, tuple[Manifold, tuple[int, ...], int]] = {
    "euclidean": (Euclidean(), (2, 3), 6),
    "circle, k=1": (Circle(radius=1.0), (1, 2), 2),
    "circle, k=2": (Circle(radius=1.0, slack=2), (1, 2), 4),
    "circle, k=3": (Circle(radius=1.0, slack=3), (1, 2), 6),
    "sphere": (Sphere(), (2, 3), 4),
    "zero-mean sphere": (ZeroMeanSphere(), (1, 5), 3),
    "oblique": (Oblique(), (2, 4), 6),
    "stiefel, tall": (Stiefel(), (4, 2), 5),
    "stiefel, wide": (Stiefel(), (2, 4), 5),
    "stiefel, square": (Stiefel(), (3, 3), 3),
    "orthogonal, closed form": (Orthogonal("matrix"), (3, 3), 3),
    "orthogonal, RATTLE": (Orthogonal("matrix"), (4, 4), 6),
    "product": (Product((Sphere(), Stiefel()), over="output"), (4, 3), 7),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------------------------------------------------- exact values


def test_exact_values_are_those_of_the_methods_page():
    exact = {name: [round(o.exact, 6) for o in law.observables] for name, law in LAWS.items()}
    bessel = [float(torch.special.i1(torch.tensor(2.0, dtype=D)) / torch.special.i0(torch.tensor(2.0, dtype=D)))]
    assert exact["Circle, k = 1"][0] == 0.697775 == round(bessel[0], 6)
    assert exact["Circle, k = 2"][0] == round(1 / math.tanh(2) - 0.5, 6) == 0.537315
    assert exact["Sphere S², vMF"] == [0.537315, 0.462685]
    assert round(exact["Stiefel 3 x 3"][0], 5) == 0.43626 == round(exact["Orthogonal 3 x 3"][0], 5)


@pytest.mark.parametrize("name", [name for name in LAWS if "Euclidean" not in name])
def test_exact_values_are_those_of_weighted_uniform_points(name):
    """Independent of every integral: `E f = E_uniform [f exp(-V / tau)] / E_uniform exp(-V / tau)`."""
    law = LAWS[name]
    uniform = experiment.start(law, 40_000, 0)
    if isinstance(law.manifold, Circle):  # the shadow of a uniform point
        points = torch.randn(*uniform.shape, 1 + law.manifold.slack, dtype=D)
        uniform = (points / points.norm(dim=-1, keepdim=True))[..., 0]
    gradient = law.gradient(uniform)
    degree = 2 if "Watson" in name else 1  # V is homogeneous
    weight = torch.exp(-(gradient * uniform).flatten(1).sum(1) / degree / law.tau)
    for seen in law.observables:
        values = seen.of(uniform)
        mean = float((weight * values).mean() / weight.mean())
        error = float((weight * (values - mean)).std() / weight.mean() / len(values) ** 0.5)
        assert error < 1e-2
        within(mean, seen.exact, error)


def test_rotations_by_quaternions():
    """SO(3) matrix Fisher by a grid over unit quaternions, in Hopf coordinates: no formula for angles is used."""
    s, a, b = torch.meshgrid(
        (torch.arange(120, dtype=D) + 0.5) / 120,
        (torch.arange(32, dtype=D) + 0.5) * 2 * math.pi / 32,
        (torch.arange(32, dtype=D) + 0.5) * 2 * math.pi / 32,
        indexing="ij",
    )
    z, x, y = s.sqrt() * a.sin(), (1 - s).sqrt() * b.cos(), (1 - s).sqrt() * b.sin()
    diagonal = torch.stack([1 - 2 * (y**2 + z**2), 1 - 2 * (x**2 + z**2), 1 - 2 * (x**2 + y**2)])
    density = diagonal.sum(0).exp()
    for entry in diagonal:
        assert float((entry * density).sum() / density.sum()) == pytest.approx(0.43626, abs=2e-4)
    density = (2 * (diagonal[0] + diagonal[1])).exp()
    found = float((diagonal[:2].mean(0) * density).sum() / density.sum())
    assert found == pytest.approx(known.two_columns_mean(2.0), abs=3e-4)


def test_laws_of_discrete_steps_have_the_orders_of_their_schemes():
    """On the circle no number is drawn: BAOA is all but exact, and the first-order bias of OBA is a colder temperature."""
    exact = known.on_sphere(1, lambda c: c, lambda c: 2.0 * c)
    bias = {
        s: [known.circle_law(s, h, 0.5)["E θ"] - exact for h in ((0.05, 0.1) if s == "overdamped" else (0.2, 0.4))]
        for s in SCHEMES
    }
    assert abs(bias["BAOA"][0]) < 1e-5
    assert math.log2(bias["OBABO"][1] / bias["OBABO"][0]) == pytest.approx(2.0, abs=0.1)
    assert bias["OBA"][0] == pytest.approx(0.0276, abs=1e-4)  # at h = 0.2; the methods page has 0.029
    small = [(known.circle_law("overdamped", h, 0.5)["E θ"] - exact) / h for h in (0.0125, 0.025)]
    assert small[0] == pytest.approx(small[1], rel=0.1)
    # tau (1 + c) / 2 = tau (1 - gamma h / 2 + ...): the slope of the bias is -tau / 2 times d E / d tau
    slope = (
        0.25
        * (known.on_sphere(1, lambda c: c, lambda c: c / 0.501) - known.on_sphere(1, lambda c: c, lambda c: c / 0.499))
        / -0.002
    )
    first, second = ((known.circle_law("OBA", h, 0.5)["E θ"] - exact) / h for h in (0.1, 0.05))
    assert 2 * second - first == pytest.approx(slope, rel=0.01)


def test_variances_of_discrete_steps_are_the_textbooks():
    for h in (0.1, 0.5):
        c = math.exp(-h)
        assert linear_law("BAOA", h, 4.0, 0.5, c) == pytest.approx((0.125, 0.5))  # positions exact, kicks still to come
        assert linear_law("OBABO", h, 4.0, 0.5, c)[0] == pytest.approx(0.125 / (1 - h * h))
        assert linear_law("OBA", h, 4.0, 0.5, c)[0] == pytest.approx(0.125 * (1 + c) / 2 / (1 - 2 * h * h / (1 + c)))
        assert linear_law("overdamped", h / 5, 4.0, 0.5, c)[0] == pytest.approx(0.125 / (1 - 2 * h / 5))


# ---------------------------------------------------------------------------------------------------------- the sampler


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", LAWS)
def test_known_laws(name, scheme):
    check_law(name, scheme, ConstrainedLangevin)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_circle_steps_have_the_law_that_was_computed(scheme):
    check_circle(scheme, ConstrainedLangevin, 0.2 if scheme == "overdamped" else 0.4)


@pytest.mark.parametrize(("friction", "slow"), [(0.1, 16), (8.0, 8), (math.inf, 6)])
@pytest.mark.parametrize("scheme", UNDERDAMPED)
def test_little_and_much_friction(scheme, friction, slow):
    check_circle(scheme, ConstrainedLangevin, 0.4, friction, slow)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_free_weights_have_the_variances_that_were_computed(scheme):
    """Anisotropic precision; the positions of BAOA have exactly the right variance at any time step."""
    optimizer = check_gaussian(scheme, ConstrainedLangevin)
    found = optimizer.temperatures()[0]
    h = 0.1 if scheme == "overdamped" else 0.5
    expected = [linear_law(scheme, h, k, 0.5, math.exp(-h)) for k in (1.0, 4.0)]
    if scheme != "overdamped":
        assert found.kinetic / 6 == pytest.approx(sum(e[1] for e in expected) / 2, rel=0.02)
    # Fields that point away from where the weights were: <grad V, x - a> = k x^2 on average
    assert found.configurational / 6 == pytest.approx((expected[0][0] + 4 * expected[1][0]) / 2, rel=0.03)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_noise_of_minibatches_heats_and_the_thermometer_shows_it(scheme):
    optimizer = check_gaussian(scheme, ConstrainedLangevin, heat=1.5)
    found = optimizer.temperatures()[0]
    temperature = found.configurational if scheme == "overdamped" else found.kinetic
    assert temperature > 1.1 * found.target
    if scheme != "overdamped":
        assert found.kinetic_error < 0.02 * found.target


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", SPACES)
def test_equipartition_and_moments_of_the_uniform_law(name, scheme):
    """At any time step: `E |v|^2 = tau dim M`; `E X^2 = 1/m`, `E X^4 = 3/(m (m + 2))`; arcsine law and uniform on [-r, r]."""
    manifold, shape, dim = SPACES[name]
    check_uniform(manifold, shape, dim, scheme, ConstrainedLangevin)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("slack", "cumulative"),
    [(1, lambda t: 1 - torch.acos(t / 0.3) / math.pi), (2, lambda t: (1 + t / 0.3) / 2)],
    ids=["arcsine", "uniform"],
)
def test_free_circles_have_arcsine_or_uniform_law(scheme, slack, cumulative):
    """Kolmogorov's distance of independent chains after some time, all of which began at one point."""
    count, h = 5_000, 0.5
    q = torch.nn.Parameter(torch.full((count, 1), 0.1, dtype=D))
    lr = 0.02 if scheme == "overdamped" else h * h
    optimizer = ConstrainedLangevin(
        [{"params": [q], "manifold": Circle(radius=0.3, slack=slack)}],
        lr=lr, temperature=0.5, num_data=1, scheme=scheme, seed=0,
    )  # fmt: skip
    q.grad = torch.zeros_like(q)
    for _ in range(60):
        optimizer.step()
    steps = cumulative(q.detach().flatten().sort().values)
    ranks = torch.arange(count + 1, dtype=D) / count
    distance = torch.maximum((steps - ranks[:-1]).abs().max(), (steps - ranks[1:]).abs().max())
    assert float(distance) < 1.95 / count**0.5  # exceeded with probability 0.001


@pytest.mark.parametrize("shape", [(4, 2), (2, 4), (3, 3)], ids=["tall", "wide", "square"])
def test_the_identity_of_stein_on_stiefel(shape):
    check_stein(shape, ConstrainedLangevin)


@pytest.mark.parametrize("flow", ["rattle", "geodesic"])
@pytest.mark.parametrize("name", ["Stiefel 3 x 2 (tall)", "Stiefel 2 x 3 (wide)", "Orthogonal 3 x 3"])
def test_both_flows_sample_the_same_law(name, flow):
    check_law(name, "BAOA", lambda *a, **o: ConstrainedLangevin(*a, flow=flow, **o))


@pytest.mark.parametrize("manifold", [Stiefel(), Orthogonal("matrix")], ids=["stiefel", "orthogonal"])
def test_long_noise_turns_no_rotation_into_a_reflection(manifold):
    q = torch.nn.Parameter(experiment.start(LAWS["Stiefel 3 x 3"], 500, 0))
    optimizer = ConstrainedLangevin(
        [{"params": [q], "manifold": manifold, "chains": True}],
        lr=0.5, temperature=2.0, num_data=1, scheme="overdamped", seed=0,
    )  # fmt: skip
    q.grad = torch.zeros_like(q)
    for _ in range(5):
        optimizer.step()
    assert torch.linalg.det(q.detach()).min() > 0.999
    assert optimizer.verify()


# ---------------------------------------------------------------------------------------------------------- reference


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", [n for n in SPACES if not n.startswith("circle")])
def test_steps_are_those_of_the_reference(name, scheme):
    """The same noise: the same path, whatever was merged or made fast."""
    manifold, shape, _ = SPACES[name]
    force = torch.randn(shape, dtype=D)
    ends: list[torch.Tensor] = []
    for make in (ConstrainedLangevin, Parts):
        law = known.Law("", manifold, shape, 0.3, "", lambda q: 0.5 * q**2 + force, ())
        q = torch.nn.Parameter(experiment.start(law, 3, 5))
        group = {"params": [q], "manifold": manifold, "chains": True}
        lr = 0.05 if scheme == "overdamped" else 0.04
        optimizer = make([group], lr=lr, momentum=0.8, temperature=0.6, num_data=2, scheme=scheme, seed=1)
        for _ in range(12):
            q.grad = law.gradient(q.detach())
            optimizer.step()
        ends += [q.detach(), optimizer.state[q]["velocity"]]
    assert float((ends[0] - ends[2]).abs().max()) < 1e-9
    assert float((ends[1] - ends[3]).abs().max()) < 1e-9


# ---------------------------------------------------------------------------------------------------------- flows


def tangent(m: Manifold, n: int, p: int, size: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    x = m.random_uniform((4, n, p), generator=torch.Generator().manual_seed(2), like=torch.empty(0, dtype=D))
    v = m.random_tangent(x, generator=torch.Generator().manual_seed(3))
    return x, v * (size / v.flatten(1).norm(dim=1)[:, None, None])


FLOWS = [
    (Euclidean(), 2, 3, "auto"),
    (Circle(radius=1.0, slack=2), 2, 3, "auto"),
    (Sphere(radius=2.0), 1, 5, "auto"),
    (ZeroMeanSphere(), 1, 5, "auto"),
    (Oblique(), 3, 4, "auto"),
    (Oblique(by="column"), 3, 4, "auto"),
    *((m, n, p, how) for how in ("rattle", "geodesic") for m, n, p in (
        (Stiefel(), 5, 2), (Stiefel(), 2, 5), (Stiefel(), 4, 4), (Orthogonal("matrix"), 3, 3), (Orthogonal("matrix"), 5, 5)
    )),
]  # fmt: skip


@pytest.mark.parametrize(("m", "n", "p", "how"), FLOWS, ids=lambda v: v.text() if isinstance(v, Manifold) else str(v))
def test_flows_are_reversible_and_preserve_volume(m, n, p, how):
    x, v = tangent(m, n, p)
    check_symplectic(lambda manifold, at, along, t: manifold.flow(at, along, t, how), m, x, v, 0.7)


@pytest.mark.parametrize("shape", [(5, 2), (2, 5), (4, 4)])
def test_rattle_is_the_loop_over_whole_matrices(shape):
    m = Stiefel()
    x, v = tangent(m, *shape)
    fast, slow = m.flow(x, v, 0.5, "rattle"), rattle(m, x, v, 0.5)
    assert float((fast.point - slow.point).abs().max()) < 1e-12
    assert float((fast.velocity - slow.velocity).abs().max()) < 1e-12
    assert fast.fallbacks == 0


@pytest.mark.parametrize("name", [n for n in SPACES if n != "product"])
def test_divergences_of_stein_fields(name):
    """Against the trace of derivatives along an orthonormal frame, by differences."""
    manifold, shape, dim = SPACES[name]
    if isinstance(manifold, Circle):
        shape = (shape[1], 1 + manifold.slack)
    if name == "sphere":
        shape, dim = (1, 3), 2
    x = manifold.random_uniform((1, *shape), like=torch.empty(0, dtype=D))
    a = torch.randn_like(x)
    basis = torch.eye(x.numel(), dtype=D).view(-1, *shape)
    tangents = manifold.project_tangent(x.expand_as(basis), basis).flatten(1)
    frame = torch.linalg.svd(tangents)[2][: int(torch.linalg.matrix_rank(tangents, atol=1e-9))]
    assert len(frame) == dim
    total, step = 0.0, 1e-5
    for e in frame.view(-1, 1, *shape):
        ahead, behind = (manifold.stein_field(manifold.geodesic(x, e, s), a)[0] for s in (step, -step))
        total += float(((ahead - behind) / (2 * step) * e).sum())
    assert total == pytest.approx(float(manifold.stein_field(x, a)[1]), abs=1e-7)


# ---------------------------------------------------------------------------------------------------------- mutants

OBLIQUE, TALL = SPACES["oblique"], SPACES["stiefel, tall"]
MUTANTS: list[tuple[str, str, Callable[[Make], Any]]] = [
    ("tau for its root", "law of circles", lambda make: check_law("Circle, k = 1", "BAOA", make)),
    ("tau for its root", "law of matrices", lambda make: check_law("Stiefel 3 x 2 (tall)", "BAOA", make)),
    ("tau for its root", "overdamped law", lambda make: check_law("Sphere S², vMF", "overdamped", make)),
    ("tau for its root", "equipartition", lambda make: check_uniform(*TALL, "OBABO", make)),
    ("noise that is not projected", "equipartition on spheres", lambda make: check_uniform(*OBLIQUE, "BAOA", make)),
    ("gradient of the step before", "law of free weights",
     lambda make: check_law("Euclidean, two wells", "BAOA", make, 0.2, 4.0)),
    ("gradient of the step before", "variances", lambda make: check_gaussian("BAOA", make)),
    ("overwritten rotation", "law of circles", lambda make: check_law("Circle, k = 1", "BAOA", make)),
    ("OBA sold as BAOA", "law of circles", lambda make: check_circle("BAOA", make)),
    ("OBA sold as BAOA", "variances", lambda make: check_gaussian("BAOA", make)),
    ("OBA sold as BAOA", "law of spheres", lambda make: check_law("Sphere S², vMF", "BAOA", make, 0.2, 6.0)),
    ("retract, then project the velocity", "equipartition", lambda make: check_uniform(*TALL, "BAOA", make)),
    ("QR of the ambient step", "law of matrices",
     lambda make: check_law("Stiefel 3 x 2 (tall)", "overdamped", make, 0.05, 3.0)),
    ("four times the temperature", "law of spheres", lambda make: check_law("Sphere S², vMF", "BAOA", make)),
    ("four times the temperature", "equipartition", lambda make: check_uniform(*TALL, "OBA", make)),
    ("noise of the first step for ever", "law of circles", lambda make: check_law("Circle, k = 1", "BAOA", make)),
    ("noise of the first step for ever", "law of matrices",
     lambda make: check_law("Stiefel 3 x 2 (tall)", "BAOA", make)),
    ("noise of the first step for ever", "equipartition", lambda make: check_uniform(*OBLIQUE, "BAOA", make)),
]  # fmt: skip


@pytest.mark.parametrize(("defect", "what", "check"), MUTANTS, ids=[f"{d}: {w}" for d, w, _ in MUTANTS])
def test_mutants_fail(defect, what, check):
    """The check that the library and the reference pass fails for the reference with one defect."""
    with pytest.raises(AssertionError, match=" for "):
        check(spoiled(defect))


@pytest.mark.parametrize("check", [MUTANTS[k][2] for k in (0, 3, 6, 8, 12, 14)])
def test_the_reference_passes(check):
    check(spoiled(""))


def test_a_retraction_for_a_flow_is_neither_reversible_nor_symplectic():
    m = Stiefel()
    x, v = tangent(m, 5, 2)

    def wrong(manifold: Manifold, at: torch.Tensor, along: torch.Tensor, t: float) -> Flow:
        y = manifold.project(at + t * along)
        return Flow(y, manifold.project_tangent(y, along))

    with pytest.raises(AssertionError, match="not symplectic"):
        check_symplectic(wrong, m, x, v, 0.7)


def configurational(name: str) -> float:
    """The thermometer of positions, over tau."""
    law = LAWS[name]
    chains = 400 if "Stiefel" in name else 1500
    return experiment.sample(law, "BAOA", 0.2, chains=chains, burn=6.0, span=12.0).configurational


@pytest.mark.parametrize("name", ["Stiefel 3 x 2 (tall)", "Sphere S², vMF", "Oblique 2 x 3", "Circle, k = 2"])
def test_the_thermometer_of_positions(name, monkeypatch):
    """Right to some per cent; with the divergence of flat space (as many as a point has numbers) it is not."""
    assert configurational(name) == pytest.approx(1.0, abs=0.1)
    manifold = type(LAWS[name].manifold)
    field = manifold.stein_field

    def wrong(self: Manifold, x: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        along = field(self, x, a)[0]
        rows = 1 if isinstance(self, Stiefel) else x.shape[-2]
        return along, (a * x).sum((-2, -1)) * (x.shape[-2] * x.shape[-1] / rows)

    monkeypatch.setattr(manifold, "stein_field", wrong)
    assert configurational(name) != pytest.approx(1.0, abs=0.1)


# ---------------------------------------------------------------------------------------------------------- slow


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_constraints_hold_for_ten_thousand_steps(name):
    manifold, shape, _ = SPACES[name]
    law = known.Law("", manifold, shape, 0.5, "", lambda q: q + 0.3, ())
    for scheme in ("BAOA", "overdamped") if name == "stiefel, tall" else ("BAOA",):
        q = torch.nn.Parameter(experiment.start(law, 5, 0))
        group = {"params": [q], "manifold": manifold, "chains": True}
        optimizer: Any = ConstrainedLangevin([group], lr=0.04, temperature=0.5, num_data=1, scheme=scheme, seed=0)
        for _ in range(10_000):
            q.grad = law.gradient(q.detach())
            optimizer.step()
        assert all(check.error < 1e-10 for check in optimizer.verify())
        if isinstance(manifold, Circle) and manifold.slack > 1:
            pair = torch.cat(
                [q.detach().reshape(-1, 1, 1), optimizer.state[q]["slack_variables"].reshape(-1, 1, manifold.slack)], -1
            )
            assert float(manifold.violation(pair).max()) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["Sphere S², vMF", "Oblique 2 x 3", "Stiefel 3 x 2 (tall)", "Circle, k = 2"])
def test_the_bias_shrinks_with_the_order_of_the_scheme(name, scheme):
    """Two time steps, one of them twice the other: the larger one's bias predicts that of the smaller."""
    law, matrix = LAWS[name], "Stiefel" in name
    h = {"overdamped": (0.05, 0.1), "OBA": (0.1, 0.2)}.get(scheme, (0.35, 0.7))
    span = (5.0, 25.0) if scheme == "overdamped" else (12.0, 60.0)
    found = [
        experiment.sample(
            law, scheme, t, chains=1500 if matrix else 6000, burn=span[0], span=span[1], seed=11 + k, measure_every=50
        )
        for k, t in enumerate(h)
    ]
    small, large = (f.means[0] - law.observables[0].exact for f in found)
    error = math.hypot(found[0].errors[0], found[1].errors[0] / 2 ** ORDER[scheme])
    # The next order of the expansion: at most a third of the leading one at these steps
    within(small, large / 2 ** ORDER[scheme], error, 0.34 * abs(large) / 2 ** ORDER[scheme])
    assert abs(large) < budget(scheme, h[1]) + 4 * found[1].errors[0]


@pytest.mark.slow
def test_the_experiment_writes_its_results(tmp_path):
    experiment.main(["--quick", "--out", str(tmp_path)])
    results = read_json(tmp_path / "results.json")
    assert list(results["laws"]) == list(LAWS)
    rows = [row for of_law in results["laws"].values() for row in of_law]
    assert len(rows) == sum(len(law.observables) for law in LAWS.values()) * len(SCHEMES) * 2
    assert "NaN" not in (tmp_path / "results.json").read_text()
    assert (tmp_path / "results.csv").read_text().count("\n") == len(rows) + 1
    for figure in ("orders.png", "temperatures.png"):
        assert (tmp_path / figure).stat().st_size > 10_000
