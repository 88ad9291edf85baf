"""Known laws, sampled anew: on circles, spheres and Stiefel manifolds, and on an equation that the user wrote.

Chains run in blocks; the mean of a block is one raw value, and blocks are independent.
"""

from __future__ import annotations

import math
from typing import Any

import torch

import weightspace as ws
from experiments.langevin_known import Law
from experiments.langevin_known import laws as known
from experiments.langevin_laws import sample

BLOCKS = 10
SPHERE, EQUATION = "Sphere S², vMF", "the same sphere, by an equation"
NAMES = {"Circle, k = 1": 4000, SPHERE: 2000, "Stiefel 3 x 2 (tall)": 400, EQUATION: 100}  # chains
DYNAMICS = (("BAOA", 0.3, 8.0, 16.0), ("overdamped", 0.05, 4.0, 8.0))  # time step, time before anything counts, time that counts


def unit_length(q: torch.Tensor) -> torch.Tensor:
    """One residual: the squared length, less 1."""
    return q.square().sum().reshape(1) - 1.0


def by_equation(law: Law, scheme: str, h: float, *, chains: int, burn: float, span: float, seed: int) -> float:
    """Mean of the law's first observable over chains on the sphere, which is told by `unit_length` alone."""
    start = torch.randn(chains, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    weight = torch.nn.Parameter(start / start.norm(dim=-1, keepdim=True))
    manifold = ws.manifolds.LevelSet(unit_length, "kernel")
    optimizer = ws.optim.ConstrainedLangevin(
        [{"params": [weight], "manifold": manifold, "chains": True}],
        lr=h if scheme == "overdamped" else h * h, friction=1.0, temperature=law.tau, num_data=1, scheme=scheme, seed=seed,
    )  # fmt: skip
    begin, steps = math.ceil(burn / h), math.ceil((burn + span) / h)
    total = 0.0
    for step in range(steps):
        weight.grad = law.gradient(weight.detach())
        optimizer.step()
        if step >= begin:
            total += float(law.observables[0].of(weight.detach()).mean())
    return total / (steps - begin)


def laws(*, is_quick: bool) -> dict[str, Any]:
    """Means of blocks of chains, both kinds of dynamics, at time steps of 0.3 and (overdamped) 0.05."""
    found = known(1.0)
    rows = []
    for name, chains in NAMES.items():
        for scheme, h, burn, span in DYNAMICS:
            law = found[SPHERE if name == EQUATION else name]
            for block in range(2 if is_quick else BLOCKS):
                options: dict[str, Any] = {"chains": chains // BLOCKS, "burn": burn, "span": span, "seed": 5000 + block}
                mean = by_equation(law, scheme, h, **options) if name == EQUATION else sample(law, scheme, h, **options).means[0]
                seen = law.observables[0]
                rows.append(
                    {"law": name, "scheme": scheme, "h": h, "observable": seen.name, "exact": seen.exact,
                     "block": block, "chains": chains // BLOCKS, "mean": mean}
                )  # fmt: skip
    return {"rows": rows}
