"""Laws on manifolds of which expectations are known: for `experiments.langevin_laws` and for the tests of samplers.

A law has density `exp(-V / tau)` with respect to surface measure; `exact` comes from one-dimensional integrals, by
Gauss-Legendre quadrature in angles, where everything is smooth. `circle_law` does more: it computes the law that the
discrete steps really have on a circle, bias included, without drawing a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

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

Array = Any  # of numpy, in float64


@dataclass(frozen=True)
class Observable:
    """A number of each chain, and its expectation.

    Attributes:
        name: As tables show it.
        of: From weights `(chains, *shape)` to `(chains,)`.
        exact: The expectation.
    """

    name: str
    of: Callable[[Tensor], Tensor]
    exact: float


@dataclass(frozen=True)
class Law:
    """A target.

    Attributes:
        name: As tables show it.
        manifold: Where weights live.
        shape: Of one chain's weight.
        tau: Temperature in units of V.
        potential: V, as tables show it.
        gradient: The derivative of V at weights `(chains, *shape)`.
        observables: What is known; the first is the one whose bias is followed.
    """

    name: str
    manifold: Manifold
    shape: tuple[int, ...]
    tau: float
    potential: str
    gradient: Callable[[Tensor], Tensor]
    observables: tuple[Observable, ...]


# ---------------------------------------------------------------------------------------------------------- integrals


def expectation(f: Callable[[Array], Array], log_weight: Callable[[Array], Array], low: float, high: float) -> float:
    """`int f w / int w` over an interval, by 400 Gauss-Legendre nodes.

    Example:
        >>> expectation(lambda x: x**2, lambda x: -(x**2) / 2, -12, 12)  # the variance of a normal number
        1.0
    """
    nodes, weights = np.polynomial.legendre.leggauss(400)
    x = low + (high - low) * (nodes + 1) / 2
    log_w = log_weight(x)
    w = weights * np.exp(log_w - log_w.max())
    return round(float((f(x) * w).sum() / w.sum()), 13)


def on_sphere(dim: int, f: Callable[[Array], Array], log_density: Callable[[Array], Array]) -> float:
    """Expectation of `f(c)`, c the cosine of the angle to an axis, on the unit sphere of a dimension, under `exp(log_density(c))`.

    Also of circles with `dim` slack variables, in units of the radius.

    Example:
        >>> round(on_sphere(2, lambda c: c, lambda c: 2.0 * c), 9), round(1 / math.tanh(2) - 1 / 2, 9)  # von Mises-Fisher
        (0.537314721, 0.537314721)
    """
    tiny = np.finfo(float).tiny
    return expectation(
        lambda t: f(np.cos(t)), lambda t: log_density(np.cos(t)) + (dim - 1) * np.log(np.sin(t) + tiny), 0.0, math.pi
    )


def rotation_mean(kappa: float) -> float:
    """`E X_11` on SO(3) under `exp(kappa tr X)`: the angle of a uniform rotation has density `1 - cos`.

    Example:
        >>> round(rotation_mean(1.0), 5)
        0.43626
    """
    return expectation(
        lambda t: (1 + 2 * np.cos(t)) / 3,
        lambda t: kappa * (1 + 2 * np.cos(t)) + 2 * np.log(np.sin(t / 2) + 1e-300),
        0.0,
        math.pi,
    )


def two_columns_mean(kappa: float) -> float:
    """`E (X_11 + X_22) / 2` of 3 x 2 matrices with orthonormal columns under `exp(kappa (X_11 + X_22))`.

    A third column makes X a rotation; with its unit quaternion (w, x, y, z) `X_11 + X_22 = 2 (w^2 - z^2)`, and
    `s = w^2 + z^2` is uniform on [0, 1]: `2 s cos(2 alpha)`. The integral over alpha is a Bessel function.
    """
    alpha = (np.arange(64) + 0.5) * 2 * math.pi / 64  # of a periodic function: exact to rounding
    nodes, weights = np.polynomial.legendre.leggauss(100)
    s, w = (nodes[:, None] + 1) / 2, weights[:, None]
    half = s * np.cos(alpha)
    density = w * np.exp(2 * kappa * half)
    return float((half * density).sum() / density.sum())


# ---------------------------------------------------------------------------------------------------------- laws


def linear(name: str, manifold: Manifold, force: Tensor, tau: float, potential: str, *seen: Observable) -> Law:
    """A law of `V = -<force, q>`."""
    return Law(name, manifold, tuple(force.shape), tau, potential, lambda q: (-force).expand_as(q).contiguous(), seen)


def entries(*places: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """The mean of some entries of each chain's weight."""
    return lambda q: sum((q[(slice(None), *place)] for place in places), torch.zeros(())) / len(places)


def matrix(*rows: tuple[float, ...]) -> Tensor:
    """In float64."""
    return torch.tensor(rows, dtype=torch.float64)


def laws(heat: float = 1.0) -> dict[str, Law]:
    """One or two for each manifold of the library, their temperatures multiplied by `heat`."""
    found = [*flat_laws(heat), *vector_laws(heat), *matrix_laws(heat)]
    return {law.name: law for law in found}


def flat_laws(heat: float) -> list[Law]:
    """Gaussian, where BAOA is exact, and one that is not Gaussian; curvatures are bounded, so that long steps are stable."""
    tau = 0.5 * heat
    precision = torch.tensor([[1.0, 4.0]], dtype=torch.float64)
    gaussian = Law(
        "Euclidean, Gaussian", Euclidean(), (1, 2), tau, "x²/2 + 2y²", lambda q: precision * q,
        (Observable("E x²", lambda q: q[:, 0, 0] ** 2, tau), Observable("E y²", lambda q: q[:, 0, 1] ** 2, tau / 4)),
    )  # fmt: skip
    second = expectation(lambda x: x**2, lambda x: -(x**2 + np.cos(2 * x)) / 2 / tau, -8.0, 8.0)
    wells = Law(
        "Euclidean, two wells",
        Euclidean(),
        (1, 4),
        tau,
        "Σ(x² + cos 2x)/2",
        lambda q: q - (2 * q).sin(),
        (Observable("E x²", lambda q: q.square().mean((-2, -1)), second),),
    )
    return [gaussian, wells]


def vector_laws(heat: float) -> list[Law]:
    """Bounded numbers and spheres: von Mises, von Mises-Fisher and Watson."""
    tau = 0.5 * heat
    found: list[Law] = []
    for k in (1, 2):
        moments = [on_sphere(k, lambda c, m=m: c**m, lambda c: c / tau) for m in (1, 2)]
        found.append(
            linear(
                f"Circle, k = {k}", Circle(radius=1.0, slack=k), matrix((1.0, 1.0)), tau, "-θ",
                Observable("E θ", lambda q: q.mean((-2, -1)), moments[0]),
                Observable("E θ²", lambda q: q.square().mean((-2, -1)), moments[1]),
            )
        )  # fmt: skip
    mean, square = (on_sphere(2, lambda c, m=m: c**m, lambda c: c / tau) for m in (1, 2))
    found.append(
        linear(
            "Sphere S², vMF", Sphere(), matrix((0.0, 0.0, 1.0)), tau, "-x₃",
            Observable("E x₃", entries((0, 2)), mean), Observable("E x₃²", lambda q: q[:, 0, 2] ** 2, square),
        )
    )  # fmt: skip
    axis = matrix((0.0, 0.0, 1.0))
    watson = on_sphere(2, lambda c: c**2, lambda c: c**2 / tau)
    found.append(
        Law("Sphere S², Watson", Sphere(), (1, 3), tau, "-x₃²", lambda q: -2 * q * axis,
            (Observable("E x₃²", lambda q: q[:, 0, 2] ** 2, watson),))
    )  # fmt: skip
    direction = matrix((0.5, 0.5, -0.5, -0.5))
    found.append(
        linear(
            "Zero-mean sphere, 4 numbers", ZeroMeanSphere(), direction, tau, "-<a, x>",
            Observable("E <a, x>", lambda q: (q * direction).sum((-2, -1)), mean),
        )
    )  # fmt: skip
    strong = on_sphere(2, lambda c: c, lambda c: 2 * c / tau)
    found.append(
        linear(
            "Oblique 2 x 3", Oblique(), matrix((1.0, 0.0, 0.0), (0.0, 2.0, 0.0)), tau, "-X₁₁ - 2X₂₂",
            Observable("E X₁₁", entries((0, 0)), mean), Observable("E X₂₂", entries((1, 1)), strong),
        )
    )  # fmt: skip
    return found


def matrix_laws(heat: float) -> list[Law]:
    """Matrix Fisher laws, and a product."""
    tau = 0.5 * heat
    columns = two_columns_mean(1 / tau)
    both = Observable("E (X₁₁ + X₂₂)/2", entries((0, 0), (1, 1)), columns)
    tall = matrix((1.0, 0.0), (0.0, 1.0), (0.0, 0.0))
    trace = Observable("E tr X / 3", entries((0, 0), (1, 1), (2, 2)), rotation_mean(1 / heat))
    square = torch.eye(3, dtype=torch.float64)
    product = Product((Sphere(), Stiefel()), over="output")
    mean = on_sphere(2, lambda c: c, lambda c: c / tau)
    return [
        linear("Stiefel 3 x 2 (tall)", Stiefel(), tall, tau, "-X₁₁ - X₂₂", both),
        linear("Stiefel 2 x 3 (wide)", Stiefel(), tall.mT, tau, "-X₁₁ - X₂₂", both),
        linear("Stiefel 3 x 3", Stiefel(), square, heat, "-tr X", trace),
        linear("Orthogonal 3 x 3", Orthogonal("matrix"), square, heat, "-tr X", trace),
        linear(
            "Product of spheres and Stiefel", product, torch.cat([tall.mT, tall.mT]), tau, "-X₁₁ - X₂₂ - X₃₁ - X₄₂",
            Observable("E (X₁₁ + X₂₂)/2", entries((0, 0), (1, 1)), mean),
            Observable("E (X₃₁ + X₄₂)/2", entries((2, 0), (3, 1)), columns),
        ),
    ]  # fmt: skip


def colder(name: str) -> float:
    """The coefficient of h in the bias of OBA at friction 1: to first order its temperature is lower by `tau h / 2`.

    The variance of free weights with a quadratic loss is `tau (1 + c) / 2k` to that order, c = exp(-friction h) [derived].

    Example:
        >>> round(colder("Euclidean, Gaussian"), 6)  # the variance is the temperature
        -0.25
    """
    hot, cold = (laws(heat)[name].observables[0].exact for heat in (1.01, 0.99))
    return -(hot - cold) / 0.02 / 2


# ---------------------------------------------------------------------------------------------------------- discrete


def circle_law(scheme: str, h: float, tau: float, friction: float = 1.0, *, angles: int = 48) -> dict[str, float]:
    """Moments of theta under the law of the *discrete* steps on the unit circle with `V = -theta`, to some 1e-9.

    The density of (angle, velocity) on a grid is stepped until it stays: shifts of either by Fourier series, noise as a
    matrix. Written from the definition of the schemes (in separate parts, OBABO in five) and not from the code.
    """
    if scheme == "overdamped":
        return _moments(*_overdamped(h, tau, 8 * angles))
    phi = np.arange(angles) * 2 * math.pi / angles
    count, reach = 128, 9.0 * math.sqrt(tau)
    u = (np.arange(count) - count // 2) * 2 * reach / count
    k_phi, k_u = np.fft.fftfreq(angles, 1 / angles), np.fft.fftfreq(count, 1 / count) * math.pi / reach
    density = np.exp((np.cos(phi)[:, None] - u**2 / 2) / tau)

    def kick(p: Array, t: float) -> Array:  # u falls by t sin(angle): minus the derivative of -cos
        shift = np.exp(1j * np.outer(np.sin(phi) * t, k_u))
        return np.fft.ifft(np.fft.fft(p, axis=1) * shift, axis=1).real

    def drift(p: Array, t: float) -> Array:
        return np.fft.ifft(np.fft.fft(p, axis=0) * np.exp(-1j * np.outer(k_phi, u) * t), axis=0).real

    def noise(t: float) -> Array:
        c = math.exp(-friction * t)
        w = np.exp(-((u[:, None] - c * u) ** 2) / (2 * tau * (1 - c * c)))
        return (w / w.sum(0)).T

    half, whole = noise(h / 2), noise(h)
    parts: dict[str, Callable[[Array], Array]] = {
        "BAOA": lambda p: drift(drift(kick(p, h), h / 2) @ whole, h / 2),
        "OBA": lambda p: drift(kick(p @ whole, h), h),
        "OBABO": lambda p: kick(drift(kick(p @ half, h / 2), h), h / 2) @ half,
    }
    change = 1.0
    while change > 1e-11:  # of a whole step: slow where friction is low or high
        after = parts[scheme](density)
        after = after / after.sum()
        change, density = float(np.abs(after - density).sum()), after
    return _moments(phi, density.sum(1))


def _overdamped(h: float, tau: float, count: int) -> tuple[Array, Array]:
    """Angles, and the stationary density of the angle of `(cos + h, sin) + sqrt(2 tau h) R`: a projected normal law."""
    phi = np.arange(count) * 2 * math.pi / count
    x, y, s = np.cos(phi) + h, np.sin(phi), math.sqrt(2 * tau * h)
    along = (np.outer(x, np.cos(phi)) + np.outer(y, np.sin(phi))) / s
    across = (np.outer(x, np.sin(phi)) - np.outer(y, np.cos(phi))) / s
    tail = np.vectorize(lambda a: math.erfc(-a / math.sqrt(2)) / 2)(along)
    step = np.exp(-(across**2) / 2) * (np.exp(-(along**2) / 2) / math.sqrt(2 * math.pi) + along * tail)
    step = step / step.sum(1, keepdims=True)
    density = np.ones(count)
    for _ in range(math.ceil(25 / h)):
        density = density @ step
    return phi, density


def _moments(phi: Array, density: Array) -> dict[str, float]:
    weight = density / density.sum()
    return {"E θ": float((weight * np.cos(phi)).sum()), "E θ²": float((weight * np.cos(phi) ** 2).sum())}
