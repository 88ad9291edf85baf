"""Known laws, sampled anew: on circles, spheres and Stiefel manifolds, and on an equation that the user wrote.

Chains are independent; the mean over a block of them is one raw value.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from experiments.langevin_known import Law
from experiments.langevin_known import laws as known
from experiments.langevin_laws import start
from torch import Tensor

import weightspace as ws

BLOCKS = 20
SEED = 5000
SPHERE, EQUATION = "Sphere S², vMF", "the same sphere, by an equation"
CHAINS = {"Circle, k = 1": 10_000, SPHERE: 6000, "Stiefel 3 x 2 (tall)": 6000, EQUATION: 3000}
# Scheme, time step, time before anything counts, time that counts; relaxation takes about 2.
DYNAMICS = (("BAOA", 0.3, 8.0, 16.0), ("overdamped", 0.05, 4.0, 8.0))


def unit_length(q: Tensor) -> Tensor:
    """One residual: the squared length, less 1."""
    return q.square().sum().reshape(1) - 1.0


def block_means(law: Law, manifold: ws.manifolds.Manifold, scheme: str, h: float, *, chains: int, burn: float, span: float) -> list[float]:  # fmt: skip
    """Time averages of the law's first observable, averaged over each block of chains."""
    weight = torch.nn.Parameter(start(law, chains, SEED))
    optimizer = ws.optim.ConstrainedLangevin(
        [{"params": [weight], "manifold": manifold, "chains": True}],
        lr=h if scheme == "overdamped" else h * h, friction=1.0, temperature=law.tau, num_data=1, scheme=scheme, seed=SEED,
    )  # fmt: skip
    begin, steps = math.ceil(burn / h), math.ceil((burn + span) / h)
    sums = torch.zeros(chains, dtype=torch.float64)
    with torch.no_grad():
        for step in range(steps):
            weight.grad = law.gradient(weight)
            optimizer.step()
            if step >= begin:
                sums += law.observables[0].of(weight)
    return (sums / (steps - begin)).view(BLOCKS, -1).mean(1).tolist()


def laws(*, is_quick: bool) -> dict[str, Any]:
    """Means of blocks of chains, both kinds of dynamics, at time steps of 0.3 and (overdamped) 0.05."""
    found = known(1.0)
    rows = []
    for name, chains in CHAINS.items():
        law = found[SPHERE if name == EQUATION else name]
        manifold = ws.manifolds.LevelSet(unit_length, "kernel") if name == EQUATION else law.manifold
        for scheme, h, burn, span in DYNAMICS:
            count = 10 * BLOCKS if is_quick else chains
            means = block_means(law, manifold, scheme, h, chains=count, burn=burn, span=span)
            seen = law.observables[0]
            rows.append(
                {"law": name, "scheme": scheme, "h": h, "observable": seen.name, "exact": seen.exact,
                 "chains_a_block": count // BLOCKS, "means": means}
            )  # fmt: skip
    return {"rows": rows}
