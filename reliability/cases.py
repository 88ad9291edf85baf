"""The cases that every claim is measured on: each row and variant of the registry, and the optimizers of our own.

A case builds a small network with an optimizer and its rules; nothing in it knows whether one process trains it or
four. The layers are odd on purpose: filters that two and four ranks cannot share out evenly, groups, a stride.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

import weightspace as ws
from weightspace.kernels import Stage
from weightspace.optim import Rules
from weightspace.registry import REGISTRY, make_rule

Opened = tuple[torch.optim.Optimizer, "Rules | None"]
CLASSES = 3


@dataclass(frozen=True)
class Case:
    """One thing that trains.

    Attributes:
        name: For tables and test ids.
        method: One of `reliability.findings.METHODS`.
        open: Gives optimizer and rules for a model, which may be wrapped or sharded already.
    """

    name: str
    method: str
    open: Callable[[nn.Module], Opened]


def make_model(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    """Four convolutions and a linear layer for images `(n, 2, 8, 8)`; no batch norm, which sees its own batch only."""
    torch.manual_seed(seed)
    layers = [
        *(nn.Conv2d(2, 6, 3), nn.Tanh()),
        *(nn.Conv2d(6, 6, 3, padding=1), nn.Tanh()),
        *(nn.Conv2d(6, 7, 3, stride=2), nn.Tanh()),
        *(nn.Conv2d(7, 4, 1), nn.Flatten()),
        nn.Linear(16, CLASSES),
    ]
    return nn.Sequential(*layers).to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float64, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """The joined batch of a step: images `(size, 2, 8, 8)` and labels `(size,)`."""
    g = torch.Generator().manual_seed(step)
    return torch.randn(size, 2, 8, 8, generator=g, dtype=torch.float64).to(dtype), torch.randint(
        CLASSES, (size,), generator=g
    )


def train(model: nn.Module, opened: Opened, steps: int, *, rank: int = 0, ranks: int = 1, first: int = 0) -> None:
    """Trains on this rank's part of every joined batch; wrappers average the gradients."""
    optimizer, rules = opened
    dtype = next(model.parameters()).dtype
    for step in range(first, first + steps):
        x, y = batch(step, dtype)
        mine = slice(rank * len(x) // ranks, (rank + 1) * len(x) // ranks)

        def closure(x: torch.Tensor = x[mine], y: torch.Tensor = y[mine]) -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        if rules is not None and rules.needs_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def _attached(rules: Callable[[], list[Any]], kind: str, model: nn.Module) -> Opened:
    options: dict[str, Any] = {"lr": 0.05}
    if kind == "SGD":
        options |= {"momentum": 0.9}
    optimizer = getattr(torch.optim, kind)(model.parameters(), **options)
    return optimizer, ws.attach(optimizer, model, *rules(), measure_every=2)


def _submanifold(kind: str, manifold: str, options: dict[str, Any], model: nn.Module) -> Opened:
    selection = ws.on.convs & ~ws.on.name("6.*") if "slice" in manifold else ws.on.convs
    groups = ws.param_groups(model, {selection: ws.manifolds.parse(manifold)})
    return getattr(ws.optim, kind)(groups, **options), None


def _rows() -> list[Case]:
    """Every variant of the registry on SGD with momentum; manifolds on AdamW too."""
    cases: list[Case] = []
    methods = {Stage.METRIC: "channel gradients", Stage.PENALTY: "singular values", Stage.MANIFOLD: "submanifolds"}
    for entry in REGISTRY.values():
        if entry.name == "Circle":
            continue  # only ConstrainedLangevin keeps its slack variables
        for label, options in entry.variants.items():
            is_weight_penalty = issubclass(entry.factory, ws.penalties.WeightPenalty)
            method = "gated penalties" if is_weight_penalty else methods[entry.stage]
            make = partial(make_rule, entry.name, **options)
            for kind in ("SGD", "AdamW") if entry.stage == Stage.MANIFOLD else ("SGD",):
                name = f"{entry.name} {label}" + ("" if kind == "SGD" else f" {kind}")
                cases.append(Case(name, method, partial(_attached, lambda make=make: [make()], kind)))
    return cases


def _all_at_once() -> list[Any]:
    return [
        ws.metrics.ChannelL2(smoothing=4.0),
        ws.penalties.SingularValueBand(0.5, 1.5, weight=1e-2, gate=ws.gates.Coherent(threshold=0.3)),
        ws.penalties.L1(1e-3, gate=ws.gates.Coherent(against="history")),
        ws.manifolds.Stiefel(on=ws.on.name("4.*") & ws.on.convs),
    ]


_SGD = {"lr": 0.05, "momentum": 0.9}
_LANGEVIN = {"lr": 1e-3, "friction": 1.0, "temperature": 1.0, "num_data": 1000, "seed": 7}


def cases() -> list[Case]:
    """All of them: names are unique."""
    found = _rows()
    for gate in ({"against": "total", "scope": "global"}, {"against": "previous"}, {"against": "lookahead"}):
        make = partial(ws.gates.Coherent, threshold=0.5, **gate)
        label = ", ".join(gate.values())
        found.append(
            Case(
                f"L1 behind Coherent({label})",
                "gated penalties",
                partial(_attached, lambda make=make: [ws.penalties.L1(1e-2, gate=make())], "SGD"),
            )
        )
    found.append(Case("metric, band, L1, Stiefel", "gated penalties", partial(_attached, _all_at_once, "SGD")))
    for manifold in ("sphere(filter)", "oblique(matrix)", "stiefel(matrix)", "stiefel(slice)", "sphere(kernel)"):
        found.append(
            Case(f"SubmanifoldSGD {manifold}", "submanifolds", partial(_submanifold, "SubmanifoldSGD", manifold, _SGD))
        )
    curved = {**_SGD, "step_size": "curvature", "weight_decay": 1e-2}
    found += [
        Case(
            "SubmanifoldSGD curvature",
            "submanifolds",
            partial(_submanifold, "SubmanifoldSGD", "stiefel(matrix)", curved),
        ),
        Case(
            "SubmanifoldAdam", "submanifolds", partial(_submanifold, "SubmanifoldAdam", "stiefel(matrix)", {"lr": 0.01})
        ),
    ]
    for manifold in ("euclidean(kernel)", "stiefel(matrix)", "oblique(matrix)", "circle(entry)", "sphere(kernel)"):
        found.append(
            Case(
                f"ConstrainedLangevin {manifold}",
                "constrained Langevin",
                partial(_submanifold, "ConstrainedLangevin", manifold, _LANGEVIN),
            )
        )
    for scheme in ("OBA", "OBABO", "overdamped"):
        options = {**_LANGEVIN, "scheme": scheme}
        found.append(
            Case(
                f"ConstrainedLangevin {scheme}",
                "constrained Langevin",
                partial(_submanifold, "ConstrainedLangevin", "stiefel(matrix)", options),
            )
        )
    return found


def case(name: str) -> Case:
    """The case of that name."""
    return next(c for c in cases() if c.name == name)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters, whole: gathered from shards where there are shards."""
    whole = {name: getattr(p, "full_tensor", lambda p=p: p)().detach().clone() for name, p in model.named_parameters()}
    return {name.removeprefix("module."): tensor for name, tensor in whole.items()}
