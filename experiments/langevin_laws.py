"""Does `ConstrainedLangevin` sample what it says? `python -m experiments.langevin_laws [--out DIR] [--quick]`.

Every law of `experiments.langevin_known`, every scheme, four time steps: thousands of independent chains in float64,
started from the uniform law (free weights: from 0), one thread. After `BURN` units of time each chain averages its
observables over `SPAN` units; chains are independent, so the standard error is that of the mean of their averages. The
thermometers are the optimizer's own. Writes results.json after each law (a law that is there is kept), then results.csv,
table.md and figures, into `--out`.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import weightspace as ws
from experiments import langevin_laws_report
from experiments.langevin_known import Law, circle_law, laws
from weightspace.files import read_json, write_json_atomically
from weightspace.manifolds import Circle, Constraint, Orthogonal, Product
from weightspace.training.environment import machine, versions

SEED = 7
FRICTION = 1.0
UNDERDAMPED = ("BAOA", "OBABO", "OBA")
SCHEMES = (*UNDERDAMPED, "overdamped")

Make = Callable[..., torch.optim.Optimizer]


@dataclass(frozen=True)
class Sizes:
    """How much is run; times are those of the dynamics, in which relaxation takes about 2."""

    steps: tuple[float, ...] = (0.2, 0.3, 0.4, 0.6)
    overdamped_steps: tuple[float, ...] = (0.025, 0.05, 0.1, 0.2)
    burn: float = 16.0
    span: float = 48.0
    overdamped_burn: float = 6.0
    overdamped_span: float = 24.0
    chains: float = 1.0


QUICK = Sizes((0.3, 0.6), (0.1, 0.2), 2.0, 3.0, 2.0, 3.0, 0.01)


@dataclass(frozen=True)
class Sampled:
    """What chains of one law gave.

    Attributes:
        means: Of each observable.
        errors: Their standard errors.
        kinetic: Kinetic temperature over tau; NaN without velocities.
        kinetic_error: Its standard error.
        configurational: Configurational temperature over tau.
        fallbacks: Of the constraint's solver.
        weight: Where the chains ended.
        optimizer: What moved them.
    """

    means: list[float]
    errors: list[float]
    kinetic: float
    kinetic_error: float
    configurational: float
    fallbacks: int
    weight: Tensor
    optimizer: torch.optim.Optimizer


def start(law: Law, chains: int, seed: int) -> Tensor:
    """Uniformly distributed weights `(chains, *shape)`: far from every law here."""
    like, generator = torch.zeros(chains, *law.shape, dtype=torch.float64), torch.Generator().manual_seed(seed)
    if law.manifold.text().startswith("euclidean"):
        return like
    if isinstance(law.manifold, Circle):
        return like.uniform_(-0.99, 0.99, generator=generator)
    pieces = Constraint(law.manifold, like, ws.kernels.points.Channels(chains=True)).pieces(0)
    for piece in pieces:
        piece.write(like, piece.manifold.random_uniform(piece.view.shape, generator=generator, like=like))
    if tuple(law.shape) == (3, 3):  # rotations: reflections have another law
        like[:, :, 0] *= torch.linalg.det(like).sign()[:, None]
    return like


def sample(
    law: Law,
    scheme: str,
    h: float,
    *,
    chains: int,
    burn: float,
    span: float,
    seed: int = SEED,
    make: Make = ws.optim.ConstrainedLangevin,
    **options: Any,
) -> Sampled:
    """Runs chains of a law from the uniform one.

    Args:
        law: The target.
        scheme: Of the optimizer.
        h: Time step: the square root of lr, of the overdamped scheme lr itself.
        chains: How many, all at once.
        burn: Time before anything counts.
        span: Time over which each chain averages.
        seed: Of start and noise.
        make: `ConstrainedLangevin`, or a spoiled one.
        **options: Of the optimizer.
    """
    weight = torch.nn.Parameter(start(law, chains, seed))
    optimizer: Any = make(
        [{"params": [weight], "manifold": law.manifold, "chains": True}],
        lr=h if scheme == "overdamped" else h * h,
        **{"friction": FRICTION, "temperature": law.tau, "num_data": 1, "measure_every": 2, **options},
        scheme=scheme, seed=seed, check_finite=False,
    )  # fmt: skip
    begin, steps = math.ceil(burn / h), math.ceil((burn + span) / h)
    sums = torch.zeros(len(law.observables), chains, dtype=torch.float64)
    with torch.no_grad():
        for step in range(steps):
            weight.grad = law.gradient(weight)
            optimizer.step()
            if step == begin:
                optimizer.reset_thermometers()
            if step >= begin:
                sums += torch.stack([seen.of(weight) for seen in law.observables])
    averages = sums / (steps - begin)
    found, state = optimizer.temperatures()[0], optimizer.state[weight]
    return Sampled(
        averages.mean(1).tolist(),
        (averages.std(1) / chains**0.5).tolist(),
        found.kinetic / law.tau,
        found.kinetic_error / law.tau,
        found.configurational / law.tau,
        int(state.get("fallbacks", 0)),
        weight.detach(),
        optimizer,
    )


def chains_of(law: Law) -> int:
    """As many as cost about the same time."""
    manifold = law.manifold
    if isinstance(manifold, Product | Orthogonal) or law.shape == (3, 3):
        return 400
    if isinstance(manifold, Circle):
        return 20_000 if manifold.slack == 1 else 6_000
    many = {"euclidean": 10_000, "sphere": 8_000, "zeromeansphere": 8_000, "oblique": 5_000}
    return many.get(manifold.text().partition("(")[0], 2_400)


def measure(law: Law, sizes: Sizes) -> list[dict[str, Any]]:
    """The rows of one law: a scheme, a time step and an observable each."""
    rows: list[dict[str, Any]] = []
    chains = max(20, int(sizes.chains * chains_of(law)))
    for place, scheme in enumerate(SCHEMES):
        damped = scheme != "overdamped"
        for index, h in enumerate(sizes.steps if damped else sizes.overdamped_steps):
            burn, span = (sizes.burn, sizes.span) if damped else (sizes.overdamped_burn, sizes.overdamped_span)
            found = sample(law, scheme, h, chains=chains, burn=burn, span=span, seed=SEED + 100 * place + index)
            computed = circle_law(scheme, h, law.tau, FRICTION) if law.name == "Circle, k = 1" else {}
            rows += [
                {
                    "law": law.name, "V": law.potential, "tau": law.tau, "scheme": scheme, "h": h,
                    "observable": seen.name, "exact": seen.exact, "sampled": mean, "error": error,
                    "bias": mean - seen.exact, "computed_bias": computed[seen.name] - seen.exact if computed else None,
                    "kinetic": None if math.isnan(found.kinetic) else found.kinetic,
                    "kinetic_error": None if math.isnan(found.kinetic) else found.kinetic_error,
                    "configurational": None if math.isnan(found.configurational) else found.configurational,
                    "fallbacks": found.fallbacks, "chains": chains,
                }
                for seen, mean, error in zip(law.observables, found.means, found.errors, strict=True)
            ]  # fmt: skip
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Runs what is missing, writes after each law."""
    parser = argparse.ArgumentParser(prog="python -m experiments.langevin_laws", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("langevin-laws"), help="folder (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="few chains and steps: to see that it runs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sizes = QUICK if options.quick else Sizes()
    settings = {**dataclasses.asdict(sizes), "seed": SEED, "friction": FRICTION}
    path = options.out / "results.json"
    results: dict[str, Any] = read_json(path) if path.exists() else {"laws": {}, "seconds": {}}
    if results.get("settings", settings) != {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}:
        results = {"laws": {}, "seconds": {}}  # of other sizes
    results |= {"settings": settings, "versions": versions(), "machine": machine()}
    for name, law in laws().items():
        if name not in results["laws"]:
            begin = time.process_time()
            results["laws"][name] = measure(law, sizes)
            results["seconds"][name] = round(time.process_time() - begin, 1)
            write_json_atomically(path, results)
            print(f"{name}: {results['seconds'][name]:.0f} s of one core", flush=True)
    results["laws"] = {name: results["laws"][name] for name in laws()}
    write_json_atomically(path, results)
    langevin_laws_report.write(results, options.out)


if __name__ == "__main__":
    main()
