"""Every kind of manifold and step on weights with hand-made gradients, sharded or not; imported by processes too."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import weightspace as ws
from sharded_training import gathered
from weightspace.sharding import layout_of, sharded_like

Shapes = list[tuple[int, ...]]
MATRICES: Shapes = [(6, 10), (5, 7), (1, 9)]
KERNELS: Shapes = [(6, 4, 3, 3), (5, 4, 3, 3), (2, 3, 3, 3)]
SGD = {"lr": 0.05, "momentum": 0.9}
LANGEVIN = {"lr": 1e-3, "temperature": 1.0, "num_data": 100, "seed": 3, "measure_every": 2}
CHANGING = "product(sphere(slice), stiefel(slice), assignment=random, every=2, seed=1)"


def unit_sums(q: torch.Tensor) -> torch.Tensor:
    """Equations of a level set."""
    return q.sum(0) - 1.0


LEVEL_SET = ws.manifolds.LevelSet(unit_sums, name="sharded_unit_sums").text()


def manifold_cases() -> dict[str, tuple[str, dict[str, Any], Shapes, dict[str, Any]]]:
    """(optimizer, options of its group, shapes, its own options) by name."""
    found: dict[str, tuple[str, dict[str, Any], Shapes, dict[str, Any]]] = {}
    for kind, options in {
        "SubmanifoldSGD": SGD,
        "SubmanifoldAdam": {"lr": 0.01},
        "ConstrainedLangevin": LANGEVIN,
    }.items():
        slices = ("stiefel(slice)", "oblique(slice)", "sphere(output)", "sphere(input)")
        for manifold in (CHANGING, "zeromeansphere(filter)", "euclidean(kernel)", *slices):
            found[f"{kind} {manifold}"] = (kind, {"manifold": manifold}, KERNELS, options)
        found[f"{kind} level set"] = (kind, {"manifold": LEVEL_SET}, MATRICES[:2], options)
        matrix = {"manifold": "stiefel(matrix)"}
        found[f"{kind} chains"] = (kind, {**matrix, "chains": True}, [(3, 4, 6), (2, 5, 3)], options)
        found[f"{kind} groups"] = (kind, {**matrix, "groups": 2}, KERNELS[:1], options)
        for manifold in ("stiefel(slice)", "sphere(filter)"):
            found[f"{kind} transposed {manifold}"] = (kind, {"manifold": manifold, "out_axis": 1}, KERNELS, options)
    for scheme in ("BAOA", "overdamped"):
        for circle in ("circle(entry)", "circle(entry, slack=2)", "circle(entry, radius=2.0)"):
            own = {**LANGEVIN, "scheme": scheme}
            found[f"{circle} {scheme}"] = ("ConstrainedLangevin", {"manifold": circle}, MATRICES, own)
    scaled = {**LANGEVIN, "preconditioner": "rmsprop"}
    found["preconditioned"] = ("ConstrainedLangevin", {}, MATRICES, scaled)
    for manifold in ("stiefel(matrix, every=3)", "stiefel(slice, tolerance=0.001)"):
        found[manifold] = ("SubmanifoldSGD", {"manifold": manifold}, KERNELS, SGD)
    sphere = {"manifold": "sphere(filter)"}
    for transport in ("projection", "norm"):
        found[transport] = ("SubmanifoldSGD", sphere, KERNELS, {**SGD, "transport": transport})
    exact = {**SGD, "nesterov": True, "step_size": "plain", "update": "geodesic"}
    found["nesterov"] = ("SubmanifoldSGD", sphere, KERNELS, exact)
    return found


class Holder(nn.Module):
    """Weights, and nothing that is computed with them."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        torch.manual_seed(1)
        for k, shape in enumerate(shapes):
            self.register_parameter(f"w{k}", nn.Parameter(0.4 * torch.randn(shape, dtype=torch.float64)))


def run_manifold(name: str, ranks: int | None) -> dict[str, Any]:
    """Weights and state after five steps, of which one leaves out a weight; saved and loaded on the way."""
    kind, group, shapes, options = manifold_cases()[name]
    holder = Holder(shapes)
    if ranks is not None:
        fully_shard(holder, mesh=init_device_mesh("cpu", (ranks,)))
    groups = [{"params": list(holder.named_parameters()), **group}]
    make = getattr(ws.optim, kind)
    optimizer = make([dict(g) for g in groups], **options)
    for step in range(5):
        for k, p in enumerate(holder.parameters()):
            gradient = torch.sin(3 * gathered(p.detach()) + k + step)
            layout = None if ranks is None else layout_of(p, "w")
            if layout is not None:
                gradient = sharded_like(layout.cut(gradient, layout.rank).contiguous(), p)
            p.grad = None if (step, k) == (2, 0) else gradient
        optimizer.step()
        if (
            step == 2 and "=0.001" not in name and "every" not in name
        ):  # these are corrected anew when a state is loaded
            saved = optimizer.state_dict()
            optimizer = make([dict(g) for g in groups], **options)
            optimizer.load_state_dict(saved)
    optimizer.verify()
    return {"weights": [gathered(p.detach()) for p in holder.parameters()], "state": gathered(optimizer.state_dict())}


def run_manifolds(_: int, ranks: int) -> dict[str, Any]:
    """All cases on one process of several."""
    return {name: run_manifold(name, ranks) for name in manifold_cases()}
