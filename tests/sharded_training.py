"""What each process does in the tests of sharded optimizers: a module of its own, so that processes can import it."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from reliability.cases import batch, case, make_model, train, weights
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import weightspace as ws
from weightspace.errors import WeightspaceError
from weightspace.sharding import local_part

STEPS = 3
KINDS: dict[str, dict[str, Any]] = {
    "SubmanifoldSGD": {"lr": 0.05, "momentum": 0.9},
    "SubmanifoldAdam": {"lr": 0.01, "amsgrad": True},
    "ConstrainedLangevin": {"lr": 1e-3, "temperature": 1.0, "num_data": 100, "seed": 3, "measure_every": 1},
}


def shard(model: nn.Sequential, ranks: int, how: str) -> nn.Sequential:
    """Shards a model: `how` is "root", "layers", or "replicas" (a mesh of two dimensions)."""
    if how == "replicas":
        mesh = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh("cpu", (ranks,))
    if how != "root":
        for layer in model:
            if list(layer.parameters()):
                fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def open_kind(kind: str, model: nn.Module, without: str = "") -> Any:
    """An optimizer whose weights are on rows (0, with Langevin 4 too), on owners (2, 4) and free."""
    manifolds = {"0.*": ws.manifolds.Sphere(), "2.*": ws.manifolds.Stiefel(), "4.*": ws.manifolds.Oblique()}
    groups = ws.param_groups(model, {ws.on.name(n) & ws.on.convs: m for n, m in manifolds.items()})
    for group in groups:
        group["params"] = [(name, p) for name, p in group["params"] if name != without]
    return getattr(ws.optim, kind)(groups, **KINDS[kind])


def train_cases(rank: int, ranks: int, names: list[str], how: str, dtype: torch.dtype) -> dict[str, Any]:
    """The whole weights after some steps of each case."""
    found: dict[str, Any] = {}
    for name in names:
        model = shard(make_model(dtype), ranks, how)
        opened = case(name).open(model)
        train(model, opened, STEPS, rank=rank, ranks=ranks)
        found[name] = weights(model)
    return found


def live(rank: int, ranks: int, kind: str, how: str | None) -> dict[str, Any]:
    """A life of an optimizer, and what was seen of it on the way: `how` is None where nothing is sharded."""
    model = make_model()
    model = model if how is None else shard(model, ranks, how)
    optimizer = open_kind(kind, model, without="6.weight")
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    seen: dict[str, Any] = {"moved": dict(optimizer.moved)}
    run = {"rank": rank, "ranks": ranks}
    train(model, (optimizer, None), 2, **run)
    schedule.step()
    plain = nn.Parameter(torch.full((2, 3), 2.0, dtype=torch.float64))
    late = [("late.weight", model[6].weight), ("late.plain", plain)]
    optimizer.add_param_group({"params": late})
    plain.grad = plain.detach().clone()
    train(model, (optimizer, None), 1, first=2, **run)
    plain.grad = plain.detach().clone()
    train(model, (optimizer, None), 1, first=3, **run)
    seen["state"] = gathered(optimizer.state_dict())
    seen["violations"] = {check.parameters[0]: check.error for check in optimizer.verify()}
    seen["figures"] = optimizer.measurements() if hasattr(optimizer, "measurements") else {}
    if hasattr(optimizer, "temperatures"):
        seen["temperatures"] = [[t.kinetic, t.configurational, t.dimension] for t in optimizer.temperatures()]
        optimizer.reset_thermometers()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    train(model, (optimizer, None), 2, first=4, **run)
    seen["weights"], seen["plain"] = weights(model), plain.detach().clone()
    return seen


def gathered(state: Any) -> Any:
    """Nested state with every DTensor whole."""
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    if isinstance(state, list):
        return [gathered(value) for value in state]
    whole = getattr(state, "full_tensor", None)
    return state.detach().clone() if isinstance(state, torch.Tensor) and whole is None else whole() if whole else state


def lives(rank: int, ranks: int, how: str, kinds: list[str]) -> dict[str, Any]:
    """`live` of some optimizers."""
    return {kind: live(rank, ranks, kind, how) for kind in kinds}


def refusals(rank: int, ranks: int, how: str = "layers") -> dict[str, Any]:
    """What every process is told when one of them fails, and how the weights are left."""
    told: dict[str, Any] = {}

    def attempt(name: str, action: Any) -> None:
        try:
            action()
            told[name] = None
        except WeightspaceError as error:
            told[name] = f"{type(error).__name__}: {error}"
        except ZeroDivisionError as error:
            told[name] = f"ZeroDivisionError: {error}"

    model = shard(make_model(), ranks, how)
    optimizer = open_kind("SubmanifoldSGD", model)
    train(model, (optimizer, None), 1, rank=rank, ranks=ranks)
    before = weights(model)
    x, y = batch(1)
    nn.functional.cross_entropy(model(x), y).backward()
    if rank == 1:
        local_part(model[2].weight.grad).view(-1)[0] = math.nan
    attempt("one gradient is not finite", optimizer.step)
    told["left alone"] = all(torch.equal(a, b) for a, b in zip(before.values(), weights(model).values(), strict=True))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    inner = optimizer._twin.inner  # an owner that fails in the middle of a step
    if rank == 1:
        inner._step_on = lambda *_: 1 / 0
    attempt("one owner fails", optimizer.step)

    other = shard(make_model(), ranks, how)
    selection = ws.on.name("2.*") & ws.on.convs
    with torch.no_grad():
        if rank == 0:
            local_part(other[2].weight).view(-1)[0] = math.inf
    for name, manifold in {"a row": ws.manifolds.Sphere(), "a matrix": ws.manifolds.Stiefel()}.items():
        groups = ws.param_groups(other, {selection: manifold})
        attempt(f"{name} holds infinity", lambda groups=groups: ws.optim.SubmanifoldSGD(groups))
    groups = ws.param_groups(shard(make_model(), ranks, how), {selection: ws.manifolds.Circle(radius=0.01)})
    attempt("beyond a radius", lambda: ws.optim.ConstrainedLangevin(groups, temperature=0.0))
    bad = {"params": [("w", other[8].weight)], "manifold": "stiefel(slice)"}
    attempt("no slices", lambda: optimizer.add_param_group(bad))
    told["groups"] = (len(optimizer.param_groups), len(inner.param_groups))
    return told


def sent_bytes(rank: int, ranks: int) -> dict[str, int]:
    """What a step sends: for weights in rows, and for matrices on owners."""
    found: dict[str, int] = {}
    for name, manifold in {"rows": "sphere(filter)", "owners": "stiefel(matrix)"}.items():
        model = shard(nn.Sequential(*(nn.Conv2d(8, 8, 3, bias=False) for _ in range(4))), ranks, "layers")
        groups = ws.param_groups(model, {ws.on.convs | ws.on.head: ws.manifolds.parse(manifold)})
        optimizer = ws.optim.SubmanifoldSGD(groups, lr=0.1, momentum=0.9)
        exchange = optimizer._twin.exchange
        for k in range(2):  # at the first step `fully_shard` may have moved weights in memory
            before = exchange.sent
            optimizer.zero_grad()
            model(torch.randn(2, 8, 20, 20)).square().mean().backward()
            optimizer.step()
            found[f"{name} {k}"] = exchange.sent - before
    return found


def save_or_load(
    rank: int, ranks: int, folder: str, kinds: list[str], steps: tuple[int, int], load: bool
) -> dict[str, Any]:
    """Trains from step to step, and saves; `load`: what other processes saved goes on, in another model's place."""
    found: dict[str, Any] = {}
    for kind in kinds:
        place = Path(folder) / kind
        model = shard(make_model(seed=int(load)), ranks, "root")
        optimizer = open_kind(kind, model)
        if load:
            restore(model, optimizer, place)
        train(model, (optimizer, None), steps[1] - steps[0], rank=rank, ranks=ranks, first=steps[0])
        save(model, optimizer, place)
        found[kind] = weights(model)
    return found


def save(model: nn.Module, optimizer: torch.optim.Optimizer, place: Path) -> None:
    """A distributed checkpoint."""
    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.save(state, checkpoint_id=place, no_dist=not torch.distributed.is_initialized())


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, place: Path) -> None:
    """What `save` wrote, on any number of processes."""
    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(state, checkpoint_id=place, no_dist=not torch.distributed.is_initialized())
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])


def other_ways(rank: int, ranks: int) -> dict[str, Any]:
    """The state of one process taken over by several; a copied optimizer; a closure."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        one = make_model()
        alone = open_kind(kind, one)
        train(one, (alone, None), 2)
        model = shard(make_model(seed=1), ranks, "layers")
        optimizer = open_kind(kind, model)
        set_model_state_dict(model, one.state_dict(), options=StateDictOptions(full_state_dict=True))
        optimizer.load_state_dict(copy.deepcopy(alone.state_dict()))
        train(model, (optimizer, None), 2, rank=rank, ranks=ranks, first=2)
        train(one, (alone, None), 2, first=2)
        found[kind] = max_difference(weights(one), weights(model))
        optimizer.zero_grad()
        copied = copy.deepcopy(optimizer)
        found[f"{kind} copied"] = max_difference(
            gathered(copied.state_dict())["state"], gathered(optimizer.state_dict())["state"]
        )
    return found


def max_difference(expected: Any, found: Any) -> float:
    """The largest difference of a number in nested dictionaries and lists; infinite where these differ."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(expected, dict) and expected.keys() == found.keys():
        pairs = [(expected[key], found[key]) for key in expected]
    elif isinstance(expected, list | tuple) and len(expected) == len(found):
        pairs = list(zip(expected, found, strict=True))
    elif isinstance(expected, torch.Tensor) and (expected.shape, expected.dtype) == (found.shape, found.dtype):
        pairs = list(zip(expected.flatten().tolist(), found.flatten().tolist(), strict=True))
    elif isinstance(expected, int | float) and isinstance(found, int | float) and expected != found:
        return 0.0 if math.isnan(expected) and math.isnan(found) else abs(expected - found) / max(1.0, abs(expected))
    elif isinstance(expected, dict | list | tuple | torch.Tensor) or expected != found:
        return math.inf
    return max((max_difference(a, b) for a, b in pairs), default=0.0)
