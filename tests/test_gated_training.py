"""Gates in trainings: a collapse and its cure, and two processes that decide alike."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

import weightspace as ws
from small_training import batch, make_model, weights
from weightspace.gates import Coherent, Delayed, RandomGate
from weightspace.penalties import L1, L2, GroupL1

DEPTH, WIDTH, CLASSES = 8, 24, 4


def task():
    """Four clusters in the plane of the first two of eight coordinates."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % CLASSES
    angle = labels * (2 * torch.pi / CLASSES)
    x = 0.3 * torch.randn(400, 8, generator=g)
    x[:, 0] += torch.cos(angle)
    x[:, 1] += torch.sin(angle)
    return x, labels


def accuracy_of(penalty, steps=400):
    """Of a deep plain network after training with all data, and the rules."""
    torch.manual_seed(1)
    layers = [m for k in range(DEPTH) for m in (nn.Linear(8 if k == 0 else WIDTH, WIDTH), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rules = None if penalty is None else ws.attach(optimizer, model, penalty)
    x, y = task()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    accuracy = float((model(x).argmax(1) == y).float().mean())
    return accuracy, rules


STRENGTH = 0.02  # of weight decay: above the tolerance level of this network


def test_a_strong_penalty_stops_a_deep_network_and_a_gate_rescues_it():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert accuracy_of(None)[0] > 0.9
        collapsed, _ = accuracy_of(L2(STRENGTH))
        assert collapsed < 0.35  # chance is 0.25
        rescued, rules = accuracy_of(L2(STRENGTH, gate=Coherent("total")))
        assert rescued > 0.8
    finally:
        torch.set_num_threads(threads)
    duties = [share for shares in rules.duty_cycles.values() for share in shares.values()]
    assert all(0.0 <= share < 1.0 for share in duties)
    assert max(duties) > 0.0


# --------------------------------------------------------------------------- two processes

ARMS = {
    "total": L1(0.02, gate=Coherent("total", threshold=0.6)),
    "history": L1(0.02, application="proximal", gate=Coherent("history", scope="global")),
    "previous": GroupL1(0.02, application="proximal", gate=Coherent("previous")),
    "lookahead": L2(0.5, gate=Coherent("lookahead", threshold=0.99)),
    "random": L1(0.02, gate=RandomGate(0.5)),
    "delayed": L1(0.02, gate=Delayed(2)),
}


def rank_main(rank: int, folder: str) -> None:
    """Two ranks, each with half of every batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save({name: train_on_rank(rank, name) for name in ARMS}, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    gc.collect()  # whatever uses the group must be gone before it is
    torch.distributed.destroy_process_group()


def train_on_rank(rank: int, name: str):
    model = make_model()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    rules = ws.attach(optimizer, wrapped, ARMS[name])
    for k in range(6):
        x, y = batch(k)

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(wrapped(x[rank::2]), y[rank::2])
            loss.backward()
            return loss

        optimizer.step(closure)
    return weights(model), rules.duty_cycles


@pytest.mark.slow
def test_two_ranks_decide_alike(tmp_path):
    torch.multiprocessing.spawn(rank_main, (str(tmp_path),), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    shares = set()
    for name in ARMS:
        assert one[name][1] == other[name][1], name
        assert all(torch.equal(a, b) for a, b in zip(one[name][0], other[name][0], strict=True)), name
        shares.update(share for duties in one[name][1].values() for share in duties.values())
    assert len(shares) > 2  # some gates were open now and then
