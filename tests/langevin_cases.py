"""Checks of samplers against laws that are known, shared by the tests and by their mutants.

Each check takes `make`, a class such as `ConstrainedLangevin`, and fails by an AssertionError. Chains are independent,
so the standard error of a mean over chains of averages over time is honest, however slowly a chain forgets. `Parts` is
the reference: the schemes as they are defined, one part after another, RATTLE as a loop over whole matrices, circles as
pairs (theta, xi). A mutant is the reference with one `defect`.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from weightspace.manifolds import Circle, Euclidean, Manifold, Oblique, Sphere, Stiefel
from weightspace.manifolds._flows import Flow
from weightspace.manifolds._polar import qr_positive
from weightspace.optim import ConstrainedLangevin
from weightspace.optim._langevin_pace import pace_of, tau_of


def load(name: str) -> ModuleType:
    """A module of `experiments`, which is no part of the package."""
    root = str(Path(__file__).parents[1])
    if root not in sys.path:
        sys.path.insert(0, root)
    return importlib.import_module(f"experiments.{name}")


known, experiment = load("langevin_known"), load("langevin_laws")
LAWS = known.laws()
UNDERDAMPED = ("BAOA", "OBABO", "OBA")
SCHEMES = (*UNDERDAMPED, "overdamped")
ORDER = {"BAOA": 2, "OBABO": 2, "OBA": 1, "overdamped": 1}
Make = Callable[..., Any]


def budget(scheme: str, h: float) -> float:
    """The largest bias of an observable between -1 and 1 that a scheme of its order may have."""
    return 0.25 * h**2 if ORDER[scheme] == 2 else 0.5 * h


def free(manifold: Manifold, shape: tuple[int, ...], tau: float = 0.7) -> Any:
    """A law without a loss: uniform. Nothing is biased then, at any time step."""
    return known.Law("uniform", manifold, shape, tau, "0", torch.zeros_like, ())


# ---------------------------------------------------------------------------------------------------------- reference


class Parts(ConstrainedLangevin):
    """The schemes from their definitions; `defect` names one thing that is done wrong."""

    def __init__(self, params: Any, *args: Any, defect: str = "", **options: Any) -> None:
        self.defect = defect
        super().__init__(params, *args, **options)

    def _step_free(self, group: dict[str, Any]) -> None:
        for p in group["params"]:
            self._measure(p, group, None, p.grad)
            self._parts(p, Euclidean(), p.detach(), self.state[p]["velocity"], p.grad, group, self._noises(p)[0])
            self.state[p]["step"] += 1

    def _step_on(self, parameter: Any, group: dict[str, Any], constraint: Any, gradient: torch.Tensor) -> None:
        state, manifold = self.state[parameter], constraint.manifold
        self._measure(parameter, group, constraint, gradient)
        if isinstance(manifold, Circle) and manifold.slack == 1:
            self._pairs(parameter, state, gradient, group, manifold.r)
        else:
            noise = self._noises(parameter)[0]
            for piece in constraint.pieces(0):
                x, v, g = (piece.read(t) for t in (parameter.detach(), state["velocity"], gradient))
                x, v = self._parts(parameter, piece.manifold, x, v, g, group, piece.read(noise))
                piece.write(parameter, x)
                piece.write(state["velocity"], v)
        state["step"] += 1

    def _numbers(self, group: dict[str, Any]) -> tuple[Any, float, float]:
        pace, tau = pace_of(group), tau_of(group)
        if self.defect == "four times the temperature":
            tau = 4 * tau
        root = tau if self.defect == "tau for its root" else math.sqrt(tau)
        return pace, root, pace.h

    def _noises(self, parameter: torch.Tensor, count: int = 1) -> list[torch.Tensor]:
        drawn = self._noise.like([parameter] * count)
        if self.defect == "noise of the first step for ever":
            drawn = self.state[parameter].setdefault("kept noise", [r.clone() for r in drawn])
        return drawn

    def _seen(self, parameter: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """The gradient that is used."""
        if self.defect != "gradient of the step before":
            return g
        stale = self.state[parameter].get("stale", g)
        self.state[parameter]["stale"] = g.clone()
        return stale

    def _scheme(self, pace: Any) -> str:
        return "OBA" if self.defect == "OBA sold as BAOA" and pace.scheme == "BAOA" else pace.scheme

    def _parts(
        self,
        parameter: torch.Tensor,
        m: Manifold,
        x: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor,
        group: dict[str, Any],
        noise: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pace, root, h = self._numbers(group)
        g = self._seen(parameter, g)
        if pace.is_overdamped:
            y = x - h * g + math.sqrt(2 * h) * root * noise
            x.copy_(qr_positive(y)[0] if self.defect == "QR of the ambient step" else in_component(m, x, y))
            return x, v
        point = x.clone()

        def kick(t: float) -> None:
            v.copy_(m.project_tangent(point, v - t * g))

        def drift(t: float) -> None:
            flow = self._drift(m, point.clone(), v, t)
            point.copy_(flow.point)
            v.copy_(flow.velocity)

        def fluctuate() -> None:
            u = pace.decay * v + root * math.sqrt(1 - pace.decay**2) * noise
            v.copy_(u if self.defect == "noise that is not projected" else m.project_tangent(point, u))

        scheme = self._scheme(pace)
        if scheme == "BAOA":
            kick(h), drift(h / 2), fluctuate(), drift(h / 2)
        elif scheme == "OBA":
            fluctuate(), kick(h), drift(h)
        else:  # OBABO from another of its parts on
            kick(h / 2), fluctuate(), kick(h / 2), drift(h)
        x.copy_(point)
        return x, v

    def _drift(self, m: Manifold, x: torch.Tensor, v: torch.Tensor, t: float) -> Flow:
        if self.defect == "retract, then project the velocity":
            y = m.project(x + t * v)
            return Flow(y, m.project_tangent(y, v))
        flow = m.flow(x, v, t)
        if not isinstance(m, Stiefel) or min(x.shape[-2:]) == 1:
            return flow
        slow = rattle(m, x, v, t)
        is_short = (t * v).square().sum((-2, -1), keepdim=True) < 0.25  # the loop diverges for long ones
        point, velocity = (
            torch.where(is_short, a, b) for a, b in ((slow.point, flow.point), (slow.velocity, flow.velocity))
        )
        return Flow(point, velocity)

    def _pairs(
        self, parameter: Any, state: dict[str, Any], g: torch.Tensor, group: dict[str, Any], radius: float
    ) -> None:
        pace, root, h = self._numbers(group)
        g = self._seen(parameter, g)
        if "pair" not in state:
            zero = torch.zeros_like(parameter)
            state["pair"] = [parameter.detach().clone(), (radius**2 - parameter.detach() ** 2).sqrt(), zero, zero]
        theta, xi, p, q = state["pair"]
        noise = self._noises(parameter, 2)
        if pace.is_overdamped:
            a, b = (
                (theta - h * g, xi)
                if root == 0
                else (theta - h * g + math.sqrt(2 * h) * root * noise[0], xi + math.sqrt(2 * h) * root * noise[1])
            )
            norm = (a**2 + b**2).sqrt() / radius
            state["pair"] = [a / norm, b / norm, p, q]
            parameter.copy_(a / norm)
            return

        def kick(t: float) -> None:
            nonlocal p, q
            p, q = p - t * g * (1 - theta**2 / radius**2), q + t * g * theta * xi / radius**2

        def drift(t: float) -> None:
            nonlocal theta, xi, p, q
            angle = (theta * q - xi * p) / radius**2 * t
            cosine, sine = angle.cos(), angle.sin()
            if self.defect == "overwritten rotation":
                theta = cosine * theta - sine * xi
                xi = sine * theta + cosine * xi
                p = cosine * p - sine * q
                q = sine * p + cosine * q
            else:
                theta, xi = cosine * theta - sine * xi, sine * theta + cosine * xi
                p, q = cosine * p - sine * q, sine * p + cosine * q

        def fluctuate() -> None:
            nonlocal p, q
            size = root * math.sqrt(1 - pace.decay**2)
            p, q = pace.decay * p + size * noise[0], pace.decay * q + size * noise[1]
            if self.defect != "noise that is not projected":
                along = (theta * p + xi * q) / radius**2
                p, q = p - along * theta, q - along * xi

        scheme = self._scheme(pace)
        if scheme == "BAOA":
            kick(h), drift(h / 2), fluctuate(), drift(h / 2)
        elif scheme == "OBA":
            fluctuate(), kick(h), drift(h)
        else:
            kick(h / 2), fluctuate(), kick(h / 2), drift(h)
        state["pair"] = [theta, xi, p, q]
        state["velocity"].copy_((theta * q - xi * p) / radius)
        parameter.copy_(theta)


def in_component(m: Manifold, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The nearest point; of square orthogonal matrices with the determinant that there was."""
    if isinstance(m, Euclidean | Sphere | Oblique) or x.shape[-1] != x.shape[-2]:
        return m.project(y)
    u, _, vh = torch.linalg.svd(y)
    sign = torch.linalg.det(x) * torch.linalg.det(u @ vh)
    u[..., -1] *= sign.sign()[..., None]
    return u @ vh


def rattle(m: Manifold, x: torch.Tensor, v: torch.Tensor, t: float) -> Flow:
    """`Q <- Q - W (Q^T Q - I) / 2` from `W + t v` until it stays, then `P_Q (v + (Q - W - t v) / t)`."""
    wide = x.shape[-2] < x.shape[-1]
    at, along = (x.mT, v.mT) if wide else (x, v)
    bar = at + t * along
    q, eye = bar, torch.eye(at.shape[-1], dtype=at.dtype)
    for _ in range(200):
        excess = q.mT @ q - eye
        if float(excess.abs().max()) < 1e-14:
            break
        q = q - at @ excess / 2
    w = along + (q - bar) / t
    q, w = (q.mT, w.mT) if wide else (q, w)
    return Flow(q, m.project_tangent(q, w))


def spoiled(defect: str) -> Make:
    """A class with a defect; without one, the reference."""
    return lambda *args, **options: Parts(*args, defect=defect, **options)


# ---------------------------------------------------------------------------------------------------------- checks


def within(mean: float, exact: float, error: float, allowed: float = 0.0) -> None:
    """Four standard errors and a budget."""
    assert abs(mean - exact) < 4 * error + allowed, f"{mean:.5f} for {exact:.5f}, error {error:.5f}, {allowed:.4f}"


def check_law(name: str, scheme: str, make: Make, h: float | None = None, scale: float = 1.0) -> None:
    """Expectations of a law of `experiments.langevin_known`, with the budget of the scheme's order."""
    law = LAWS[name]
    h = h if h is not None else 0.05 if scheme == "overdamped" else 0.3
    chains = int(scale * (300 if "Stiefel" in name or "Orthogonal" in name else 1500))
    span = 12.0 if scheme == "overdamped" else 25.0
    found = experiment.sample(law, scheme, h, chains=chains, burn=span / 3, span=span, make=make, measure_every=50)
    for seen, mean, error in zip(law.observables, found.means, found.errors, strict=True):
        within(mean, seen.exact, error, budget(scheme, h))


def check_circle(scheme: str, make: Make, h: float = 0.4, friction: float = 1.0, slow: int = 1) -> None:
    """Means on the circle against the law that the discrete steps have: no budget. Times are multiplied by `slow`."""
    law = LAWS["Circle, k = 1"]
    expected = known.circle_law(scheme, h, law.tau, friction)
    time = {"burn": 12.0 * slow, "span": 30.0} if scheme != "overdamped" else {"burn": 8.0, "span": 20.0}
    options = {"momentum": 0.0, "friction": None} if math.isinf(friction) else {"friction": friction}
    found = experiment.sample(law, scheme, h, chains=6000, make=make, measure_every=50, **time, **options)
    for seen, mean, error in zip(law.observables, found.means, found.errors, strict=True):
        within(mean, expected[seen.name], error)


def linear_law(scheme: str, h: float, k: float, tau: float, c: float, heat: float = 0.0) -> tuple[float, float]:
    """Variances of position and velocity (as the state has them after a step) of `V = k x^2 / 2`.

    The step is `(x, v) -> M (x, v) + noise`; its stationary covariance solves `S = M S M^T + N`. `heat` is the variance
    of noise in the gradient.
    """

    def kick(t: float) -> Any:
        return np.array([[1, 0], [-t * k, 1]])

    def drift(t: float) -> Any:
        return np.array([[1, t], [0, 1]])

    fluctuate = np.diag([1, c])
    kicked, noisy = np.diag([0.0, heat]), np.diag([0.0, tau * (1 - c * c)])
    parts = {
        "BAOA": [(kick(h), h**2 * kicked), (drift(h / 2), 0), (fluctuate, noisy), (drift(h / 2), 0)],
        "OBA": [(fluctuate, noisy), (kick(h), h**2 * kicked), (drift(h), 0)],
        # One gradient for both of its kicks, so that their noise is one: the first runs through O
        "OBABO": [(kick(h / 2), 0), (fluctuate, noisy), (kick(h / 2), (h * (1 + c) / 2) ** 2 * kicked), (drift(h), 0)],
        "overdamped": [(np.diag([1 - h * k, 1]), np.diag([2 * tau * h + h**2 * heat, 0]))],
    }[scheme]
    step, noise = np.eye(2), np.zeros((2, 2))
    for matrix, added in parts:
        step, noise = matrix @ step, matrix @ noise @ matrix.T + added
    if scheme == "overdamped":
        return float(noise[0, 0] / (1 - step[0, 0] ** 2)), math.nan
    covariance = np.linalg.solve(np.eye(4) - np.kron(step, step), noise.ravel()).reshape(2, 2)
    return float(covariance[0, 0]), float(covariance[1, 1])


def check_gaussian(scheme: str, make: Make, h: float = 0.5, heat: float = 0.0, friction: float = 1.0) -> Any:
    """Variances of free weights with precisions 1 and 4, positions and velocities: no budget. Gives the optimizer."""
    tau, chains, h = 0.5, 8000, h / 5 if scheme == "overdamped" else h
    precision = torch.tensor([1.0, 4.0], dtype=torch.float64)
    q = torch.nn.Parameter(torch.zeros(chains, 2, dtype=torch.float64))
    optimizer = make([q], lr=h if scheme == "overdamped" else h * h, friction=friction, temperature=3.0, num_data=6,
                     scheme=scheme, seed=3, measure_every=1)  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    begin, steps = math.ceil(16 / h), math.ceil(46 / h)
    sums = torch.zeros(2, chains, 2, dtype=torch.float64)
    for step in range(steps):
        noise = torch.randn(chains, 2, dtype=torch.float64, generator=generator) if heat else 0.0
        q.grad = precision * q.detach() + math.sqrt(heat) * noise
        optimizer.step()
        if step == begin:
            optimizer.reset_thermometers()
        if step >= begin:
            sums += torch.stack([q.detach(), optimizer.state[q]["velocity"]]).square()
    found = sums / (steps - begin)
    means, errors = found.mean(1), found.std(1) / chains**0.5
    for place, k in enumerate(precision.tolist()):
        expected = linear_law(scheme, h, k, tau, math.exp(-friction * h), heat)
        for which in range(1 if scheme == "overdamped" else 2):
            within(float(means[which, place]), expected[which], float(errors[which, place]))
    return optimizer


def speeds(optimizer: Any, weight: torch.Tensor) -> torch.Tensor:
    """`|v|^2` of each chain."""
    state = optimizer.state[weight]
    squares = state["velocity"].square().flatten(1).sum(1)
    extra = state.get("slack_velocity")
    return squares if extra is None else squares + extra.square().reshape(len(weight), -1).sum(1)


def check_uniform(
    manifold: Manifold, shape: tuple[int, ...], dim: int, scheme: str, make: Make, h: float = 0.4, chains: int = 400
) -> None:
    """Without a loss, at any time step: `E |v|^2 = tau dim M`, and the moments of the uniform law."""
    law = free(manifold, shape)
    weight = torch.nn.Parameter(experiment.start(law, chains, 1))
    group = {"params": [weight], "manifold": manifold, "chains": True}
    lr = h / 2 if scheme == "overdamped" else h * h
    optimizer = make([group], lr=lr, friction=1.0, temperature=law.tau, num_data=1, scheme=scheme, seed=2)
    weight.grad = torch.zeros_like(weight)
    energy, moments, count = torch.zeros(chains, dtype=torch.float64), torch.zeros(3, chains, dtype=torch.float64), 0
    for step in range(70):
        optimizer.step()
        if step >= 20:
            count += 1
            x = weight.detach()
            energy += speeds(optimizer, weight)
            moments += torch.stack([x.flatten(1).mean(1), x.square().flatten(1).mean(1), (x**4).flatten(1).mean(1)])
    if scheme != "overdamped":
        within(float(energy.mean()) / count, law.tau * dim, float(energy.std()) / count / chains**0.5)
    if not isinstance(manifold, Euclidean):
        for mean, error, exact in zip(
            (moments / count).mean(1), (moments / count).std(1) / chains**0.5, uniform_moments(manifold, shape),
            strict=True,
        ):  # fmt: skip
            within(float(mean), exact, float(error), 1e-12)


def uniform_moments(manifold: Manifold, shape: tuple[int, ...]) -> tuple[float, float, float]:
    """`E X, E X^2, E X^4` of an entry that is one of m on a sphere, for circles the shadow of one."""
    text = manifold.text()
    if isinstance(manifold, Circle):
        m = manifold.slack + 1
    elif text.startswith("sphere"):
        m = shape[1]
    elif text.startswith("zeromean"):  # of m numbers, in a hyperplane: variance 1/m, fourth moment of a projection
        m, wide = shape[1], shape[1] - 1
        return 0.0, 1 / m, 3 / (wide * (wide + 2)) * (wide / m) ** 2
    elif text.startswith("product"):
        m = shape[1]
    else:
        m = shape[1] if text.startswith("oblique") else max(shape)
    return 0.0, 1 / m, 3 / (m * (m + 2))


def check_stein(shape: tuple[int, int], make: Make) -> None:
    """`E <P grad V, A> = -tau (n - (p + 1) / 2) E <A, X>` on Stiefel under a law that has no closed form."""
    n, p = max(shape), min(shape)
    force = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    manifold, tau = Stiefel(), 0.5

    def gradient(x: torch.Tensor) -> torch.Tensor:
        return force * x**2 - 1.2 * force

    def defect_of_identity(x: torch.Tensor) -> torch.Tensor:
        work = (manifold.project_tangent(x, gradient(x)) * force).sum((-2, -1))
        return work + tau * (n - (p + 1) / 2) * (force * x).sum((-2, -1))

    law = known.Law("Stein", manifold, shape, tau, "", gradient, (known.Observable("0", defect_of_identity, 0.0),))
    found = experiment.sample(law, "BAOA", 0.15, chains=400, burn=5.0, span=15.0, make=make, measure_every=50)
    assert found.errors[0] < 0.05
    within(found.means[0], 0.0, found.errors[0], 0.03)


def check_symplectic(flow: Callable[..., Flow], m: Manifold, x: torch.Tensor, v: torch.Tensor, t: float) -> None:
    """The flow preserves `sum dx ^ dv` on the tangent bundle, and with it volume; and it is reversible."""
    step = 1e-5
    generator = torch.Generator().manual_seed(4)

    def random() -> torch.Tensor:
        return torch.randn(x.shape, dtype=x.dtype, generator=generator)

    def derivatives(a: torch.Tensor, b: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of a curve in the tangent bundle, and of where the flow takes it."""
        ends = []
        for s in (step, -step):
            y = m.geodesic(x, m.project_tangent(x, a), s)
            w = m.project_tangent(y, v + s * b)
            moved = flow(m, y, w, t)
            ends.append((y, w, moved.point, moved.velocity))
        d = [(first - second) / (2 * step) for first, second in zip(*ends, strict=True)]
        return [(d[0], d[1]), (d[2], d[3])]

    one, two = derivatives(random(), random()), derivatives(random(), random())
    before, after = (((one[k][0] * two[k][1]).sum((-2, -1)) - (one[k][1] * two[k][0]).sum((-2, -1))) for k in (0, 1))
    assert float((before - after).abs().max()) < 1e-7 * float(1 + before.abs().max()), "not symplectic"
    there = flow(m, x, v, t)
    back = flow(m, there.point, -there.velocity, t)
    assert float((back.point - x).abs().max()) < 1e-10, "not reversible"
    assert float((back.velocity + v).abs().max()) < 1e-10, "not reversible"
