"""Weights on manifolds: how far from them training leads, and whether optima that linear algebra knows are reached."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import weightspace as ws
from claims.measurements.attached import batch, small_network

STEPS = 100
# What must be 1 (norms) or the identity (Gram matrices), computed here from the weight `(c_out, c_in, 3, 3)`.
PLACES = {
    "sphere, each filter": "sphere(filter)",
    "oblique, each row": "oblique(matrix)",
    "Stiefel, the kernel's rows": "stiefel(matrix)",
    "orthogonal within a channel: each 3 x 3 slice": "stiefel(slice)",
}


def distance(place: str, weight: Tensor) -> float:
    """Largest entry by which norms differ from 1, or Gram matrices from the identity."""
    if place.startswith(("sphere", "oblique")):
        return float((weight.flatten(1).norm(dim=1) - 1).abs().max())
    points = weight if "slice" in place else weight.flatten(1)
    gram = points @ points.mT
    return float((gram - torch.eye(gram.shape[-1], dtype=gram.dtype)).abs().max())


def distances(*, is_quick: bool) -> dict[str, Any]:
    """Distance to the manifold in float32 after 100 steps of SGD with momentum, by retraction and along geodesics."""
    cases = []
    for place, notation in PLACES.items():
        for update in ("retraction", "geodesic"):
            for seed in range(1 if is_quick else 3):
                model = small_network(seed).float()
                groups = ws.param_groups(model, {ws.on.convs: ws.manifolds.parse(notation)})
                optimizer = ws.optim.SubmanifoldSGD(groups, lr=0.05, momentum=0.9, step_size="curvature", update=update)
                first = model[0].weight.detach().clone()
                for step in range(20 if is_quick else STEPS):
                    images, labels = batch(step % 20)
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(images.float()), labels).backward()
                    optimizer.step()
                found = max(distance(place, model[i].weight.detach().double()) for i in (0, 2))
                moved = float((model[0].weight.detach() - first).norm() / first.norm())
                cases.append({"manifold": place, "update": update, "seed": seed, "distance": found, "moved": moved})
    return {"steps": STEPS, "cases": cases}


def products(*, is_quick: bool) -> dict[str, Any]:
    """Two manifolds in one layer, over input channels, output channels or every slice: distances of both halves after training."""
    cases = []
    for over in ("input", "output", "slice"):
        for seed in range(1 if is_quick else 5):
            model = small_network(seed).float()
            rule = ws.manifolds.Product(
                ("sphere(slice)", "orthogonal(slice)"), over=over, assignment="random", seed=seed
            )
            optimizer = ws.optim.SubmanifoldSGD(ws.param_groups(model, {ws.on.convs: rule}), lr=0.05, momentum=0.9)
            for step in range(20 if is_quick else STEPS):
                images, labels = batch(step % 20)
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images.float()), labels).backward()
                optimizer.step()
            weight = model[2].weight.detach().double()  # 6 x 6 slices
            slices = {"input": weight.transpose(0, 1), "output": weight, "slice": weight.flatten(0, 1)}[over]
            spheres, orthogonal = (torch.as_tensor(part) for part in rule.assign(len(slices), "2.weight"))
            gram = slices[orthogonal] @ slices[orthogonal].mT - torch.eye(3, dtype=torch.float64)
            norms = slices[spheres].flatten(-2).norm(dim=-1) - 1
            cases.append(
                {"over": over, "seed": seed, "distance": max(float(gram.abs().max()), float(norms.abs().max()))}
            )
    return {"steps": STEPS, "cases": cases}


def optima(*, is_quick: bool) -> dict[str, Any]:
    """Gap to known optima after 1,000 steps of SubmanifoldSGD with the step-size rule, all samples, on fresh instances."""
    from experiments.manifold_optima import problems
    from experiments.manifold_problems import minimize, submanifold_sgd

    seeds, steps = ((100, 101), 50) if is_quick else (tuple(range(100, 110)), 1000)
    cases = []
    for name, problem in problems(seeds).items():
        rate = 0.1 if name.startswith("Procrustes") else 0.3  # what tuning on another instance chose, docs/results
        for update in ("retraction", "geodesic"):
            gaps = minimize(problem, submanifold_sgd("curvature", update), rate, steps)[-1]
            cases += [
                {"problem": name, "update": update, "instance": seed, "gap": max(float(gap), 0.0)}
                for seed, gap in zip(seeds, gaps.tolist(), strict=True)
            ]
    return {"steps": steps, "cases": cases}
