"""Several processes, each with its part of the batch: as one process, in everything that can be compared.

The work of penalties is divided among them, with the same bits; noise is one chain's, or several chains' own.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import weightspace as ws
from weightspace.errors import AttachError, NonFiniteGradientError, RuleError
from weightspace.operators import operator_of
from weightspace.optim import _shared_work
from weightspace.optim._shared_work import EVERYWHERE, owners_of, replica_of
from weightspace.optim._work_costs import estimated_seconds
from weightspace.penalties import OperatorPenalty
from weightspace.registry import REGISTRY, make_rule

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ddp() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield importlib.import_module("reliability.ddp")


# --------------------------------------------------------------------------- as one process


def test_every_case_on_two_processes_is_as_on_one(ddp):
    found = ddp.differences(list(ddp.everything()), ranks=2, steps=3)
    assert len(found) > 100
    assert {name: d for name, d in found.items() if not d.holds} == {}
    assert any(d.weights > 0 for d in found.values())  # sums are taken in another order: it was not the same process


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_case_for_longer(ddp, ranks):
    found = ddp.differences(list(ddp.everything()), ranks=ranks, steps=12)
    assert {name: d for name, d in found.items() if not d.holds} == {}


def test_what_differs_is_found(ddp):
    base = ddp.Trained({"w": [1.0, 2.0]}, {"w": {"L1": 0.5}}, {"w": {"cosine": 0.1}}, {"w": 1e-16})
    others = {
        "weights": ddp.Trained({"w": [1.0, 2.0 + 1e-9]}, base.duty, base.figures, base.violations),
        "duty": ddp.Trained(base.weights, {"w": {"L1": 0.25}}, base.figures, base.violations),
        "figures": ddp.Trained(base.weights, base.duty, {"w": {"cosine": 0.1 + 1e-7}}, base.violations),
        "violations": ddp.Trained(base.weights, base.duty, base.figures, {"w": 1e-9}),
        "NaN": ddp.Trained({"w": [1.0, math.nan]}, base.duty, base.figures, base.violations),
    }
    assert ddp.difference(base, [base, base]).holds
    for other in others.values():
        assert not ddp.difference(base, [other, other]).holds
    almost = ddp.Trained({"w": [1.0, 2.0 + 1e-15]}, base.duty, base.figures, base.violations)
    assert ddp.difference(base, [almost, almost]).holds
    assert not ddp.difference(base, [base, almost]).holds  # the processes themselves must agree to the bit
    with pytest.raises(ValueError, match="zip"):
        ddp.difference(base, [ddp.Trained({"w": [1.0]}, base.duty, base.figures, base.violations)])


def test_chains_and_seeds(ddp):
    noise = ddp.noise(ranks=2)
    assert noise.agreed  # no seed given, other generators: one chain
    assert noise.chains_differ
    assert noise.chains_repeat
    assert noise.chains_are_those_of_one_process


# --------------------------------------------------------------------------- who does what


def test_owners():
    assert owners_of([1.0, 1.0, 1.0, 1.0], [0.0] * 4, 2) == [0, 1, 0, 1]
    assert owners_of([1.0, 1.0], [2.0, 2.0], 2) == [EVERYWHERE] * 2  # sending takes longer than doing
    assert owners_of([1.0, 1.0], [2.0, 2.0], 2, must=True) == [0, 1]
    assert owners_of([1e-5, 1e-5], [0.0, 0.0], 2) == [EVERYWHERE] * 2  # less than messages take
    assert owners_of([], [], 2) == []
    assert owners_of([5.0, 1.0, 1.0, 1.0, 1.0, 1.0], [0.1] * 6, 2) == [0, 1, 1, 1, 1, 1]


def test_a_replica_is_found_inside_wrappers(tmp_path):
    class FabricLike(nn.Module):
        def __init__(self, model):
            super().__init__()
            self._forward_module = model

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        replica = DistributedDataParallel(nn.Linear(2, 2))
        assert replica_of(replica) is replica
        assert replica_of(torch.compile(FabricLike(replica))) is replica
        for plain in (replica.module, FabricLike(replica.module), nn.DataParallel(replica.module)):
            assert replica_of(plain) is None
        optimizer = torch.optim.SGD(replica.parameters(), lr=0.1)
        ws.attach(optimizer, replica, ws.penalties.SoftOrthogonality(), share_work=True)
        replica(torch.ones(1, 2)).sum().backward()
        optimizer.step()  # alone in its group: nothing to divide
    finally:
        torch.distributed.destroy_process_group()


def test_options_are_checked():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for wrong in ("yes", None, 1):
        with pytest.raises(RuleError, match=r"share_work=.*choose 'auto', True or False"):
            ws.attach(optimizer, model, ws.penalties.SoftOrthogonality(), share_work=wrong)
    with pytest.raises(AttachError, match="not inside DistributedDataParallel"):
        ws.attach(optimizer, model, ws.penalties.SoftOrthogonality(), share_work=True)


def test_estimates_put_terms_in_order():
    P = ws.penalties
    geometry = operator_of(nn.Conv2d(64, 64, 3, padding=1), 16).geometry
    terms = [P.SoftOrthogonality(), P.SoftOrthogonality("SRIP"), P.LargestSingularValue(), P.GramSpectralNorm()]
    seconds = [estimated_seconds(term, geometry) for term in (*terms, P.SingularValueBand())]
    assert seconds == sorted(seconds)
    assert 0.03 < seconds[-1] < 0.3  # 0.11 when it was measured
    for entry in REGISTRY.values():
        if issubclass(entry.factory, OperatorPenalty):
            for options in entry.variants.values():
                small = operator_of(nn.Conv2d(4, 4, 3, padding=1), 8).geometry
                assert 0 < estimated_seconds(make_rule(entry.name, **options), small) < 1


# --------------------------------------------------------------------------- divided work, on two processes


def _layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 5, 3, stride=2), nn.Flatten(), nn.Linear(45, 3)
    )


def _opened(penalties: list[Any], share_work: Any, **options: Any) -> tuple[Any, torch.optim.Optimizer, Any]:
    model = DistributedDataParallel(_layers().to(memory_format=torch.channels_last))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return model, optimizer, ws.attach(optimizer, model, *penalties, share_work=share_work, **options)


def _steps(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, count: int = 3, start: int = 0) -> None:
    for step in range(start, start + count):
        g = torch.Generator().manual_seed(10 * step + rank)
        optimizer.zero_grad()
        model(torch.randn(2, 2, 8, 8, generator=g)).square().mean().backward()
        optimizer.step()


def _divided(rank: int, penalties: list[Any], mode: Any = True) -> dict[str, Any]:
    """Trains with divided work and without it; what is equal, and who did how much."""
    opened = [_opened(penalties, share) for share in (mode, False)]
    for model, optimizer, _ in opened:
        _steps(model, optimizer, rank)
    (first, _, shared), (second, _, alone) = opened
    states = [rules.state_dict()["penalties"] for rules in (shared, alone)]
    work = [rules._plan.penalties.shared_work for rules in (shared, alone)]
    return {
        "weights": all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)),
        "state": all(
            torch.equal(states[0][name][index][key], tensor)
            for name, by_rule in states[1].items()
            for index, kept in by_rule.items()
            for key, tensor in kept.items()
        ),
        "figures": shared.measurements == alone.measurements,
        "counts": [w.evaluated for w in work],
        "sent": work[0].broadcasts.sent,
    }


def _every_penalty(rank: int) -> dict[str, Any]:
    found = {}
    for entry in REGISTRY.values():
        if issubclass(entry.factory, OperatorPenalty):
            for label, options in entry.variants.items():
                found[f"{entry.name} {label}"] = _divided(rank, [make_rule(entry.name, **options)])
    P, G = ws.penalties, ws.gates
    found["together"] = _divided(
        rank,
        [
            P.SingularValueBand(0.5, 1.5, weight=1e-2, gate=G.Coherent(threshold=0.3)),
            P.LargestSingularValue(0.5, gate=G.Coherent(against="history")),
            P.GramFrobenius(probes=1, every=2, gate=G.RandomGate(0.5)),
            P.L1(1e-3),
        ],
    )
    return found


def _automatic(rank: int) -> dict[str, Any]:
    """Small layers are not worth a message; with a message that costs nothing they are."""
    before = _shared_work.LATENCY, _shared_work.RATE
    small = _divided(rank, [ws.penalties.SingularValueBand(), ws.penalties.SoftOrthogonality()], "auto")
    try:
        _shared_work.LATENCY, _shared_work.RATE = 0.0, 1e12
        free = _divided(rank, [ws.penalties.SingularValueBand(), ws.penalties.SoftOrthogonality()], "auto")
    finally:
        _shared_work.LATENCY, _shared_work.RATE = before
    return {"small": small, "free": free}


def _message(act: Callable[[], object]) -> tuple[str, str]:
    try:
        act()
    except Exception as error:  # noqa: BLE001 - it is what is looked at
        return type(error).__name__, str(error)
    return "", ""


def _failures(rank: int) -> dict[str, tuple[str, str]]:
    """What is wrong on the second process only must be known to both."""
    found = {}
    band = ws.penalties.SingularValueBand()
    model, optimizer, _ = _opened([band], True)
    _steps(model, optimizer, rank, 1)
    if rank == 1:
        with torch.no_grad():
            model.module[0].weight[0, 0, 0, 0] = math.nan
    found["NaN weight"] = _message(lambda: _steps(model, optimizer, rank, 1))

    model, optimizer, rules = _opened([band], True)
    _steps(model, optimizer, rank, 1)
    original = ws.penalties.SingularValueBand.evaluate
    for name, error in {"operator": ws.errors.OperatorError("too large."), "bug": KeyError("surprise")}.items():

        def fails(*_: Any, error: Exception = error) -> Any:
            raise error

        type(band).evaluate = fails if rank == 1 else original
        before = [p.detach().clone() for p in model.parameters()]
        found[name] = _message(lambda: _steps(model, optimizer, rank, 1))
        type(band).evaluate = original
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    _steps(model, optimizer, rank, 1)  # and it goes on
    if rank == 1:
        rules._steps += 1
    found["step"] = _message(lambda: _steps(model, optimizer, rank, 1))
    return found


def _uneven(rank: int) -> list[float]:
    """The second process has fewer batches: within join() nobody may wait for it."""
    model, optimizer, rules = _opened([ws.penalties.SingularValueBand()], True)
    with model.join():
        _steps(model, optimizer, rank, 3 - rank)
    return [rules._plan.penalties.shared_work.evaluated, model.module[0].weight.sum().item()]


def _resumed(rank: int) -> bool:
    """What is remembered on the other process's behalf is saved: a resumed run goes on with the same bits."""
    penalties = [ws.penalties.LargestSingularValue(0.1, weight=0.1)]
    model, optimizer, rules = _opened(penalties, True)
    _steps(model, optimizer, rank, 2)
    kept = [p.detach().clone() for p in model.parameters()], optimizer.state_dict(), rules.state_dict()
    kept = [*kept[:1], *torch.utils._pytree.tree_map(lambda x: x.clone() if torch.is_tensor(x) else x, kept[1:])]
    _steps(model, optimizer, rank, 2, start=2)
    other, again, anew = _opened(penalties, rank == 7)  # without divided work
    with torch.no_grad():
        for p, value in zip(other.parameters(), kept[0], strict=True):
            p.copy_(value)
    again.load_state_dict(kept[1])
    anew.load_state_dict(kept[2])
    _steps(other, again, rank, 2, start=2)
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def _accumulated(rank: int) -> int:
    """Two backward passes a step, the first not averaged: one evaluation of each penalty a step."""
    model, optimizer, rules = _opened([ws.penalties.SingularValueBand()], True)
    for _ in range(2):
        optimizer.zero_grad()
        for part in range(2):
            with model.no_sync() if part == 0 else nullcontext():
                model(torch.randn(2, 2, 8, 8)).square().mean().backward()
        optimizer.step()
    return rules._plan.penalties.shared_work.evaluated


SCENARIOS = {f.__name__: f for f in (_every_penalty, _automatic, _failures, _uneven, _resumed, _accumulated)}


def _all_scenarios(rank: int) -> dict[str, Any]:
    return {name: scenario(rank) for name, scenario in SCENARIOS.items()}


@pytest.fixture(scope="module")
def by_rank(ddp) -> list[dict[str, Any]]:
    return ddp.run_ranks(_all_scenarios, 2, seconds=120.0)


def test_divided_work_gives_the_same_bits(by_rank):
    first, second = (found["_every_penalty"] for found in by_rank)
    assert len(first) > 15
    for name, one in first.items():
        other = second[name]
        for key in ("weights", "state", "figures"):
            assert one[key], (name, key)
            assert other[key], (name, key)


def test_each_penalty_is_evaluated_once(by_rank):
    first, second = (found["_every_penalty"] for found in by_rank)
    for name, one in first.items():
        (mine, everywhere), (others, _) = one["counts"], second[name]["counts"]
        assert mine + others == everywhere, name
        assert min(mine, others) > 0, name
    sent = first["SingularValueBand plain"]["sent"] + second["SingularValueBand plain"]["sent"]
    numbers = sum(layer.weight.numel() for layer in _layers() if hasattr(layer, "weight"))
    # Three steps: every gradient and every value once, in float32, from multiples of 64 bytes on.
    assert 3 * 4 * (numbers + 3) <= sent < 3 * (4 * (numbers + 3) + 6 * 64)


def test_what_is_not_worth_a_message_is_done_everywhere(by_rank):
    first, second = (found["_automatic"] for found in by_rank)
    assert first["small"]["sent"] == second["small"]["sent"] == 0
    assert first["small"]["counts"] == second["small"]["counts"] == [18, 18]
    assert first["free"]["sent"] > 0
    assert first["free"]["counts"][0] + second["free"]["counts"][0] == 18
    assert first["free"]["weights"]
    assert second["free"]["weights"]


def test_a_failure_on_one_process_is_raised_on_all(by_rank):
    first, second = (found["_failures"] for found in by_rank)
    error = NonFiniteGradientError.__name__
    assert [first["NaN weight"][0], second["NaN weight"][0]] == [error, error]
    assert "0.weight holds NaN" in second["NaN weight"][1]
    assert first["NaN weight"][1].startswith("rank 1: The weight 0.weight holds NaN")
    assert first["operator"][0] == second["operator"][0] == "AttachError"
    assert "too large" in second["operator"][1]
    assert first["operator"][1] == "rank 1: " + second["operator"][1]
    assert second["bug"] == ("KeyError", "'surprise'")
    assert first["bug"] == ("AttachError", "rank 1: A penalty could not be evaluated: KeyError: 'surprise'")
    assert first["step"] == second["step"]
    assert "not at the same step of the same rules" in first["step"][1]


def test_uneven_inputs_do_not_wait(by_rank):
    (count, total), (other_count, other_total) = (found["_uneven"] for found in by_rank)
    assert (count, other_count) == (9, 6)
    assert total == other_total  # join() ends with the weights of the process that went on


def test_resumed_runs_and_accumulated_gradients(by_rank):
    assert all(found["_resumed"] for found in by_rank)
    assert sum(found["_accumulated"] for found in by_rank) == 2 * 3
