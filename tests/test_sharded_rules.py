"""Rules on weights that `fully_shard` made DTensors: the same as on one process, never a hang, and nothing lost."""

from __future__ import annotations

import math

import pytest
import torch
from reliability import fsdp2
from reliability.cases import batch, case, cases, make_model, train, weights
from reliability.processes import run_ranks
from torch import nn

import weightspace as ws
from weightspace.errors import AttachError, NonFiniteGradientError, VerificationError
from weightspace.sharding import Exchange, Item, ShardLayout, share_out

ATTACHED = [c.name for c in cases() if "Submanifold" not in c.name and "Langevin" not in c.name]
# Every way in which a rule can be shared out, and every kind of gate.
FEW = [
    *("ChannelL2 out, keep_norm", "ChannelL2 in", "GradientCentralization plain", "SingularValueBand plain"),
    *("L1 coherent", "L1 proximal, history", "GroupL1 in", "GroupL1 out, proximal", "CautiousWeightDecay plain"),
    *("L1 behind Coherent(total, global)", "L1 behind Coherent(lookahead)", "metric, band, L1, Stiefel"),
    *(
        "Sphere filter",
        "Sphere kernel AdamW",
        "Stiefel polar",
        "Product slice, random",
        "GramFrobenius every second step",
    ),
]


def same(expected: dict, result: dict, bound: float) -> None:
    assert fsdp2.largest_difference(expected["weights"], result["weights"]) <= bound
    assert result["duty"] == expected["duty"]
    assert result["fallbacks"] == expected["fallbacks"]
    assert result["measured"].keys() == expected["measured"].keys()
    for name, figures in expected["measured"].items():
        assert result["measured"][name] == pytest.approx(figures, rel=1e-4, abs=1e-6), name
    assert all(ratio <= 1.0 for ratio in result["checks"].values())
    assert {name for _, names in result["checks"] for name in names} == {
        name for _, names in expected["checks"] for name in names
    }


def compare(names: list[str], ranks: int, dtype: torch.dtype) -> None:
    results = run_ranks(fsdp2.on_rank, ranks, names, ranks, dtype, fsdp2.STEPS)
    for name in names:
        expected = fsdp2.alone(case(name), dtype)
        for result in results:
            same(expected, result[name], fsdp2.BOUNDS[dtype])


def test_two_ranks_train_sharded_weights_like_one():
    compare(FEW, 2, torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_rule_trains_sharded_weights_like_one(ranks, dtype):
    compare(ATTACHED, ranks, dtype)


# ------------------------------------------------------------------------------------------- what else can happen


def opened(rank: int, *rules, lr: float = 0.05):
    model = fsdp2.shard(make_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return model, optimizer, ws.attach(optimizer, model, *rules)


def backward(model: nn.Module, rank: int, ranks: int, step: int = 0) -> None:
    x, y = batch(step)
    mine = slice(rank * len(x) // ranks, (rank + 1) * len(x) // ranks)
    nn.functional.cross_entropy(model(x[mine]), y[mine]).backward()


def error_of(act) -> tuple[str, str]:
    try:
        act()
    except (AttachError, NonFiniteGradientError, VerificationError) as error:
        return type(error).__name__, str(error)
    return "", ""


def troubles(rank: int) -> dict:
    """Everything that may go wrong on one process alone, on two ranks."""
    found = {}
    model, optimizer, rules = opened(rank, ws.manifolds.Stiefel(), ws.penalties.L1(1e-3))
    found["table"] = str(rules.table())
    found["moved"] = sorted(rules.moved)
    before = weights(model)
    backward(model, rank, 2)
    if rank == 1:
        model[2].weight.grad._local_tensor[0, 0, 0, 0] = math.nan
    found["nan"] = error_of(optimizer.step)
    found["unchanged"] = all(torch.equal(a, b) for a, b in zip(before.values(), weights(model).values(), strict=True))
    optimizer.zero_grad()
    rules.restore_gradients()
    backward(model, rank, 2)
    grads = [p.grad._local_tensor.clone() for p in model.parameters()]
    optimizer.step()
    found["gradients are the user's"] = all(
        torch.equal(p.grad._local_tensor, g) for p, g in zip(model.parameters(), grads, strict=True)
    )
    with torch.no_grad():  # one process writes to its rows: all move the weight back
        if rank == 0:
            model[2].weight._local_tensor.mul_(3.0)
    found["broken"] = error_of(rules.verify)
    backward(model, rank, 2, 1)
    optimizer.step()
    found["mended"] = error_of(rules.verify)
    found["moved later"] = sorted(rules.moved)
    rules.remove()
    found["inplace"] = error_of(lambda: ws.attach(optimizer, model, ws.penalties.L1(1e-3), inplace=True))
    return found


def test_what_goes_wrong_on_one_process_is_told_on_all():
    first, second = run_ranks(troubles, 2)
    assert {key: value for key, value in first.items() if key != "nan"} == {
        key: value for key, value in second.items() if key != "nan"
    }
    # The whole gradient of 2.weight is on its owner only.
    assert first["nan"][0] == second["nan"][0] == "NonFiniteGradientError"
    assert "The gradient of 2.weight holds 1 NaN" in first["nan"][1]
    assert sum(error.startswith("rank ") for _, error in (first["nan"], second["nan"])) == 1
    assert first["unchanged"]
    assert first["gradients are the user's"]
    assert "whole on rank" in first["table"]
    assert "rows on each rank" in first["table"]
    assert first["moved"] == ["0.weight", "2.weight", "4.weight", "6.weight"]
    assert first["broken"][0] == "VerificationError"
    assert "2.weight" in first["broken"][1]
    assert first["mended"] == ("", "")
    assert "2.weight" in first["moved later"]
    assert first["inplace"][0] == "AttachError"
    assert "sharded (fully_shard)" in first["inplace"][1]


def saved_and_loaded(rank: int, folder: str, ranks: int, part: str) -> dict:
    """Trains with rules that remember; writes or reads a distributed checkpoint in between."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model = fsdp2.shard(make_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rules = ws.attach(
        optimizer,
        model,
        ws.penalties.L1(1e-2, gate=ws.gates.Coherent("history", 0.0)),
        ws.penalties.SingularValueBand(0.5, 1.0, weight=1e-2, gate=ws.gates.Coherent("previous")),
        ws.manifolds.Stiefel(on=ws.on.name("2.*") & ws.on.convs),
    )
    if part == "first":
        train(model, (optimizer, rules), 3, rank=rank, ranks=ranks)
    state, optimizer_state = get_state_dict(model, optimizer)
    held = {"model": state, "optimizer": optimizer_state, "rules": rules.state_dict()}
    if part == "first":
        dcp.save(held, checkpoint_id=folder, no_dist=False)
    else:
        dcp.load(held, checkpoint_id=folder)
        set_state_dict(model, optimizer, model_state_dict=held["model"], optim_state_dict=held["optimizer"])
        rules.load_state_dict(held["rules"])
    train(model, (optimizer, rules), 3, rank=rank, ranks=ranks, first=3)
    return {"weights": weights(model), "duty": rules.duty_cycles, "steps": rules.steps}


def test_a_distributed_checkpoint_goes_on_with_another_number_of_ranks(tmp_path):
    through = run_ranks(saved_and_loaded, 2, str(tmp_path / "a"), 2, "first")
    for ranks in (2, 1, 4):
        on = run_ranks(saved_and_loaded, ranks, str(tmp_path / "a"), ranks, "second")
        for result in on:
            assert result["steps"] == 6
            assert result["duty"] == through[0]["duty"]
            bound = 0.0 if ranks == 2 else 1e-12
            assert fsdp2.largest_difference(through[0]["weights"], result["weights"]) <= bound


def in_replicas(rank: int) -> dict:
    """Four ranks: two replicas of two shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    model = fully_shard(make_model(), mesh=mesh)
    one = case("metric, band, L1, Stiefel").open(model)
    train(model, one, 4, rank=rank, ranks=4)
    return {"weights": weights(model), **fsdp2.facts(one)}


@pytest.mark.slow
def test_replicas_of_shards_train_like_one():
    expected = fsdp2.alone(case("metric, band, L1, Stiefel"), torch.float64, 4)
    for result in run_ranks(in_replicas, 4):
        same(expected, result, 1e-10)


# --------------------------------------------------------------------------------------------------- the exchange


def exchanged(rank: int, ranks: int) -> tuple[int, bool]:
    """Weights of odd shapes to their owners and back, doubled; the bytes that this rank sent."""
    shapes = [(5, 3), (1, 4), (8, 2, 3), (4,), (6, 7)]
    owners = share_out([math.prod(shape) for shape in shapes], ranks)
    group = torch.distributed.group.WORLD
    exchange, items, is_right = Exchange(), [], True
    for k, (shape, owner) in enumerate(zip(shapes, owners, strict=True)):
        layout = ShardLayout(shape, 1 if k == 4 else 0, rank, ranks, group)
        whole = torch.arange(float(math.prod(shape))).view(shape) + 100 * k
        items.append(
            Item(layout, owner, layout.cut(whole, rank).clone(), torch.zeros(shape) if owner == rank else None)
        )
    exchange.gather(items)
    for k, item in enumerate(items):
        if item.whole is not None:
            expected = torch.arange(float(math.prod(item.layout.shape))).view(item.layout.shape) + 100 * k
            is_right &= torch.equal(item.whole, expected)
            item.whole.mul_(2)
    sent = exchange.sent
    exchange.scatter(items)
    for k, item in enumerate(items):
        expected = 2 * (torch.arange(float(math.prod(item.layout.shape))).view(item.layout.shape) + 100 * k)
        is_right &= torch.equal(item.part, item.layout.cut(expected, rank))
    # What does not stay on its owner is sent once: gathered from here, scattered from the owner.
    away = sum(item.part.numel() for item in items if item.owner != rank)
    out = sum(item.whole.numel() - item.part.numel() for item in items if item.whole is not None)
    return exchange.sent, is_right and sent == 4 * away and exchange.sent == 4 * (away + out)


@pytest.mark.parametrize("ranks", [1, 3])
def test_an_exchange_brings_weights_together_and_shares_them_out(ranks):
    assert all(is_right for _, is_right in run_ranks(exchanged, ranks, ranks))
