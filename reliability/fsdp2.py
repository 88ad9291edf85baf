"""The column FSDP2: every case on weights that `fully_shard` made DTensors, against one process.

`python -m reliability --only fsdp2`: 2 and 4 gloo processes, float64 and float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from reliability.cases import Case, case, cases, make_model, train, weights
from reliability.findings import METHODS, Finding
from reliability.processes import run_ranks

STEPS = 6
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5}


def shard(model: nn.Sequential, *, by_layer: bool = True) -> nn.Sequential:
    """`fully_shard` on every layer with weights and on the root, or on the root alone."""
    from torch.distributed.fsdp import fully_shard

    for layer in model if by_layer else ():
        if next(layer.parameters(), None) is not None:
            fully_shard(layer)
    fully_shard(model)
    return model


def alone(one: Case, dtype: torch.dtype, steps: int = STEPS) -> dict[str, Any]:
    """What one process gives: weights, gates' duty cycles, violations."""
    model = make_model(dtype)
    opened = one.open(model)
    train(model, opened, steps)
    return {"weights": weights(model), **facts(opened)}


def facts(opened: tuple[torch.optim.Optimizer, Any]) -> dict[str, Any]:
    """What must agree besides weights."""
    optimizer, rules = opened
    checks = rules.verify() if rules is not None else optimizer.verify()  # type: ignore[attr-defined]
    found: dict[str, Any] = {"checks": {(c.what, c.parameters): c.error / c.bound for c in checks}}
    if rules is not None:
        found |= {"duty": rules.duty_cycles, "measured": rules.measurements, "fallbacks": rules.fallbacks}
    return found


def on_rank(rank: int, names: list[str], ranks: int, dtype: torch.dtype, steps: int) -> dict[str, Any]:
    """The same for every case on one rank of several; an error is what a case gives instead."""
    found: dict[str, Any] = {}
    for k, name in enumerate(names):
        model = shard(make_model(dtype), by_layer=k % 2 == 0)
        opened = case(name).open(model)
        train(model, opened, steps, rank=rank, ranks=ranks)
        found[name] = {"weights": weights(model), **facts(opened)}
    return found


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest absolute difference of two sets of weights."""
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def compare(names: list[str], ranks: int, dtype: torch.dtype, steps: int = STEPS) -> dict[str, float]:
    """By case the largest difference of a weight on any rank from that of one process; infinite where gates differ."""
    results = run_ranks(on_rank, ranks, names, ranks, dtype, steps)
    found: dict[str, float] = {}
    for name in names:
        expected = alone(case(name), dtype, steps)
        error = max(largest_difference(expected["weights"], result[name]["weights"]) for result in results)
        alike = all(result[name].get("duty") == expected.get("duty") for result in results)
        found[name] = error if alike else float("inf")
    return found


def measure(*, quick: bool) -> list[Finding]:
    """One finding for each method."""
    known = cases()
    chosen = [c for k, c in enumerate(known) if not quick or k % 8 == 0]
    errors: dict[str, dict[str, float]] = {}
    for ranks in (2,) if quick else (2, 4):
        for dtype in BOUNDS:
            for name, error in compare([c.name for c in chosen], ranks, dtype).items():
                errors.setdefault(name, {})[f"{ranks} ranks, {str(dtype).removeprefix('torch.')}"] = error
    findings: list[Finding] = []
    for method in METHODS:
        mine = {c.name: errors[c.name] for c in chosen if c.method == method}
        if not mine:
            continue
        bounds = {str(dtype).removeprefix("torch."): bound for dtype, bound in BOUNDS.items()}
        held = sum(all(e <= bounds[k.split(", ")[1]] for k, e in by.items()) for by in mine.values())
        worst = max(e for by in mine.values() for k, e in by.items() if k.endswith("float32"))
        findings.append(
            Finding(
                method,
                f"{held} of {len(mine)} cases equal one process (float32: {worst:.1e})",
                held == len(mine),
                {"largest differences": mine, "bounds": bounds, "steps": STEPS},
            )
        )
    return findings
