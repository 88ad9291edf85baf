"""What each process of the tests of sharded optimizers does; a module of its own, so that processes can import it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from reliability.cases import case, make_model, train, weights

STEPS = 4


def sharded_model(ranks: int, how: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """The cases' model: `how` is "root", "layers", or "replicas" (a mesh of two dimensions)."""
    model = make_model(dtype, seed)
    mesh = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("replicate", "shard")) if how == "replicas" else None
    mesh = mesh or init_device_mesh("cpu", (ranks,))
    if how != "root":
        for layer in model:
            if any(True for _ in layer.parameters()):
                fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def train_cases(rank: int, ranks: int, names: list[str], how: str, dtype: torch.dtype) -> dict[str, Any]:
    """The whole weights after some steps of each case."""
    found: dict[str, Any] = {}
    for name in names:
        model = sharded_model(ranks, how, dtype)
        opened = case(name).open(model)
        train(model, opened, STEPS, rank=rank, ranks=ranks)
        found[name] = weights(model)
    return found
